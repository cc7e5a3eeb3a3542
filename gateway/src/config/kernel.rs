//! What the kernel half defends against, and how: the keys of `kernel` beside interfaces, budget and lists.
//!
//! Part of `file`, which calls it. Also the budget that a gateway's own rate limits stand for.

use gateway_common::{Action, Verdict};
use ipnet::IpNet;

use super::document::{Node, Object};
use super::{Config, LimitKey, LimitRule};

/// A rate and a burst of the packets of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceiling {
    pub per_second: u32,
    pub burst: u32,
}

/// How far ignoring refusals may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Escalation {
    Off,
    /// To a tenth of the budget of new connections.
    Slow,
    /// To the end of all connections, and of all packets for a while.
    Drop,
}

/// A network of a list that is in force for a time, or on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    pub network: IpNet,
    /// In monotonic nanoseconds; `gateway_common::policy::FOREVER` has no end.
    pub until_ns: u64,
    /// Counts what it meets and does nothing.
    pub watched: bool,
}

pub(super) const ESCALATIONS: [(&str, Escalation); 3] =
    [("off", Escalation::Off), ("slow", Escalation::Slow), ("drop", Escalation::Drop)];

/// Connections a client may open for each request that its limit lets through.
const PER_REQUEST: u64 = 4;
/// A browser opens as many on its own.
const LEAST_PER_SECOND: u64 = 100;
const LEAST_BURST: u64 = 500;
const MOST: u64 = super::file::MAX_CONNECTIONS;
/// Ticks a second of the coarsest clock that the kernel half's may be (CONFIG_HZ=100): all that comes within one comes at
/// once.
const TICKS: u64 = 100;
/// Where a rate is lower, less than a tenth of it can be lost.
const LOSES_LITTLE: u32 = 10;

/// The set of verdicts that are only counted: all, none, or those of a list.
pub(super) fn monitored(node: &Node<'_>) -> Option<u32> {
    let acting = Verdict::ALL.into_iter().filter(|verdict| verdict.row().action != Action::Pass);
    let known: Vec<_> = acting.map(|verdict| (verdict.row().name, verdict)).collect();
    let listed = |node: &Node<'_>| {
        let names = node.list("true, false, or a list of verdicts")?;
        let verdicts = node.distinct(&names, |node| node.choice("verdict that drops", &known));
        Some(verdicts.into_iter().fold(0, |set, verdict| set | verdict.bit()))
    };
    node.list_or(listed, |node| node.boolean().map(|all| if all { u32::MAX } else { 0 }))
}

pub(super) fn ceiling(keys: &mut Object<'_>) -> Option<Ceiling> {
    const COUNT: std::ops::RangeInclusive<u64> = 1..=MOST;
    let per_second = keys.optional("packets_per_second", |node| node.integer(COUNT));
    let burst = keys.optional("packet_burst", |node| node.integer(COUNT));
    if burst.is_some() && per_second.is_none() && !keys.has("packets_per_second") {
        keys.fault("packet_burst", "there is no ceiling: write `packets_per_second` too");
    }
    per_second.map(|per_second| Ceiling { per_second, burst: burst.unwrap_or(per_second) })
}

/// Connections a second and at once that the rate limits leave a use for: where every route limits every
/// client by its address. `None` where some route does not, for nobody knows then what a client may need.
pub(super) fn budget(config: &Config) -> Option<(u32, u32)> {
    let section = config.rate_limit.as_ref()?;
    if !section.enabled {
        return None;
    }
    let global = tightest(section.rules.iter());
    let mut sum = (0.0, 0);
    for route in &config.routes {
        let default = section.default_rate_per_minute.filter(|_| route.rate_limits.is_empty());
        let short = route.rate_limit_per_minute.or(default).map(|limit| {
            let burst = route.burst_size.or(section.burst_size).unwrap_or(limit);
            (f64::from(limit) / 60.0, u64::from(burst.min(limit)))
        });
        let own = [short, tightest(route.rate_limits.iter())].into_iter().flatten().reduce(less);
        let (per_second, burst) = match (own, global) {
            (Some(own), Some(global)) => less(own, global),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return None,
        };
        sum = (sum.0 + per_second, sum.1 + burst);
    }
    // One count for all routes.
    let (per_second, burst) = global.map_or(sum, |global| less(sum, global));
    let per_second = (per_second * PER_REQUEST as f64).ceil() as u64;
    let within = |count: u64, least| count.clamp(least, MOST) as u32;
    let per_second = within(per_second, LEAST_PER_SECOND);
    let burst = burst.saturating_mul(PER_REQUEST).max(of_a_tick(per_second));
    Some((per_second, within(burst, LEAST_BURST)))
}

/// The least burst with which nothing of a rate is lost: what a tick earns, and one that was left before.
fn of_a_tick(per_second: u32) -> u64 {
    1 + u64::from(per_second).div_ceil(TICKS)
}

/// What to raise a burst to, where it is so small that the rate is never reached.
pub(super) fn too_small(per_second: u32, burst: u32) -> Option<u64> {
    let least = of_a_tick(per_second);
    (per_second >= LOSES_LITTLE && u64::from(burst) < least).then_some(least)
}

