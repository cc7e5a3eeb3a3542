//! One of three backends at ten times the latency of the others: what the clients of all three feel, before,
//! during and after.
//!
//! The same for the gateway with and without what it has against it, and for nginx and HAProxy where they are
//! installed. Requests fall due at a fixed rate whatever becomes of them, so a slow answer hides no other one.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bench::load::{self, Active, Expect, Load, Pace, Reuse, idle};
use bench::system::{Programs, System};
use clap::Parser;
use tempfile::TempDir;

/// Measures the latency through each system while one of its three backends is slow.
#[derive(Parser)]
#[command(name = "slow-endpoint", version)]
struct Arguments {
    /// Requests a second.
    #[arg(long, default_value_t = 1_500.0)]
    rate: f64,
    /// How long each stretch lasts.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Latency of a backend that is well, in milliseconds; the slow one takes ten times as long.
    #[arg(long, default_value_t = 2)]
    latency: u64,
    /// The gateway to measure (the one beside this program without it).
    #[arg(long)]
    gateway: Option<PathBuf>,
}

/// A system in one of its settings.
struct Contender {
    name: &'static str,
    system: System,
    template: &'static str,
    /// What it runs with, besides the file.
    arguments: &'static [&'static str],
    balancer: &'static str,
    ejection: &'static str,
}

const GATEWAY: Contender = Contender {
    name: "gateway",
    system: System::Gateway,
    template: include_str!("../../peers/endpoints-gateway.json"),
    arguments: &["--no-kernel", "--config"],
    balancer: "least_requests",
    ejection: "true",
};
const NGINX: Contender = Contender {
    name: "nginx, least_conn",
    system: System::Nginx,
    template: include_str!("../../peers/endpoints-nginx.conf"),
    arguments: &["-c"],
    balancer: "least_conn;",
    ejection: "",
};
const HAPROXY: Contender = Contender {
    name: "HAProxy, leastconn",
    system: System::Haproxy,
    template: include_str!("../../peers/endpoints-haproxy.cfg"),
    arguments: &["-db", "-f"],
    balancer: "leastconn",
    ejection: "",
};
const CONTENDERS: [Contender; 6] = [
    Contender {
        name: "gateway, round_robin, no ejection",
        balancer: "round_robin",
        ejection: "false",
        ..GATEWAY
    },
    Contender { name: "gateway, no ejection", ejection: "false", ..GATEWAY },
    GATEWAY,
    Contender { name: "nginx, in turns", balancer: "", ..NGINX },
    NGINX,
    HAPROXY,
];

const SLOWER: u64 = 10;
const CONNECTIONS: usize = 128;
const START_LIMIT: Duration = Duration::from_secs(20);
const REQUEST: &[u8] = b"GET /api/users HTTP/1.1\r\nHost: bench.test\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slow-endpoint: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let programs = Programs::find(arguments.gateway.as_deref());
    let Arguments { rate, seconds, latency, .. } = arguments;
    println!(
        "{rate} requests/s over {CONNECTIONS} connections; backends answer after {latency} ms, the slow one after {} ms",
        latency * SLOWER
    );
    println!(
        "Each stretch {seconds} s; milliseconds, p50 / p99 / p99.9, and the slow one's part of the requests.\n"
    );
    println!(
        "| system | before | slow, first second | slow, after that | well again | faults |\n|---|---|---|---|---|--:|"
    );
    for contender in &CONTENDERS {
        if programs.has(contender.system) {
            println!("{}", measure(contender, &programs, arguments)?);
        } else {
            eprintln!("not found, so not measured: {}", contender.name);
        }
    }
    Ok(())
}

