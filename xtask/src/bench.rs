//! `cargo xtask bench`: builds the gateway and the bench as they are shipped, and hands over to the bench.

use std::process::Command;

use anyhow::Result;

use crate::exec::{cargo, exec, is_root, root, target_dir};
use crate::{build, build_ebpf};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Measure the profile-guided build instead of the plain one.
    #[arg(long)]
    pgo: bool,
    /// Measure the kernel half alone: nanoseconds per verdict (root). The whole bench ends with it.
    #[arg(long)]
    kernel: bool,
    /// Flood the gateway and its peers between network namespaces, instead of measuring them at peace (root).
    #[arg(long)]
    flood: bool,
    /// Measure what clients feel while one of three backends is slow.
    #[arg(long)]
    slow_endpoint: bool,
    /// The bench's own arguments; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    if args.kernel {
        return verdicts();
    }
    // Two builds: together, the bench's features of shared crates would find their way into the gateway.
    if args.pgo {
        build::guided()?
    } else {
        build::plain()?
    };
    exec(&mut cargo(&["build", "--release", "--package", "bench"]))?;
    if args.flood {
        return exec(Command::new(target_dir().join("release/flood")).args(&args.args).current_dir(root()));
    }
    if args.slow_endpoint {
        let program = target_dir().join("release/slow-endpoint");
        return exec(Command::new(program).args(&args.args).current_dir(root()));
    }
    exec(Command::new(target_dir().join("release/bench")).args(&args.args).current_dir(root()))?;
    if args.args.is_empty() && is_root() { verdicts() } else { Ok(()) }
}

/// What judging one packet costs, by BPF_PROG_TEST_RUN.
fn verdicts() -> Result<()> {
    build_ebpf::run(&build_ebpf::Args::default())?;
    exec(&mut cargo(&["run", "--package", "gateway-tests", "--bin", "kernel-ns"]))
}
