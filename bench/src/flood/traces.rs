//! Traces: what a run has put on the machine and has to take away again, however it ends.
//!
//! Whoever makes something leaves a trace and takes it away when dropped. An interrupted run drops nothing, so
//! [`take_all_away`] does it instead; what a killed run left, the next one's [`sweep`] finds by its name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Signal, kill_process, kill_process_group};
use rustix::thread::Pid;

#[derive(Debug, Clone, PartialEq)]
pub enum Trace {
    /// A network namespace, by the name that `ip` knows it by.
    Namespace(String),
    Folder(PathBuf),
    /// A process and all that it started.
    Processes(Pid),
}

static LEFT: Mutex<Vec<Trace>> = Mutex::new(Vec::new());

fn left() -> MutexGuard<'static, Vec<Trace>> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes something and notes its trace as one step, so that no interruption falls between the two.
pub fn leave<T, E>(make: impl FnOnce() -> Result<(T, Trace), E>) -> Result<T, E> {
    let mut left = left();
    let (made, trace) = make()?;
    left.push(trace);
    Ok(made)
}

/// Takes one trace away.
pub fn take_away(trace: &Trace) {
    let mut left = left();
    remove(trace);
    left.retain(|other| other != trace);
}

/// Takes every trace away, the latest first; whoever would leave another one waits for the process's end.
pub fn take_all_away() {
    let left = left();
    left.iter().rev().for_each(remove);
    std::mem::forget(left);
}

/// What is gone already is as good.
fn remove(trace: &Trace) {
    match trace {
        Trace::Namespace(name) => {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
        Trace::Folder(path) => {
            let _ = std::fs::remove_dir_all(path);
        }
        Trace::Processes(leader) => {
            let _ = kill_process_group(*leader, Signal::KILL);
        }
    }
}

/// What the names of namespaces and folders begin with: whose they are.
pub fn prefix() -> String {
    format!("flood-{}-", std::process::id())
}

/// Whether a name is of a run that has ended.
fn is_left_over(name: &str) -> bool {
    let owner = name.strip_prefix("flood-").and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
    owner.is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists())
}

/// Clears what a run left that was killed.
pub fn sweep() {
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| is_left_over(name))
            .collect()
    };
    for name in names(Path::new("/run/netns")) {
        let inside = Command::new("ip").args(["netns", "pids", &name]).output();
        let inside = inside.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        for pid in inside.unwrap_or_default().split_whitespace() {
            if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        remove(&Trace::Namespace(name.clone()));
        eprintln!("cleared what a killed run left: {name}");
    }
    let folder = std::env::temp_dir();
    names(&folder).into_iter().for_each(|name| remove(&Trace::Folder(folder.join(name))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ended_runs_left_is_left_over() {
        // Beyond the highest number that a process can have.
        for (name, left_over) in [
            ("flood-4194305-server", true),
            (&format!("{}server", prefix()), false),
            ("flood-server", false),
            ("flood-x-server", false),
            ("bench-4194305-server", false),
        ] {
            assert_eq!(is_left_over(name), left_over, "{name}");
        }
    }
}
