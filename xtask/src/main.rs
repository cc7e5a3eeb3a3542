//! `cargo xtask`: everything that is done with this repository beyond `cargo build`, one verb each.
//!
//! Each verb is a file; each command that one runs is printed first.

mod bench;
mod build;
mod build_ebpf;
mod demo;
mod exec;
mod run;
mod test;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Verb {
    /// Build the gateway and start it, with a demo backend unless a configuration is named.
    Run(run::Args),
    /// Build the release binary.
    Build(build::Args),
    /// Build the kernel half.
    BuildEbpf(build_ebpf::Args),
    /// Format, lint and test everything.
    Test(test::Args),
    /// Measure the gateway beside its peers; everything after the verb goes to the bench.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let done = match Verb::parse() {
        Verb::Run(args) => return run::run(&args).unwrap_or_else(failed),
        Verb::Build(args) => build::run(&args),
        Verb::BuildEbpf(args) => build_ebpf::run(&args).map(drop),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(&args),
    };
    done.map_or_else(failed, |()| ExitCode::SUCCESS)
}

fn failed(error: anyhow::Error) -> ExitCode {
    eprintln!("xtask: {error:#}");
    ExitCode::FAILURE
}
