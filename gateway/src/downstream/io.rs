//! A client's socket, as hyper reads and writes it and as the connection's task looks at it.
//!
//! It sees the raw bytes, and four things happen here because they happen nowhere else: a head
//! framed twice is noted, a reset while nothing is read is noticed (an end of input is no abort),
//! interim responses go out before the final one, and hyper's own refusal of a malformed head is
//! held back so that the gateway's can take its place.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::framing::Framing;
use super::ranks::Place;
use crate::pipe::{Pipe, Pipes};
use crate::proxy::client::{Client, MAX_QUOTED, Phase};
use crate::socket;
use crate::timer::Tick;

/// What a client speaks through.
enum Stream {
    Tcp(TcpStream),
}

/// Up to this size head and body are copied together and go out in one `send`, which costs less than
/// `writev`; above it, copying costs more.
const FLAT_BYTES: usize = 4 * 1024;

/// Longer heads are hyper's to read.
const HEAD_BYTES: usize = 8 * 1024;

/// Shorter heads than a quarter of this lie in blocks of it together. A block lives as long as a connection has one of its
/// heads as the last, so it is no larger than the head that somebody could have sent.
const BLOCK_BYTES: usize = 4 * 1024;

/// What a worker's connections use in turn, and none keeps: where small answers are put together, and where heads are
/// read into.
#[derive(Default)]
pub struct Scratch {
    answer: RefCell<Vec<u8>>,
    head: RefCell<Vec<u8>>,
    /// Where heads lie until the next of their connections': the same memory again where nobody holds a part of it.
    block: RefCell<BytesMut>,
    pub pipes: Pipes,
}

pub struct Io {
    pub client: Rc<Client>,
    stream: RefCell<Stream>,
    pub scratch: Rc<Scratch>,
    framing: RefCell<Framing>,
    /// Read, but by nobody who used it: to be read again.
    unread: RefCell<Bytes>,
    /// It has not been looked at either.
    unseen: Cell<bool>,
    /// hyper's own refusal, not written.
    held: Cell<Option<&'static [u8]>>,
    /// The client sends no more.
    pub ended: Cell<bool>,
    /// Bytes or an end wait in the socket: what comes behind them is not seen before they are read.
    ahead: Cell<bool>,
    /// The client does not read: the last write found the socket full.
    pub blocked: Cell<bool>,
    /// When a byte last moved in either direction.
    pub moved: Cell<Tick>,
    /// How many have.
    pub bytes: Cell<u64>,
    /// Since when the client has been waited for, and how many had moved then.
    pub awaited: Cell<Option<(Tick, u64)>>,
    /// Its place in the worker's crowd, the requests it had had when that was last looked at, and whether it is to
    /// make room for another.
    pub place: Cell<Place>,
    pub requests_seen: Cell<u32>,
    pub evicted: Cell<bool>,
    /// The most bytes of a body that hyper has read and not given to the body's reader.
    pub hyper_holds: Cell<u64>,
    /// Read from since the warm set last looked.
    pub used: Cell<bool>,
    /// The warm set asks for this connection's buffers.
    pub park: Cell<bool>,
}

/// What was read for somebody who looks at heads himself.
pub enum Came {
    /// The client sends no more.
    End,
    /// A head that he has taken in, and this behind it.
    Whole(Bytes),
    /// All of it is his to look at.
    Bytes(Bytes),
}

/// hyper's side of an [`Io`].
pub struct Half(pub Rc<Io>);

