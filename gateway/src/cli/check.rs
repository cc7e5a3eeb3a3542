//! `gateway check`: what a configuration says, and what is wrong with it. It asks no gateway.
//!
//! Exit codes are those of a start with that file.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::config::{self, Config, Error, Fault, Reading};

#[derive(Args)]
pub struct Check {
    /// Show the configuration with every default filled in, as a file that says the same.
    #[arg(long)]
    print: bool,
    /// Answer with one JSON document.
    #[arg(long)]
    json: bool,
}

impl Check {
    pub fn run(self, file: &Path) -> ExitCode {
        let read = config::examine(file);
        if self.json {
            println!("{:#}", document(&read, self.print));
        } else {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            eprint!("{}", report(&read, colours));
            if let Ok(reading) = &read {
                match self.print {
                    true => println!("{:#}", reading.effective),
                    false => {
                        println!("{}: valid, {} routes", file.display(), reading.value.routes.len());
                    }
                }
            }
        }
        read.map_or_else(|error| error.exit_code().into(), |_| ExitCode::SUCCESS)
    }
}

fn document(read: &Result<Reading<Config>, Error>, print: bool) -> Value {
    let entries = |faults: &[Fault]| -> Value { faults.iter().map(entry).collect() };
    match read {
        Ok(reading) => {
            let mut document = json!({ "valid": true, "faults": [], "warnings": entries(&reading.warnings) });
            if print {
                document["effective"] = reading.effective.clone();
            }
            document
        }
        Err(Error::Invalid { faults, .. }) => {
            json!({ "valid": false, "faults": entries(faults), "warnings": [] })
        }
        Err(error @ Error::Unreadable { .. }) => json!({ "valid": false, "error": error.to_string() }),
    }
}

fn entry(fault: &Fault) -> Value {
    let Fault { file, line, column, key, message, excerpt: _ } = fault;
    json!({ "file": file.to_string_lossy(), "line": line, "column": column, "key": key, "message": message })
}

/// What is to be said to people; empty where all is well.
fn report(read: &Result<Reading<Config>, Error>, colours: bool) -> String {
    match read {
        Ok(reading) => {
            let warnings = reading.warnings.iter();
            warnings.map(|warning| lines("warning: ", warning, colours)).collect()
        }
        Err(Error::Invalid { faults, .. }) => faults.iter().map(|fault| lines("", fault, colours)).collect(),
        Err(error @ Error::Unreadable { .. }) => format!("{error}\n"),
    }
}

/// The fault's line, that of the file where it stands, and a caret under the place.
fn lines(kind: &str, fault: &Fault, colours: bool) -> String {
    let (colour, reset) = match (colours, kind) {
        (false, _) => ("", ""),
        (true, "") => ("\x1b[31m", "\x1b[0m"),
        (true, _) => ("\x1b[33m", "\x1b[0m"),
    };
    let Fault { file, line, column, key, message, excerpt } = fault;
    let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
    let (number, text) = (line.to_string(), &excerpt.text);
    let margin = " ".repeat(number.len());
    let before = " ".repeat(excerpt.before);
    format!(
        "{}:{line}:{column}: {colour}{kind}{key}{message}{reset}\n {number} | {text}\n {margin} | {before}{colour}^{reset}\n",
        file.display()
    )
}
