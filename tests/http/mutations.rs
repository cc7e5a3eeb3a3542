//! Seeded random damage to messages: whatever comes from a client or an upstream, what the gateway sends
//! is HTTP, cut short at worst.

use std::io::{BufReader, ErrorKind};

use gateway_tests::client::get;
use gateway_tests::upstream::ok;
use gateway_tests::{Gateway, Message, Upstream};

const CASES: u64 = 2_000;
const THREADS: u64 = 8;

const REQUESTS: [&str; 7] = [
    "GET /api/users?id=1 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n",
    "POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world",
    "POST /api HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n",
    "PUT /x HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nab\r\n0\r\nX-T: 1\r\n\r\n",
    "GET /a/%2e%2e/b//c HTTP/1.0\r\nConnection: close\r\n\r\n",
    "GET http://b.example/x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nVia: 1.1 x\r\n\r\n",
    "POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
];

const RESPONSES: [&str; 6] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 11\r\nConnection: keep-alive\r\n\r\nhello world",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX-T: 1\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
    "HTTP/1.0 200 OK\r\nVia: 1.0 x\r\n\r\nhello",
    "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 9\r\n\r\n",
    "HTTP/1.1 204 No Content\r\nKeep-Alive: timeout=5\r\n\r\n",
];

/// What a mutation puts in: bytes that mean something to somebody.
const SPICE: [&[u8]; 16] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b":",
    b"%",
    b"\\",
    b"\xff",
    b"\r\n\r\n",
    b"0",
    b"-",
    b"ffffffff",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"HTTP/1.1",
];

/// SplitMix64 (Steele, Lea, Flood 2014): the same cases in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % bound as u64) as usize
    }
}

/// One or two of `messages` with up to four wounds, and where to cut them into writes.
fn damaged(seed: u64, messages: &[&str]) -> (Vec<u8>, usize) {
    let mut random = Random(seed);
    let mut bytes = Vec::new();
    for _ in 0..=random.below(2) {
        bytes.extend_from_slice(messages[random.below(messages.len())].as_bytes());
    }
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes[at] = random.below(256) as u8,
            1 => drop(bytes.splice(at..at, SPICE[random.below(SPICE.len())].iter().copied())),
            2 => drop(bytes.drain(at..(at + 1 + random.below(8)).min(bytes.len()))),
            3 => bytes[at] ^= 1 << random.below(8),
            _ => {
                let end = (at + random.below(20)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, copy));
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    let cut = random.below(bytes.len() + 1);
    (bytes, cut)
}

/// Sends one case; says what is wrong with what came back.
fn wrong(gateway: &Gateway, seed: u64) -> Option<String> {
    let (bytes, cut) = damaged(seed, &REQUESTS);
    let mut client = gateway.connect();
    let sent = client.try_send(&bytes[..cut]).and_then(|()| client.try_send(&bytes[cut..]));
    if sent.is_ok() {
        // Refused already: the gateway may have closed.
        let _ = client.stream().shutdown(std::net::Shutdown::Write);
    }
    let answer = match client.rest() {
        Ok(answer) => answer,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
        Err(error) => {
            return Some(format!("seed {seed}: {error} after {:?}", String::from_utf8_lossy(&bytes)));
        }
    };
    let mut rest = BufReader::new(&answer[..]);
    while !rest.buffer().is_empty() || !rest.get_ref().is_empty() {
        match Message::read_response(&mut rest, "GET") {
            Ok(response)
                if matches!(response.status(), 100 | 200 | 400 | 404 | 405 | 414 | 417 | 431 | 501) => {}
            Ok(response) => {
                return Some(format!("seed {seed}: {response}\nafter {:?}", String::from_utf8_lossy(&bytes)));
            }
            Err(error) => {
                let (sent, got) = (String::from_utf8_lossy(&bytes), String::from_utf8_lossy(&answer));
                return Some(format!("seed {seed}: {error} in {got:?}\nafter {sent:?}"));
            }
        }
    }
    None
}

/// Runs every case, on as many threads as there are clients; none may have a fault, and all end.
#[track_caller]
fn check(gateway: &mut Gateway, wrong: impl Fn(&Gateway, u64) -> Option<String> + Sync) {
    let (this, wrong) = (&*gateway, &wrong);
    let faults: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let cases = (thread..CASES).step_by(THREADS as usize);
                scope.spawn(move || cases.filter_map(|seed| wrong(this, seed)).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no case panics")).collect()
    });
    assert!(
        faults.is_empty(),
        "{} faults, the first:\n{}",
        faults.len(),
        faults[..faults.len().min(3)].join("\n\n")
    );
    assert!(gateway.is_running());
    gateway.wait_for_metrics("every connection closed", |metrics| {
        metrics.get("gateway_connections_open", &[]) == Some(0.0)
    });
}

#[test]
fn damaged_requests_neither_crash_nor_hang_it() {
    let upstream = Upstream::answering(ok("fine"));
    let mut gateway = Gateway::to(&upstream);
    check(&mut gateway, wrong);
    // Enough connections that each worker gets some.
    for _ in 0..16 {
        assert_eq!(gateway.get("/").text(), "fine");
    }
}

#[test]
fn damaged_responses_neither_crash_nor_hang_it() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            let Ok(seed) = request.target()[1..].parse() else {
                conn.send(ok("fine"));
                continue;
            };
            let (bytes, cut) = damaged(seed, &RESPONSES);
            conn.send(&bytes[..cut]);
            conn.send(&bytes[cut..]);
            return;
        }
    });
    let mut gateway = Gateway::to(&upstream);
    check(&mut gateway, |gateway, seed| {
        let mut client = gateway.connect();
        client.send(get(&format!("/{seed}")));
        // Interim ones first; one cut short is no fault, the damage may have done it.
        loop {
            match client.try_response("GET") {
                Ok(response) if response.status() < 200 => {}
                Ok(_) => break,
                Err(error)
                    if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) =>
                {
                    return None;
                }
                Err(error) => {
                    let (bytes, _) = damaged(seed, &RESPONSES);
                    return Some(format!("seed {seed}: {error} after {}", bytes.escape_ascii()));
                }
            }
        }
        // What was beyond it is not the next request's answer.
        match client.try_send(get("/next")).and_then(|()| client.try_response("GET")) {
            Ok(next) if next.text() != "fine" => Some(format!("seed {seed}: {next}")),
            Ok(_) | Err(_) => None,
        }
    });
}
