//! The generator against origins that behave, stall and misbehave: does it count and time what happened?

#![expect(clippy::unwrap_used, reason = "a test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use bench::load::{self, Active, Expect, Fault, Load, Outcome, Pace, Reuse};
use bench::origin::{EVENTS, Origin, SMALL_BODY_BYTES};
use bench::poll::Events;
use bench::scenario::Exchange;

fn load(target: SocketAddr, exchange: Exchange, reuse: Reuse, pace: Pace) -> Load {
    Load {
        target,
        request: exchange.request(reuse),
        expect: exchange.expect(),
        connections: 4,
        active: Active::All,
        depth: 1,
        pace,
        reuse,
        warm_up: Duration::from_millis(50),
        duration: Duration::from_millis(1_000),
        timeout: Duration::from_secs(5),
    }
}

/// Puts a load on an origin that does nothing at all from `stall.start` to `stall.end`.
fn with_stall(pace: Pace, stall: std::ops::Range<Duration>) -> Outcome {
    let mut origin = Origin::bind().unwrap();
    let mut events = Events::with_capacity(EVENTS);
    let load = load(origin.addr, Exchange::Small, Reuse::Keepalive, pace);
    let start = Instant::now();
    let turn = || !stall.contains(&start.elapsed()) && origin.turn(&mut events, Duration::ZERO);
    load::run(&load, turn, || ()).unwrap().0
}

#[test]
fn a_stall_is_felt_by_every_request_that_fell_due_during_it() {
    let stall = Duration::from_millis(300)..Duration::from_millis(700);

    let open = with_stall(Pace::Rate(1_000.0), stall.clone());
    assert_eq!(open.faults.total(), 0);
    assert!((999..=1_001).contains(&open.latency_ns.len()), "{} of 1000", open.latency_ns.len());
    // 400 of 1,000 fell due during the stall, evenly: they waited from 400 ms down to nothing.
    assert!(open.latency_micros(0.5) < 100_000.0, "p50 {}", open.latency_micros(0.5));
    assert!(open.latency_micros(0.8) > 150_000.0, "p80 {}", open.latency_micros(0.8));
    assert!(open.latency_micros(0.99) > 350_000.0, "p99 {}", open.latency_micros(0.99));

    // A closed loop stalls along with the server and sees the stall four times, once a connection.
    let closed = with_stall(Pace::Saturating, stall);
    assert_eq!(closed.faults.total(), 0);
    assert!(closed.latency_micros(0.99) < 50_000.0, "p99 {}", closed.latency_micros(0.99));
    assert!(closed.latency_micros(1.0) > 350_000.0, "max {}", closed.latency_micros(1.0));
}

#[test]
fn what_is_never_sent_is_a_timeout() {
    let mut origin = Origin::bind().unwrap();
    let mut events = Events::with_capacity(EVENTS);
    let mut load = load(origin.addr, Exchange::Small, Reuse::Keepalive, Pace::Rate(1_000.0));
    load.timeout = Duration::from_millis(200);
    let start = Instant::now();
    // Turned for the first half, then never again.
    let turn = || start.elapsed() < Duration::from_millis(550) && origin.turn(&mut events, Duration::ZERO);
    let (outcome, _) = load::run(&load, turn, || ()).unwrap();
    let (answered, lost) = (outcome.latency_ns.len(), outcome.faults.of(Fault::Timeout));
    assert_eq!(outcome.faults.total(), lost);
    assert!((999..=1_001).contains(&(answered + lost)), "{answered} answered, {lost} lost of 1000");
    assert!((400..=600).contains(&lost), "{lost} lost");
}

#[test]
fn an_origin_that_behaves_gives_no_fault() {
    let exchanges =
        [Exchange::Small, Exchange::Download { bytes: 1 << 20 }, Exchange::Upload { bytes: 1 << 20 }];
    for exchange in exchanges {
        for reuse in [Reuse::Keepalive, Reuse::Fresh] {
            for pace in [Pace::Saturating, Pace::Rate(100.0)] {
                let mut origin = Origin::bind().unwrap();
                let mut events = Events::with_capacity(EVENTS);
                let mut load = load(origin.addr, exchange, reuse, pace);
                load.duration = Duration::from_millis(100);
                let turn = || origin.turn(&mut events, Duration::ZERO);
                let (outcome, _) = load::run(&load, turn, || ()).unwrap();
                assert_eq!(outcome.faults.total(), 0, "{reuse:?} {pace:?}: {:?}", outcome.faults);
                let (right, least) = (outcome.latency_ns.len(), if pace == Pace::Saturating { 1 } else { 9 });
                assert!(right >= least, "{reuse:?} {pace:?}: {right} right answers");
            }
        }
    }
}

#[test]
fn requests_go_out_together_and_are_answered_one_by_one() {
    let mut origin = Origin::bind().unwrap();
    let answered = origin.answered.clone();
    let mut events = Events::with_capacity(EVENTS);
    let mut load = load(origin.addr, Exchange::Small, Reuse::Keepalive, Pace::Saturating);
    (load.depth, load.duration) = (16, Duration::from_millis(100));
    let turn = || origin.turn(&mut events, Duration::ZERO);
    let sample = || answered.load(std::sync::atomic::Ordering::Relaxed);
    let (outcome, [before, after]) = load::run(&load, turn, sample).unwrap();
    assert_eq!(outcome.faults.total(), 0, "{:?}", outcome.faults);
    assert_eq!(outcome.latency_ns.len(), outcome.answers);
    // On its way at either end is at most everything once, and as much may arrive in the last turn, too late.
    assert!(
        outcome.answers.abs_diff(after - before) <= 2 * 4 * 16,
        "{} of {}",
        outcome.answers,
        after - before
    );
}

