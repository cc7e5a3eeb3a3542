//! More than an upstream, or the gateway itself, can take: who is refused, who is served, and what is said.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use gateway_tests::client::get;
use gateway_tests::metrics::Metrics;
use gateway_tests::upstream::ok;
use gateway_tests::{Client, Gateway, Message, PATIENCE, Upstream};
use serde_json::{Value, json};

/// Serves one request at a time, which takes `service`.
fn serial(service: Duration) -> Upstream {
    let (_never, nothing) = mpsc::channel::<()>();
    let server = Mutex::new((_never, nothing));
    Upstream::start(move |mut conn| {
        while conn.request().is_some() {
            let server = server.lock().expect("no panic while held");
            server.1.recv_timeout(service).expect_err("nothing is sent");
            drop(server);
            conn.send(ok("served"));
        }
    })
}

fn routes(slow: &Upstream, quick: &Upstream) -> Value {
    json!({ "routes": [
        { "path": "/slow", "backend": slow.url() },
        { "path": "/quick", "backend": quick.url() },
    ] })
}

#[track_caller]
fn expect_shed(response: &Message) {
    assert_eq!(response.status(), 503, "{response}");
    assert_eq!(response.field("retry-after"), Some("1"));
    assert_eq!(response.field("content-type"), Some("application/problem+json"));
    let kind = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";
    assert_eq!(response.json()["type"], kind);
}

/// Ends the clients, also when something is amiss: they would be waited for.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// 64 clients at an upstream that serves one at a time; a limit is found by itself. Who asks for something else, and
/// who is exempt, notices nothing.
#[test]
fn an_upstream_with_a_queue_gets_a_limit_and_others_are_served() {
    const CLIENTS: usize = 64;
    let (slow, quick) = (serial(Duration::from_millis(4)), Upstream::answering(ok("quick")));
    let mut config = routes(&slow, &quick);
    config["overload"] =
        json!({ "max_delay": "1h", "min_concurrency": 4, "queue": 8, "exempt_paths": ["/slow/health"] });
    let gateway = Gateway::start(config);
    // What an answer takes without a queue.
    let mut first = gateway.connect();
    for _ in 0..150 {
        assert_eq!(first.get("/slow").status(), 200);
    }
    let (done, shed, served) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _ended = Ended(&done);
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = gateway.connect();
                while !done.load(Ordering::SeqCst) {
                    let response = client.get("/slow/users");
                    match response.status() {
                        200 => served.fetch_add(1, Ordering::SeqCst),
                        _ => {
                            expect_shed(&response);
                            shed.fetch_add(1, Ordering::SeqCst)
                        }
                    };
                }
            });
        }
        gateway.wait_for_metrics("requests refused for the limit", |metrics| {
            metrics.requests(503, "shed:limit") > 50.0
        });
        let mut other = gateway.connect();
        for n in 0..200 {
            assert_eq!(other.get("/quick").status(), 200, "request {n}");
        }
        let mut exempt = gateway.connect();
        for n in 0..20 {
            assert_eq!(exempt.get("/slow/health").status(), 200, "request {n}");
        }
        let metrics = gateway.scrape();
        let limit = metrics.get("gateway_route_limit", &[("route", "/slow")]).expect("a limit is in force");
        assert!((4.0..=64.0).contains(&limit), "{limit}");
        assert_eq!(metrics.get("gateway_route_limit", &[("route", "/quick")]), None);
    });
    let metrics = gateway.scrape();
    let refused = metrics.requests(503, "shed:limit") + metrics.requests(503, "shed:queue");
    assert_eq!(shed.load(Ordering::SeqCst) as f64, refused);
    assert!(served.load(Ordering::SeqCst) > 0);
    assert_eq!(metrics.get("gateway_requests_total", &[("route", "/quick"), ("status", "503")]), None);
    // One client is never too many.
    let mut first = gateway.connect();
    for n in 0..50 {
        assert_eq!(first.get("/slow").status(), 200, "request {n}");
    }
    for name in ["gateway_route_waiting", "gateway_route_queued", "gateway_route_active"] {
        assert_eq!(gateway.scrape().get(name, &[]), Some(0.0), "{name}");
    }
}

/// A route whose upstream hangs may not have all connections there are: others keep theirs, and lose no request.
#[test]
fn an_upstream_that_hangs_takes_nothing_from_another_route() {
    const MOST: usize = 50;
    let (hanging, arrived, gate) = Upstream::gated("late");
    let quick = Upstream::answering(ok("quick"));
    let mut config = routes(&hanging, &quick);
    config["connections"] = json!({ "max": MOST });
    config["workers"] = json!(1);
    let gateway = Gateway::start(config);
    gateway.wait_for_metrics("the bound of each route", |metrics| {
        metrics.get("gateway_route_ceiling", &[("route", "/slow")]) == Some(40.0)
    });
    let mut held: Vec<_> = (0..40)
        .map(|_| {
            let mut client = gateway.connect();
            client.send(get("/slow"));
            arrived.recv_timeout(PATIENCE).expect("it was sent upstream");
            client
        })
        .collect();
    for _ in 0..30 {
        let mut client = gateway.connect();
        expect_shed(&client.get("/slow"));
        // Refused or not, its connection makes room for whoever is served.
        held.push(client);
    }
    for n in 0..100 {
        assert_eq!(gateway.get("/quick").status(), 200, "request {n}");
    }
    gate.open();
    for client in &mut held[..40] {
        assert_eq!(client.response().text(), "late");
    }
    let metrics = gateway.scrape();
    assert_eq!(metrics.requests(503, "shed:descriptors"), 30.0);
    assert_eq!(metrics.get("gateway_connections_refused_total", &[]), Some(0.0));
}

