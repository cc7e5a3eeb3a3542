//! Running other programs: each command is printed as one would type it, and an error shows it again.
//!
//! Every verb uses this; it knows nothing of what the commands are for.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Runs a command to its end; anything but success is an error.
pub fn exec(command: &mut Command) -> Result<()> {
    println!("+ {}", shown(command));
    let status = command.status().with_context(|| format!("cannot run: {}", shown(command)))?;
    ensure!(status.success(), "failed ({status}): {}", shown(command));
    Ok(())
}

/// What a program prints when asked something; `None` when it is not there or refuses.
pub fn answer(program: impl AsRef<OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).current_dir(root()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The cargo that started this, in the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    let quoted = |text: &OsStr| {
        let text = text.to_string_lossy();
        if text.contains([' ', '"']) { format!("'{text}'") } else { text.into_owned() }
    };
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let set = set.map(|(name, value)| format!("{}={}", name.to_string_lossy(), quoted(value)));
    // A full path says where cargo lies, which is of no use to the reader.
    let ours = env::var_os("CARGO").is_some_and(|cargo| cargo == command.get_program());
    let program = if ours { OsStr::new("cargo") } else { command.get_program() };
    let words = command.get_args().map(quoted);
    set.chain([quoted(program)]).chain(words).collect::<Vec<_>>().join(" ")
}

/// The top of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies inside the workspace")
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    // Relative to the caller's folder, as cargo reads it.
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn is_on_path(program: &str) -> bool {
    env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(program).is_file())
}
