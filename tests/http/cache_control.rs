//! RFC 9111 for a shared cache over real sockets: a table of exchanges, each row with its section.

use std::time::{Duration, SystemTime};

use gateway_tests::{Gateway, Message, Upstream};
use serde_json::json;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Want {
    /// Answered with what is stored, or is just being; the backend does not hear of it.
    Hit,
    /// The backend is asked, without a validator.
    Miss,
    /// The backend is asked whether the stored one still holds, and it is served.
    Validated,
    /// Answered with this status by the gateway, from what is stored or not at all.
    Status(u16),
}
use Want::{Hit, Miss, Status, Validated};

/// The request's fields, behind a method that is not GET; the backend's answer, behind a status that is
/// not 200; what is to come of it. `@-30` is the date of 30 seconds ago.
type Step = (&'static str, &'static str, Want);

/// Each row: the section, and the steps on one URL. What is to be fresh stays so for a minute at least, for the machine
/// may be busy between two steps; what is not to be has been stale from the start.
const TABLE: &[(&str, &[Step])] = &[
    // Storing, §3.
    ("3", &[("", "Cache-Control: max-age=60", Miss), ("", "", Hit)]),
    ("3: nothing is known of it", &[("", "", Miss), ("", "", Miss)]),
    ("3: any final status", &[("", "599|Cache-Control: max-age=60", Miss), ("", "", Hit)]),
    ("3: redirects", &[("", "302|Cache-Control: max-age=60\nLocation: /", Miss), ("", "", Hit)]),
    ("3: HEAD stores nothing", &[("HEAD|", "Cache-Control: max-age=60", Miss), ("", "", Miss)]),
    ("3: nor does POST", &[("POST|", "Cache-Control: max-age=60", Miss), ("", "", Miss)]),
    ("5.2.2.3", &[("", "599|Cache-Control: max-age=60, must-understand", Miss), ("", "", Miss)]),
    ("5.2.2.3", &[("", "Cache-Control: max-age=60, must-understand, no-store", Miss), ("", "", Hit)]),
    ("5.2.2.5", &[("", "Cache-Control: max-age=60, no-store", Miss), ("", "", Miss)]),
    ("5.2.2.5", &[("", "Cache-Control: No-StOrE\nExpires: @60", Miss), ("", "", Miss)]),
    ("5.2.2.7", &[("", "Cache-Control: max-age=60, private", Miss), ("", "", Miss)]),
    ("5.2.2.7", &[("", "Cache-Control: max-age=60, private=\"x\"", Miss), ("", "", Hit)]),
    ("5.2.1.5", &[("Cache-Control: no-store", "Cache-Control: max-age=60", Miss), ("", "", Miss)]),
    ("7.3", &[("", "Cache-Control: max-age=60\nSet-Cookie: a=b", Miss), ("", "", Miss)]),
    ("3.5", &[("Authorization: x", "Cache-Control: max-age=60", Miss), ("", "", Miss)]),
    ("3.5", &[("Authorization: x", "Cache-Control: max-age=60, public", Miss), ("", "", Hit)]),
    ("3.5", &[("Authorization: x", "Cache-Control: s-maxage=60", Miss), ("", "", Hit)]),
    ("3.5", &[("Authorization: x", "Cache-Control: max-age=60, must-revalidate", Miss), ("", "", Hit)]),
    ("3.5: the other way round", &[("", "Cache-Control: max-age=60", Miss), ("Authorization: x", "", Miss)]),
    ("7.3: of a cookie", &[("Cookie: a=b", "Cache-Control: max-age=60", Miss), ("", "", Miss)]),
    ("7.3: of a cookie", &[("Cookie: a=b", "Cache-Control: max-age=60, public", Miss), ("", "", Hit)]),
    ("4: for a cookie", &[("", "Cache-Control: max-age=60", Miss), ("Cookie: a=b", "", Hit)]),
    // Freshness, §4.2.
    ("4.2.1", &[("", "Cache-Control: max-age=6000\nAge: 5000", Miss), ("", "", Hit)]),
    ("4.2.1", &[("", "Cache-Control: max-age=60\nAge: 60", Miss), ("", "", Miss)]),
    ("4.2.1", &[("", "Cache-Control: max-age=60\nDate: @-60", Miss), ("", "", Miss)]),
    ("4.2.1", &[("", "Cache-Control: max-age=0, s-maxage=60", Miss), ("", "", Hit)]),
    ("4.2.1", &[("", "Cache-Control: max-age=60, s-maxage=0", Miss), ("", "", Miss)]),
    ("4.2.1", &[("", "Expires: @60\nDate: @0", Miss), ("", "", Hit)]),
    ("4.2: in any case", &[("", "Expires: SUN, 06 nOV 2095 08:49:37 gmt", Miss), ("", "", Hit)]),
    ("4.2.1", &[("", "Expires: @0\nDate: @0", Miss), ("", "", Miss)]),
    ("4.2.1", &[("", "Expires: @-60\nDate: @0", Miss), ("", "", Miss)]),
    ("4.2.1", &[("", "Cache-Control: max-age=60\nExpires: @-60\nDate: @0", Miss), ("", "", Hit)]),
    ("4.2.1", &[("", "Cache-Control: max-age=0\nExpires: @60\nDate: @0", Miss), ("", "", Miss)]),
    ("4.2.1: twice", &[("", "Cache-Control: max-age=60, max-age=0", Miss), ("", "", Miss)]),
    ("4.2.1: unreadable", &[("", "Cache-Control: max-age=-60", Miss), ("", "", Miss)]),
    ("4.2.1: unreadable", &[("", "Cache-Control: max-age='60'", Miss), ("", "", Miss)]),
    ("5.2: quoted", &[("", "Cache-Control: max-age=\"60\"", Miss), ("", "", Hit)]),
    ("5.2.3", &[("", "Cache-Control: x=\"max-age=60\", max-age=0", Miss), ("", "", Miss)]),
    ("1.2.2", &[("", "Cache-Control: max-age=99999999999", Miss), ("", "", Hit)]),
    ("5.3", &[("", "Expires: 0\nDate: @0", Miss), ("", "", Miss)]),
    ("4.2.2", &[("", "Last-Modified: @-100000\nDate: @0", Miss), ("", "", Hit)]),
    ("4.2.2", &[("", "404|Last-Modified: @-100000\nDate: @0", Miss), ("", "", Hit)]),
    ("4.2.2", &[("", "403|Last-Modified: @-100000\nDate: @0", Miss), ("", "", Miss)]),
    ("4.2.2", &[("", "599|Cache-Control: public\nLast-Modified: @-100000", Miss), ("", "", Hit)]),
    ("5.1: the first", &[("", "Cache-Control: max-age=60\nAge: 0, 99", Miss), ("", "", Hit)]),
    ("5.1: the first", &[("", "Cache-Control: max-age=60\nAge: 99\nAge: 0", Miss), ("", "", Miss)]),
    ("5.1: unreadable", &[("", "Cache-Control: max-age=60\nAge: -99", Miss), ("", "", Hit)]),
    // What a request asks for, §5.2.1.
    ("5.2.1.1", &[("", "Cache-Control: max-age=60\nAge: 9", Miss), ("Cache-Control: max-age=8", "", Miss)]),
    (
        "5.2.1.1",
        &[("", "Cache-Control: max-age=6000\nAge: 50", Miss), ("Cache-Control: max-age=800", "", Hit)],
    ),
    (
        "5.2.1.2",
        &[("", "Cache-Control: max-age=60\nAge: 70", Miss), ("Cache-Control: max-stale=20", "", Miss)],
    ),
    (
        "5.2.1.2",
        &[
            ("", "Cache-Control: max-age=60\nAge: 70\nETag: \"a\"", Miss),
            ("Cache-Control: max-stale=600", "", Hit),
            ("Cache-Control: max-stale=5", "304|", Validated),
        ],
    ),
    ("5.2.1.3", &[("", "Cache-Control: max-age=60", Miss), ("Cache-Control: min-fresh=70", "", Miss)]),
    ("5.2.1.4", &[("", "Cache-Control: max-age=60", Miss), ("Cache-Control: no-cache", "", Miss)]),
    (
        "5.2.1.4",
        &[
            ("", "Cache-Control: max-age=60\nETag: \"a\"", Miss),
            ("Cache-Control: no-cache", "304|", Validated),
        ],
    ),
    ("5.2.1.7", &[("Cache-Control: only-if-cached", "", Status(504))]),
    ("5.2.1.7", &[("", "Cache-Control: max-age=60", Miss), ("Cache-Control: only-if-cached", "", Hit)]),
    ("5.4", &[("", "Cache-Control: max-age=60", Miss), ("Pragma: no-cache", "", Miss)]),
    ("5.4", &[("", "Cache-Control: max-age=60", Miss), ("Pragma: no-cache\nCache-Control: x", "", Hit)]),
    // Validation, §4.3.
    ("4.3.1", &[("", "Cache-Control: max-age=0\nETag: \"a\"", Miss), ("", "304|", Validated)]),
    ("4.3.1", &[("", "Cache-Control: max-age=0\nETag: W/\"a\"", Miss), ("", "304|", Validated)]),
    ("4.3.1", &[("", "Cache-Control: max-age=0\nLast-Modified: @-99", Miss), ("", "304|", Validated)]),
    ("5.2.2.4", &[("", "Cache-Control: no-cache\nETag: \"a\"", Miss), ("", "304|", Validated)]),
    ("5.2.2.4", &[("", "Cache-Control: max-age=60, no-cache", Miss), ("", "", Miss)]),
    ("5.2.2.4", &[("", "Cache-Control: max-age=60, no-cache=\"x\"", Miss), ("", "", Hit)]),
    ("5.2.2.2", &[("", "Cache-Control: max-age=60, must-revalidate", Miss), ("", "", Hit)]),
    (
        "5.2.2.2",
        &[
            ("", "Cache-Control: max-age=60, must-revalidate\nAge: 60\nETag: \"a\"", Miss),
            ("Cache-Control: max-stale", "304|", Validated),
        ],
    ),
    (
        "4.3.4: fresh again",
        &[
            ("", "Cache-Control: max-age=0\nETag: \"a\"", Miss),
            ("", "304|Cache-Control: max-age=60", Validated),
            ("", "", Hit),
        ],
    ),
    (
        "4.3.4: replaced",
        &[
            ("", "Cache-Control: max-age=0\nETag: \"a\"", Miss),
            ("", "Cache-Control: max-age=60", Miss),
            ("", "", Hit),
        ],
    ),
    // Preconditions answered here, §4.3.2.
    (
        "4.3.2",
        &[("", "Cache-Control: max-age=60\nETag: \"a\"", Miss), ("If-None-Match: \"a\"", "", Status(304))],
    ),
    (
        "4.3.2",
        &[("", "Cache-Control: max-age=60\nETag: \"a\"", Miss), ("If-None-Match: W/\"a\"", "", Status(304))],
    ),
    ("4.3.2", &[("", "Cache-Control: max-age=60\nETag: \"a\"", Miss), ("If-None-Match: \"b\"", "", Hit)]),
    (
        "4.3.2",
        &[
            ("", "Cache-Control: max-age=60\nLast-Modified: @-99", Miss),
            ("If-Modified-Since: @-99", "", Status(304)),
            ("If-Modified-Since: @-200", "", Hit),
        ],
    ),
    (
        "4.3.2: a miss too",
        &[("If-None-Match: \"a\"", "Cache-Control: max-age=60\nETag: \"a\"", Status(304)), ("", "", Hit)],
    ),
    ("4.3.2: nothing stored", &[("If-Modified-Since: @60", "Cache-Control: no-store\nDate: @0", Miss)]),
    // Variants, §4.1.
    ("4.1", &[("Foo: 1", "Cache-Control: max-age=60\nVary: Foo", Miss), ("Foo: 1", "", Hit)]),
    ("4.1", &[("Foo: 1", "Cache-Control: max-age=60\nVary: Foo", Miss), ("Foo: 2", "", Miss)]),
    ("4.1", &[("Foo: 1", "Cache-Control: max-age=60\nVary: Foo", Miss), ("", "", Miss)]),
    ("4.1", &[("", "Cache-Control: max-age=60\nVary: Foo", Miss), ("Foo: 1", "", Miss)]),
    (
        "4.1: side by side",
        &[
            ("Foo: 1", "Cache-Control: max-age=60\nVary: Foo", Miss),
            ("Foo: 2", "Cache-Control: max-age=60\nVary: Foo", Miss),
            ("Foo: 1", "", Hit),
            ("Foo: 2", "", Hit),
        ],
    ),
    ("4.1", &[("", "Cache-Control: max-age=60\nVary: *", Miss), ("", "", Miss)]),
    ("4.1", &[("", "Cache-Control: max-age=60\nVary: Foo, *", Miss), ("", "", Miss)]),
    // Invalidation, §4.4.
    ("4.4", &[("", "Cache-Control: max-age=60", Miss), ("POST|", "", Miss), ("", "", Miss)]),
    ("4.4", &[("", "Cache-Control: max-age=60", Miss), ("DELETE|", "204|", Miss), ("", "", Miss)]),
    ("4.4", &[("", "Cache-Control: max-age=60", Miss), ("M-SEARCH|", "303|", Miss), ("", "", Miss)]),
    ("4.4", &[("", "Cache-Control: max-age=60", Miss), ("POST|", "500|", Miss), ("", "", Hit)]),
    ("4.4", &[("", "Cache-Control: max-age=60", Miss), ("OPTIONS|", "", Miss), ("", "", Hit)]),
    // Other methods and parts, §4.3.5, §3.3.
    ("4.3.5", &[("", "Cache-Control: max-age=60", Miss), ("HEAD|", "", Hit)]),
    (
        "4.3.5: it still holds",
        &[
            ("", "Cache-Control: max-age=0\nETag: \"a\"", Miss),
            ("HEAD|", "Cache-Control: max-age=60\nETag: \"a\"", Miss),
            ("", "", Hit),
        ],
    ),
    (
        "4.3.5: another by now",
        &[
            ("", "Cache-Control: max-age=60\nETag: \"a\"", Miss),
            ("HEAD|Cache-Control: no-cache", "Cache-Control: max-age=60\nETag: \"b\"", Miss),
            ("", "", Miss),
        ],
    ),
    (
        "4.3.5: with a validator now",
        &[
            ("", "Cache-Control: max-age=60", Miss),
            ("HEAD|Cache-Control: no-cache", "Cache-Control: max-age=60\nLast-Modified: @-99", Miss),
            ("", "", Miss),
        ],
    ),
    (
        "4.3.5: not of everybody's",
        &[
            ("", "Cache-Control: max-age=60\nETag: \"a\"", Miss),
            ("HEAD|Authorization: x", "Cache-Control: max-age=60\nETag: \"b\"", Miss),
            ("", "", Hit),
        ],
    ),
    ("3.3", &[("", "Cache-Control: max-age=60", Miss), ("Range: bytes=0-0", "", Status(206))]),
    ("3.3", &[("", "Cache-Control: max-age=60", Miss), ("Range: bytes=9-", "", Status(416))]),
    ("3.3", &[("Range: bytes=0-0", "206|Cache-Control: max-age=60", Miss), ("", "", Miss)]),
    // Stale answers, §4.2.4 and RFC 5861.
    ("4.2.4", &[("", "Cache-Control: max-age=60\nAge: 60\nETag: \"a\"", Miss), ("", "500|", Miss)]),
    (
        "RFC 5861 4",
        &[
            ("", "Cache-Control: max-age=60, stale-if-error=60\nAge: 60\nETag: \"a\"", Miss),
            ("", "503|", Status(200)),
        ],
    ),
    (
        "5.2.2.2",
        &[
            ("", "Cache-Control: max-age=60, stale-if-error=60, must-revalidate\nAge: 60", Miss),
            ("", "503|", Miss),
        ],
    ),
    // Targeted directives, RFC 9213.
    ("RFC 9213 2.2", &[("", "CDN-Cache-Control: max-age=60\nCache-Control: no-store", Miss), ("", "", Hit)]),
    ("RFC 9213 2.2", &[("", "CDN-Cache-Control: no-store\nCache-Control: max-age=60", Miss), ("", "", Miss)]),
    ("RFC 9213 2.2", &[("", "CDN-Cache-Control: max-age=0\nExpires: @60", Miss), ("", "", Miss)]),
    (
        "RFC 9213 2.1",
        &[("", "CDN-Cache-Control: max-age=60, &&\nCache-Control: no-store", Miss), ("", "", Miss)],
    ),
    (
        "RFC 9213 2.1",
        &[("", "CDN-Cache-Control: max-age=\"6\"\nCache-Control: no-store", Miss), ("", "", Miss)],
    ),
    ("RFC 9213 2.1", &[("", "CDN-Cache-Control:\nCache-Control: max-age=60", Miss), ("", "", Hit)]),
];

