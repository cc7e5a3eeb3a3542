//! `cargo xtask run`: from a clone to a gateway that answers, and to the lines that show it.
//!
//! It builds, starts the demo backend unless a configuration is named, starts the gateway and stays until
//! either the gateway ends or a signal does; then both are gone.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::exec::{answer, is_on_path, is_root, root, shown};
use crate::{build, build_ebpf, demo};

#[derive(clap::Args)]
pub struct Args {
    /// Run this configuration instead of config/demo.json; no demo backend is started.
    #[arg(long, short)]
    config: Option<PathBuf>,
    /// Leave the kernel half out.
    #[arg(long)]
    no_kernel: bool,
    /// Install what the kernel half needs without asking.
    #[arg(long)]
    yes: bool,
}

const DEMO_ADDR: ([u8; 4], u16) = ([127, 0, 0, 1], 3001);
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
const READY_LIMIT: Duration = Duration::from_secs(30);
const INTERFACE: &str = "lo";

pub fn run(args: &Args) -> Result<ExitCode> {
    let demo_config = root().join("config/demo.json");
    let config = args.config.as_ref().unwrap_or(&demo_config);
    let endpoints = Endpoints::read(config)?;
    let kernel = !args.no_kernel && kernel_half(args.yes);
    let binary = build::plain()?;
    let kernel = kernel && knows_the_kernel_half(&binary);
    if args.config.is_none() {
        demo_backend()?;
    }
    // Before the child, so that its end cannot be missed.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGCHLD])?;
    let mut command = gateway(&binary, config, kernel);
    println!("+ {}", shown(&command));
    let mut child = command.spawn().with_context(|| format!("cannot run: {}", shown(&command)))?;
    let outcome = attend(&mut child, &mut signals, &endpoints, kernel);
    if outcome.is_err() {
        end(&mut child);
    }
    outcome
}

/// Waits for the first answer, says so, then waits for the end.
fn attend(child: &mut Child, signals: &mut Signals, endpoints: &Endpoints, kernel: bool) -> Result<ExitCode> {
    let start = Instant::now();
    while !is_ready(endpoints.metrics) {
        if let Some(status) = child.try_wait()? {
            return Ok(code(status));
        }
        if signals.pending().any(|signal| signal != SIGCHLD) {
            return Ok(code(end(child)));
        }
        if start.elapsed() > READY_LIMIT {
            bail!("no answer from {} within {READY_LIMIT:?}", endpoints.metrics);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("\nReady after {} ms. Try:", start.elapsed().as_millis());
    println!("    curl localhost:{}{}", endpoints.listen.port(), endpoints.path);
    println!("    curl localhost:{}/metrics", endpoints.metrics.port());
    if kernel {
        println!("    bpftool map dump name gw_verdicts");
    }
    println!("Ctrl-C ends it.\n");
    for signal in signals.forever() {
        if let Some(status) = child.try_wait()? {
            return Ok(code(status));
        }
        if signal != SIGCHLD {
            return Ok(code(end(child)));
        }
    }
    unreachable!("signals come forever")
}

/// Lets the gateway drain and waits for its end, however long its configuration gives it.
fn end(child: &mut Child) -> ExitStatus {
    // It may have ended by itself in this moment.
    let _ = kill_process(Pid::from_child(child), Signal::TERM);
    child.wait().expect("a child of this process can be waited for")
}

fn code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn gateway(binary: &Path, config: &Path, kernel: bool) -> Command {
    let through_sudo = kernel && !is_root();
    let mut command = if through_sudo { Command::new("sudo") } else { Command::new(binary) };
    if through_sudo {
        command.arg("--preserve-env").arg(binary);
    } else {
        // A group of its own: Ctrl-C reaches this process alone, which then asks the gateway to drain, once.
        command.process_group(0);
    }
    command.arg("--config").arg(config);
    if kernel {
        command.args(["--iface", INTERFACE]);
    } else if knows_the_kernel_half(binary) {
        command.arg("--no-kernel");
    }
    command
}

/// Whether this gateway is one that the kernel half has joined.
fn knows_the_kernel_half(binary: &Path) -> bool {
    answer(binary, &["--help"]).is_some_and(|help| help.contains("--iface"))
}

/// Builds the kernel half, which the gateway's build then embeds; says loudly when there will be none.
fn kernel_half(yes: bool) -> bool {
    let without = |reason: &str| println!("WITHOUT THE KERNEL HALF (HTTP works all the same): {reason}");
    if !root().join("gateway-ebpf/Cargo.toml").is_file() {
        without("it is not in this tree");
    } else if !is_root() && !is_on_path("sudo") {
        without("it needs root, and there is no sudo");
    } else if let Err(error) = build_ebpf::run(&build_ebpf::Args { yes, ..Default::default() }) {
        without(&format!("{error:#}"));
    } else {
        return true;
    }
    false
}

/// Starts the demo backend, unless something listens in its place already.
fn demo_backend() -> Result<()> {
    let addr = SocketAddr::from(DEMO_ADDR);
    if TcpStream::connect_timeout(&addr, CONNECT_LIMIT).is_ok() {
        println!("using the backend that listens on {addr}");
        return Ok(());
    }
    let demo = demo::Demo::bind(addr).with_context(|| format!("the demo backend on {addr}"))?;
    println!("demo backend on {addr}");
    std::thread::spawn(move || demo.serve());
    Ok(())
}

/// Where a configuration says that the gateway will be found. The gateway itself judges the rest.
#[derive(Debug, PartialEq)]
struct Endpoints {
    listen: SocketAddr,
    metrics: SocketAddr,
    /// The first route's.
    path: String,
}

impl Endpoints {
    fn read(config: &Path) -> Result<Endpoints> {
        let text = fs::read_to_string(config).with_context(|| format!("cannot read {}", config.display()))?;
        // What is not JSON is for the gateway to explain, with the line.
        Ok(Endpoints::of(&serde_json::from_str(&text).unwrap_or_default()))
    }

    fn of(config: &serde_json::Value) -> Endpoints {
        let addr = |key: &str, default: &str| loopback(config[key].as_str().unwrap_or(default));
        let path = config["routes"][0]["path"].as_str().unwrap_or("/");
        Endpoints {
            listen: addr("listen_addr", ":8080"),
            metrics: addr("metrics_addr", ":9090"),
            path: path.to_owned(),
        }
    }
}

/// An address at which this machine reaches a listener on `addr`.
fn loopback(addr: &str) -> SocketAddr {
    let port = || addr.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0);
    let named = addr.parse::<SocketAddr>().ok().filter(|addr| !addr.ip().is_unspecified());
    named.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port())))
}

fn is_ready(metrics: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&metrics, CONNECT_LIMIT)?;
        stream.set_read_timeout(Some(CONNECT_LIMIT))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finds_where_the_gateway_will_be() {
        let check = |config, listen: &str, metrics: &str, path: &str| {
            let expected = Endpoints {
                listen: listen.parse().unwrap(),
                metrics: metrics.parse().unwrap(),
                path: path.into(),
            };
            assert_eq!(Endpoints::of(&config), expected);
        };
        check(json!({}), "127.0.0.1:8080", "127.0.0.1:9090", "/");
        check(
            json!({ "listen_addr": "0.0.0.0:81", "metrics_addr": "[::]:82", "routes": [{ "path": "/x" }] }),
            "127.0.0.1:81",
            "127.0.0.1:82",
            "/x",
        );
        check(
            json!({ "listen_addr": "[::1]:81", "metrics_addr": "127.0.0.2:82" }),
            "[::1]:81",
            "127.0.0.2:82",
            "/",
        );
    }
}
