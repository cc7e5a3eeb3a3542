//! From readings to ceilings: how many requests may be under way while the gateway itself is short of something.
//!
//! Pure; the guard asks it ten times a second. While a reading is past its bound the total falls by a fifth each
//! time, from what is under way; between the bound and a lower one it stays; below that it rises again until it binds
//! nobody. The total is given to routes of high priority first, and within a priority in equal parts: a route that
//! holds less than its part loses nothing, so whoever holds most, such as one with a slow upstream, gives way alone.
//! On a route, strangers are refused before sources that are known, and the proven last.

use std::time::{Duration, Instant};

use gateway_common::standing::Class;

use super::Cause;
use super::distress::{Readings, State};
use super::limit::UNLIMITED;
use crate::config::{Overload, Priority};

/// Shares in use past which memory and descriptors are short, and below which they no longer are.
pub const MEMORY: (f64, f64) = (0.85, 0.75);
pub const DESCRIPTORS: (f64, f64) = (0.9, 0.8);

/// In one round.
const FALL: f64 = 0.8;
const RISE: f64 = 1.1;
const SMALLEST_RISE: f64 = 8.0;
/// At ease for so long, with room to spare, it ends.
const CALM: Duration = Duration::from_secs(2);
/// Refusals have had this long to help.
const LASTING: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Pressure {
    shedding: Option<Shedding>,
}

struct Shedding {
    total: f64,
    cause: Cause,
    since: Instant,
    /// A reading was last past its lower bound.
    short: Instant,
}

/// What holds until the next round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Requests that may be under way; [`UNLIMITED`]: any.
    pub total: u32,
    pub state: State,
}

impl Pressure {
    /// `active` requests are under way; the rules are the configuration's: a delay that ends below half of
    /// `max_delay`, a total that never falls below `min_concurrency`, no refusal unless `enabled`.
    pub fn round(&mut self, readings: &Readings, active: u32, rules: &Overload, now: Instant) -> Verdict {
        let max_delay = rules.max_delay.as_secs_f64();
        // Each as a share of its bound, and of its lower one.
        let loads = [
            (Cause::Delay, readings.delay.as_secs_f64(), (max_delay, max_delay / 2.0)),
            (Cause::Memory, readings.memory, MEMORY),
            (Cause::Descriptors, readings.descriptors, DESCRIPTORS),
        ];
        let (mut worst, mut distress, mut eased) = (Cause::Delay, 0.0, true);
        for (cause, reading, (bound, lower)) in loads {
            if reading / bound > distress {
                (worst, distress) = (cause, reading / bound);
            }
            eased &= reading < lower;
        }
        let (floor, needed) = (f64::from(rules.min_concurrency), f64::from(active));
        if !rules.enabled {
            self.shedding = None;
        } else if distress >= 1.0 {
            let shedding =
                self.shedding.get_or_insert(Shedding { total: needed, cause: worst, since: now, short: now });
            shedding.cause = worst;
            shedding.total = (shedding.total.min(needed) * FALL).max(floor);
        }
        if let Some(shedding) = &mut self.shedding {
            if !eased {
                shedding.short = now;
            } else if shedding.total > 2.0 * needed && now.saturating_duration_since(shedding.short) >= CALM {
                self.shedding = None;
            } else {
                shedding.total = (shedding.total * RISE).max(shedding.total + SMALLEST_RISE);
            }
        }
        let total = self.shedding.as_ref().map_or(UNLIMITED, |shedding| shedding.total as u32);
        let lasting = self.shedding.as_ref().is_some_and(|shedding| {
            distress >= 1.0 && now.saturating_duration_since(shedding.since) >= LASTING
        });
        let cause = self.shedding.as_ref().map_or(worst, |shedding| shedding.cause);
        let shedding = self.shedding.is_some();
        Verdict { total, state: State { permille: (distress * 1e3) as u32, cause, shedding, lasting } }
    }
}

/// How many of `total` requests under way each route may have; `routes`: their priorities and what they have.
pub fn ceilings(total: u32, routes: &[(Priority, u32)]) -> Vec<u32> {
    if total == UNLIMITED {
        return vec![UNLIMITED; routes.len()];
    }
    let mut left = total;
    let mut ceilings = vec![0; routes.len()];
    for class in [Priority::High, Priority::Normal, Priority::Low] {
        let of_class =
            || routes.iter().filter(move |(priority, _)| *priority == class).map(|(_, active)| *active);
        let level = level(left, of_class().collect());
        for (ceiling, (priority, _)) in ceilings.iter_mut().zip(routes) {
            if *priority == class {
                *ceiling = level;
            }
        }
        // A class that gets less than it has leaves nothing to the next.
        let wanted = of_class().fold(0, u32::saturating_add);
        left = left.saturating_sub(wanted);
    }
    ceilings
}

/// Of requests beyond a ceiling, how many may be under way while one of this class is among them. They are counted by
/// themselves, so that strangers' requests, which came before and go on, leave the proven what they need: as much
/// again. To be known takes one request, so it helps a little.
pub fn favoured(ceiling: u32, class: Class) -> u32 {
    match class {
        Class::Unknown => 0,
        Class::Known => ceiling / 4,
        Class::Proven => ceiling,
    }
}

/// The water level at which `total` is shared out: nobody has more, and who has less keeps it.
fn level(total: u32, mut active: Vec<u32>) -> u32 {
    active.sort_unstable();
    let (mut left, mut sharers) = (total, active.len() as u32);
    for &held in &active {
        if held > left / sharers {
            return left / sharers;
        }
        left -= held;
        sharers -= 1;
    }
    // Everybody has room; who has most may have the rest besides.
    active.last().copied().unwrap_or_default() + left
}

#[cfg(test)]
#[path = "pressure_tests.rs"]
mod tests;
