//! What a cached route does beyond the RFC's table: what is served how, what is kept, what goes.

use std::sync::atomic::{AtomicUsize, Ordering};

use gateway_tests::client::get;
use gateway_tests::{Api, Client, Gate, Gateway, Message, Upstream};
use serde_json::{Value, json};

fn cached(upstream: &Upstream, cache: Value) -> Gateway {
    Gateway::controlled(json!({
        "routes": [{ "path": "/", "backend": upstream.url(), "enable_cache": true, "cache": cache }]
    }))
}

/// A backend that numbers its answers: the body is the how-manieth request this was.
fn counting(head: &'static str) -> Upstream {
    let count = AtomicUsize::new(0);
    Upstream::start(move |mut conn| {
        while conn.request().is_some() {
            let body = count.fetch_add(1, Ordering::SeqCst).to_string();
            conn.send(format!("HTTP/1.1 200 OK\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len()));
        }
    })
}

fn ask(client: &mut Client, target: &str, fields: &str) -> Message {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).response()
}

#[test]
fn what_cache_status_says() {
    let upstream =
        counting("Cache-Control: max-age=60\r\nCache-Status: origin; hit\r\nX-Request-Id: own\r\n");
    let gateway = cached(&upstream, json!({}));
    let mut client = gateway.connect();
    let miss = client.get("/x");
    assert_eq!(miss.all("cache-status"), ["origin; hit", "gateway; fwd=uri-miss; stored"]);
    let hit = client.get("/x");
    let ttl = hit.all("cache-status")[1].strip_prefix("gateway; hit; ttl=").and_then(|ttl| ttl.parse().ok());
    assert!(ttl.is_some_and(|ttl: i64| (50..=60).contains(&ttl)), "{hit}");
    assert_eq!(hit.field("age").and_then(|age| age.parse().ok()).map(|age: u64| age < 10), Some(true));
    let ids = [&miss, &hit].map(|answer| answer.all("x-request-id"));
    assert_eq!(ids.each_ref().map(Vec::len), [1; 2], "{ids:?}");
    assert!(ids[0] != ids[1] && !ids.concat().contains(&"own"), "each request has its own: {ids:?}");
    let post = client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").response();
    assert_eq!(post.all("cache-status")[1], "gateway; fwd=method");
    let vary = counting("Cache-Control: max-age=60\r\nVary: Foo\r\n");
    let gateway = cached(&vary, json!({}));
    let mut client = gateway.connect();
    ask(&mut client, "/x", "Foo: 1\r\n");
    let other = ask(&mut client, "/x", "Foo: 2\r\n");
    assert_eq!(other.field("cache-status"), Some("gateway; fwd=vary-miss; stored"));
}

#[test]
fn a_route_without_it_stores_nothing_and_says_nothing() {
    let upstream = counting("Cache-Control: max-age=60\r\n");
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    assert_eq!((client.get("/x").text(), client.get("/x").text()), ("0".to_owned(), "1".to_owned()));
    assert_eq!(client.get("/x").field("cache-status"), None);
}

#[test]
fn large_bodies_are_stored_in_pieces_and_served_in_parts() {
    let body: String = (0..300_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nETag: \"e\"\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let upstream = Upstream::answering(answer);
    let gateway = cached(&upstream, json!({}));
    let mut client = gateway.connect();
    assert_eq!(client.get("/x").text(), body);
    assert_eq!(client.get("/x").text(), body);
    for (range, want) in [
        ("0-0", "0-0"),
        ("0-", "0-299999"),
        ("65535-65536", "65535-65536"),
        ("100000-250000", "100000-250000"),
        ("-3", "299997-299999"),
        ("299999-400000", "299999-299999"),
    ] {
        let part = ask(&mut client, "/x", &format!("Range: bytes={range}\r\n"));
        let (first, last) = want.split_once('-').unwrap();
        let bytes = first.parse().unwrap()..=last.parse::<usize>().unwrap();
        assert_eq!((part.status(), part.text()), (206, body[bytes].to_owned()), "{range}");
        assert_eq!(part.field("content-range"), Some(format!("bytes {want}/300000").as_str()));
    }
    let whole = ask(&mut client, "/x", "Range: bytes=0-1,5-6\r\n");
    assert_eq!((whole.status(), whole.body.len()), (200, body.len()), "several ranges: the whole");
    let other = ask(&mut client, "/x", "Range: bytes=0-1\r\nIf-Range: \"f\"\r\n");
    assert_eq!((other.status(), other.body.len()), (200, body.len()));
    let same = ask(&mut client, "/x", "Range: bytes=0-1\r\nIf-Range: \"e\"\r\n");
    assert_eq!((same.status(), same.text().as_str()), (206, "ab"));
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn chunked_bodies_have_a_length_when_they_are_stored() {
    let upstream = Upstream::answering(
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n\
         3\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n",
    );
    let gateway = cached(&upstream, json!({}));
    let mut client = gateway.connect();
    let miss = ask(&mut client, "/x", "TE: trailers\r\n");
    assert_eq!((miss.text().as_str(), miss.trailers.len()), ("abcde", 1));
    let hit = client.get("/x");
    assert_eq!((hit.text().as_str(), hit.field("content-length")), ("abcde", Some("5")));
    let head = client.send("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n").response_to("HEAD");
    assert_eq!((head.status(), head.field("content-length")), (200, Some("5")));
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_body_that_breaks_off_is_not_stored() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 9\r\n\r\nhalf");
    });
    let gateway = cached(&upstream, json!({}));
    for _ in 0..2 {
        let mut client = gateway.connect();
        assert!(client.send(get("/x")).try_response("GET").is_err());
    }
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn what_is_too_large_passes() {
    let upstream = Upstream::answering(format!(
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 5000\r\n\r\n{}",
        "x".repeat(5000)
    ));
    let gateway = cached(&upstream, json!({ "max_entry_bytes": 4096 }));
    let mut client = gateway.connect();
    for _ in 0..2 {
        let answer = client.get("/x");
        assert_eq!((answer.body.len(), answer.field("cache-status")), (5000, Some("gateway; fwd=uri-miss")));
    }
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn a_304_brings_the_stored_head_up_to_date() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            conn.send(match request.field("if-none-match") {
                Some("\"a\"") => "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nCache-Control: max-age=60\r\nX: 2\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nCache-Control: no-cache\r\nX: 1\r\nY: 1\r\nContent-Length: 4\r\n\r\nbody",
            });
        }
    });
    let gateway = cached(&upstream, json!({}));
    let mut client = gateway.connect();
    client.get("/x");
    let validated = client.get("/x");
    assert_eq!(validated.field("cache-status"), Some("gateway; fwd=stale; fwd-status=304; stored"));
    for answer in [validated, client.get("/x")] {
        assert_eq!((answer.status(), answer.text().as_str()), (200, "body"));
        assert_eq!((answer.field("x"), answer.field("y")), (Some("2"), Some("1")));
    }
    assert_eq!(upstream.requests().len(), 2);
    assert_eq!(gateway.scrape().get("gateway_cache_requests_total", &[("result", "revalidated")]), Some(1.0));
}

