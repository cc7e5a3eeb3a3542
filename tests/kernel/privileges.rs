//! What the gateway holds once it serves: no capability, in any thread, and the user it was told to be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::Instant;

use gateway_tests::gateway::{complete, route_to};
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Gateway, PATIENCE, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::flood::children;
use crate::process::{budget, config, folder, is_attached, is_served, refused, start, under};

/// Debian's nobody.
const NOBODY: &str = "65534";
/// What the kernel half needs, and nothing else.
const JUST_ENOUGH: &str = "--bounding-set=-all,+bpf,+net_admin,+perfmon";

/// The lines of `/proc/<pid>/task/*/status` that start with `name`, one of each thread.
fn of_every_thread(process: u32, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let line = |status: String| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value
            .unwrap_or_else(|| panic!("no {name} in {status}"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    tasks.map(|task| line(fs::read_to_string(task.unwrap().path().join("status")).unwrap())).collect()
}

fn check_unprivileged(gateway: &Gateway, user: &str) {
    let all = |name: &str, expected: &str| {
        let lines = of_every_thread(gateway.id(), name);
        // Two workers and the one that waits for signals, at least.
        assert!(lines.len() >= 3, "{lines:?}");
        assert!(lines.iter().all(|line| line == expected), "{name}: {lines:?} are not all {expected:?}");
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        all(set, "0000000000000000");
    }
    all("NoNewPrivs", "1");
    let four = [user; 4].join(" ");
    all("Uid", &four);
    all("Gid", &four);
}

/// The child that has the stack take SYN cookies, as soon as it has started.
fn check_child(gateway: &Gateway) {
    const NET_ADMIN: &str = "0000000000001000";
    let [child] = children(gateway).try_into().unwrap();
    let child = child.parse().unwrap();
    let (all, begin) = (|name| of_every_thread(child, name), Instant::now());
    while all("CapEff") != [NET_ADMIN] {
        assert!(begin.elapsed() < PATIENCE, "{:?}", all("CapEff"));
        thread::yield_now();
    }
    let rest = ["CapInh", "CapPrm", "CapAmb", "NoNewPrivs"].map(all).concat();
    assert_eq!(rest, ["0000000000000000", NET_ADMIN, "0000000000000000", "1"]);
}

/// A configuration that whoever the gateway becomes can read.
fn readable(network: &Network, config: Value, adjust: impl FnOnce(&mut Command) + Send) -> Gateway {
    let (directory, file) = folder(&complete(config));
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    network.gateway.run(|| Gateway::run(directory, file, adjust))
}

#[test]
fn no_thread_holds_a_capability_and_everything_works() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let mut settings = config(&upstream, budget(1, 2));
    settings["user"] = json!("nobody");
    settings["listen_addr"] = json!("10.77.0.1:80");
    let mut gateway = readable(&network, settings.clone(), |_| {});
    assert_eq!(gateway.address.port(), 80);
    check_unprivileged(&gateway, NOBODY);
    check_child(&gateway);
    assert_eq!(of_every_thread(gateway.id(), "Groups")[0], NOBODY, "root's own groups are gone");

    // The kernel half is still its own: counted, rewritten by a reload, detached at the end.
    assert!(is_attached(&network) && is_served(&network, gateway.address));
    settings["kernel"] = budget(1_000, 1_000);
    gateway.write(settings);
    gateway.log.wait_for("reloaded");
    assert!((0..20).all(|_| is_served(&network, gateway.address)), "the new budget is in force");
    let scrape = network.gateway.run(|| gateway.scrape());
    let passed = [("verdict", "pass"), ("family", "ipv4")];
    assert!(scrape.get("gateway_kernel_packets_total", &passed).unwrap() >= 21.0);
    check_unprivileged(&gateway, NOBODY);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    assert!(!is_attached(&network));
}

#[test]
fn three_capabilities_are_enough_and_none_is_kept() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let just_enough = |command: &mut Command| under(&["setpriv", JUST_ENOUGH, "--inh-caps=-all"], command);
    let gateway = start(&network, config(&upstream, budget(1_000, 1_000)), just_enough);
    assert!(is_attached(&network) && is_served(&network, gateway.address));
    // Without `CAP_SETPCAP` the bounding set cannot shrink; with no_new_privs nothing can be gained from it.
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        let lines = of_every_thread(gateway.id(), set);
        assert!(lines.iter().all(|line| line == "0000000000000000"), "{set}: {lines:?}");
    }
    assert!(of_every_thread(gateway.id(), "NoNewPrivs").iter().all(|line| line == "1"));
}

/// Whose program is at TC, nobody tells it.
#[test]
fn with_three_capabilities_it_warns_of_what_may_be_another_gateway_at_tc() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let mut kernel = budget(1_000, 1_000);
    kernel["mode"] = json!("tc");
    let settings = config(&upstream, kernel);
    let first = start(&network, settings.clone(), |_| {});
    assert!(!first.log.so_far().iter().any(|line| line.contains("CAP_SYS_ADMIN")), "nobody was before it");
    let exit = refused(&network, settings.clone(), &[], &[]);
    assert_eq!(exit.code, Some(3), "{exit:?}");
    assert!(exit.lines.last().unwrap().contains("another gateway holds its TC hook"), "{exit:?}");

    let just_enough = |command: &mut Command| under(&["setpriv", JUST_ENOUGH, "--inh-caps=-all"], command);
    let second = start(&network, settings, just_enough);
    let said = second.log.so_far();
    let warned =
        said.iter().any(|line| line.contains("is at TC before this one") && line.contains("CAP_SYS_ADMIN"));
    assert!(warned, "{said:#?}");
}

#[test]
fn without_the_kernel_half_it_drops_them_too() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    check_unprivileged(&gateway, "0");
    assert_eq!(gateway.get("/").status(), 200);
}

/// One line each, exit code 3, and nothing attached.
#[test]
fn a_user_that_cannot_be_had_ends_it() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let check = |user: &str, words: &[&str], told: &str| {
        let mut settings = config(&upstream, budget(1, 1));
        settings["user"] = json!(user);
        let exit = refused(&network, settings, words, &[]);
        assert_eq!(exit.code, Some(3), "{:#?}", exit.lines);
        assert!(
            matches!(exit.lines.as_slice(), [.., last] if last.contains(told)),
            "{told}: {:#?}",
            exit.lines
        );
        assert!(!is_attached(&network), "{told}");
    };
    check("no-such-user", &[], "this host knows no such user: create it (`useradd --system no-such-user`)");
    check("nobody:no-such-group", &[], "this host knows no group \"no-such-group\"");
    for withheld in ["--bounding-set=-setuid", "--bounding-set=-setgid"] {
        let words = ["setpriv", withheld];
        check("nobody", &words, "cannot become user \"nobody\": Operation not permitted");
    }
}

#[test]
fn a_privileged_port_without_the_capability_is_one_line() {
    let network = Network::new();
    let mut settings = route_to("http://127.0.0.1:1");
    settings["listen_addr"] = json!("127.0.0.1:80");
    settings["kernel"] = json!({ "interfaces": [EDGE] });
    let exit = refused(&network, settings, &["setpriv", "--bounding-set=-net_bind_service"], &[]);
    assert_eq!(exit.code, Some(3));
    let told = "a port below 1024 needs root or CAP_NET_BIND_SERVICE";
    assert!(matches!(exit.lines.as_slice(), [line] if line.contains(told)), "{:#?}", exit.lines);
}
