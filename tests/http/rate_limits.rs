//! Rate limits as clients meet them: who is refused, what the answers say, when it is over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use gateway_tests::client::get;
use gateway_tests::upstream::ok;
use gateway_tests::{Client, Gate, Gateway, Message, PATIENCE, Upstream};
use serde_json::{Value, json};

/// One route to `upstream` for every path, with `route` added to it, and the section `rate_limit`.
fn config(upstream: &Upstream, route: Value, section: Value) -> Value {
    let mut first = json!({ "path": "/", "backend": upstream.url() });
    for (key, value) in route.as_object().expect("an object") {
        first[key] = value.clone();
    }
    json!({ "routes": [first], "rate_limit": section })
}

fn limited(upstream: &Upstream, route: Value) -> Gateway {
    Gateway::start(config(upstream, route, json!({})))
}

fn rule(limit: u32, per: &str, key: Value) -> Value {
    json!({ "rate_limits": [{ "name": "a", "limit": limit, "per": per, "key": key }] })
}

fn number(response: &Message, field: &str) -> u64 {
    response
        .field(field)
        .and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("{field}: {response}"))
}

/// The statuses of `requests`, one after the other on a connection of `source`.
fn statuses(gateway: &Gateway, source: [u8; 4], requests: &[String]) -> Vec<u16> {
    let mut client = Client::connect_from(source, gateway.address);
    requests.iter().map(|request| client.send(request).response().status()).collect()
}

/// At a hundred a minute.
const A_TOKEN_COMES_AFTER: Duration = Duration::from_millis(600);
const ME: [u8; 4] = [127, 0, 0, 1];
const OTHER: [u8; 4] = [127, 0, 0, 2];

