//! Rate limits: which requests a client may make, decided once a request for the whole process.
//!
//! The proxy reads a request's [`Keys`], asks [`Limits::decide`] and turns a [`Denial`] into a 429. All
//! rules of the route are judged under the locks of their keys' shards, and taken from all or from none.
//! What requests under way may be at once is `concurrency`; how many connections a source may have is `connections`;
//! who ignores refusals is `refusals`; `cluster` is what several gateways count together. Nothing else here waits or
//! logs.

pub mod cluster;
pub mod concurrency;
pub mod connections;
pub mod fields;
pub mod key;
mod lately;
mod look;
pub mod quota;
pub mod refusals;
mod rules;
mod store;
mod told;
mod window;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustc_hash::FxHashSet;

pub use cluster::Said;
pub use key::Keys;
pub use look::Look;
use quota::{Part, Refused, State};
pub use rules::{MAX_RULES, Rule, Rules};
pub use store::Tally;
use store::{Place, Shard};

/// Entries looked at in one go by [`Limits::sweep`], so that a lock is held for some microseconds.
const SWEPT_AT_ONCE: usize = 64;

/// The state of every rule. It outlives reloads: a rule that stays keeps its number, and with it its counts.
pub struct Limits {
    /// Zero of the clock.
    epoch: Instant,
    /// Of the keys' hashes, new for each process.
    seed: u64,
    shards: Box<[Locked]>,
    numbers: Mutex<Numbers>,
    routes: Mutex<HashMap<String, concurrency::Route>>,
    pub clients: Arc<concurrency::Clients>,
    pub connections: Arc<connections::Connections>,
    pub refusals: refusals::Refusals,
    pub outage: cluster::Outage,
}

/// Numbers of rules, routes and scopes, by what the configuration calls them; none is given twice.
#[derive(Default)]
struct Numbers {
    by_name: HashMap<String, u32>,
    next: u32,
}

/// A shard on cache lines of its own.
#[repr(align(128))]
struct Locked(Mutex<Shard>);

/// What an admitted request has left, of the rule that has least.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Index into the route's rules.
    pub rule: usize,
    pub part: Part,
    pub left: u32,
    pub reset_s: u32,
    /// Of any rule, less than a tenth is left.
    pub near: bool,
}

/// A refused request, and the rule that makes it wait longest.
#[derive(Clone, Copy, Debug)]
pub struct Denial {
    /// Index into the route's rules.
    pub rule: usize,
    pub part: Part,
    /// After which it would be admitted; at least one.
    pub wait_s: u32,
}

/// A rule's judgement, and of a granted request the state to be stored.
type Judged = Result<State, Refused>;

impl Limits {
    /// `shards` is a power of two and no more than `max_keys`, which is how many keys are held at most.
    pub fn new(shards: usize, max_keys: usize) -> Self {
        let capacity = max_keys / shards;
        Self {
            epoch: Instant::now(),
            seed: RandomState::new().hash_one(0),
            shards: (0..shards).map(|_| Locked(Mutex::new(Shard::new(capacity)))).collect(),
            numbers: Mutex::default(),
            routes: Mutex::default(),
            clients: Arc::default(),
            connections: Arc::default(),
            refusals: refusals::Refusals::default(),
            outage: cluster::Outage::default(),
        }
    }

    /// Nanoseconds of this clock.
    #[inline]
    pub fn at(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_nanos() as u64
    }

    /// Reads the keys that `rules` ask for.
    #[inline]
    pub fn read(&self, keys: &mut Keys, rules: &Rules, request: &key::Request<'_>) {
        keys.read(rules.keys(), request, self.seed);
    }

    /// How many sources go on in spite of their refusals, of requests or of connections.
    pub fn suspects(&self, now_ns: u64) -> usize {
        self.refusals.suspects(now_ns).len() + self.connections.pushing(now_ns).len()
    }

