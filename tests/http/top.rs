//! `gateway top` on a real terminal, beside a gateway with traffic.

use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::{fs, thread};

use gateway_tests::gateway::{command, complete};
use gateway_tests::{Gateway, PATIENCE, Terminal, Upstream};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

fn busy(upstream: &Upstream) -> Gateway {
    let directory = TempDir::new().expect("there is room for a folder");
    let config = json!({
        "routes": [{ "path": "/orders", "backend": upstream.url() }],
        "control": { "socket": directory.path().join("control.sock"), "state_file": directory.path().join("state.json") }
    });
    let file = directory.path().join("gateway.json");
    fs::write(&file, complete(config)).expect("there is room for a file");
    let gateway = Gateway::run(directory, file, |_| {});
    for _ in 0..20 {
        assert_eq!(gateway.get("/orders").status(), 200);
    }
    gateway
}

fn top(gateway: &Gateway) -> Terminal {
    Terminal::run(command(gateway.directory()).arg("top").arg("--config").arg(&gateway.file), 100, 30)
}

/// What the top line says of requests.
fn rate(text: &str) -> Option<f64> {
    let (_, rest) = text.rsplit_once("requests ")?;
    rest.split_once("/s")?.0.parse().ok()
}

#[test]
fn figures_are_drawn_until_q_and_the_terminal_is_as_before() {
    let upstream = Upstream::ok();
    let gateway = busy(&upstream);
    let mut terminal = top(&gateway);
    terminal.wait_for("the route and its rate", |_, text| {
        text.contains("/orders") && rate(text).is_some_and(|rate| rate > 0.0)
    });
    terminal.press("3");
    let address = upstream.url();
    let address = address.trim_start_matches("http://");
    terminal.wait_for("the endpoint and its breaker", |_, text| {
        text.contains(address) && text.contains("closed")
    });
    terminal.resize(80, 24);
    terminal
        .wait_for("the whole frame once more", |_, text| text.contains(address) && text.contains("q quit"));
    terminal.press("6");
    terminal.wait_for("that there are no such sources", |_, text| text.contains("nobody is refused much"));
    terminal.press("q");
    assert_eq!(terminal.end(), Some(0));
}

/// A socket beside the gateway's own that passes everything on, and says what is asked for.
fn overhear(gateway: &Gateway, at: &Path) -> Receiver<String> {
    let (says, said) = mpsc::channel();
    let (listener, to) =
        (UnixListener::bind(at).expect("a folder"), gateway.directory().join("control.sock"));
    thread::spawn(move || {
        for asks in listener.incoming().map_while(Result::ok) {
            let mut asks = BufReader::new(asks);
            let mut line = String::new();
            let mut answers = UnixStream::connect(&to).expect("the gateway listens");
            if asks.read_line(&mut line).is_err() || says.send(line.clone()).is_err() {
                return;
            }
            answers.write_all(line.as_bytes()).expect("it reads");
            let (mut back, mut forth) = (
                answers.try_clone().expect("a descriptor"),
                asks.get_ref().try_clone().expect("a descriptor"),
            );
            thread::spawn(move || io::copy(&mut asks, &mut answers));
            // Either may leave first.
            let _ = io::copy(&mut back, &mut forth);
            let _ = forth.shutdown(Shutdown::Both);
        }
    });
    said
}

#[test]
fn sources_are_asked_for_while_they_are_shown() {
    let upstream = Upstream::ok();
    let gateway = busy(&upstream);
    let (file, socket) = (gateway.directory().join("other.json"), gateway.directory().join("other.sock"));
    let said = overhear(&gateway, &socket);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&gateway.file).unwrap()).unwrap();
    config["control"]["socket"] = json!(socket);
    fs::write(&file, config.to_string()).expect("there is room for a file");
    let mut terminal =
        Terminal::run(command(gateway.directory()).arg("top").arg("--config").arg(&file), 100, 30);
    // What is asked for between two looks.
    let look = || -> String {
        let asked = std::iter::from_fn(|| Some(said.recv_timeout(PATIENCE).expect("a look")));
        asked
            .map(|line| line.split(' ').nth(1).expect("a target").to_owned())
            .take_while(|path| path != "/v1/status")
            .collect()
    };
    assert_eq!(look(), "");
    for _ in 0..2 {
        assert_eq!(look(), "/metrics");
    }
    terminal.press("6");
    terminal.wait_for("the pane", |_, text| text.contains("nobody is refused much"));
    // At once, and with the looks that follow.
    assert_eq!(look(), "/metrics/v1/sources");
    assert_eq!(look(), "/metrics/v1/sources");
    terminal.press("2");
    terminal.wait_for("the other pane", |_, text| text.contains("/orders"));
    while look() != "/metrics" {}
    terminal.press("q");
    assert_eq!(terminal.end(), Some(0));
}

#[test]
fn a_signal_ends_it_as_q_does() {
    let upstream = Upstream::ok();
    let gateway = busy(&upstream);
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut terminal = top(&gateway);
        terminal.wait_for("a frame", |_, text| text.contains("q quit"));
        terminal.signal(signal);
        assert_eq!(terminal.end(), Some(0));
    }
}

#[test]
fn a_gateway_that_goes_and_returns_is_shown_again() {
    let upstream = Upstream::ok();
    let gateway = busy(&upstream);
    let mut terminal = top(&gateway);
    terminal.wait_for("a frame", |_, text| text.contains("q quit"));
    let gateway = gateway.restart(|_| {
        terminal.wait_for("that nobody answers", |_, text| text.contains("no gateway answers"));
    });
    terminal.wait_for("the gateway", |_, text| text.contains("q quit") || text.contains("since its start"));
    terminal.press("\x03");
    assert_eq!(terminal.end(), Some(0));
    drop(gateway);
}

#[test]
fn without_a_terminal_or_a_gateway_it_says_so_in_one_line() {
    let upstream = Upstream::ok();
    let mut gateway = busy(&upstream);
    let told = gateway.ask(&["top"]);
    assert_eq!((told.code, told.out.as_str()), (Some(2), ""));
    assert_eq!(
        told.error,
        "gateway: top draws on a terminal, which this is not: try `gateway status --json`\n"
    );
    let told = gateway.ask(&["top", "--interval", "0s"]);
    assert_eq!(told.code, Some(2));
    assert!(told.error.contains("such as 90s or 7d"), "{told:?}");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    let mut terminal_less = command(gateway.directory());
    terminal_less.arg("top").arg("--config").arg(&gateway.file);
    assert_eq!(Gateway::exit_of(&mut terminal_less).code, Some(2), "no terminal is said first");
}
