//! `gateway doctor`: what it says of a host that has everything, and of one that lacks something.

use std::os::fd::AsFd;
use std::process::Stdio;

use gateway::datapath::sys::{LinkType, link_create};
use gateway_tests::gateway::{command, complete};
use gateway_tests::kernel::bpf::{Constant, XDP_PASS, without_bpf};
use gateway_tests::kernel::held::BpfFs;
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Told, Upstream};
use serde_json::{Value, json};

use crate::process::{budget, config, folder, start, under};

/// Runs in the gateway's namespace; `before` stands before the command, `adjust` may change it.
fn doctor(
    network: &Network,
    kernel: &Value,
    arguments: &[&str],
    before: &[&str],
    adjust: impl FnOnce(&mut std::process::Command) + Send,
) -> Told {
    let settings = json!({ "routes": [{ "path": "/", "backend": "http://a" }], "kernel": kernel });
    let (directory, file) = folder(&complete(settings));
    let mut command = command(directory.path());
    command.arg("doctor").arg("--config").arg(&file).args(arguments);
    if !before.is_empty() {
        under(before, &mut command);
    }
    command.stdout(Stdio::piped());
    adjust(&mut command);
    let output = network.gateway.run(|| command.output()).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Told { code: output.status.code(), out: text(output.stdout), error: text(output.stderr) }
}

/// The state and the words of one point.
fn point(told: &Told, name: &str) -> (String, String) {
    let findings = told.json();
    let finding = findings.as_array().unwrap().iter().find(|finding| finding["point"] == json!(name));
    let finding = finding.unwrap_or_else(|| panic!("no {name} in {findings}"));
    let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    (text("state"), format!("{} {}", text("found"), text("advice")))
}

#[test]
fn a_host_that_has_everything() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    let kernel = json!({ "interfaces": [EDGE], "persist": bpffs.folder() });
    let told = doctor(&network, &kernel, &["--json"], &[], |_| {});
    assert_eq!(told.code, Some(0), "{told:?}");
    let edge = |what: &str| format!("{EDGE}: {what}");
    for (name, words) in [
        ("object", "in this binary"),
        ("bpf(2)", "answers"),
        ("capabilities", "all that loading takes"),
        ("SYN cookies in XDP", "the kernel can make and check them"),
        ("BPF file system", bpffs.path().to_str().unwrap()),
        (EDGE, "veth, up"),
        (&edge("MTU"), "1500"),
        (&edge("XDP hook"), "free"),
    ] {
        let (state, said) = point(&told, name);
        assert_eq!(state, "good", "{name}: {said}");
        assert!(said.contains(words), "{name}: {said}");
    }
    let lines = doctor(&network, &kernel, &[], &[], |_| {});
    assert!(
        lines
            .out
            .lines()
            .all(|line| line.starts_with("good") || line.starts_with("limited") || line.starts_with(' '))
    );
    assert!(!bpffs.folder().exists() && network.gateway.xdp_on(EDGE).is_empty(), "it changes nothing");
}

#[test]
fn what_is_missing_is_named_with_what_to_do() {
    let network = Network::new();
    let kernel = json!({ "interfaces": [EDGE] });
    let check = |before: &[&str], kernel: &Value, name: &str, words: &str| {
        let told = doctor(&network, kernel, &["--json"], before, |_| {});
        assert_eq!(told.code, Some(1), "{told:?}");
        let (state, said) = point(&told, name);
        assert_eq!(state, "missing", "{name}: {said}");
        assert!(said.contains(words), "{name}: {said}");
    };
    for (set, words) in [
        (
            "--bounding-set=-all",
            "lacks CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF run the gateway as root, or `setcap",
        ),
        ("--bounding-set=-perfmon,-sys_admin", "lacks CAP_PERFMON run"),
    ] {
        check(&["setpriv", set], &kernel, "capabilities", words);
    }
    check(&[], &json!({ "interfaces": ["nowhere0"] }), "nowhere0", "`ip link` lists the interfaces");
    check(&[], &json!({ "persist": "/tmp/nowhere" }), "BPF file system", "mount -t bpf bpf /sys/fs/bpf");
    let told = doctor(&network, &kernel, &["--json"], &[], without_bpf);
    assert_eq!((told.code, point(&told, "bpf(2)").0.as_str()), (Some(1), "missing"), "{told:?}");
    let told = doctor(&network, &json!({}), &["--json"], &[], |_| {});
    assert_eq!(told.code, Some(0), "the kernel half can run: {told:?}");
    assert_eq!(point(&told, "interfaces").0, "limited");
}

/// A firewall that follows connections sees nothing of one that began with a cookie before its third packet.
#[test]
fn a_firewall_that_wants_to_see_a_connection_begin_is_named() {
    const POINT: &str = "net.netfilter.nf_conntrack_tcp_loose";
    let network = Network::new();
    for (loose, state) in [("1", "good"), ("0", "limited")] {
        let set = || std::fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", loose);
        network.gateway.run(set).expect("the kernel follows connections");
        let told = doctor(&network, &json!({ "interfaces": [EDGE] }), &["--json"], &[], |_| {});
        assert_eq!(point(&told, POINT).0, state, "{told:?}");
        let without = json!({ "interfaces": [EDGE], "cookies": false });
        let told = doctor(&network, &without, &["--json"], &[], |_| {});
        assert!(!told.out.contains(POINT), "{told:?}");
    }
}

#[test]
fn who_holds_the_hook_is_named() {
    let network = Network::new();
    let kernel = json!({ "interfaces": [EDGE] });
    let hook = format!("{EDGE}: XDP hook");
    let theirs = Constant::load(XDP_PASS).unwrap();
    let index = network.gateway.index(EDGE);
    let link = network.gateway.run(|| link_create(theirs.as_fd(), index, LinkType::Xdp, 0)).unwrap();
    let (state, said) = point(&doctor(&network, &kernel, &["--json"], &[], |_| {}), &hook);
    assert_eq!(state, "limited");
    assert!(said.contains("somebody else's, program ") && said.contains("\"somebody_elses\""), "{said}");
    drop(link);
    let upstream = network.gateway.run(Upstream::ok);
    let _gateway = start(&network, config(&upstream, budget(1, 1)), |_| {});
    let (state, said) = point(&doctor(&network, &kernel, &["--json"], &[], |_| {}), &hook);
    assert_eq!(state, "good");
    assert!(said.contains("a gateway's, in driver mode, program "), "{said}");
}
