//! The step that the store takes for a request: `step.lua`, its arguments and its reply.
//!
//! `store` sends one for all keys of a request that it has no lease of. The script takes no time: the server's own
//! clock decides, so that hosts whose clocks differ agree. Pure.

use std::fmt::Write as _;

use redis::{Cmd, Value};

use crate::config::{LimitKey, LimitRule, OnFailure};
use crate::limit::quota::Part;
use gateway_common::limit::Budget;

/// Takes a request's keys and numbers; run by its hash.
pub const SCRIPT: &str = include_str!("step.lua");
/// Numbers that the reply has for each key.
const NUMBERS: usize = 6;
/// Products of the script stay below the largest number that Lua counts exactly.
const EXACT: u128 = 1 << 52;
const SECOND_US: u64 = 1_000_000;

/// What a rule that gateways share has besides a local one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Of the keys in the store: what makes the rule the same on every gateway.
    prefix: Vec<u8>,
    limit: u32,
    period_us: u64,
    /// Microseconds that the script counts in: one, unless the limit is huge.
    tick_us: u64,
    /// `None`: the window decides alone.
    bucket: Option<Budget>,
    /// Most that one worker holds in advance; one: each request is asked for.
    pub lease: u32,
    pub on_failure: OnFailure,
}

/// What the store says of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    pub granted: u32,
    /// How many more there are, of the tighter of window and bucket.
    pub left: u32,
    pub part: Part,
    /// Where none was left, how long until one is; else, until there can be more than `left`.
    pub pause_us: u64,
    /// To the end of the window, with which leases end.
    pub ends_us: u64,
    /// The window, counted by the store's clock.
    pub window: u64,
}

impl Terms {
    /// `None`: the rule is a local one. `scope` is `*` for the gateway's own rules, else the route's label. The
    /// lease is shared out among `workers`.
    pub fn new(rule: &LimitRule, scope: &str, workers: usize) -> Option<Self> {
        let cluster = rule.cluster?;
        let mut prefix = format!("gateway:limit:{scope}:{}:{:?}:", rule.name, rule.period);
        for (n, part) in rule.key.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            let written = match part {
                LimitKey::Client => write!(prefix, "{comma}client"),
                LimitKey::Route => write!(prefix, "{comma}route"),
                LimitKey::Header(name) => write!(prefix, "{comma}header:{name}"),
                LimitKey::Query(name) => write!(prefix, "{comma}query:{name}"),
            };
            written.expect("a string takes everything");
        }
        prefix.push(':');
        let period_us = u64::from(rule.period.seconds()) * SECOND_US;
        let product = u128::from(rule.limit) * u128::from(period_us);
        let burst = rule.burst.filter(|burst| *burst < rule.limit);
        Some(Self {
            prefix: prefix.into_bytes(),
            limit: rule.limit,
            period_us,
            tick_us: u64::try_from(product.div_ceil(EXACT)).expect("at most a day").max(1),
            bucket: burst.map(|burst| Budget::per(period_us * 1_000, rule.limit, burst)),
            lease: (cluster.lease / u32::try_from(workers).unwrap_or(u32::MAX)).max(1),
            on_failure: cluster.on_failure,
        })
    }

    /// Something to try the script on, which it always grants.
    pub fn probe() -> Self {
        Self {
            prefix: Vec::new(),
            limit: u32::MAX,
            period_us: SECOND_US,
            tick_us: 1,
            bucket: None,
            lease: 1,
            on_failure: OnFailure::Local,
        }
    }

    /// Appends what `key` is called in the store.
    pub fn name(&self, key: &[u8], names: &mut Vec<u8>) {
        names.extend_from_slice(&self.prefix);
        names.extend_from_slice(key);
    }

    fn arguments(&self, want: u32, enforced: bool) -> [u64; 7] {
        let (cost_ns, tolerance_ns) =
            self.bucket.map_or((0, 0), |budget| (budget.cost_ns, budget.tolerance_ns));
        let (limit, want) = (u64::from(self.limit), u64::from(want));
        [want, u64::from(enforced), limit, self.period_us, self.tick_us, cost_ns, tolerance_ns]
    }
}

/// One key of a step.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    pub terms: &'a Terms,
    pub name: &'a [u8],
    pub want: u32,
    /// False for a rule that only watches: it holds nobody else up.
    pub enforced: bool,
}

/// How the script is named to the store: by its hash, or in full where the store has forgotten it.
#[derive(Clone, Copy)]
pub enum By<'a> {
    Hash(&'a str),
    Text,
}

/// The command that takes a step over `claims`.
pub fn command(by: By<'_>, claims: &[Claim<'_>]) -> Cmd {
    let mut command = match by {
        By::Hash(hash) => Cmd::new().arg("EVALSHA").arg(hash).to_owned(),
        By::Text => Cmd::new().arg("EVAL").arg(SCRIPT).to_owned(),
    };
    command.arg(claims.len());
    for claim in claims {
        command.arg(claim.name);
    }
    for claim in claims {
        for number in claim.terms.arguments(claim.want, claim.enforced) {
            command.arg(number);
        }
    }
    command
}

/// What the store says of each of `count` keys; `None`: it is no reply of the script's.
pub fn read(reply: &Value, count: usize) -> Option<Vec<Word>> {
    let Value::Array(values) = reply else { return None };
    if values.len() != count * NUMBERS {
        return None;
    }
    values.chunks_exact(NUMBERS).map(word).collect()
}

fn word(values: &[Value]) -> Option<Word> {
    let number = |at: usize| match &values[at] {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    let count = |at| number(at).and_then(|number| u32::try_from(number).ok());
    let part = match number(2)? {
        0 => Part::Window,
        1 => Part::Burst,
        _ => return None,
    };
    let (pause_us, ends_us, window) = (number(3)?, number(4)?, number(5)?);
    Some(Word { granted: count(0)?, left: count(1)?, part, pause_us, ends_us, window })
}
