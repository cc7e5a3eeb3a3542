//! A binary upgrade: one process takes another's place, and no connection notices.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use gateway_tests::client::get;
use gateway_tests::gateway::{command, complete, route_to};
use gateway_tests::upstream::ok;
use gateway_tests::{Client, Gate, Gateway, PATIENCE, Upstream};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

fn config(upstream: &Upstream, directory: &TempDir) -> Value {
    let mut config = route_to(&upstream.url());
    let path = |name| directory.path().join(name);
    config["control"] = json!({ "socket": path("control.sock"), "state_file": path("state.json") });
    config["timeouts"] = json!({ "drain": "60s" });
    config
}

/// Clients on kept connections and on new ones, without a pause, while gateways follow each other: every request
/// is answered, none is reset or refused.
#[test]
fn no_request_fails_while_gateways_follow_each_other() {
    const KEPT: usize = 8;
    const CONNECTING: usize = 8;
    const UPGRADES: usize = 5;
    let (upstream, directory) = (Upstream::answering(ok("served")), TempDir::new().unwrap());
    let mut settings = config(&upstream, &directory);
    let mut gateway = Gateway::start(settings.clone());
    let (address, metrics) = (gateway.address, gateway.metrics);
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let answered = |client: &mut Client| {
        let response = client.get("/");
        assert_eq!((response.status(), response.text().as_str()), (200, "served"));
        asked.fetch_add(1, SeqCst);
        response.closes()
    };
    let wait_for_more = || {
        let until = asked.load(SeqCst) + 500;
        let started = std::time::Instant::now();
        while asked.load(SeqCst) < until {
            assert!(started.elapsed() < PATIENCE, "nobody is served");
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        let kept = || {
            while !stop.load(SeqCst) {
                let mut client = Client::connect(address);
                let is_over = || answered(&mut client) || stop.load(SeqCst);
                std::iter::repeat_with(is_over).any(|is_over| is_over);
            }
        };
        let connecting = || {
            while !stop.load(SeqCst) {
                answered(&mut Client::connect(address));
            }
        };
        let clients: Vec<_> = (0..KEPT).map(|_| scope.spawn(kept)).collect();
        let clients: Vec<_> =
            clients.into_iter().chain((0..CONNECTING).map(|_| scope.spawn(connecting))).collect();
        // More workers than before, fewer, and as many.
        for workers in [2, 4, 1, 3, 3].into_iter().take(UPGRADES) {
            wait_for_more();
            settings["workers"] = json!(workers);
            gateway.write(settings.clone());
            let next = gateway.followed(|_| {});
            assert_eq!((next.address, next.metrics), (address, metrics));
            gateway.log.wait_for("another gateway serves in this one's place; draining");
            assert_eq!(gateway.wait(), Some(0));
            gateway = next;
        }
        wait_for_more();
        stop.store(true, SeqCst);
        clients.into_iter().for_each(|client| client.join().expect("all were served"));
    });
    assert_eq!(gateway.admin("/readyz").status(), 200);
    assert_eq!(gateway.scrape().get("gateway_draining", &[]), Some(0.0));
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    assert!(!directory.path().join("control.sock").exists(), "the last one takes the socket along");
}

#[test]
fn a_request_under_way_ends_where_it_began() {
    let (upstream, arrived, gate) = Upstream::gated("late");
    let directory = TempDir::new().unwrap();
    let mut gateway = Gateway::start(config(&upstream, &directory));
    let mut client = gateway.connect();
    client.send(get("/"));
    arrived.recv_timeout(PATIENCE).unwrap();
    let next = gateway.followed(|_| {});
    gateway.log.wait_for("draining");
    assert!(gateway.is_running());
    // Whose a second client is, the kernel says.
    let mut other = next.connect();
    other.send(get("/"));
    arrived.recv_timeout(PATIENCE).unwrap();
    gate.open();
    let response = client.response();
    assert_eq!((response.status(), response.text().as_str(), response.closes()), (200, "late", true));
    let response = other.response();
    assert_eq!((response.status(), response.text().as_str()), (200, "late"));
    assert_eq!(gateway.wait(), Some(0));
}

