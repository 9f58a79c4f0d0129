//! What is printed, sizes, times, errors.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

pub use ocopea_protocol::words::{count, size};
use ocopea_repository::backend::LEAST_RATE;
use serde::Serialize;

use crate::{arguments::Format, client::Failure};

/// Prints a line; a reader that went away is no error.
pub fn line(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{}", plain(&text.to_string()));
}

/// Prints a remark that programs which read the output don't want.
pub fn remark(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{}", plain(&text.to_string()));
}

/// Text that moves no cursor and changes no terminal: names and errors come from other people's servers.
pub fn plain(text: &str) -> String {
    let hostile = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if hostile(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Prints an error and gives its exit status.
pub fn fail(failure: &Failure) -> ExitCode {
    remark(format!("error: {}", failure.what));
    for (word, text) in [("cause", &failure.cause), ("where", &failure.place), ("next", &failure.next)] {
        for (number, text) in text.trim_end().lines().enumerate() {
            remark(format!("  {:<7}{text}", if number == 0 { format!("{word}:") } else { String::new() }));
        }
    }
    ExitCode::from(failure.status)
}

/// Whether a person looks on.
pub fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Prints one thing for programs.
pub fn print<T: Serialize>(format: Format, value: &T) -> Result<(), Failure> {
    let text = match format {
        Format::Yaml => yaml(value)?,
        _ => serde_json::to_string_pretty(value).map_err(|error| Failure::local(error.to_string()))?,
    };
    raw(&format!("{}\n", text.trim_end()))
}

/// As YAML.
pub fn yaml<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_saphyr::to_string(value).map_err(|error| Failure::local(error.to_string()))
}

/// Prints as it is. That nobody reads any more ends a command that would go on for ever, without a word.
pub fn raw(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|_| Failure { status: 0, ..Failure::local("") })
}

/// Cells of a line of the terminal, 0 where there is none.
pub fn width() -> usize {
    let of = |size: rustix::io::Result<rustix::termios::Winsize>| size.map_or(0, |size| usize::from(size.ws_col));
    match of(rustix::termios::tcgetwinsize(std::io::stdout())) {
        0 => of(rustix::termios::tcgetwinsize(std::io::stderr())),
        width => width,
    }
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

/// Milliseconds since 1970 of an RFC 3339 time in UTC as the API writes it; a day alone is its midnight.
pub fn parse_time(text: &str) -> Option<i64> {
    const SHAPE: &str = "0000-00-00T00:00:00.000";
    let (text, day_alone) = (text.strip_suffix('Z').unwrap_or(text), text.len() == 10);
    let fits = |(given, wanted): (char, char)| given == wanted || (given.is_ascii_digit() && wanted == '0');
    if !(day_alone || matches!(text.len(), 19 | 23)) || !text.chars().zip(SHAPE.chars()).all(fits) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| match text.get(range) {
        Some(digits) => digits.parse::<i64>().ok(),
        None => Some(0),
    };
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second, milli) = (number(11..13)?, number(14..16)?, number(17..19)?, number(20..23)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970 (proleptic Gregorian), years beginning in March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + milli)
}

/// A moment as people give it, in milliseconds since 1970: so long ago (`90m`, `7d`), a day, or a time in UTC.
pub fn parse_moment(text: &str, now_ms: i64) -> Result<i64, Failure> {
    if let Some(moment) = parse_time(text) {
        return Ok(moment);
    }
    let seconds = parse_span(text).map_err(|_| {
        Failure::usage(format!("{text:?} is not a time"))
            .next("expected a span like 90m, 12h or 7d, a day like 2026-11-25, or a time like 2026-11-25T08:30:00Z")
    })?;
    Ok(i64::try_from(seconds).ok().and_then(|s| s.checked_mul(1000)).map_or(i64::MIN, |ms| now_ms.saturating_sub(ms)))
}

/// `90m`, `12h`, `7d` in seconds.
pub fn parse_span(text: &str) -> Result<u64, Failure> {
    let wrong =
        || Failure::usage(format!("{text:?} is not a time span: expected a number and s, m, h or d, like 90m or 7d"));
    // Not by bytes: what was typed may end in anything.
    let unit = text.char_indices().next_back().map_or(0, |(at, _)| at);
    let (number, unit) = text.split_at(unit);
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

/// `50MiB/s`, `800kB/s`, `1000000`: bytes per second, the least that can be asked for or more.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a rate: expected a number and kB, KiB, MB, MiB, GB or GiB, like 50MiB/s");
    let plain = text.strip_suffix("/s").unwrap_or(text);
    let digits = plain.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = plain.split_at_checked(digits).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit {
        "" | "B" => 1,
        "kB" => 1000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let rate = number.checked_mul(factor).ok_or_else(wrong)?;
    if rate < LEAST_RATE {
        return Err(format!("{text:?} is too little: {} KiB/s at least", LEAST_RATE >> 10));
    }
    Ok(rate)
}

/// A number that is not nothing.
pub fn parse_number(text: &str, most: u32) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(format!("{text:?}: a number from 1 to {most} is expected")),
    }
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
        for wrong in ["", "d", "7", "-1d", "7w", "99999999999999999999d", "7µ", "日"] {
            assert!(parse_span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_are_read_as_people_write_them() {
        for (text, expected) in [
            ("50MiB/s", 50 << 20),
            ("50MiB", 50 << 20),
            ("800kB/s", 800_000),
            ("1GB/s", 1_000_000_000),
            ("65536", 65536),
        ] {
            assert_eq!(parse_rate(text), Ok(expected));
        }
        for wrong in
            ["", "/s", "MiB/s", "50 MiB/s", "50mib", "-1MB", "1.5MB", "63KiB/s", "0", "99999999999GiB", "1MiB/m", "日"]
        {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_read_back() {
        for ms in [0, 951_782_400_123, 1_795_447_854_000, 1_709_164_800_000] {
            assert_eq!(parse_time(&Timestamp(ms).rfc3339()), Some(ms));
        }
        for wrong in
            ["nonsense", "", "2026-13-01", "2026-11-25T25:00:00Z", "2026-11-2é", "2026-11-25T08:30", "2026x11-25"]
        {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_moment_is_a_span_a_day_or_a_time() {
        let now = parse_time("2026-11-25T08:30:00.000Z").unwrap();
        let day = 86_400_000;
        assert_eq!(parse_moment("1d", now).ok(), Some(now - day));
        assert_eq!(parse_moment("2026-11-24T08:30:00Z", now).ok(), Some(now - day));
        assert_eq!(parse_moment("2026-11-25", now).ok(), Some(now - 30_600_000));
        for wrong in ["yesterday", "", "25.11.2026"] {
            assert_eq!(parse_moment(wrong, now).err().map(|failure| failure.status), Some(2), "{wrong}");
        }
    }

    #[test]
    fn what_other_people_wrote_does_nothing_to_a_terminal() {
        assert_eq!(plain("a\x1b[2Jb\r\u{9b}c\u{202e}d\ne\tü日"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\u{fffd}d\ne\tü日");
    }
}