/// Fields with their dates filled in, each on a line of its own.
fn fields(text: &str) -> String {
    let line = |line: &str| match line.split_once('@') {
        Some((name, seconds)) => {
            let seconds: i64 = seconds.parse().expect("seconds");
            let span = Duration::from_secs(seconds.unsigned_abs());
            let now = SystemTime::now();
            let date = if seconds < 0 { now - span } else { now + span };
            format!("{name}{}\r\n", httpdate::fmt_http_date(date))
        }
        None => format!("{line}\r\n"),
    };
    text.lines().map(line).collect()
}

fn split<'a>(text: &'a str, default: &'a str) -> (&'a str, &'a str) {
    text.split_once('|').unwrap_or((default, text))
}

/// The row and the step that a request belongs to.
fn place(request: &Message) -> (usize, usize) {
    let row = request.target().trim_start_matches("/row").parse().expect("a row");
    (row, request.field("x-step").and_then(|step| step.parse().ok()).expect("a step"))
}

#[test]
fn the_table_holds() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            let (row, step) = place(&request);
            let (status, head) = split(TABLE[row].1[step].1, "200");
            let body = if matches!(status, "204" | "304") { String::new() } else { format!("body {step}") };
            let length =
                if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
            conn.send(format!("HTTP/1.1 {status} x\r\n{}{length}\r\n", fields(head)));
            if request.method() != "HEAD" {
                conn.send(body);
            }
        }
    });
    let gateway = Gateway::start(json!({
        "routes": [{ "path": "/", "backend": upstream.url(), "enable_cache": true }]
    }));
    let mut client = gateway.connect();
    for (row, (section, steps)) in TABLE.iter().enumerate() {
        for (step, (request, _, want)) in steps.iter().enumerate() {
            let (method, sent) = split(request, "GET");
            client.send(format!(
                "{method} /row{row} HTTP/1.1\r\nHost: a\r\nX-Step: {step}\r\n{}\r\n",
                fields(sent)
            ));
            let answer = client.response_to(method);
            let asked = upstream.requests().into_iter().find(|request| place(request) == (row, step));
            let at =
                format!("RFC 9111 §{section}, row {row}, step {step}: {steps:?}\n{answer}\nasked: {asked:?}");
            let conditional = |request: &Message| {
                request.field("if-none-match").is_some() || request.field("if-modified-since").is_some()
            };
            let fresh = answer.text() == format!("body {step}") || answer.body.is_empty();
            // After a 304 made here the body may still be on its way into the store: then it is read from there.
            let status = answer.field("cache-status").unwrap_or_default();
            let held = answer.field("age").is_some() || status.ends_with("; stored; collapsed");
            match want {
                Hit => assert!(asked.is_none() && held, "{at}"),
                Miss => assert!(asked.is_some() && fresh && answer.status() != 304, "{at}"),
                Validated => {
                    assert!(asked.as_ref().is_some_and(conditional), "{at}");
                    assert_eq!((answer.status(), answer.text().as_str()), (200, "body 0"), "{at}");
                }
                Status(status) => assert_eq!(answer.status(), *status, "{at}"),
            }
        }
    }
}
