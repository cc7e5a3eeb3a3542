//! Networks that were allowed or denied at run time, each with an end and a reason, kept in a file.
//!
//! `kernel` makes them part of every policy, `control` changes them. The configuration's own lists are
//! not here. Times are seconds of the Unix clock, since they outlive the process and the machine's uptime.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum List {
    Allow,
    Deny,
}

/// What is known of a network on a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Entry {
    pub since: u64,
    /// `null`: for good.
    pub until: Option<u64>,
    pub reason: Option<String>,
    /// It counts what it meets, and does nothing.
    #[serde(default)]
    pub trial: bool,
}

/// Both lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    allow: BTreeMap<IpNet, Entry>,
    deny: BTreeMap<IpNet, Entry>,
}

/// Why the file cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("control.state_file {}: cannot be read: {source}", .file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error(
        "control.state_file {}: {source}; it was not written by this gateway: move it away to start with empty lists",
        .file.display()
    )]
    Content { file: PathBuf, source: serde_json::Error },
    #[error(
        "control.state_file {}: cannot be written: {source}; its folder has to be there, and writable for the \
         user that the gateway runs as",
        .file.display()
    )]
    Write { file: PathBuf, source: io::Error },
}

/// The file's content.
#[derive(Serialize, Deserialize)]
struct Document {
    allow: Vec<Row>,
    deny: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    network: IpNet,
    #[serde(flatten)]
    entry: Entry,
}

impl List {
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl FromStr for List {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err("there are the lists \"allow\" and \"deny\""),
        }
    }
}

impl Entry {
    pub fn is_over(&self, now: u64) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

impl Lists {
    pub fn get(&self, list: List) -> &BTreeMap<IpNet, Entry> {
        match list {
            List::Allow => &self.allow,
            List::Deny => &self.deny,
        }
    }

    /// Replaces what is known of that network.
    pub fn add(&mut self, list: List, network: IpNet, entry: Entry) {
        self.get_mut(list).insert(network, entry);
    }

    /// False: it was not there.
    pub fn remove(&mut self, list: List, network: IpNet) -> bool {
        self.get_mut(list).remove(&network).is_some()
    }

    /// Lets go of what is over; says how many that were.
    pub fn expire(&mut self, now: u64) -> usize {
        let held = |lists: &Self| lists.allow.len() + lists.deny.len();
        let before = held(self);
        for list in [List::Allow, List::Deny] {
            self.get_mut(list).retain(|_, entry| !entry.is_over(now));
        }
        before - held(self)
    }

    /// When the next entry is over.
    pub fn next_end(&self) -> Option<u64> {
        self.allow.values().chain(self.deny.values()).filter_map(|entry| entry.until).min()
    }

    /// Empty where there is no file yet.
    pub fn load(file: &Path) -> Result<Self, Error> {
        let bytes = match fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(Error::Read { file: file.to_owned(), source }),
        };
        let document: Document = serde_json::from_slice(&bytes)
            .map_err(|source| Error::Content { file: file.to_owned(), source })?;
        let map = |rows: Vec<Row>| rows.into_iter().map(|row| (row.network, row.entry)).collect();
        Ok(Self { allow: map(document.allow), deny: map(document.deny) })
    }

    /// Puts another file in the old one's place once it is on disk: a crash leaves one or the other.
    pub fn save(&self, file: &Path) -> Result<(), Error> {
        let rows = |map: &BTreeMap<IpNet, Entry>| {
            map.iter().map(|(network, entry)| Row { network: *network, entry: entry.clone() }).collect()
        };
        let document = Document { allow: rows(&self.allow), deny: rows(&self.deny) };
        let text = serde_json::to_vec_pretty(&document).expect("it has string keys and numbers only");
        let mut beside = file.as_os_str().to_owned();
        beside.push(".new");
        let write = || {
            let mut new = File::create(&beside)?;
            new.write_all(&text)?;
            new.sync_all()?;
            fs::rename(&beside, file)
        };
        write().map_err(|source| Error::Write { file: file.to_owned(), source })
    }

    fn get_mut(&mut self, list: List) -> &mut BTreeMap<IpNet, Entry> {
        match list {
            List::Allow => &mut self.allow,
            List::Deny => &mut self.deny,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn entry(until: Option<u64>) -> Entry {
        Entry { since: 100, until, reason: Some("a \"scraper\"\n".to_owned()), trial: until.is_none() }
    }

    #[test]
    fn entries_end_in_their_time() {
        let mut lists = Lists::default();
        for (place, until) in [Some(200), Some(300), None].into_iter().enumerate() {
            lists.add(List::Deny, network(&format!("10.0.0.{place}/32")), entry(until));
        }
        lists.add(List::Allow, network("10.0.0.0/32"), entry(Some(250)));
        let mut steps = Vec::new();
        for now in [0, 199, 200, 299, 300, u64::MAX] {
            steps.push((lists.expire(now), lists.next_end()));
        }
        assert_eq!(
            steps,
            [(0, Some(200)), (0, Some(200)), (1, Some(250)), (1, Some(300)), (1, None), (0, None)]
        );
        assert!(lists.remove(List::Deny, network("10.0.0.2/32")));
        assert!(!lists.remove(List::Deny, network("10.0.0.2/32")));
        assert_eq!(lists, Lists::default());
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        assert_eq!(Lists::load(&file).unwrap(), Lists::default());
        let mut lists = Lists::default();
        lists.add(List::Deny, network("2001:db8::/32"), entry(Some(u64::MAX)));
        lists.add(List::Deny, network("10.0.0.0/8"), entry(Some(5)));
        lists.add(List::Deny, network("10.0.0.0/8"), entry(None));
        lists.add(List::Allow, network("::/0"), Entry { reason: None, ..entry(None) });
        for lists in [Lists::default(), lists] {
            lists.save(&file).unwrap();
            assert_eq!(Lists::load(&file).unwrap(), lists);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_that_cannot_serve_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        for text in ["", "{", "[]", r#"{"allow": []}"#, r#"{"allow": [], "deny": [{"network": "10"}]}"#] {
            fs::write(&file, text).unwrap();
            assert!(matches!(Lists::load(&file), Err(Error::Content { .. })), "{text}");
        }
        assert!(matches!(Lists::load(folder.path()), Err(Error::Read { .. })));
        let nowhere = folder.path().join("no/state.json");
        let error = Lists::default().save(&nowhere).unwrap_err().to_string();
        assert!(error.contains("its folder has to be there"), "{error}");
    }
}
