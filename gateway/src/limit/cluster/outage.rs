//! What the process says of a store that is away: one line when the first worker loses it, one when the last has it
//! again.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::metrics::Loss;

#[derive(Default)]
pub struct Outage(Mutex<State>);

#[derive(Default)]
struct State {
    /// Workers without a store.
    without: BTreeSet<usize>,
    since: Option<Instant>,
}

impl Outage {
    /// `worker` has lost `server`, or could not find it.
    pub fn begin(&self, worker: usize, server: &str, loss: Loss, why: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.without.insert(worker);
        if state.since.is_none() {
            state.since = Some(Instant::now());
            let reason = loss.label();
            tracing::warn!(
                server,
                reason,
                why,
                "the store of rate limits is lost; rules go by their on_failure"
            );
        }
    }

    /// `worker` has found `server`.
    pub fn end(&self, worker: usize, server: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.without.remove(&worker);
        if state.without.is_empty()
            && let Some(since) = state.since.take()
        {
            let away_ms = since.elapsed().as_millis();
            tracing::info!(server, away_ms, "the store of rate limits is back");
        }
    }

    /// `worker` asks for it no more.
    pub fn forget(&self, worker: usize) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.without.remove(&worker);
        if state.without.is_empty() {
            state.since = None;
        }
    }
}
