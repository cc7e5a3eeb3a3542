//! How badly off the gateway itself is: one number for its listener, beside the readings it comes from.
//!
//! The guard writes it ten times a second. A refusal takes its cause from it, metrics show it, and the kernel half
//! may go by [`Distress::read`] when it decides on new connections.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::Cause;

/// What is short, as measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Readings {
    /// Between a client's bytes, or its connection, being there and a worker's looking at them: the least of the
    /// last second, on the worker that has it worst.
    pub delay: Duration,
    /// In use, of what there is; 1 is all.
    pub memory: f64,
    /// Of descriptors, or of the connections there may be by requests under way, whichever is more.
    pub descriptors: f64,
}

/// The number, and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// 0: at ease; 1000: where requests begin to be refused; in proportion between and beyond.
    pub permille: u32,
    /// What is shortest.
    pub cause: Cause,
    /// Requests are refused for it.
    pub shedding: bool,
    /// Requests have been refused for a second or longer, and that has not ended it: the time for the kernel half to
    /// refuse connections.
    pub lasting: bool,
}

pub struct Distress {
    /// permille << 32 | lasting << 9 | shedding << 8 | cause.
    state: AtomicU64,
    /// Since `epoch`, in milliseconds: when that was so.
    written_ms: AtomicU64,
    epoch: Instant,
    delay_us: AtomicU64,
    memory_ppm: AtomicU64,
    descriptors_ppm: AtomicU64,
}

const CAUSES: [Cause; 3] = [Cause::Delay, Cause::Memory, Cause::Descriptors];
/// Ten rounds of the guard: one that has written nothing for longer stands still, and nobody knows how it is.
const HOLDS_MS: u64 = 1_000;

impl Default for Distress {
    fn default() -> Self {
        let [state, written_ms, delay_us, memory_ppm, descriptors_ppm] = Default::default();
        Self { state, written_ms, epoch: Instant::now(), delay_us, memory_ppm, descriptors_ppm }
    }
}

impl Distress {
    /// As the guard has left it, commonly a tenth of a second ago; at ease where that is long past.
    pub fn read(&self, now: Instant) -> State {
        let age_ms = self.ms(now).saturating_sub(self.written_ms.load(Relaxed));
        let word = if age_ms <= HOLDS_MS { self.state.load(Relaxed) } else { 0 };
        State {
            permille: (word >> 32) as u32,
            cause: CAUSES[(word & 0xff) as usize % CAUSES.len()],
            shedding: word & 0x100 != 0,
            lasting: word & 0x200 != 0,
        }
    }

    pub fn readings(&self) -> Readings {
        let fraction = |ppm: &AtomicU64| ppm.load(Relaxed) as f64 / 1e6;
        Readings {
            delay: Duration::from_micros(self.delay_us.load(Relaxed)),
            memory: fraction(&self.memory_ppm),
            descriptors: fraction(&self.descriptors_ppm),
        }
    }

    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_millis() as u64
    }

    pub fn write(&self, state: State, readings: &Readings, now: Instant) {
        let cause = CAUSES.iter().position(|&cause| cause == state.cause).unwrap_or_default() as u64;
        let flags = u64::from(state.lasting) << 9 | u64::from(state.shedding) << 8;
        let word = u64::from(state.permille) << 32 | flags | cause;
        self.state.store(word, Relaxed);
        self.written_ms.store(self.ms(now), Relaxed);
        let ppm = |fraction: f64| (fraction.max(0.0) * 1e6) as u64;
        self.delay_us.store(readings.delay.as_micros() as u64, Relaxed);
        self.memory_ppm.store(ppm(readings.memory), Relaxed);
        self.descriptors_ppm.store(ppm(readings.descriptors), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_for_a_second() {
        let (distress, now) = (Distress::default(), Instant::now());
        let at_ease = State { permille: 0, cause: Cause::Delay, shedding: false, lasting: false };
        assert_eq!(distress.read(now), at_ease);
        for (round, cause) in CAUSES.into_iter().enumerate() {
            for (shedding, lasting) in [(false, false), (true, false), (true, true)] {
                let now = now + Duration::from_secs(60 * round as u64);
                let state = State { permille: 123_456, cause, shedding, lasting };
                let readings = Readings { delay: Duration::from_micros(7), memory: 0.25, descriptors: 0.5 };
                distress.write(state, &readings, now);
                assert_eq!(distress.readings(), readings);
                for (age_ms, want) in [(0, state), (1_000, state), (1_001, at_ease), (3_600_000, at_ease)] {
                    assert_eq!(distress.read(now + Duration::from_millis(age_ms)), want, "{age_ms} ms old");
                }
            }
        }
    }
}
