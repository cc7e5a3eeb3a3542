//! The kernel half refuses a reload, before it has changed anything and in the middle of it: neither half changes,
//! and the next good one works.

use std::fs;
use std::net::IpAddr;

use aya::maps::MapData;
use aya::maps::lpm_trie::{Key, LpmTrie};
use gateway_common::Family;
use gateway_common::maps::{ALLOW, DENY, MAX_NETWORKS};
use gateway_common::policy::{Rule, SLOTS, Source};
use gateway_tests::kernel::held;
use gateway_tests::kernel::netns::Network;
use gateway_tests::{Gateway, Upstream};
use serde_json::{Value, json};

use crate::process::{LOUD, QUIET, budget, config, is_served, reaches, start};
use crate::traffic::connect;

const REFUSED: &str = "configuration refused";

struct Rig {
    network: Network,
    upstream: Upstream,
    gateway: Gateway,
    generation: f64,
}

/// `QUIET` is denied, everybody else has plenty.
fn rig() -> Rig {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, to(&upstream, strict(&[])), |_| {});
    assert!(is_served(&network, gateway.address));
    Rig { network, upstream, gateway, generation: 1.0 }
}

/// One worker: it has one connection to the upstream, whoever asks.
fn to(upstream: &Upstream, kernel: Value) -> Value {
    let mut config = config(upstream, kernel);
    config["workers"] = json!(1);
    config
}

fn strict(more: &[(&str, Value)]) -> Value {
    let mut kernel = budget(1_000, 1_000);
    kernel["deny"] = json!([QUIET]);
    more.iter().for_each(|(key, value)| kernel[*key] = value.clone());
    kernel
}

/// So many networks, from `first` on.
fn networks(first: u32, count: usize) -> Value {
    let address = |n: usize| std::net::Ipv4Addr::from_bits(first + n as u32).to_string();
    json!((0..count).map(address).collect::<Vec<_>>())
}

const A: u32 = 0x6440_0000;
const B: u32 = 0x6450_0000;

impl Rig {
    /// What a process may leak, besides what it holds in the kernel.
    fn open(&self) -> (usize, usize) {
        let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", self.gateway.id())).unwrap().count();
        (count("fd"), count("task"))
    }

    /// A reload to `kernel`, other routes and an access log is refused for each of `says`, and leaves nothing.
    #[track_caller]
    fn refuses(&self, kernel: Value, says: &[&str]) {
        let (before, open) = (held::by(&self.gateway), self.open());
        let mut next = to(&self.upstream, kernel);
        next["routes"][0]["path"] = json!("/elsewhere");
        next["access_log"] = json!({ "to": self.gateway.directory().join("access.log") });
        self.gateway.replace(next);
        let refused = self.gateway.log.wait_for(REFUSED);
        assert!(says.iter().all(|says| refused.contains(says)), "{refused}");
        self.is_as_before();
        let scrape = self.network.gateway.run(|| self.gateway.scrape());
        assert_eq!(scrape.get("gateway_config_last_reload_successful", &[]), Some(0.0));
        assert_eq!(scrape.get("gateway_config_generation", &[]), Some(self.generation));
        let health = self.network.gateway.run(|| self.gateway.admin("/health")).json();
        assert_eq!(health["status"], "degraded", "{health}");
        assert_eq!(held::by(&self.gateway), before, "what it holds in the kernel");
        // The log's file and thread; connections of the test's own end in their time.
        let started = std::time::Instant::now();
        while self.open().0 > open.0 || self.open().1 > open.1 {
            assert!(started.elapsed() < gateway_tests::PATIENCE, "{:?} and {open:?} before", self.open());
            std::thread::yield_now();
        }
    }

    /// Both halves go by the first configuration.
    #[track_caller]
    fn is_as_before(&self) {
        let place = self.gateway.address;
        assert!(connect(&self.network, QUIET, place).is_none(), "denied as before");
        assert!((0..20).all(|_| reaches(&self.network, LOUD, place)), "the budget of before");
        assert!(is_served(&self.network, place), "the routes of before");
    }

    #[track_caller]
    fn takes(&mut self, kernel: Value) {
        self.gateway.replace(to(&self.upstream, kernel));
        self.gateway.log.wait_for("configuration reloaded");
        self.generation += 1.0;
        let health = self.network.gateway.run(|| self.gateway.admin("/health")).json();
        assert_eq!(
            (&health["status"], health["config"]["generation"].as_f64()),
            (&json!("ok"), Some(self.generation))
        );
    }
}

/// Somebody else's entry: no slot of the gateway's has this number.
fn filler(n: usize) -> Key<Source> {
    let address = IpAddr::from((n as u32).to_be_bytes()).into();
    Key::new(Source::bits(32), Source::new(7, Family::Ipv4, address))
}

#[test]
fn lists_that_the_maps_have_no_room_for() {
    let most = MAX_NETWORKS / SLOTS;
    let mut rig = rig();
    for (list, text) in [("allow", "kernel.allow and trusted_proxies"), ("deny", "kernel.deny")] {
        let says =
            format!("{} networks in {text}, and the kernel half holds at most {most}: name fewer", most + 1);
        rig.refuses(strict(&[(list, networks(A, most + 1))]), &[&says]);
    }
    // Each fits, but not both of them while it changes from one to the other.
    rig.takes(strict(&[("allow", networks(A, most / 2 + 1))]));
    rig.refuses(
        strict(&[("allow", networks(B, most / 2 + 1))]),
        &["together", "in several steps, or restart"],
    );
    rig.takes(strict(&[]));
    rig.takes(strict(&[("allow", networks(B, most / 2 + 1))]));
    rig.is_as_before();
}

/// Somebody else has written into the map: there is no room for the policy of the change (all that either
/// configuration allows), or there is for that and not for the one after it.
#[test]
fn a_map_that_takes_no_more_entries() {
    const LEFT: usize = 10;
    let mut rig = rig();
    for (name, key, first) in [(ALLOW, "allow", A), (DENY, "deny", B)] {
        let mut map: LpmTrie<MapData, Source, Rule> = held::map(&rig.gateway, name);
        let rule = Rule { index: 0, flags: 0, until_ns: 0, watched_until_ns: 0, hits: 0 };
        let free =
            (0..=MAX_NETWORKS).find(|n| map.insert(&filler(*n), rule, 0).is_err()).expect("it gets full");
        (0..LEFT).for_each(|n| map.remove(&filler(n)).unwrap());
        rig.refuses(
            strict(&[(key, networks(first, 5 * LEFT))]),
            &[&format!("map {name} cannot be used"), "No space left"],
        );
        rig.takes(strict(&[]));
        rig.is_as_before();
        (LEFT..free).for_each(|n| map.remove(&filler(n)).unwrap());
        rig.takes(strict(&[(key, networks(first, 5 * LEFT))]));
        rig.takes(strict(&[]));
        rig.is_as_before();
    }
}
