//! `cargo xtask build`: one release binary, on demand shaped by a profile of the bench's own scenarios.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::exec::{answer, cargo, exec, root, target_dir};

#[derive(clap::Args)]
pub struct Args {
    /// Build twice: the second time guided by a profile of the first under the bench's load.
    #[arg(long)]
    pgo: bool,
}

/// The load that the profile is taken under: what the gateway is for, each way of framing once.
const TRAINING: &str = "small,fixed-50,body-16k,upload-1m,connect,cache-hit,refusal-429";
/// The oldest LLVM whose tool reads the profiles that today's rustc writes.
const OLDEST_LLVM: u32 = 19;
const NEWEST_LLVM: u32 = 24;

pub fn run(args: &Args) -> Result<()> {
    let binary = if args.pgo { guided()? } else { plain()? };
    let bytes = fs::metadata(&binary).with_context(|| binary.display().to_string())?.len();
    println!("built {} ({:.1} MiB)", binary.display(), bytes as f64 / 1_048_576.0);
    Ok(())
}

/// The binary as cargo builds it.
pub fn plain() -> Result<PathBuf> {
    exec(&mut cargo(&["build", "--release", "--package", "gateway"]))?;
    Ok(target_dir().join("release/gateway"))
}

/// The binary built twice, the second time by a profile of the first.
pub fn guided() -> Result<PathBuf> {
    let host = host()?;
    let profdata = llvm_profdata(&host)?;
    let dir = fs::canonicalize(root())?.join("target/pgo");
    let (raw, merged) = (dir.join("raw"), dir.join("merged.profdata"));
    // Profiles of an earlier build would be merged with these.
    match fs::remove_dir_all(&raw) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    let training = build_with("profile-generate", &raw, &host, &dir.join("generate"))?;
    exec(&mut cargo(&["build", "--release", "--package", "bench"]))?;
    let mut load = Command::new(target_dir().join("release/bench"));
    load.args([
        "--systems",
        "gateway",
        "--scenario",
        TRAINING,
        "--rounds",
        "1",
        "--seconds",
        "3",
        "--gateway",
    ]);
    exec(load.arg(training).arg("--results").arg(dir.join("training")).current_dir(root()))?;
    exec(Command::new(profdata).args(["merge", "--output"]).arg(&merged).arg(&raw))?;
    let built = build_with("profile-use", &merged, &host, &dir.join("use"))?;
    let shipped = target_dir().join("release/gateway");
    fs::create_dir_all(target_dir().join("release"))?;
    fs::copy(&built, &shipped).with_context(|| format!("copying {}", built.display()))?;
    Ok(shipped)
}

/// Builds the gateway with a profile option; only the gateway, not what runs while it is built, gets it.
fn build_with(option: &str, value: &Path, host: &str, target: &Path) -> Result<PathBuf> {
    let mut build = cargo(&["build", "--release", "--package", "gateway", "--target", host, "--target-dir"]);
    build.arg(target).env("CARGO_ENCODED_RUSTFLAGS", format!("-C{option}={}", value.display()));
    exec(&mut build)?;
    Ok(target.join(host).join("release/gateway"))
}

/// The triple that rustc builds for without being told.
pub fn host() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = answer(rustc, &["-vV"]).context("rustc -vV gave no answer")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

fn llvm_profdata(host: &str) -> Result<PathBuf> {
    let sysroot = answer("rustc", &["--print", "sysroot"]).map(PathBuf::from);
    let component = sysroot.map(|sysroot| sysroot.join("lib/rustlib").join(host).join("bin/llvm-profdata"));
    let numbered =
        (OLDEST_LLVM..=NEWEST_LLVM).rev().map(|major| PathBuf::from(format!("llvm-profdata-{major}")));
    let candidates = component.into_iter().chain(numbered).chain([PathBuf::from("llvm-profdata")]);
    for candidate in candidates {
        let major = answer(&candidate, &["--version"]).as_deref().and_then(llvm_major);
        if major.is_some_and(|major| major >= OLDEST_LLVM) {
            return Ok(candidate);
        }
    }
    bail!(
        "no llvm-profdata of LLVM {OLDEST_LLVM} or newer: `rustup component add llvm-tools`, \
         or `apt-get install llvm-{OLDEST_LLVM}`"
    )
}

fn llvm_major(version: &str) -> Option<u32> {
    let (_, number) = version.split_once("LLVM version ")?;
    number.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::llvm_major;

    #[test]
    fn reads_the_version_that_llvm_prints() {
        assert_eq!(llvm_major("Debian LLVM version 19.1.7\n  Optimized build."), Some(19));
        assert_eq!(llvm_major("LLVM (http://llvm.org/):\n  LLVM version 22.1.8-rust"), Some(22));
        assert_eq!(llvm_major("llvm-profdata: Unknown command!"), None);
    }
}