/// Exactly what hyper writes by itself, without a date, and the status in it.
const REFUSALS: [(&[u8], u16); 3] = [
    (b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", 400),
    (b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", 431),
    (b"HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", 414),
];

impl Scratch {
    /// With so many pipes at most.
    pub fn with(pipes: usize) -> Self {
        Self { pipes: Pipes::at_most(pipes), ..Self::default() }
    }

    /// A head, or a part of one, for as long as somebody needs it.
    pub fn keep(&self, head: &[u8]) -> Bytes {
        if head.len() > BLOCK_BYTES / 4 {
            return Bytes::copy_from_slice(head);
        }
        let mut block = self.block.borrow_mut();
        if !block.try_reclaim(BLOCK_BYTES) && block.capacity() < head.len() {
            block.reserve(BLOCK_BYTES);
        }
        block.extend_from_slice(head);
        block.split().freeze()
    }
}

impl Io {
    pub fn new(stream: TcpStream, client: Rc<Client>, scratch: Rc<Scratch>) -> Rc<Self> {
        let now = client.timer.now();
        Rc::new(Self {
            client,
            stream: RefCell::new(Stream::Tcp(stream)),
            scratch,
            framing: RefCell::default(),
            unread: RefCell::default(),
            unseen: Cell::new(false),
            held: Cell::new(None),
            ended: Cell::new(false),
            ahead: Cell::new(false),
            blocked: Cell::new(false),
            moved: Cell::new(now),
            bytes: Cell::new(0),
            awaited: Cell::new(None),
            place: Cell::new(Place::NOWHERE),
            requests_seen: Cell::new(0),
            evicted: Cell::new(false),
            hyper_holds: Cell::new(u64::MAX / 2),
            used: Cell::new(false),
            park: Cell::new(false),
        })
    }

    /// Ready when there is something to read: bytes, an end, an error.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.unread.borrow().is_empty() {
            return Poll::Ready(Ok(()));
        }
        match &*self.stream.borrow() {
            Stream::Tcp(stream) => stream.poll_read_ready(cx),
        }
    }

    /// Whether the client has reset the connection, as far as can be seen without reading; once it
    /// has not, the task is woken when it does. Costs a system call only where something has come.
    pub fn is_reset(&self, cx: &mut Context<'_>) -> bool {
        if self.ahead.get() {
            return false;
        }
        let mut byte = [0];
        let peeked = match &*self.stream.borrow() {
            Stream::Tcp(stream) => stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)),
        };
        self.ahead.set(peeked.is_ready());
        matches!(peeked, Poll::Ready(Err(_)))
    }

    /// Puts back what hyper had read and not used.
    pub fn put_back(&self, bytes: Bytes) {
        // An empty slice would keep the whole buffer behind it.
        *self.unread.borrow_mut() = if bytes.is_empty() { Bytes::new() } else { bytes };
    }

    /// Puts back what nobody has looked at: whoever reads it next will.
    pub fn put_back_unseen(&self, bytes: Bytes) {
        self.unseen.set(!bytes.is_empty());
        self.put_back(bytes);
    }

    /// What has come, up to the length of most heads, for somebody who looks at it himself. `take` may take in a head where
    /// it was read, and says how long that is.
    pub fn poll_head(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> Option<usize>,
    ) -> Poll<io::Result<Came>> {
        let unread = self.unread.take();
        if !unread.is_empty() {
            return Poll::Ready(Ok(Came::Bytes(unread)));
        }
        let mut room = self.scratch.head.borrow_mut();
        room.resize(HEAD_BYTES, 0);
        let got = match &*self.stream.borrow() {
            Stream::Tcp(stream) => ready!(socket::poll_recv(stream, cx, &mut room))?,
        };
        self.ahead.set(false);
        if got == 0 {
            self.ended.set(true);
            return Poll::Ready(Ok(Came::End));
        }
        self.unseen.set(true);
        self.count(got);
        Poll::Ready(Ok(match take(&room[..got]) {
            Some(length) if length == got => Came::Whole(Bytes::new()),
            Some(length) => Came::Whole(self.scratch.keep(&room[length..got])),
            None => Came::Bytes(self.scratch.keep(&room[..got])),
        }))
    }

    /// What [`Self::poll_head`] gave was the head of a whole request, and `rest` lies behind it.
    pub fn head_was_whole(&self, rest: Bytes) {
        // What came before ends here, too.
        self.framing.borrow_mut().skip();
        self.client.head_began();
        self.unseen.set(self.unseen.get() && !rest.is_empty());
        self.put_back(rest);
    }

    /// The request that began with `head` is for somebody else to read after all.
    pub fn read_again(&self, head: Bytes) {
        let rest = self.unread.take();
        self.put_back(if rest.is_empty() { head } else { [head, rest].concat().into() });
    }

    /// Sends the beginning of an answer: the head that `write` writes, and as much of `piece` as the socket takes with
    /// it. What is left of the head comes back, and how much of `piece` has gone.
    pub fn begin_answer(
        &self,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut Vec<u8>),
        piece: &[u8],
    ) -> io::Result<(Vec<u8>, usize)> {
        let mut head = self.scratch.answer.borrow_mut();
        head.clear();
        write(&mut head);
        let length = head.len();
        let sent = if length + piece.len() <= FLAT_BYTES {
            head.extend_from_slice(piece);
            self.poll_write_raw(cx, &head)
        } else {
            self.poll_write_pieces(cx, &[IoSlice::new(&head), IoSlice::new(piece)])
        };
        let sent = match sent {
            Poll::Ready(sent) => sent?,
            Poll::Pending => 0,
        };
        Ok((head[sent.min(length)..length].to_vec(), sent.saturating_sub(length)))
    }

    /// Takes in what was read from the socket before there was an `Io`.
    pub fn read_before(&self, bytes: Bytes) {
        self.count(bytes.len());
        self.put_back_unseen(bytes);
    }

    /// Sends interim responses, unless bytes of an earlier response are still on their way.
    pub fn flush_interim(&self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.blocked.get() || self.client.first.borrow().is_empty() {
            return Ok(());
        }
        let _pending = self.poll_write_first(cx)?;
        Ok(())
    }

    /// The status hyper wanted to refuse a head with.
    pub fn refused(&self) -> Option<u16> {
        let held = self.held.get()?;
        REFUSALS.iter().find(|(bytes, _)| *bytes == held).map(|(_, status)| *status)
    }

    /// What looked like hyper's refusal was the end of a response's body after all.
    pub fn poll_release_held(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(held) = self.held.get() {
            let n = ready!(self.poll_write_raw(cx, held))?;
            self.held.set((n < held.len()).then_some(&held[n..]));
        }
        Poll::Ready(Ok(()))
    }

    /// The same once hyper has gone.
    pub async fn release_held(&self, patient: impl Fn() -> bool) -> io::Result<()> {
        match self.held.take() {
            Some(held) => self.write_all(held, patient).await,
            None => Ok(()),
        }
    }

    /// Writes all of `bytes`, unless the client takes longer than is patient.
    pub async fn write_all(&self, mut bytes: &[u8], patient: impl Fn() -> bool) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = std::future::poll_fn(|cx| match self.poll_write_raw(cx, bytes) {
                Poll::Pending if !patient() => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                polled => polled,
            });
            bytes = &bytes[written.await?..];
        }
        Ok(())
    }

    /// Ends the output and takes in what the client is still sending, so that closing does not
    /// reset the connection under an answer it has not read yet (RFC 9112 §9.6). Where nothing more
    /// can come, the socket is simply dropped; `more`: something may, though nothing is there yet.
    pub async fn close(&self, more: bool, patient: impl Fn() -> bool) {
        let there = std::future::poll_fn(|cx| Poll::Ready(self.poll_readable(cx).is_ready())).await;
        if self.ended.get() || !there && !more && !self.client.unread.get() {
            return;
        }
        let shut = std::future::poll_fn(|cx| match &mut *self.stream.borrow_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        });
        if shut.await.is_err() {
            return;
        }
        // On the heap: every idle connection's task would carry it otherwise.
        let mut scrap = vec![0; 4096];
        std::future::poll_fn(|cx| {
            loop {
                let mut buf = ReadBuf::new(&mut scrap);
                match self.poll_read_raw(cx, &mut buf) {
                    Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending if patient() => return Poll::Pending,
                    Poll::Pending => return Poll::Ready(()),
                }
            }
        })
        .await;
    }

    fn poll_read_raw(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self.stream.borrow_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }

    fn poll_write_raw(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = match &mut *self.stream.borrow_mut() {
            Stream::Tcp(stream) => socket::poll_send(stream, cx, bytes),
        };
        self.wrote(polled)
    }

    /// Writes what `pipe` holds, or a part of it.
    pub fn poll_write_pipe(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let polled = match &*self.stream.borrow() {
            Stream::Tcp(stream) => pipe.poll_drain(stream, cx),
        };
        self.wrote(polled)
    }

    fn poll_write_pieces(&self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = match &mut *self.stream.borrow_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        };
        self.wrote(polled)
    }

    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.blocked.set(polled.is_pending());
        if let Poll::Ready(written) = &polled {
            self.moved.set(self.client.timer.now());
            self.bytes.set(self.bytes.get() + written.as_ref().map_or(0, |&bytes| bytes as u64));
        }
        polled
    }

    fn poll_write_first(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut first = self.client.first.borrow_mut();
        while !first.is_empty() {
            let n = ready!(self.poll_write_raw(cx, &first))?;
            first.drain(..n);
        }
        Poll::Ready(Ok(()))
    }

    /// The first bytes of a response, with `lines` behind its status line. What is written counts as hyper sees it,
    /// which knows nothing of the lines: where the socket takes a part of them, the rest is kept.
    fn poll_write_head(
        &self,
        cx: &mut Context<'_>,
        lines: &mut Vec<u8>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let status_line = memchr::memchr(b'\n', &pieces[0]).filter(|_| pieces[0].starts_with(b"HTTP/1."));
        let Some((status, rest)) = status_line.map(|end| pieces[0].split_at(end + 1)) else {
            return Poll::Ready(Err(io::Error::other("a response that does not begin with its status line")));
        };
        let mut flat = self.scratch.answer.borrow_mut();
        flat.clear();
        flat.extend_from_slice(status);
        flat.extend_from_slice(lines);
        let (begun, bodies) = (flat.len(), &pieces[1..]);
        let all = begun + rest.len() + bodies.iter().map(|piece| piece.len()).sum::<usize>();
        let written = if all <= FLAT_BYTES {
            flat.extend_from_slice(rest);
            bodies.iter().for_each(|piece| flat.extend_from_slice(piece));
            ready!(self.poll_write_raw(cx, &flat))?
        } else {
            let mut all = vec![IoSlice::new(&flat), IoSlice::new(rest)];
            all.extend_from_slice(bodies);
            ready!(self.poll_write_pieces(cx, &all))?
        };
        if written < begun {
            self.client.first.borrow_mut().extend_from_slice(&flat[written..begun]);
        }
        let counted = written.max(begun) - lines.len();
        lines.clear();
        Poll::Ready(Ok(counted))
    }

    /// Writes what has to go before anything that hyper writes.
    pub fn poll_write_before(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.get().is_none() && self.client.first.borrow().is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_write_first(cx))?;
        self.poll_release_held(cx)
    }

    fn count(&self, read: usize) {
        self.used.set(true);
        self.moved.set(self.client.timer.now());
        self.bytes.set(self.bytes.get() + read as u64);
    }

    /// Looks at what one read brought.
    fn saw(&self, bytes: &[u8]) {
        let phase = self.client.phase.get();
        let mut framing = self.framing.borrow_mut();
        if phase == Phase::Receiving
            && self.client.body_left.get() > self.hyper_holds.get() + bytes.len() as u64
        {
            framing.skip();
            return;
        }
        let found = framing.feed(bytes, phase == Phase::Receiving);
        if !found.is_empty() {
            let mut all = self.client.framed_twice.borrow_mut();
            let room = (MAX_QUOTED + 1).saturating_sub(all.len());
            all.extend(found.into_iter().take(room));
        }
        if phase == Phase::Idle {
            self.client.head_began();
        }
    }
}

