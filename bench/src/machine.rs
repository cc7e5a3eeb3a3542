//! The machine that a run is made on: which processors serve whom, and what to write beside the figures.
//!
//! Processors are counted from those this process may use, so that a run inside a container is honest.

use std::io;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

/// Who runs where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cores {
    /// The generator's and the origin's.
    pub load: usize,
    /// The system's under test.
    pub system: usize,
    /// How many processors there are to choose from.
    pub available: usize,
}

impl Cores {
    /// The first processor for the load, the second for the system; the same one when there is no other.
    pub fn find() -> io::Result<Cores> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let load = cores.next().ok_or_else(|| io::Error::other("no processor to run on"))?;
        let system = cores.next();
        let others = cores.count();
        Ok(Cores {
            load,
            system: system.unwrap_or(load),
            available: 1 + usize::from(system.is_some()) + others,
        })
    }

    pub fn are_shared(self) -> bool {
        self.load == self.system
    }
}

/// Keeps the calling thread, and what it starts from now on, on one processor.
pub fn pin_this_thread(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Lets this process and those it starts hold `wanted` descriptors, and as many more as it may: some servers take
/// their own limits from it.
///
/// # Errors
/// When the limit stays below `wanted`; the message says what to do.
pub fn allow_descriptors(wanted: u64) -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let plenty = limit.maximum.map(|maximum| maximum.max(wanted).max(PLENTIFUL_DESCRIPTORS));
    let all = Rlimit { current: plenty, maximum: plenty };
    let within = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let raised = setrlimit(Resource::Nofile, all).or_else(|_| setrlimit(Resource::Nofile, within));
    if raised.is_ok() && getrlimit(Resource::Nofile).current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{wanted} descriptors are needed: run as root, or `ulimit -n {wanted}` first"
    )))
}

const PLENTIFUL_DESCRIPTORS: u64 = 65_536;

/// What stands beside the figures.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub processor: String,
    pub kernel: String,
    pub memory_mib: u64,
    #[serde(flatten)]
    pub cores: Cores,
}

impl Machine {
    pub fn describe(cores: Cores) -> Machine {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal");
        let memory = memory.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        Machine {
            processor: value(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            memory_mib: memory.unwrap_or(0) / 1024,
            cores,
        }
    }
}

/// The first line that a command prints on either stream, or `unknown`.
pub fn first_line(command: &mut Command) -> String {
    let output = command.output().map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&output);
    // Envoy's begins with an empty one.
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or("unknown").to_owned()
}
