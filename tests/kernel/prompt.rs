//! How soon the refusal that makes a source blocked is in force in the kernel, and that it says so.

use std::time::{Duration, Instant};

use aya::maps::{HashMap, MapData};
use gateway_common::Address;
use gateway_common::maps::PENALTY;
use gateway_common::standing::{BLOCKED, Penalty};
use gateway_tests::client::get;
use gateway_tests::kernel::held::BpfFs;
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Client, PATIENCE, Upstream};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::IpAddr;

use crate::process::{config, start};
use crate::traffic::connect;

const SOURCES: usize = 50;
/// Ninety requests a second of each source.
const LEAST_ROUND: Duration = Duration::from_millis(11);

fn source(n: usize) -> String {
    format!("10.78.0.{}", n + 1)
}

/// Five requests a minute of each client, and whoever goes on is dropped.
fn limited(upstream: &Upstream, bpffs: &BpfFs) -> Value {
    let kernel = json!({ "interfaces": [EDGE], "escalation": "drop", "persist": bpffs.folder() });
    let mut config = config(upstream, kernel);
    config["routes"][0]["rate_limits"] = json!([{ "name": "five", "limit": 5, "per": "minute" }]);
    config
}

/// Asks until an answer is the last of its connection; how long after it the source's penalty was found in the map,
/// the look itself included. `None`: another answer of many, and no more.
fn asks(client: &mut Client, map: &HashMap<MapData, Address, Penalty>, source: Address) -> Option<Duration> {
    let answer = client.send(get("/")).response();
    let connection = answer.field("connection")?;
    let read = Instant::now();
    assert_eq!((answer.status(), connection), (429, "close"));
    while map.get(&source, 0).map_or(true, |penalty| penalty.level != BLOCKED) {
        assert!(read.elapsed() < PATIENCE, "not in the map");
        std::hint::spin_loop();
    }
    Some(read.elapsed())
}

/// Each of fifty sources goes on in spite of its refusals. The refusal by which it is blocked closes its connection,
/// and the one by which it is slowed, and all others, do not: none asks so often that it floods.
#[test]
fn the_refusal_that_blocks_says_so_and_is_in_force_at_once() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    network.add_strangers();
    let upstream = network.gateway.run(Upstream::ok);
    let gateway = start(&network, limited(&upstream, &bpffs), |_| {});
    let (place, map) = (gateway.address, bpffs.map::<Address, Penalty>(PENALTY));
    let mut clients: Vec<(usize, Client)> = (0..SOURCES)
        .map(|n| (n, Client::over(connect(&network, &source(n), place).expect("it is let in"))))
        .collect();
    let (begin, mut times, mut slowed) = (Instant::now(), Vec::new(), HashSet::new());
    while !clients.is_empty() {
        assert!(begin.elapsed() < PATIENCE, "{} are still served", clients.len());
        let round = Instant::now();
        clients.retain_mut(|(n, client)| {
            let address = Address::from(source(*n).parse::<IpAddr>().unwrap());
            if map.get(&address, 0).is_ok() {
                slowed.insert(*n);
            }
            let time = asks(client, &map, address);
            times.extend(time);
            if time.is_some() {
                client.expect_closed();
            }
            time.is_none()
        });
        while round.elapsed() < LEAST_ROUND {
            std::hint::spin_loop();
        }
    }
    assert_eq!(slowed.len(), SOURCES, "slowed before, by refusals that closed nothing");
    assert!(connect(&network, &source(SOURCES - 1), place).is_none(), "a new connection");
    times.sort();
    println!("from the refusal to the map: median {:?}, most {:?}", times[SOURCES / 2], times[SOURCES - 1]);
}

/// A client has all addresses of its IPv6 network, and is one source with all of them.
#[test]
fn an_ipv6_network_is_blocked_as_one() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    network.add_strangers();
    let upstream = network.gateway.run(Upstream::ok);
    let mut config = limited(&upstream, &bpffs);
    config["listen_addr"] = json!("[fd77::1]:0");
    let gateway = start(&network, config, |_| {});
    let (place, map) = (gateway.address, bpffs.map::<Address, Penalty>(PENALTY));
    let let_in = |source| connect(&network, source, place);
    // The neighbours find each other by addresses that they have.
    assert!(let_in("fd77::2").is_some());
    let address = Address::from("fd78:0:0:1::".parse::<IpAddr>().unwrap());
    let mut client = Client::over(let_in("fd78:0:0:1::1").expect("it is let in"));
    let begin = Instant::now();
    while asks(&mut client, &map, address).is_none() {
        assert!(begin.elapsed() < PATIENCE, "it is still served");
        let asked = Instant::now();
        while asked.elapsed() < LEAST_ROUND {
            std::hint::spin_loop();
        }
    }
    assert!(let_in("fd78:0:0:1::1").is_none() && let_in("fd78:0:0:1:2:3:4:5").is_none());
    assert!(let_in("fd78:0:0:2::1").is_some(), "its neighbour");
}
