//! An upstream's response, byte by byte: what passes whole, what is cut short, what is a 502.
//!
//! The bytes of each case reach the gateway in two parts, cut at every place there is.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use gateway_tests::client::{get, turn};
use gateway_tests::upstream::ok;
use gateway_tests::{Client, Conn, Gate, Gateway, Message, PATIENCE, Upstream};

/// A response, and what the client makes of it.
struct Case {
    what: &'static str,
    method: &'static str,
    bytes: &'static str,
    /// The upstream closes behind it.
    closes: bool,
    /// The statuses the client sees, interim ones first.
    statuses: &'static [u16],
    body: &'static str,
    /// Whether the connection serves the next request.
    kept: bool,
}

const CASE: Case =
    Case { what: "", method: "GET", bytes: "", closes: false, statuses: &[200], body: "hello", kept: true };

const WHOLE: &[Case] = &[
    Case { what: "counted", bytes: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", ..CASE },
    Case {
        what: "chunked",
        bytes: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        ..CASE
    },
    Case {
        what: "chunks with extensions, zeros, capitals",
        bytes: "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n\
                0A;a=b;c=\"d\"\r\nhello worl\r\n001\r\nd\r\n000;x\r\n\r\n",
        body: "hello world",
        ..CASE
    },
    Case {
        what: "chunked and empty",
        bytes: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        body: "",
        ..CASE
    },
    Case {
        what: "counted and empty",
        bytes: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        body: "",
        ..CASE
    },
    Case { what: "up to the end", bytes: "HTTP/1.1 200 OK\r\n\r\nhello", closes: true, kept: false, ..CASE },
    Case {
        what: "up to the end, HTTP/1.0",
        bytes: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nhello",
        closes: true,
        kept: false,
        ..CASE
    },
    Case {
        what: "up to an end at once",
        bytes: "HTTP/1.1 200 OK\r\n\r\n",
        body: "",
        closes: true,
        kept: false,
        ..CASE
    },
    Case {
        what: "counted and the last",
        bytes: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        kept: false,
        ..CASE
    },
    Case {
        what: "chunked and the last",
        bytes: "HTTP/1.1 200 OK\r\nConnection: Close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        kept: false,
        ..CASE
    },
    Case {
        what: "HTTP/1.0 without keep-alive",
        bytes: "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        kept: false,
        ..CASE
    },
    Case {
        what: "HTTP/1.0 with keep-alive",
        bytes: "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive\r\n\r\nhello",
        ..CASE
    },
    Case {
        what: "HEAD with a length",
        method: "HEAD",
        bytes: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        body: "",
        ..CASE
    },
    Case {
        what: "HEAD with chunks",
        method: "HEAD",
        bytes: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        body: "",
        ..CASE
    },
    Case {
        what: "HEAD without a length",
        method: "HEAD",
        bytes: "HTTP/1.1 200 OK\r\n\r\n",
        body: "",
        ..CASE
    },
    Case { what: "204", bytes: "HTTP/1.1 204 No Content\r\n\r\n", statuses: &[204], body: "", ..CASE },
    Case {
        what: "304",
        bytes: "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
        statuses: &[304],
        body: "",
        ..CASE
    },
    Case {
        what: "304 with the length it stands for",
        bytes: "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        statuses: &[304],
        body: "",
        ..CASE
    },
    Case {
        what: "304 with the coding it stands for",
        bytes: "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
        statuses: &[304],
        body: "",
        ..CASE
    },
    Case {
        what: "the same length twice",
        bytes: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        ..CASE
    },
    Case { what: "no reason", bytes: "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", ..CASE },
    Case { what: "an empty reason", bytes: "HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello", ..CASE },
    Case {
        what: "a status nobody knows",
        bytes: "HTTP/1.1 799 ?\r\nContent-Length: 5\r\n\r\nhello",
        statuses: &[799],
        ..CASE
    },
    Case {
        what: "spaces around the length",
        bytes: "HTTP/1.1 200 OK\r\nContent-Length: \t 5 \t\r\n\r\nhello",
        ..CASE
    },
    // RFC 9112 §2.2: a recipient may take a bare LF for the end of a line.
    Case { what: "bare LF", bytes: "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", ..CASE },
    Case {
        what: "100 that nobody asked for",
        bytes: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        ..CASE
    },
    Case {
        what: "103",
        bytes: "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        statuses: &[103, 200],
        ..CASE
    },
    Case {
        what: "several interim ones",
        bytes: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n\
                HTTP/1.1 204 No Content\r\n\r\n",
        statuses: &[102, 103, 204],
        body: "",
        ..CASE
    },
];

/// Serves the case that the target's first number names, cut in two where its second one says.
fn serve(mut conn: Conn, cases: &[Case], gateway: SocketAddr) {
    while let Some(request) = conn.request() {
        let (case, cut) = asked(&request);
        let case = &cases[case];
        assert_eq!(request.method(), case.method);
        let (first, second) = case.bytes.as_bytes().split_at(cut);
        if !first.is_empty() {
            conn.send(first);
            turn(gateway);
        }
        conn.send(second);
        if case.closes {
            return;
        }
    }
}

/// The two numbers of `/case/cut`.
fn asked(request: &Message) -> (usize, usize) {
    let mut numbers = request.target()[1..].split('/').map(|number| number.parse().expect("a number"));
    (numbers.next().expect("a case"), numbers.next().expect("a cut"))
}

/// An upstream whose script knows the gateway in front of it, and that gateway.
fn pair(script: impl Fn(Conn, SocketAddr) + Send + Sync + 'static) -> (Upstream, Gateway) {
    let address: Arc<OnceLock<SocketAddr>> = Arc::default();
    let known = address.clone();
    let upstream = Upstream::start(move |conn| {
        script(conn, *known.get().expect("the gateway connects after it has started"));
    });
    let gateway = Gateway::single(&upstream);
    address.set(gateway.address).expect("set once");
    (upstream, gateway)
}

/// Every response up to the final one.
fn responses(client: &mut Client, method: &str) -> io::Result<Vec<Message>> {
    let mut all = Vec::new();
    loop {
        let response = client.try_response(method)?;
        let last = response.status() >= 200;
        all.push(response);
        if last {
            return Ok(all);
        }
    }
}

#[test]
fn a_response_passes_whole_wherever_it_is_cut() {
    let (upstream, gateway) = pair(|conn, gateway| serve(conn, WHOLE, gateway));
    let mut client = gateway.connect();
    for (index, case) in WHOLE.iter().enumerate() {
        let before = upstream.connections();
        for cut in 0..=case.bytes.len() {
            let at = || format!("{}, cut at {cut}", case.what);
            client.send(get(&format!("/{index}/{cut}")).replace("GET", case.method));
            let all = responses(&mut client, case.method).unwrap_or_else(|error| panic!("{}: {error}", at()));
            let statuses: Vec<u16> = all.iter().map(Message::status).collect();
            let last = all.last().expect("a final one");
            assert_eq!((&statuses[..], last.text().as_str()), (case.statuses, case.body), "{}", at());
            if case.what == "HEAD with a length" {
                assert_eq!(last.field("content-length"), Some("5"), "{}", at());
            }
        }
        let made = upstream.connections() - before;
        // The case before may have left one.
        if case.kept {
            assert!(made <= 1, "{}: {made} connections", case.what);
        } else {
            assert!(made >= case.bytes.len(), "{}: {made} connections", case.what);
        }
    }
}

/// Cut short anywhere, it is never taken for a whole one: before the end of the head 502, after it a body
/// without its end.
#[test]
fn a_response_that_ends_early_is_never_whole() {
    const CASES: &[Case] = &[
        Case { what: "counted", bytes: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", ..CASE },
        Case {
            what: "chunked",
            bytes: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                    5;x\r\nhello\r\n1\r\n!\r\n0\r\nX-Sum: 1\r\n\r\n",
            ..CASE
        },
        Case {
            what: "behind an interim one",
            bytes: "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nh",
            ..CASE
        },
    ];
    let (_upstream, gateway) = pair(|mut conn, _| {
        let (case, cut) = asked(&conn.request().expect("one request a connection"));
        conn.send(&CASES[case].bytes[..cut]);
    });
    for (index, case) in CASES.iter().enumerate() {
        let from = case.bytes.find("200 OK").expect("a final response");
        let head = from + case.bytes[from..].find("\r\n\r\n").expect("a head") + 4;
        for cut in 0..case.bytes.len() {
            let mut client = gateway.connect();
            client.send(get(&format!("/{index}/{cut}")));
            match responses(&mut client, "GET") {
                Ok(all) => {
                    let last = all.last().expect("a final one");
                    assert!(last.status() == 502 && cut <= head, "{}, cut at {cut}: {last}", case.what);
                }
                Err(error) => {
                    use io::ErrorKind::{ConnectionReset, UnexpectedEof};
                    let kind = error.kind();
                    assert!(cut >= head, "{}, cut at {cut}: {error}", case.what);
                    assert!(
                        kind == UnexpectedEof || kind == ConnectionReset,
                        "{}, cut at {cut}: {error}",
                        case.what
                    );
                }
            }
        }
    }
}

/// Heads that no gateway may pass on.
const REFUSED: &[(&str, &str)] = &[
    ("no HTTP", "ICY 200 OK\r\nContent-Length: 1\r\n\r\na"),
    ("HTTP/2.0", "HTTP/2.0 200 OK\r\nContent-Length: 1\r\n\r\na"),
    ("four digits", "HTTP/1.1 2000 OK\r\nContent-Length: 1\r\n\r\na"),
    ("two digits", "HTTP/1.1 20 OK\r\nContent-Length: 1\r\n\r\na"),
    ("a space in a name", "HTTP/1.1 200 OK\r\nX A: 1\r\nContent-Length: 1\r\n\r\na"),
    ("a space behind a name", "HTTP/1.1 200 OK\r\nX-A : 1\r\nContent-Length: 1\r\n\r\na"),
    ("no name", "HTTP/1.1 200 OK\r\n: 1\r\nContent-Length: 1\r\n\r\na"),
    ("no colon", "HTTP/1.1 200 OK\r\nX-A\r\nContent-Length: 1\r\n\r\na"),
    ("a folded value", "HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\nContent-Length: 1\r\n\r\na"),
    ("a fold before the first field", "HTTP/1.1 200 OK\r\n X-A: 1\r\nContent-Length: 1\r\n\r\na"),
    ("NUL in a value", "HTTP/1.1 200 OK\r\nX-A: 1\0b\r\nContent-Length: 1\r\n\r\na"),
    ("NUL in the reason", "HTTP/1.1 200 O\0K\r\nContent-Length: 1\r\n\r\na"),
    ("CR in a value", "HTTP/1.1 200 OK\r\nX-A: 1\r2\r\nContent-Length: 1\r\n\r\na"),
    ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    ("a length with a sign", "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na"),
    ("a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\na"),
    ("a length with a space", "HTTP/1.1 200 OK\r\nContent-Length: 1 1\r\n\r\naaaaaaaaaaa"),
    ("a hexadecimal length", "HTTP/1.1 200 OK\r\nContent-Length: 0x1\r\n\r\na"),
    ("a length beyond counting", "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551617\r\n\r\na"),
    ("two lengths in one field", "HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\na"),
    ("HTTP/1.0 with chunks", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
    ("an empty length", "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\na"),
];

#[track_caller]
fn check_refused(table: &'static [(&str, &str)]) {
    let (upstream, gateway) = pair(move |mut conn, _| {
        while let Some(request) = conn.request() {
            conn.send(table[asked(&request).0].1);
        }
    });
    for (index, (what, _)) in table.iter().enumerate() {
        let response = gateway.get(&format!("/{index}/0"));
        assert_eq!(response.status(), 502, "{what}: {response}");
        assert_eq!(upstream.connections(), index + 1, "{what}: its connection is used again");
    }
}

#[test]
fn a_malformed_head_is_a_502() {
    check_refused(REFUSED);
}

#[test]
fn a_head_without_an_end_is_a_502() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            let bytes = request.target()[1..].parse().expect("a number");
            // What is beyond the gateway's patience may not be taken to its end.
            conn.send(format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n", "x".repeat(bytes)));
            conn.send("Content-Length: 0\r\n\r\n");
        }
    });
    let gateway = Gateway::single(&upstream);
    let before = gateway.memory_kib("VmHWM");
    for (bytes, want) in [(7_000, 200), (32_000, 200), (4_000_000, 502), (64_000_000, 502)] {
        assert_eq!(gateway.get(&format!("/{bytes}")).status(), want, "{bytes}");
    }
    let grown = gateway.memory_kib("VmHWM") - before;
    assert!(grown < 8 * 1024, "{grown} KiB more for heads that were refused");
}

