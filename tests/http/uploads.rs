//! A request's body on its way upstream: its framing, its end, and answers that do not wait for it.

use std::io::{Read, Write};
use std::sync::{Mutex, mpsc};

use gateway_tests::client::{get, turn};
use gateway_tests::message::read_chunk;
use gateway_tests::upstream::ok;
use gateway_tests::{Gate, Gateway, PATIENCE, Upstream};

const COUNTED: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\nTrailer: X-Sum\r\n\
                       Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Sum: 1\r\n\r\n";

/// What tells the upstream where the body ends: `Content-Length`, `Transfer-Encoding`.
type Framing = (Option<&'static str>, Option<&'static str>);

#[test]
fn an_upload_keeps_its_framing_wherever_it_is_cut() {
    let upstream = Upstream::ok();
    let gateway = Gateway::single(&upstream);
    let mut client = gateway.connect();
    let table: [(&str, Framing); 2] = [(COUNTED, (Some("5"), None)), (CHUNKED, (None, Some("chunked")))];
    for (request, framing) in table {
        for cut in 1..=request.len() {
            client.send(&request[..cut]);
            turn(gateway.address);
            client.send(&request[cut..]);
            assert_eq!(client.response().status(), 200, "cut at {cut}: {request}");
            let sent = upstream.last();
            assert_eq!(
                (sent.field("content-length"), sent.field("transfer-encoding")),
                framing,
                "cut at {cut}: {sent}"
            );
            assert_eq!(sent.text(), "hello", "cut at {cut}: {request}");
            let trailers =
                if request == CHUNKED { vec![("x-sum".to_owned(), "1".to_owned())] } else { Vec::new() };
            assert_eq!(sent.trailers, trailers, "cut at {cut}");
        }
    }
}

/// Servers wait for a body, or answer 411, where a method that has one announces none.
#[test]
fn an_empty_body_is_announced_where_a_body_is_usual() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    for (method, fields, want) in [
        ("POST", "", Some("0")),
        ("POST", "Content-Length: 0\r\n", Some("0")),
        ("PUT", "", Some("0")),
        ("PATCH", "", Some("0")),
        ("GET", "", None),
        ("HEAD", "", None),
        ("OPTIONS", "Content-Length: 0\r\n", Some("0")),
    ] {
        client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        assert_eq!(client.response_to(method).status(), 200, "{method} {fields}");
        let sent = upstream.last();
        assert_eq!((sent.field("content-length"), sent.field("transfer-encoding")), (want, None), "{sent}");
    }
    assert_eq!(upstream.connections(), 1);
}

/// The upstream's connection ends with the client's, and before the body's end.
#[test]
fn a_client_that_leaves_amid_its_upload_leaves_no_whole_request() {
    for whole in [COUNTED, CHUNKED] {
        let body = whole.find("\r\n\r\n").expect("a head") + 4;
        for (cut, reset) in (body..whole.len()).flat_map(|cut| [(cut, false), (cut, true)]) {
            let (came, arrived) = mpsc::channel();
            let (left, gone) = mpsc::channel();
            let (came, left) = (Mutex::new(came), Mutex::new(left));
            let upstream = Upstream::start(move |mut conn| {
                conn.head().expect("a head came");
                came.lock().unwrap().send(()).unwrap();
                let mut rest = Vec::new();
                // A reset is an end as well.
                let _ = conn.reader.read_to_end(&mut rest);
                left.lock().unwrap().send(rest).unwrap();
            });
            let gateway = Gateway::single(&upstream);
            let mut client = gateway.connect();
            client.send(&whole[..cut]);
            arrived.recv_timeout(PATIENCE).unwrap();
            turn(gateway.address);
            if reset {
                client.reset();
            } else {
                drop(client);
            }
            let rest = gone
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("cut at {cut}: the upstream still waits"));
            let complete = if whole == COUNTED { rest.len() >= 5 } else { rest.ends_with(b"\r\n\r\n") };
            assert!(!complete, "cut at {cut}, reset: {reset}: {}", rest.escape_ascii());
        }
    }
}

/// An answer that does not wait for the body. Whatever becomes of the body, the next request is not mixed
/// up with it: the upstream's connection is used again only if it has got all of it.
#[test]
fn an_answer_amid_an_upload_leaves_the_rest_to_nobody() {
    for answer in [ok("early"), "HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nearly".to_owned()]
    {
        for goes_on in [false, true] {
            let upstream = Upstream::start({
                let answer = answer.clone();
                move |mut conn| {
                    while let Some(mut request) = conn.head() {
                        if request.method() == "POST" {
                            conn.send(&answer);
                            if request.read_body(&mut conn.reader).is_err() {
                                return;
                            }
                        } else {
                            conn.send(ok(request.target()));
                        }
                    }
                }
            });
            let gateway = Gateway::single(&upstream);
            let mut client = gateway.connect();
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
            assert_eq!(client.response().text(), "early");
            // Before and after the rest of the body, on a connection of its own.
            assert_eq!(gateway.get("/before").text(), "/before");
            if goes_on {
                let _ = client.try_send("world");
            } else {
                client.half_close();
            }
            assert_eq!(gateway.get("/after").text(), "/after");
            // The client's own connection goes on behind its body or ends.
            if goes_on && client.try_send(get("/next")).is_ok() {
                if let Ok(response) = client.try_response("GET") {
                    assert_eq!(response.text(), "/next");
                }
            } else {
                client.expect_closed();
            }
        }
    }
}

