//! `gateway top` on a real terminal, beside a gateway with traffic.

use std::fs;

use gateway_tests::gateway::{command, complete};
use gateway_tests::{Gateway, Terminal, Upstream};
use rustix::process::Signal;
use serde_json::json;
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
