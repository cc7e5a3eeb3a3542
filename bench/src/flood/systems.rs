//! The systems under attack: each a process of its own in the server's namespace, on its own core, configured
//! with the same budget for one source.
//!
//! One is started for each turn and ended after it, for the kernel half and its peers cannot share an interface.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rustix::process::{Signal, kill_process_group};
use rustix::thread::Pid;
use serde::Serialize;

use super::rig::{PORT, Rig};
use super::traces::{self, Trace};
use crate::load::{Reuse, idle};
use crate::machine::pin_this_thread;
use crate::scenario::Exchange;
use crate::system::{self, Programs};

const START_LIMIT: Duration = Duration::from_secs(10);
const END_LIMIT: Duration = Duration::from_secs(3);

/// The order is that of the rows and of the turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// The gateway with its kernel half.
    Gateway,
    /// The gateway without it.
    NoKernel,
    /// The same behind a program that drops whatever the attacker sends: what an attack costs before any verdict.
    Floor,
    Nginx,
    Haproxy,
    Envoy,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0} was not found: install or build it (the gateway: `cargo build --release -p gateway`)")]
    Missing(&'static str),
    #[error("{command} ended ({status}) before it answered:\n{stderr}")]
    Ended { command: String, status: String, stderr: String },
    #[error("{command} gave no answer within {START_LIMIT:?}; the last try: {last}\n{stderr}")]
    Silent { command: String, last: String, stderr: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl System {
    pub fn name(self) -> &'static str {
        match self {
            System::Gateway => "gateway, kernel half",
            System::NoKernel => "gateway without it",
            System::Floor => "attacker dropped",
            System::Nginx => "nginx",
            System::Haproxy => "HAProxy",
            System::Envoy => "Envoy",
        }
    }

    /// The system whose program it is.
    pub fn of(self) -> system::System {
        match self {
            System::Gateway | System::NoKernel | System::Floor => system::System::Gateway,
            System::Nginx => system::System::Nginx,
            System::Haproxy => system::System::Haproxy,
            System::Envoy => system::System::Envoy,
        }
    }

    /// Its configuration and the name of that file; some read the format from it.
    fn template(self) -> (&'static str, &'static str) {
        match self {
            System::Gateway | System::NoKernel | System::Floor => {
                ("gateway.json", include_str!("../../peers/gateway-flood.json"))
            }
            System::Nginx => ("nginx.conf", include_str!("../../peers/nginx-flood.conf")),
            System::Haproxy => ("haproxy.cfg", include_str!("../../peers/haproxy-flood.cfg")),
            System::Envoy => ("envoy.yaml", include_str!("../../peers/envoy-flood.yaml")),
        }
    }

    fn command(self, program: &Path, config: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        match self {
            System::Gateway => command.arg("--config").arg(config),
            System::NoKernel | System::Floor => command.arg("--config").arg(config).arg("--no-kernel"),
            System::Nginx => command.arg("-p").arg(folder).arg("-c").arg(config).args(["-g", "daemon off;"]),
            System::Haproxy => command.arg("-db").arg("-f").arg(config),
            System::Envoy => command.arg("-c").arg(config).args([
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "error",
            ]),
        };
        command
    }
}

/// A started system; ended when dropped.
pub struct Running {
    child: Child,
    _folder: Folder,
}

impl Running {
    /// Starts a system in front of `origin` and waits for its first answer to the good client, in whose namespace
    /// the thread is.
    pub fn start(
        system: System,
        programs: &Programs,
        rig: &Rig,
        origin: SocketAddr,
    ) -> Result<Running, StartError> {
        let program = programs.path(system.of()).ok_or(StartError::Missing(system.name()))?;
        let folder = Folder::new()?;
        let (name, template) = system.template();
        let (config, log) = (folder.0.join(name), folder.0.join("stderr"));
        let values: [(&str, &dyn std::fmt::Display); 7] = [
            ("{PORT}", &PORT),
            ("{ORIGIN}", &origin),
            ("{ORIGIN_IP}", &origin.ip()),
            ("{ORIGIN_PORT}", &origin.port()),
            ("{DIR}", &folder.0.display()),
            ("{GOOD}", &rig.good.interface),
            ("{EVIL}", &rig.attacker.interface),
        ];
        let filled = values
            .iter()
            .fold(template.to_owned(), |text, (name, value)| text.replace(name, &value.to_string()));
        fs::write(&config, filled)?;
        let mut command = system.command(program, &config, &folder.0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?).process_group(0);
        let shown = format!("{command:?}");
        // A child has the namespace and the processors of the thread that makes it.
        let spawn = || {
            pin_this_thread(rig.cores.system)?;
            traces::leave(|| {
                let child = command.spawn()?;
                let trace = Trace::Processes(Pid::from_child(&child));
                Ok::<_, io::Error>((child, trace))
            })
        };
        let child = rig.server.run(spawn)??;
        let mut running = Running { child, _folder: folder };
        running.wait_for_answer(rig, &shown, &log)?;
        Ok(running)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn wait_for_answer(&mut self, rig: &Rig, shown: &str, log: &Path) -> Result<(), StartError> {
        let request = Exchange::Small.request(Reuse::Keepalive);
        let (start, command) = (Instant::now(), shown.to_owned());
        let stderr = || fs::read_to_string(log).unwrap_or_default();
        loop {
            let Err(error) = idle::open(rig.good.target.into(), &request) else { return Ok(()) };
            if let Some(status) = self.child.try_wait()? {
                return Err(StartError::Ended { command, status: status.to_string(), stderr: stderr() });
            }
            if start.elapsed() > START_LIMIT {
                return Err(StartError::Silent { command, last: error.to_string(), stderr: stderr() });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let leader = self.pid();
        // It may have ended by itself; then there is nothing to end.
        let _ = kill_process_group(leader, Signal::TERM);
        let deadline = Instant::now() + END_LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        traces::take_away(&Trace::Processes(leader));
        let _ = self.child.wait();
    }
}

/// A private folder that a server may still use after it has given up root.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Folder> {
        let make = || {
            let path = tempfile::Builder::new().prefix(&traces::prefix()).tempdir()?.keep();
            Ok::<_, io::Error>((path.clone(), Trace::Folder(path)))
        };
        let folder = Folder(traces::leave(make)?);
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o755))?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        traces::take_away(&Trace::Folder(self.0.clone()));
    }
}
