//! A request on its way up: its head as bytes, then its body as it comes from the client.

use std::io::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::Body;
use tokio::net::TcpStream;

use super::Error;
use super::hop::may_trail;
use crate::socket;

/// A first piece of a body up to this size goes out together with the head.
const JOINED_BYTES: usize = 16 * 1024;

pub struct Outgoing<B> {
    /// The head, and whatever else is to be written before `data`.
    buffer: Vec<u8>,
    written: usize,
    data: Bytes,
    body: B,
    chunked: bool,
    /// The request was a HEAD, whose response has no body.
    pub is_head: bool,
    /// A piece of the body has been taken.
    started: bool,
    ended: bool,
    /// A byte is with the socket.
    sent: bool,
    /// What it takes to send it again although its body has begun.
    kept: Option<Box<Kept>>,
}

/// A head, and the pieces of the body that came so far.
struct Kept {
    head: Vec<u8>,
    pieces: Vec<Piece>,
    /// Pieces sent in the try under way.
    next: usize,
    /// Bytes that may still be kept.
    room: usize,
    /// No more pieces come.
    whole: bool,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl<B> Outgoing<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// `head` is complete, its blank line included; `chunked`: it says that the body is.
    pub fn new(head: Vec<u8>, body: B, chunked: bool, is_head: bool) -> Self {
        let ended = body.is_end_stream() && !chunked;
        Self {
            buffer: head,
            written: 0,
            data: Bytes::new(),
            body,
            chunked,
            is_head,
            started: false,
            ended,
            sent: false,
            kept: None,
        }
    }

    /// Whether all of it is with the socket.
    pub fn is_sent(&self) -> bool {
        self.ended && self.written == self.buffer.len() && self.data.is_empty()
    }

    /// Keeps up to `max_bytes` of the body, so that it can be sent again; to be called before it is sent.
    pub fn keep(&mut self, max_bytes: usize) {
        let fits = self.body.size_hint().lower() <= max_bytes as u64;
        if !self.ended && max_bytes > 0 && fits {
            let head = self.buffer.clone();
            self.kept =
                Some(Box::new(Kept { head, pieces: Vec::new(), next: 0, room: max_bytes, whole: false }));
        }
    }

    /// Whether it can be as it was before a byte of it was sent: nothing was, or it is `repeatable` and
    /// its body is kept or there is none.
    pub fn can_rewind(&self, repeatable: bool) -> bool {
        !self.sent || repeatable && (self.kept.is_some() || self.ended && !self.started)
    }

    /// The request as it was before a byte of it was sent, if that can be had.
    pub fn rewound(mut self, repeatable: bool) -> Option<Self> {
        if !self.can_rewind(repeatable) {
            return None;
        }
        if let Some(kept) = self.kept.as_mut().filter(|_| self.started) {
            self.buffer.clone_from(&kept.head);
            (kept.next, self.data, self.started, self.ended) = (0, Bytes::new(), false, false);
        }
        (self.written, self.sent) = (0, false);
        Some(self)
    }

    /// Puts `host` in the place of the `Host` that the head begins with.
    pub fn rehost(&mut self, host: &[u8]) {
        for head in
            [Some(&mut self.buffer), self.kept.as_mut().map(|kept| &mut kept.head)].into_iter().flatten()
        {
            const FIELD: &[u8] = b"host: ";
            let line = memchr::memmem::find(head, b"\r\n").map_or(0, |end| end + 2);
            if !head[line..].starts_with(FIELD) {
                continue;
            }
            let start = line + FIELD.len();
            let end = memchr::memchr(b'\r', &head[start..]).map_or(head.len(), |end| start + end);
            if head[start..end] != *host {
                head.splice(start..end, host.iter().copied());
            }
        }
    }

