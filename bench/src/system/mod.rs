//! A system under test: a proxy of its own process on its own core, or nothing at all in front of the origin.
//!
//! `side_by_side` starts and drops them. Each has a private directory and free ports; all of it is gone when
//! the value is dropped, and [`end_all`] ends what is left when the bench itself is told to stop.

pub mod contender;
pub mod peers;
mod programs;
mod store;
mod template;

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use rustix::thread::Pid;
use tempfile::TempDir;

use self::peers::Peer;
use self::store::Store;
use self::template::Values;
use crate::load::idle;
use crate::machine::pin_this_thread;
use crate::usage::{self, Usage};

pub use contender::{Contender, REFERENCE, Setup, System};
pub use programs::Programs;
pub(crate) use programs::on_path;

const START_LIMIT: Duration = Duration::from_secs(20);
const END_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0:?} is not installed")]
    Missing(System),
    #[error("{command}: {source}")]
    Spawn { command: String, source: io::Error },
    #[error("{command} ended ({status}) before it answered:\n{stderr}")]
    Ended { command: String, status: String, stderr: String },
    #[error("{command} gave no answer within {START_LIMIT:?}; the last try: {last}\n{stderr}")]
    Silent { command: String, last: String, stderr: String },
    #[error("no store to share limits through (redis-server): {0}")]
    Store(io::Error),
    #[error("preparing {contender:?}: {source}")]
    Prepare { contender: Contender, source: io::Error },
}

/// A started system.
pub struct Running {
    pub contender: Contender,
    pub target: SocketAddr,
    /// From just before its process was made to its first right answer.
    pub started_in: Duration,
    /// Its accounts just after that answer; nothing where there is nothing in front of the origin.
    pub at_start: Option<Usage>,
    process: Option<Process>,
}

struct Process {
    child: Child,
    dir: TempDir,
    peer: &'static Peer,
    values: Values,
    generation: Cell<u64>,
    /// Ends with the system.
    _store: Option<Store>,
}

