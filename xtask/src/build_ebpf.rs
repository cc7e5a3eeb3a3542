//! `cargo xtask build-ebpf`: compiles the kernel half with whichever toolchain this machine has, or
//! says what is missing and installs it after asking. The gateway's build script embeds the result.
//!
//! Two toolchains can do it (docs/datapath.md): a rustup nightly with its own `rust-src`, and Debian's
//! `rustc-web`, which ships a `core` already compiled for BPF. Both link with `bpf-linker`.

use std::env;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};

use crate::exec::{answer, cargo, exec, is_on_path, is_root, root, shown};

/// What `build-ebpf` takes on the command line.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Args {
    /// Install a missing toolchain without asking.
    #[arg(long)]
    pub yes: bool,
    /// Build the variant that logs each verdict through aya-log, for development only.
    #[arg(long)]
    pub debug: bool,
    /// Build even when the object is newer than its sources.
    #[arg(long)]
    pub force: bool,
}

const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
/// The LLVM of Debian's rustc-web; bpf-linker reads that compiler's bitcode and needs the same major.
const LLVM_MAJOR: &str = "22";
const DEBIAN_PACKAGES: [&str; 5] =
    ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "llvm-22-dev", "bpftool"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// What the object is made of; a change in any of them makes it stale.
const SOURCES: [&str; 4] =
    ["gateway-ebpf/src", "gateway-ebpf/Cargo.toml", "gateway-ebpf/Cargo.lock", "gateway-common"];

/// A compiler that can make BPF code here.
enum Toolchain {
    /// rustup's nightly with `rust-src`: `core` is compiled along.
    Nightly,
    /// Debian's rustc-web with `libstd-rust-web-dev-bpf`.
    Debian,
}

/// Builds the object if it is older than its sources and returns its path.
pub fn run(args: &Args) -> Result<PathBuf> {
    let root = root();
    let profile = if args.debug { "debug" } else { "release" };
    let folder = root.join("gateway-ebpf/target").join(TARGET);
    let object = folder.join(profile).join("gateway-ebpf");
    let logging = folder.join("debug/gateway-ebpf");
    if !args.debug && logging.is_file() {
        // Development builds of the gateway embed it while it is there.
        fs::remove_file(&logging)?;
    }
    if !args.force && is_fresh(root, &object)? {
        println!("the eBPF object is newer than its sources: {}", object.display());
        return Ok(object);
    }
    let (toolchain, linker) = match (toolchain(), linker()) {
        (Some(toolchain), Some(linker)) => (toolchain, linker),
        (toolchain, linker) => install(toolchain, linker, args.yes)?,
    };
    compile(root, &toolchain, &linker, args.debug)?;
    ensure!(object.is_file(), "the build left no object at {}", object.display());
    println!("built {} ({} bytes)", object.display(), fs::metadata(&object)?.len());
    Ok(object)
}

fn compile(root: &Path, toolchain: &Toolchain, linker: &Path, debug: bool) -> Result<()> {
    let mut cargo = match toolchain {
        Toolchain::Nightly => {
            let mut rustup = Command::new("rustup");
            rustup.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
            rustup
        }
        Toolchain::Debian => {
            let mut cargo = Command::new(DEBIAN_CARGO);
            // A stable compiler; the BPF target needs features that only a nightly has by right.
            cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", DEBIAN_RUSTC).arg("build");
            cargo
        }
    };
    if debug {
        cargo.args(["--features", "log"]);
    } else {
        cargo.arg("--release");
    }
    // The manifest's folder, so that the object lies where the gateway's build script looks for it
    // whatever target directory the caller has chosen for the workspace.
    let folder = root.join("gateway-ebpf");
    cargo
        .args(["--locked", "--target", TARGET, "--target-dir"])
        .arg(folder.join("target"))
        .current_dir(&folder);
    let flags = format!("-C linker={} -C debuginfo=2 -C link-arg=--btf", linker.display());
    cargo.env("RUSTFLAGS", flags);
    exec(of_another_toolchain(&mut cargo))
}

fn toolchain() -> Option<Toolchain> {
    let nightly = answer("rustup", &["component", "list", "--toolchain", "nightly", "--installed"]);
    if nightly.is_some_and(|list| list.lines().any(|line| line.starts_with("rust-src"))) {
        return Some(Toolchain::Nightly);
    }
    let libraries = answer(DEBIAN_RUSTC, &["--print", "target-libdir", "--target", TARGET])?;
    let core = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    };
    let compiled = fs::read_dir(libraries).ok()?.any(core);
    (compiled && Path::new(DEBIAN_CARGO).is_file()).then_some(Toolchain::Debian)
}