    /// Admits or refuses one request; `None` where no enforced rule applies. `worker` counts it.
    ///
    /// `said` is the word of the store, which holds for the rules that it counts. They are counted here as well, so
    /// that this gateway's share of them is not new when the store is lost.
    #[inline]
    pub fn decide(
        &self,
        rules: &Rules,
        keys: &Keys,
        now_ns: u64,
        worker: usize,
        said: Option<&Said>,
    ) -> Result<Option<Standing>, Denial> {
        if let Some(said) = said
            && let Some(denial) = refusal(rules, said)
        {
            count_refusals(rules, |n, _| matches!(said.of(n), Some(Err(_))), worker);
            return Err(denial);
        }
        // Most routes have one rule, which needs no room for many.
        match rules.len() {
            0 => Ok(None),
            1 => self.judge::<1>(rules, keys, now_ns, worker, said),
            2..=4 => self.judge::<4>(rules, keys, now_ns, worker, said),
            _ => self.judge::<MAX_RULES>(rules, keys, now_ns, worker, said),
        }
    }

    /// Whether a rule of this gateway alone refuses, so that no other need be asked. Nothing is taken.
    pub fn refuses(&self, rules: &Rules, keys: &Keys, now_ns: u64) -> bool {
        !rules.are_all_shared()
            && rules.iter().filter(|rule| !rule.shadow && rule.cluster.is_none()).any(|rule| {
                let (key, hash) = keys.get(rule.key);
                let mut shard = lock(&self.shards[shard_of(hash, &self.shards)].0);
                let place = shard.place(hash ^ rule.mix, rule.number, key, now_ns);
                rule.quota(place).take(shard.get(place), now_ns).is_err()
            })
    }

    /// `decide` over `N` rules at most.
    fn judge<const N: usize>(
        &self,
        rules: &Rules,
        keys: &Keys,
        now_ns: u64,
        worker: usize,
        said: Option<&Said>,
    ) -> Result<Option<Standing>, Denial> {
        let mut held = Held::<N>::lock(&self.shards, rules, keys);
        let mut judged = [(Place::Own(0), Ok(State::default())); N];
        let mut denial: Option<(usize, Refused)> = None;
        for (n, (rule, judged)) in rules.iter().zip(&mut judged).enumerate() {
            let (key, hash) = keys.get(rule.key);
            let shard = held.shard(rule.key);
            let place = shard.place(hash ^ rule.mix, rule.number, key, now_ns);
            let result = rule.quota(place).take(shard.get(place), now_ns);
            if let Err(refused) = result
                && rule.refuses(said.is_some())
                && denial.is_none_or(|(_, worst)| worst.wait_ns < refused.wait_ns)
            {
                denial = Some((n, refused));
            }
            *judged = (place, result);
        }
        if denial.is_none() {
            for (rule, (place, result)) in rules.iter().zip(judged) {
                if let Ok(state) = result {
                    held.shard(rule.key).set(place, state, now_ns + rule.forgotten_after_ns);
                }
            }
        }
        drop(held);
        match denial {
            Some((rule, refused)) => {
                let local = |rule: &Rule| said.is_none() || rule.cluster.is_none();
                count_refusals(rules, |n, rule| judged[n].1.is_err() && local(rule), worker);
                Err(Denial { rule, part: refused.part, wait_s: quota::seconds(refused.wait_ns) })
            }
            None => Ok(stand(rules, &judged, now_ns, worker, said)),
        }
    }

    /// Lets go of forgotten keys, a part of them at each call; what newcomers do not sweep is swept so.
    pub fn sweep(&self, now_ns: u64) {
        for shard in &self.shards {
            lock(&shard.0).sweep(SWEPT_AT_ONCE, now_ns);
        }
    }

    pub fn tally(&self) -> Tally {
        self.shards.iter().map(|shard| lock(&shard.0).tally()).fold(Tally::default(), |sum, one| Tally {
            keys: sum.keys + one.keys,
            evicted: sum.evicted + one.evicted,
            expired: sum.expired + one.expired,
            overflowed: sum.overflowed + one.overflowed,
        })
    }

