//! The host's setting while cookies are armed: what becomes of it, and of everything else, when the child that switches
//! it does not answer, when somebody else sets it, and when the gateway stands still.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use gateway_tests::{Client, Gateway, PATIENCE, Upstream};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::flood::{Answering, Forger, Over, SYSCTL, children, kernel};
use crate::process::{LOUD, QUIET, config, start};

/// Many more than there may be new sources, and too few to lose the packets of others.
const PER_SECOND: f64 = 5_000.0;

/// A gateway with few new sources a second, under a flood from nowhere that lasts as long as `work`; before it, `prepare`.
fn under_a_flood<T>(
    prepare: impl FnOnce(&Answering, &Gateway) -> T,
    work: impl FnOnce(&Answering, &Gateway, T),
) {
    let answering = Answering::new();
    let network = &answering.network;
    let upstream = network.gateway.run(Upstream::ok);
    let few = kernel(json!({ "new_sources_per_second": 100 }));
    let gateway = start(network, config(&upstream, few), |_| {});
    let prepared = prepare(&answering, &gateway);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Over(&is_over);
        scope.spawn(|| {
            let mut forger = Forger::new(network, gateway.address);
            let (begin, mut sent) = (Instant::now(), 0.0);
            while !is_over.load(Ordering::Relaxed) {
                if sent < begin.elapsed().as_secs_f64() * PER_SECOND {
                    forger.send_from_nowhere();
                    sent += 1.0;
                } else {
                    thread::yield_now();
                }
            }
        });
        work(&answering, &gateway, prepared);
    });
}

fn signal_child(gateway: &Gateway, signal: Signal) {
    let [child] = children(gateway).try_into().unwrap();
    kill_process(Pid::from_raw(child.parse().unwrap()).unwrap(), signal).unwrap();
}

/// None, of a thousand requests that would be worth one.
fn check_none_is_sent(answering: &Answering, gateway: &Gateway) {
    answering.network.gateway.run(|| {
        gateway.wait_for_metrics("they are not armed", |metrics| {
            metrics.get("gateway_kernel_cookies_armed", &[]) == Some(0.0)
        });
    });
    let [sent, passed] = ["cookie_sent", "flooded"].map(|verdict| answering.counted(gateway, verdict));
    let begin = Instant::now();
    while answering.counted(gateway, "flooded") < passed + 1_000 {
        assert!(begin.elapsed() < PATIENCE, "the flood is over");
    }
    assert_eq!(answering.counted(gateway, "cookie_sent"), sent);
}

/// The kernel half is kept told meanwhile, and cookies are armed when the child answers.
#[test]
fn a_child_that_does_not_answer_is_not_waited_for() {
    under_a_flood(
        |answering, gateway| {
            signal_child(gateway, Signal::STOP);
            answering.network.clients.run(|| Client::connect(gateway.address))
        },
        |answering, gateway, mut client| {
            gateway.log.wait_for("no SYN cookies until the child");
            assert_eq!(client.get("/").status(), 200);
            answering.network.gateway.run(|| {
                gateway.wait_for_metrics("it is known", |metrics| {
                    metrics.get("gateway_kernel_entries", &[("map", "gw_known")]) == Some(1.0)
                });
            });
            assert_eq!(answering.counted(gateway, "cookie_sent"), 0);
            signal_child(gateway, Signal::CONT);
            gateway.log.wait_for("SYN cookies armed");
            assert!(answering.is_served(LOUD, gateway.address));
        },
    );
}

/// No cookie is sent that the stack would not take, and they are again when it does.
#[test]
fn a_setting_that_somebody_else_changes_is_left_to_him() {
    under_a_flood(
        |_, _| {},
        |answering, gateway, ()| {
            let set = |value| answering.network.gateway.run(|| fs::write(SYSCTL, value)).unwrap();
            gateway.log.wait_for("SYN cookies armed");
            set("1");
            gateway.log.wait_for("no SYN cookies until the child");
            check_none_is_sent(answering, gateway);
            assert_eq!(answering.syncookies(), "1");
            set("2");
            gateway.log.wait_for("SYN cookies armed");
            assert!(answering.is_served(LOUD, gateway.address));
        },
    );
}

/// Whatever the gateway stands still for, the host's other services get their setting back.
#[test]
fn the_setting_is_put_back_while_the_gateway_is_stopped() {
    under_a_flood(
        |_, _| {},
        |answering, gateway, ()| {
            gateway.log.wait_for("SYN cookies armed");
            gateway.signal(Signal::STOP);
            answering.wait_for_syncookies("1");
            gateway.signal(Signal::CONT);
            answering.wait_for_syncookies("2");
            assert!(answering.is_served(QUIET, gateway.address));
        },
    );
}

/// Nobody is left to put the setting back; that is the limit that the docs name. Nothing is left of the child.
#[test]
fn a_child_that_is_killed_ends_the_cookies_and_leaves_the_setting() {
    under_a_flood(
        |_, _| {},
        |answering, gateway, ()| {
            gateway.log.wait_for("SYN cookies armed");
            signal_child(gateway, Signal::KILL);
            gateway.log.wait_for("the stack takes no SYN cookies: none are sent from here on");
            check_none_is_sent(answering, gateway);
            assert_eq!(answering.syncookies(), "2");
            let begin = Instant::now();
            while !children(gateway).is_empty() {
                assert!(begin.elapsed() < PATIENCE, "it stays a zombie");
                thread::yield_now();
            }
        },
    );
}