impl Running {
    /// Starts a system in front of `origin` on processor `cpu` and waits for its first answer to `request`.
    pub fn start(
        contender: Contender,
        programs: &Programs,
        origin: SocketAddr,
        cpu: usize,
        request: &[u8],
    ) -> Result<Running, StartError> {
        let Some(peer) = peers::of(contender.system) else {
            let started_in = Duration::ZERO;
            return Ok(Running { contender, target: origin, started_in, at_start: None, process: None });
        };
        let program = programs.path(contender.system).ok_or(StartError::Missing(contender.system))?;
        let prepare = |source| StartError::Prepare { contender, source };
        let store = contender.setup.store_delay().map(Store::start).transpose().map_err(StartError::Store)?;
        let Configured { dir, target, values, arguments } =
            configured(peer, contender.setup, origin, store.as_ref()).map_err(prepare)?;
        let log = dir.path().join("stderr");
        let mut command = Command::new(program);
        command.args(arguments);
        command.envs(peer.environment.iter().map(|(name, value)| (name, template::fill(value, &values))));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(&log).map_err(prepare)?);
        let shown = format!("{command:?}");
        let start = Instant::now();
        let child = spawn_pinned(command, cpu)
            .map_err(|source| StartError::Spawn { command: shown.clone(), source })?;
        ALIVE.lock().unwrap_or_else(PoisonError::into_inner).push(Pid::from_child(&child));
        let process = Process { child, dir, peer, values, generation: Cell::new(0), _store: store };
        let (started_in, process) = (Duration::ZERO, Some(process));
        let mut running = Running { contender, target, started_in, at_start: None, process };
        running.wait_for_answer(request, start, &shown, &log)?;
        running.at_start = running.usage().map_err(prepare)?;
        Ok(running)
    }

    fn wait_for_answer(
        &mut self,
        request: &[u8],
        start: Instant,
        shown: &str,
        log: &Path,
    ) -> Result<(), StartError> {
        let stderr = || std::fs::read_to_string(log).unwrap_or_default();
        loop {
            let answered = idle::open(self.target, request);
            self.started_in = start.elapsed();
            let Err(error) = answered else { return Ok(()) };
            let child = self.process.as_mut().map(|process| &mut process.child);
            let ended = child.and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                let command = shown.to_owned();
                return Err(StartError::Ended { command, status: status.to_string(), stderr: stderr() });
            }
            if self.started_in > START_LIMIT {
                let command = shown.to_owned();
                return Err(StartError::Silent { command, last: error.to_string(), stderr: stderr() });
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// The system's accounts as they stand; `None` where there is nothing in front of the origin.
    pub fn usage(&self) -> io::Result<Option<Usage>> {
        self.process.as_ref().map(|process| usage::of_tree(Pid::from_child(&process.child))).transpose()
    }

    /// Gives it another configuration and tells it to read that; it does not wait for that to have happened.
    /// Where nothing runs, or it has no such signal, nothing happens.
    pub fn reload(&self) -> io::Result<()> {
        let Some(process) = &self.process else { return Ok(()) };
        let Some(signal) = process.peer.reload else { return Ok(()) };
        process.generation.set(process.generation.get() + 1);
        let (dir, generation) = (process.dir.path(), process.generation.get());
        write_files(process.peer, self.contender.setup, dir, &process.values, generation)?;
        Ok(kill_process(Pid::from_child(&process.child), signal)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(Process { child, .. }) = &mut self.process else { return };
        let pid = Pid::from_child(child);
        // It may have ended by itself; then there is nothing to end.
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + END_LIMIT;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        ALIVE.lock().unwrap_or_else(PoisonError::into_inner).retain(|alive| *alive != pid);
    }
}

/// The processes that were started and not ended yet.
static ALIVE: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Asks every system that is still running to end; for when the bench is interrupted and drops nothing.
pub fn end_all() {
    for pid in ALIVE.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = kill_process(*pid, Signal::TERM);
    }
}

/// A private folder with a system's files in it, and what to start the system with.
pub struct Configured {
    pub dir: TempDir,
    pub target: SocketAddr,
    pub arguments: Vec<String>,
    values: Values,
}

/// Configures a system that somebody else starts.
pub fn configure(contender: Contender, origin: SocketAddr) -> io::Result<Configured> {
    let peer = peers::of(contender.system).ok_or_else(|| io::Error::other("nothing to configure"))?;
    configured(peer, contender.setup, origin, None)
}

fn configured(
    peer: &Peer,
    setup: Setup,
    origin: SocketAddr,
    store: Option<&Store>,
) -> io::Result<Configured> {
    let (dir, [target, metrics]) = (private_dir()?, free_ports()?);
    let mut values = values(setup, [target, metrics], origin, dir.path());
    values.extend(store.map(|store| ("STORE", store.addr.to_string())));
    write_files(peer, setup, dir.path(), &values, 0)?;
    let arguments = peer.arguments.iter().map(|argument| template::fill(argument, &values)).collect();
    Ok(Configured { dir, target, arguments, values })
}

fn values(setup: Setup, [target, metrics]: [SocketAddr; 2], origin: SocketAddr, dir: &Path) -> Values {
    vec![
        ("DIR", dir.display().to_string()),
        ("LISTEN", target.to_string()),
        ("LISTEN_HOST", target.ip().to_string()),
        ("LISTEN_PORT", target.port().to_string()),
        ("METRICS", metrics.to_string()),
        ("ORIGIN", origin.to_string()),
        ("ORIGIN_HOST", origin.ip().to_string()),
        ("ORIGIN_PORT", origin.port().to_string()),
        ("PER_MINUTE", setup.limit().to_string()),
        ("BURST", setup.limit().to_string()),
    ]
}

/// Writes a peer's files, each in one step, so that a reader sees the old one or the new one.
fn write_files(peer: &Peer, setup: Setup, dir: &Path, values: &Values, generation: u64) -> io::Result<()> {
    let mut values = values.clone();
    values.push(("GENERATION", generation.to_string()));
    for (name, template) in peer.files {
        let new = dir.join(format!("{name}.new"));
        std::fs::write(&new, template::render(template, setup, &values))?;
        std::fs::rename(new, dir.join(name))?;
    }
    Ok(())
}

/// A child inherits the processors of the thread that makes it, so that one is made for it.
fn spawn_pinned(mut command: Command, cpu: usize) -> io::Result<Child> {
    let spawn = move || {
        pin_this_thread(cpu)?;
        command.spawn()
    };
    std::thread::spawn(spawn).join().expect("spawning a process does not panic")
}

/// A directory that a server may still use after it has given up root; in memory where the machine has that, so
/// that nobody's files wait for a disk.
fn private_dir() -> io::Result<TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let mut builder = tempfile::Builder::new();
    builder.prefix("bench-");
    let dir = builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir())?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// Different ones: none is given back before all are there.
fn free_ports<const COUNT: usize>() -> io::Result<[SocketAddr; COUNT]> {
    let held = [(); COUNT].map(|()| TcpListener::bind(("127.0.0.1", 0)));
    let mut ports = [SocketAddr::from(([0; 4], 0)); COUNT];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.as_ref().map_err(|error| io::Error::from(error.kind()))?.local_addr()?;
    }
    Ok(ports)
}
