//! Why the kernel half does not run: one line each that says what, where and what to do about it.

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use aya::programs::ProgramError;

use super::interface::Holder;

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
        "interface \"{interface}\": another program holds its {hook} hook{} (`bpftool net list dev {interface}` \
         shows it): detach that one, or set kernel.mode to \"tc\" to run behind it", held_by(.holder)
    )]
    Occupied { interface: String, hook: &'static str, holder: Option<Holder> },
    #[error(
        "interface \"{interface}\": another gateway holds its {hook} hook, by {holder}: stop that one; if none runs, \
         its link is pinned: start with its kernel.persist, or remove that folder"
    )]
    Another { interface: String, hook: &'static str, holder: Holder },
    #[error(
        "kernel.persist {}: not on a BPF file system: `mount -t bpf bpf /sys/fs/bpf`, and name a folder in it",
        .0.display()
    )]
    NoBpfFs(PathBuf),
    #[error("kernel.persist {}: another gateway holds it: stop that one, or give this one a folder of its own", .0.display())]
    Held(PathBuf),
    #[error("kernel.persist {}: {source}", .folder.display())]
    Persist { folder: PathBuf, source: io::Error },
    #[error(
        "kernel.persist: {} is no map of this gateway ({found}): remove its folder, which forgets what the maps hold",
        .path.display()
    )]
    Shape { path: PathBuf, found: String },
    #[error("interface \"{interface}\" takes the kernel half in no mode asked for: {reasons}")]
    Attach { interface: String, reasons: String },
    #[error("the kernel refused to load \"{program}\": {reason}; Linux 5.15 is the least that can")]
    Refused { program: &'static str, reason: String },
    #[error("{count} {what}, and the kernel half holds at most {most}: name fewer")]
    TooMany { what: &'static str, count: usize, most: usize },
    #[error(
        "{count} {what} before and after the change together, and the kernel half, which keeps both while it changes, \
         holds at most {most}: change them in several steps, or restart"
    )]
    TooManyTogether { what: &'static str, count: usize, most: usize },
    #[error("the kernel half's map {map} cannot be used: {reason}")]
    Map { map: &'static str, reason: String },
    #[error(
        "the kernel half in this binary is of another build, by its map {map}: run `cargo xtask build-ebpf`, then \
         build the gateway again"
    )]
    OtherBuild { map: &'static str },
    #[error("the heartbeat's thread does not start: {0}")]
    Thread(io::Error),
    #[error("the addresses of this host cannot be listed: {0}")]
    Addresses(io::Error),
}

impl Error {
    pub(super) fn map(map: &'static str) -> impl Fn(MapError) -> Self {
        move |error| match error {
            // Maps that were there before have been compared with the object's own by now.
            MapError::InvalidKeySize { .. }
            | MapError::InvalidValueSize { .. }
            | MapError::InvalidMapType { .. } => Self::OtherBuild { map },
            error => Self::Map { map, reason: chain(&error) },
        }
    }

    /// That of a policy which holds an old and a new one.
    pub(super) fn together(self) -> Self {
        match self {
            Self::TooMany { what, count, most } => Self::TooManyTogether { what, count, most },
            other => other,
        }
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
                let summaries = ["processed ", "stack depth ", "verification time "];
                let is_summary = |line: &&str| summaries.iter().any(|start| line.starts_with(start));
                let told = |line: &&str| !line.trim().is_empty() && !is_summary(line);
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

fn held_by(holder: &Option<Holder>) -> String {
    holder.as_ref().map(|holder| format!(", {holder}")).unwrap_or_default()
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
