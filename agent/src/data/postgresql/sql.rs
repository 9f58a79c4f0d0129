//! Text that goes to the server: quoting, and cutting a script into its statements.
//!
//! Names and values come from databases that we don't know, so nothing is ever put into a statement unquoted.

/// A name as SQL wants it, always quoted.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name of two parts.
pub(super) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// A text value, whatever `standard_conforming_strings` says.
pub(super) fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A name as people read it: quoted only where it isn't plain, so that `a.b` within a name can't be taken for two.
pub(super) fn shown(name: &str) -> String {
    let plain = name.bytes().enumerate().all(|(at, byte)| {
        byte.is_ascii_lowercase() || byte == b'_' || (at > 0 && (byte.is_ascii_digit() || byte == b'$'))
    });
    if plain && !name.is_empty() { name.to_owned() } else { ident(name) }
}

/// Why a script could not be cut.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the schema's script ends within {0}")]
pub(super) struct Unfinished(&'static str);

/// Cuts a script of `pg_restore` into statements, comments and `psql`'s own `\restrict` lines left out.
///
/// Knows quotes, dollar quotes, nested comments, parentheses (rules hold several commands) and
/// `BEGIN ATOMIC … END` bodies of functions, where semicolons end nothing.
pub(super) fn statements(script: &str) -> Result<Vec<String>, Unfinished> {
    let bytes = script.as_bytes();
    let mut found = Vec::new();
    let mut text = String::new();
    let mut words = Words::default();
    let mut parens = 0usize;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &script[at..];
        let taken = match bytes[at] {
            b'-' if rest.starts_with("--") => {
                at += rest.find('\n').unwrap_or(rest.len());
                continue;
            }
            b'/' if rest.starts_with("/*") => {
                at += comment(rest).ok_or(Unfinished("a comment"))?;
                text.push(' ');
                continue;
            }
            b'\\' if text.trim().is_empty() => {
                // `\restrict` and `\unrestrict` guard psql alone, which is never used here.
                at += rest.find('\n').unwrap_or(rest.len());
                continue;
            }
            b'\'' => quoted(rest, b'\'', ends_with_e(&text)).ok_or(Unfinished("a quoted text"))?,
            b'"' => quoted(rest, b'"', false).ok_or(Unfinished("a quoted name"))?,
            b'$' if !text.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') => match dollar(rest) {
                Some(tag) => {
                    let from = tag.len();
                    let end = rest[from..].find(tag).ok_or(Unfinished("a dollar-quoted text"))?;
                    from + end + tag.len()
                }
                None => 1,
            },
            b'(' => {
                parens += 1;
                1
            }
            b')' => {
                parens = parens.saturating_sub(1);
                1
            }
            b';' if parens == 0 && words.blocks == 0 => {
                let statement = text.trim();
                if !statement.is_empty() {
                    found.push(statement.to_owned());
                }
                text.clear();
                words = Words::default();
                at += 1;
                continue;
            }
            byte if byte.is_ascii_alphabetic() || byte == b'_' => {
                let end = rest
                    .bytes()
                    .position(|b| !(b.is_ascii_alphanumeric() || b == b'_' || b == b'$' || b >= 0x80))
                    .unwrap_or(rest.len());
                words.take(&rest[..end]);
                end
            }
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
        text.push_str(&rest[..taken]);
        at += taken;
    }
    if text.trim().is_empty() { Ok(found) } else { Err(Unfinished("a statement")) }
}

/// Whether the quote that follows is of an `E'…'` text, where a backslash escapes.
fn ends_with_e(text: &str) -> bool {
    let mut back = text.chars().rev();
    matches!(back.next(), Some('e' | 'E')) && !back.next().is_some_and(|c| c.is_alphanumeric() || c == '_')
}

/// Length of a nested comment that `rest` starts with.
fn comment(rest: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    let (mut depth, mut at) = (0usize, 0);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => {
                depth += 1;
                at += 2;
            }
            b"*/" => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => at += 1,
        }
    }
    None
}

/// Length of a quoted text that `rest` starts with, quotes included.
fn quoted(rest: &str, quote: u8, escapes: bool) -> Option<usize> {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        if escapes && bytes[at] == b'\\' {
            at += 2;
        } else if bytes[at] == quote {
            if bytes.get(at + 1) == Some(&quote) {
                at += 2;
            } else {
                return Some(at + 1);
            }
        } else {
            at += 1;
        }
    }
    None
}

