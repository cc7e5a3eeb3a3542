//! A binary upgrade: the running gateway hands its sockets and the kernel half to the one that is to follow it.
//!
//! The successor asks at the control socket, starts with what it is given, and says when it is ready; only then
//! does the predecessor drain. If it does not say so in time, the predecessor goes on as if nobody had asked, and says
//! that: whoever is ready too late leaves. `server` holds both ends.

mod wire;

use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control;
use crate::datapath::{Bequest, Piece as KernelPiece};

/// How long a successor may take from its request until it is ready.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long either end waits for what the other has at hand.
const AT_HAND: Duration = Duration::from_secs(10);

/// What the descriptors are that follow it, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// As the configuration has it.
    listen: String,
    metrics: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admin: Option<String>,
    /// What the bytes in the kernel half's maps mean.
    contract: String,
    pieces: Vec<Piece>,
    /// Names of endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    drained: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Piece {
    /// A worker's.
    Listener,
    Metrics,
    Admin,
    Control,
    Kernel(KernelPiece),
}

/// The answer: a line of JSON, with the descriptors behind it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    HandedOver(Manifest),
    Refused(String),
}

/// The predecessor's last word.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Followed,
    GoesOn,
}

/// What the predecessor has to give.
pub struct Estate<'a> {
    pub listen: String,
    pub listeners: Vec<BorrowedFd<'a>>,
    pub metrics: (String, BorrowedFd<'a>),
    pub admin: Option<(String, BorrowedFd<'a>)>,
    pub control: Option<BorrowedFd<'a>>,
    pub kernel: Option<Bequest>,
    /// Names of endpoints.
    pub drained: Vec<String>,
}

/// What the successor was given. Each part is there for who takes it; the rest closes.
#[derive(Default)]
pub struct Inheritance {
    listen: String,
    metrics_at: String,
    admin_at: Option<String>,
    pub listeners: Vec<TcpListener>,
    /// One at most.
    pub metrics: Vec<TcpListener>,
    /// One at most.
    pub admin: Vec<TcpListener>,
    pub control: Option<UnixListener>,
    pub kernel: Option<Bequest>,
    pub drained: Vec<String>,
}

/// The successor's word to its predecessor.
pub struct Predecessor(UnixStream);

/// Why there is nothing to take over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("--upgrade: the configuration has no control.socket, by which the running gateway is asked")]
    NoSocket,
    #[error("--upgrade: {0}")]
    Ask(#[from] control::AskError),
    #[error("--upgrade: the running gateway refuses: {0}")]
    Refused(String),
    #[error("--upgrade: the running gateway has broken off: {0}")]
    BrokenOff(io::Error),
    #[error(
        "--upgrade: the running gateway goes on, and this one leaves: it was not ready within {} s, or not understood; \
         see what took it so long, and start it again",
        PATIENCE.as_secs()
    )]
    GoesOn,
}

/// Asks the gateway behind `socket` for all it has.
///
/// # Errors
/// Nobody answers there, or not like a gateway that can hand over.
pub fn ask(socket: &Path) -> Result<(Inheritance, Predecessor), Error> {
    let (reply, stream) = control::converse(socket, &control::HAND_OVER)?;
    let manifest = match reply {
        Reply::HandedOver(manifest) => manifest,
        Reply::Refused(reason) => return Err(Error::Refused(reason)),
    };
    stream.set_read_timeout(Some(AT_HAND)).map_err(Error::BrokenOff)?;
    let descriptors = wire::receive(&stream, manifest.pieces.len()).map_err(Error::BrokenOff)?;
    Ok((manifest.sort(descriptors), Predecessor(stream)))
}

impl Manifest {
    fn sort(self, descriptors: Vec<OwnedFd>) -> Inheritance {
        let (listen, metrics_at, admin_at, drained) = (self.listen, self.metrics, self.admin, self.drained);
        let mut heir = Inheritance { listen, metrics_at, admin_at, drained, ..Inheritance::default() };
        let mut kernel = Bequest::new(self.contract);
        for (piece, descriptor) in self.pieces.into_iter().zip(descriptors) {
            match piece {
                Piece::Listener => heir.listeners.push(descriptor.into()),
                Piece::Metrics => heir.metrics.push(descriptor.into()),
                Piece::Admin => heir.admin.push(descriptor.into()),
                Piece::Control => heir.control = Some(descriptor.into()),
                Piece::Kernel(piece) => kernel.push(piece, descriptor),
            }
        }
        heir.kernel = (!kernel.is_empty()).then_some(kernel);
        heir
    }
}

