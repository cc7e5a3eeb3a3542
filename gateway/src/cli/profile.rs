//! `gateway profile`: what a running gateway spends its processor time on, in a file.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, value_parser};

use super::{NOT_REACHED, REFUSED, socket};
use crate::config::{self, Config};
use crate::control::{self, Request, Seconds};

#[derive(Args)]
pub struct Profile {
    /// For how long, in whole seconds.
    #[arg(long, default_value = "30", value_parser = value_parser!(u64).range(1..=Seconds::MOST))]
    seconds: u64,
    /// Where it is written to, for `go tool pprof` and others who read its format.
    #[arg(long, value_name = "FILE", default_value = "profile.pb.gz")]
    output: PathBuf,
}

/// What the gateway may take to find the names of what it has sampled.
const REPORT: Duration = Duration::from_secs(60);

impl Profile {
    pub fn run(self, config: &Config) -> ExitCode {
        let Self { seconds, output } = self;
        let refused = |code: u8, error: &str| {
            eprintln!("gateway: {error}");
            code.into()
        };
        let unwritable = |error| {
            let error = format!("{}: {error}; --output names another file", output.display());
            refused(config::UNREADABLE, &error)
        };
        // Before the wait, and what is in the file stays until there is a profile.
        let is_new = !output.exists();
        if let Err(error) = File::options().append(true).create(true).open(&output) {
            return unwritable(error);
        }
        let request = Request::act(format!("/v1/profile?seconds={seconds}"))
            .answered_within(Duration::from_secs(seconds) + REPORT);
        let answer = socket(config)
            .and_then(|socket| control::fetch(socket, &request).map_err(|error| error.to_string()));
        if is_new && !matches!(answer, Ok(Ok(_))) {
            let _ = fs::remove_file(&output);
        }
        match answer {
            Ok(Ok(profile)) => match fs::write(&output, profile) {
                Ok(()) => {
                    println!("{} holds a profile: go tool pprof -top {0}", output.display());
                    ExitCode::SUCCESS
                }
                Err(error) => unwritable(error),
            },
            Ok(Err(refusal)) => refused(REFUSED, &refusal),
            Err(error) => refused(NOT_REACHED, &error),
        }
    }
}
