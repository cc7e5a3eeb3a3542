//! What is wrong with a configuration file: one line a fault, in the `file:line:column:` form editors follow.
//!
//! `file` and `document` raise it; `main` picks the exit code by variant and a reload logs it.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why there is no [`Config`](super::Config).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: cannot be read: {source}{}", .file.display(), advice(.source))]
    Unreadable { file: PathBuf, source: io::Error },
    /// At least one fault, in the order of the text.
    #[error("{}", lines(.faults))]
    Invalid { faults: Vec<Fault> },
}

/// Exit codes of whoever was to read it.
pub const INVALID: u8 = 1;
pub const UNREADABLE: u8 = 2;

impl Error {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Invalid { .. } => INVALID,
            Self::Unreadable { .. } => UNREADABLE,
        }
    }
}

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Such as `routes[0].backend`; empty for the document as a whole.
    pub key: String,
    /// What is wrong and what to do.
    pub message: String,
    pub excerpt: Excerpt,
}

/// The line where a fault stands, as much of it as a terminal shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// Without tabs and what else moves a cursor.
    pub text: String,
    /// Characters of `text` before the fault.
    pub before: usize,
}

impl Excerpt {
    pub(super) fn of(text: &str, offset: usize) -> Self {
        const BEFORE_CHARS: usize = 60;
        const AFTER_CHARS: usize = 40;
        let same_line = |c: &char| *c != '\n';
        let shown = |c: char| if c.is_control() { ' ' } else { c };
        let before = text[..offset].chars().rev().take_while(same_line).take(BEFORE_CHARS);
        let after = text[offset..].chars().take_while(same_line).take(AFTER_CHARS);
        let mut line: Vec<char> = before.collect();
        line.reverse();
        let before = line.len();
        line.extend(after);
        let text: String = line.into_iter().map(shown).collect();
        Self { text: text.trim_end().to_owned(), before }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file.display(), self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

fn lines(faults: &[Fault]) -> String {
    let lines: Vec<_> = faults.iter().map(|fault| fault.to_string()).collect();
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
