//! An endpoint taken out of service while requests go on, and put back.

use std::fs;

use gateway_tests::client::get;
use gateway_tests::faulty::Restartable;
use gateway_tests::gateway::complete;
use gateway_tests::upstream::ok;
use gateway_tests::{Api, Gateway, PATIENCE, Upstream};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A gateway with a control socket, and what its configuration is made from; `more` goes into the one route.
fn start(endpoints: &[String], more: Value) -> (Gateway, Value) {
    let directory = TempDir::new().expect("there is room for a folder");
    let path = |name| directory.path().join(name);
    let mut route = json!({ "path": "/", "backend": { "endpoints": endpoints } });
    for (key, value) in more.as_object().expect("keys and their values") {
        match (key.as_str(), value) {
            ("balancer" | "hash_key", value) => route["backend"][key] = value.clone(),
            (_, value) => route[key] = value.clone(),
        }
    }
    let config = json!({
        "routes": [route],
        "workers": 2,
        "control": { "socket": path("control.sock"), "state_file": path("state.json") },
    });
    let file = path("gateway.json");
    fs::write(&file, complete(config.clone())).expect("there is room for a file");
    (Gateway::run(directory, file, |_| {}), config)
}

fn name(upstream: &Upstream) -> String {
    upstream.address.to_string()
}