/// While the fresh one is fetched, which the gate holds up, the stale one is the answer.
#[test]
fn stale_while_revalidate_answers_at_once_and_fetches_once() {
    let gate = Gate::default();
    let count = AtomicUsize::new(0);
    let upstream = Upstream::start({
        let gate = gate.clone();
        move |mut conn| {
            while conn.request().is_some() {
                let head = if count.fetch_add(1, Ordering::SeqCst) == 0 {
                    "Cache-Control: max-age=60, stale-while-revalidate=60\r\nAge: 60\r\n"
                } else {
                    gate.wait();
                    "Cache-Control: max-age=60\r\n"
                };
                conn.send(format!("HTTP/1.1 200 OK\r\n{head}Content-Length: 2\r\n\r\nok"));
            }
        }
    });
    let gateway = cached(&upstream, json!({}));
    let mut client = gateway.connect();
    client.get("/x");
    for _ in 0..20 {
        let status = client.get("/x").field("cache-status").unwrap_or_default().to_owned();
        assert!(status.starts_with("gateway; hit; ttl="), "{status}");
    }
    gateway.wait_for_metrics("the fetch", |_| upstream.requests().len() == 2);
    gate.open();
    let is_fresh = |_: &_| {
        let answer = gateway.get("/x");
        let ttl = answer.field("cache-status").and_then(|status| status.strip_prefix("gateway; hit; ttl="));
        ttl.and_then(|ttl| ttl.parse::<i64>().ok()).is_some_and(|ttl| ttl > 0)
    };
    gateway.wait_for_metrics("the fresh one", is_fresh);
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn stale_if_error_stands_in_for_a_backend_that_is_gone() {
    let upstream = Upstream::start(|mut conn| {
        if conn.index == 0 {
            conn.request();
            let head = "Cache-Control: max-age=60, stale-if-error=60\r\nAge: 60\r\nConnection: close\r\n";
            conn.send(format!("HTTP/1.1 200 OK\r\n{head}Content-Length: 2\r\n\r\nok"));
        }
    });
    let gateway = cached(&upstream, json!({}));
    gateway.get("/x");
    let stale = gateway.get("/x");
    assert_eq!((stale.status(), stale.text().as_str()), (200, "ok"));
    assert!(stale.field("cache-status").unwrap_or_default().contains("stale-if-error"), "{stale}");
    assert_eq!(gateway.get("/other").status(), 502);
}

#[test]
fn a_hot_entry_is_fetched_anew_before_its_time() {
    let upstream = counting("Cache-Control: max-age=1000\r\nAge: 985\r\n");
    let gateway = cached(&upstream, json!({ "ttl": "1000s" }));
    gateway.get("/x");
    gateway.wait_for_metrics("the refresh", |_| {
        gateway.get("/x");
        upstream.requests().len() > 1
    });
    let hits = gateway.scrape().get("gateway_cache_requests_total", &[("result", "hit")]).unwrap_or(0.0);
    assert!(hits >= 16.0, "only a hot one, after {hits} hits");
}

#[test]
fn unsafe_methods_invalidate_what_they_name() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            let head = match request.method() {
                "POST" => "Location: http://a/there?q\r\nContent-Location: /here\r\n",
                _ => "Cache-Control: max-age=60\r\n",
            };
            conn.send(format!("HTTP/1.1 201 Created\r\n{head}Content-Length: 2\r\n\r\nok"));
        }
    });
    let gateway = cached(&upstream, json!({}));
    let mut client = gateway.connect();
    for target in ["/there?q", "/here", "/other", "/form"] {
        client.get(target);
    }
    client.send("POST /form HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").response();
    for (target, kept) in [("/there?q", false), ("/here", false), ("/other", true), ("/form", false)] {
        let status = client.get(target).field("cache-status").unwrap_or_default().to_owned();
        assert_eq!(status.contains("hit"), kept, "{target}: {status}");
    }
}

