//! A running gateway: the real binary in a process of its own, ended when the test lets go of it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::log::Log;
use crate::metrics::Metrics;
use crate::{Client, Message, PATIENCE, Upstream, binary};

pub struct Gateway {
    /// Where clients connect.
    pub address: SocketAddr,
    pub metrics: SocketAddr,
    pub file: PathBuf,
    pub log: Log,
    child: Child,
    directory: Arc<TempDir>,
}

/// How a gateway ended that was not to run on.
#[derive(Debug)]
pub struct Exit {
    /// `None`: a signal ended it.
    pub code: Option<i32>,
    pub lines: Vec<String>,
}

/// What a verb of the command line said.
#[derive(Debug)]
pub struct Told {
    pub code: Option<i32>,
    pub out: String,
    pub error: String,
}

impl Told {
    /// The answer to `--json`.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

impl Gateway {
    /// Runs on `config` until it is ready. Addresses that it leaves out are free ports of the loopback,
    /// workers two.
    #[track_caller]
    pub fn start(config: Value) -> Self {
        let directory = TempDir::new().expect("there is room for a folder");
        let file = directory.path().join("gateway.json");
        write(&file, config);
        Self::run(directory, file, |_| {})
    }

    /// The same with a control socket beside the configuration, where [`crate::Api`] asks; what is in the section
    /// already stays.
    #[track_caller]
    pub fn controlled(mut config: Value) -> Self {
        let directory = TempDir::new().expect("there is room for a folder");
        for (key, name) in [("socket", "control.sock"), ("state_file", "state.json")] {
            config["control"][key] = json!(directory.path().join(name));
        }
        let file = directory.path().join("gateway.json");
        write(&file, config);
        Self::run(directory, file, |_| {})
    }

    /// One route for every path to `upstream`.
    #[track_caller]
    pub fn to(upstream: &Upstream) -> Self {
        Self::start(route_to(&upstream.url()))
    }

    /// The same with a single worker: every connection, of either side, is that one's.
    #[track_caller]
    pub fn single(upstream: &Upstream) -> Self {
        let mut config = route_to(&upstream.url());
        config["workers"] = json!(1);
        Self::start(config)
    }

    /// Runs on `file`, in `directory`; `adjust` may change the command.
    #[track_caller]
    pub fn run(directory: TempDir, file: PathBuf, adjust: impl FnOnce(&mut Command)) -> Self {
        let mut command = command(directory.path());
        command.arg("--config").arg(&file);
        adjust(&mut command);
        Self::spawn(command, directory, file)
    }

