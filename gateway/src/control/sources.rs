//! Whose requests are refused most: connection requests by the kernel half, requests by rate limits; and who pushes.

use std::net::IpAddr;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kernel::RuleName;
use super::serve::Control;
use super::{now, on_the_clock};
use crate::datapath::{self, Loud, sys};
use crate::limit::connections::Pusher;
use crate::limit::refusals::Suspect;

/// Of those that the kernel half refused most.
const MOST: usize = 100;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TopSources {
    /// Those with connection requests beyond their budget, the loudest first, 100 at most; `null`: the kernel half
    /// does not run.
    pub connections: Option<Vec<LoudSource>>,
    /// Those that go on in spite of their refusals by rate limits, the most stubborn first.
    pub requests: Vec<SuspectSource>,
    /// Those that open ever more connections beyond `connections.max_per_source` and hardly use one, the one with most
    /// refused first.
    pub pushing: Vec<PushingSource>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoudSource {
    /// An IPv6 address is cut, as budgets cut it.
    pub source: IpAddr,
    /// Connection requests refused since it was last forgotten.
    pub refused: u64,
    /// When the last of them was.
    pub refused_at: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SuspectSource {
    /// An IPv6 address is cut, as limits cut it.
    pub source: IpAddr,
    /// The rate limit that refused it last; `null`: it is configured no more.
    pub rule: Option<RuleName>,
    /// Of the last ten seconds.
    pub requests: u32,
    pub refused: u32,
    /// Refused, and sent before the time that an earlier refusal had named.
    pub ignored: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PushingSource {
    /// An IPv6 address is cut, as limits cut it.
    pub source: IpAddr,
    /// That it holds now.
    pub connections: u32,
    /// Those of them that have brought a whole request, or moved 64 KiB.
    pub used: u32,
    /// Connections of the last ten seconds.
    pub refused: u32,
}

impl Control {
    pub(super) fn sources(&self) -> Result<TopSources, datapath::Error> {
        let loudest = self.kernel.loudest(MOST)?;
        let (now_ns, unix_now) = (sys::monotonic_ns(), now());
        let loud = |Loud { source, refused, refused_at_ns }| LoudSource {
            source: source.into(),
            refused,
            refused_at: on_the_clock(refused_at_ns, now_ns, unix_now),
        };
        let snapshot = self.state.current.load();
        let limits = &snapshot.limits;
        let now = limits.at(Instant::now());
        let mut suspects = limits.refusals.suspects(now);
        suspects.sort_unstable_by_key(|suspect| std::cmp::Reverse(suspect.ignored));
        let suspect = |Suspect { address, rule, requests, refused, ignored }| SuspectSource {
            source: address,
            rule: RuleName::of(rule, &snapshot),
            requests,
            refused,
            ignored,
        };
        let mut pushing = limits.connections.pushing(now);
        pushing.sort_unstable_by_key(|pusher| std::cmp::Reverse(pusher.refused));
        let pusher = |Pusher { address, held, used, refused }| PushingSource {
            source: address,
            connections: held,
            used,
            refused,
        };
        Ok(TopSources {
            connections: loudest.map(|all| all.into_iter().map(loud).collect()),
            requests: suspects.into_iter().map(suspect).collect(),
            pushing: pushing.into_iter().map(pusher).collect(),
        })
    }
}
