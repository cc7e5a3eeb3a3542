//! How much the cache may hold while memory is short: what is stored goes before anybody is refused for long.
//!
//! Pure; the guard asks it ten times a second, and has the cache follow.

use std::time::{Duration, Instant};

use super::pressure::MEMORY;

/// Between two changes: what was given up has to show in the readings first.
const STEP: Duration = Duration::from_secs(1);
/// What is left of what is held, with each step while memory is short.
const FALL: f64 = 0.75;
/// Of what the configuration allows, with each step while it is not.
const RISE: f64 = 0.02;

#[derive(Default)]
pub struct Room {
    /// `None`: what the configuration allows.
    bytes: Option<usize>,
    changed: Option<Instant>,
}

impl Room {
    /// The bytes that may be held from now on, where that has changed. `memory`: the share in use; `shedding`: requests
    /// are refused until it is below its lower bound; `held`: bytes held now; `most`: what the configuration allows.
    pub fn round(
        &mut self,
        memory: f64,
        shedding: bool,
        held: usize,
        most: usize,
        now: Instant,
    ) -> Option<usize> {
        if self.changed.is_some_and(|at| now.saturating_duration_since(at) < STEP) {
            return None;
        }
        let bytes = if is_short(memory, shedding) {
            (held.min(self.bytes.unwrap_or(most)) as f64 * FALL) as usize
        } else if memory < MEMORY.1 {
            self.bytes?.saturating_add((most as f64 * RISE) as usize + 1)
        } else {
            return None;
        };
        self.bytes = (bytes < most).then_some(bytes);
        self.changed = Some(now);
        Some(bytes.min(most))
    }

    /// What may be held of `most`.
    pub fn of(&self, most: usize) -> usize {
        self.bytes.unwrap_or(most).min(most)
    }
}

/// Whether what is held has to become less: it is not kept while anybody is refused for it.
pub fn is_short(memory: f64, shedding: bool) -> bool {
    memory >= if shedding { MEMORY.1 } else { MEMORY.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_while_memory_is_short_and_comes_back() {
        let (mut room, start) = (Room::default(), Instant::now());
        let mut second = 0;
        let mut round = |room: &mut Room, memory, held| {
            second += 1;
            room.round(memory, false, held, 1_000, start + STEP * second)
        };
        assert_eq!(round(&mut room, 0.5, 900), None);
        assert_eq!(round(&mut room, 0.9, 800), Some(600));
        assert_eq!(room.of(1_000), 600);
        assert_eq!(round(&mut room, 0.9, 600), Some(450));
        assert_eq!(round(&mut room, 0.8, 450), None, "between the bounds it stays");
        assert_eq!(round(&mut room, 0.7, 450), Some(471));
        for _ in 0..60 {
            round(&mut room, 0.7, 450);
        }
        assert_eq!((room.of(1_000), room.bytes), (1_000, None));
        // Down to nothing, if that is what it takes.
        for _ in 0..60 {
            let held = room.of(1_000);
            round(&mut room, 1.2, held);
        }
        assert_eq!(room.of(1_000), 0);
    }

    #[test]
    fn nothing_is_kept_that_others_are_refused_for() {
        let (mut room, now) = (Room::default(), Instant::now());
        assert_eq!(room.round(0.8, false, 1_000, 1_000, now), None);
        assert_eq!(room.round(0.8, true, 1_000, 1_000, now), Some(750));
        assert_eq!(room.round(0.7, true, 750, 1_000, now + STEP), Some(771));
    }

    #[test]
    fn a_step_has_time_to_show() {
        let (mut room, now) = (Room::default(), Instant::now());
        assert_eq!(room.round(0.9, false, 1_000, 1_000, now), Some(750));
        assert_eq!(room.round(0.9, false, 1_000, 1_000, now + STEP / 2), None);
        assert_eq!(room.round(0.9, false, 750, 1_000, now + STEP), Some(562));
    }
}
