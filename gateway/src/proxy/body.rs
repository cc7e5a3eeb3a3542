//! The bodies of both directions: what goes upstream, what goes downstream.
//!
//! Bytes pass through as they come; nothing is collected. An upstream body moves its own connection
//! while it is read, and gives it back at its end; a stored one is handed out in the pieces it lies in.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::client::Client;
use super::exchange::Exchange;
use super::headers::Announced;
use crate::cache::entry::Pieces;
use crate::cache::flight::{Piece, Reader};
use crate::metrics::{Cause, Outcome};
use crate::pipe::Pipe;
use crate::upstream;

pub type Lease = upstream::Lease<RequestBody>;
pub type Pool = upstream::Pool<RequestBody>;
pub type Request = upstream::Outgoing<RequestBody>;

/// A request's body on its way upstream.
pub enum RequestBody {
    Empty,
    Incoming { body: Incoming, client: Rc<Client> },
}

impl RequestBody {
    /// Wraps what the client sends, so that its end is noticed; `None`: that is nothing.
    pub fn new(body: Option<Incoming>, client: &Rc<Client>) -> Self {
        let Some(body) = body.filter(|body| !body.is_end_stream()) else {
            client.request_ended();
            return Self::Empty;
        };
        client.starved.set(false);
        client.body_left.set(body.size_hint().exact().unwrap_or(0));
        Self::Incoming { body, client: client.clone() }
    }

    /// How its end is to be made known upstream.
    pub fn announced(&self) -> Announced {
        match self {
            Self::Empty => Announced::Nothing,
            Self::Incoming { body, .. } => {
                body.size_hint().exact().map_or(Announced::Chunked, Announced::Length)
            }
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Incoming { body, client } => {
                let polled = Pin::new(&mut *body).poll_frame(cx);
                client.starved.set(polled.is_pending());
                let frame = ready!(polled);
                if let Some(Ok(frame)) = &frame {
                    let taken = frame.data_ref().map_or(0, |data| data.len() as u64);
                    client.body_left.set(client.body_left.get().saturating_sub(taken));
                }
                let ended = frame.as_ref().is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers));
                if ended || body.is_end_stream() {
                    client.request_ended();
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Incoming { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Incoming { body, .. } => body.size_hint(),
        }
    }
}

/// A response's body on its way downstream, with the account of its exchange.
pub struct Body {
    source: Source,
    exchange: Exchange,
}

/// Where the bytes come from.
pub enum Source {
    /// Made here.
    Full(Option<Bytes>),
    Upstream(Lease),
    Stored(Stored),
    /// A fetch that others may read too.
    Followed {
        reader: Reader,
        /// What is still to come, where that is known.
        left: Option<u64>,
    },
}

/// What is left of a stored body, or of a part of it.
pub struct Stored {
    pieces: Pieces,
    next: usize,
    /// Bytes of the next piece that lie before the part.
    skip: u64,
    left: u64,
}

impl Stored {
    /// `part` lies within the body.
    pub fn new(pieces: Pieces, part: Range<u64>) -> Self {
        let (mut next, mut skip) = (0, part.start);
        while let Some(piece) = pieces.get(next)
            && skip >= piece.len() as u64
        {
            skip -= piece.len() as u64;
            next += 1;
        }
        Self { pieces, next, skip, left: part.end - part.start }
    }

    fn next(&mut self) -> Option<Bytes> {
        let piece = self.pieces.get(self.next).filter(|_| self.left > 0)?;
        let start = std::mem::take(&mut self.skip) as usize;
        let end = piece.len().min(start.saturating_add(usize::try_from(self.left).unwrap_or(usize::MAX)));
        self.next += 1;
        self.left -= (end - start) as u64;
        Some(piece.slice(start..end))
    }
}

impl Source {
    /// Whether the head came from upstream just now, and for this request alone.
    pub fn is_upstream(&self) -> bool {
        matches!(self, Self::Upstream(_))
    }
}

impl Body {
    pub fn full(bytes: Bytes, exchange: Exchange) -> Self {
        let bytes = (!bytes.is_empty()).then_some(bytes);
        Self { source: Source::Full(bytes), exchange }
    }

    /// Passes on what `source` still holds. Without a body, a connection upstream is given back at once.
    pub fn new(source: Source, exchange: Exchange) -> Self {
        let mut this = Self { source, exchange };
        if this.is_end_stream() {
            this.end();
        }
        this
    }

    /// Bytes of it that [`Self::poll_move`] can have a pipe take.
    pub fn unread(&self) -> u64 {
        match &self.source {
            Source::Upstream(lease) => lease.unread(),
            Source::Full(_) | Source::Stored(_) | Source::Followed { .. } => 0,
        }
    }

    /// Has `pipe` take in the next bytes of it; says how many. 0: it is over.
    pub fn poll_move(
        &mut self,
        pipe: &mut Pipe,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, upstream::Error<hyper::Error>>> {
        let Source::Upstream(lease) = &mut self.source else { return Poll::Ready(Ok(0)) };
        let moved = ready!(lease.poll_move(pipe, cx));
        match &moved {
            Ok(moved) => self.took(*moved),
            Err(error) => self.broke_off(error),
        }
        Poll::Ready(moved)
    }

    /// So many bytes of it have been taken, by whoever sends them.
    fn took(&mut self, bytes: usize) {
        self.exchange.sent(bytes);
        if self.is_end_stream() {
            self.end();
        }
    }

    fn broke_off(&mut self, error: &upstream::Error<hyper::Error>) {
        // It counts as an abort, which it is until it ends otherwise.
        if !matches!(error, upstream::Error::Request(_)) {
            self.exchange.fail(Outcome::UpstreamFailed);
        }
    }

    fn end(&mut self) {
        if let Source::Upstream(lease) = &mut self.source {
            lease.release(self.exchange.client().timer.now());
        }
        self.exchange.complete();
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if self.exchange.client().let_down.get()
            && let Source::Upstream(lease) = &mut self.source
        {
            lease.fail(Cause::BodyTimeout);
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = upstream::Error<hyper::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Full(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Upstream(lease) => ready!(lease.poll_frame(cx)),
            Source::Stored(stored) => stored.next().map(|bytes| Ok(Frame::data(bytes))),
            Source::Followed { reader, left } => match ready!(reader.poll_piece(cx)) {
                Piece::Data(bytes) => {
                    *left = left.map(|left| left.saturating_sub(bytes.len() as u64));
                    Some(Ok(Frame::data(bytes)))
                }
                Piece::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
                Piece::End => None,
                Piece::Broken => Some(Err(upstream::Error::Io(io::Error::other("the response broke off")))),
            },
        };
        match &frame {
            Some(Ok(frame)) => this.took(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(error)) => this.broke_off(error),
            None => this.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Full(bytes) => bytes.is_none(),
            Source::Upstream(lease) => lease.is_end_stream(),
            Source::Stored(stored) => stored.left == 0,
            // hyper reads no further than the length it has announced.
            Source::Followed { left, .. } => *left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Upstream(lease) => lease.size_hint(),
            Source::Stored(stored) => SizeHint::with_exact(stored.left),
            Source::Followed { left, .. } => left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
