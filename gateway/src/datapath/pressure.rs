//! How much of each class of sources is shed for a pressure, and in which epoch.
//!
//! The heartbeat writes what this says. Pure.

use gateway_common::standing::Class;

const SECOND_NS: u64 = 1_000_000_000;
/// The same sources are shed for so long. SYNs are sent again after 1, 3 and 7 s, so one of them meets another.
const EPOCH_NS: u64 = 8 * SECOND_NS;
/// The last class that is shed keeps a tenth: who is proven is never all turned away.
const MOST_OF_PROVEN: f64 = 0.9;

/// Of 65,536 sources of each class, how many are shed under a pressure of 0 to 1: the unknown first, then the
/// known, then the proven.
pub fn levels(pressure: f64) -> [u16; Class::ALL.len()] {
    let third = |place: f64| (pressure * 3.0 - place).clamp(0.0, 1.0);
    [third(0.0), third(1.0), third(2.0) * MOST_OF_PROVEN].map(|share| (share * f64::from(u16::MAX)) as u16)
}

pub fn epoch(now_ns: u64) -> u16 {
    (now_ns / EPOCH_NS) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unknown_first_and_the_proven_last() {
        const ALL: u16 = u16::MAX;
        for (pressure, want) in [
            (-1.0, [0, 0, 0]),
            (0.0, [0, 0, 0]),
            (1.0 / 6.0, [ALL / 2, 0, 0]),
            (0.5, [ALL, ALL / 2, 0]),
            (1.0, [ALL, ALL, 58_981]),
            (9.0, [ALL, ALL, 58_981]),
            (f64::NAN, [0, 0, 0]),
        ] {
            assert_eq!(levels(pressure), want, "{pressure}");
        }
        let mut last = [0; 3];
        for step in 0..=1_000 {
            let next = levels(f64::from(step) / 1_000.0);
            assert!(last.iter().zip(next).all(|(last, next)| *last <= next), "at {step}");
            last = next;
        }
    }

    #[test]
    fn an_epoch_is_eight_seconds() {
        assert_eq!((epoch(0), epoch(8 * SECOND_NS - 1), epoch(8 * SECOND_NS)), (0, 0, 1));
        assert_eq!(epoch(65_536 * 8 * SECOND_NS), 0);
    }
}
