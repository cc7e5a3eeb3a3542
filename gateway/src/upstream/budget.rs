//! How many retries a cluster bears at once: a part of the requests under way, and a few in any case.
//!
//! Without it, retries multiply the load of a cluster that fails because of its load. A retry is
//! charged when it is decided, so that one which waits for its turn counts (envoy#30205).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

#[derive(Debug, Default)]
pub struct Budget {
    out: AtomicU32,
    refused: AtomicU64,
}

/// One retry under way; gone when it is dropped.
#[derive(Debug)]
pub struct Charge(Arc<Budget>);

impl Budget {
    /// `active`: requests under way; `percent` of them may be retries, and `minimum` always.
    pub fn charge(self: &Arc<Self>, active: u64, percent: u32, minimum: u32) -> Option<Charge> {
        let most = (active * u64::from(percent) / 100).max(u64::from(minimum));
        let charged =
            self.out.fetch_update(Relaxed, Relaxed, |out| (u64::from(out) < most).then_some(out + 1));
        if charged.is_err() {
            self.refused.fetch_add(1, Relaxed);
        }
        charged.ok().map(|_| Charge(self.clone()))
    }

    /// Retries under way.
    pub fn out(&self) -> u32 {
        self.out.load(Relaxed)
    }

    /// Retries that found the budget spent.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.0.out.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_requests_and_a_few_in_any_case() {
        for (active, percent, minimum, want) in
            [(0, 20, 3, 3), (10, 20, 3, 3), (100, 20, 3, 20), (1_000, 0, 0, 0), (19, 20, 0, 3), (4, 20, 0, 0)]
        {
            let budget = Arc::new(Budget::default());
            let charges: Vec<_> = (0..2_000).map_while(|_| budget.charge(active, percent, minimum)).collect();
            assert_eq!((charges.len(), budget.out(), budget.refused()), (want, want as u32, 1));
            drop(charges);
            assert_eq!(budget.out(), 0);
        }
    }

    #[test]
    fn threads_together_do_not_pass_it() {
        let budget = Arc::new(Budget::default());
        let charged = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| (0..1_000).filter_map(|_| budget.charge(500, 20, 3)).collect::<Vec<_>>())
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(charged.len(), 100);
    }
}
