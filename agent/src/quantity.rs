//! Quantities as Kubernetes writes them (<https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>).

/// The number that a quantity stands for, in thousandths; `None` for what is none.
fn thousandths(text: &str) -> Option<f64> {
    let text = text.trim();
    // `12e3` and `12E3` have an exponent; `12E` are 12 exa.
    if let Ok(number) = text.parse::<f64>()
        && number.is_finite()
    {
        return Some(number * 1000.0);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: f64 = match unit {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * factor * 1000.0)
}

/// Whole units of a quantity, rounded up; 0 for what can't be read or is less than nothing.
pub fn whole(text: &str) -> u64 {
    // Amounts of storage and memory are far below where a float loses whole bytes that matter here.
    thousandths(text).map_or(0, |number| up(number / 1000.0))
}

/// Thousandths of a quantity, rounded up: of a core, mostly.
pub fn milli(text: &str) -> u64 {
    thousandths(text).map_or(0, up)
}

/// The next whole number, unless it is only a float's error away from the one below.
fn up(number: f64) -> u64 {
    let (number, near) = (number.max(0.0), number.max(0.0).round());
    (if (number - near).abs() <= number * 1e-14 { near } else { number.ceil() }) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read() {
        assert_eq!(
            ["1Gi", "1.5k", "12", "12e3", "2E", "100m", "x", "", "-1", "NaN", "1Xi"].map(whole),
            [1 << 30, 1500, 12, 12_000, 2_000_000_000_000_000_000, 1, 0, 0, 0, 0, 0]
        );
        assert_eq!(["100m", "0.5", "2", "1500u", "3k", "1900m"].map(milli), [100, 500, 2000, 2, 3_000_000, 1900]);
    }
}
