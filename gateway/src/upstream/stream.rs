//! One connection to an upstream: HTTP/1.1 as a client speaks it, over httparse.
//!
//! It has no task of its own: whoever holds the lease polls it, request and response in one step, so
//! a request costs no hand-over between tasks. It knows no pool and no timeout.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use tokio::net::TcpStream;

use super::arena::{Arena, BLOCK_BYTES};
use super::chunked::Step;
use super::outgoing::Outgoing;
use super::response::{self, Framing, Head};
use super::{Error, Malformed, Piece};
use crate::pipe::Pipe;

pub struct Stream<B> {
    socket: TcpStream,
    arena: Rc<Arena>,
    /// Read and not used yet.
    input: Bytes,
    outgoing: Option<Outgoing<B>>,
    framing: Framing,
    /// As far as the response's head says.
    keep_alive: bool,
    /// A byte of a response has come since the request was begun.
    answered: bool,
    /// Of the response under way.
    interim_bytes: usize,
}

/// Interim responses wait for the client in memory.
const MAX_INTERIM_BYTES: usize = 64 * 1024;
/// Of a large body, what comes with the head is copied; a pipe may take the rest.
const HEAD_READ_BYTES: usize = 64 * 1024;

impl<B> Stream<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    pub fn new(socket: TcpStream, arena: Rc<Arena>) -> Self {
        Self {
            socket,
            arena,
            input: Bytes::new(),
            outgoing: None,
            framing: Framing::Length(0),
            keep_alive: true,
            answered: false,
            interim_bytes: 0,
        }
    }

    /// Puts the next request on the way; it moves while the response is polled.
    pub fn begin(&mut self, request: Outgoing<B>) {
        self.outgoing = Some(request);
        (self.answered, self.interim_bytes) = (false, 0);
    }

    /// Sends what the socket takes and looks for the response's head. `interim` gets the 1xx before it.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        interim: &mut impl FnMut(Vec<u8>),
    ) -> Poll<Result<Response<()>, Error<B::Error>>> {
        // An upstream may answer and close without reading on: its answer counts, not the failed write.
        let mut broken = match self.poll_outgoing(cx) {
            Err(Error::Io(error)) => Some(error),
            other => {
                other?;
                None
            }
        };
        let bodiless = self.outgoing.as_ref().is_some_and(|request| request.is_head);
        loop {
            match response::parse(&mut self.input, bodiless, &self.arena)? {
                Some(Head::Final { response, framing, keep_alive }) => {
                    self.trim_input();
                    (self.framing, self.keep_alive) = (framing, keep_alive);
                    return Poll::Ready(Ok(response));
                }
                Some(Head::Interim(head)) => {
                    self.interim_bytes += head.len();
                    if self.interim_bytes > MAX_INTERIM_BYTES {
                        return Poll::Ready(Err(Malformed("its interim responses pass 64 KiB").into()));
                    }
                    interim(head);
                }
                Some(Head::Continue) => {}
                None => match (self.poll_fill(HEAD_READ_BYTES, cx), broken.take()) {
                    (Poll::Pending, _) => return Poll::Pending,
                    (Poll::Ready(Ok(true)), _) => {}
                    (Poll::Ready(Ok(false) | Err(_)), Some(error)) | (Poll::Ready(Err(error)), None) => {
                        return Poll::Ready(Err(error.into()));
                    }
                    (Poll::Ready(Ok(false)), None) => return Poll::Ready(Err(Error::Closed)),
                },
            }
        }
    }

    /// The next piece of the response's body.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Piece<B::Error>> {
        match self.poll_outgoing(cx) {
            // What is being answered need not be read to its end.
            Err(Error::Io(_)) => self.keep_alive = false,
            Err(error) => return Poll::Ready(Some(Err(error))),
            Ok(()) => {}
        }
        loop {
            let step = match &mut self.framing {
                Framing::Length(0) => Step::End,
                Framing::Chunked(decoder) => match decoder.step(&mut self.input) {
                    Ok(step) => step,
                    Err(malformed) => return Poll::Ready(Some(Err(malformed.into()))),
                },
                Framing::Length(_) | Framing::UntilClose if self.input.is_empty() => Step::More,
                Framing::Length(left) => {
                    let taken = (*left).min(self.input.len() as u64);
                    *left -= taken;
                    Step::Data(self.input.split_to(taken as usize))
                }
                Framing::UntilClose => Step::Data(std::mem::take(&mut self.input)),
            };
            match step {
                Step::Data(data) => {
                    self.trim_input();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Step::Trailers(trailers) => {
                    self.trim_input();
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Step::End => {
                    self.trim_input();
                    return Poll::Ready(None);
                }
                Step::More => match ready!(self.poll_fill(BLOCK_BYTES, cx)) {
                    Ok(true) => {}
                    Ok(false) if self.framing == Framing::UntilClose => self.framing = Framing::Length(0),
                    Ok(false) => return Poll::Ready(Some(Err(Error::Cut))),
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                },
            }
        }
    }

    /// Bytes of the body that still have to be read and that nothing stands before: a pipe may take them.
    pub fn unread(&self) -> u64 {
        match &self.framing {
            Framing::Length(left) if self.input.is_empty() && self.is_sent() => *left,
            Framing::Length(_) | Framing::Chunked(_) | Framing::UntilClose => 0,
        }
    }

    /// Has `pipe`, which is empty, take in what has come of them; says how many.
    pub fn poll_move(
        &mut self,
        pipe: &mut Pipe,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, Error<B::Error>>> {
        let moved = ready!(pipe.poll_fill(&self.socket, self.unread(), cx))?;
        if let Framing::Length(left) = &mut self.framing {
            *left -= moved as u64;
        }
        Poll::Ready(if moved == 0 { Err(Error::Cut) } else { Ok(moved) })
    }

    pub fn is_end_stream(&self) -> bool {
        match &self.framing {
            Framing::Length(left) => *left == 0,
            Framing::Chunked(decoder) => decoder.is_end(),
            Framing::UntilClose => false,
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        match &self.framing {
            Framing::Length(left) => SizeHint::with_exact(*left),
            Framing::Chunked(_) | Framing::UntilClose => SizeHint::default(),
        }
    }

    /// Whether another request may follow: both messages are over, and both sides say so.
    pub fn is_between(&self) -> bool {
        self.keep_alive && self.is_end_stream() && self.input.is_empty() && self.is_sent()
    }

    fn is_sent(&self) -> bool {
        self.outgoing.as_ref().is_none_or(Outgoing::is_sent)
    }

    /// Alive and quiet. Asked of the socket and not of a poll, which a task that has used up its turn
    /// (tokio's cooperative budget) finds pending whatever the socket holds.
    pub fn is_quiet(&self) -> bool {
        matches!(self.socket.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether a byte of a response has come.
    pub fn answered(&self) -> bool {
        self.answered
    }

    pub fn can_rewind(&self, repeatable: bool) -> bool {
        self.outgoing.as_ref().is_some_and(|request| request.can_rewind(repeatable))
    }

    /// The request under way; the connection is of no more use then.
    pub fn take_request(&mut self) -> Option<Outgoing<B>> {
        self.outgoing.take()
    }

    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Result<(), Error<B::Error>> {
        match &mut self.outgoing {
            Some(request) if !request.is_sent() => match request.poll_send(&mut self.socket, cx) {
                Poll::Ready(sent) => sent,
                Poll::Pending => Ok(()),
            },
            Some(_) | None => Ok(()),
        }
    }

    /// Reads once, up to `most` bytes; false: the upstream sends no more.
    fn poll_fill(&mut self, most: usize, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let read = ready!(self.arena.poll_read(&mut self.socket, most, cx))?;
        let more = !read.is_empty();
        self.answered |= more;
        self.input = if self.input.is_empty() { read } else { [&self.input[..], &read].concat().into() };
        Poll::Ready(Ok(more))
    }

    /// An empty rest would hold the whole block behind it.
    fn trim_input(&mut self) {
        if self.input.is_empty() {
            self.input = Bytes::new();
        }
    }
}
