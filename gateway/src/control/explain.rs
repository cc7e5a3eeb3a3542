//! What would happen to a source now: to its next connection request in the kernel half, to its next
//! request in the proxy, by which rule, until when, and how to change that.
//!
//! `cli` shows it. Nothing is taken or counted by asking.

use std::net::IpAddr;
use std::time::Instant;

use gateway_common::standing::{OF_CONNECTIONS, Penalty, SLOWED};
use gateway_common::{Action, Verdict};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kernel::RuleName;
use super::{now, on_the_clock};
use crate::config::Config;
use crate::datapath::{self, Account};
use crate::kernel::Kernel;
use crate::limit::quota::seconds;
use crate::lists::{List, Lists};
use crate::proxy::identity::{Identity, is_trusted};
use crate::proxy::rank::class_of;
use crate::snapshot::{Route, Snapshot};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    pub source: IpAddr,
    /// `null`: the kernel half does not run, nothing is dropped before the proxy.
    pub kernel: Option<Connections>,
    pub proxy: Requests,
}

/// The source before the kernel half.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Connections {
    /// As in `gateway_kernel_packets_total`.
    pub verdict: String,
    pub dropped: bool,
    /// It would be dropped if `kernel.monitor` were off.
    pub monitored: bool,
    pub rule: String,
    pub since: Option<u64>,
    pub until: Option<u64>,
    pub reason: Option<String>,
    /// Packets that met the deny rule or the penalty, or were beyond the budget or the ceiling.
    pub refused: u64,
    /// When a budget or the ceiling refused the last of them.
    pub last_refused: Option<u64>,
    /// How well it is known: `unknown`, `known` or `proven`.
    pub class: String,
    /// Of its penalty, where it has one: 1 or 2.
    pub level: Option<u32>,
    /// Connections it could open at once.
    pub left: u64,
    pub change: String,
}

/// The source before the proxy, as the peer of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Requests {
    /// Limits know it as this: IPv6 addresses are cut.
    pub client: IpAddr,
    /// How well it is known: `unknown`, `known` or `proven`. Where the gateway is short, who is known less gives way.
    pub class: String,
    /// It is believed when it says whom it speaks for, and those are limited instead.
    pub trusted_proxy: bool,
    /// Some route would refuse it.
    pub refused: bool,
    pub rules: Vec<RuleState>,
    /// `null`: no refusal lately.
    pub last_ten_seconds: Option<Recent>,
    pub change: Option<String>,
}

/// A rule that counts by client or by route; those that count by a header or parameter take a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RuleState {
    pub route: String,
    /// As in the 429 and in `RateLimit-Policy`.
    pub rule: String,
    pub limit: u32,
    pub left: u32,
    /// It counts what it would refuse, and refuses nothing.
    pub shadow: bool,
    /// Refused, and admitted again after so many seconds.
    pub wait_seconds: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Recent {
    pub requests: u32,
    pub refused: u32,
    /// Refused, and sent before the time that an earlier refusal had named.
    pub ignored: u32,
}

pub fn explain(kernel: &Kernel, snapshot: &Snapshot, source: IpAddr) -> Result<Explanation, datapath::Error> {
    let source = source.to_canonical();
    let account = kernel.account(source).transpose()?;
    Ok(Explanation {
        source,
        kernel: account.map(|account| connections(&account, snapshot, &kernel.lists(), source, now())),
        proxy: requests(snapshot, source, Instant::now()),
    })
}

/// The rule that decides, and what there is to say of it.
struct Reason {
    rule: String,
    since: Option<u64>,
    until: Option<u64>,
    reason: Option<String>,
    change: String,
}

fn connections(
    account: &Account,
    snapshot: &Snapshot,
    lists: &Lists,
    source: IpAddr,
    unix_now: u64,
) -> Connections {
    let verdict = account.verdict;
    let drops = verdict.row().action == Action::Drop;
    let at = |ns| on_the_clock(ns, account.now_ns, unix_now);
    let Reason { rule, since, until, reason, change } = match (account.network, &account.penalty) {
        (Some(network), _) => listed(verdict, network, &snapshot.config, lists),
        (None, Some(penalty)) if verdict == Verdict::Penalised => Reason {
            since: Some(at(penalty.since_ns)),
            until: Some(at(penalty.until_ns)),
            ..penalised(penalty, snapshot, source)
        },
        (None, _) if verdict == Verdict::Shed => Reason {
            rule: format!(
                "kernel.shedding: the gateway is in distress, and \"{}\" sources are refused in part",
                account.class.name()
            ),
            since: None,
            until: None,
            reason: None,
            change: format!("wait, which in some seconds meets others, or `gateway allow add {source}`"),
        },
        (None, _) if verdict == Verdict::OverCeiling => {
            Reason { until: Some(at(account.free_at_ns)), ..ceiling(&snapshot.config, source) }
        }
        (None, _) => {
            Reason { until: drops.then(|| at(account.free_at_ns)), ..budget(&snapshot.config, source) }
        }
    };
    Connections {
        verdict: verdict.row().name.to_owned(),
        dropped: drops && !account.monitored,
        monitored: drops && account.monitored,
        rule,
        since,
        until,
        reason,
        refused: account.refused,
        last_refused: (account.refused_at_ns != 0).then(|| at(account.refused_at_ns)),
        class: account.class.name().to_owned(),
        level: account.penalty.map(|penalty| penalty.level),
        left: account.left,
        change,
    }
}

