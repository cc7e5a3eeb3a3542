//! Everything an upstream can do wrong: what the client gets, what is tried again, what the breaker sees.

use std::time::Duration;

use gateway_tests::client::get;
use gateway_tests::metrics::Metrics;
use gateway_tests::upstream::nowhere;
use gateway_tests::{Client, Fault, Gateway, Upstream};
use serde_json::json;

const POST: &str = "POST {} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";

/// What a client sees: a status, or a response that is cut short.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    Status(u16),
    Cut,
}

use Seen::{Cut, Status};

struct Row {
    fault: Option<Fault>,
    /// Where there is no other endpoint.
    alone: Seen,
    /// A GET, and a POST, with a good endpoint beside this one.
    get: Seen,
    /// `None`: it depends on who is faster.
    post: Option<Seen>,
    /// Phase and cause that are counted, one of these; or nothing.
    failure: Failure,
}

type Failure = &'static [(&'static str, &'static str)];

const OK: Seen = Status(200);

#[rustfmt::skip]
fn rows() -> Vec<Row> {
    let row = |fault, alone, get, post, failure: Failure| Row { fault: Some(fault), alone, get, post: Some(post), failure };
    vec![
        // Nobody listens: nothing was sent, so anything may be tried again.
        Row { fault: None, alone: Status(502), get: OK, post: Some(OK), failure: &[("connect", "refused")] },
        row(Fault::AcceptAndHang, Status(504), OK, Status(504), &[("response", "timeout")]),
        Row { post: None, ..row(Fault::ResetOnAccept, Status(502), OK, OK, &[("response", "reset"), ("response", "closed"), ("connect", "failed")]) },
        row(Fault::Silent, Status(504), OK, Status(504), &[("response", "timeout")]),
        row(Fault::Close, Status(502), OK, Status(502), &[("response", "closed")]),
        row(Fault::Reset, Status(502), OK, Status(502), &[("response", "reset")]),
        row(Fault::HalfAHeadThenClose, Status(502), OK, Status(502), &[("response", "closed")]),
        row(Fault::HalfAHeadThenStall, Status(504), OK, Status(504), &[("response", "timeout")]),
        row(Fault::Garbage, Status(502), OK, Status(502), &[("response", "malformed")]),
        row(Fault::Status(500), Status(500), Status(500), Status(500), &[("response", "status")]),
        row(Fault::Status(502), Status(502), OK, Status(502), &[("response", "status")]),
        row(Fault::Status(503), Status(503), OK, Status(503), &[("response", "status")]),
        row(Fault::RetryAfter(60), Status(503), OK, Status(503), &[("response", "status")]),
        // The head is out: nothing is tried again.
        row(Fault::CloseAmidBody, Cut, Cut, Cut, &[("body", "cut")]),
        row(Fault::ResetAmidBody, Cut, Cut, Cut, &[("body", "cut")]),
        row(Fault::StallAmidBody, Cut, Cut, Cut, &[("body", "timeout")]),
        row(Fault::BadChunk, Cut, Cut, Cut, &[("body", "malformed")]),
        row(Fault::Drip, Cut, Cut, Cut, &[("body", "timeout")]),
        // No fault of the upstream's.
        row(Fault::Status(404), Status(404), Status(404), Status(404), &[]),
        row(Fault::Status(501), Status(501), Status(501), Status(501), &[]),
        // A request that comes before the end of the connection does is not repeated unless it may be.
        Row { post: None, ..row(Fault::HalfClose, OK, OK, OK, &[]) },
        row(Fault::Delay(Duration::from_millis(100)), OK, OK, OK, &[]),
    ]
}

fn seen(client: &mut Client, request: &str) -> Seen {
    let sent = client.send(request).try_response("GET");
    match sent {
        Ok(response) => Status(response.status()),
        Err(error) => {
            assert!(error.kind() != std::io::ErrorKind::WouldBlock, "the client hangs: {request}");
            Cut
        }
    }
}

/// Failures of `upstream` for one of `causes`.
fn failures(metrics: &Metrics, upstream: &str, causes: Failure) -> f64 {
    let of = |(phase, cause): &(&str, &str)| {
        let labels = [("upstream", upstream), ("phase", phase), ("cause", cause)];
        metrics.get("gateway_upstream_failures_total", &labels)
    };
    causes.iter().filter_map(of).sum()
}

