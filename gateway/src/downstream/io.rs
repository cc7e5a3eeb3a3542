//! A client's socket, as hyper reads and writes it and as the connection's task looks at it.
//!
//! It sees the raw bytes, and four things happen here because they happen nowhere else: a head
//! framed twice is noted, the end of input after a complete request is kept from hyper (it is no
//! abort), interim responses go out before the final one, and hyper's own refusal of a malformed
//! head is held back so that the gateway's can take its place.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::framing::Framing;
use crate::proxy::client::{Client, MAX_QUOTED, Phase};
use crate::timer::Tick;

/// What a client speaks through.
enum Stream {
    Tcp(TcpStream),
}

pub struct Io {
    pub client: Rc<Client>,
    stream: RefCell<Stream>,
    framing: RefCell<Framing>,
    /// Read before hyper was rebuilt, to be read again.
    unread: RefCell<Bytes>,
    /// hyper's own refusal, not written.
    held: Cell<Option<&'static [u8]>>,
    /// The client sends no more.
    pub ended: Cell<bool>,
    /// That end is kept from hyper until the request is answered.
    pub end_kept: Cell<bool>,
    /// hyper has been asked to look at an end that cuts a body short; once, since it may not care.
    pub cut_told: Cell<bool>,
    /// The client does not read: the last write found the socket full.
    pub blocked: Cell<bool>,
    /// When a byte last moved in either direction.
    pub moved: Cell<Tick>,
    /// Read from since the warm set last looked.
    pub used: Cell<bool>,
    /// The warm set asks for this connection's buffers.
    pub park: Cell<bool>,
}

/// hyper's side of an [`Io`].
pub struct Half(pub Rc<Io>);

/// Exactly what hyper writes by itself, without a date, and the status in it.
const REFUSALS: [(&[u8], u16); 3] = [
    (b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", 400),
    (b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", 431),
    (b"HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", 414),
];

impl Io {
    pub fn new(stream: TcpStream, client: Rc<Client>) -> Rc<Self> {
        let now = client.timer.now();
        Rc::new(Self {
            client,
            stream: RefCell::new(Stream::Tcp(stream)),
            framing: RefCell::default(),
            unread: RefCell::default(),
            held: Cell::new(None),
            ended: Cell::new(false),
            end_kept: Cell::new(false),
            cut_told: Cell::new(false),
            blocked: Cell::new(false),
            moved: Cell::new(now),
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

    /// Puts back what hyper had read and not used.
    pub fn put_back(&self, bytes: Bytes) {
        // An empty slice would keep the whole buffer behind it.
        *self.unread.borrow_mut() = if bytes.is_empty() { Bytes::new() } else { bytes };
    }

    /// Sends interim responses, unless bytes of an earlier response are still on their way.
    pub fn flush_interim(&self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.blocked.get() || self.client.interim.borrow().is_empty() {
            return Ok(());
        }
        let _pending = self.poll_write_interim(cx)?;
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
    /// can come, the socket is simply dropped.
    pub async fn close(&self, patient: impl Fn() -> bool) {
        let more = std::future::poll_fn(|cx| Poll::Ready(self.poll_readable(cx).is_ready())).await;
        if !more && !self.client.unread.get() {
            return;
        }
        let shut = std::future::poll_fn(|cx| match &mut *self.stream.borrow_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        });
        if shut.await.is_err() || self.ended.get() {
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
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        self.blocked.set(polled.is_pending());
        if polled.is_ready() {
            self.moved.set(self.client.timer.now());
        }
        polled
    }

    fn poll_write_interim(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut interim = self.client.interim.borrow_mut();
        while !interim.is_empty() {
            let n = ready!(self.poll_write_raw(cx, &interim))?;
            interim.drain(..n);
        }
        Poll::Ready(Ok(()))
    }

    /// Looks at what one read brought.
    fn saw(&self, bytes: &[u8]) {
        self.used.set(true);
        self.moved.set(self.client.timer.now());
        let phase = self.client.phase.get();
        let found = self.framing.borrow_mut().feed(bytes, phase == Phase::Receiving);
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
            let n = unread.len().min(buf.remaining());
            buf.put_slice(&unread.split_to(n));
            return Poll::Ready(Ok(()));
        }
        drop(unread);
        let before = buf.filled().len();
        ready!(io.poll_read_raw(cx, buf))?;
        let new = &buf.filled()[before..];
        if !new.is_empty() {
            io.saw(new);
        } else if buf.remaining() > 0 {
            let first = !io.ended.replace(true);
            let client = &io.client;
            io.end_kept.set(match client.phase.get() {
                Phase::Idle | Phase::Head => false,
                // hyper may hold the body's last bytes: whether it is cut short shows when their reader
                // has looked once more and found none.
                Phase::Receiving => {
                    if first {
                        client.starved.set(false);
                        client.timer.wake();
                    }
                    !client.starved.get()
                }
                Phase::Received => true,
            });
            if io.end_kept.get() {
                // The connection's task polls again when the answer has been given.
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Half {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let io = &self.0;
        ready!(io.poll_write_interim(cx))?;
        ready!(io.poll_release_held(cx))?;
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

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The connection's task ends the output itself, after it has looked at how hyper ended.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
