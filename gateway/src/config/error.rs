//! What is wrong with a configuration file: one line a fault, in the `file:line:column:` form editors follow.
//!
//! `file` and `document` raise it; `main` picks the exit code by variant and a reload logs it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no [`Config`](super::Config).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: cannot be read: {source}{}", .file.display(), advice(.source))]
    Unreadable { file: PathBuf, source: io::Error },
    /// At least one fault, in the order of the text.
    #[error("{}", lines(.file, .faults))]
    Invalid { file: PathBuf, faults: Vec<Fault> },
}

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Such as `routes[0].backend`; empty for the document as a whole.
    pub key: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

fn lines(file: &Path, faults: &[Fault]) -> String {
    let lines: Vec<_> = faults.iter().map(|fault| format!("{}:{fault}", file.display())).collect();
    lines.join("\n")
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => ": give the path of an existing file with --config",
        io::ErrorKind::PermissionDenied => ": make it readable for the user who runs the gateway",
        io::ErrorKind::IsADirectory => ": give a file with --config, not a folder",
        _ => "",
    }
}
