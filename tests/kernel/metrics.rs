//! The form of what `/metrics` says with the kernel half, with every map in use.

use gateway_tests::Upstream;
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::lint::{lint, undocumented};
use serde_json::json;

use crate::process::{config, is_served, start};

#[test]
fn every_family_is_well_made() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let kernel = json!({ "interfaces": [EDGE], "allow": ["192.0.2.0/24"], "deny": ["198.51.100.0/24"] });
    let gateway = start(&network, config(&upstream, kernel), |_| {});
    assert!(is_served(&network, gateway.address));
    let metrics = network.gateway.run(|| gateway.scrape());
    let room = |map| metrics.get("gateway_kernel_entries_most", &[("map", map)]);
    let rooms = ["gw_listeners", "gw_allow", "gw_deny", "gw_penalty", "gw_known", "gw_bucket"]
        .map(|map| room(map).unwrap());
    assert_eq!(rooms, [4_096.0, 131_072.0, 131_072.0, 65_536.0, 65_536.0, 262_144.0]);
    // Its one address, with its port and without.
    assert_eq!(metrics.get("gateway_kernel_entries", &[("map", "gw_listeners")]), Some(2.0));
    let text = metrics.to_string();
    let of_kernel = text.lines().filter(|line| line.starts_with("# TYPE gateway_kernel_")).count();
    assert!(of_kernel >= 10, "only {of_kernel} families of the kernel half");
    let (_, faults) = lint(&text);
    assert!(faults.is_empty(), "{faults:#?}");
    assert_eq!(undocumented(&text), [""; 0]);
}