#[test]
fn what_the_key_is_made_of() {
    let upstream = counting("Cache-Control: max-age=60\r\n");
    let gateway = cached(
        &upstream,
        json!({ "key_query": { "keep": ["a", "b", "u"], "ignore": ["u"], "sort": true }, "key_headers": ["X-Tenant"] }),
    );
    let mut client = gateway.connect();
    for (target, fields, want) in [
        ("/x?a=1&b=2", "", "0"),
        ("/x?b=2&a=1&u=9&z=9", "", "0"),
        ("//x?b=2&a=1", "", "1"),
        ("/%78?b=2&a=1", "", "0"),
        ("/x?a=2&b=1", "", "2"),
        ("/x?a=1&b=2", "X-Tenant: t\r\n", "3"),
        ("/x?a=1&b=2", "X-Tenant: t\r\n", "3"),
        ("/x?a=1&b=2", "", "0"),
    ] {
        assert_eq!(ask(&mut client, target, fields).text(), want, "{target} {fields}");
    }
    client.send("GET /x?a=1&b=2 HTTP/1.1\r\nHost: A:80\r\n\r\n");
    assert_eq!(client.response().text(), "0", "case and the scheme's own port make no difference");
    client.send("GET /x?a=1&b=2 HTTP/1.1\r\nHost: b\r\n\r\n");
    assert_eq!(client.response().text(), "4", "another host does");
}

