//! More than an upstream, or the gateway itself, can take: who is refused, who is served, and what is said.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use gateway_tests::client::get;
use gateway_tests::metrics::Metrics;
use gateway_tests::upstream::ok;
use gateway_tests::{Client, Gate, Gateway, Message, PATIENCE, Upstream};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};

/// Serves one request at a time, which takes `service`, in the order in which they come: with a lock instead, some
/// would overtake all others, and the shortest wait would show no queue.
fn serial(service: Duration) -> Upstream {
    let (asks, queue) = mpsc::channel::<mpsc::Sender<()>>();
    std::thread::spawn(move || {
        let (_never, nothing) = mpsc::channel::<()>();
        for turn in queue {
            nothing.recv_timeout(service).expect_err("nothing is sent");
            // The connection may have ended.
            let _ = turn.send(());
        }
    });
    Upstream::start(move |mut conn| {
        let (turn, served) = mpsc::channel();
        while conn.request().is_some() {
            asks.send(turn.clone()).expect("the queue outlives this upstream");
            served.recv().expect("each has its turn");
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
        // In one look: on a busy machine a limit may be taken back, for it may cost answers for a while.
        gateway.wait_for_metrics("requests refused for a limit in force", |metrics| {
            let limit = metrics.get("gateway_route_limit", &[("route", "/slow")]);
            assert!(limit.is_none_or(|limit| limit >= 4.0), "{limit:?}");
            metrics.requests(503, "shed:limit") > 50.0 && limit.is_some_and(|limit| limit <= 64.0)
        });
        let mut other = gateway.connect();
        for n in 0..200 {
            assert_eq!(other.get("/quick").status(), 200, "request {n}");
        }
        let mut exempt = gateway.connect();
        for n in 0..20 {
            assert_eq!(exempt.get("/slow/health").status(), 200, "request {n}");
        }
        assert_eq!(gateway.scrape().get("gateway_route_limit", &[("route", "/quick")]), None);
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

/// A reload tells the routes that it brings, and all again where a bound has changed or no longer holds.
#[test]
fn routes_of_a_reload_have_their_share_too() {
    let upstream = Upstream::answering(ok("here"));
    let config = |paths: &[&str], most: usize| {
        let routes = paths.iter().map(|path| json!({ "path": path, "backend": upstream.url() }));
        json!({ "routes": routes.collect::<Vec<_>>(), "connections": { "max": most } })
    };
    let gateway = Gateway::start(config(&["/one", "/two"], 50));
    let all_have = |paths: &[&str], share: Option<f64>| {
        gateway.wait_for_metrics("each route's share", |metrics| {
            let of = |path: &&str| metrics.get("gateway_route_ceiling", &[("route", path)]);
            paths.iter().all(|path| of(path) == share)
        });
    };
    all_have(&["/one", "/two"], Some(40.0));
    gateway.write(config(&["/one", "/two", "/three"], 50));
    all_have(&["/one", "/two", "/three"], Some(40.0));
    gateway.write(config(&["/one", "/two", "/three"], 100));
    all_have(&["/one", "/two", "/three"], Some(80.0));
    gateway.write(config(&["/three"], 100));
    all_have(&["/three"], None);
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

/// Connections full of requests that cost nobody but the worker: more than it can answer, for as long as they are there.
struct Flood {
    streams: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    fn of(request: &str, gateway: &Gateway) -> Self {
        const CONNECTIONS: usize = 32;
        let many = request.repeat(1_000);
        let (mut streams, mut threads) = (Vec::new(), Vec::new());
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(gateway.address).expect("it listens");
            let (mut ours, mut theirs) = [(); 2].map(|()| stream.try_clone().expect("a descriptor")).into();
            let many = many.clone();
            threads.push(std::thread::spawn(move || while ours.write_all(many.as_bytes()).is_ok() {}));
            threads.push(std::thread::spawn(move || drop(io::copy(&mut theirs, &mut io::sink()))));
            streams.push(stream);
        }
        Self { streams, threads }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.streams.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// A worker that comes late to everything: requests beyond the floor are refused for that, those of a high priority and
/// of exempt paths are not, and when it has caught up all are served.
#[test]
fn a_worker_that_is_late_leaves_the_floor() {
    let gate = Gate::default();
    let (came, arrived) = mpsc::channel();
    let opened = gate.clone();
    let upstream = Upstream::start(move |mut conn| {
        while let Some(request) = conn.request() {
            if request.target() == "/held" {
                came.send(()).expect("the test waits for it");
                opened.wait();
            }
            conn.send(ok("served"));
        }
    });
    let route =
        |path: &str, priority: &str| json!({ "path": path, "backend": upstream.url(), "priority": priority });
    let gateway = Gateway::start(json!({
        "workers": 1,
        "overload": { "max_delay": "5ms", "min_concurrency": 2, "exempt_paths": ["/free/health"] },
        "routes": [route("/held", "normal"), route("/free", "normal"), route("/first", "high")],
    }));
    let mut held: Vec<_> = (0..2).map(|_| gateway.connect()).collect();
    for client in &mut held {
        client.send(get("/held"));
        arrived.recv_timeout(PATIENCE).expect("it was sent upstream");
    }
    let mut client = gateway.connect();
    assert_eq!(client.get("/free").text(), "served");
    let refused = |metrics: &Metrics| metrics.requests(503, "shed:delay");
    // With several routes, none may have all connections; that bound holds at ease too.
    let ceiling = |metrics: &Metrics| metrics.get("gateway_route_ceiling", &[("route", "/held")]);
    let at_ease = gateway.scrape();
    assert_eq!(refused(&at_ease), 0.0);

    let flood = Flood::of("GET /none HTTP/1.1\r\nHost: a\r\n\r\n", &gateway);
    gateway.wait_for_metrics("refusals", |metrics| {
        let response = client.get("/held/more");
        if response.status() != 200 {
            expect_shed(&response);
        }
        refused(metrics) >= 3.0
    });
    let metrics = gateway.scrape();
    assert!(metrics.get("gateway_serve_delay_seconds", &[]).is_some_and(|delay| delay > 0.0), "{metrics}");
    for path in ["/free/health", "/first"] {
        for n in 0..3 {
            assert_eq!(client.get(path).text(), "served", "{path}, request {n}");
        }
    }
    drop(flood);
    gateway.wait_for_metrics("an end of it", |metrics| ceiling(metrics) == ceiling(&at_ease));
    for n in 0..20 {
        assert_eq!(client.get("/free").text(), "served", "request {n}");
    }
    gate.open();
    for client in &mut held {
        assert_eq!(client.response().text(), "served");
    }
}

/// No descriptor for a connection upstream: that is the gateway's own, and no endpoint pays for it.
#[test]
fn an_endpoint_is_not_blamed_for_descriptors() {
    let (one, other) = (Upstream::answering(ok("served")), Upstream::answering(ok("served")));
    let gateway = Gateway::start(json!({
        "workers": 1,
        "circuit_breaker": { "failure_threshold": 1, "timeout_seconds": 600 },
        "routes": [
            { "path": "/two", "backend": { "endpoints": [one.url(), other.url()] }, "retry": { "attempts": 2 } },
            { "path": "/cached", "backend": one.url(), "enable_cache": true },
        ],
    }));
    let mut client = gateway.connect();
    // It is accepted, and nobody upstream has been asked.
    assert_eq!(client.get("/none").status(), 404);
    let mut admin = Client::connect(gateway.metrics);
    let mut scrape = || Metrics::new(admin.get("/metrics").text());
    scrape();
    let process = Pid::from_raw(gateway.id() as i32);
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let allow =
        |current| prlimit(process, Resource::Nofile, Rlimit { current, maximum }).expect("the child is ours");
    // Fewer than are open already: not one more.
    allow(Some(3));
    for path in ["/two", "/two", "/cached"] {
        expect_shed(&client.get(path));
    }
    let metrics = scrape();
    assert_eq!(metrics.requests(503, "shed:descriptors"), 3.0);
    for name in ["retries_total", "failures_total", "connect_failures_total"] {
        let name = format!("gateway_upstream_{name}");
        assert_eq!(metrics.get(&name, &[]).unwrap_or_default(), 0.0, "{name}");
    }
    let closed = [("state", "closed")];
    assert_eq!(metrics.get("gateway_upstream_breaker_state", &closed), Some(2.0), "{metrics}");
    // As it set it itself when it began.
    allow(maximum);
    for path in ["/two", "/two", "/cached"] {
        assert_eq!(client.get(path).text(), "served");
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
