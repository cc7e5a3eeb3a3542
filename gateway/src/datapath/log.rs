//! What the development variant of the kernel half says (`cargo xtask build-ebpf --debug`), passed on to
//! the gateway's own log at `debug`. The object that is shipped says nothing and has no map for it.

use std::os::fd::AsFd;
use std::thread;

use aya::Ebpf;
use aya_log::EbpfLogger;
use rustix::event::{PollFd, PollFlags, poll};

/// The map that aya's log lines come through.
const LINES: &str = "AYA_LOGS";

struct Passing;

impl ::log::Log for Passing {
    fn enabled(&self, _: &::log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &::log::Record<'_>) {
        tracing::debug!(line = %record.args(), "kernel half");
    }

    fn flush(&self) {}
}

/// Follows the kernel half's log, where it has one, on a thread that ends with the process.
pub fn follow(bpf: &mut Ebpf) {
    if bpf.map(LINES).is_none() {
        return;
    }
    let started =
        EbpfLogger::init_with_logger(bpf, Passing).map_err(|error| error.to_string()).and_then(|log| {
            let thread = thread::Builder::new().name("kernel-log".to_owned());
            thread.spawn(move || pass_on(log)).map_err(|error| error.to_string())
        });
    if let Err(error) = started {
        tracing::warn!(error, "the kernel half's log cannot be followed");
    }
}

fn pass_on(mut log: EbpfLogger<Passing>) {
    while poll(&mut [PollFd::from_borrowed_fd(log.as_fd(), PollFlags::IN)], None).is_ok() {
        log.flush();
    }
}
