//! What the command line may ask a running gateway, and what it is told: one line of JSON each way over a
//! Unix socket that only its owner may open.
//!
//! `serve` is the gateway's end; the verbs of `cli` are the other. Times are seconds of the Unix clock.

pub mod explain;
mod serve;

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use explain::Explanation;
pub use serve::{BindError, Control, Socket};

use crate::lists::{Entry, List};

/// What is asked for. As JSON: `{"explain": {"source": "203.0.113.7"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Explain {
        source: IpAddr,
    },
    /// Puts a network on a list, or changes what is known of it there.
    Add {
        list: List,
        network: IpNet,
        /// For so long; unset: for good.
        seconds: Option<u64>,
        reason: Option<String>,
        /// Count what it meets, and do nothing.
        #[serde(default)]
        trial: bool,
    },
    /// Takes a network off a list.
    Del {
        list: List,
        network: IpNet,
    },
    /// Everything on a list, the configuration's part included.
    List {
        list: List,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Explanation(Box<Explanation>),
    Entries(Vec<Listed>),
    /// It is done; `note`: what it does not do.
    Done {
        message: String,
        note: Option<String>,
    },
    /// It is not done, and this is why.
    Refused(String),
}

/// A network on a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub network: IpNet,
    /// `None`: it stands in the configuration.
    pub entry: Option<Entry>,
    /// That it has met; `None`: the kernel half does not run.
    pub packets: Option<u64>,
}

/// The request of a gateway that is to follow this one; `handover` has what comes then.
pub const HAND_OVER: &str = "hand_over";
/// Longest line of a request.
const MAX_REQUEST_BYTES: usize = 4096;
/// Longest reason for an entry.
pub const MAX_REASON_BYTES: usize = 200;
/// How long either end waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no gateway answers at {}: {source}{}", .socket.display(), advice(.source))]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("what answers at {} is no gateway of this version: {source}", .socket.display())]
    Nonsense { socket: PathBuf, source: serde_json::Error },
}

/// Asks the gateway behind `socket`.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer, AskError> {
    converse(socket, request).map(|(answer, _)| answer)
}

/// Asks for something and keeps the connection: what follows is between the two.
pub(crate) fn converse<A: DeserializeOwned>(
    socket: &Path,
    request: &impl Serialize,
) -> Result<(A, UnixStream), AskError> {
    let exchange = || -> io::Result<(String, UnixStream)> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_string(request).expect("it has string keys and numbers only");
        line.push('\n');
        stream.write_all(line.as_bytes())?;
        let answer = read_line(&stream)?;
        if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok((answer, stream)) }
    };
    let (answer, stream) =
        exchange().map_err(|source| AskError::Unreachable { socket: socket.to_owned(), source })?;
    let understood = serde_json::from_str(&answer);
    let answer = understood.map_err(|source| AskError::Nonsense { socket: socket.to_owned(), source })?;
    Ok((answer, stream))
}

/// Byte by byte: what comes behind the line may carry descriptors, which a buffer would lose.
fn read_line(mut stream: &UnixStream) -> io::Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    String::from_utf8(line).map_err(io::Error::other)
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "; is it running, with this `control.socket` in its configuration?"
        }
        io::ErrorKind::PermissionDenied => "; ask as the user who started it",
        io::ErrorKind::WouldBlock => "; it is stopped, or too busy to answer",
        _ => "",
    }
}
