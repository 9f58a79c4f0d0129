//! Lists: for people a table, for programs JSON, YAML or names; once, or again whenever something moved.

use std::{collections::BTreeMap, io::IsTerminal, time::Duration};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets::NOTHING};
use serde::Serialize;
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use crate::{
    arguments::{Format, Watch},
    client::Failure,
    output::{self, line, plain, remark},
    watch,
};

/// How often what is watched is looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// How things of one kind are listed.
pub struct Listing<'a, T> {
    /// The columns' names; the first column is the one that people copy from.
    pub head: &'a [&'a str],
    /// One row.
    pub row: &'a dyn Fn(&T) -> Vec<String>,
    /// What names one in other commands.
    pub name: &'a dyn Fn(&T) -> String,
    /// What is said where there is nothing.
    pub empty: &'a str,
}

impl<T: Serialize> Listing<'_, T> {
    /// Prints what there is, once or for as long as it is watched.
    pub async fn run(
        &self,
        format: Format,
        watch: Watch,
        fetch: impl AsyncFn() -> Result<Vec<T>, Failure>,
    ) -> Result<(), Failure> {
        if watch.watch { self.watch(format, fetch).await } else { self.print(format, &fetch().await?) }
    }

    /// Prints what there is.
    pub fn print(&self, format: Format, items: &[T]) -> Result<(), Failure> {
        match format {
            Format::Json | Format::Yaml => output::print(format, &items)?,
            Format::Name => items.iter().for_each(|item| line((self.name)(item))),
            Format::Table if items.is_empty() => remark(self.empty),
            Format::Table => self.table(items).iter().for_each(line),
        }
        Ok(())
    }

    /// Prints what there is, again and again until interrupted.
    ///
    /// On a terminal the screen is drawn anew; into a pipe goes a line for each thing that is new or has changed, as
    /// a row, a name or an object of JSON.
    async fn watch(&self, format: Format, fetch: impl AsyncFn() -> Result<Vec<T>, Failure>) -> Result<(), Failure> {
        let mut interrupts = watch::interrupts()?;
        let mut known = BTreeMap::new();
        let mut drawn = String::new();
        loop {
            let items = tokio::select! {
                items = fetch() => items?,
                _ = interrupts.recv() => return Ok(()),
            };
            if format == Format::Table && std::io::stdout().is_terminal() {
                let text = if items.is_empty() { plain(self.empty) } else { self.table(&items).join("\n") };
                if text != drawn {
                    // Home, this text with every line's rest cleared, then everything below.
                    output::raw(&format!("\x1b[H{}\x1b[K\n\x1b[J", text.replace('\n', "\x1b[K\n")))?;
                    drawn = text;
                }
            } else {
                self.changes(format, &items, &mut known)?;
            }
            tokio::select! {
                () = watch::pause(PERIOD) => {}
                _ = interrupts.recv() => return Ok(()),
            }
        }
    }

    fn changes(&self, format: Format, items: &[T], known: &mut BTreeMap<String, Value>) -> Result<(), Failure> {
        let mut now = BTreeMap::new();
        for item in items.iter().rev() {
            let name = (self.name)(item);
            let mut value = serde_json::to_value(item).map_err(|error| Failure::local(error.to_string()))?;
            let whole = value.to_string();
            if let Some(fields) = value.as_object_mut() {
                // What moves although nothing happens.
                ["age_s", "reported", "report"].iter().for_each(|field| drop(fields.remove(*field)));
            }
            if known.get(&name) != Some(&value) {
                output::raw(&match format {
                    Format::Table => format!("{}\n", plain(&(self.row)(item).join("   "))),
                    Format::Name => format!("{}\n", plain(&name)),
                    Format::Json => format!("{whole}\n"),
                    Format::Yaml => format!("---\n{}\n", output::yaml(item)?.trim_end()),
                })?;
            }
            now.insert(name, value);
        }
        for name in known.keys().filter(|name| !now.contains_key(*name)) {
            remark(format!("{name} is gone"));
        }
        *known = now;
        Ok(())
    }

    fn table(&self, items: &[T]) -> Vec<String> {
        let cells = |item: &T| {
            let row = (self.row)(item).into_iter();
            row.map(|cell| plain(&cell).replace(['\n', '\t'], " ")).collect::<Vec<_>>()
        };
        let rows: Vec<Vec<String>> = items.iter().map(cells).collect();
        let terminal = std::io::stdout().is_terminal().then(output::width).filter(|width| *width > 0);
        lay_out(self.head, &rows, terminal)
    }
}