/// A chunk that is none ends the body where it stands, which is not its end.
#[test]
fn a_malformed_chunk_cuts_the_body_short() {
    const CHUNKS: &[(&str, &str)] = &[
        ("no number", "xyz\r\nabc\r\n0\r\n\r\n"),
        ("no size", "\r\nabc\r\n0\r\n\r\n"),
        ("a sign", "+3\r\nabc\r\n0\r\n\r\n"),
        ("negative", "-3\r\nabc\r\n0\r\n\r\n"),
        ("a prefix", "0x3\r\nabc\r\n0\r\n\r\n"),
        ("beyond counting", "10000000000000003\r\nabc\r\n0\r\n\r\n"),
        ("longer than said", "2\r\nabc\r\n0\r\n\r\n"),
        ("shorter than said", "4\r\nabc\r\n0\r\n\r\n"),
        ("a trailer without a colon", "3\r\nabc\r\n0\r\nnonsense\r\n\r\n"),
    ];
    let (upstream, gateway) = pair(|mut conn, _| {
        while let Some(request) = conn.request() {
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            conn.send(CHUNKS[asked(&request).0].1);
        }
    });
    for (index, (what, _)) in CHUNKS.iter().enumerate() {
        let mut client = gateway.connect();
        let answer = client.send(get(&format!("/{index}/0"))).try_response("GET");
        match answer {
            // Read together with the head, it may be refused with it.
            Ok(response) => assert_eq!(response.status(), 502, "{what}: {response}"),
            Err(error) => assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "{what}: {error}"),
        }
        assert_eq!(upstream.connections(), index + 1, "{what}: its connection is used again");
    }
}

