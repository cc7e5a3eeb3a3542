//! Programs: where each system's binary is on this machine, and which version it is.
//!
//! `main` looks once; a system that is not found is named in the report and not measured.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::contender::System;
use super::peers::{self, PEERS, Peer};
use crate::machine::first_line;

/// Where the systems' programs are.
#[derive(Debug, Clone)]
pub struct Programs(BTreeMap<System, PathBuf>);

impl Programs {
    /// Looks for each system; the gateway is where it was named, or beside the running program.
    pub fn find(gateway: Option<&Path>) -> Programs {
        let beside = || Some(std::env::current_exe().ok()?.with_file_name("gateway"));
        let gateway = gateway.map(Path::to_path_buf).or_else(beside).filter(|path| path.is_file());
        let find = |peer: &Peer| match peer.system == System::Gateway {
            true => gateway.clone(),
            false => on_path(peer.program).or_else(|| in_wheel(peer.wheel?, peer.program)),
        };
        Programs(PEERS.iter().filter_map(|peer| Some((peer.system, find(peer)?))).collect())
    }

    pub fn has(&self, system: System) -> bool {
        system == System::Direct || self.0.contains_key(&system)
    }

    pub fn path(&self, system: System) -> Option<&Path> {
        self.0.get(&system).map(PathBuf::as_path)
    }

    /// What each program says that it is.
    pub fn versions(&self) -> BTreeMap<System, String> {
        let ask = |(system, path): (&System, &PathBuf)| {
            let peer = peers::of(*system)?;
            let version = first_line(Command::new(path).args(peer.version));
            // Some print the path that they were called by before their version.
            let shown = version.strip_prefix(&*path.to_string_lossy()).map_or(version.as_str(), str::trim);
            Some((*system, shown.to_owned()))
        };
        self.0.iter().filter_map(ask).collect()
    }
}

/// A program on the PATH that is one itself: a script that starts another would be charged to the system.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where an ordinary user's PATH does not look.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|path| is_elf(path))
}

/// The program inside a Python package that carries one.
fn in_wheel(package: &str, program: &str) -> Option<PathBuf> {
    let list = "import importlib.metadata as m, sys; [print(f.locate()) for f in m.files(sys.argv[1]) or []]";
    let output = Command::new("python3").args(["-c", list, package]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .map(PathBuf::from)
        .find(|path| path.file_name().is_some_and(|name| name == program) && is_elf(path))
        .map(|path| path.canonicalize().unwrap_or(path))
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}
