//! Sources that the gateway has served are made known to the kernel half, each for itself: what cannot be written of one
//! keeps none of the others.

use std::net::IpAddr;
use std::process::Command;
use std::time::Instant;

use gateway_common::Address;
use gateway_common::maps::{BUCKET, KNOWN};
use gateway_common::standing::Known;
use gateway_tests::kernel::held::BpfFs;
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Client, PATIENCE, Upstream};
use serde_json::json;

use crate::persist::maps;
use crate::process::{config, start};
use crate::traffic::connect;

/// No bucket can be opened for any of them.
#[test]
fn one_that_cannot_be_written_keeps_none_of_the_others() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    let upstream = network.gateway.run(Upstream::ok);
    let config = config(&upstream, json!({ "interfaces": [EDGE], "persist": bpffs.folder() }));
    let gateway = start(&network, config, |_| {});
    let bucket = bpffs.folder().join(maps(&bpffs)).join(BUCKET);
    let frozen = Command::new("bpftool").args(["map", "freeze", "pinned"]).arg(&bucket).status();
    assert!(frozen.unwrap().success(), "the kernel half writes there still, and nobody else");

    let sources = (2..10).map(|last| format!("10.77.0.{last}"));
    let mut clients: Vec<(String, Client)> = sources
        .map(|source| {
            let stream = connect(&network, &source, gateway.address).expect("it is let in");
            (source, Client::over(stream))
        })
        .collect();
    // Within one turn of the heartbeat, or two.
    clients.iter_mut().for_each(|(_, client)| assert_eq!(client.get("/").status(), 200));
    let known = bpffs.map::<Address, Known>(KNOWN);
    let begin = Instant::now();
    for (source, client) in clients {
        drop(client);
        let address = Address::from(source.parse::<IpAddr>().unwrap());
        while known.get(&address, 0).is_err() {
            assert!(begin.elapsed() < PATIENCE, "{source} is not known");
            std::thread::yield_now();
        }
    }
    gateway.log.wait_for("the kernel half cannot be kept told");
}
