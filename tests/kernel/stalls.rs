//! A gateway that is killed, or stopped for ten seconds: what goes on without it, and what resumes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gateway_tests::kernel::held::{self, BpfFs, wait_until_gone};
use gateway_tests::kernel::netns::{EDGE, Network};
use gateway_tests::{Client, Upstream};
use rustix::process::Signal;
use serde_json::json;

use crate::process::{LOUD, QUIET, config, is_attached, is_served, reaches, start};
use crate::traffic::connect;

const STOPPED: Duration = Duration::from_secs(10);

/// The kernel half goes on judging by the policy it has; who connects waits in the queue and is served
/// when the gateway goes on, and so is who had asked before.
#[test]
fn one_that_is_stopped_for_ten_seconds_judges_on_and_then_serves_who_has_waited() {
    let network = Network::new();
    let upstream = network.gateway.run(Upstream::ok);
    let kernel = json!({ "interfaces": [EDGE], "deny": [QUIET] });
    let gateway = start(&network, config(&upstream, kernel), |_| {});
    let place = gateway.address;
    let mut kept = network.clients.run(|| Client::connect(place));
    assert_eq!(kept.get("/").status(), 200);

    let begin = Instant::now();
    gateway.signal(Signal::STOP);
    kept.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut waiting = network.clients.run(|| Client::connect(place));
    waiting.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut judged = 0;
    while begin.elapsed() < STOPPED {
        assert!(connect(&network, QUIET, place).is_none(), "the denied, while it is stopped");
        assert!(reaches(&network, LOUD, place), "its neighbour, into the queue");
        judged += 1;
    }
    assert!(judged > 0 && is_attached(&network));
    gateway.signal(Signal::CONT);
    assert_eq!(kept.response().status(), 200, "who had asked");
    assert_eq!(waiting.response().status(), 200, "who had waited");
    assert!(is_served(&network, place), "who comes now");
    assert!(connect(&network, QUIET, place).is_none());
}

/// Without `persist` a kill takes the kernel half along, whole; with it nothing changes but that nobody
/// answers, until the next one does.
#[test]
fn one_that_is_killed_leaves_what_it_was_told_to() {
    let (network, bpffs) = (Network::new(), BpfFs::mount());
    let upstream = network.gateway.run(Upstream::ok);
    for persist in [false, true] {
        let mut settings = config(&upstream, json!({ "interfaces": [EDGE], "deny": [QUIET] }));
        settings["listen_addr"] = json!("10.77.0.1:8080");
        if persist {
            settings["kernel"]["persist"] = json!(bpffs.folder());
        }
        let mut gateway = start(&network, settings.clone(), |_| {});
        let place: SocketAddr = gateway.address;
        let held = held::by(&gateway);
        assert!(connect(&network, QUIET, place).is_none() && is_served(&network, place));
        gateway.signal(Signal::KILL);
        assert_eq!(gateway.wait(), None);
        assert_eq!(is_attached(&network), persist);
        if !persist {
            wait_until_gone(&held);
        }
        let next = start(&network, settings, |_| {});
        assert!(connect(&network, QUIET, place).is_none() && is_served(&network, next.address));
    }
}
