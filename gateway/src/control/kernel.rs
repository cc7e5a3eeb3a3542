//! The kernel half: where it judges, what it did, how full it is, and whom it refuses.

use std::net::IpAddr;

use gateway_common::standing::{Class, OF_CONNECTIONS, Penalty};
use gateway_common::{Count, Family, Verdict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::serve::Control;
use super::{now, on_the_clock};
use crate::datapath::{self, Fill, Hook};
use crate::kernel::Reading;
use crate::snapshot::Snapshot;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KernelHalf {
    /// Whether it judges packets.
    pub running: bool,
    /// `null`: it runs.
    pub why_not: Option<String>,
    /// `null`: it does not run.
    pub figures: Option<KernelFigures>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KernelFigures {
    /// The configured ones.
    pub interfaces: Vec<Hooked>,
    /// What became of packets since the start, by verdict and family.
    pub packets: Vec<Judged>,
    pub maps: Vec<Held>,
    pub penalties: Vec<Penalised>,
    pub shed: Vec<Shed>,
    pub cookies: Cookies,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hooked {
    pub name: String,
    /// `null`: it is away, or somebody else holds its hook.
    pub mode: Option<Hook>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Judged {
    /// As in `gateway_kernel_packets_total`.
    pub verdict: String,
    pub family: String,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Held {
    pub map: String,
    pub entries: u64,
    pub max_entries: u64,
}

/// A source that ignored its refusals, or went on opening connections beyond what it may have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Penalised {
    /// An IPv6 address is cut, as limits cut it.
    pub source: IpAddr,
    /// 1: it has a tenth of its budget. 2: its packets are dropped.
    pub level: u32,
    /// The rate limit whose refusals it ignored, `connections.max_per_source` of route `*` where connections were
    /// refused; `null`: it is configured no more.
    pub rule: Option<RuleName>,
    pub since: u64,
    pub until: u64,
    /// Refusals that led to it, in ten seconds.
    pub refused: u32,
    /// Those of them that it ignored; of connections, none.
    pub ignored: u32,
    /// Packets that it has cost since.
    pub packets: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RuleName {
    /// As metrics and logs have it.
    pub route: String,
    pub rule: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Shed {
    /// `unknown`, `known` or `proven`.
    pub class: String,
    /// Part of its sources whose connection requests are shed, from 0 to 1.
    pub ratio: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cookies {
    /// They are sent where they are due.
    pub armed: bool,
    pub sent: u64,
    pub accepted: u64,
}

impl Control {
    pub(super) fn kernel_half(&self) -> Result<KernelHalf, datapath::Error> {
        let reading = self.kernel.read()?;
        Ok(KernelHalf {
            running: reading.is_some(),
            why_not: reading.is_none().then(|| self.kernel.why_not()),
            figures: reading.map(|reading| figures(reading, &self.state.current.load())),
        })
    }
}

fn figures(reading: Reading, snapshot: &Snapshot) -> KernelFigures {
    let Reading { interfaces, counters, fill, penalties, heartbeat, now_ns } = reading;
    let unix_now = now();
    let judged = |(verdict, family, count): (Verdict, Family, Count)| Judged {
        verdict: verdict.row().name.to_owned(),
        family: family.name().to_owned(),
        packets: count.packets,
        bytes: count.bytes,
    };
    let held = |Fill { map, entries, most }| Held { map: String::from(map), entries, max_entries: most };
    let penalised = |(source, penalty): (IpAddr, Penalty)| Penalised {
        source,
        level: penalty.level,
        rule: RuleName::of(penalty.rule, snapshot),
        since: on_the_clock(penalty.since_ns, now_ns, unix_now),
        until: on_the_clock(penalty.until_ns, now_ns, unix_now),
        refused: penalty.refused,
        ignored: penalty.ignored,
        packets: penalty.hits,
    };
    let shed = Class::ALL.into_iter().zip(heartbeat.shed_ratios());
    KernelFigures {
        interfaces: interfaces.into_iter().map(|(name, mode)| Hooked { name, mode }).collect(),
        packets: counters.iter().map(judged).collect(),
        maps: fill.into_iter().map(held).collect(),
        penalties: penalties.into_iter().map(penalised).collect(),
        shed: shed.map(|(class, ratio)| Shed { class: class.name().to_owned(), ratio }).collect(),
        cookies: Cookies {
            armed: heartbeat.cookies_armed,
            sent: counters.packets(Verdict::CookieSent),
            accepted: counters.packets(Verdict::CookieAccepted),
        },
    }
}

impl RuleName {
    /// The rule of this number.
    pub(super) fn of(number: u32, snapshot: &Snapshot) -> Option<Self> {
        if number == OF_CONNECTIONS {
            return Some(Self { route: "*".to_owned(), rule: "connections.max_per_source".to_owned() });
        }
        snapshot.routes.iter().find_map(|route| {
            let rule = route.limits.iter().find(|rule| rule.number == number)?;
            Some(Self { route: route.label.clone(), rule: rule.name().to_owned() })
        })
    }
}