#[track_caller]
fn change(gateway: &Gateway, verb: &str, endpoint: &str) -> Value {
    let told = gateway.ask(&["endpoints", verb, endpoint, "--json"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    let told = told.json();
    assert_eq!(told["endpoints"][0]["drained"], json!(verb == "drain"), "{told}");
    told
}

fn gauge(gateway: &Gateway, name: &str, endpoint: &str) -> f64 {
    let scrape = gateway.scrape();
    scrape.get(&format!("gateway_upstream_{name}"), &[("upstream", endpoint)]).expect("it is exported")
}

#[test]
fn what_it_has_finishes_and_nothing_more_comes() {
    for balancer in ["least_requests", "round_robin"] {
        let (leaving, arrived, gate) = Upstream::gated("leaving");
        let staying = Upstream::answering(ok("staying"));
        let (gateway, config) = start(&[leaving.url(), staying.url()], json!({ "balancer": balancer }));
        let leaver = name(&leaving);
        // One request is under way there.
        let mut clients = Vec::new();
        gateway.wait_for_metrics("it has a request", |_| {
            let mut client = gateway.connect();
            client.send(get("/"));
            clients.push(client);
            arrived.try_recv().is_ok()
        });
        assert_eq!(change(&gateway, "drain", &leaver)["note"], Value::Null);
        let asks_there = || (0..50).filter(|_| gateway.get("/").text() != "staying").count();
        assert_eq!(asks_there(), 0, "{balancer}");
        let row = gateway.admin("/stats").json()["upstreams"][&leaver].clone();
        assert_eq!(row["drained"], json!(true), "{row}");
        let active = row["active"].as_u64().unwrap();
        assert!(active >= 1, "{row}");
        assert_eq!(gauge(&gateway, "drained", &leaver).to_bits(), 1f64.to_bits());

        // It stays so in a new configuration.
        let mut next = config.clone();
        next["timeouts"] = json!({ "idle": "50s" });
        gateway.replace(next);
        assert_eq!(gateway.ask(&["reload"]).code, Some(0));
        assert_eq!(asks_there(), 0, "{balancer}, after a reload");

        gate.open();
        let answers: Vec<_> = clients.iter_mut().map(|client| client.response().text()).collect();
        assert_eq!(answers.iter().filter(|text| *text == "leaving").count() as u64, active, "{answers:?}");
        gateway.wait_for_metrics("its connections are closed", |metrics| {
            metrics.get("gateway_upstream_connections", &[("upstream", &leaver)]) == Some(0.0)
        });

        change(&gateway, "undrain", &leaver);
        let started = std::time::Instant::now();
        while gateway.get("/").text() != "leaving" {
            assert!(started.elapsed() < PATIENCE, "it gets nothing any more");
        }
        assert_eq!(gauge(&gateway, "drained", &leaver).to_bits(), 0f64.to_bits());
    }
}

/// Connections that nobody uses are closed too, on every worker.
#[test]
fn idle_connections_are_let_go() {
    let upstreams = [Upstream::answering(ok("a")), Upstream::answering(ok("b"))];
    let (gateway, _) = start(&[upstreams[0].url(), upstreams[1].url()], json!({ "balancer": "round_robin" }));
    let leaver = name(&upstreams[0]);
    let idle = |metrics: &gateway_tests::metrics::Metrics| {
        metrics.get("gateway_upstream_idle_connections", &[("upstream", &leaver)])
    };
    gateway.wait_for_metrics("both workers keep a connection", |metrics| {
        gateway.get("/");
        idle(metrics) >= Some(2.0)
    });
    change(&gateway, "drain", &leaver);
    gateway.wait_for_metrics("they are let go", |metrics| idle(metrics) == Some(0.0));
    let connections = upstreams[0].connections();
    (0..20).for_each(|_| assert_eq!(gateway.get("/").text(), "b"));
    assert_eq!(upstreams[0].connections(), connections);
}

#[test]
fn a_key_goes_elsewhere_and_comes_back() {
    let upstreams: Vec<_> = ["0", "1", "2"].map(|body| Upstream::answering(ok(body))).into();
    let urls: Vec<_> = upstreams.iter().map(Upstream::url).collect();
    let (gateway, _) = start(&urls, json!({ "balancer": "hash", "hash_key": "client" }));
    let home = gateway.get("/").text();
    let leaver = name(&upstreams[home.parse::<usize>().unwrap()]);
    change(&gateway, "drain", &leaver);
    let away = gateway.get("/").text();
    assert_ne!(away, home);
    (0..20).for_each(|_| assert_eq!(gateway.get("/").text(), away));
    change(&gateway, "undrain", &leaver);
    assert_eq!(gateway.get("/").text(), home);
}

#[test]
fn where_all_are_drained_a_503_says_so() {
    for more in [json!({}), json!({ "enable_cache": true })] {
        let upstreams = [Upstream::ok(), Upstream::ok()];
        let (gateway, config) = start(&[upstreams[0].url(), upstreams[1].url()], more);
        change(&gateway, "drain", &name(&upstreams[0]));
        let note = change(&gateway, "drain", &name(&upstreams[1]))["note"].clone();
        assert_eq!(note, json!("/ has no endpoint left: it answers 503 until one is put back"));
        let answer = gateway.get("/");
        assert_eq!((answer.status(), answer.field("retry-after")), (503, Some("1")), "{answer}");
        assert!(answer.text().contains("taken out of service"), "{answer}");
        assert_eq!(upstreams[0].connections() + upstreams[1].connections(), 0);

        // One that leaves the configuration and returns is a new one.
        let mut next = config.clone();
        next["routes"][0]["backend"]["endpoints"] = json!([upstreams[1].url()]);
        gateway.replace(next);
        assert_eq!(gateway.ask(&["reload"]).code, Some(0));
        assert_eq!(gateway.get("/").status(), 503);
        gateway.replace(config);
        assert_eq!(gateway.ask(&["reload"]).code, Some(0));
        assert_eq!(gateway.get("/").status(), 200);
        change(&gateway, "drain", &name(&upstreams[0]));
        assert_eq!(gateway.get("/").status(), 503);
        change(&gateway, "undrain", &name(&upstreams[1]));
        assert_eq!(gateway.get("/").status(), 200);
    }
}

/// It is restarted, which is what it was drained for: nobody holds that against it.
#[test]
fn its_health_checks_wait_until_it_is_back() {
    let mut leaving = Restartable::start();
    let staying = Upstream::answering(ok("staying"));
    let check =
        json!({ "health_check": { "interval": "100ms", "timeout": "100ms", "failures": 1, "successes": 1 } });
    let (gateway, _) = start(&[leaving.url(), staying.url()], check);
    let leaver = leaving.url().trim_start_matches("http://").to_owned();
    change(&gateway, "drain", &leaver);
    let failed = gauge(&gateway, "failed_checks_total", &leaver);
    leaving.kill();
    gateway.pass_time(1.0);
    assert_eq!(gauge(&gateway, "failed_checks_total", &leaver).to_bits(), failed.to_bits());
    assert_eq!(gauge(&gateway, "healthy", &leaver).to_bits(), 1f64.to_bits());
    // It is asked again from here on, and is still away.
    change(&gateway, "undrain", &leaver);
    gateway.log.wait_for("unhealthy");
    leaving.restart();
    gateway.log.wait_for(" healthy");
}

#[test]
fn whom_an_operator_may_mean() {
    let upstreams = [Upstream::ok(), Upstream::ok()];
    let local = format!("http://localhost:{}", upstreams[1].address.port());
    let (gateway, _) = start(&[upstreams[0].url(), local], json!({}));
    let (first, second) = (name(&upstreams[0]), format!("localhost:{}", upstreams[1].address.port()));
    let listed = gateway.ask(&["endpoints", "--json"]).json();
    let names: Vec<_> =
        listed["endpoints"].as_array().unwrap().iter().map(|row| row["name"].clone()).collect();
    assert_eq!(names, [json!(first), json!(second)]);
    // By its name, by its upstream's, by its address.
    for called in [&first, &second, &name(&upstreams[1])] {
        change(&gateway, "drain", called);
        change(&gateway, "undrain", called);
    }
    let told = gateway.ask(&["endpoints", "drain", "192.0.2.1:80"]);
    assert_eq!((told.code, told.out.as_str()), (Some(1), ""), "{told:?}");
    assert!(told.error.contains("no endpoint is called \"192.0.2.1:80\""), "{told:?}");
    let told = gateway.ask(&["endpoints", "drain", &first]);
    assert_eq!(told.out, format!("{first}  drained     share   0 %  0 under way  0 connections\n"));
    let all = gateway.ask(&["endpoints"]).out;
    assert!(all.lines().count() == 2 && all.contains("drained") && all.contains("serves"), "{all}");
    let api = Api::of(&gateway);
    assert_eq!(api.ask("POST", &format!("/v1/endpoints/{first}/undrain"), "").status(), 200);
    assert_eq!(api.ask("POST", "/v1/endpoints/%5B::1%5D:80/drain", "").status(), 404);
}