/// The opening tag of a dollar quote that `rest` starts with.
fn dollar(rest: &str) -> Option<&str> {
    let end = rest[1..].find('$')? + 1;
    let tag = &rest[1..end];
    let fine = tag.chars().enumerate().all(|(at, c)| c == '_' || c.is_alphabetic() || (at > 0 && c.is_numeric()));
    fine.then(|| &rest[..=end])
}

/// Follows the words of a statement just far enough to see `BEGIN ATOMIC` bodies.
#[derive(Default)]
struct Words {
    seen: Vec<String>,
    blocks: usize,
    /// Whether the last word was `BEGIN`.
    begin: bool,
}

impl Words {
    fn take(&mut self, word: &str) {
        let word = word.to_ascii_uppercase();
        let routine = self.routine();
        if self.seen.len() < 4 {
            self.seen.push(word.clone());
        }
        if routine {
            match word.as_str() {
                // `begin` is no reserved word: anything may be called that, within a body too.
                "ATOMIC" if self.begin && self.blocks == 0 => self.blocks = 1,
                "CASE" if self.blocks > 0 => self.blocks += 1,
                "END" => self.blocks = self.blocks.saturating_sub(1),
                _ => {}
            }
        }
        self.begin = word == "BEGIN";
    }

    fn routine(&self) -> bool {
        let is = |word: &String| word == "FUNCTION" || word == "PROCEDURE";
        self.seen.first().is_some_and(|w| w == "CREATE")
            && (self.seen.get(1).is_some_and(is)
                || (self.seen.get(1).is_some_and(|w| w == "OR") && self.seen.get(3).is_some_and(is)))
    }
}

/// The first words of a statement in upper case, for telling its kind: quoted names and all else left out.
pub(super) fn head(statement: &str, words: usize) -> String {
    let mut out: Vec<String> = Vec::new();
    for word in statement.split_ascii_whitespace().take(words) {
        if !word.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_') {
            break;
        }
        out.push(word.to_ascii_uppercase());
    }
    out.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted_whatever_they_hold() {
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("\\'"), " E'\\\\'''");
        assert_eq!(shown("users"), "users");
        assert_eq!(shown("Users"), "\"Users\"");
        assert_eq!(shown("1a"), "\"1a\"");
        assert_eq!(shown(""), "\"\"");
        assert_eq!(shown("a.b"), "\"a.b\"");
        assert_eq!(shown("ünï"), "\"ünï\"");
    }

    #[test]
    fn a_script_is_cut_only_where_statements_end() {
        let script = "\\restrict abc\n-- a; comment\nSET x = 'a;b';\nCREATE FUNCTION f() RETURNS int LANGUAGE sql\n\
             BEGIN ATOMIC\n SELECT CASE WHEN true THEN 1 ELSE 2 END AS begin;\n SELECT atomic.begin FROM atomic;\n SELECT 2;\nEND;\n\
             CREATE FUNCTION \"g;\"() RETURNS text AS $_$ select ';$$' $_$ LANGUAGE sql;\n\
             CREATE RULE r AS ON INSERT TO t DO ALSO ( INSERT INTO a VALUES (1); INSERT INTO b VALUES (2); );\n\
             COMMENT ON TABLE t IS E'a\\';b';/* x /* ; */ ; */SELECT 1;\n\\unrestrict abc\n";
        let cut = statements(script).unwrap();
        assert_eq!(cut.len(), 6, "{cut:#?}");
        assert_eq!(cut[0], "SET x = 'a;b'");
        assert!(cut[1].ends_with("END") && cut[1].contains("SELECT 2"), "{}", cut[1]);
        assert!(cut[2].starts_with("CREATE FUNCTION \"g;\"") && cut[2].ends_with("sql"));
        assert!(cut[3].contains("INTO b"));
        assert_eq!(cut[4], "COMMENT ON TABLE t IS E'a\\';b'");
        assert_eq!(head(&cut[3], 2), "CREATE RULE");
        assert_eq!(head("GRANT SELECT ON TABLE x", 1), "GRANT");
    }

    #[test]
    fn a_cut_off_script_is_an_error_and_not_a_shorter_script() {
        for script in ["SELECT 1", "SELECT 'a;", "SELECT $a$ b;", "/* x", "CREATE FUNCTION f() BEGIN ATOMIC SELECT 1;"]
        {
            assert!(statements(script).is_err(), "{script}");
        }
    }
}