/// The answer has begun when the client ends its output amid the upload. Whether the answer goes on is the
/// gateway's choice; it ends, and the upload it answers never looks whole.
#[test]
fn a_half_closed_upload_ends_with_the_answer_that_has_begun() {
    let (left, gone) = mpsc::channel();
    let left = Mutex::new(left);
    let gate = Gate::default();
    let opened = gate.clone();
    let upstream = Upstream::start(move |mut conn| {
        let mut request = conn.head().expect("a head came");
        conn.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 10\r\n\r\nearly");
        opened.wait();
        conn.send(" late");
        left.lock().unwrap().send(request.read_body(&mut conn.reader)).unwrap();
    });
    let gateway = Gateway::single(&upstream);
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nabc");
    assert_eq!(client.head().status(), 413);
    client.half_close();
    turn(gateway.address);
    gate.open();
    let body = client.rest().expect("an orderly end");
    assert!(b"early late".starts_with(&body), "{}", body.escape_ascii());
    gateway.wait_for_metrics("nothing left open", |m| m.get("gateway_connections_open", &[]) == Some(0.0));
    assert!(gone.recv_timeout(PATIENCE).unwrap().is_err(), "a whole request");
}

/// The upstream refuses a large upload, reads no more of it and closes, which resets its connection under
/// the gateway's writes. The refusal comes through all the same.
#[test]
fn an_upload_refused_by_a_reset_gets_its_answer() {
    let upstream = Upstream::start(|mut conn| {
        conn.head();
        conn.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
    });
    let gateway = Gateway::to(&upstream);
    let body = vec![b'x'; 4 * 1024 * 1024];
    for _ in 0..50 {
        let mut client = gateway.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
        // The gateway may close before it has taken all of it.
        let _ = client.try_send(&body);
        let response = client.response();
        assert_eq!((response.status(), response.text().as_str()), (413, "big"));
    }
}

/// Both bodies move at once, each as far as the other lets it.
#[test]
fn a_body_is_echoed_while_it_is_sent() {
    const CHUNKS: usize = 2_000;
    const CHUNK: &str = "2000\r\n";
    let upstream = Upstream::start(|mut conn| {
        conn.head();
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while let Ok(Some(piece)) = read_chunk(&mut conn.reader) {
            conn.send(format!("{:x}\r\n", piece.len()));
            conn.send(&piece);
            conn.send("\r\n");
        }
        conn.send("0\r\n\r\n");
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    let mut sender = client.stream().try_clone().expect("descriptors are left");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let sending = std::thread::spawn(move || {
        for n in 0..CHUNKS {
            let piece = [b'a' + (n % 26) as u8; 0x2000];
            sender.write_all(&[CHUNK.as_bytes(), &piece, b"\r\n"].concat()).expect("the gateway reads");
        }
        sender.write_all(b"0\r\n\r\n").expect("the gateway reads");
    });
    let response = client.response();
    sending.join().expect("all was sent");
    assert_eq!(response.body.len(), CHUNKS * 0x2000);
    for (n, piece) in response.body.chunks(0x2000).enumerate() {
        assert!(piece.iter().all(|&byte| byte == b'a' + (n % 26) as u8), "chunk {n} is another");
    }
}

/// A trailer cannot say what only a head may (RFC 9110 §6.5.1): an upstream that merges both would be told
/// another length, host or client than the gateway has vouched for.
#[test]
fn trailers_say_nothing_that_belongs_into_the_head() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    for name in [
        "Content-Length",
        "Transfer-Encoding",
        "Host",
        "Connection",
        "TE",
        "Trailer",
        "Upgrade",
        "Keep-Alive",
        "Content-Type",
        "Content-Encoding",
        "Authorization",
        "Cookie",
        "Expect",
        "Via",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "Forwarded",
        "X-Request-Id",
        "X-Real-IP",
    ] {
        let response = client
            .send(format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTrailer: {name}, X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                 3\r\nabc\r\n0\r\n{name}: 1\r\nX-Sum: 2\r\n\r\n"
            ))
            .response();
        assert_eq!(response.status(), 200, "{name}");
        assert_eq!(upstream.last().trailers, [("x-sum".to_owned(), "2".to_owned())], "{name}");
    }
}

/// The upstream is not to blame for what the client breaks off, though its answer has begun.
#[test]
fn an_upload_broken_amid_the_answer_is_the_client_s_fault() {
    let upstream = Upstream::start(move |mut conn| {
        conn.head().expect("a head came");
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nearly");
        conn.wait_closed();
    });
    let gateway = Gateway::single(&upstream);
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
    assert_eq!(client.head().status(), 200);
    client.send("nonsense\r\n");
    gateway.wait_for_metrics("the request's end", |m| m.get("gateway_requests_total", &[]) == Some(1.0));
    assert_eq!(gateway.scrape().requests(200, "client_abort"), 1.0, "{}", gateway.scrape());
}