/// Few descriptors, and an upstream that hangs with as many requests as there can be: it neither ends nor spins, and
/// when the upstream answers all is as before.
#[test]
fn descriptors_that_run_out_are_lived_with() {
    let (hanging, _arrived, gate) = Upstream::gated("late");
    let quick = Upstream::answering(ok("quick"));
    let mut gateway = Gateway::start_after("ulimit -n 160", routes(&hanging, &quick));
    let most = gateway.scrape().get("gateway_connections_limit", &[]).expect("a limit") as usize;
    assert_eq!(most, (160 - 64 - 2 * 8) / 4 * 3);
    let mut clients: Vec<Client> =
        (0..2 * most).filter_map(|_| Client::try_connect(gateway.address).ok()).collect();
    for client in &mut clients {
        let _ = client.try_send(get("/slow"));
    }
    let busy = gateway.cpu_ticks();
    // Everybody has an answer, an end, or waits for the upstream: four fifths of the connections at most.
    gateway.wait_for_metrics("refusals", |metrics| {
        let refused = metrics.get("gateway_connections_refused_total", &[]).unwrap_or(0.0);
        metrics.requests(503, "shed:descriptors") + refused > 0.0
    });
    // Those beyond a route's share, and beyond the places there are, are told so and go; others find a place then.
    gateway.wait_for_metrics("the share of a route", |metrics| {
        let of_slow = metrics.get("gateway_route_active", &[("route", "/slow")]).expect("a count");
        let at_ease = metrics.get("gateway_distress", &[]).is_some_and(|distress| distress < 1.0);
        let open = metrics.get("gateway_connections_open", &[]).expect("a count");
        of_slow as usize <= most * 4 / 5 && open as usize <= most && at_ease
    });
    for n in 0..20 {
        assert_eq!(gateway.get("/quick").status(), 200, "request {n}");
    }
    assert!(gateway.is_running());
    // In a hundredth of a second each: what the requests above took, and nothing like a loop.
    assert!(gateway.cpu_ticks() - busy < 500, "{} ticks", gateway.cpu_ticks() - busy);
    gate.open();
    drop(clients);
    gateway.wait_for_metrics("everybody gone", |metrics| {
        metrics.get("gateway_connections_open", &[]) == Some(0.0)
    });
    for n in 0..2 * most {
        assert_eq!(gateway.get(if n % 2 == 0 { "/quick" } else { "/slow" }).status(), 200, "request {n}");
    }
}

/// Memory past its bound: requests are refused beyond the floor, and served again when it is below.
#[test]
fn memory_past_its_bound_leaves_the_floor() {
    let (upstream, arrived, gate) = Upstream::gated("late");
    let mut config = json!({ "workers": 1, "routes": [{ "path": "/", "backend": upstream.url() }] });
    let gateway = Gateway::start(config.clone());
    let mut clients: Vec<_> = (0..6).map(|_| gateway.connect()).collect();
    gateway.wait_for_metrics("all accepted", |metrics| {
        metrics.get("gateway_connections_accepted_total", &[]) == Some(6.0)
    });
    let ceiling = |metrics: &Metrics| metrics.get("gateway_route_ceiling", &[]);
    let resident = gateway.memory_kib("VmRSS") * 1024;
    let overload = |bytes: u64| json!({ "max_delay": "1h", "max_memory_bytes": bytes, "min_concurrency": 2, "exempt_paths": ["/health"] });
    config["overload"] = overload(resident);
    gateway.replace(config.clone());
    gateway.wait_for_metrics("two at a time", |metrics| ceiling(metrics) == Some(2.0));
    for client in &mut clients[..2] {
        client.send(get("/"));
        arrived.recv_timeout(PATIENCE).expect("it was sent upstream");
    }
    for client in &mut clients[2..5] {
        expect_shed(&client.get("/"));
    }
    clients[5].send(get("/health"));
    arrived.recv_timeout(PATIENCE).expect("what is exempt is served");
    assert_eq!(gateway.scrape().requests(503, "shed:memory"), 3.0);
    assert!(gateway.scrape().get("gateway_distress", &[]).is_some_and(|distress| distress >= 1.0));

    config["overload"] = overload(1 << 40);
    gateway.replace(config);
    gateway.wait_for_metrics("no ceiling", |metrics| ceiling(metrics).is_none());
    for client in &mut clients[2..5] {
        client.send(get("/"));
        arrived.recv_timeout(PATIENCE).expect("it was sent upstream");
    }
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().text(), "late");
    }
}