/// Requests a second and at once that rules by the client's address let through.
fn tightest<'a>(rules: impl Iterator<Item = &'a LimitRule>) -> Option<(f64, u64)> {
    let by_client = rules.filter(|rule| !rule.shadow && rule.key == [LimitKey::Client]);
    let allowed = by_client.map(|rule| {
        let per_second = f64::from(rule.limit) / f64::from(rule.period.seconds());
        (per_second, rule.burst.unwrap_or(rule.limit).into())
    });
    allowed.reduce(less)
}

fn less(one: (f64, u64), other: (f64, u64)) -> (f64, u64) {
    (one.0.min(other.0), one.1.min(other.1))
}

/// Networks of `deny` that never act, since `allow` has all of them.
pub(super) fn in_vain<'a>(allow: &'a [IpNet], deny: &'a [IpNet]) -> impl Iterator<Item = &'a IpNet> {
    deny.iter().filter(|network| allow.iter().any(|allowed| allowed.contains(*network)))
}

#[cfg(test)]
mod tests {
    use gateway_common::limit::Budget;

    use super::*;

    fn derived(limits: &str, routes: &[&str]) -> Option<(u32, u32)> {
        let routes: Vec<String> = routes
            .iter()
            .enumerate()
            .map(|(n, limit)| format!(r#"{{"path": "/{n}", "backend": "http://a"{limit}}}"#))
            .collect();
        let text = format!(r#"{{"routes": [{}]{limits}}}"#, routes.join(","));
        budget(&super::super::parse(&text, "test").unwrap())
    }

    #[test]
    fn a_budget_is_four_connections_a_request() {
        const NO_LIMITS: &str = "";
        const DEFAULT: &str = r#", "rate_limit": {"default_rate_per_minute": 6000}"#;
        const GLOBAL: &str = r#", "rate_limit": {"rules": [{"name": "g", "limit": 200, "per": "second"}]}"#;
        const ON: &str = r#", "rate_limit": {}"#;
        const OFF: &str = r#", "rate_limit": {"enabled": false, "default_rate_per_minute": 6000}"#;
        let by_key = r#", "rate_limits": [{"name": "k", "limit": 9, "per": "day", "key": "api_key"}]"#;
        let second = r#", "rate_limits": [{"name": "s", "limit": 100, "per": "second", "burst": 10}]"#;
        let shadow = r#", "rate_limits": [{"name": "s", "limit": 9, "per": "day", "shadow": true}]"#;
        for (limits, routes, want) in [
            (NO_LIMITS, &[""][..], None),
            (ON, &[""], None),
            (OFF, &[""], None),
            (DEFAULT, &[""], Some((400, 24_000))),
            (DEFAULT, &["", ""], Some((800, 48_000))),
            // Counted by something else, in a route that therefore has no default either.
            (DEFAULT, &["", by_key], None),
            (DEFAULT, &["", shadow], None),
            (ON, &[second], Some((400, 500))),
            (ON, &[second, ""], None),
            (ON, &[r#", "rate_limit_per_minute": 6, "burst_size": 2"#], Some((100, 500))),
            // One count for all routes, however many.
            (GLOBAL, &["", "", ""], Some((800, 800))),
            (GLOBAL, &[second], Some((400, 500))),
        ] {
            assert_eq!(derived(limits, routes), want, "{limits} {routes:?}");
        }
    }

    /// By the budget itself, at a clock of so many ticks a second, asked far more often than it grants.
    #[test]
    fn a_burst_below_a_tick_of_its_rate_is_told() {
        let granted = |per_second, burst| {
            const TICK_NS: u64 = 1_000_000_000 / TICKS;
            let budget = Budget::new(per_second, burst);
            let (mut word, mut count) = (Budget::full(0), 0_u32);
            for now in (0..TICKS * 10).map(|tick| 1_000 * TICK_NS * TICKS + tick * TICK_NS) {
                while let Some(next) = budget.take(word, now) {
                    (word, count) = (next, count + 1);
                }
            }
            count
        };
        for (per_second, burst, least) in [
            (1, 1, None),
            (9, 1, None),
            (10, 1, Some(2)),
            (99, 1, Some(2)),
            (99, 2, None),
            (500, 1, Some(6)),
            (500, 5, Some(6)),
            (500, 6, None),
            (505, 6, Some(7)),
            (500, 2_000, None),
            (50_000, 100, Some(501)),
            (1_000_000, 10_000, Some(10_001)),
            (1_000_000, 10_001, None),
        ] {
            assert_eq!(too_small(per_second, burst), least, "{per_second}, {burst}");
            let full = |burst| f64::from(granted(per_second, burst)) / f64::from(per_second * 10);
            let reached = least.map_or(burst, |least| least as u32);
            assert!(full(reached) > 0.9, "{per_second}, {reached}: {}", full(reached));
        }
        assert!(granted(500, 1) <= 1_000 && granted(50_000, 100) <= 100_100, "a fifth of either");
    }

    #[test]
    fn a_deny_inside_an_allow_is_told() {
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let allow = networks(&["10.0.0.0/8", "2001:db8::/32"]);
        let deny = networks(&["10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "192.0.2.0/24", "2001:db8:1::/48"]);
        let told: Vec<String> = in_vain(&allow, &deny).map(ToString::to_string).collect();
        assert_eq!(told, ["10.1.0.0/16", "10.0.0.0/8", "2001:db8:1::/48"]);
    }
}