#[test]
fn the_shipped_configuration_admits_ten_of_a_volley_and_says_why_not_eleven() {
    let upstream = Upstream::ok();
    let mut shipped: Value = serde_json::from_str(include_str!("../../config/gateway.json")).unwrap();
    shipped["routes"][0]["backend"] = json!(upstream.url());
    shipped["listen_addr"] = json!("127.0.0.1:0");
    shipped["metrics_addr"] = json!("127.0.0.1:0");
    shipped["rate_limit"]["fields"] = json!("always");
    // Besides what looks after its health.
    let asked = || upstream.requests().iter().filter(|request| request.target() == "/api/users").count();
    // On a busy machine a volley may take so long that a twelfth would be admitted: it is tried again.
    let (gateway, mut client, answers) = (0..20)
        .find_map(|_| {
            let gateway = Gateway::start(shipped.clone());
            let mut client = gateway.connect();
            let (before, begun) = (asked(), Instant::now());
            let answers: Vec<_> = (0..11).map(|_| client.get("/api/users")).collect();
            let was_a_volley = begun.elapsed() < A_TOKEN_COMES_AFTER;
            let asked = asked() - before;
            assert!(asked == 10 || !was_a_volley, "{asked} reached the upstream");
            was_a_volley.then_some((gateway, client, answers))
        })
        .expect("one of twenty volleys is one");
    let mut statuses: Vec<_> = answers.iter().map(Message::status).collect();
    assert_eq!((statuses.pop(), &statuses[..]), (Some(429), &[200; 10][..]));

    let policy = Some(r#""default";q=100;w=60, "burst";q=10;w=6"#);
    for (n, answer) in answers[..10].iter().enumerate() {
        assert_eq!(answer.field("ratelimit-policy"), policy, "{answer}");
        let left = format!(r#""burst";r={};t="#, 9 - n);
        assert!(
            answer.field("ratelimit").is_some_and(|value| value.starts_with(&left)),
            "{left} in {answer}"
        );
    }
    let refused = &answers[10];
    let wait = number(refused, "retry-after");
    assert_eq!(wait, 1, "{refused}");
    assert_eq!(refused.field("ratelimit"), Some(r#""burst";r=0;t=1"#));
    assert_eq!(refused.field("ratelimit-policy"), policy);
    assert_eq!(refused.field("content-type"), Some("application/problem+json"));
    assert_eq!(refused.field("x-ratelimit-limit"), None);
    let problem = refused.json();
    assert_eq!(problem["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!((&problem["status"], &problem["violated-policies"]), (&json!(429), &json!(["burst"])));
    assert_eq!(problem["request_id"].as_str(), refused.field("x-request-id"));

    // Another client is not concerned; who waits as told is admitted, on the same connection.
    assert_eq!(self::statuses(&gateway, OTHER, &[get("/api/users")]), [200]);
    gateway.pass_time(wait as f64);
    assert_eq!(client.get("/api/users").status(), 200);
    gateway.wait_for_metrics("one refusal", |metrics| metrics.requests(429, "limited") == 1.0);
}

#[test]
fn ten_thousand_attempts_over_all_workers_admit_exactly_the_limit() {
    let upstream = Upstream::ok();
    let gateway = limited(
        &upstream,
        json!({ "rate_limits": [{ "name": "a", "limit": 100, "per": "day", "burst": 100 }] }),
    );
    let (admitted, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                let mut client = gateway.connect();
                client.send(get("/").repeat(250));
                for _ in 0..250 {
                    match client.response().status() {
                        200 => admitted.fetch_add(1, Ordering::Relaxed),
                        429 => refused.fetch_add(1, Ordering::Relaxed),
                        status => panic!("{status}"),
                    };
                }
            });
        }
    });
    assert_eq!((admitted.into_inner(), refused.into_inner()), (100, 9_900));
    assert_eq!(upstream.requests().len(), 100);
    let metrics = gateway.scrape();
    let decided = |outcome| {
        let labels = [("route", "/"), ("rule", "a"), ("outcome", outcome)];
        metrics.get("gateway_limit_decisions_total", &labels)
    };
    assert_eq!(
        [decided("allowed"), decided("near"), decided("denied")],
        [Some(90.0), Some(10.0), Some(9_900.0)]
    );
    assert_eq!(metrics.get("gateway_limit_keys", &[]), Some(1.0));
}

/// nginx's `rate=10r/s burst=20 nodelay`, as docs/limits.md writes it.
#[test]
fn ten_a_second_with_twenty_more_at_once() {
    let upstream = Upstream::ok();
    let rule = json!({ "name": "ip", "limit": 600, "per": "minute", "burst": 21 });
    let gateway = limited(&upstream, json!({ "rate_limits": [rule] }));
    let volley = || {
        let statuses = statuses(&gateway, ME, &vec![get("/"); 60]);
        statuses.iter().filter(|status| **status == 200).count()
    };
    // One more for each tenth of a second that the volley itself takes.
    let first = volley();
    assert!((21..=30).contains(&first), "{first}");
    gateway.pass_time(1.0);
    let second = volley();
    assert!((10..=30).contains(&second), "{second}");
}

#[test]
fn who_waits_as_told_is_admitted() {
    let upstream = Upstream::ok();
    for (route, told) in [
        (rule(5, "second", json!("client")), 1..=2),
        (json!({ "rate_limit_per_minute": 30, "burst_size": 1 }), 2..=2),
        (json!({ "rate_limit_per_minute": 60, "burst_size": 3 }), 1..=1),
    ] {
        let gateway = limited(&upstream, route.clone());
        let mut client = gateway.connect();
        for _ in 0..2 {
            let refused = loop {
                let answer = client.get("/");
                if answer.status() == 429 {
                    break answer;
                }
            };
            let seconds = number(&refused, "retry-after");
            assert!(told.contains(&seconds), "{route}: {refused}");
            gateway.pass_time(seconds as f64);
            assert_eq!(client.get("/").status(), 200, "{route}");
        }
    }
}

#[test]
fn each_key_counts_apart_and_its_absence_counts_by_client() {
    let upstream = Upstream::ok();
    let with = |field: &str| get("/").replace("\r\n\r\n", &format!("\r\n{field}\r\n\r\n"));
    let header = json!("header:X-Tenant");
    for (key, requests, want) in [
        (json!("client"), vec![get("/"), get("/b"), get("/?c")], [200, 200, 429]),
        (header.clone(), vec![with("x-tenant: a"), with("X-Tenant: b"), with("x-tenant: a")], [200; 3]),
        (header.clone(), vec![with("x-tenant: a"); 3], [200, 200, 429]),
        (header, vec![get("/"), with("x-tenant:"), get("/")], [200, 200, 429]),
        (json!("api_key"), vec![with("x-api-key: a"), with("x-api-key: a"), with("x-api-key: b")], [200; 3]),
        (json!("query:t"), vec![get("/?t=a%20b"), get("/?%74=a+b"), get("/?t=a%20%62&u=x")], [200, 200, 429]),
        (json!("query:t"), vec![get("/?t=a"), get("/?t=a"), get("/?t=A")], [200; 3]),
        // Made up anew each time, before or behind the one that the backend may take.
        (json!("query:t"), ["1", "2", "3"].map(|n| get(&format!("/?t={n}&t=a"))).to_vec(), [200, 200, 429]),
        (
            json!("api_key"),
            ["1", "2", "3"].map(|n| with(&format!("x-api-key: {n}\r\nX-API-Key: a"))).to_vec(),
            [200, 200, 429],
        ),
        (json!(["client", "query:t"]), vec![get("/?t=a"), get("/?t=b"), get("/?t=a")], [200; 3]),
    ] {
        let gateway = limited(&upstream, rule(2, "day", key.clone()));
        assert_eq!(statuses(&gateway, ME, &requests), want, "{key}: {requests:?}");
    }
    let gateway = limited(&upstream, rule(2, "day", json!("route")));
    assert_eq!(statuses(&gateway, ME, &[get("/")]), [200]);
    assert_eq!(statuses(&gateway, OTHER, &[get("/"), get("/")]), [200, 429], "all clients together");
}

#[test]
fn no_spelling_of_a_path_evades_its_limit() {
    let upstream = Upstream::ok();
    let gateway = Gateway::start(json!({
        "routes": [
            { "path": "/", "backend": upstream.url() },
            { "path": "/api/users", "backend": upstream.url(), "rate_limit_per_minute": 2 }
        ]
    }));
    let spellings =
        ["/api/users", "/api//users/7", "/api/%75sers", "//api/users", "/api/x/%2e%2e/users", "/api/users?x"];
    assert_eq!(statuses(&gateway, ME, &spellings.map(get)), [200, 200, 429, 429, 429, 429]);
    assert_eq!(statuses(&gateway, ME, &[get("/api/other")]), [200], "a route without a limit has none");
}

#[test]
fn global_rules_count_over_all_routes_unless_the_route_is_in_the_key() {
    let upstream = Upstream::ok();
    let routes = json!([
        { "path": "/a", "backend": upstream.url() },
        { "path": "/b", "backend": upstream.url(), "rate_limit_per_minute": 1 }
    ]);
    // The second request for /b is refused by its own rule, and so the global one is not charged for it.
    let requests = ["/a", "/b", "/b", "/a", "/a"].map(get);
    for (key, want) in [
        (json!("client"), [200, 200, 429, 200, 429]),
        (json!(["client", "route"]), [200, 200, 429, 200, 200]),
    ] {
        let rule = json!({ "name": "all", "limit": 3, "per": "day", "key": key });
        let gateway = Gateway::start(json!({ "routes": routes, "rate_limit": { "rules": [rule] } }));
        assert_eq!(statuses(&gateway, ME, &requests), want, "{key}");
    }
}

#[test]
fn which_answers_carry_which_fields() {
    let upstream = Upstream::answering(ok("").replace("\r\n\r\n", "\r\nRateLimit: \"theirs\";r=5\r\n\r\n"));
    let route = json!({ "rate_limit_per_minute": 2 });
    let ours = |answer: &Message| {
        answer.all("ratelimit").iter().filter(|value| value.starts_with(r#""default";r="#)).count()
    };
    let ask = |section: Value| {
        let gateway = Gateway::start(config(&upstream, route.clone(), section));
        let mut client = gateway.connect();
        [client.get("/"), client.get("/"), client.get("/")]
    };
    for (fields, want) in [("always", [1, 1, 1]), ("near", [0, 1, 1]), ("refused", [0, 0, 1])] {
        let answers = ask(json!({ "fields": fields }));
        assert_eq!(answers.each_ref().map(ours), want, "{fields}: {answers:?}");
        let theirs = answers.map(|answer| answer.all("ratelimit").contains(&r#""theirs";r=5"#));
        assert_eq!(theirs, [true, true, false], "what the upstream says stays");
    }
    let [first, _, refused] = ask(json!({ "fields": "refused", "legacy_fields": true }));
    assert_eq!((first.field("x-ratelimit-limit"), first.field("ratelimit-policy")), (None, None), "{first}");
    assert_eq!(refused.field("x-ratelimit-limit"), Some("2"));
    assert_eq!(number(&refused, "x-ratelimit-reset"), number(&refused, "retry-after"));

    let [first, _, refused] = ask(json!({ "fields": "always", "legacy_fields": true }));
    for (answer, left) in [(&first, "1"), (&refused, "0")] {
        assert_eq!(answer.field("x-ratelimit-limit"), Some("2"), "{answer}");
        assert_eq!(answer.field("x-ratelimit-remaining"), Some(left), "{answer}");
        assert!((1..=120).contains(&number(answer, "x-ratelimit-reset")), "{answer}");
    }
    let [first, _, third] = ask(json!({ "enabled": false }));
    assert_eq!((first.field("ratelimit-policy"), third.status()), (None, 200));
}

#[test]
fn a_shadow_rule_refuses_nothing_and_is_counted() {
    let upstream = Upstream::ok();
    let mut route = rule(2, "day", json!("client"));
    route["rate_limits"][0]["shadow"] = json!(true);
    let gateway = limited(&upstream, route);
    assert_eq!(statuses(&gateway, ME, &vec![get("/"); 5]), [200; 5]);
    assert_eq!(gateway.get("/").field("ratelimit-policy"), None);
    let labels = [("rule", "a"), ("outcome", "shadow")];
    assert_eq!(gateway.scrape().get("gateway_limit_decisions_total", &labels), Some(4.0));
}

#[test]
fn a_refused_upload_is_answered_and_the_connection_lives_on() {
    let upstream = Upstream::ok();
    let gateway = limited(&upstream, rule(1, "day", json!("query:t")));
    let mut client = gateway.connect();
    let post = "POST /?t=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(client.send(post).response().status(), 200);
    let refused = client.send(post.replace("\r\nHost", "\r\nAccept: text/html\r\nHost")).response();
    assert_eq!((refused.status(), refused.field("content-type")), (429, Some("text/html; charset=utf-8")));
    assert_eq!(client.get("/?t=2").status(), 200);
}

#[test]
fn a_client_has_so_many_requests_under_way_and_no_more() {
    let (came, arrived) = mpsc::channel();
    let (came, gate) = (Mutex::new(came), Gate::default());
    let opened = gate.clone();
    let upstream = Upstream::start(move |mut conn| {
        while let Some(request) = conn.request() {
            if request.target() == "/slow" {
                came.lock().unwrap().send(()).unwrap();
                opened.wait();
            }
            conn.send(ok(""));
        }
    });
    for (limits, status) in
        [(json!({ "max_concurrent_per_client": 2 }), 429), (json!({ "max_concurrent": 2 }), 503)]
    {
        let gateway = limited(&upstream, limits.clone());
        let busy: Vec<_> = (0..2)
            .map(|_| {
                let mut client = gateway.connect();
                client.send(get("/slow"));
                arrived.recv_timeout(PATIENCE).unwrap();
                client
            })
            .collect();
        let refused = gateway.get("/");
        assert_eq!((refused.status(), refused.field("retry-after")), (status, Some("1")), "{limits}");
        assert_eq!(refused.json()["violated-policies"], json!(["concurrency"]));
        let other = if status == 429 { 200 } else { 503 };
        assert_eq!(statuses(&gateway, OTHER, &[get("/")]), [other], "{limits}");
        // A client that leaves gives its place back.
        busy.into_iter().for_each(Client::reset);
        gateway.wait_for_metrics("both have left", |metrics| metrics.requests(499, "client_abort") == 2.0);
        assert_eq!(statuses(&gateway, ME, &vec![get("/"); 3]), [200; 3]);
        assert_eq!(gateway.scrape().requests(status, "concurrency"), if status == 429 { 1.0 } else { 2.0 });
    }
    gate.open();
    // So does one that is answered.
    let gateway = Gateway::start(config(&upstream, json!({}), json!({ "max_concurrent_per_client": 1 })));
    assert_eq!(statuses(&gateway, ME, &vec![get("/slow"); 3]), [200; 3]);
}

#[test]
fn a_reload_keeps_what_was_counted() {
    let upstream = Upstream::ok();
    let route = |limit: u32| config(&upstream, rule(limit, "day", json!("client")), json!({}));
    let gateway = Gateway::start(route(5));
    let volley =
        || statuses(&gateway, ME, &vec![get("/"); 10]).iter().filter(|status| **status == 200).count();
    let reload = |config: Value| {
        gateway.write(config);
        gateway.log.wait_for("configuration reloaded");
    };
    assert_eq!(volley(), 5);
    let mut same = route(5);
    same["timeouts"] = json!({ "idle": "50s" });
    reload(same);
    assert_eq!(volley(), 0);
    reload(route(8));
    assert_eq!(volley(), 3);
    reload(route(4));
    assert_eq!(volley(), 0);
    let mut other = route(8);
    other["rate_limit"]["num_shards"] = json!(64);
    gateway.write(other);
    let line = gateway.log.wait_for("configuration refused");
    assert!(line.contains("rate_limit.num_shards") && line.contains("restart"), "{line}");
}

/// Fifty in ten seconds, each more than a second after a 429 and before its time.
#[test]
fn ignored_refusals_are_counted_and_make_a_suspect() {
    let upstream = Upstream::ok();
    let gateway = limited(&upstream, rule(1, "day", json!("client")));
    let ignored = || gateway.scrape().get("gateway_limit_ignored_refusals_total", &[("rule", "a")]);
    let suspects = || gateway.scrape().get("gateway_limit_suspects", &[]);
    // A volley is no disregard, however long.
    assert_eq!(statuses(&gateway, ME, &vec![get("/"); 101])[1..], [429; 100]);
    assert_eq!((ignored(), suspects()), (Some(0.0), Some(0.0)));
    gateway.pass_time(2.1);
    assert_eq!(statuses(&gateway, ME, &vec![get("/"); 60]), [429; 60]);
    assert_eq!((ignored(), suspects()), (Some(60.0), Some(1.0)));
    // A key that is not the client's address says nothing about it.
    let gateway = limited(&upstream, rule(1, "day", json!("route")));
    statuses(&gateway, ME, &vec![get("/"); 2]);
    gateway.pass_time(2.1);
    statuses(&gateway, ME, &vec![get("/"); 60]);
    assert_eq!(gateway.scrape().get("gateway_limit_suspects", &[]), Some(0.0));
}

#[test]
fn who_is_behind_a_trusted_proxy_counts_apart_and_nobody_else_can_claim_to_be() {
    let upstream = Upstream::ok();
    let from = |client: &str| get("/").replace("\r\n\r\n", &format!("\r\nX-Forwarded-For: {client}\r\n\r\n"));
    let requests = ["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.1", "192.0.2.2"].map(from);
    let mut config = config(&upstream, rule(2, "day", json!("client")), json!({}));
    config["trusted_proxies"] = json!(["127.0.0.1"]);
    let gateway = Gateway::start(config);
    assert_eq!(statuses(&gateway, ME, &requests), [200, 200, 200, 429, 200]);
    assert_eq!(statuses(&gateway, OTHER, &requests), [200, 200, 429, 429, 429]);
    // What a proxy passes on in spite of refusals says nothing about the proxy.
    gateway.pass_time(2.1);
    statuses(&gateway, ME, &vec![from("192.0.2.1"); 60]);
    assert_eq!(gateway.scrape().get("gateway_limit_suspects", &[]), Some(0.0));
}