#[test]
fn a_trusted_proxy_s_scheme_is_part_of_the_key() {
    let upstream = counting("Cache-Control: max-age=60\r\n");
    let of = |trusted: &[&str]| {
        let gateway = Gateway::start(json!({
            "trusted_proxies": trusted,
            "routes": [{ "path": "/", "backend": upstream.url(), "enable_cache": true }]
        }));
        let mut client = gateway.connect();
        let mut text = |fields| ask(&mut client, "/x", fields).text();
        text("") == text("X-Forwarded-Proto: https\r\n")
    };
    assert!(!of(&["127.0.0.1"]));
    assert!(of(&[]), "anybody else's word counts for nothing");
}

#[test]
fn conditions_of_a_route() {
    let upstream = counting("Cache-Control: max-age=60\r\n");
    let gateway = cached(
        &upstream,
        json!({ "bypass": ["header:X-Preview", "query:fresh"], "no_store": ["cookie:draft"] }),
    );
    let mut client = gateway.connect();
    for (target, fields, want) in [
        ("/x", "Cookie: draft=1\r\n", "0"),
        ("/x", "", "1"),
        ("/x", "", "1"),
        ("/x", "X-Preview: 1\r\n", "2"),
        ("/x", "X-Preview: 0\r\n", "1"),
        ("/x", "Cookie: draft=1\r\n", "1"),
        ("/x?fresh=1", "", "3"),
        ("/x?fresh=1", "", "4"),
        ("/x?fresh=", "", "5"),
        ("/x?fresh=", "", "5"),
    ] {
        assert_eq!(ask(&mut client, target, fields).text(), want, "{target} {fields}");
    }
}

#[test]
fn a_route_s_ttl_and_its_cookies() {
    let upstream = counting("Set-Cookie: a=b\r\n");
    let gateway = cached(&upstream, json!({ "ttl": "60s", "store_set_cookie": true }));
    let mut client = gateway.connect();
    client.get("/x");
    let hit = client.get("/x");
    assert_eq!((hit.text().as_str(), hit.field("set-cookie")), ("0", Some("a=b")));
}

#[test]
fn fields_for_the_first_client_alone() {
    let upstream = counting(
        "Cache-Control: max-age=60, private=\"X-A\", no-cache=\"X-B\"\r\nX-A: 1\r\nX-B: 2\r\nX-C: 3\r\n\
         Connection: x-d\r\nX-D: 4\r\nProxy-Authenticate: x\r\n",
    );
    let gateway = cached(&upstream, json!({}));
    let mut client = gateway.connect();
    let names = ["x-a", "x-b", "x-c", "x-d"];
    let of = |message: Message| names.map(|name| message.field(name).map(str::to_owned));
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(of(client.get("/x")), [some("1"), some("2"), some("3"), None]);
    let hit = client.get("/x");
    assert_eq!(hit.field("proxy-authenticate"), None);
    assert_eq!(of(hit), [None, None, some("3"), None]);
}

#[test]
fn purging() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            let tag = if request.target().starts_with("/t") {
                "Cache-Tag: one, two\r\n"
            } else {
                "Surrogate-Key: three two\r\n"
            };
            conn.send(format!(
                "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n{tag}Content-Length: 2\r\n\r\nok"
            ));
        }
    });
    let gateway = cached(&upstream, json!({}));
    let mut client = gateway.connect();
    let mut stored = |wanted: &[&str]| {
        let targets = ["/", "/p/1", "/p/2", "/px", "/t?q"];
        let mut found = Vec::new();
        for target in targets {
            let answer = ask(&mut client, target, "Cache-Control: only-if-cached\r\n");
            found.extend((answer.status() == 200).then_some(target));
            client.get(target);
        }
        assert_eq!(found, wanted);
    };
    stored(&[]);
    for (what, count, left) in [
        (json!({"url": "http://A/p/1"}), 1, &["/", "/p/2", "/px", "/t?q"][..]),
        (json!({"url": "http://a/t"}), 0, &["/", "/p/1", "/p/2", "/px", "/t?q"]),
        (json!({"url": "a/t?q"}), 1, &["/", "/p/1", "/p/2", "/px"]),
        (json!({"prefix": "http://a/p/"}), 2, &["/", "/px", "/t?q"]),
        (json!({"prefix": "http://a"}), 5, &[]),
        (json!({"tag": "one"}), 1, &["/", "/p/1", "/p/2", "/px"]),
        (json!({"tag": "two"}), 5, &[]),
        (json!({"tag": "tw"}), 0, &["/", "/p/1", "/p/2", "/px", "/t?q"]),
    ] {
        let answer = Api::of(&gateway).post("/v1/purge", &what);
        assert_eq!((answer.status(), answer.json()), (200, json!({ "purged": count })), "{what}");
        stored(left);
    }
}