/// A row of the table.
fn measure(contender: &Contender, programs: &Programs, arguments: &Arguments) -> anyhow::Result<String> {
    let origins = [(); 3].map(|()| Origin::start(arguments.latency));
    let [slow, _, _] = &origins;
    let running = Running::start(contender, programs, origins.each_ref().map(|origin| origin.address))?;
    let mut faults = 0;
    let mut stretch = |latency: u64, seconds: f64| -> anyhow::Result<String> {
        slow.latency_ms.store(latency, Ordering::Relaxed);
        let served = || origins.each_ref().map(|origin| origin.served.load(Ordering::Relaxed));
        let load = Load {
            target: running.address,
            request: REQUEST.to_vec(),
            expect: Expect { status: 200, body_bytes: Some(2) },
            connections: CONNECTIONS,
            active: Active::All,
            depth: 1,
            pace: Pace::Rate(arguments.rate),
            reuse: Reuse::Keepalive,
            warm_up: Duration::ZERO,
            duration: Duration::from_secs_f64(seconds),
            timeout: Duration::from_secs(5),
        };
        let (outcome, [before, after]) = load::run(&load, || false, served).context("the load")?;
        faults += outcome.faults.total();
        let [a, b, c] = std::array::from_fn(|at| (after[at] - before[at]) as f64);
        let ms = |quantile: f64| outcome.latency_micros(quantile) / 1e3;
        let share = 100.0 * a / (a + b + c).max(1.0);
        Ok(format!("{:.1} / {:.1} / {:.1}, {share:.0} %", ms(0.5), ms(0.99), ms(0.999)))
    };
    let well = arguments.latency;
    let before = stretch(well, arguments.seconds)?;
    let first = stretch(well * SLOWER, 1.0)?;
    let later = stretch(well * SLOWER, arguments.seconds)?;
    let after = stretch(well, arguments.seconds)?;
    Ok(format!("| {} | {before} | {first} | {later} | {after} | {faults} |", contender.name))
}

/// A backend that answers late: a thread for each connection.
struct Origin {
    address: SocketAddr,
    latency_ms: Arc<AtomicU64>,
    served: Arc<AtomicU64>,
}

impl Origin {
    fn start(latency_ms: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let (latency_ms, served) = (Arc::new(AtomicU64::new(latency_ms)), Arc::new(AtomicU64::new(0)));
        let (latency, count) = (latency_ms.clone(), served.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (latency, count) = (latency.clone(), count.clone());
                std::thread::spawn(move || answer(stream, &latency, &count));
            }
        });
        Self { address, latency_ms, served }
    }
}

fn answer(stream: TcpStream, latency_ms: &AtomicU64, served: &AtomicU64) {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        if line == "\r\n" {
            std::thread::sleep(Duration::from_millis(latency_ms.load(Ordering::Relaxed)));
            served.fetch_add(1, Ordering::Relaxed);
            if reader.get_mut().write_all(ANSWER).is_err() {
                return;
            }
        }
        line.clear();
    }
}

/// A started system; ended when it is dropped.
struct Running {
    address: SocketAddr,
    child: Child,
    directory: TempDir,
}

impl Running {
    fn start(contender: &Contender, programs: &Programs, origins: [SocketAddr; 3]) -> anyhow::Result<Self> {
        let directory = TempDir::new()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let [a, b, c] = origins.map(|origin| origin.to_string());
        let folder = directory.path().display().to_string();
        let filled = [
            ("{LISTEN}", address.to_string()),
            ("{A}", a),
            ("{B}", b),
            ("{C}", c),
            ("{DIR}", folder),
            ("{BALANCER}", contender.balancer.to_owned()),
            ("{EJECTION}", contender.ejection.to_owned()),
        ];
        let text = filled
            .iter()
            .fold(contender.template.to_owned(), |text, (name, value)| text.replace(name, value));
        let file = directory.path().join("configuration");
        std::fs::write(&file, text)?;
        let program = programs.path(contender.system).context("it is not installed")?;
        let child = Command::new(program)
            .args(contender.arguments)
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("stderr"))?)
            .spawn()
            .with_context(|| format!("starting {}", contender.name))?;
        let mut running = Self { address, child, directory };
        let started = Instant::now();
        while idle::open(address, REQUEST).is_err() {
            if running.child.try_wait()?.is_some() || started.elapsed() > START_LIMIT {
                let said = std::fs::read_to_string(running.directory.path().join("stderr"))?;
                bail!("{} does not answer: {said}", contender.name);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
