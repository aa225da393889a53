//! Sizes, rates and durations as people write them on a command line: `4MiB`, `10M`, `30s`.

/// Bytes: a number and an optional `K M G T` (powers of 1000) or `KiB MiB GiB TiB`; a trailing `B` is allowed.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit.trim_end_matches('B') {
        "" => 1,
        "K" | "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return Err(format!("{text:?} is no size: write it like 512, 64KiB, 4MiB, 10G")),
    };
    scale(number, factor).ok_or_else(|| format!("{text:?} is too large"))
}

/// Bits per second, decimal: `64k`, `10M`, `1.5G`.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit.trim_end_matches("bit/s") {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return Err(format!("{text:?} is no rate: write it like 64k, 10M, 1.5G (bits per second)")),
    };
    match scale(number, factor) {
        None => Err(format!("{text:?} is too large")),
        Some(rate) if !(1_000..=100_000_000_000).contains(&rate) => {
            Err(format!("{text:?}: a rate is 1k to 100G bits per second"))
        }
        Some(rate) => Ok(rate),
    }
}

/// A duration in milliseconds: `500ms`, `30s`, `5m`, `2h`, `1d`; a bare number means seconds.
pub fn parse_duration_ms(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("{text:?} is no duration: write it like 500ms, 30s, 5m, 2h")),
    };
    scale(number, factor).ok_or_else(|| format!("{text:?} is too long"))
}

/// Bytes for people, binary: `3.4 MiB`.
pub fn show_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Bits per second for people, decimal: `19.8 Mbit/s`.
pub fn show_rate(bits_per_second: f64) -> String {
    match bits_per_second {
        r if r >= 1e9 => format!("{:.2} Gbit/s", r / 1e9),
        r if r >= 1e6 => format!("{:.1} Mbit/s", r / 1e6),
        r if r >= 1e3 => format!("{:.1} kbit/s", r / 1e3),
        r => format!("{r:.0} bit/s"),
    }
}

/// Seconds for people: `850 ms`, `12.4 s`, `3 min 05 s`, `2 h 10 min`.
pub fn show_seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A moment (seconds since 1970) for people: `2027-01-31 12:00:05 UTC`. The civil calendar by Howard Hinnant's
/// algorithm: years begin in March, 400 of them have 146,097 days.
pub fn show_moment(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (d, m) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let y = era * 400 + year + u64::from(m <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{y}-{m:02}-{d:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// A decimal number in thousandths, and what stands behind it.
fn split(text: &str) -> Result<(u64, &str), String> {
    let bad = || format!("{text:?} does not begin with a number");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || part.len() > 3 || part.contains('.') {
        return Err(bad());
    }
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let part: u64 = if part.is_empty() { 0 } else { format!("{part:0<3}").parse().map_err(|_| bad())? };
    let thousandths = whole.checked_mul(1000).and_then(|w| w.checked_add(part)).ok_or_else(bad)?;
    Ok((thousandths, unit.trim()))
}

fn scale(thousandths: u64, factor: u64) -> Option<u64> {
    u64::try_from(u128::from(thousandths) * u128::from(factor) / 1000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        assert_eq!(parse_size("4MiB"), Ok(4 << 20));
        assert_eq!(parse_size("10"), Ok(10));
        assert_eq!(parse_size("1.5K"), Ok(1500));
        assert_eq!(parse_rate("10M"), Ok(10_000_000));
        assert_eq!(parse_rate("64k"), Ok(64_000));
        assert_eq!(parse_rate("2.5Gbit/s"), Ok(2_500_000_000));
        assert_eq!(parse_duration_ms("30s"), Ok(30_000));
        assert_eq!(parse_duration_ms("250ms"), Ok(250));
        for bad in ["", "M", "1.2.3", "-4", "1.2345", "10X", "99999999999999999999"] {
            assert!(parse_size(bad).is_err() && parse_rate(bad).is_err(), "{bad}");
        }
        assert!(parse_rate("0").is_err() && parse_rate("1T").is_err());
    }

    #[test]
    fn what_people_read() {
        assert_eq!(show_size(999), "999 B");
        assert_eq!(show_size(100 << 20), "100.0 MiB");
        assert_eq!(show_rate(19.84e6), "19.8 Mbit/s");
        assert_eq!(show_seconds(0.85), "850 ms");
        assert_eq!(show_seconds(185.0), "3 min 05 s");
        assert_eq!(show_moment(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(show_moment(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(show_moment(1_795_242_443), "2026-11-21 06:27:23 UTC");
    }
}