impl AsyncRead for Half {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let io = &self.0;
        let mut unread = io.unread.borrow_mut();
        if !unread.is_empty() {
            if io.unseen.take() {
                io.saw(&unread);
            }
            let n = unread.len().min(buf.remaining());
            buf.put_slice(&unread.split_to(n));
            return Poll::Ready(Ok(()));
        }
        drop(unread);
        let before = buf.filled().len();
        ready!(io.poll_read_raw(cx, buf))?;
        let new = &buf.filled()[before..];
        io.ahead.set(false);
        if !new.is_empty() {
            io.count(new.len());
            io.saw(new);
        } else if buf.remaining() > 0 {
            io.ended.set(true);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Half {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let io = &self.0;
        ready!(io.poll_write_before(cx))?;
        let mut lines = io.client.lines.borrow_mut();
        if !lines.is_empty() {
            return io.poll_write_head(cx, &mut lines, &[IoSlice::new(buf)]);
        }
        if buf.ends_with(b"content-length: 0\r\n\r\n")
            && let Some((refusal, _)) = REFUSALS.iter().find(|(refusal, _)| buf.ends_with(refusal))
        {
            let before = buf.len() - refusal.len();
            if before > 0 {
                return io.poll_write_raw(cx, &buf[..before]);
            }
            io.held.set(Some(refusal));
            return Poll::Ready(Ok(buf.len()));
        }
        io.poll_write_raw(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [piece] = pieces {
            return self.poll_write(cx, piece);
        }
        let io = &self.0;
        ready!(io.poll_write_before(cx))?;
        let mut lines = io.client.lines.borrow_mut();
        if !lines.is_empty() {
            return io.poll_write_head(cx, &mut lines, pieces);
        }
        if pieces.iter().map(|piece| piece.len()).sum::<usize>() <= FLAT_BYTES {
            let mut flat = io.scratch.answer.borrow_mut();
            flat.clear();
            pieces.iter().for_each(|piece| flat.extend_from_slice(piece));
            return io.poll_write_raw(cx, &flat);
        }
        io.poll_write_pieces(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The connection's task ends the output itself, after it has looked at how hyper ended.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[path = "io_tests.rs"]
mod tests;
