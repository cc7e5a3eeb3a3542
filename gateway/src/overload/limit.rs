//! How many requests of a route may wait for their upstream at once: found from how long answers take to begin.
//!
//! Pure; `gate` feeds it. The evidence is a standing queue, as CoDel (RFC 8289 §3) sees one: where requests
//! queue, even the luckiest of a window waits, so the window's shortest wait is held against the shortest of the
//! last minute. A few slow requests among quick ones, streams and long polls leave that minimum where it is.
//!
//! On a queue the limit is cut to what the upstream holds without one: its rate of answers times the mean wait
//! without a queue (Little's law), a little less for the queue to drain. Then it creeps up until the queue is back.
//! Each trough shows the upstream without a queue, so the minimum stays true without ever stopping the traffic to
//! look. A cut behind which the rate of answers falls as the places do was no queue (the upstream has become slow by
//! itself): it is taken back, and not tried again for a while.

use std::time::{Duration, Instant};

use crate::config::Priority;

/// What a route's requests found in one stretch of time.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// From a request's going out to the first byte of its answer.
    pub shortest: Duration,
    pub mean: Duration,
    /// How late the gateway itself comes to an answer that is there: as much of every wait is its own.
    pub late: Duration,
    /// Answers a second.
    pub rate: f64,
    /// Waiting at its end.
    pub waiting: u32,
    /// The limit has turned requests away, or made them queue.
    pub refused: bool,
}

/// No limit is in force.
pub const UNLIMITED: u32 = u32::MAX;

/// How a route behaves beside others with the same upstream.
struct Manner {
    /// Of the delay that others take for a queue.
    slack: f64,
    /// What a cut leaves of the places that are needed without a queue: below 1, for the queue to drain.
    headroom: f64,
    /// In one window.
    growth: f64,
}

/// Low priority sees a queue before others do, leaves more room and comes back later.
const LOW: Manner = Manner { slack: 0.25, headroom: 0.5, growth: 1.02 };
const NORMAL: Manner = Manner { slack: 1.0, headroom: 0.9, growth: 1.05 };
const HIGH: Manner = Manner { slack: 2.0, headroom: 0.9, growth: 1.05 };
const SMALLEST_GROWTH: f64 = 4.0;

/// A delay below this is no queue worth a refusal (CoDel's target).
const SLACK: Duration = Duration::from_millis(5);
/// In a queue all wait alike: even the luckiest no less than this part of the mean.
const SPREAD: u32 = 4;
/// Windows with a standing queue before anything is done about it.
const LATE_WINDOWS: u32 = 2;
/// Where the rate of answers falls by this share of what the places fell by, there was no queue.
const DISPROOF: f64 = 0.5;
/// A smaller cut tells nothing: answers come in rates that differ by as much.
const TELLING: f64 = 0.25;
/// So many windows must say so: others may have been short of the upstream's time, or of ours.
const DOUBTS: u32 = 2;
/// How long a wait that was no queue is not taken for one again.
const EXCUSE: Duration = Duration::from_secs(20);
/// So many windows a cut has to show what it does.
const PATIENCE_WINDOWS: u32 = 20;
/// Without a queue and a refusal for so long, the limit is lifted.
const CALM: Duration = Duration::from_secs(10);

/// Answers that take longer to begin are long polls, and no measure of anything, unless a limit is in force: a
/// queue that grows passes every shorter wait before it comes to this.
pub const LONG_POLL: Duration = Duration::from_secs(5);
/// Who leaves without an answer after so long has waited at least that long, and counts: where everybody leaves, as
/// they do when a queue is longer than their patience, there would be nothing else to see it by.
pub const LEAST_ABANDONED: Duration = Duration::from_millis(500);
/// Fewer waits than this say nothing: the shortest of a few is long by chance.
pub const LEAST_SAMPLES: u32 = 50;
/// A window that has not come to so many by then says that nothing can be measured.
pub const LONGEST_WINDOW: Duration = Duration::from_secs(10);

const SHORTEST_WINDOW: Duration = Duration::from_millis(100);

pub struct Limit {
    floor: u32,
    manner: &'static Manner,
    limit: f64,
    state: State,
    shortest: RollingMinimum,
    mean: RollingMinimum,
    /// The last window with a queue or a refusal.
    troubled: Option<Instant>,
    excused_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// So many windows with a queue, one after the other.
    Watching { late: u32 },
    /// A cut's effect is awaited.
    Cut(Cut),
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    /// How it stood before.
    limit: f64,
    waiting: u32,
    rate: f64,
    windows: u32,
    /// Those who waited before are gone.
    drained: bool,
    /// Windows that speak against a queue.
    doubts: u32,
}

impl Limit {
    /// It never falls below `floor`.
    pub fn new(floor: u32, priority: Priority) -> Self {
        Self {
            floor,
            manner: manner(priority),
            limit: f64::INFINITY,
            state: State::Watching { late: 0 },
            shortest: RollingMinimum::default(),
            mean: RollingMinimum::default(),
            troubled: None,
            excused_until: None,
        }
    }