/// `bpf-linker` on the PATH or where `cargo install` puts it.
fn linker() -> Option<PathBuf> {
    let installed = env::var_os("CARGO_HOME").map(PathBuf::from);
    let installed =
        installed.or_else(|| env::home_dir().map(|home| home.join(".cargo"))).map(|home| home.join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).chain(installed).map(|folder| folder.join("bpf-linker"));
    found.into_iter().find(|program| program.is_file())
}

/// Installs what is missing: the compiler from Debian's archive, the linker by cargo.
fn install(toolchain: Option<Toolchain>, linker: Option<PathBuf>, yes: bool) -> Result<(Toolchain, PathBuf)> {
    let mut steps = Vec::new();
    let debian = !matches!(toolchain, Some(Toolchain::Nightly));
    let compiler = toolchain.is_none();
    if compiler || (linker.is_none() && debian && llvm_prefix().is_none()) {
        steps.push(apt_install());
    }
    if linker.is_none() {
        steps.push(linker_install(debian));
    }
    println!(
        "The kernel half needs a compiler for {TARGET} and bpf-linker. Missing here; this installs them:"
    );
    steps.iter().for_each(|step| println!("    {}", shown(step)));
    if compiler {
        println!(
            "(With rustup and its sources at hand, `rustup toolchain install nightly -c rust-src` serves too.)"
        );
        ensure!(
            is_on_path("apt-get"),
            "no apt-get here: install one of the toolchains of docs/datapath.md by hand"
        );
    }
    if !yes && !confirmed()? {
        bail!("nothing installed: run the commands above, or `cargo xtask build-ebpf --yes`");
    }
    for mut step in steps {
        if exec(of_another_toolchain(&mut step)).is_err() {
            // The usual cause on a fresh machine is an empty or old package list.
            exec(&mut as_root(&["apt-get", "update"]))?;
            exec(&mut step)?;
        }
    }
    let toolchain =
        self::toolchain().context("the packages are installed, yet no compiler here has BPF's `core`")?;
    let linker = self::linker().context("bpf-linker is installed, yet not in cargo's bin folder")?;
    Ok((toolchain, linker))
}

fn apt_install() -> Command {
    let mut command = as_root(&["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q"]);
    command.arg("--no-install-recommends").args(DEBIAN_PACKAGES);
    command
}

fn linker_install(debian: bool) -> Command {
    let mut command = cargo(&["install", "bpf-linker", "--locked", "--version", LINKER_VERSION]);
    if debian {
        let prefix = llvm_prefix().unwrap_or_else(|| format!("/usr/lib/llvm-{LLVM_MAJOR}").into());
        command.args(["--no-default-features", "--features", &format!("llvm-{LLVM_MAJOR}")]);
        command.env("LLVM_PREFIX", prefix);
    }
    // A linker for this machine: none of the workspace's own settings apply to it.
    command.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").current_dir("/");
    command
}

fn llvm_prefix() -> Option<PathBuf> {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{LLVM_MAJOR}"));
    prefix.join("bin/llvm-config").exists().then_some(prefix)
}

fn confirmed() -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    print!("Install? [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn as_root(words: &[&str]) -> Command {
    let words: Vec<&str> = if is_root() { words.to_vec() } else { [&["sudo"], words].concat() };
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// rustup's proxy sets these for the toolchain that runs xtask; the one called here is another.
fn of_another_toolchain(command: &mut Command) -> &mut Command {
    for name in ["RUSTUP_TOOLCHAIN", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        command.env_remove(name);
    }
    command
}

fn is_fresh(root: &Path, object: &Path) -> Result<bool> {
    let Ok(built) = fs::metadata(object).and_then(|object| object.modified()) else { return Ok(false) };
    for source in SOURCES {
        if newest(&root.join(source))? > built {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The latest modification of a file, or of any file below a folder.
fn newest(path: &Path) -> Result<SystemTime> {
    let found =
        fs::metadata(path).with_context(|| format!("no source of the kernel half at {}", path.display()))?;
    let mut latest = found.modified()?;
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            latest = latest.max(newest(&entry?.path())?);
        }
    }
    Ok(latest)
}
