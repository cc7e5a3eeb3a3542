//! `gateway`: arguments, logging, exit codes.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use gateway::cli;
use gateway::config::{self, Config, Files};
use gateway::datapath::cookies;
use gateway::lists::List;
use gateway::logging;
use gateway::server::{Server, Source};

/// Where the configuration is looked for when none is named.
const DEFAULT_FILES: [&str; 2] = ["config/gateway.json", "/etc/gateway/gateway.json"];

const CANNOT_START: u8 = 3;

/// An API gateway. Without a verb it runs.
///
/// Exit codes: 0 as asked, 1 invalid configuration or refused, 2 unreadable file or wrong arguments, 3 cannot start,
/// or no gateway answers.
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
    Run {
        /// Take the place of the gateway that answers at `control.socket`, without a connection lost.
        #[arg(long)]
        upgrade: bool,
    },
    /// Read the configuration and say what is wrong with it.
    Check(cli::Check),
    /// Write the JSON Schema of the configuration to standard output.
    Schema {
        /// Of a file that others include, which needs no routes.
        #[arg(long)]
        part: bool,
    },
    /// Say what this host can do for the kernel half, and what to do about the rest.
    Doctor(cli::Doctor),
    /// Say how the running gateway is.
    Status(cli::Status),
    /// Show a running gateway's figures, live, on a terminal.
    Top(cli::Top),
    /// Write what the running gateway spends its processor time on to a file, for `pprof`.
    Profile(cli::Profile),
    /// Have the running gateway read its configuration again, and say what came of it.
    Reload(cli::Reload),
    /// Show or change how much the running gateway says on its standard error.
    Log(cli::Log),
    /// Show the endpoints of the running gateway, take one out of service, or put it back.
    Endpoints(cli::Endpoints),
    /// Say what would happen to a source now, and why.
    Explain(cli::Explain),
    /// Play a recorded access log through a configuration, and say who would have been refused.
    Rehearse(cli::Rehearse),
    /// Forget stored responses.
    Purge(cli::Purge),
    /// Networks that are never refused.
    Allow(cli::ListVerb),
    /// Networks whose connections are dropped.
    Deny(cli::ListVerb),
    /// Write a shell's completions to standard output.
    Completions { shell: clap_complete::Shell },
    /// Write the manual page of the gateway, or of one of its verbs, to standard output.
    Man { verb: Option<String> },
    /// What the gateway starts itself as, to have the stack take SYN cookies.
    #[command(hide = true, name = cookies::VERB)]
    Syncookies,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if matches!(arguments.verb, Some(Verb::Syncookies)) {
        return if cookies::serve().is_ok() { ExitCode::SUCCESS } else { CANNOT_START.into() };
    }
    match &arguments.verb {
        Some(Verb::Completions { shell }) => return put(&completions(*shell)),
        Some(Verb::Schema { part }) => return put(format!("{:#}\n", config::schema(*part)).as_bytes()),
        Some(Verb::Man { verb }) => return manual(verb.as_deref()),
        _ => {}
    }
    if let Err(error) = logging::start() {
        eprintln!("gateway: GATEWAY_LOG: {error}");
        return config::UNREADABLE.into();
    }
    let Some(file) = arguments.config.or_else(default_file) else {
        eprintln!(
            "gateway: no configuration: neither {} is there; name one with --config",
            DEFAULT_FILES.join(" nor ")
        );
        return config::UNREADABLE.into();
    };
    if let Some(Verb::Check(verb)) = arguments.verb {
        return verb.run(&file);
    }
    let source = Source::new(file, arguments.iface, arguments.no_kernel);
    let (config, files) = match source.load() {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("{error}");
            return error.exit_code().into();
        }
    };
    match arguments.verb.unwrap_or(Verb::Run { upgrade: false }) {
        Verb::Run { upgrade } => run((config, files), source, upgrade),
        Verb::Doctor(verb) => verb.run(&config),
        Verb::Status(verb) => verb.run(&config),
        Verb::Top(verb) => verb.run(&config),
        Verb::Profile(verb) => verb.run(&config),
        Verb::Reload(verb) => verb.run(&config),
        Verb::Log(verb) => verb.run(&config),
        Verb::Endpoints(verb) => verb.run(&config),
        Verb::Explain(verb) => verb.run(&config),
        Verb::Purge(verb) => verb.run(&config),
        Verb::Rehearse(verb) => verb.run(config),
        Verb::Allow(verb) => verb.run(List::Allow, &config),
        Verb::Deny(verb) => verb.run(List::Deny, &config),
        Verb::Check(_)
        | Verb::Schema { .. }
        | Verb::Completions { .. }
        | Verb::Man { .. }
        | Verb::Syncookies => unreachable!("they have gone their way above"),
    }
}

fn run(loaded: (Config, Files), source: Source, upgrade: bool) -> ExitCode {
    match Server::start(loaded, source, upgrade).and_then(Server::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error}");
            CANNOT_START.into()
        }
    }
}

fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "gateway", &mut text);
    text
}

fn manual(verb: Option<&str>) -> ExitCode {
    let mut command = Arguments::command();
    command.build();
    let page = match verb {
        None => command,
        Some(verb) => match command.find_subcommand(verb) {
            Some(found) => found.clone(),
            None => {
                eprintln!("gateway: there is no verb {verb:?}: `gateway --help` lists them");
                return config::UNREADABLE.into();
            }
        },
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text).expect("memory takes it");
    put(&text)
}

/// A reader that has seen enough is no failure.
fn put(text: &[u8]) -> ExitCode {
    let _ = std::io::stdout().write_all(text);
    ExitCode::SUCCESS
}

fn default_file() -> Option<PathBuf> {
    DEFAULT_FILES.iter().map(PathBuf::from).find(|file| file.exists())
}