#[test]
fn what_comes_of_every_fault() {
    let rows = rows();
    let good = Upstream::ok();
    let bad: Vec<Option<Upstream>> = rows.iter().map(|row| row.fault.map(Fault::start)).collect();
    let nobody = format!("http://{}", nowhere());
    let url = |at: usize| bad[at].as_ref().map_or(nobody.clone(), Upstream::url);
    let mut routes = Vec::new();
    for at in 0..rows.len() {
        // In turns, so that the bad one is asked first; weights make the two backends two clusters.
        let pair = |weight: u32| {
            let endpoints =
                [json!({ "url": url(at), "weight": weight }), json!({ "url": good.url(), "weight": weight })];
            json!({ "endpoints": endpoints, "balancer": "round_robin" })
        };
        for (path, backend) in [("alone", json!(url(at))), ("get", pair(1)), ("post", pair(2))] {
            routes.push(json!({
                "path": format!("/{at}/{path}"), "backend": backend, "timeout_seconds": "1s",
                "retry": { "attempts": if path == "alone" { 0 } else { 1 }, "per_try_timeout": "500ms" }
            }));
        }
    }
    let gateway = Gateway::start(json!({
        // A score that hardly moves leaves the order of turns as it is.
        "routes": routes, "workers": 1, "circuit_breaker": { "failure_threshold": 3, "health_decay": 0.9999 }
    }));
    let tasks = tasks_at_rest(&gateway);
    for (at, row) in rows.iter().enumerate() {
        let what = format!("{:?}", row.fault);
        let target = |path: &str| format!("/{at}/{path}");
        // A response that is cut short takes the connection with it.
        assert_eq!(seen(&mut gateway.connect(), &get(&target("alone"))), row.alone, "{what} alone");
        assert_eq!(seen(&mut gateway.connect(), &get(&target("get"))), row.get, "{what}: GET");
        let (third, want) = match row.post {
            Some(post) => (POST.replace("{}", &target("post")), post),
            None => (get(&target("post")), row.get),
        };
        assert_eq!(seen(&mut gateway.connect(), &third), want, "{what}: POST");

        // A body's end is judged after the client has seen it.
        let url = url(at);
        let upstream = url.trim_start_matches("http://");
        let fails = !row.failure.is_empty();
        let (state, next) = if fails { ("open", Status(503)) } else { ("closed", row.alone) };
        if fails {
            let counted = |m: &Metrics| failures(m, upstream, row.failure) == 3.0;
            gateway.wait_for_metrics(&format!("{what}: three failures"), counted);
        }
        let is = [("upstream", upstream), ("state", state)];
        gateway.wait_for_metrics(&format!("{what}: the breaker is {state}"), |m| {
            m.get("gateway_upstream_breaker_state", &is) == Some(1.0)
        });
        assert_eq!(seen(&mut gateway.connect(), &get(&target("alone"))), next, "{what}: the next request");
        if fails {
            let response = gateway.get(&target("alone"));
            let wait: u64 =
                response.field("retry-after").expect("a refusal says when").parse().expect("seconds");
            assert!((1..=66).contains(&wait), "{what}: {response}");
        }
        let healthy = [("upstream", upstream)];
        let all = gateway.scrape().get("gateway_upstream_failures_total", &healthy);
        assert_eq!(all, Some(if fails { 3.0 } else { 0.0 }), "{what}: no other failure");
    }
    let causes = gateway.admin("/stats").json();
    let refused = &causes["upstreams"][nobody.trim_start_matches("http://")];
    assert_eq!(refused["failures"], json!([{ "phase": "connect", "cause": "refused", "requests": 3 }]));
    assert_eq!(refused["breaker"], "open");
    nothing_leaks(&gateway, tasks);
}

/// Tasks of the workers before anything is asked, counted once a second.
fn tasks_at_rest(gateway: &Gateway) -> f64 {
    gateway.wait_for_metrics("tasks", |m| m.get("gateway_tasks", &[]).is_some_and(|tasks| tasks > 0.0));
    gateway.scrape().get("gateway_tasks", &[]).expect("it has been there")
}

/// Waits until the gateway holds what it held at rest: clients are gone, upstream connections are idle.
#[track_caller]
pub fn nothing_leaks(gateway: &Gateway, tasks: f64) {
    gateway.wait_for_metrics("nothing is held", |m| {
        let sum = |name: &str| m.get(name, &[]).unwrap_or(0.0);
        sum("gateway_connections_open") == 0.0
            && sum("gateway_upstream_active_requests") == 0.0
            && sum("gateway_upstream_waiting_requests") == 0.0
            && sum("gateway_upstream_connections") == sum("gateway_upstream_idle_connections")
            && sum("gateway_upstream_breaker_probes") == 0.0
            && sum("gateway_retries_active") == 0.0
            && sum("gateway_tasks") <= tasks
    });
}

#[test]
fn clients_that_leave_at_any_point_leak_nothing_and_are_nobody_s_fault() {
    let bad = [Fault::Silent, Fault::StallAmidBody, Fault::HalfAHeadThenStall, Fault::AcceptAndHang];
    let bad: Vec<_> = bad.into_iter().map(Fault::start).collect();
    let routes = bad.iter().enumerate().map(|(at, upstream)| {
        json!({ "path": format!("/{at}"), "backend": upstream.url(), "retry": { "attempts": 2 } })
    });
    let gateway = Gateway::start(json!({
        "routes": routes.collect::<Vec<_>>(), "workers": 1, "circuit_breaker": { "failure_threshold": 1 }
    }));
    let tasks = tasks_at_rest(&gateway);
    for (at, upstream) in bad.iter().enumerate() {
        for request in [get(&format!("/{at}")), POST.replace("{}", &format!("/{at}"))] {
            let before = upstream.connections();
            let mut client = gateway.connect();
            client.send(&request);
            let name = upstream.address.to_string();
            gateway.wait_for_metrics("the request is under way", |m| {
                upstream.connections() > before
                    && m.get("gateway_upstream_active_requests", &[("upstream", &name)]) == Some(1.0)
            });
            client.reset();
            gateway.wait_for_metrics("it is let go", |m| {
                m.get("gateway_upstream_active_requests", &[("upstream", &name)]) == Some(0.0)
            });
        }
    }
    assert_eq!(gateway.scrape().get("gateway_upstream_failures_total", &[]), Some(0.0));
    nothing_leaks(&gateway, tasks);
}
