//! Times of the week in which something may be done: `22:00-06:00`, `Sat,Sun 02:00-04:00`, `Mon-Fri 20:00-24:00`. Pure.

const DAY: u32 = 24 * 60;
const WEEK: u32 = 7 * DAY;
const NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Minutes of the week, from Monday 0:00 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    from: u32,
    minutes: u32,
}

/// All windows of one kind. None at all: always.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows {
    spans: Vec<Span>,
    /// What the clock on the wall shows more than UTC, in minutes.
    offset: i32,
}

impl Windows {
    /// Reads windows; the offset is that of their clock from UTC, in minutes.
    pub fn parse(texts: &[String], offset: i32) -> Result<Self, String> {
        let mut spans = Vec::new();
        for text in texts {
            spans.extend(parse(text).ok_or_else(|| {
                format!("{text:?} is no window: write it like \"22:00-06:00\" or \"Sat,Sun 02:00-04:00\"")
            })?);
        }
        Ok(Self { spans, offset })
    }

    /// Whether one of them is open, at a moment in seconds since 1970.
    pub fn is_open(&self, unix: u64) -> bool {
        // 1970-01-01 was a Thursday.
        let minute = (unix / 60) as i64 + i64::from(self.offset) + i64::from(3 * DAY);
        let minute = minute.rem_euclid(i64::from(WEEK)) as u32;
        let is_in = |span: &Span| (minute + WEEK - span.from) % WEEK < span.minutes;
        self.spans.is_empty() || self.spans.iter().any(is_in)
    }
}

/// `UTC`, `Z`, `+01:00`, `-05:30` in minutes.
pub fn parse_offset(text: &str) -> Result<i32, String> {
    let bad = || format!("{text:?} is no offset from UTC: write it like \"+01:00\" or \"-05:30\"");
    if matches!(text, "UTC" | "Z") {
        return Ok(0);
    }
    let sign = match text.chars().next() {
        Some('+') => 1,
        Some('-') => -1,
        _ => return Err(bad()),
    };
    let minutes = clock(&text[1..]).filter(|minutes| *minutes <= 14 * 60).ok_or_else(bad)?;
    Ok(minutes as i32 * sign)
}

fn parse(text: &str) -> Option<Vec<Span>> {
    let (days, times) = text.rsplit_once(' ').unwrap_or(("", text));
    let (from, to) = times.split_once('-')?;
    let (from, to) = (clock(from)?, clock(to)?);
    if from == DAY {
        return None;
    }
    // The same time twice is a whole day.
    let minutes = if to > from { to - from } else { to + DAY - from };
    let span = |day: usize| Span { from: day as u32 * DAY + from, minutes };
    Some(parse_days(days.trim())?.into_iter().map(span).collect())
}

fn parse_days(text: &str) -> Option<Vec<usize>> {
    if text.is_empty() {
        return Some((0..7).collect());
    }
    let day = |name: &str| NAMES.iter().position(|known| known.eq_ignore_ascii_case(name));
    let mut days = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first.trim())?, day(last.trim())?);
        days.extend((0..7).map(|n| (first + n) % 7).take((last + 7 - first) % 7 + 1));
    }
    Some(days)
}

/// `HH:MM`, up to 24:00, in minutes.
fn clock(text: &str) -> Option<u32> {
    let (hour, minute) = text.split_once(':')?;
    let digits = |text: &str| text.len() == 2 && text.bytes().all(|c| c.is_ascii_digit());
    if !digits(hour) || !digits(minute) {
        return None;
    }
    let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
    (minute < 60 && hour * 60 + minute <= DAY).then_some(hour * 60 + minute)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-21 is a Saturday.
    const SATURDAY: u64 = 1_795_219_200;

    fn open(texts: &[&str], offset: &str, hour: u64, minute: u64) -> bool {
        let texts: Vec<String> = texts.iter().map(|t| t.to_string()).collect();
        let windows = Windows::parse(&texts, parse_offset(offset).unwrap()).unwrap();
        windows.is_open(SATURDAY + hour * 3600 + minute * 60)
    }

    #[test]
    fn windows_of_the_day() {
        assert!(open(&[], "UTC", 12, 0));
        for (hour, minute, is_open) in
            [(21, 59, false), (22, 0, true), (3, 0, true), (5, 59, true), (6, 0, false)]
        {
            assert_eq!(open(&["22:00-06:00"], "UTC", hour, minute), is_open, "{hour}:{minute}");
        }
        assert!(open(&["02:00-04:00", "12:00-12:01"], "UTC", 12, 0));
        assert!(!open(&["02:00-04:00", "12:00-12:01"], "UTC", 12, 1));
        assert!(open(&["00:00-24:00"], "UTC", 23, 59) && open(&["08:00-08:00"], "UTC", 7, 59));
        assert!(!open(&["20:00-24:00"], "UTC", 0, 0));
    }

    #[test]
    fn windows_of_the_week() {
        assert!(open(&["Sat 10:00-12:00"], "UTC", 11, 0) && !open(&["Sun 10:00-12:00"], "UTC", 11, 0));
        assert!(
            open(&["mon-sat 10:00-12:00"], "UTC", 11, 0) && !open(&["Mon-Fri 10:00-12:00"], "UTC", 11, 0)
        );
        assert!(open(&["Fri-Mon 10:00-12:00"], "UTC", 11, 0), "over the end of the week");
        assert!(open(&["Tue,Sat 10:00-12:00"], "UTC", 11, 0));
        // What begins on Friday evening belongs to Friday.
        assert!(open(&["Fri 22:00-06:00"], "UTC", 5, 0) && !open(&["Sat 22:00-06:00"], "UTC", 5, 0));
        assert!(open(&["Sat 22:00-06:00"], "UTC", 24 + 5, 0), "on Sunday morning");
        assert!(open(&["Sun 22:00-06:00"], "UTC", 48 + 5, 0), "over the end of the week");
    }

    #[test]
    fn another_clock_than_utc() {
        assert!(open(&["02:00-03:00"], "+02:00", 0, 30) && !open(&["02:00-03:00"], "+02:00", 2, 30));
        assert!(open(&["02:00-03:00"], "-05:30", 8, 0));
        assert!(open(&["Sat 23:00-24:00"], "-01:00", 24, 30), "Saturday there, Sunday in UTC");
        assert!(
            Windows::parse(&["Thu 00:00-01:00".into()], -60).unwrap().is_open(3_600),
            "the first hours of all"
        );
    }

    #[test]
    fn what_is_no_window_is_told() {
        for bad in [
            "",
            "22:00",
            "22:00-",
            "22-06",
            "25:00-26:00",
            "1:00-2:00",
            "24:00-01:00",
            "Sat",
            "Foo 01:00-02:00",
        ] {
            let failure = Windows::parse(&[bad.to_owned()], 0).unwrap_err();
            assert!(failure.contains("Sat,Sun 02:00-04:00"), "{bad}");
        }
        for bad in ["", "1", "+1", "+15:00", "01:00", "+01:60"] {
            assert!(parse_offset(bad).is_err(), "{bad}");
        }
    }
}
