//! Requests that are malformed or framed ambiguously: refused, and nothing of them goes upstream.

use gateway_tests::client::turn;
use gateway_tests::{Gateway, Upstream};

/// Heads that no request may have; each is sent alone, with a smuggled one behind it.
const HEADS: &[(&str, &str)] = &[
    ("both lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"),
    (
        "both, swapped",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
    ),
    (
        "both, odd case",
        "POST / HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: 4\r\nTRANSFER-encoding: Chunked\r\n\r\n",
    ),
    (
        "both, with what looks like a request line between them",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nX-A: b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    ("two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n"),
    ("two lengths in one field", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 5\r\n\r\n"),
    ("length with a sign", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\n"),
    ("negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -4\r\n\r\n"),
    ("hexadecimal length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\n"),
    ("empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"),
    ("huge length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n"),
    ("chunked not last", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n"),
    ("chunked with a prefix", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n"),
    ("no host", "GET / HTTP/1.1\r\n\r\n"),
    ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    ("host with a space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    ("host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    ("host with a user", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    ("target with a user", "GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("space before the colon", "GET / HTTP/1.1\r\nHost: a\r\nX-A : 1\r\n\r\n"),
    ("space before a length's colon", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 4\r\n\r\n"),
    ("folded field", "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n 2\r\n\r\n"),
    ("field before the first name", "GET / HTTP/1.1\r\n X-A: 1\r\nHost: a\r\n\r\n"),
    ("empty name", "GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n"),
    ("no colon", "GET / HTTP/1.1\r\nHost: a\r\nX-A\r\n\r\n"),
    ("NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\0\r\n\r\n"),
    ("CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r2\r\n\r\n"),
    ("odd name", "GET / HTTP/1.1\r\nHost: a\r\nX(A): 1\r\n\r\n"),
    ("no version", "GET /\r\nHost: a\r\n\r\n"),
    ("other protocol", "GET / SMTP/1.1\r\nHost: a\r\n\r\n"),
    ("TLS hello", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n"),
    ("method with a colon", "GE:T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("HTTP/1.0 with chunks", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
];

const SMUGGLED: &str = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_malformed_head_is_refused_and_the_connection_ends() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    for (what, head) in HEADS {
        let mut client = gateway.connect();
        let _ = client.try_send(format!("{head}{SMUGGLED}"));
        let response = client.try_response("GET").unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(response.status(), 400, "{what}: {response}");
        assert_eq!(response.field("content-type"), Some("application/problem+json"), "{what}: {response}");
        assert!(response.closes() && response.field("x-request-id").is_some(), "{what}: {response}");
        client.expect_closed();
        assert!(upstream.requests().is_empty(), "{what} went upstream: {:?}", upstream.requests());
    }
    assert_eq!(gateway.get("/").status(), 200);
}

#[test]
fn an_http_2_preface_is_refused() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    let _ = client.try_send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(client.response().status(), 400);
    client.expect_closed();
}

#[test]
fn a_head_framed_twice_is_found_in_any_split_and_behind_another_request() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let twice = HEADS[0].1;
    for cut in (1..twice.len()).step_by(7) {
        let mut client = gateway.connect();
        client.send(&twice[..cut]);
        // An answer to another connection of the same worker or the other: the first part has gone by.
        assert_eq!(gateway.get("/first").status(), 200);
        client.send(&twice[cut..]);
        assert_eq!(client.response().status(), 400, "cut at {cut}");
        client.expect_closed();
    }
    let mut client = gateway.connect();
    client.send(format!("GET /before HTTP/1.1\r\nHost: a\r\n\r\n{twice}{SMUGGLED}"));
    assert_eq!(client.response().status(), 200);
    assert_eq!(client.response().status(), 400);
    client.expect_closed();
    assert!(upstream.requests().iter().all(|request| request.method() == "GET"));
}

/// Bytes beyond ASCII are taken in a path, and must not hide the head they stand in.
#[test]
fn a_head_framed_twice_is_found_for_any_target() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    for target in [&b"/\xff"[..], "/\u{e9}".as_bytes(), b"/a?\xfe#x", b"http://B.example:80/x", b"//x/../y"] {
        let mut client = gateway.connect();
        let head = [b"POST ", target, &HEADS[0].1.as_bytes()["POST /".len()..]].concat();
        client.send(head).send("0\r\n\r\n");
        assert_eq!(client.response().status(), 400, "{}", target.escape_ascii());
        client.expect_closed();
    }
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
}

/// One behind the other, each is refused: the second must not hide the first.
#[test]
fn of_two_heads_framed_twice_neither_passes() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let twice = HEADS[0].1;
    let mut client = gateway.connect();
    client.send(format!("{twice}0\r\n\r\n{}", twice.replace("POST /", "POST /other")));
    assert_eq!(client.response().status(), 400);
    client.expect_closed();
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
}

#[test]
fn a_body_that_quotes_such_a_head_is_none() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    // Of the same method and target it could not be told from the request itself.
    let quoted = format!("{}\r\n", HEADS[0].1.replace("POST /", "POST /quoted"));
    let chunk = format!("{:x}\r\n{quoted}\r\n0\r\n\r\n", quoted.len());
    let mut client = gateway.connect();
    for request in [
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{quoted}", quoted.len()),
        format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"),
    ] {
        assert_eq!(client.send(&request).response().status(), 200, "{request}");
        assert_eq!(upstream.last().text(), quoted);
    }
}

#[test]
fn a_malformed_chunk_ends_the_connection() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    for (what, chunks) in [
        ("no number", "xyz\r\nabc\r\n0\r\n\r\n"),
        ("too large a number", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
        ("longer than said", "2\r\nabc\r\n0\r\n\r\n"),
        ("negative", "-3\r\nabc\r\n0\r\n\r\n"),
        ("empty size", "\r\nabc\r\n0\r\n\r\n"),
        ("trailer without a colon", "3\r\nabc\r\n0\r\nnonsense\r\n\r\n"),
    ] {
        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        let _ = client.try_send(format!("{chunks}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"));
        let response = client.try_response("POST").unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(response.status(), 400, "{what}: {response}");
        client.expect_closed();
        assert!(upstream.requests().is_empty(), "{what} went upstream: {:?}", upstream.requests());
    }
    assert_eq!(gateway.get("/").status(), 200);
}

#[test]
fn a_body_cut_short_is_not_taken_for_a_whole_one() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let mut client = gateway.connect();
        client.send(request).half_close();
        let rest = client.rest().expect("an orderly end");
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&rest));
    }
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
}

/// The rest of a body may bring the beginning of such a head along, however long that is.
#[test]
fn a_head_framed_twice_is_found_behind_a_body_in_any_split() {
    let upstream = Upstream::ok();
    let gateway = Gateway::single(&upstream);
    let mut client = gateway.connect();
    client.send("POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
    turn(gateway.address);
    let (length, long) = ("Content-Length: 4", "x".repeat(8 * 1024));
    client.send(format!("helloPOST / HTTP/1.1\r\nHost: a\r\n{length}\r\nX-Long: {long}"));
    assert_eq!(client.response().status(), 200);
    client.send("\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(client.response().status(), 400);
    client.expect_closed();
}

/// What is not taken off here and not told to the upstream would be taken for the content itself.
#[test]
fn a_transfer_coding_besides_chunked_is_not_taken() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    for codings in
        ["gzip, chunked", "identity, chunked", "chunked, chunked", "gzip\r\nTransfer-Encoding: chunked"]
    {
        let mut client = gateway.connect();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {codings}\r\n\r\n1\r\na\r\n0\r\n\r\n"
        ));
        assert_eq!(client.response().status(), 501, "{codings}");
        client.expect_closed();
    }
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
}

/// A body that fails before a byte has gone out is not tried again, and not taken for an empty one then.
#[test]
fn a_malformed_body_does_not_go_upstream_over_a_kept_connection_either() {
    let upstream = Upstream::ok();
    let gateway = Gateway::single(&upstream);
    for framing in ["Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "Transfer-Encoding: chunked\r\n\r\n-1\r\n"] {
        assert_eq!(gateway.get("/warm").status(), 200);
        let mut client = gateway.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}"));
        assert_eq!(client.response().status(), 400, "{framing}");
        client.expect_closed();
    }
    assert!(upstream.requests().iter().all(|request| request.method() == "GET"), "{:?}", upstream.requests());
}