#[test]
fn what_was_said_at_run_time_goes_along() {
    let (upstream, directory) = (Upstream::ok(), TempDir::new().unwrap());
    let mut gateway = Gateway::start(config(&upstream, &directory));
    assert_eq!(gateway.ask(&["deny", "add", "203.0.113.0/24", "--reason", "test"]).code, Some(0));
    let next = gateway.followed(|_| {});
    assert_eq!(gateway.wait(), Some(0));
    let told = next.ask(&["deny", "list", "--json"]);
    assert!(told.out.contains("203.0.113.0/24"), "{told:?}");
    assert_eq!(next.ask(&["deny", "del", "203.0.113.0/24"]).code, Some(0));
}

/// Whatever becomes of the other one, the gateway that was asked goes on, and can be asked again.
#[test]
fn a_successor_that_does_not_start_changes_nothing() {
    let (upstream, directory) = (Upstream::answering(ok("served")), TempDir::new().unwrap());
    let settings = config(&upstream, &directory);
    let mut gateway = Gateway::start(settings.clone());
    let mut kept = gateway.connect();
    assert_eq!(kept.get("/").status(), 200);
    let mut goes_on = |gateway: &Gateway, why: &str| {
        let line = gateway.log.wait_for("no other gateway follows; this one goes on");
        assert!(line.contains(why), "{line}");
        assert_eq!(kept.get("/").text(), "served");
        assert_eq!(gateway.get("/").text(), "served");
        assert_eq!(gateway.ask(&["deny", "add", "203.0.113.1"]).code, Some(0));
        assert_eq!(gateway.admin("/readyz").status(), 200);
    };

    // With everything in its hands it finds that its own metrics port is taken.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut other = settings.clone();
    other["metrics_addr"] = json!(taken.local_addr().unwrap());
    let file = directory.path().join("other.json");
    std::fs::write(&file, complete(other)).unwrap();
    let exit = Gateway::exit_of(&mut gateway.upgrade(&file));
    assert_eq!(exit.code, Some(3), "{exit:?}");
    assert!(exit.lines.last().unwrap().contains("the port is taken"), "{exit:?}");
    goes_on(&gateway, "it has ended before it was ready");

    // It leaves with what it was given, or says something that is no word of a successor.
    for word in ["", "who knows\n"] {
        let mut stream = UnixStream::connect(directory.path().join("control.sock")).unwrap();
        stream.write_all(b"\"hand_over\"\n").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let manifest: Value = serde_json::from_str(&line).unwrap();
        let pieces = manifest["handed_over"]["pieces"].as_array().unwrap();
        assert_eq!(pieces, &["listener", "listener", "metrics", "control"]);
        assert_eq!(gateway.ask(&["deny", "add", "203.0.113.2"]).code, Some(1), "the lists are on their way");
        stream.write_all(word.as_bytes()).unwrap();
        if !word.is_empty() {
            let mut said = Vec::new();
            stream.read_to_end(&mut said).unwrap();
            assert!(said.ends_with(b"\"goes_on\"\n"), "{said:?}");
        }
        drop(stream);
        goes_on(&gateway, "error=");
    }

    // A configuration that is wrong is said before anybody is asked.
    std::fs::write(&file, r#"{ "routes": 1 }"#).unwrap();
    let exit = Gateway::exit_of(&mut gateway.upgrade(&file));
    assert_eq!(exit.code, Some(1), "{exit:?}");
    let next = gateway.followed(|_| {});
    assert_eq!(gateway.wait(), Some(0));
    assert_eq!(next.get("/").text(), "served");
}

/// The running gateway has waited long enough, and says so: the one that is ready too late finishes what came to it
/// and leaves, with sockets that are not its own left open.
#[test]
fn a_successor_that_is_too_late_leaves() {
    let (upstream, arrived, gate) = Upstream::gated("served");
    let directory = TempDir::new().unwrap();
    let mut settings = config(&upstream, &directory);
    settings["workers"] = json!(1);
    let file = directory.path().join("gateway.json");
    std::fs::write(&file, complete(settings)).unwrap();
    let control = UnixListener::bind(directory.path().join("control.sock")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = command(directory.path());
    command.args(["run", "--upgrade", "--config"]).arg(&file);
    let exit = std::thread::scope(|scope| {
        let exit = scope.spawn(|| Gateway::exit_of(&mut command));
        let mut stream = hand_over(&control, &listener);
        let mut client = Client::connect(listener.local_addr().unwrap());
        client.send(get("/"));
        arrived.recv_timeout(PATIENCE).unwrap();
        stream.write_all(b"\"goes_on\"\n").unwrap();
        drop(stream);
        // Said to whoever is still being served.
        gate.open();
        assert_eq!(client.response().text(), "served");
        exit.join().unwrap()
    });
    assert_eq!(exit.code, Some(3), "{exit:?}");
    assert!(
        exit.lines.last().unwrap().contains("the running gateway goes on, and this one leaves"),
        "{exit:?}"
    );
    assert!(!exit.lines.iter().any(|line| line.contains("INFO ready")), "{exit:?}");
    // Both are as they were.
    assert!(UnixStream::connect(directory.path().join("control.sock")).is_ok());
    assert!(TcpStream::connect(listener.local_addr().unwrap()).is_ok());
}

/// It stood still for longer than its successor waits for a word, as one does that is stopped: when it goes on it says
/// the word, is heard, and leaves.
#[test]
fn a_gateway_that_wakes_when_it_has_been_followed_is_still_heard() {
    let (upstream, directory) = (Upstream::answering(ok("served")), TempDir::new().unwrap());
    let mut settings = config(&upstream, &directory);
    settings["workers"] = json!(1);
    let file = directory.path().join("gateway.json");
    std::fs::write(&file, complete(settings)).unwrap();
    let control = UnixListener::bind(directory.path().join("control.sock")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    std::thread::scope(|scope| {
        let before = scope.spawn(|| hand_over(&control, &listener));
        let next = Gateway::run(directory, file, |command| {
            command.args(["run", "--upgrade"]);
        });
        before.join().unwrap().write_all(b"\"followed\"\n").expect("somebody hears it");
        assert_eq!(next.get("/").text(), "served");
    });
}

/// What a running gateway does for one that is to follow it, up to its last word.
fn hand_over(control: &UnixListener, listener: &TcpListener) -> UnixStream {
    let (mut stream, _) = control.accept().expect("it asks");
    stream.set_read_timeout(Some(PATIENCE)).expect("it is no zero");
    let mut said = BufReader::new(stream.try_clone().expect("it is open"));
    let mut hear = || {
        let mut line = String::new();
        said.read_line(&mut line).expect("it says something");
        line
    };
    assert_eq!(hear(), "\"hand_over\"\n");
    let manifest = json!({ "handed_over": {
        "listen": "127.0.0.1:0", "metrics": "", "contract": "", "pieces": ["listener", "control"]
    } });
    stream.write_all(format!("{manifest}\n").as_bytes()).expect("it reads");
    control.set_nonblocking(true).expect("it is a socket");
    listener.set_nonblocking(true).expect("it is a socket");
    send_with(&stream, &[listener.as_fd(), control.as_fd()]);
    assert_eq!(hear(), "{\"ready\":1}\n");
    stream
}

/// A byte, and descriptors with it.
fn send_with(stream: &UnixStream, descriptors: &[BorrowedFd<'_>]) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    let sent = sendmsg(stream, &[IoSlice::new(b".")], &mut control, SendFlags::empty());
    sent.expect("the gateway reads");
}

#[test]
fn an_endpoint_stays_drained() {
    let (upstream, directory) = (Upstream::answering(ok("served")), TempDir::new().unwrap());
    let mut gateway = Gateway::start(config(&upstream, &directory));
    let name = upstream.address.to_string();
    assert_eq!(gateway.ask(&["endpoints", "drain", &name]).code, Some(0));
    let next = gateway.followed(|_| {});
    assert_eq!(gateway.wait(), Some(0));
    assert_eq!(next.get("/").status(), 503);
    assert_eq!(next.ask(&["endpoints", "undrain", &name]).code, Some(0));
    assert_eq!(next.get("/").text(), "served");
}

#[test]
fn there_has_to_be_somebody_to_follow() {
    let (upstream, directory) = (Upstream::ok(), TempDir::new().unwrap());
    let check = |config: Value, told: &str| {
        let file = directory.path().join("gateway.json");
        std::fs::write(&file, complete(config)).unwrap();
        let mut command = command(directory.path());
        let exit = Gateway::exit_of(command.args(["run", "--upgrade", "--config"]).arg(&file));
        assert_eq!(exit.code, Some(3));
        assert!(matches!(exit.lines.as_slice(), [line] if line.contains(told)), "{told}: {:#?}", exit.lines);
    };
    check(config(&upstream, &directory), "--upgrade: no gateway answers at");
    check(route_to(&upstream.url()), "the configuration has no control.socket");
}

/// A port that only the old configuration has closes with the old process, a new one opens.
#[test]
fn the_successor_may_listen_elsewhere() {
    let (upstream, directory) = (Upstream::ok(), TempDir::new().unwrap());
    let mut settings = config(&upstream, &directory);
    let mut gateway = Gateway::start(settings.clone());
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    settings["listen_addr"] = json!(free);
    gateway.write(settings);
    gateway.log.wait_for("configuration refused");
    let next = gateway.followed(|_| {});
    assert_eq!(next.address, free);
    assert_eq!(next.get("/").status(), 200);
    assert_eq!(gateway.wait(), Some(0));
    assert!(TcpStream::connect(gateway.address).is_err(), "nobody listens there any more");
    assert_eq!(next.metrics, gateway.metrics);
}

/// A response of any length goes on while its process leaves.
#[test]
fn a_long_response_outlives_two_upgrades() {
    let gate = Gate::default();
    let opened = gate.clone();
    let upstream = Upstream::start(move |mut conn| {
        while conn.request().is_some() {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nlong");
            opened.wait();
            conn.send("long");
        }
    });
    let directory = TempDir::new().unwrap();
    let mut first = Gateway::start(config(&upstream, &directory));
    let address: SocketAddr = first.address;
    let mut client = first.connect();
    client.send(get("/"));
    assert_eq!(client.head().status(), 200);
    let mut second = first.followed(|_| {});
    first.log.wait_for("draining");
    let third = second.followed(|_| {});
    assert_eq!(second.wait(), Some(0));
    assert!(first.is_running());
    gate.open();
    let mut rest = [0; 8];
    client.reader.read_exact(&mut rest).expect("the rest of the answer");
    assert_eq!(&rest, b"longlong");
    assert_eq!(first.wait(), Some(0));
    assert_eq!(third.address, address);
}

/// A supervisor hears when each is ready, and which process it is; that it stops, of the last one only.
#[test]
fn a_supervisor_is_told() {
    let (upstream, directory) = (Upstream::ok(), TempDir::new().unwrap());
    let place = directory.path().join("notify.sock");
    let heard = UnixDatagram::bind(&place).unwrap();
    heard.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut bytes = [0; 256];
        let length = heard.recv(&mut bytes).expect("it is told");
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    let supervised = |command: &mut Command| {
        command.env("NOTIFY_SOCKET", &place);
    };
    let file = directory.path().join("gateway.json");
    std::fs::write(&file, complete(config(&upstream, &directory))).unwrap();
    let mut gateway = Gateway::run(TempDir::new().unwrap(), file, supervised);
    assert_eq!(hear(), format!("READY=1\nMAINPID={}\n", gateway.id()));
    let mut next = gateway.followed(supervised);
    assert_eq!(gateway.wait(), Some(0));
    assert_eq!(hear(), format!("READY=1\nMAINPID={}\n", next.id()));
    next.signal(Signal::TERM);
    assert_eq!(next.wait(), Some(0));
    assert_eq!(hear(), "STOPPING=1\n");
}
