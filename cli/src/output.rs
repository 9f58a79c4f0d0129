//! Tables, sizes, errors.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use comfy_table::{Table, presets::NOTHING};
use serde::Serialize;

use crate::{arguments::Format, client::Failure};

/// Prints a line; a reader that went away is no error.
pub fn line(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a remark that programs which read the output don't want.
pub fn remark(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints an error and gives its exit status.
pub fn fail(failure: &Failure) -> ExitCode {
    remark(format!("error: {}", failure.what));
    for (word, text) in [("cause", &failure.cause), ("where", &failure.place), ("next", &failure.next)] {
        if !text.is_empty() {
            remark(format!("  {:<7}{text}", format!("{word}:")));
        }
    }
    ExitCode::from(failure.status)
}

/// Whether a person looks on.
pub fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Prints a list.
pub fn list<T: Serialize>(
    format: Format,
    items: &[T],
    head: &[&str],
    row: impl Fn(&T) -> Vec<String>,
    name: impl Fn(&T) -> String,
    empty: &str,
) -> Result<(), Failure> {
    match format {
        Format::Json | Format::Yaml => print(format, &items)?,
        Format::Name => items.iter().for_each(|item| line(name(item))),
        Format::Table if items.is_empty() => remark(empty),
        Format::Table => {
            let mut table = Table::new();
            table.load_style(NOTHING).set_header(head.to_vec());
            for item in items {
                table.add_row(row(item));
            }
            for column in table.column_iter_mut() {
                column.set_padding((0, 2));
            }
            for text in table.to_string().lines() {
                line(text.trim_end());
            }
        }
    }
    Ok(())
}

/// Prints one thing for programs.
pub fn print<T: Serialize>(format: Format, value: &T) -> Result<(), Failure> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).map_err(|error| Failure::local(error.to_string()))?,
        _ => serde_json::to_string_pretty(value).map_err(|error| Failure::local(error.to_string()))?,
    };
    line(text.trim_end());
    Ok(())
}

/// `1.2 GB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 99.5 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// `1 stream`, `2 streams`.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// `3 h ago`, from two moments in milliseconds.
pub fn ago(now_ms: i64, then_ms: i64) -> String {
    let seconds = (now_ms - then_ms).max(0) / 1000;
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// Milliseconds since 1970 of an RFC 3339 time in UTC as the API writes it.
pub fn parse_time(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second, milli) = (number(11..13)?, number(14..16)?, number(17..19)?, number(20..23)?);
    // Days since 1970 (proleptic Gregorian), years beginning in March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + milli)
}

/// `90m`, `12h`, `7d` in seconds.
pub fn parse_span(text: &str) -> Result<u64, Failure> {
    let wrong =
        || Failure::usage(format!("{text:?} is not a time span: expected a number and s, m, h or d, like 90m or 7d"));
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use ocopea_protocol::time::Timestamp;

    use super::*;

    #[test]
    fn sizes_and_spans_read_well() {
        assert_eq!(
            [0, 999, 1000, 61_000_000, 1_234_000_000].map(size),
            ["0 B", "999 B", "1.0 kB", "61.0 MB", "1.2 GB"]
        );
        assert_eq!(parse_span("7d").ok(), Some(604_800));
        for wrong in ["", "d", "7", "-1d", "7w", "99999999999999999999d"] {
            assert!(parse_span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_read_back() {
        for ms in [0, 951_782_400_123, 1_795_447_854_000, 1_709_164_800_000] {
            assert_eq!(parse_time(&Timestamp(ms).rfc3339()), Some(ms));
        }
        assert_eq!(parse_time("nonsense"), None);
    }
}
