//! A system under test: a proxy of its own process on its own core, or nothing at all in front of the origin.
//!
//! `side_by_side` starts and drops them. Each has a private directory and free ports; all of it is gone when
//! the value is dropped, and [`end_all`] ends what is left when the bench itself is told to stop.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rustix::process::{Signal, kill_process};
use rustix::thread::Pid;
use serde::Serialize;
use tempfile::TempDir;

use crate::load::idle;
use crate::machine::{first_line, pin_this_thread};
use crate::usage::{self, Usage};

const NGINX_CONF: &str = include_str!("../peers/nginx.conf");
const GATEWAY_JSON: &str = include_str!("../peers/gateway.json");
const START_LIMIT: Duration = Duration::from_secs(10);
const END_LIMIT: Duration = Duration::from_secs(5);

/// The systems that are known; the order is that of the rows and of the turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// The generator and the origin with nothing between them.
    Direct,
    Nginx,
    Gateway,
}

/// The system that the others are compared with.
pub const REFERENCE: System = System::Nginx;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{command}: {source}")]
    Spawn { command: String, source: io::Error },
    #[error("{command} ended ({status}) before it answered:\n{stderr}")]
    Ended { command: String, status: String, stderr: String },
    #[error("{command} gave no answer within {START_LIMIT:?}; the last try: {last}\n{stderr}")]
    Silent { command: String, last: String, stderr: String },
    #[error("preparing {system:?}: {source}")]
    Prepare { system: System, source: io::Error },
}

/// Where the systems' programs are.
#[derive(Debug, Clone)]
pub struct Programs(BTreeMap<System, PathBuf>);

impl Programs {
    /// Looks for each system; the gateway is where it was named, or beside the running program.
    pub fn find(gateway: Option<&Path>) -> Programs {
        let beside = || Some(std::env::current_exe().ok()?.with_file_name("gateway"));
        let gateway = gateway.map(Path::to_path_buf).or_else(beside).filter(|path| path.is_file());
        let found = [(System::Nginx, on_path("nginx")), (System::Gateway, gateway)];
        Programs(found.into_iter().filter_map(|(system, path)| Some((system, path?))).collect())
    }

    pub fn has(&self, system: System) -> bool {
        system == System::Direct || self.0.contains_key(&system)
    }

    /// What each program says that it is.
    pub fn versions(&self) -> BTreeMap<System, String> {
        let ask = |(system, path): (&System, &PathBuf)| {
            let flag = match system {
                System::Direct | System::Gateway => "--version",
                System::Nginx => "-v",
            };
            (*system, first_line(Command::new(path).arg(flag)))
        };
        self.0.iter().map(ask).collect()
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where an ordinary user's PATH does not look.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// A started system.
pub struct Running {
    pub system: System,
    pub target: SocketAddr,
    /// From just before its process was made to its first right answer.
    pub started_in: Duration,
    process: Option<(Child, TempDir)>,
}

impl Running {
    /// Starts a system in front of `origin` on processor `cpu` and waits for its first answer to `request`.
    pub fn start(
        system: System,
        programs: &Programs,
        origin: SocketAddr,
        cpu: usize,
        request: &[u8],
    ) -> Result<Running, StartError> {
        let prepare = |source| StartError::Prepare { system, source };
        let dir = private_dir().map_err(prepare)?;
        let target = free_port().map_err(prepare)?;
        let program = programs.0.get(&system);
        let command = match system {
            System::Direct => None,
            System::Nginx => {
                let config = dir.path().join("nginx.conf");
                fill(
                    NGINX_CONF,
                    &config,
                    &[("LISTEN", &target), ("ORIGIN", &origin), ("DIR", &dir.path().display())],
                )
                .map_err(prepare)?;
                program.map(|program| {
                    let mut command = Command::new(program);
                    command.arg("-p").arg(dir.path()).arg("-c").arg(config).args(["-g", "daemon off;"]);
                    command
                })
            }
            System::Gateway => {
                let config = dir.path().join("gateway.json");
                let metrics = free_port().map_err(prepare)?;
                fill(
                    GATEWAY_JSON,
                    &config,
                    &[("LISTEN", &target), ("METRICS", &metrics), ("ORIGIN", &origin)],
                )
                .map_err(prepare)?;
                program.map(|program| {
                    let mut command = Command::new(program);
                    command.arg("--config").arg(config).arg("--no-kernel");
                    command
                })
            }
        };
        let Some(mut command) = command else {
            return Ok(Running { system, target: origin, started_in: Duration::ZERO, process: None });
        };
        let log = dir.path().join("stderr");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(&log).map_err(prepare)?);
        let shown = format!("{command:?}");
        let start = Instant::now();
        let child = spawn_pinned(command, cpu)
            .map_err(|source| StartError::Spawn { command: shown.clone(), source })?;
        ALIVE.lock().unwrap_or_else(PoisonError::into_inner).push(Pid::from_child(&child));
        let mut running = Running { system, target, started_in: Duration::ZERO, process: Some((child, dir)) };
        running.wait_for_answer(request, start, &shown, &log)?;
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
            let ended = self.process.as_mut().and_then(|(child, _)| child.try_wait().ok().flatten());
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
        self.process.as_ref().map(|(child, _)| usage::of_tree(Pid::from_child(child))).transpose()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some((child, _)) = &mut self.process else { return };
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

/// A child inherits the processors of the thread that makes it, so that one is made for it.
fn spawn_pinned(mut command: Command, cpu: usize) -> io::Result<Child> {
    let spawn = move || {
        pin_this_thread(cpu)?;
        command.spawn()
    };
    std::thread::spawn(spawn).join().expect("spawning a process does not panic")
}

/// A directory that a server may still use after it has given up root.
fn private_dir() -> io::Result<TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new().prefix("bench-").tempdir()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

fn fill(template: &str, path: &Path, values: &[(&str, &dyn std::fmt::Display)]) -> io::Result<()> {
    let filled = values.iter().fold(template.to_owned(), |text, (name, value)| {
        text.replace(&format!("{{{name}}}"), &value.to_string())
    });
    std::fs::write(path, filled)
}
