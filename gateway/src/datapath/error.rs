//! Why the kernel half does not run: one line each that says what, where and what to do about it.

use std::io;

use aya::maps::MapError;
use aya::programs::ProgramError;

/// A failure to load, attach or rewrite the kernel half. The gateway proxies without it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the kernel half is not in this binary: run `cargo xtask build-ebpf`, then build the gateway again"
    )]
    NotBuiltIn,
    #[error(
        "the kernel half needs {missing}: run the gateway as root, or grant them with \
         `setcap cap_bpf,cap_net_admin,cap_perfmon+ep` on the binary"
    )]
    Capability { missing: String },
    #[error("this kernel has no BPF ({0}): it needs CONFIG_BPF_SYSCALL, and a sandbox must allow bpf(2)")]
    NoBpf(io::Error),
    #[error("no network interface named \"{0}\": `ip link` lists those of this host")]
    NoInterface(String),
    #[error(
        "interface \"{interface}\": another program holds its {hook} hook (`bpftool net list dev {interface}` \
         shows it): detach that one, or set kernel.mode to \"tc\" to run behind it"
    )]
    Occupied { interface: String, hook: &'static str },
    #[error("interface \"{interface}\" takes the kernel half in no mode asked for: {reasons}")]
    Attach { interface: String, reasons: String },
    #[error("the kernel refused to load \"{program}\": {reason}; Linux 5.15 is the least that can")]
    Refused { program: &'static str, reason: String },
    #[error("{count} {what}, and the kernel half holds at most {most}: name fewer")]
    TooMany { what: &'static str, count: usize, most: usize },
    #[error("the kernel half's map {map} cannot be used: {reason}")]
    Map { map: &'static str, reason: String },
    #[error("the addresses of this host cannot be listed: {0}")]
    Addresses(io::Error),
}

impl Error {
    pub(super) fn map(map: &'static str) -> impl Fn(MapError) -> Self {
        move |error| Self::Map { map, reason: chain(&error) }
    }

    /// A program that would not load. The verifier's last words are its reason; all it said is for debug.
    pub(super) fn refused(program: &'static str, error: &ProgramError) -> Self {
        let reason = match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                if io_error.raw_os_error() == Some(libc::EPERM) {
                    return Self::no_permission();
                }
                let log = verifier_log.to_string();
                tracing::debug!(program, %log, "verifier");
                let told = |line: &&str| !line.trim().is_empty() && !line.starts_with("processed ");
                format!(
                    "{io_error}: {}",
                    log.lines().rev().find(told).unwrap_or("the verifier gave no reason")
                )
            }
            other => chain(other),
        };
        Self::Refused { program, reason }
    }

    /// What the kernel's EPERM means although the process seems to hold the capabilities.
    pub(super) fn no_permission() -> Self {
        Self::Capability {
            missing: "capabilities that this container or user namespace withholds".to_owned(),
        }
    }
}

/// An error and its causes on one line; aya keeps the errno in a source.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// The errno at the bottom of an error, where there is one.
pub(super) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut causes = std::iter::successors(Some(error), |cause| cause.source());
    causes.find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())
}