    /// Forgets what a reload left out of the configuration: those that rename would add up.
    pub fn forget_others<'a>(&self, rules: impl Iterator<Item = &'a Rules>) {
        let named: FxHashSet<u32> = rules.flat_map(Rules::numbers).collect();
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.by_name.retain(|_, number| named.contains(number));
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        // Neither a snapshot nor a request under way has it.
        routes.retain(|_, route| Arc::strong_count(route) > 1);
    }

    /// The number of what is called `name`, the same as before a reload.
    fn number(&self, name: String) -> u32 {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let Numbers { by_name, next } = &mut *numbers;
        *by_name.entry(name).or_insert_with(|| {
            *next += 1;
            *next
        })
    }

    /// The requests under way of the route called `label`.
    fn route(&self, label: &str) -> concurrency::Route {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.entry(label.to_owned()).or_default().clone()
    }
}

/// The shards of one request's keys, each locked once, in ascending order: nobody waits for another who
/// waits for him.
struct Held<'a, const N: usize> {
    guards: [Option<MutexGuard<'a, Shard>>; N],
    /// The guard of each key.
    of_key: [usize; N],
}

impl<'a, const N: usize> Held<'a, N> {
    fn lock(shards: &'a [Locked], rules: &Rules, keys: &Keys) -> Self {
        let mut held = Self { guards: [const { None }; N], of_key: [0; N] };
        let mut wanted = [(0, 0); N];
        let wanted = &mut wanted[..rules.keys().len()];
        for (key, want) in wanted.iter_mut().enumerate() {
            *want = (shard_of(keys.get(key).1, shards), key);
        }
        wanted.sort_unstable();
        let mut last = None;
        let mut guards = 0;
        for (shard, key) in wanted {
            if last.replace(*shard) != Some(*shard) {
                held.guards[guards] = Some(lock(&shards[*shard].0));
                guards += 1;
            }
            held.of_key[*key] = guards - 1;
        }
        held
    }

    fn shard(&mut self, key: usize) -> &mut Shard {
        self.guards[self.of_key[key]].as_mut().expect("every key's shard was locked")
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// By the upper half of a key's hash: places within a shard go by the lower.
fn shard_of(hash: u64, shards: &[Locked]) -> usize {
    (hash >> 32) as usize & (shards.len() - 1)
}

/// The store's refusal, if it refuses.
fn refusal(rules: &Rules, said: &Said) -> Option<Denial> {
    let over = said.refusals().filter(|(index, _)| !rules.rule(*index).shadow);
    let (rule, refused) = over.max_by_key(|(_, refused)| refused.wait_ns)?;
    Some(Denial { rule, part: refused.part, wait_s: quota::seconds(refused.wait_ns) })
}

/// Counts a refused request: a rule that would have admitted it has decided nothing.
fn count_refusals(rules: &Rules, refused: impl Fn(usize, &Rule) -> bool, worker: usize) {
    for (_, rule) in rules.iter().enumerate().filter(|(n, rule)| refused(*n, rule)) {
        let cells = &rule.cells[worker];
        if rule.shadow { cells.shadow.add(1) } else { cells.denied.add(1) }
    }
}

/// Counts an admitted request, and says what it has left of the rule with least.
fn stand(
    rules: &Rules,
    judged: &[(Place, Judged)],
    now_ns: u64,
    worker: usize,
    said: Option<&Said>,
) -> Option<Standing> {
    let (mut tightest, mut near): (Option<Standing>, _) = (None, false);
    for (n, (rule, (place, result))) in rules.iter().zip(judged).enumerate() {
        let cells = &rule.cells[worker];
        let left = match (said.and_then(|said| said.of(n)), result) {
            (Some(Ok(left)), _) => left,
            (None, Ok(state)) => rule.quota(*place).left(*state, now_ns),
            (Some(Err(_)), _) | (None, Err(_)) => {
                cells.shadow.add(1);
                continue;
            }
        };
        if left.near {
            cells.near.add(1)
        } else {
            cells.allowed.add(1)
        }
        if rule.shadow {
            continue;
        }
        near |= left.near;
        if tightest.is_none_or(|tightest| left.count < tightest.left) {
            let quota::Left { part, count: left, reset_s, .. } = left;
            tightest = Some(Standing { rule: n, part, left, reset_s, near });
        }
    }
    tightest.map(|tightest| Standing { near, ..tightest })
}

#[cfg(test)]
mod tests;
