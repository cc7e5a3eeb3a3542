//! The report of a run: JSON for programs, Markdown for people, a plot for each scenario, the project's claims.
//!
//! It reads results and writes text; it measures nothing.

mod claims;
mod json;
mod markdown;
mod plot;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::machine::Machine;
use crate::side_by_side::Results;
use crate::system::System;

/// What is written beside the figures; `S` is what kind of systems were measured.
#[derive(Serialize)]
pub struct Provenance<S = System> {
    pub command: String,
    /// Seconds since 1970.
    pub unix_time: u64,
    /// The tree that the bench was built from.
    pub revision: String,
    pub versions: BTreeMap<S, String>,
    /// Systems that are not installed here.
    pub missing: Vec<S>,
    pub machine: Machine,
    pub rounds: usize,
    pub seconds: f64,
}

/// Writes everything into `folder`, named after when the run ended; returns the files and the Markdown.
///
/// # Errors
/// The first file that cannot be written.
pub fn write(
    folder: &Path,
    provenance: &Provenance,
    results: &Results,
) -> io::Result<(Vec<PathBuf>, String)> {
    std::fs::create_dir_all(folder)?;
    let name = provenance.unix_time.to_string();
    let text = markdown::render(provenance, results);
    let json = serde_json::to_string_pretty(&json::render(provenance, results))?;
    let mut files = vec![folder.join(format!("{name}.json")), folder.join(format!("{name}.md"))];
    std::fs::write(&files[0], json)?;
    std::fs::write(&files[1], &text)?;
    for rounds in &results.scenarios {
        if let Some(svg) = plot::render(rounds) {
            let path = folder.join(format!("{name}-{}.svg", rounds.scenario.name));
            std::fs::write(&path, svg)?;
            files.push(path);
        }
    }
    Ok((files, text))
}
