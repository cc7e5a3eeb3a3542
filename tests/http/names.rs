//! Names of upstreams that a name server answers for: asked again when the answer ends, and what failures change.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gateway_tests::gateway::complete;
use gateway_tests::upstream::ok;
use gateway_tests::{Gateway, NameServer, Says, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::endpoints::Listeners;

const HERE: [&str; 2] = ["127.0.0.2", "127.0.0.3"];

fn gateway(routes: Value, upstream: Value) -> Gateway {
    Gateway::start(json!({ "routes": routes, "workers": 1, "upstream": upstream }))
}

/// A single route to `name`, which `servers` answer for.
fn gateway_to(name: &str, port: u16, servers: &[&NameServer], resolve_every: &str) -> Gateway {
    let servers: Vec<_> = servers.iter().map(|server| server.address.to_string()).collect();
    let route = json!({ "path": "/", "backend": format!("http://{name}:{port}") });
    gateway(
        json!([route]),
        json!({ "resolver": servers, "resolve_every": resolve_every, "slow_start": "1ms" }),
    )
}

/// Who answers in a row of requests.
fn seen(gateway: &Gateway) -> BTreeSet<String> {
    let mut client = gateway.connect();
    (0..40).map(|_| client.get("/").text()).collect()
}

fn failed(gateway: &Gateway, reason: &str) -> f64 {
    gateway.scrape().get("gateway_upstream_failed_resolutions_total", &[("reason", reason)]).unwrap_or(0.0)
}

#[test]
fn asked_again_when_the_answer_ends_and_not_before() {
    let (listeners, server) = (Listeners::on(HERE), NameServer::start());
    server.addresses("short.test", 1, &HERE[..1]);
    server.addresses("long.test", 3600, &HERE[..1]);
    let url = |name: &str| format!("http://{name}:{}", listeners.port);
    let routes = json!([
        { "path": "/", "backend": url("short.test") },
        { "path": "/long", "backend": url("long.test") },
    ]);
    let gateway = gateway(routes, json!({ "resolver": [server.address.to_string()] }));
    let mut client = gateway.connect();
    assert_eq!(client.get("/").text(), HERE[0]);
    for name in ["short.test", "long.test"] {
        server.addresses(name, 1, &HERE[1..]);
    }
    gateway.wait_for_metrics("requests move", |_| client.get("/").text() == HERE[1]);
    gateway.wait_for_metrics("more answers end", |_| server.asked("short.test").len() > 3);
    let asked = server.asked("short.test");
    for pair in asked.windows(2) {
        let between = pair[1].at - pair[0].at;
        assert!((Duration::from_secs(1)..Duration::from_secs(4)).contains(&between), "{between:?}");
    }
    assert_eq!((server.asked("long.test").len(), client.get("/long").text()), (1, HERE[0].to_owned()));
}

#[test]
fn failures_leave_the_last_addresses_and_are_told_once() {
    let (listeners, server) = (Listeners::on(HERE), NameServer::start());
    server.addresses("a.test", 1, &HERE[..1]);
    let gateway = gateway_to("a.test", listeners.port, &[&server], "50ms");
    let mut client = gateway.connect();
    let failures: [(&str, &dyn Fn()); 3] = [
        ("not_found", &|| server.says("a.test", Says::NotFound)),
        ("malformed", &|| server.says("a.test", Says::Malformed)),
        ("timeout", &|| server.silence(true)),
    ];
    for (reason, fail) in failures {
        fail();
        gateway.wait_for_metrics(reason, |_| failed(&gateway, reason) > 2.0);
        assert_eq!(client.get("/").text(), HERE[0], "{reason}");
        let stats: Value = serde_json::from_str(&gateway.admin("/stats").text()).expect("it is JSON");
        let of_name = format!("a.test:{}", listeners.port);
        assert_eq!(stats["names"][of_name]["failing"], json!(reason));
    }
    server.addresses("a.test", 1, &HERE[1..]);
    server.silence(false);
    gateway.log.wait_for("resolves again");
    gateway.wait_for_metrics("requests move", |_| client.get("/").text() == HERE[1]);
    let said = gateway.log.so_far();
    for reason in ["does not exist", "malformed", "does not answer within 1s"] {
        let lines = said.iter().filter(|line| line.contains("last addresses") && line.contains(reason));
        assert_eq!(lines.count(), 1, "{reason}: {said:#?}");
    }
}

#[test]
fn a_name_that_is_published_late_is_found() {
    let (upstream, server) = (Upstream::ok(), NameServer::start());
    let gateway = gateway_to("late.test", upstream.address.port(), &[&server], "1h");
    assert_eq!(gateway.get("/").status(), 502);
    server.addresses("late.test", 60, &["127.0.0.1"]);
    gateway.wait_for_metrics("it is found", |_| gateway.get("/").status() == 200);
}

#[test]
fn what_is_too_long_for_a_datagram_is_asked_for_over_tcp() {
    let (listeners, server) = (Listeners::on(HERE), NameServer::start());
    server.says("long.test", Says::Long(60, HERE.map(|ip| ip.parse().expect("an address")).to_vec()));
    let gateway = gateway_to("long.test", listeners.port, &[&server], "1h");
    assert_eq!(seen(&gateway), HERE.map(str::to_owned).into());
    let over_tcp: Vec<_> = server.asked("long.test").iter().map(|asked| asked.over_tcp).collect();
    assert_eq!(over_tcp, [false, true]);
}

#[test]
fn the_next_server_is_asked_where_one_has_no_answer() {
    let upstream = Upstream::ok();
    let (broken, good) = (NameServer::start(), NameServer::start());
    broken.says("a.test", Says::Malformed);
    good.addresses("a.test", 60, &["127.0.0.1"]);
    let gateway = gateway_to("a.test", upstream.address.port(), &[&broken, &good], "1h");
    assert_eq!(gateway.get("/").status(), 200);
    assert_eq!((broken.asked("a.test").len(), good.asked("a.test").len()), (1, 1));
}

#[test]
fn an_address_of_ipv6_is_the_same_server() {
    let (upstream, server) = (Upstream::ok(), NameServer::start());
    server.addresses("both.test", 60, &["127.0.0.1", "::1"]);
    let gateway = gateway_to("both.test", upstream.address.port(), &[&server], "1h");
    for _ in 0..3 {
        assert_eq!(gateway.get("/").status(), 200);
    }
    let stats: Value = serde_json::from_str(&gateway.admin("/stats").text()).expect("it is JSON");
    assert_eq!(stats["upstreams"].as_object().map(|all| all.len()), Some(1), "{stats:#}");
}

#[test]
fn a_server_is_not_asked_for_names_of_the_host() {
    let (upstream, server) = (Upstream::ok(), NameServer::start());
    let gateway = gateway_to("localhost", upstream.address.port(), &[&server], "50ms");
    assert_eq!(gateway.get("/").status(), 200);
    gateway.wait_for_metrics("it is resolved again", |metrics| {
        metrics.get("gateway_upstream_resolutions_total", &[]).is_some_and(|count| count > 2.0)
    });
    assert!(server.asked("localhost").is_empty());
}

#[test]
fn the_end_waits_for_no_server() {
    let servers: Vec<_> = (0..8).map(|_| NameServer::start()).collect();
    servers.iter().for_each(|server| server.silence(true));
    let mut gateway = gateway_to("a.test", 80, &servers.iter().collect::<Vec<_>>(), "1h");
    // The look-up of the start goes on by itself; this is the next one, which takes 16 s.
    gateway.wait_for_metrics("it is asked again", |_| servers[0].asked("a.test").len() > 1);
    let asked = Instant::now();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
}

/// Runs where `/etc/resolv.conf` and `/etc/hosts` say something else, in a mount namespace.
fn gateway_on_a_host(resolv_conf: &str, hosts: &str, name: &str, port: u16) -> Gateway {
    let directory = TempDir::new().expect("there is room for a folder");
    let path = |name: &str| directory.path().join(name);
    let (file, resolv, hosts_file) = (path("gateway.json"), path("resolv.conf"), path("hosts"));
    let route = json!({ "path": "/", "backend": format!("http://{name}:{port}") });
    let config = complete(json!({ "routes": [route], "workers": 1 }));
    for (file, content) in [(&file, config.as_str()), (&resolv, resolv_conf), (&hosts_file, hosts)] {
        fs::write(file, content).expect("there is room for a file");
    }
    Gateway::run(directory, file.clone(), |command| {
        let mut within = Command::new("unshare");
        let script =
            "mount --bind \"$0\" /etc/resolv.conf && mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
        within.args(["--mount", "sh", "-c", script]).arg(resolv).arg(hosts_file);
        within.arg(command.get_program()).arg("--config").arg(&file);
        within.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).env("NO_COLOR", "1");
        *command = within;
    })
}

