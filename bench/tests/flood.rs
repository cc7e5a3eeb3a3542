//! The flood rig as its user meets it: it sets up, measures, and leaves nothing behind, however it ends (root).

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use gateway_tests::binary;
use rustix::process::{Signal, kill_process};
use rustix::thread::Pid;
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A flood of the gateway, all of whose files are in `folder`.
fn flood(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flood"));
    command.args(["--systems", "gateway", "--gateway"]).arg(binary::gateway()).args(arguments);
    command.arg("--results").arg(folder.join("results")).env("TMPDIR", folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn prefix(run: &Child) -> String {
    format!("flood-{}-", run.id())
}

/// Everything of a run that is still there.
fn left(prefix: &str, folder: &Path) -> Vec<String> {
    let mut left: Vec<String> = [Path::new("/run/netns"), folder]
        .iter()
        .flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten())
        .map(|entry| entry.path().display().to_string())
        .filter(|path| path.contains(prefix))
        .collect();
    // Whatever it started has its environment.
    let mark = format!("TMPDIR={}\0", folder.display());
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environment).contains(&mark) {
            left.push(process.path().display().to_string());
        }
    }
    left
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// Starts a flood and waits until the gateway's kernel half judges the attacker's packets.
fn under_way(folder: &Path, arguments: &[&str]) -> Child {
    let run = flood(folder, arguments).spawn().unwrap();
    let (server, interface) = (format!("{}server", prefix(&run)), format!("evil{}", run.id()));
    let attached = || {
        let told = Command::new("ip").args(["-n", &server, "-d", "link", "show", "dev", &interface]).output();
        String::from_utf8_lossy(&told.unwrap().stdout).contains("prog/xdp")
    };
    wait_until("the kernel half is attached", attached);
    run
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_interrupted_flood_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let run = under_way(folder.path(), &["--attack", "connections", "--seconds", "60"]);
    let prefix = prefix(&run);
    assert!(!left(&prefix, folder.path()).is_empty());
    kill_process(Pid::from_child(&run), Signal::INT).unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 2), "{}", told(&output));
    // Those that were killed take a moment to go.
    wait_until("nothing is left", || left(&prefix, folder.path()).is_empty());
}

/// A ring holds 256 packets: of answers that nobody takes out of it no more than a few of those arrive.
#[test]
fn what_the_kernel_half_answers_arrives() {
    let folder = TempDir::new().unwrap();
    let run = under_way(folder.path(), &["--attack", "spoofed", "--seconds", "10"]);
    let attacker = format!("{}evil", prefix(&run));
    let received = || {
        let told =
            Command::new("ip").args(["-n", &attacker, "-s", "-j", "link", "show", "dev", "outer"]).output();
        let told: Value = serde_json::from_slice(&told.unwrap().stdout).unwrap();
        told[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
    };
    wait_until("answers arrive", || received() > 50_000);
    kill_process(Pid::from_child(&run), Signal::INT).unwrap();
    run.wait_with_output().unwrap();
}

#[test]
fn the_next_flood_clears_what_a_killed_one_left_measures_and_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let mut killed = under_way(folder.path(), &["--attack", "connections", "--seconds", "60"]);
    let killed_prefix = prefix(&killed);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!left(&killed_prefix, folder.path()).is_empty());

    let run = flood(folder.path(), &["--attack", "syn", "--quick"]).spawn().unwrap();
    let prefix = prefix(&run);
    let output = run.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    wait_until("nothing is left of the killed", || left(&killed_prefix, folder.path()).is_empty());
    assert_eq!(left(&prefix, folder.path()), [""; 0]);

    let results = fs::read_dir(folder.path().join("results")).unwrap().map(|entry| entry.unwrap().path());
    let (json, markdown): (Vec<_>, Vec<_>) =
        results.partition(|path| path.extension().is_some_and(|extension| extension == "json"));
    assert!(fs::read_to_string(&markdown[0]).unwrap().contains("| gateway, kernel half |"));
    let json: Value = serde_json::from_slice(&fs::read(&json[0]).unwrap()).unwrap();
    let round = &json["rows"][0]["rounds"][0];
    let figure = |path: &str| round.pointer(path).and_then(Value::as_f64).unwrap();
    assert!(figure("/calm/goodput_percent") > 99.0, "{round:#}");
    assert!(figure("/attacked/goodput_percent") > 90.0, "{round:#}");
    assert!(figure("/attacked/attack_per_second") > 10_000.0, "{round:#}");
    assert!(figure("/attacked/core/receive_percent") > figure("/calm/core/receive_percent"), "{round:#}");
}

#[test]
fn what_it_lacks_is_one_clear_line() {
    let folder = TempDir::new().unwrap();
    let check = |shell: &str, line: &str| {
        let inner = flood(folder.path(), &["--quick"]);
        let mut outer = Command::new("unshare");
        outer.args(shell.split('|')).arg(inner.get_program()).args(inner.get_args());
        let output = outer.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", told(&output));
        assert_eq!(told(&output), format!("flood: {line}\n"));
    };
    check("--user", "network namespaces and XDP need root: run it as root, or through sudo");
    let without_sbin = "--mount|sh|-c|mount -t tmpfs none /usr/sbin && PATH=/nowhere exec \"$0\" \"$@\"";
    check(without_sbin, "`ip` is missing: install the package iproute2");
}