    /// Runs on `config` in a process that `prepare` has run in before, as a shell does: `ulimit -n 128`.
    #[track_caller]
    pub fn start_after(prepare: &str, config: Value) -> Self {
        let directory = TempDir::new().expect("there is room for a folder");
        let file = directory.path().join("gateway.json");
        write(&file, config);
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{prepare} && exec \"$0\" \"$@\"")).arg(binary::gateway());
        shell.arg("--config").arg(&file);
        prepare_command(&mut shell, directory.path());
        Self::spawn(shell, directory, file)
    }

    /// Runs in `directory` without a word about a configuration.
    #[track_caller]
    pub fn run_default(directory: TempDir, file: PathBuf) -> Self {
        Self::spawn(command(directory.path()), directory, file)
    }

    #[track_caller]
    fn spawn(mut command: Command, directory: impl Into<Arc<TempDir>>, file: PathBuf) -> Self {
        let directory = directory.into();
        let mut child = command.spawn().expect("the binary is there");
        let log = Log::of(child.stderr.take().expect("it is a pipe"));
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        // From here on dropping it ends the process, also when it never becomes ready.
        let mut this = Self { address: nowhere, metrics: nowhere, file, log, child, directory };
        let ready = this.log.wait_for("ready");
        let address = |key: &str| {
            let value = ready.split_whitespace().find_map(|word| word.strip_prefix(key));
            let address = value.unwrap_or_else(|| panic!("no {key} in {ready}"));
            let mut address: SocketAddr =
                address.parse().unwrap_or_else(|error| panic!("{error}: {address}"));
            if address.ip().is_unspecified() {
                address.set_ip([127, 0, 0, 1].into());
            }
            address
        };
        (this.address, this.metrics) = (address("bound="), address("metrics="));
        this
    }

    /// Runs on `text`, which is expected to end it.
    #[track_caller]
    pub fn refuse(text: &str) -> Exit {
        let directory = TempDir::new().expect("there is room for a folder");
        let file = directory.path().join("gateway.json");
        fs::write(&file, text).expect("there is room for a file");
        Self::exit_of(command(directory.path()).arg("--config").arg(&file))
    }

    /// How `command` ends by itself.
    #[track_caller]
    pub fn exit_of(command: &mut Command) -> Exit {
        let mut child = command.spawn().expect("the binary is there");
        let log = Log::of(child.stderr.take().expect("it is a pipe"));
        let lines = log.to_end();
        Exit { code: child.wait().expect("it is our child").code(), lines }
    }

    /// Asks the gateway by its command line: the verb and its arguments.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> Told {
        let mut command = command(self.directory());
        command.args(arguments).arg("--config").arg(&self.file).stdout(Stdio::piped());
        let output = command.output().expect("the binary is there");
        let text = |bytes| String::from_utf8(bytes).expect("it writes text");
        Told { code: output.status.code(), out: text(output.stdout), error: text(output.stderr) }
    }

    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// `GET target` on a connection of its own.
    #[track_caller]
    pub fn get(&self, target: &str) -> Message {
        self.connect().get(target)
    }

    /// `GET target` of the metrics port.
    #[track_caller]
    pub fn admin(&self, target: &str) -> Message {
        Client::connect(self.metrics).get(target)
    }

    #[track_caller]
    pub fn scrape(&self) -> Metrics {
        Metrics::new(self.admin("/metrics").text())
    }

    /// Scrapes until `holds`.
    #[track_caller]
    pub fn wait_for_metrics(&self, what: &str, mut holds: impl FnMut(&Metrics) -> bool) {
        let started = Instant::now();
        loop {
            let metrics = self.scrape();
            if holds(&metrics) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "waited in vain: {what}\n{metrics}");
            std::thread::yield_now();
        }
    }

    /// Lets the gateway's own clock move on.
    #[track_caller]
    pub fn pass_time(&self, seconds: f64) {
        let uptime = |metrics: &Metrics| metrics.get("gateway_uptime_seconds", &[]).expect("a sample");
        let until = uptime(&self.scrape()) + seconds;
        self.wait_for_metrics("time to pass", |metrics| uptime(metrics) > until);
    }

    /// Replaces the configuration by writing into the file; addresses as [`Gateway::start`] fills them in.
    pub fn write(&self, config: Value) {
        write(&self.file, config);
    }

    /// Puts another file in the configuration's place, so that nobody sees half of one.
    pub fn replace(&self, config: Value) {
        let beside = self.file.with_extension("next");
        write(&beside, config);
        fs::rename(&beside, &self.file).expect("they are in one folder");
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the child has not been waited for");
    }

    /// Waits for the end; `None`: a signal ended it.
    #[track_caller]
    pub fn wait(&mut self) -> Option<i32> {
        self.log.to_end();
        self.child.wait().expect("it is our child").code()
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// A line of `/proc/<pid>/status` in KiB, such as `VmHWM`.
    pub fn memory_kib(&self, line: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("it runs");
        let value = status.lines().find_map(|row| row.strip_prefix(line)?.strip_prefix(':'));
        let kib = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
        kib.unwrap_or_else(|| panic!("no {line} in {status}"))
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        self.opened().count()
    }

    /// How many of them are ends of pipes.
    pub fn pipes(&self) -> usize {
        self.opened().filter(|file| file.to_string_lossy().starts_with("pipe:")).count()
    }

    /// What its descriptors are of. One may be closed while they are read.
    fn opened(&self) -> impl Iterator<Item = PathBuf> {
        let all = fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs");
        all.map(|entry| entry.ok().and_then(|entry| fs::read_link(entry.path()).ok()).unwrap_or_default())
    }

    /// Ends it and starts it again on the same files; `prepare` may change them in between.
    #[track_caller]
    pub fn restart(mut self, prepare: impl FnOnce(&Path)) -> Self {
        self.signal(Signal::TERM);
        assert_eq!(self.wait(), Some(0));
        prepare(self.directory.path());
        let mut command = command(self.directory.path());
        command.arg("--config").arg(&self.file);
        Self::spawn(command, self.directory.clone(), self.file.clone())
    }

    /// The gateway that takes this one's place, on the configuration as it is now; `adjust` may change the command.
    #[track_caller]
    pub fn followed(&self, adjust: impl FnOnce(&mut Command)) -> Self {
        let mut command = self.upgrade(&self.file);
        adjust(&mut command);
        Self::spawn(command, self.directory.clone(), self.file.clone())
    }

    /// The command by which another gateway takes this one's place, on another configuration.
    pub fn upgrade(&self, file: &Path) -> Command {
        let mut command = command(self.directory.path());
        command.args(["run", "--upgrade", "--config"]).arg(file);
        command
    }

    /// Processor time taken so far, in hundredths of a second.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let (_, fields) = stat.rsplit_once(") ").expect("the name stands in brackets");
        // In user and in system mode: the 14th and 15th field, of which two are gone.
        fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let said = self.log.so_far();
        if std::thread::panicking() {
            eprintln!("the gateway said:\n{}", said.join("\n"));
        } else {
            // A task's panic closes its connection and nothing else: most tests would not see it.
            assert!(!said.iter().any(|line| line.contains("panicked at")), "{}", said.join("\n"));
        }
    }
}

/// The gateway without arguments, in `directory`, its standard error a pipe.
pub fn command(directory: &Path) -> Command {
    let mut command = Command::new(binary::gateway());
    prepare_command(&mut command, directory);
    command
}

fn prepare_command(command: &mut Command, directory: &Path) {
    command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.env("NO_COLOR", "1").env_remove("GATEWAY_LOG");
}

/// A configuration with one route for every path.
pub fn route_to(backend: &str) -> Value {
    json!({ "routes": [{ "path": "/", "backend": backend }] })
}

/// `config` with what tests leave out, as text.
pub fn complete(mut config: Value) -> String {
    for (key, value) in [
        ("listen_addr", json!("127.0.0.1:0")),
        ("metrics_addr", json!("127.0.0.1:0")),
        ("workers", json!(2)),
        // All clients of a test have one address, and how busy the machine is decides nothing.
        ("connections", json!({ "max_per_source": 100_000 })),
        ("overload", json!({ "max_delay": "1h" })),
    ] {
        let object = config.as_object_mut().expect("a configuration is an object");
        object.entry(key).or_insert(value);
    }
    config.to_string()
}

fn write(file: &Path, config: Value) {
    fs::write(file, complete(config)).expect("there is room for a file");
}
