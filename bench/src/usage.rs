//! Usage: what the kernel's accounts say a process and its descendants have used.
//!
//! Processor time comes from `schedstat`, in nanoseconds; the kernel brings it up to date at each clock tick
//! and each switch, so a stretch of a second is known to within 4 ms. Memory is summed over the processes as
//! it stands, pages that they share counted in each.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::time::Duration;

use rustix::thread::Pid;

/// The accounts at one instant.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    pub cpu: Duration,
    pub rss_bytes: u64,
    /// The highest that each process's memory ever was, summed.
    pub peak_bytes: u64,
}

/// Reads the accounts of a process and of everything that descends from it.
pub fn of_tree(root: Pid) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let root = root.as_raw_nonzero().get();
    for pid in tree(root)? {
        match of_process(pid) {
            Ok(own) => {
                usage.cpu += own.cpu;
                usage.rss_bytes += own.rss_bytes;
                usage.peak_bytes += own.peak_bytes;
            }
            // A reload ends processes at any time; what they used is then in their parent's account.
            Err(error) if pid != root && is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(usage)
}

fn of_process(pid: i32) -> io::Result<Usage> {
    let mut cpu = of_ended_children(pid)?;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        match cpu_of(&thread?.path().join("schedstat").to_string_lossy()) {
            Ok(own) => cpu += own,
            // Servers have threads that only help them start.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Usage { cpu, rss_bytes: kib(&status, "VmRSS:") * 1024, peak_bytes: kib(&status, "VmHWM:") * 1024 })
}

/// What children used that have ended and been waited for, to a clock tick.
fn of_ended_children(pid: i32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    // `cutime` and `cstime`, 16 and 17 of proc_pid_stat(5); the state is its third.
    let ticks: u64 = fields.skip(13).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    Ok(ticks_to_time(ticks))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn ticks_to_time(ticks: u64) -> Duration {
    Duration::from_secs(ticks) / rustix::param::clock_ticks_per_second() as u32
}

/// Reads the processor time of the calling thread.
pub fn of_this_thread() -> io::Result<Duration> {
    cpu_of("/proc/thread-self/schedstat")
}

/// Reads the processor time of any thread.
pub fn of_thread(thread: Pid) -> io::Result<Duration> {
    cpu_of(&format!("/proc/{thread}/schedstat"))
}

/// Reads how long a processor has been busy with anything at all, to a clock tick (10 ms).
pub fn of_processor(cpu: usize) -> io::Result<Duration> {
    let ticks = ticks_of_processor(cpu)?;
    Ok(ticks_to_time(ticks.iter().sum::<u64>() - idle(ticks)))
}

/// Reads how long a processor has had nothing to do. The kernel times this by its clock where it only samples
/// who is busy at its ticks, which a load in step with them evades.
pub fn idle_of_processor(cpu: usize) -> io::Result<Duration> {
    Ok(ticks_to_time(idle(ticks_of_processor(cpu)?)))
}

/// user, nice, system, idle, iowait, irq, softirq, steal; guest time is part of user's.
fn ticks_of_processor(cpu: usize) -> io::Result<[u64; 8]> {
    let stat = fs::read_to_string("/proc/stat")?;
    let name = format!("cpu{cpu}");
    let line = stat.lines().find(|line| line.split(' ').next() == Some(&name));
    let ticks = line.map(|line| line.split(' ').skip(1).filter_map(|word| word.parse().ok()));
    let ticks = ticks.and_then(|ticks| ticks.take(8).collect::<Vec<u64>>().try_into().ok());
    ticks.ok_or_else(|| io::Error::other(format!("/proc/stat does not account for {name}")))
}

fn idle(ticks: [u64; 8]) -> u64 {
    ticks[3] + ticks[4]
}

fn cpu_of(schedstat: &str) -> io::Result<Duration> {
    let text = fs::read_to_string(schedstat)?;
    let nanos = text.split(' ').next().and_then(|word| word.parse().ok());
    Ok(Duration::from_nanos(nanos.ok_or_else(|| io::Error::other(format!("{schedstat} holds no time")))?))
}

fn kib(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn tree(root: i32) -> io::Result<HashSet<i32>> {
    let parents: Vec<(i32, i32)> = fs::read_dir("/proc")?
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name between the brackets may hold anything; what follows the last one does not.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut found = HashSet::from([root]);
    loop {
        let before = found.len();
        found.extend(
            parents
                .iter()
                .filter(|(_, parent)| found.contains(parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if found.len() == before {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    #[test]
    fn a_tree_is_charged_for_its_children() {
        let mut shell = Command::new("sh")
            .args(["-c", "sh -c 'while :; do :; done' & wait"])
            .stdout(Stdio::null())
            .spawn()
            .expect("sh is everywhere");
        let pid = Pid::from_child(&shell);
        let deadline = Instant::now() + Duration::from_secs(20);
        while of_tree(pid).unwrap().cpu < Duration::from_millis(50) {
            assert!(Instant::now() < deadline, "the busy grandchild is not counted");
            std::thread::yield_now();
        }
        assert!(of_tree(pid).unwrap().rss_bytes > 100_000);
        for child in tree(pid.as_raw_nonzero().get()).unwrap() {
            rustix::process::kill_process(Pid::from_raw(child).unwrap(), rustix::process::Signal::KILL)
                .unwrap();
        }
        shell.wait().unwrap();
    }
}
