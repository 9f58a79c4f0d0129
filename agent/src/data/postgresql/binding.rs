//! Ways to a server within an application's configuration: found, and rewritten without touching a byte beside.
//!
//! Understood are URIs (`postgres://`, `postgresql+driver://`, `jdbc:postgresql://`, several hosts, percent-encoding),
//! libpq's keyword strings (`host=… dbname=…`, also quoted within a line), Npgsql's and PDO's (`Host=…;Database=…`, `pgsql:host=…`) and plain
//! host variables (`PGHOST`, `DB_HOST` …). A URI may stand anywhere in a line.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use ocopea_protocol::secret::Secret;

use crate::data::{Login, LoginOf, ParsedBinding};

/// Longer values are no bindings.
const LONGEST: usize = 64 * 1024;

/// What was found in a value: where host names stand, and what else it says.
#[derive(Default)]
struct Found {
    hosts: Vec<Range<usize>>,
    fields: BTreeMap<String, String>,
}

/// See `DataService::parse_binding`.
pub(super) fn parse(name: &str, value: &str) -> Option<ParsedBinding> {
    if value.len() > LONGEST {
        return None;
    }
    let found = uris(value)
        .or_else(|| keywords(value))
        .or_else(|| pairs(value))
        .or_else(|| embedded(value))
        .or_else(|| if names_a_host(name) { plain(value) } else { None })?;
    let mut seen = BTreeSet::new();
    let hosts: Vec<String> = found
        .hosts
        .iter()
        .filter_map(|at| value.get(at.clone()))
        .map(|host| decoded(host).trim_matches(['[', ']']).to_ascii_lowercase())
        .filter(|host| !host.is_empty() && !host.starts_with('/') && seen.insert(host.clone()))
        .collect();
    if hosts.is_empty() {
        return None;
    }
    Some(ParsedBinding { hosts, login: login(found.fields) })
}

/// See `DataService::rewrite_binding`.
pub(super) fn rewrite(value: &str, hosts: &BTreeMap<String, String>) -> String {
    if value.len() > LONGEST {
        return value.to_owned();
    }
    let found = uris(value)
        .or_else(|| keywords(value))
        .or_else(|| pairs(value))
        .or_else(|| embedded(value))
        .or_else(|| plain(value));
    let Some(found) = found else { return value.to_owned() };
    let mut spans = found.hosts;
    spans.sort_by_key(|span| span.start);
    let mut out = String::with_capacity(value.len());
    let mut at = 0;
    for span in spans {
        let (Some(before), Some(host)) = (value.get(at..span.start), value.get(span.clone())) else { continue };
        out.push_str(before);
        let known = hosts.get(host).or_else(|| {
            let plain = decoded(host);
            let plain = plain.trim_end_matches('.');
            hosts.iter().find(|(name, _)| name.eq_ignore_ascii_case(plain)).map(|(_, new)| new)
        });
        out.push_str(known.map_or(host, String::as_str));
        at = span.end;
    }
    out.push_str(value.get(at..).unwrap_or_default());
    out
}

fn login(mut fields: BTreeMap<String, String>) -> Option<Login> {
    let mut take = |names: &[&str]| names.iter().find_map(|name| fields.remove(*name)).filter(|text| !text.is_empty());
    let user = take(&["user", "username", "user id", "userid", "uid"]);
    let password = take(&["password", "passwd", "pwd"]).unwrap_or_default();
    let database = take(&["dbname", "database", "db", "initial catalog"]);
    for name in ["host", "hostaddr", "port", "server"] {
        fields.remove(name);
    }
    Some(Login { of: LoginOf::Application, user: user?, password: Secret::new(password), database, options: fields })
}

/// All PostgreSQL URIs in a value; the login is the first one's that has a user.
fn uris(value: &str) -> Option<Found> {
    let mut found = Found::default();
    let mut any = false;
    let mut from = 0;
    while let Some(at) = value[from..].find("://").map(|at| at + from) {
        let before = &value[..at];
        let start = before.rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '+')).map_or(0, |at| at + 1);
        let scheme = before[start..].to_ascii_lowercase();
        from = at + 3;
        if matches!(scheme.split('+').next(), Some("postgres" | "postgresql" | "pgsql" | "psql")) {
            any = true;
            let rest = &value[from..];
            let length = rest.find(|c: char| c.is_whitespace() || "\"'`<>\\".contains(c)).unwrap_or(rest.len());
            from += one_uri(value, from..from + length, &mut found);
        }
    }
    any.then_some(found)
}