/// Cells between columns.
const GAP: usize = 2;
/// How narrow a column may become before one at the right is left out.
const LEAST: usize = 12;

/// A table. On a terminal, texts are folded so that it fits; where even that doesn't do, columns at the right are left
/// out and named. The first column is what people copy: it is never folded.
fn lay_out(head: &[&str], rows: &[Vec<String>], terminal: Option<usize>) -> Vec<String> {
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width());
        cells.chain(head.get(column).map(|name| name.width())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(widest).collect();
    let least = |(column, width): (usize, &usize)| GAP + if column == 0 { *width } else { (*width).min(LEAST) };
    let mut shown = head.len();
    while let Some(terminal) = terminal
        && shown > 1
        && widths.iter().enumerate().take(shown).map(least).sum::<usize>() > terminal + GAP
    {
        shown -= 1;
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head.iter().take(shown).copied());
    for row in rows {
        table.add_row(row.iter().take(shown));
    }
    for (column, shape) in table.column_iter_mut().enumerate() {
        let gap = if column + 1 == shown { 0 } else { GAP };
        let gap = u16::try_from(gap).unwrap_or(0);
        shape.set_padding((0, gap));
        let least = widths.get(column).map_or(0, |width| if column == 0 { *width } else { (*width).min(LEAST) });
        let least = u16::try_from(least).unwrap_or(u16::MAX).saturating_add(gap);
        shape.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(least)));
    }
    if let Some(terminal) = terminal {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(terminal).unwrap_or(u16::MAX));
    }
    let mut lines: Vec<String> = table.to_string().lines().map(|text| text.trim_end().to_owned()).collect();
    let left_out: Vec<&str> = head.iter().skip(shown).copied().collect();
    if !left_out.is_empty() {
        lines.push(format!("(on a wider terminal also {})", left_out.join(", ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
        vec![
            row(["01a214da-6e35-71b9", "messages in wrong order", "3 h ago", "dana"]),
            row(["x", "日本語 ürgs", "", ""]),
        ]
    }

    #[test]
    fn a_table_is_as_wide_as_it_is_where_nobody_looks_on() {
        let lines = lay_out(&["ID", "NAME", "SAVED", "BY"], &rows(), None);
        assert_eq!(
            lines,
            [
                "ID                  NAME                     SAVED    BY",
                "01a214da-6e35-71b9  messages in wrong order  3 h ago  dana",
                "x                   日本語 ürgs",
            ]
        );
    }

    #[test]
    fn on_a_narrow_terminal_texts_are_folded_and_then_columns_left_out_but_ids_are_whole() {
        for terminal in 10..80 {
            let lines = lay_out(&["ID", "NAME", "SAVED", "BY"], &rows(), Some(terminal));
            assert!(lines.iter().any(|line| line.starts_with("01a214da-6e35-71b9")), "{terminal}: {lines:#?}");
            let fits = |line: &String| line.width() <= terminal || line.starts_with('(');
            assert!(terminal < 18 || lines.iter().all(fits), "{terminal}: {lines:#?}");
            let named = lines.last().is_some_and(|line| line.contains("wider terminal also") && line.contains("BY"));
            assert_eq!(named, !lines[0].contains("BY"), "{terminal}: {lines:#?}");
        }
    }
}
