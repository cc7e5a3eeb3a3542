//! A task's waker that keeps quiet while the task polls two ends of one channel itself.
//!
//! hyper's client hands head and body to their reader through channels whose ends wake each other.
//! Here one task polls both ends, so such a wake-up would only have the whole connection polled
//! once more for nothing; [`Mute::poll`] polls again at once instead. Wake-ups from outside pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};

pub struct Mute {
    state: Arc<State>,
    waker: Waker,
}

struct State {
    task: Waker,
    muted: AtomicBool,
    woken: AtomicBool,
}

/// Self-made wake-ups that are followed at once. More would be a resource that asks the task to
/// yield, as tokio's cooperative budget does; the task is told then.
const ROUNDS: usize = 4;

impl Mute {
    pub fn new(task: Waker) -> Self {
        let state = Arc::new(State { task, muted: AtomicBool::new(false), woken: AtomicBool::new(false) });
        Self { waker: Waker::from(state.clone()), state }
    }

    /// Polls `step` until it is ready or has nothing more to tell itself.
    pub fn poll<T>(&self, mut step: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let mut cx = Context::from_waker(&self.waker);
        for _ in 0..ROUNDS {
            self.state.muted.store(true, Relaxed);
            let polled = step(&mut cx);
            self.state.muted.store(false, Relaxed);
            let again = self.state.woken.load(Relaxed);
            self.state.woken.store(false, Relaxed);
            if polled.is_ready() || !again {
                return polled;
            }
        }
        self.state.task.wake_by_ref();
        Poll::Pending
    }
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.muted.load(Relaxed) {
            self.woken.store(true, Relaxed);
        } else {
            self.task.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn run(wakes: usize) -> (usize, usize) {
        let task = Arc::new(Count::default());
        let mute = Mute::new(Waker::from(task.clone()));
        let mut polls = 0;
        let polled: Poll<()> = mute.poll(|cx| {
            polls += 1;
            if polls <= wakes {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        });
        assert!(polled.is_pending());
        (polls, task.0.load(Relaxed))
    }

    #[test]
    fn own_wake_ups_poll_again_and_endless_ones_reach_the_task() {
        assert_eq!(run(0), (1, 0));
        assert_eq!(run(1), (2, 0));
        assert_eq!(run(1000), (ROUNDS, 1));
    }

    #[test]
    fn outside_wake_ups_pass() {
        let task = Arc::new(Count::default());
        let mute = Mute::new(Waker::from(task.clone()));
        let mut kept = None;
        let _ = mute.poll(|cx| {
            kept = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        kept.unwrap().wake();
        assert_eq!(task.0.load(Relaxed), 1);
    }
}
