//! What the kernel half holds about one source, read without changing it: for `explain`.
//!
//! The verdict is the one that a connection request of that source would meet now, if it came as one of few:
//! what a flood of new sources would make of it is not foretold.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapError};
use aya::{Ebpf, Pod};
use gateway_common::limit::Budget;
use gateway_common::maps::{ALLOW, BUCKET, DENY, KNOWN, PENALTY, STATE};
use gateway_common::policy::{
    Bucket, Charged, FOREVER, HAS_CEILING, Holder, MAY_SEND_COOKIES, Policy, Rule, Source, TRUSTED,
};
use gateway_common::pressure::{ARMED, CAN_ARM, SHED, Shedding, Word};
use gateway_common::standing::{BLOCKED, Class, Known, Penalty, SLOWED_BY};
use gateway_common::{Address, Family, Verdict};
use ipnet::IpNet;

use super::error::Error;
use super::policy::map;
use super::sys;
use crate::config::{Kernel, KernelMode, Listed};

/// One source before the policy in force. Times are monotonic nanoseconds, `now_ns` that of the reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub verdict: Verdict,
    /// It is judged and counted, and nothing is dropped.
    pub monitored: bool,
    /// The network of the list that decides, where one does.
    pub network: Option<IpNet>,
    /// Whether the source ignored its refusals, and how that stands.
    pub penalty: Option<Penalty>,
    pub class: Class,
    /// Packets that met the deny rule or the penalty, or were beyond the ceiling, or connection requests and answers to
    /// cookies beyond the budget.
    pub refused: u64,
    /// When the budget or the ceiling last refused it; 0: lists and penalties do not know.
    pub refused_at_ns: u64,
    /// Connections it could open at once.
    pub left: u64,
    /// When it could open one, as far as the budget or the ceiling that decides goes.
    pub free_at_ns: u64,
    pub now_ns: u64,
}

/// Judges `source` as `admit` of the kernel half would, in its order, but takes nothing.
pub fn read(
    bpf: &Ebpf,
    config: &Kernel,
    slot: u32,
    policy: &Policy,
    has_cookies: bool,
    source: IpAddr,
) -> Result<Account, Error> {
    let (source, now) = (source.to_canonical(), sys::monotonic_ns());
    let family = if source.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let cut = |mask| match source {
        IpAddr::V4(_) => source.into(),
        IpAddr::V6(_) => Address::from(source).masked(mask),
    };
    let (address, client) = (cut(&policy.source_mask), cut(&policy.client_mask));
    let key = Source::new(slot, family, source.into());
    let (allow, deny) = (listed(bpf, ALLOW, key)?, listed(bpf, DENY, key)?);
    let holds = |rule: &Option<Rule>| rule.is_some_and(|rule| rule.until_ns > now);
    let trusted = allow.is_some_and(|rule| rule.flags & TRUSTED != 0);

    let penalty: Option<Penalty> = held(bpf, PENALTY, client)?;
    let penalty = penalty.filter(|penalty| penalty.until_ns > now && !trusted);
    let known: Option<Known> = held(bpf, KNOWN, client)?;
    let class = known.filter(|known| known.until_ns > now).map_or(Class::Unknown, |known| {
        Class::ALL.into_iter().find(|class| *class as u32 == known.class).unwrap_or(Class::Unknown)
    });
    let bucket_of = |charged| held(bpf, BUCKET, Holder::new(address, policy.epoch, charged));
    let own: Option<Bucket> = bucket_of(Charged::Connections)?;
    let full = Bucket { full_at_ns: Budget::full(now), ..Bucket::default() };
    let bucket = bucket_of(Charged::Requests)?.unwrap_or(full);
    // Of both, for whoever looks for what it lost.
    let refused_at_ns = bucket.refused_at_ns.max(own.map_or(0, |own| own.refused_at_ns));
    let refused = bucket.refused + own.map_or(0, |own| own.refused);
    let packets = bucket_of(Charged::Packets)?.unwrap_or(full);
    let budget = if penalty.is_some() { policy.budget.slowed(SLOWED_BY) } else { policy.budget };
    let left = budget.left(bucket.full_at_ns, now);

    let words = Array::<_, u64>::try_from(map(bpf, STATE)?).map_err(Error::map(STATE))?;
    let word = |place| words.get(&place, 0).map_err(Error::map(STATE));
    let is_in_force = |word| Word::read(word, now).is_some();
    let (can_arm, armed) = (is_in_force(word(CAN_ARM)?), is_in_force(word(ARMED)?));
    let mut levels = [0; Class::ALL.len()];
    for (level, place) in levels.iter_mut().zip(SHED..) {
        *level = word(place)?;
    }
    let is_shed = Shedding::read(levels, now)
        .is_some_and(|shedding| shedding.sheds(class, shedding.place(&policy.shed_key, &client)));
    // Only XDP sends packets back, and counts them against a ceiling.
    let answers = config.mode != KernelMode::Tc;
    let could_answer = answers && has_cookies && can_arm && policy.has(MAY_SEND_COOKIES);
    let is_over_ceiling =
        answers && policy.has(HAS_CEILING) && policy.ceiling.left(packets.full_at_ns, now) == 0;
    let is_claim = class != Class::Unknown && !own.is_some_and(|own| own.is_overdrawn(now));

    let (verdict, network, refused) = if holds(&allow) {
        (Verdict::Allowed, around(&config.allow, &config.allow_listed, source, now), 0)
    } else if let (true, Some(rule)) = (holds(&deny), deny) {
        (Verdict::Denied, around(&config.deny, &config.deny_listed, source, now), rule.hits)
    } else if trusted {
        (Verdict::Allowed, around(&config.trusted, &[], source, now), 0)
    } else if let Some(penalty) = penalty.filter(|penalty| penalty.level == BLOCKED) {
        (Verdict::Penalised, None, penalty.hits)
    } else if is_over_ceiling {
        (Verdict::OverCeiling, None, packets.refused)
    } else if let Some(penalty) = penalty.filter(|_| left == 0) {
        (Verdict::Penalised, None, penalty.hits)
    } else if left == 0 && !(could_answer && is_claim) {
        (Verdict::OverBudget, None, refused)
    } else if is_shed {
        (Verdict::Shed, None, refused)
    } else if left == 0 {
        (if armed { Verdict::CookieSent } else { Verdict::Flooded }, None, refused)
    } else {
        (Verdict::Pass, None, refused)
    };
    Ok(Account {
        verdict,
        monitored: policy.monitors(verdict),
        network,
        penalty,
        class,
        refused,
        refused_at_ns: match verdict {
            Verdict::Allowed | Verdict::Denied | Verdict::Penalised => 0,
            Verdict::OverCeiling => packets.refused_at_ns,
            _ => refused_at_ns,
        },
        left,
        free_at_ns: now
            + if verdict == Verdict::OverCeiling {
                policy.ceiling.wait_ns(packets.full_at_ns, now)
            } else {
                budget.wait_ns(bucket.full_at_ns, now)
            },
        now_ns: now,
    })
}