#[test]
fn a_url_is_purged_however_it_is_written() {
    let upstream = counting("Cache-Control: max-age=60\r\n");
    let gateway = cached(&upstream, json!({ "key_query": { "ignore": ["utm"], "sort": true } }));
    let mut client = gateway.connect();
    for (round, url) in
        ["http://a/x?b=2&utm=9&a=1", "http://A:80/%78?a=1&b=2", "a/y/../x?a=1&b=2"].into_iter().enumerate()
    {
        assert_eq!(client.get("/x?utm=1&a=1&b=2").text(), round.to_string(), "{url}");
        assert_eq!(client.get("/x?a=1&b=2&utm=2").text(), round.to_string(), "{url}");
        let answer = Api::of(&gateway).post("/v1/purge", &json!({ "url": url }));
        assert_eq!(answer.json(), json!({ "purged": 1 }), "{url}");
    }
}

#[test]
fn a_reload_keeps_what_unchanged_routes_have() {
    let upstream = counting("Cache-Control: max-age=60\r\n");
    let route = |path: &str, ttl: &str| json!({ "path": path, "backend": upstream.url(), "enable_cache": true, "cache": { "ttl": ttl } });
    let gateway = Gateway::start(json!({ "routes": [route("/same", "60s"), route("/other", "60s")] }));
    let mut client = gateway.connect();
    assert_eq!((client.get("/same").text(), client.get("/other").text()), ("0".to_owned(), "1".to_owned()));
    gateway.write(json!({ "routes": [route("/other", "61s"), route("/same", "60s")], "cache": { "max_bytes": 99999999 } }));
    gateway.log.wait_for("configuration reloaded");
    assert_eq!((client.get("/same").text(), client.get("/other").text()), ("0".to_owned(), "2".to_owned()));
}

#[test]
fn bounded_by_bytes_however_much_passes() {
    const CLIENTS: usize = 4;
    const EACH: usize = 10_000;
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            let number: usize = request.target()[1..].parse().expect("a number");
            let body = "x".repeat(64 + number.wrapping_mul(2_654_435_761) % 8_000);
            let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nX-Some: field";
            conn.send(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    });
    let max_bytes = 32 << 20;
    let gateway = Gateway::start(json!({
        "routes": [{ "path": "/", "backend": upstream.url(), "enable_cache": true }],
        "cache": { "max_bytes": max_bytes }
    }));
    let before = gateway.memory_kib("VmRSS") * 1024;
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut connection = gateway.connect();
                (0..EACH).for_each(|n| drop(connection.get(&format!("/{}", n * CLIENTS + client))));
            });
        }
    });
    let metrics = gateway.scrape();
    let counted = metrics.get("gateway_cache_bytes", &[]).unwrap_or(0.0) as usize;
    assert!((max_bytes * 9 / 10..=max_bytes).contains(&counted), "{counted} bytes counted");
    assert!(metrics.get("gateway_cache_evictions_total", &[]).unwrap_or(0.0) > 1000.0);
    let grown = (gateway.memory_kib("VmRSS") * 1024).saturating_sub(before) as usize;
    // Besides what is stored, it is connections and what the heaps hold free.
    assert!(grown < max_bytes * 14 / 10, "{grown} bytes more in memory");
}
