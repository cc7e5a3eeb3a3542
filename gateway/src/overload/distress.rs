//! How badly off the gateway itself is: one number for its listener, beside the readings it comes from.
//!
//! The guard writes it ten times a second. A refusal takes its cause from it, metrics show it, and the kernel half
//! may go by [`Distress::read`] when it decides on new connections.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

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

#[derive(Default)]
pub struct Distress {
    /// permille << 32 | lasting << 9 | shedding << 8 | cause.
    state: AtomicU64,
    delay_us: AtomicU64,
    memory_ppm: AtomicU64,
    descriptors_ppm: AtomicU64,
}

const CAUSES: [Cause; 3] = [Cause::Delay, Cause::Memory, Cause::Descriptors];

impl Distress {
    /// As the guard has left it, at most a tenth of a second ago. One load.
    pub fn read(&self) -> State {
        let word = self.state.load(Relaxed);
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

    pub fn write(&self, state: State, readings: &Readings) {
        let cause = CAUSES.iter().position(|&cause| cause == state.cause).unwrap_or_default() as u64;
        let flags = u64::from(state.lasting) << 9 | u64::from(state.shedding) << 8;
        let word = u64::from(state.permille) << 32 | flags | cause;
        self.state.store(word, Relaxed);
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
    fn what_is_written_is_read() {
        let distress = Distress::default();
        assert_eq!(distress.read().permille, 0);
        for cause in CAUSES {
            for (shedding, lasting) in [(false, false), (true, false), (true, true)] {
                let state = State { permille: 123_456, cause, shedding, lasting };
                let readings = Readings { delay: Duration::from_micros(7), memory: 0.25, descriptors: 0.5 };
                distress.write(state, &readings);
                assert_eq!((distress.read(), distress.readings()), (state, readings));
            }
        }
    }
}
