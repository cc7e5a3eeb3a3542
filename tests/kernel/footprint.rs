//! What the kernel half's maps take of the kernel's memory, and what docs/datapath.md says of it.

use gateway_tests::Upstream;
use gateway_tests::kernel::held;
use gateway_tests::kernel::netns::Network;
use serde_json::{Value, json};

use crate::process::{budget, config, start};

const MOST_BYTES: u64 = 64_000_000;
/// In each of the two lists, whose maps grow with them.
const NETWORKS: u64 = 1_000;
const DOCUMENT: &str = include_str!("../../docs/datapath.md");

/// A map as the kernel tells it.
struct Taken {
    name: String,
    bytes: u64,
    /// That take room.
    entries: u64,
}

impl Taken {
    fn of(map: &Value) -> Self {
        let number = |key: &str| map[key].as_u64().unwrap();
        let grows = map["type"] == json!("lpm_trie");
        let entries = if grows { NETWORKS } else { number("max_entries") };
        Self { name: map["name"].as_str().unwrap().to_owned(), bytes: number("bytes_memlock"), entries }
    }
}

/// The bytes of an entry by the table of the maps, where a map has many.
fn documented(name: &str) -> Option<u64> {
    let row =
        DOCUMENT.lines().find(|line| line.starts_with("| `gw_") && line.contains(&format!("`{name}`")))?;
    row.rsplit('|').nth(2)?.trim().parse().ok()
}

#[test]
fn all_maps_together_take_less_than_64_mb() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let list: Vec<String> = (0..NETWORKS).map(|n| format!("172.{}.{}.0/24", 16 + n / 256, n % 256)).collect();
    let mut kernel = budget(1, 1);
    (kernel["allow"], kernel["deny"]) = (json!(list), json!(list));
    let gateway = start(&network, config(&upstream, kernel), |_| {});
    let held = held::by(&gateway).into_iter().filter(|(kind, _)| *kind == "map");
    let maps: Vec<Taken> =
        held.map(|(kind, id)| Taken::of(&held::bpftool(&[kind, "show", "id", &id.to_string()]))).collect();
    let total: u64 = maps.iter().map(|map| map.bytes).sum();
    assert!(total < MOST_BYTES, "{total}");
    let with_many = maps.iter().filter(|map| map.entries >= NETWORKS);
    let told: Vec<_> = with_many.map(|map| (&*map.name, Some(map.bytes / map.entries))).collect();
    let documented: Vec<_> = told.iter().map(|(name, _)| (*name, documented(name))).collect();
    assert_eq!(told, documented);
}