    /// Writes what there is, until all is sent.
    pub fn poll_send(
        &mut self,
        socket: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error<B::Error>>> {
        loop {
            let written = self.written == self.buffer.len() && self.data.is_empty();
            // The first piece is asked for before the head has left, so that a small body goes with it.
            if !self.ended && (written || !self.started) {
                match self.poll_body(cx)? {
                    Poll::Pending if written => return Poll::Pending,
                    Poll::Pending | Poll::Ready(()) => {}
                }
            }
            if self.written < self.buffer.len() {
                let n = ready!(socket::poll_send(socket, cx, &self.buffer[self.written..]))?;
                self.written += n;
                self.sent = true;
            } else if !self.data.is_empty() {
                let n = ready!(socket::poll_send(socket, cx, &self.data))?;
                self.data.advance(n);
            } else if self.ended {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Takes the body's next piece.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error<B::Error>>> {
        let piece = ready!(self.poll_piece(cx))?;
        self.started = true;
        if self.written == self.buffer.len() {
            self.buffer.clear();
            self.written = 0;
        }
        match piece {
            Some(Piece::Data(data)) => self.queue(data),
            Some(Piece::Trailers(trailers)) => self.end(Some(trailers)),
            None => self.end(None),
        }
        Poll::Ready(Ok(()))
    }

    /// The next piece of the body; one that is kept from an earlier try first.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, Error<B::Error>>> {
        if let Some(kept) = &mut self.kept {
            if let Some(piece) = kept.pieces.get(kept.next) {
                kept.next += 1;
                return Poll::Ready(Ok(Some(piece.clone())));
            }
            if kept.whole {
                return Poll::Ready(Ok(None));
            }
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose().map_err(Error::Request)?;
        let piece = frame.and_then(|frame| match frame.into_data() {
            Ok(data) => Some(Piece::Data(data)),
            Err(frame) => frame.into_trailers().ok().map(Piece::Trailers),
        });
        self.remember(piece.as_ref());
        Poll::Ready(Ok(piece))
    }

    fn remember(&mut self, piece: Option<&Piece>) {
        let Some(kept) = &mut self.kept else { return };
        let Some(piece) = piece else {
            kept.whole = true;
            return;
        };
        let room = match piece {
            Piece::Data(data) => kept.room.checked_sub(data.len()),
            Piece::Trailers(_) => Some(kept.room),
        };
        let Some(room) = room else {
            self.kept = None;
            return;
        };
        kept.room = room;
        kept.pieces.push(piece.clone());
        kept.next += 1;
    }

    /// Whether the body has no more pieces, as far as its length tells.
    fn is_last(&self) -> bool {
        let pending = self.kept.as_ref().is_some_and(|kept| kept.next < kept.pieces.len());
        !pending && self.body.is_end_stream()
    }

    fn queue(&mut self, data: Bytes) {
        if self.chunked {
            if !data.is_empty() {
                write(&mut self.buffer, format_args!("{:x}\r\n", data.len()));
                self.buffer.extend_from_slice(&data);
                self.buffer.extend_from_slice(b"\r\n");
            }
        } else if data.len() <= JOINED_BYTES && !self.buffer.is_empty() {
            self.buffer.extend_from_slice(&data);
        } else {
            self.data = data;
        }
        // With a length the last piece is known to be the last; trailers can only follow chunks.
        self.ended = !self.chunked && self.is_last();
    }

    fn end(&mut self, trailers: Option<HeaderMap>) {
        self.ended = true;
        if self.chunked {
            self.buffer.extend_from_slice(b"0\r\n");
            for (name, value) in trailers.iter().flatten().filter(|(name, _)| may_trail(name.as_str())) {
                self.buffer.extend_from_slice(name.as_str().as_bytes());
                self.buffer.extend_from_slice(b": ");
                self.buffer.extend_from_slice(value.as_bytes());
                self.buffer.extend_from_slice(b"\r\n");
            }
            self.buffer.extend_from_slice(b"\r\n");
        }
    }
}

fn write(buffer: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    buffer.write_fmt(text).expect("a Vec takes everything");
}