/// What an upstream sends unasked, on a connection that waits for its next request, is no answer to it.
#[test]
fn bytes_on_an_idle_connection_are_nobody_s_answer() {
    const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    for unasked in [EVIL, &EVIL[..20], "\r\n", "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"] {
        let (sent, unasked_sent) = mpsc::channel();
        let sent = Mutex::new(sent);
        let gate = Gate::default();
        let answered = gate.clone();
        let upstream = Upstream::start(move |mut conn| {
            while conn.request().is_some() {
                conn.send(ok("good"));
                if conn.index == 0 {
                    answered.wait();
                    conn.send(unasked);
                    sent.lock().unwrap().send(()).unwrap();
                }
            }
        });
        let gateway = Gateway::single(&upstream);
        let mut client = gateway.connect();
        assert_eq!(client.get("/").text(), "good");
        gate.open();
        unasked_sent.recv_timeout(PATIENCE).unwrap();
        for request in [get("/"), POST.to_owned(), get("/")] {
            let response = client.send(request).response();
            assert_eq!((response.status(), response.text().as_str()), (200, "good"), "{unasked:?}");
        }
    }
}

/// More than was announced, in one piece with the response or behind it, is not passed on.
#[test]
fn bytes_beyond_the_length_reach_no_client() {
    const CASES: &[Case] = &[
        Case { what: "counted", bytes: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellomore", ..CASE },
        Case {
            what: "chunked",
            bytes: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nmore",
            ..CASE
        },
        Case {
            what: "empty",
            bytes: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            body: "",
            ..CASE
        },
        Case {
            what: "HEAD",
            method: "HEAD",
            bytes: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            body: "",
            ..CASE
        },
        Case {
            what: "204",
            bytes: "HTTP/1.1 204 No Content\r\n\r\nhello",
            statuses: &[204],
            body: "",
            ..CASE
        },
        Case {
            what: "304",
            bytes: "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello",
            statuses: &[304],
            body: "",
            ..CASE
        },
    ];
    let (_upstream, gateway) = pair(|conn, gateway| serve(conn, CASES, gateway));
    let mut client = gateway.connect();
    for (index, case) in CASES.iter().enumerate() {
        for _ in 0..5 {
            client.send(get(&format!("/{index}/0")).replace("GET", case.method));
            let response = client.response_to(case.method);
            assert_eq!(
                (response.status(), response.text().as_str()),
                (case.statuses[0], case.body),
                "{}",
                case.what
            );
        }
    }
}

/// Heads whose framing can be read in two ways (RFC 9112 §6.1, §6.3), or that begin another protocol; nginx
/// and Envoy refuse them as well.
const AMBIGUOUS: &[(&str, &str)] = &[
    (
        "both lengths",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    ),
    (
        "both, swapped",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n1\r\na\r\n0\r\n\r\n",
    ),
    (
        "a coding before chunked",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    ),
    (
        "chunked before a coding",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n1\r\na\r\n0\r\n\r\n",
    ),
    ("chunked twice", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
    (
        "chunked in two fields",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    ),
    ("an unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
    ("an empty coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\na"),
    ("101 unasked", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"),
];

#[test]
fn a_head_of_doubtful_framing_is_a_502() {
    check_refused(AMBIGUOUS);
}

#[test]
fn a_response_with_trailers_ends_well_and_keeps_its_connection() {
    const CASES: &[Case] = &[Case {
        what: "chunked with trailers",
        bytes: "HTTP/1.1 200 OK\r\nTrailer: X-Sum, X-More\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
        ..CASE
    }];
    let (upstream, gateway) = pair(|conn, gateway| serve(conn, CASES, gateway));
    let mut client = gateway.connect();
    let cuts = CASES[0].bytes.len();
    for cut in 0..=cuts {
        let head = get(&format!("/0/{cut}"));
        let response =
            client.send(head.replace("Host: a", "Host: a\r\nConnection: TE\r\nTE: trailers")).response();
        assert_eq!(response.text(), "hello", "cut at {cut}");
        let want = [("x-sum", "1"), ("x-more", "2")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(response.trailers, want, "cut at {cut}");
    }
    assert_eq!(upstream.connections(), 1);
    gateway.wait_for_metrics("all counted as ok", |m| m.requests(200, "ok") == (cuts + 1) as f64);
}

/// Interim responses without an end are the upstream's fault, and cost the gateway no memory.
#[test]
fn interim_responses_without_an_end_are_not_collected() {
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload; as=style\r\n\r\n";
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        let many = HINTS.repeat(1000);
        for _ in 0..1000 {
            conn.send(&many);
        }
        conn.send(ok("late"));
        conn.wait_closed();
    });
    let gateway = Gateway::single(&upstream);
    let before = gateway.memory_kib("VmHWM");
    let mut client = gateway.connect();
    client.send(get("/"));
    // Nothing is read before the end has come one way or another.
    gateway.wait_for_metrics("an end", |m| m.get("gateway_requests_total", &[]) == Some(1.0));
    let grown = gateway.memory_kib("VmHWM") - before;
    assert!(grown < 8 * 1024, "{grown} KiB more");
}

/// RFC 9110 §8.6: a 204 has no length, and its receiver may wait for what one promises.
#[test]
fn a_204_has_no_length() {
    let upstream = Upstream::answering("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n");
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    for _ in 0..2 {
        let response = client.get("/");
        assert_eq!((response.status(), response.field("content-length")), (204, None), "{response}");
    }
    assert_eq!(upstream.connections(), 1);
}

/// What the length of a HEAD's answer would be is not made up.
#[test]
fn a_head_s_answer_gets_no_length() {
    let upstream = Upstream::answering("HTTP/1.1 200 OK\r\n\r\n");
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    for _ in 0..2 {
        let response = client.send(get("/").replace("GET", "HEAD")).response_to("HEAD");
        assert_eq!((response.status(), response.field("content-length")), (200, None), "{response}");
    }
}
