//! `gateway`: arguments, logging, exit codes.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gateway::config::{self, Config};
use gateway::server::{Server, Source};
use tracing_subscriber::EnvFilter;

/// Where the configuration is looked for when none is named.
const DEFAULT_FILES: [&str; 2] = ["config/gateway.json", "/etc/gateway/gateway.json"];

const INVALID_CONFIG: u8 = 1;
const UNREADABLE_CONFIG: u8 = 2;
const CANNOT_START: u8 = 3;

/// An API gateway. Without a verb it runs.
///
/// Exit codes: 0 as asked, 1 invalid configuration, 2 unreadable file or wrong arguments, 3 cannot start.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Configuration; without it config/gateway.json, then /etc/gateway/gateway.json.
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Attach the kernel half to this interface, besides those of the configuration; may be repeated.
    #[arg(long, global = true, value_name = "NAME")]
    iface: Vec<String>,
    /// Leave the kernel half off, whatever the configuration says.
    #[arg(long, global = true, conflicts_with = "iface")]
    no_kernel: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve until SIGTERM (the default).
    Run,
    /// Read the configuration and say what is wrong with it.
    Check,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("GATEWAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let Some(file) = arguments.config.or_else(default_file) else {
        eprintln!(
            "gateway: no configuration: neither {} is there; name one with --config",
            DEFAULT_FILES.join(" nor ")
        );
        return UNREADABLE_CONFIG.into();
    };
    let source = Source::new(file, arguments.iface, arguments.no_kernel);
    let config = match source.load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return match error {
                config::Error::Invalid { .. } => INVALID_CONFIG,
                config::Error::Unreadable { .. } => UNREADABLE_CONFIG,
            }
            .into();
        }
    };
    match arguments.verb.unwrap_or(Verb::Run) {
        Verb::Run => run(config, source),
        Verb::Check => {
            println!("{}: valid, {} routes", source.file.display(), config.routes.len());
            ExitCode::SUCCESS
        }
    }
}

fn run(config: Config, source: Source) -> ExitCode {
    let missing = config.not_in_force();
    if !missing.is_empty() {
        tracing::warn!(keys = missing.join(", "), "configured but not built yet: these keys have no effect");
    }
    match Server::start(config, source).and_then(Server::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error}");
            CANNOT_START.into()
        }
    }
}

fn default_file() -> Option<PathBuf> {
    DEFAULT_FILES.iter().map(PathBuf::from).find(|file| file.exists())
}