#[test]
fn connections_that_do_not_ask_stay_open() {
    for active in [Active::Same(2), Active::InTurn(2)] {
        let mut origin = Origin::bind().unwrap();
        let mut events = Events::with_capacity(EVENTS);
        let mut load = load(origin.addr, Exchange::Small, Reuse::Keepalive, Pace::Saturating);
        (load.connections, load.active) = (300, active);
        load.duration = Duration::from_millis(100);
        let (outcome, _) = load::run(&load, || origin.turn(&mut events, Duration::ZERO), || ()).unwrap();
        assert_eq!((outcome.open, outcome.faults.total()), (300, 0), "{active:?}");
        assert!(outcome.answers > 300, "{active:?}: {}", outcome.answers);
    }
}

#[test]
fn a_generator_with_little_to_do_says_so() {
    let spare = |pace| {
        let mut origin = Origin::bind().unwrap();
        let mut events = Events::with_capacity(EVENTS);
        let mut load = load(origin.addr, Exchange::Small, Reuse::Keepalive, pace);
        load.duration = Duration::from_millis(200);
        let (outcome, _) = load::run(&load, || origin.turn(&mut events, Duration::ZERO), || ()).unwrap();
        outcome.spare.as_secs_f64() / outcome.elapsed.as_secs_f64()
    };
    // With nothing in between, generator and origin always have something to do for each other.
    assert!(spare(Pace::Saturating) < 0.2);
    assert!(spare(Pace::Rate(100.0)) > 0.8);
}

/// What a server does with each request of each connection.
#[derive(Clone, Copy)]
enum Script {
    Answer(&'static str),
    AnswerAndClose(&'static str),
    Silence,
}

/// Puts a short load on a server that follows a script, and returns the faults.
fn faults_of(script: Script) -> load::Faults {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut buffer = [0; 4096];
                // An empty first read is the test's own connection, which ends the server.
                match stream.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(_) => continue,
                }
                scope.spawn(move || {
                    loop {
                        let written = match script {
                            Script::Answer(text) | Script::AnswerAndClose(text) => {
                                stream.write_all(text.as_bytes())
                            }
                            Script::Silence => Ok(()),
                        };
                        let ends = written.is_err() || matches!(script, Script::AnswerAndClose(_));
                        if ends || !matches!(stream.read(&mut buffer), Ok(1..)) {
                            return;
                        }
                    }
                });
            }
        });
        let mut load = load(addr, Exchange::Small, Reuse::Keepalive, Pace::Rate(40.0));
        load.expect = Expect { status: 200, body_bytes: Some(2) };
        load.duration = Duration::from_millis(300);
        load.timeout = Duration::from_millis(100);
        let faults = load::run(&load, || false, || ()).unwrap().0.faults;
        drop(std::net::TcpStream::connect(addr).unwrap());
        faults
    })
}

#[test]
fn faults_are_counted_by_kind() {
    let cases = [
        (Script::Answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), None),
        (Script::AnswerAndClose("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"), None),
        (Script::AnswerAndClose("HTTP/1.0 200 OK\r\n\r\nok"), None),
        (Script::Answer("HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno"), Some(Fault::Status)),
        (Script::Answer("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok!"), Some(Fault::Short)),
        (Script::AnswerAndClose("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no"), Some(Fault::Short)),
        (Script::AnswerAndClose(""), Some(Fault::Reset)),
        (Script::Answer("220 ready\r\n"), Some(Fault::Reset)),
        (Script::Silence, Some(Fault::Timeout)),
    ];
    for (number, (script, expected)) in cases.into_iter().enumerate() {
        let faults = faults_of(script);
        match expected {
            None => assert_eq!(faults.total(), 0, "case {number}: {faults:?}"),
            Some(fault) => {
                assert!(faults.of(fault) > 0, "case {number}: {faults:?}");
                assert_eq!(faults.of(fault), faults.total(), "case {number}: {faults:?}");
            }
        }
    }
}

#[test]
fn nobody_there_is_a_connect_fault() {
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut load = load(addr, Exchange::Small, Reuse::Keepalive, Pace::Saturating);
    load.duration = Duration::from_millis(200);
    let (outcome, _) = load::run(&load, || false, || ()).unwrap();
    assert!(outcome.faults.of(Fault::Connect) > 0);
    assert_eq!(outcome.faults.of(Fault::Connect), outcome.faults.total());
    assert_eq!(outcome.answers, 0);
}

#[test]
fn the_origin_follows_requests_cut_anywhere() {
    let wire = b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
                 PUT /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /bytes/3 HTTP/1.1\r\nConnection: close\r\n\r\n";
    let mut origin = Origin::bind().unwrap();
    let addr = origin.addr;
    let answers = origin.serve_during(|| {
        (0..wire.len())
            .step_by(7)
            .map(move |cut| {
                let mut stream = std::net::TcpStream::connect(addr).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.write_all(&wire[..cut]).unwrap();
                stream.write_all(&wire[cut..]).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                (cut, answer)
            })
            .collect::<Vec<_>>()
    });
    let small = format!("Content-Length: {SMALL_BODY_BYTES}\r\n");
    for (cut, answer) in answers {
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "cut at {cut}: {answer}");
        assert_eq!(answer.matches(&small).count(), 2, "cut at {cut}: {answer}");
        assert!(answer.ends_with("\r\n\r\n012"), "cut at {cut}: {answer}");
    }
}