/// The longest network in force that holds the source.
fn around(always: &[IpNet], listed: &[Listed], source: IpAddr, now_ns: u64) -> Option<IpNet> {
    let listed = listed.iter().filter(|listed| listed.until_ns > now_ns && !listed.watched);
    let in_force = always.iter().copied().chain(listed.map(|listed| listed.network));
    in_force.filter(|network| network.contains(&source)).max_by_key(IpNet::prefix_len)
}

/// The rule of the longest network that holds the source.
fn listed(bpf: &Ebpf, name: &'static str, source: Source) -> Result<Option<Rule>, Error> {
    let trie = LpmTrie::<_, Source, Rule>::try_from(map(bpf, name)?).map_err(Error::map(name))?;
    found(trie.get(&Key::new(source.host_bits(), source), 0)).map_err(Error::map(name))
}

/// The packets that each network of a list has met, in the slot in force.
pub fn hits(bpf: &Ebpf, name: &'static str, slot: u32) -> Result<BTreeMap<IpNet, u64>, Error> {
    let trie = LpmTrie::<_, Source, Rule>::try_from(map(bpf, name)?).map_err(Error::map(name))?;
    let mut hits = BTreeMap::new();
    for entry in trie.iter() {
        let (key, rule) = entry.map_err(Error::map(name))?;
        let source = key.data();
        if u32::from(source.slot) == slot {
            let address = IpAddr::from(source.address());
            let bits = key.prefix_len().saturating_sub(Source::bits(0));
            let network = u8::try_from(bits).ok().and_then(|bits| IpNet::new(address, bits).ok());
            hits.extend(network.map(|network| (network, rule.hits)));
        }
    }
    Ok(hits)
}

fn held<K: Pod, V: Pod>(bpf: &Ebpf, name: &'static str, key: K) -> Result<Option<V>, Error> {
    let map = HashMap::<_, K, V>::try_from(map(bpf, name)?).map_err(Error::map(name))?;
    found(map.get(&key, 0)).map_err(Error::map(name))
}

fn found<V>(result: Result<V, MapError>) -> Result<Option<V>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The monotonic time of a second of the Unix clock; `None`: never.
pub fn until_ns(until: Option<u64>, unix_now: u64) -> u64 {
    until.map_or(FOREVER, |until| {
        let left = until.saturating_sub(unix_now).saturating_mul(1_000_000_000);
        sys::monotonic_ns().saturating_add(left)
    })
}
