//! Figures as people read them, the same in every program.

/// `1.2 GB`: decimal units.
pub fn size(bytes: u64) -> String {
    const LARGER: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in LARGER {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, larger);
    }
    if unit == "B" || value >= 99.5 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// `1 stream`, `2 streams`.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_carry_over() {
        let sizes = [0, 999, 1000, 99_499, 99_501, 999_499, 999_500, 1_200_000_000, u64::MAX].map(size);
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "99.5 kB", "100 kB", "999 kB", "1.0 MB", "1.2 GB", "18446744 TB"]);
        assert_eq!([count(1, "row"), count(0, "row")], ["1 row", "0 rows"]);
    }
}