    /// What a new configuration says.
    pub fn configure(&mut self, floor: u32, priority: Priority) {
        (self.floor, self.manner) = (floor, manner(priority));
        self.limit = self.limit.max(f64::from(floor));
    }

    /// Takes in a window; returns the limit from now on.
    pub fn close(&mut self, window: &Window, now: Instant) -> u32 {
        let shortest = self.shortest.see(window.shortest, now);
        self.mean.see(window.mean, now);
        let late = window.shortest > self.tolerated(shortest) + window.late
            && SPREAD * window.shortest > window.mean;
        let late = late && self.excused_until.is_none_or(|until| now >= until);
        if late || window.refused {
            self.troubled = Some(now);
        }
        match self.state {
            State::Watching { .. } if !late => {
                self.state = State::Watching { late: 0 };
                if window.refused {
                    self.limit = (self.limit * self.manner.growth).max(self.limit + SMALLEST_GROWTH);
                } else if self.troubled.is_none_or(|at| now.saturating_duration_since(at) >= CALM) {
                    self.limit = f64::INFINITY;
                }
            }
            State::Watching { late } if late + 1 < LATE_WINDOWS => {
                self.state = State::Watching { late: late + 1 };
            }
            State::Watching { .. } => self.cut(window),
            State::Cut(cut) => self.judge(window, now, late, cut),
        }
        self.current()
    }

    /// Nothing was measured for [`LONGEST_WINDOW`]: whatever is the matter, it is no queue that a limit would shorten.
    pub fn lift(&mut self) -> u32 {
        self.limit = f64::INFINITY;
        self.state = State::Watching { late: 0 };
        self.current()
    }

    /// How long the next window lasts: a change of the limit must have had its effect.
    pub fn window_length(&self) -> Duration {
        SHORTEST_WINDOW.max(self.mean.get())
    }

    pub fn current(&self) -> u32 {
        if self.limit < f64::from(UNLIMITED) { self.limit as u32 } else { UNLIMITED }
    }

    /// The longest wait that is taken for one without a queue.
    fn tolerated(&self, least: Duration) -> Duration {
        least + SLACK.max(least / 2).mul_f64(self.manner.slack)
    }

    fn cut(&mut self, window: &Window) {
        self.state = State::Watching { late: 0 };
        if window.waiting <= self.floor {
            return;
        }
        let (limit, waiting, rate) = (self.limit, window.waiting, window.rate);
        let held = window.rate * self.mean.get().as_secs_f64();
        self.limit = (self.manner.headroom * held).min(self.limit).max(f64::from(self.floor));
        self.state = State::Cut(Cut { limit, waiting, rate, windows: 0, drained: false, doubts: 0 });
    }

    /// Looks at what a cut has done, once those who waited before it are gone.
    fn judge(&mut self, window: &Window, now: Instant, late: bool, mut cut: Cut) {
        let fits = f64::from(window.waiting) <= self.limit * 1.1 + 1.0;
        cut.windows += 1;
        if cut.windows <= PATIENCE_WINDOWS && !(cut.drained && fits) {
            // The window in which they went still holds their waits.
            cut.drained = fits;
            self.state = State::Cut(cut);
            return;
        }
        let fewer_places = 1.0 - self.limit / f64::from(cut.waiting);
        let fewer_answers = 1.0 - window.rate / cut.rate;
        let tells = window.refused && fewer_places > TELLING;
        if !(tells && fewer_answers > DISPROOF * fewer_places) {
            self.state = State::Watching { late: 0 };
            if late {
                self.cut(window);
            }
            return;
        }
        cut.doubts += 1;
        self.state = State::Cut(cut);
        if cut.doubts >= DOUBTS {
            self.state = State::Watching { late: 0 };
            self.limit = cut.limit;
            self.excused_until = Some(now + EXCUSE);
        }
    }
}

fn manner(priority: Priority) -> &'static Manner {
    match priority {
        Priority::Low => &LOW,
        Priority::Normal => &NORMAL,
        Priority::High => &HIGH,
    }
}

/// The least of what was seen in the last minute, give or take a part of it.
#[derive(Debug, Default)]
struct RollingMinimum {
    /// The newest last.
    parts: [Option<Duration>; PARTS],
    turned: Option<Instant>,
}

const PARTS: usize = 6;
const PART: Duration = Duration::from_secs(10);

impl RollingMinimum {
    /// Takes `value` in; returns the minimum.
    fn see(&mut self, value: Duration, now: Instant) -> Duration {
        let turned = *self.turned.get_or_insert(now);
        let turns = now.saturating_duration_since(turned).as_secs() / PART.as_secs();
        for _ in 0..turns.min(PARTS as u64) {
            self.parts.rotate_left(1);
            self.parts[PARTS - 1] = None;
        }
        self.turned = Some(turned + Duration::from_secs(turns * PART.as_secs()));
        let newest = &mut self.parts[PARTS - 1];
        *newest = Some(newest.map_or(value, |least| least.min(value)));
        self.get()
    }

    fn get(&self) -> Duration {
        self.parts.iter().flatten().min().copied().unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "limit_tests.rs"]
mod tests;
