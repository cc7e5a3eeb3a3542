//! Networks allowed or denied at run time: shown, added, taken off.

use http::StatusCode;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::now;
use super::problem::Problem;
use super::serve::Control;
use crate::config::unmapped;
use crate::datapath;
use crate::lists::{Entry, List};

/// Longest reason for an entry.
pub const MAX_REASON_BYTES: usize = 200;

/// A network to be put on a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Added {
    #[schemars(with = "String")]
    pub network: IpNet,
    /// For so long; without it, for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// Why, for those who ask later: 200 bytes at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Count what it meets, and do nothing.
    #[serde(default)]
    pub trial: bool,
}

/// It is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    pub message: String,
    /// What it does not do.
    pub note: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Entries {
    pub entries: Vec<Listed>,
}

/// A network on a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listed {
    #[schemars(with = "String")]
    pub network: IpNet,
    /// `null`: it stands in the configuration.
    pub entry: Option<Entry>,
    /// That it has met; `null`: the kernel half does not run.
    pub packets: Option<u64>,
}

impl Control {
    pub(super) fn add(&self, list: List, added: Added) -> Result<Done, Problem> {
        self.is_free()?;
        let Added { network, seconds, reason, trial } = added;
        let network = unmapped(network);
        if network != network.trunc() {
            return Err(Problem::unclear(format!("{network} has bits set behind its prefix length")));
        }
        if reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON_BYTES) {
            return Err(Problem::unclear(format!("the reason is longer than {MAX_REASON_BYTES} bytes")));
        }
        let now = now();
        let until = seconds.map(|seconds| now.saturating_add(seconds));
        self.kernel.change(now, |lists| {
            lists.add(list, network, Entry { since: now, until, reason: reason.clone(), trial });
        })?;
        self.lists_changed.notify_one();
        tracing::info!(list = list.name(), %network, until, reason, "added at run time");
        let message = match seconds {
            Some(seconds) => format!("{} {network} for {seconds} s", list.name()),
            None => format!("{} {network} for good", list.name()),
        };
        Ok(Done { message, note: self.note(list, network) })
    }

    pub(super) fn del(&self, list: List, network: IpNet) -> Result<Done, Problem> {
        self.is_free()?;
        let (name, network) = (list.name(), unmapped(network));
        let is_configured = || self.configured(list).contains(&network);
        if self.kernel.change(now(), |lists| lists.remove(list, network))? {
            self.lists_changed.notify_one();
            tracing::info!(list = name, %network, "removed at run time");
            let message = format!("{network} is on the {name} list no more");
            let note = is_configured().then(|| {
                format!("kernel.{name} of the configuration has it too: remove it there and reload")
            });
            return Ok(Done { message, note });
        }
        Err(match is_configured() {
            true => Problem::new(
                StatusCode::CONFLICT,
                format!("{network} stands in kernel.{name} of the configuration: remove it there and reload"),
            ),
            false => Problem::new(StatusCode::NOT_FOUND, format!("{network} is not on the {name} list")),
        })
    }

    pub(super) fn list(&self, list: List) -> Result<Entries, datapath::Error> {
        let hits = self.kernel.hits(list)?;
        let listed = |network: IpNet, entry| Listed { network, entry, packets: hits.get(&network).copied() };
        let configured = self.configured(list).into_iter().map(|network| listed(network, None));
        let lists = self.kernel.lists();
        let added = lists.get(list).iter().filter(|(_, entry)| !entry.is_over(now()));
        let added = added.map(|(network, entry)| listed(*network, Some(entry.clone())));
        Ok(Entries { entries: configured.chain(added).collect() })
    }

    /// Whether a change would last: a successor has things as they were.
    pub(super) fn is_free(&self) -> Result<(), Problem> {
        match self.is_followed() {
            true => Err(Problem::new(
                StatusCode::CONFLICT,
                "another gateway is taking over, with lists and endpoints as they were: ask again in a moment",
            )),
            false => Ok(()),
        }
    }

    fn configured(&self, list: List) -> Vec<IpNet> {
        let snapshot = self.state.current.load();
        let kernel = &snapshot.config.kernel;
        match list {
            List::Allow => kernel.allow.clone(),
            List::Deny => kernel.deny.clone(),
        }
    }

    /// Why the entry does not do all that one might think.
    fn note(&self, list: List, network: IpNet) -> Option<String> {
        if !self.kernel.is_running() {
            return Some(
                "the kernel half does not run here: the entry is kept, and nothing is dropped".into(),
            );
        }
        let lists = self.kernel.lists();
        let added = lists.get(List::Allow).iter().filter(|(_, entry)| !entry.trial && !entry.is_over(now()));
        let added = added.map(|(network, _)| *network);
        let allowed = self.configured(List::Allow).into_iter().chain(added);
        let stronger = match list {
            List::Allow => None,
            List::Deny => allowed.into_iter().find(|allowed| allowed.contains(&network)),
        };
        stronger
            .map(|allowed| format!("{allowed} is on the allow list, which is stronger: nothing is dropped"))
    }
}
