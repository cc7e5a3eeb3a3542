//! Which endpoint of a cluster a request goes to.
//!
//! Pure: what is known of the endpoints is asked of a closure, chance comes from dice. It looks at two
//! endpoints where that is enough, so that a large cluster costs no more than a small one.

use super::dice::{Dice, mix};
use crate::config::Policy;

/// What the choice depends on, for one endpoint at one moment.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Thousandths of its usual requests that it is to get; 0: none.
    pub share: u32,
    /// Requests under way.
    pub load: u64,
}

/// [`View::share`] of an endpoint that is well.
pub const WHOLE: u32 = 1_000;

/// The shape of a cluster: what does not change from request to request.
#[derive(Debug)]
pub struct Balancer {
    policy: Policy,
    weights: Vec<u32>,
    /// Running sums of the weights.
    sums: Vec<u32>,
    /// Points by hash, for the policy that has a key.
    ring: Vec<(u64, usize)>,
}

/// One worker's place in the order of turns.
pub type Turns = Vec<i64>;

/// Of each endpoint and unit of weight.
const POINTS: u64 = 100;
/// No endpoint gets more than this many times its part of the requests under way, key or not
/// (Mirrokni, Thorup, Zadimoghaddam 2018).
const BOUND: f64 = 1.25;
/// Draws for one endpoint.
const DRAWS: usize = 4;

impl Balancer {
    /// `members`: the name and the weight of each endpoint; there is one at least.
    pub fn new<'a>(policy: Policy, members: impl Iterator<Item = (&'a str, u32)> + Clone) -> Self {
        let weights: Vec<u32> = members.clone().map(|(_, weight)| weight).collect();
        let sums = weights.iter().scan(0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        let mut ring = Vec::new();
        if let Policy::Hash(_) = policy {
            for (at, (name, weight)) in members.enumerate() {
                let name = hash(name.as_bytes());
                // Hashed once more, or names that differ in a digit would have points side by side.
                ring.extend((0..POINTS * u64::from(weight)).map(|point| (mix(name ^ mix(point)), at)));
            }
            ring.sort_unstable();
        }
        Self { sums: sums.collect(), policy, weights, ring }
    }

    /// The index of an endpoint whose share is not 0, if there is one. `key`: the request's, hashed.
    pub fn pick(
        &self,
        view: impl Fn(usize) -> View,
        key: u64,
        turns: &mut Turns,
        dice: &Dice,
    ) -> Option<usize> {
        match &self.policy {
            Policy::LeastRequests => self.least_requests(view, dice),
            Policy::RoundRobin => self.round_robin(view, turns),
            Policy::Hash(_) => self.hashed(view, key),
        }
    }

    /// Power of two choices (Mitzenmacher 2001): of two drawn by weight and share, the less loaded.
    fn least_requests(&self, view: impl Fn(usize) -> View, dice: &Dice) -> Option<usize> {
        let Some(first) = self.draw(&view, None, dice) else { return self.any(&view, dice) };
        let Some(second) = self.draw(&view, Some(first), dice) else { return Some(first) };
        let (a, b) = (view(first), view(second));
        let capacity = |at: usize, view: View| u64::from(self.weights[at]) * u64::from(view.share);
        let first_is_freer = a.load * capacity(second, b) <= b.load * capacity(first, a);
        Some(if first_is_freer { first } else { second })
    }

    /// One at random by weight and share, and not `other`; `None` also where few have a share.
    fn draw(&self, view: &impl Fn(usize) -> View, other: Option<usize>, dice: &Dice) -> Option<usize> {
        let total = *self.sums.last().expect("a cluster has an endpoint");
        let (before, left_out) =
            other.map_or((total, 0), |at| (self.sums[at] - self.weights[at], self.weights[at]));
        for _ in 0..DRAWS {
            let mark = dice.below(total - left_out);
            let mark = if mark < before { mark } else { mark + left_out };
            let at = self.sums.partition_point(|&sum| sum <= mark);
            let share = view(at).share;
            if share >= WHOLE || share > 0 && dice.below(WHOLE) < share {
                return Some(at);
            }
        }
        None
    }

    /// The same with a look at all of them.
    fn any(&self, view: &impl Fn(usize) -> View, dice: &Dice) -> Option<usize> {
        let part = |at: usize| u64::from(self.weights[at]) * u64::from(view(at).share);
        let total: u64 = (0..self.weights.len()).map(part).sum();
        let mut mark = (dice.fraction() * total as f64) as u64;
        (0..self.weights.len()).find(|&at| {
            let part = part(at);
            let hit = mark < part;
            mark = mark.saturating_sub(part);
            hit
        })
    }

    /// Smooth weighted round robin, as nginx does it: each gains its part, who has most pays for all.
    fn round_robin(&self, view: impl Fn(usize) -> View, turns: &mut Turns) -> Option<usize> {
        turns.resize(self.weights.len(), 0);
        let (mut best, mut total) = (None, 0);
        for (at, weight) in self.weights.iter().enumerate() {
            let part = i64::from(*weight) * i64::from(view(at).share);
            if part == 0 {
                continue;
            }
            total += part;
            turns[at] += part;
            if best.is_none_or(|best: usize| turns[at] > turns[best]) {
                best = Some(at);
            }
        }
        turns[best?] -= total;
        best
    }

    /// The first on the ring from the key on whose load is within bounds.
    fn hashed(&self, view: impl Fn(usize) -> View, key: u64) -> Option<usize> {
        let views: Vec<View> = (0..self.weights.len()).map(view).collect();
        let part = |at: usize| f64::from(self.weights[at]) * f64::from(views[at].share);
        let load: u64 = views.iter().filter(|view| view.share > 0).map(|view| view.load).sum();
        let total: f64 = (0..views.len()).map(part).sum();
        let fits = |at: usize| {
            let most = (BOUND * (load + 1) as f64 * part(at) / total).ceil();
            views[at].share > 0 && (views[at].load + 1) as f64 <= most
        };
        let start = self.ring.partition_point(|&(point, _)| point < key);
        let round = self.ring[start..].iter().chain(&self.ring[..start]).map(|&(_, at)| at);
        // Not all can be above their bound; were it so by rounding, the key's own is as good as any.
        round.clone().find(|&at| fits(at)).or_else(|| round.clone().find(|&at| views[at].share > 0))
    }
}

/// Of a key or a name; the same in every process, so that gateways side by side agree.
pub fn hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

#[cfg(test)]
#[path = "balancer_tests.rs"]
mod tests;
