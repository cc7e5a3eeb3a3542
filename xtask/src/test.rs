//! `cargo xtask test`: formatting, lints, the kernel half, dependencies and every test, in this order.
//!
//! What this machine cannot check is named. The tests come last, so that the last line is their count.

use std::process::Command;

use anyhow::{Result, bail};

use crate::build::host;
use crate::build_ebpf;
use crate::exec::{answer, cargo, exec, is_on_path, is_root, root};

#[derive(clap::Args)]
pub struct Args {
    /// Install what the kernel half needs without asking.
    #[arg(long)]
    yes: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let runner = runner()?;
    exec(&mut cargo(&["fmt", "--all", "--check"]))?;
    let kernel_half = root().join("gateway-ebpf/Cargo.toml");
    if kernel_half.is_file() {
        exec(cargo(&["fmt", "--check", "--manifest-path"]).arg(&kernel_half))?;
        build_ebpf::run(&build_ebpf::Args { yes: args.yes, ..Default::default() })?;
    }
    exec(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    dependencies()?;
    let with_runner = |mut command: Command| {
        command.envs(runner.iter().map(|(name, value)| (name, value)));
        exec(&mut command)
    };
    if answer("cargo", &["nextest", "--version"]).is_some() {
        with_runner(cargo(&["test", "--workspace", "--doc"]))?;
        return with_runner(on_what_it_builds(cargo(&["nextest", "run", "--workspace"])));
    }
    with_runner(on_what_it_builds(cargo(&["test", "--workspace"])))
}

/// Tests of the whole workspace come with the gateway that they are to start.
fn on_what_it_builds(mut tests: Command) -> Command {
    tests.env("GATEWAY_IS_BUILT", "1");
    tests
}

/// Licences, bans and known vulnerabilities, as deny.toml has them.
fn dependencies() -> Result<()> {
    if answer("cargo", &["deny", "--version"]).is_none() {
        println!("NOT CHECKED: dependencies, for cargo-deny is not here (cargo install cargo-deny --locked)");
        return Ok(());
    }
    exec(&mut cargo(&["deny", "check", "bans", "licenses", "sources"]))?;
    if exec(&mut cargo(&["deny", "fetch", "db"])).is_err() {
        println!("NOT CHECKED: advisories, for their database cannot be fetched from here");
        return Ok(());
    }
    exec(&mut cargo(&["deny", "check", "advisories"]))
}

/// The kernel's tests need root. Who is not builds as he is and lets only the test binaries run through sudo.
fn runner() -> Result<Option<(String, &'static str)>> {
    if is_root() {
        return Ok(None);
    }
    if !is_on_path("sudo") {
        bail!(
            "the kernel tests need root and there is no sudo; as root: env PATH=\"$PATH\" cargo xtask test"
        );
    }
    let variable = format!("CARGO_TARGET_{}_RUNNER", host()?.replace('-', "_").to_uppercase());
    Ok(Some((variable, "sudo --preserve-env")))
}
