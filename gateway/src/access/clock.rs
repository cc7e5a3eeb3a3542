//! The time of day of an instant, as text of which all but the milliseconds is kept for the next line.
//!
//! Pure but for [`Clock::adjust`], which looks at the clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub struct Clock {
    /// The same moment on both clocks; since 1970.
    instant: Instant,
    unix: Duration,
    /// The second that the texts are of.
    second: u64,
    iso: [u8; ISO.len()],
    common: [u8; COMMON.len()],
}

const ISO: &[u8; 19] = b"0000-00-00T00:00:00";
const COMMON: &[u8; 26] = b"00/Jan/1970:00:00:00 +0000";
const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";

impl Clock {
    pub fn new(now: Instant) -> Self {
        let mut this =
            Self { instant: now, unix: Duration::ZERO, second: u64::MAX, iso: *ISO, common: *COMMON };
        this.adjust(now);
        this
    }

    /// Takes up what has become of the host's clock.
    pub fn adjust(&mut self, now: Instant) {
        self.instant = now;
        self.unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    }

    /// `2026-11-29T14:45:55.123Z`
    pub fn iso(&mut self, at: Instant, out: &mut Vec<u8>) {
        let millis = self.turn_to(at);
        let (tens, ones) = (millis / 10 % 10, millis % 10);
        out.extend_from_slice(&self.iso);
        out.extend_from_slice(&[
            b'.',
            b'0' + (millis / 100) as u8,
            b'0' + tens as u8,
            b'0' + ones as u8,
            b'Z',
        ]);
    }

    /// `29/Nov/2026:14:45:55 +0000`
    pub fn common(&mut self, at: Instant, out: &mut Vec<u8>) {
        self.turn_to(at);
        out.extend_from_slice(&self.common);
    }

    /// The milliseconds of the second that `at` is in.
    fn turn_to(&mut self, at: Instant) -> u32 {
        let unix = match at.checked_duration_since(self.instant) {
            Some(after) => self.unix + after,
            None => self.unix.saturating_sub(self.instant - at),
        };
        if unix.as_secs() != self.second {
            self.second = unix.as_secs();
            self.render();
        }
        unix.subsec_millis()
    }

    #[cold]
    fn render(&mut self) {
        let (year, month, day) = date(self.second / 86_400);
        let of_day = self.second % 86_400;
        let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
        let mut put = |at: usize, width: usize, value: u64| {
            digits(&mut self.iso[at..at + width], value);
        };
        for (at, width, value) in
            [(0, 4, year), (5, 2, month), (8, 2, day), (11, 2, hour), (14, 2, minute), (17, 2, second)]
        {
            put(at, width, value);
        }
        for (at, width, value) in [(0, 2, day), (7, 4, year), (12, 2, hour), (15, 2, minute), (18, 2, second)]
        {
            digits(&mut self.common[at..at + width], value);
        }
        let name = (month as usize - 1) * 3;
        self.common[3..6].copy_from_slice(&MONTHS[name..name + 3]);
    }
}

fn digits(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of a day since 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn date(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + u64::from(month <= 2), month, of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let now = Instant::now() + Duration::from_secs(1 << 20);
        let mut clock = Clock::new(now);
        for (unix_ms, iso, common) in [
            (0, "1970-01-01T00:00:00.000Z", "01/Jan/1970:00:00:00 +0000"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z", "28/Feb/2000:23:59:59 +0000"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z", "29/Feb/2000:00:00:00 +0000"),
            (4_107_542_400_007, "2100-03-01T00:00:00.007Z", "01/Mar/2100:00:00:00 +0000"),
            (1_795_963_555_123, "2026-11-29T14:45:55.123Z", "29/Nov/2026:14:45:55 +0000"),
        ] {
            // Before and after the moment that both clocks were read at.
            for offset_ms in [0, 86_400_000] {
                let offset = Duration::from_millis(offset_ms);
                let whole = Duration::from_millis(unix_ms);
                for (known, at) in [(whole + offset, now - offset), (whole, now)] {
                    clock.unix = known;
                    clock.instant = now;
                    let (mut a, mut b) = (Vec::new(), Vec::new());
                    clock.iso(at, &mut a);
                    clock.common(at, &mut b);
                    assert_eq!([a, b].map(|text| String::from_utf8(text).unwrap()), [iso, common]);
                }
            }
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut last = date(0);
        assert_eq!(last, (1970, 1, 1));
        for day in 1..200_000 {
            let (year, month, of_month) = date(day);
            let next = match (year - last.0, month as i64 - last.1 as i64) {
                (0, 0) => of_month == last.2 + 1,
                (0, 1) => of_month == 1 && last.2 >= 28,
                (1, -11) => (of_month, last.2) == (1, 31),
                _ => false,
            };
            assert!(next, "{last:?} and {:?}", (year, month, of_month));
            last = (year, month, of_month);
        }
    }
}