fn listed(verdict: Verdict, network: IpNet, config: &Config, lists: &Lists) -> Reason {
    let (list, configured) = if verdict == Verdict::Allowed {
        (List::Allow, &config.kernel.allow)
    } else {
        (List::Deny, &config.kernel.deny)
    };
    let name = list.name();
    let plain = |rule, change| Reason { rule, since: None, until: None, reason: None, change };
    if let Some(place) = configured.iter().position(|own| *own == network) {
        plain(
            format!("kernel.{name}[{place}] {network}"),
            format!("remove {network} from kernel.{name} and reload"),
        )
    } else if let Some(entry) = lists.get(list).get(&network) {
        Reason {
            since: Some(entry.since),
            until: entry.until,
            reason: entry.reason.clone(),
            ..plain(
                format!("{network} on the {name} list, by `gateway {name} add`"),
                format!("gateway {name} del {network}"),
            )
        }
    } else {
        plain(
            format!("trusted_proxies {network}: its clients are limited in its place"),
            format!("remove {network} from trusted_proxies and reload"),
        )
    }
}

fn penalised(penalty: &Penalty, snapshot: &Snapshot, source: IpAddr) -> Reason {
    let why = why(penalty, snapshot);
    let what = match penalty.level {
        SLOWED => "a tenth of its budget",
        _ => "every packet is dropped",
    };
    Reason {
        rule: format!("penalty of level {} ({what}): {why}", penalty.level),
        since: None,
        until: None,
        reason: None,
        change: format!("wait, or `gateway allow add {source}`, or kernel.escalation \"off\" and reload"),
    }
}

/// What the source did.
fn why(penalty: &Penalty, snapshot: &Snapshot) -> String {
    let Penalty { refused, ignored, .. } = penalty;
    if penalty.rule == OF_CONNECTIONS {
        let most = snapshot.config.connections.max_per_source;
        return format!(
            "{refused} connections beyond connections.max_per_source {most} within 10 s, and hardly one that it holds is used"
        );
    }
    let rule = match RuleName::of(penalty.rule, snapshot) {
        Some(RuleName { route, rule }) => format!("rule \"{rule}\" of route {route}"),
        None => "a rule that is configured no more".to_owned(),
    };
    format!("{ignored} of {refused} refusals by {rule} ignored within 10 s")
}

fn budget(config: &Config, source: IpAddr) -> Reason {
    let kernel = &config.kernel;
    let (per_second, burst) = (kernel.connections_per_second, kernel.connection_burst);
    Reason {
        rule: format!("kernel.connections_per_second {per_second}, kernel.burst {burst}"),
        since: None,
        until: None,
        reason: None,
        change: format!(
            "raise kernel.connections_per_second or kernel.burst and reload, or `gateway allow add {source}`"
        ),
    }
}

fn ceiling(config: &Config, source: IpAddr) -> Reason {
    let (per_second, burst) =
        config.kernel.ceiling.map_or((0, 0), |ceiling| (ceiling.per_second, ceiling.burst));
    Reason {
        rule: format!("kernel.packets_per_second {per_second}, kernel.packet_burst {burst}"),
        since: None,
        until: None,
        reason: None,
        change: format!(
            "raise kernel.packets_per_second or kernel.packet_burst and reload, or `gateway allow add {source}`"
        ),
    }
}

fn requests(snapshot: &Snapshot, source: IpAddr, now: Instant) -> Requests {
    let (config, limits) = (&snapshot.config, &snapshot.limits);
    let client = Identity::of_peer(source, false, config.client_ipv6_prefix).address;
    let now_ns = limits.at(now);
    let of_route = |route: &Route| {
        let looks = limits.look(&route.limits, client, now_ns);
        let state = |look: crate::limit::Look| {
            let rule = route.limits.rule(look.rule);
            let (part, left, wait_seconds) = match look.answer {
                Ok(left) => (left.part, left.count, None),
                Err(refused) => (refused.part, 0, Some(seconds(refused.wait_ns))),
            };
            RuleState {
                route: route.label.clone(),
                rule: rule.policy(part).to_owned(),
                limit: rule.limit(part),
                left,
                shadow: rule.shadow,
                wait_seconds,
            }
        };
        looks.into_iter().map(state).collect::<Vec<_>>()
    };
    let rules: Vec<RuleState> = snapshot.routes.iter().flat_map(of_route).collect();
    let refusing = rules.iter().find(|rule| rule.wait_seconds.is_some() && !rule.shadow);
    let change = refusing.map(|rule| {
        let wait = rule.wait_seconds.unwrap_or_default();
        format!("wait {wait} s, or raise \"{}\" of route {} and reload", rule.rule, rule.route)
    });
    let recent = limits.refusals.of(client, now_ns);
    Requests {
        client,
        class: class_of(snapshot, source, false).name().to_owned(),
        trusted_proxy: is_trusted(source, &config.trusted_proxies),
        refused: refusing.is_some(),
        last_ten_seconds: recent.map(|recent| Recent {
            requests: recent.requests,
            refused: recent.refused,
            ignored: recent.ignored,
        }),
        change,
        rules,
    }
}
