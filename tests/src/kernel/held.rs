//! What a gateway holds in the kernel: its programs, maps and links, by their identifiers; and a BPF file
//! system for what it pins.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Gateway, PATIENCE};

/// Kind (`prog`, `map`, `link`) and identifier.
pub type Held = BTreeSet<(&'static str, u64)>;

const KINDS: [(&str, &str); 3] = [("prog_id:", "prog"), ("map_id:", "map"), ("link_id:", "link")];

/// Everything that the gateway has a descriptor of. A link's program counts as held, too.
pub fn by(gateway: &Gateway) -> Held {
    by_process(gateway.id())
}

pub fn by_process(id: u32) -> Held {
    let entries = fs::read_dir(format!("/proc/{id}/fdinfo")).expect("it runs");
    // A descriptor may be closed while the others are read.
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.expect("it runs").path()).ok());
    let ids = |text: String| {
        let id = |line: &str| {
            let (_, kind) = KINDS.iter().find(|(name, _)| line.starts_with(name))?;
            Some((*kind, line.split_whitespace().nth(1)?.parse().ok()?))
        };
        text.lines().filter_map(id).collect::<Vec<_>>()
    };
    texts.flat_map(ids).collect()
}

/// A map of the gateway's by its name, through a descriptor of the test's own.
#[track_caller]
pub fn map<T: TryFrom<Map, Error: std::fmt::Debug>>(gateway: &Gateway, name: &str) -> T {
    let held = by(gateway);
    let ids = held.iter().filter(|(kind, _)| *kind == "map").map(|(_, id)| *id);
    let called = |id: &u64| bpftool(&["map", "show", "id", &id.to_string()])["name"] == name;
    let id = ids.into_iter().find(called).expect("it has such a map");
    let map =
        Map::from_map_data(MapData::from_id(id as u32).expect("it is held")).expect("its type is known");
    map.try_into().expect("it is of that type")
}

/// Waits until the kernel has freed all of them.
#[track_caller]
pub fn wait_until_gone(held: &Held) {
    let started = Instant::now();
    loop {
        let left: Vec<_> = held.iter().filter(|(kind, id)| exists(kind, *id)).collect();
        if left.is_empty() {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "still in the kernel: {left:?}");
        std::thread::yield_now();
    }
}

pub fn exists(kind: &str, id: u64) -> bool {
    let mut command = Command::new("bpftool");
    command.args(["-j", kind, "show", "id", &id.to_string()]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.expect("bpftool is installed").success()
}

/// A BPF file system of the test's own.
pub struct BpfFs(TempDir);

impl BpfFs {
    pub fn mount() -> Self {
        let this = Self(TempDir::new().expect("there is room for a folder"));
        let status = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(this.0.path()).status();
        assert!(status.expect("mount is there").success(), "root may mount it");
        this
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Where a gateway may pin.
    pub fn folder(&self) -> PathBuf {
        self.0.path().join("gateway")
    }

    /// Names in [`Self::folder`], in order; none where it is not there.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder()).into_iter().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("it is there").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// A map that a gateway has pinned in [`Self::folder`].
    pub fn map<K: Pod, V: Pod>(&self, name: &str) -> HashMap<MapData, K, V> {
        let names = self.names();
        let maps = names.iter().find(|name| name.starts_with("maps-")).expect("its maps are pinned");
        let data = MapData::from_pin(self.folder().join(maps).join(name)).expect("it is one of them");
        let map = Map::from_map_data(data).expect("its type is known");
        map.try_into().expect("a hash of these keys and values")
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// The answer of `bpftool -j`.
#[track_caller]
pub fn bpftool(arguments: &[&str]) -> Value {
    let output = Command::new("bpftool").arg("-j").args(arguments).output().expect("bpftool is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "bpftool {}: {text}", arguments.join(" "));
    serde_json::from_str(&text).unwrap_or(Value::Null)
}