#[test]
fn servers_and_search_domains_of_the_host() {
    let (listeners, server) = (Listeners::on(HERE), NameServer::at_the_known_port());
    server.addresses("web.ns.svc.test", 1, &HERE[..1]);
    let resolv_conf =
        format!("nameserver {}\nsearch other.test ns.svc.test\noptions ndots:3\n", server.address.ip());
    let gateway = gateway_on_a_host(&resolv_conf, "", "web", listeners.port);
    assert_eq!(gateway.get("/").text(), HERE[0]);
    server.addresses("web.ns.svc.test", 3600, &HERE[1..]);
    gateway.wait_for_metrics("requests move", |_| gateway.get("/").text() == HERE[1]);
    let asked = |name: &str| server.asked(name).len();
    assert_eq!((asked("web.other.test"), asked("web.ns.svc.test"), asked("web")), (2, 2, 0));
}

#[test]
fn a_host_without_a_working_server_has_its_own_names() {
    let upstream = Upstream::answering(ok("here"));
    for resolv_conf in ["", "nameserver\n\u{7f}", "nameserver 127.0.0.99\n"] {
        for name in ["own.test", "localhost"] {
            let hosts = "127.0.0.1 localhost\n127.0.0.1 own.test\n";
            let gateway = gateway_on_a_host(resolv_conf, hosts, name, upstream.address.port());
            assert_eq!(gateway.get("/").text(), "here", "{resolv_conf:?} {name}");
        }
    }
}