/// Parses what follows `://`; answers its length.
fn one_uri(value: &str, span: Range<usize>, found: &mut Found) -> usize {
    let text = &value[span.clone()];
    let authority_end = match text.rfind('@') {
        // An unencoded '/' in a password is seen in the wild, and every client takes the last '@'.
        Some(at) if !text[..at].contains('?') => at + text[at..].find(['/', '?', '#']).unwrap_or(text.len() - at),
        _ => text.find(['/', '?', '#']).unwrap_or(text.len()),
    };
    let authority = &text[..authority_end];
    let (userinfo, hosts_at) = match authority.rfind('@') {
        Some(at) => (&authority[..at], at + 1),
        None => ("", 0),
    };
    add_hosts(&authority[hosts_at..], span.start + hosts_at, &mut found.hosts);
    let mut set = |name: &str, text: &str| {
        if !text.is_empty() {
            found.fields.entry(name.to_owned()).or_insert_with(|| decoded(text));
        }
    };
    if let Some((user, password)) = userinfo.split_once(':') {
        set("user", user);
        set("password", password);
    } else {
        set("user", userinfo);
    }
    let rest = &text[authority_end..];
    let path_end = rest.find(['?', '#']).unwrap_or(rest.len());
    set("dbname", rest[..path_end].trim_start_matches('/'));
    if let Some(query) = rest[path_end..].strip_prefix('?') {
        let mut at = span.start + authority_end + path_end + 1;
        for pair in query.split('#').next().unwrap_or(query).split('&') {
            if let Some((name, text)) = pair.split_once('=') {
                if name.eq_ignore_ascii_case("host") {
                    add_hosts(text, at + name.len() + 1, &mut found.hosts);
                } else {
                    set(&name.to_ascii_lowercase(), text);
                }
            }
            at += pair.len() + 1;
        }
    }
    text.len()
}

/// `host:port,host,[v6]:port` → where the hosts stand.
fn add_hosts(list: &str, start: usize, hosts: &mut Vec<Range<usize>>) {
    let mut at = start;
    for one in list.split(',') {
        let length = if one.starts_with('[') {
            one.find(']').map_or(one.len(), |end| end + 1)
        } else {
            one.find(':').unwrap_or(one.len())
        };
        if length > 0 {
            hosts.push(at..at + length);
        }
        at += one.len() + 1;
    }
}

/// libpq's `host=db port=5432 dbname='my shop'`.
fn keywords(value: &str) -> Option<Found> {
    let mut found = Found::default();
    let bytes = value.as_bytes();
    let mut at = 0;
    let skip = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        at
    };
    loop {
        at = skip(at);
        if at >= bytes.len() {
            break;
        }
        let start = at;
        while bytes.get(at).is_some_and(|b| b.is_ascii_lowercase() || *b == b'_') {
            at += 1;
        }
        let key = &value[start..at];
        at = skip(at);
        if key.is_empty() || bytes.get(at) != Some(&b'=') {
            return None;
        }
        at = skip(at + 1);
        let quoted = bytes.get(at) == Some(&b'\'');
        at += usize::from(quoted);
        let from = at;
        let mut text = Vec::new();
        loop {
            match bytes.get(at) {
                None if quoted => return None,
                None => break,
                Some(b'\'') if quoted => break,
                Some(b) if !quoted && b.is_ascii_whitespace() => break,
                Some(b'\\') => {
                    text.extend(bytes.get(at + 1));
                    at += 2;
                }
                Some(b) => {
                    text.push(*b);
                    at += 1;
                }
            }
        }
        let end = at.min(bytes.len());
        at = end + usize::from(quoted);
        if key == "host" {
            add_hosts(value.get(from..end)?, from, &mut found.hosts);
        }
        found.fields.insert(key.to_owned(), String::from_utf8(text).ok()?);
    }
    let ours = ["dbname", "user", "password", "port", "sslmode", "target_session_attrs"];
    (found.fields.contains_key("host") && ours.iter().any(|key| found.fields.contains_key(*key))).then_some(found)
}