impl Inheritance {
    /// Keeps the sockets that stand where they are wanted.
    pub fn at(mut self, listen: impl Display, metrics: impl Display, admin: Option<impl Display>) -> Self {
        if self.listen != listen.to_string() {
            self.listeners.clear();
        }
        if self.metrics_at != metrics.to_string() {
            self.metrics.clear();
        }
        if self.admin_at != admin.map(|admin| admin.to_string()) {
            self.admin.clear();
        }
        self
    }
}

impl Predecessor {
    /// Says that everything runs. `listeners`: how many of the sockets were taken; the others are the
    /// predecessor's to empty.
    ///
    /// # Errors
    /// The predecessor goes on, so that nobody else may. One that has ended, or stands still, does not.
    pub fn follow(mut self, listeners: usize) -> Result<(), Error> {
        // What it said before it closed can be read even where this can be written no more.
        let said = writeln!(self.0, "{}", serde_json::json!({ "ready": listeners }));
        let mut line = String::new();
        let heard = BufReader::new(&self.0).read_line(&mut line);
        match serde_json::from_str(&line) {
            Ok(Word::Followed) => {}
            Ok(Word::GoesOn) => return Err(Error::GoesOn),
            Err(_) => {
                let error = said.and(heard.map(drop)).err();
                let error = error.map(tracing::field::display);
                tracing::warn!(
                    error,
                    "the gateway before this one has gone, or stands still, without a word"
                );
                // Should it go on one day, it has to find somebody to say it to: else it takes this one for dead.
                let _ = self.0.into_raw_fd();
            }
        }
        Ok(())
    }
}

impl Estate<'_> {
    /// Hands everything over.
    ///
    /// # Errors
    /// The successor has given up.
    pub fn hand_over(self, mut stream: UnixStream) -> io::Result<Successor> {
        stream.set_write_timeout(Some(AT_HAND))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut descriptors = self.listeners.clone();
        let mut pieces = vec![Piece::Listener; descriptors.len()];
        descriptors.push(self.metrics.1);
        pieces.push(Piece::Metrics);
        let (admin, descriptor) = self.admin.unzip();
        descriptors.extend(descriptor);
        pieces.extend(descriptor.map(|_| Piece::Admin));
        descriptors.extend(self.control);
        pieces.extend(self.control.map(|_| Piece::Control));
        let kernel = self.kernel.unwrap_or_default();
        for (piece, descriptor) in kernel.pieces() {
            pieces.push(Piece::Kernel(piece.clone()));
            descriptors.push(descriptor.as_fd());
        }
        let manifest = Manifest {
            listen: self.listen,
            metrics: self.metrics.0,
            admin,
            contract: kernel.contract().to_owned(),
            pieces,
            drained: self.drained,
        };
        let reply = serde_json::to_string(&Reply::HandedOver(manifest))?;
        writeln!(stream, "{reply}")?;
        wire::send(&stream, &descriptors)?;
        Ok(Successor(stream))
    }
}

/// The predecessor's end, once everything is handed over.
pub struct Successor(UnixStream);

impl Successor {
    /// Waits until the successor is ready; says how many listeners it has taken. From here on one of the two serves,
    /// and both know which.
    ///
    /// # Errors
    /// It has ended, or is not ready in time.
    pub fn wait(mut self) -> io::Result<usize> {
        let ready = self.hear();
        let word = if ready.is_ok() { Word::Followed } else { Word::GoesOn };
        let told = writeln!(self.0, "{}", serde_json::to_string(&word)?);
        ready.and_then(|listeners| told.map(|()| listeners))
    }

    fn hear(&self) -> io::Result<usize> {
        #[derive(Deserialize)]
        struct Ready {
            ready: usize,
        }
        let mut line = String::new();
        if BufReader::new(&self.0).read_line(&mut line)? == 0 {
            return Err(io::Error::other("it has ended before it was ready"));
        }
        Ok(serde_json::from_str::<Ready>(&line)?.ready)
    }
}
