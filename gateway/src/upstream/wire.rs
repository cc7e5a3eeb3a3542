//! The bytes of an upstream connection, as hyper's client reads and writes them.
//!
//! It hands every read of a response's beginning to the interim scan and changes nothing.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::interim::Scan;

/// What the pool knows of a connection whose socket hyper owns.
#[derive(Default)]
pub struct Watch {
    scan: RefCell<Scan>,
    interim: RefCell<Vec<u8>>,
    answered: Cell<bool>,
    sent: RefCell<Sent>,
}

/// The bytes of the request under way, kept while it may have to be repeated.
#[derive(Default)]
struct Sent {
    keep: bool,
    bytes: Vec<u8>,
    /// How many of them the socket took; the rest were offered to it.
    taken: usize,
}

impl Watch {
    /// A request is about to be sent; `keep`: its bytes may be asked for.
    pub fn expect_response(&self, keep: bool) {
        self.scan.borrow_mut().restart();
        self.answered.set(false);
        let mut sent = self.sent.borrow_mut();
        (sent.keep, sent.taken) = (keep, 0);
        sent.bytes.clear();
    }

    /// The request as hyper wrote it. A copy of the bytes costs a tenth of a copy of the fields.
    pub fn sent(&self) -> Vec<u8> {
        self.sent.borrow().bytes.clone()
    }

    /// Whether any byte has come back since.
    pub fn answered(&self) -> bool {
        self.answered.get()
    }

    /// Interim responses that have come since the last call, ready to be sent downstream.
    pub fn take_interim(&self) -> Option<Vec<u8>> {
        let mut interim = self.interim.borrow_mut();
        (!interim.is_empty()).then(|| std::mem::take(&mut *interim))
    }

    fn saw(&self, bytes: &[u8]) {
        self.answered.set(true);
        let mut scan = self.scan.borrow_mut();
        if !scan.is_done() {
            scan.feed(bytes, |head| self.interim.borrow_mut().extend_from_slice(&head));
        }
    }
}

pub struct Wire {
    pub stream: TcpStream,
    pub watch: Rc<Watch>,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let new = &buf.filled()[before..];
        if !new.is_empty() {
            self.watch.saw(new);
        }
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, watch } = &mut *self;
        let mut sent = watch.sent.borrow_mut();
        let polled = Pin::new(stream).poll_write(cx, buf);
        if sent.keep {
            let taken = sent.taken;
            sent.bytes.truncate(taken);
            sent.bytes.extend_from_slice(buf);
            if let Poll::Ready(Ok(n)) = polled {
                sent.taken += n;
            }
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