/// libpq's keywords within a line: `dsn: "host=db user=shop"`, `DSN=host=db user=shop`.
fn embedded(value: &str) -> Option<Found> {
    let starts = ["host=", "user=", "dbname=", "password=", "port=", "sslmode="];
    let start = starts
        .iter()
        .flat_map(|word| value.match_indices(word))
        .map(|(at, _)| at)
        .filter(|at| !value[..*at].ends_with(|c: char| c.is_ascii_alphanumeric() || "_-.?&;".contains(c)))
        .min()?;
    let rest = &value[start..];
    let length = match value[..start].chars().next_back() {
        Some(quote @ ('"' | '\'' | '`')) => rest.find(quote).unwrap_or(rest.len()),
        _ => rest.find(['"', '\n']).unwrap_or(rest.len()),
    };
    let mut found = keywords(&rest[..length])?;
    for host in &mut found.hosts {
        *host = host.start + start..host.end + start;
    }
    Some(found)
}

/// Npgsql's `Host=db;Port=5432;Database=shop` and PDO's `pgsql:host=db;dbname=shop`.
fn pairs(value: &str) -> Option<Found> {
    let mut found = Found::default();
    let prefix = if value.starts_with("pgsql:") { "pgsql:".len() } else { 0 };
    if prefix == 0 && !value.contains(';') {
        return None;
    }
    let mut at = prefix;
    for pair in value[prefix..].split(';') {
        if !pair.trim().is_empty() {
            let (key, text) = pair.split_once('=')?;
            let key_trimmed = key.trim().to_ascii_lowercase();
            if key_trimmed == "host" {
                let lead = text.len() - text.trim_start().len();
                add_hosts(text.trim(), at + key.len() + 1 + lead, &mut found.hosts);
            }
            found.fields.insert(key_trimmed, text.trim().to_owned());
        }
        at += pair.len() + 1;
    }
    let ours = ["database", "dbname", "username", "user id", "user", "port"];
    (found.fields.contains_key("host") && ours.iter().any(|key| found.fields.contains_key(*key))).then_some(found)
}

/// Whether a variable of this name holds a database's host.
fn names_a_host(name: &str) -> bool {
    let name = name.to_ascii_uppercase().replace(['.', '-'], "_");
    let Some(stem) = ["_HOSTADDR", "HOSTADDR", "_HOSTNAME", "_HOST", "HOST", "_SERVER", "_ADDRESS", "_ADDR", "_HOSTS"]
        .iter()
        .find_map(|end| name.strip_suffix(end))
    else {
        return false;
    };
    let last = stem.rsplit('_').find(|word| !word.is_empty()).unwrap_or_default();
    ["PG", "POSTGRES", "POSTGRESQL", "DB", "DATABASE", "PSQL", "PGSQL", "SQL", "RDS"].contains(&last)
}

/// `host`, `host:port`, or several with commas, and nothing else.
fn plain(value: &str) -> Option<Found> {
    let trimmed = value.trim();
    let lead = value.len() - value.trim_start().len();
    let fine = |host: &str| {
        let (host, port) = host.split_once(':').unwrap_or((host, "1"));
        !host.is_empty()
            && host.len() <= 253
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
            && port.parse::<u16>().is_ok()
    };
    if trimmed.is_empty() || !trimmed.split(',').all(fine) {
        return None;
    }
    let mut found = Found::default();
    add_hosts(trimmed, lead, &mut found.hosts);
    Some(found)
}

