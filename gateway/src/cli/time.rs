//! Times as the command line takes and shows them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use httpdate::fmt_http_date;

const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400)];
/// Ten years: beyond it somebody means for good.
const LONGEST: u64 = 3_650 * 86_400;

/// Seconds of `90s`, `15m`, `2h`, `7d`.
pub fn parse(text: &str) -> Result<u64, String> {
    let unit = UNITS.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(*unit)?, seconds)));
    let digits = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    unit.filter(|(number, _)| digits(number))
        .and_then(|(number, seconds)| number.parse::<u64>().ok()?.checked_mul(*seconds))
        .filter(|seconds| (1..=LONGEST).contains(seconds))
        .ok_or_else(|| "write a whole number and s, m, h or d, such as 90s or 7d, up to 3650d".to_owned())
}

/// Seconds of the Unix clock.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A time of the Unix clock, and how far from `now` that is.
pub fn show(at: u64, now: u64) -> String {
    let date = fmt_http_date(UNIX_EPOCH + Duration::from_secs(at.min(LAST_DATE)));
    if at > now {
        format!("{date} (in {})", span(at - now))
    } else {
        format!("{date} ({} ago)", span(now - at))
    }
}

/// The last second that has a date of four-digit years.
const LAST_DATE: u64 = 253_402_300_799;

/// In the largest unit that gives two or more, rounded down.
pub fn span(seconds: u64) -> String {
    let fits = UNITS.iter().rev().find(|(_, unit)| seconds >= 2 * unit);
    let (name, unit) = fits.unwrap_or(&UNITS[0]);
    format!("{} {name}", seconds / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_command_line() {
        for (text, seconds) in [("1s", 1), ("90s", 90), ("15m", 900), ("2h", 7_200), ("7d", 604_800)] {
            assert_eq!(parse(text), Ok(seconds), "{text}");
        }
        for text in ["", "5", "s", "0s", "-1s", "+1s", "1.5h", "1w", "4000d", "99999999999999999999d", "1 h"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_that_are_shown() {
        for (at, now, shown) in [
            (0, 0, "Thu, 01 Jan 1970 00:00:00 GMT (0 s ago)"),
            (100, 0, "Thu, 01 Jan 1970 00:01:40 GMT (in 100 s)"),
            (120, 0, "Thu, 01 Jan 1970 00:02:00 GMT (in 2 m)"),
            (0, 180_000, "Thu, 01 Jan 1970 00:00:00 GMT (2 d ago)"),
        ] {
            assert_eq!(show(at, now), shown);
        }
        assert!(show(u64::MAX, 0).starts_with("Fri, 31 Dec 9999"));
    }
}
