//! How full the kernel half's maps are, as they were counted last.
//!
//! A count looks at every entry, on the thread that asks and under the lock of `Kernel`; anybody may ask at the metrics
//! port, and a flood fills the maps. So what it took says when it may be done again.

use std::time::Instant;

use crate::datapath::{Datapath, Error, Fill, MAPS};

/// Of the time, a hundredth may be spent on it: 70 ms, as full maps take, are seconds apart, what few entries take
/// is counted nearly whenever somebody asks.
const SHARE: u32 = 100;

/// The last count, and when there may be another.
#[derive(Default)]
pub struct Counted(Option<([Fill; MAPS], Instant)>);

impl Counted {
    pub fn read(&mut self, datapath: &Datapath) -> Result<[Fill; MAPS], Error> {
        let began = Instant::now();
        if let Some(fill) = self.at(began) {
            return Ok(fill);
        }
        let fill = datapath.fill()?;
        self.keep(fill, began, Instant::now());
        Ok(fill)
    }

    /// `None`: it is time for another.
    fn at(&self, now: Instant) -> Option<[Fill; MAPS]> {
        self.0.filter(|(_, again)| now < *again).map(|(fill, _)| fill)
    }

    fn keep(&mut self, fill: [Fill; MAPS], began: Instant, ended: Instant) {
        self.0 = Some((fill, ended + ended.saturating_duration_since(began) * SHARE));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn counting_takes_a_hundredth_of_the_time_whoever_asks() {
        let (began, fill) = (Instant::now(), [Fill { map: "gw_bucket", entries: 7, most: 9 }; MAPS]);
        assert_eq!(Counted::default().at(began), None);
        for (took_us, asked_us, is_kept) in [
            (70_000, 0, true),
            (70_000, 6_999_999, true),
            (70_000, 7_000_000, false),
            (1_000, 99_999, true),
            (1_000, 100_000, false),
            (0, 0, false),
        ] {
            let (mut counted, ended) = (Counted::default(), began + Duration::from_micros(took_us));
            counted.keep(fill, began, ended);
            let found = counted.at(ended + Duration::from_micros(asked_us));
            assert_eq!(found, is_kept.then_some(fill), "{asked_us} us after one of {took_us} us");
        }
    }
}