/// Percent-decoded; what isn't valid stays as it is.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let pair = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%').and_then(|pair| hex::decode(pair).ok());
        if let Some(byte) = pair {
            out.extend(byte);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> BTreeMap<String, String> {
        [("db", "shop-db.copy.svc"), ("db2.shop.svc", "other")].map(|(a, b)| (a.to_owned(), b.to_owned())).into()
    }

    #[test]
    fn every_usual_way_to_name_a_server_is_understood_and_rewritten_in_place() {
        let cases = [
            (
                "postgres://shop:p%40ss@db:5432/shop?sslmode=disable",
                "postgres://shop:p%40ss@shop-db.copy.svc:5432/shop?sslmode=disable",
            ),
            ("postgresql+asyncpg://shop:p%40ss@db/shop", "postgresql+asyncpg://shop:p%40ss@shop-db.copy.svc/shop"),
            (
                "postgresql://shop:p%40ss@db,DB2.shop.svc:5433/shop",
                "postgresql://shop:p%40ss@shop-db.copy.svc,other:5433/shop",
            ),
            (
                "postgresql:///shop?user=shop&host=db&password=p%40ss",
                "postgresql:///shop?user=shop&host=shop-db.copy.svc&password=p%40ss",
            ),
            (
                "jdbc:postgresql://db:5432/shop?user=shop&password=p%40ss",
                "jdbc:postgresql://shop-db.copy.svc:5432/shop?user=shop&password=p%40ss",
            ),
            (
                "url: \"postgres://shop:p%40ss@db/shop\" # db",
                "url: \"postgres://shop:p%40ss@shop-db.copy.svc/shop\" # db",
            ),
            (
                "host=db  port = 5432 user=shop password='p@ss' dbname=shop",
                "host=shop-db.copy.svc  port = 5432 user=shop password='p@ss' dbname=shop",
            ),
            (
                "dsn: \"host=db user=shop password='p@ss' dbname=shop\" # db",
                "dsn: \"host=shop-db.copy.svc user=shop password='p@ss' dbname=shop\" # db",
            ),
            (
                "DSN=user=shop password=p@ss host=db dbname=shop",
                "DSN=user=shop password=p@ss host=shop-db.copy.svc dbname=shop",
            ),
            (
                "Host=db;Port=5432;Database=shop;Username=shop;Password=p@ss",
                "Host=shop-db.copy.svc;Port=5432;Database=shop;Username=shop;Password=p@ss",
            ),
            (
                "pgsql:host=db;dbname=shop;user=shop;password=p@ss",
                "pgsql:host=shop-db.copy.svc;dbname=shop;user=shop;password=p@ss",
            ),
        ];
        for (value, rewritten) in cases {
            let parsed = parse("X", value).unwrap_or_else(|| panic!("{value}"));
            assert_eq!(parsed.hosts[0], "db", "{value}");
            let login = parsed.login.unwrap_or_else(|| panic!("{value}"));
            assert_eq!((login.user.as_str(), login.password.reveal()), ("shop", "p@ss"), "{value}");
            assert_eq!(login.database.as_deref(), Some("shop"), "{value}");
            assert_eq!(rewrite(value, &map()), rewritten);
        }
    }

    #[test]
    fn plain_hosts_are_taken_only_under_a_databases_name() {
        for name in ["PGHOST", "DB_HOST", "SHOP_POSTGRES_HOST", "spring.db.host", "DATABASE_HOST"] {
            assert_eq!(parse(name, "db:5432").map(|p| p.hosts), Some(vec!["db".to_owned()]), "{name}");
        }
        for name in ["REDIS_HOST", "HOST", "DB_PORT", "DB_NAME", "GHOST"] {
            assert!(parse(name, "db").is_none(), "{name}");
        }
        assert_eq!(rewrite("db:5432", &map()), "shop-db.copy.svc:5432");
        assert_eq!(rewrite("database", &map()), "database");
    }

    #[test]
    fn what_is_no_binding_is_left_alone_byte_for_byte() {
        let long = "x".repeat(100_000);
        for value in [
            "",
            "mysql://a:b@db/x",
            "mongodb://db",
            "host=db",
            "log: host=db is slow",
            "a=b;c",
            "://",
            "postgres://",
            "%",
            "http://db/",
            &long,
            "\u{0}",
        ] {
            assert!(parse("URL", value).is_none(), "{value:.20}");
            assert_eq!(rewrite(value, &map()), value);
        }
        // A password or database that equals a host's name is not a host.
        let tricky = "postgres://db:db@elsewhere/db?application_name=db";
        assert_eq!(rewrite(tricky, &map()), tricky);
    }
}
