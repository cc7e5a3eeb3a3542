//! Plain exchanges, most of all there are: a request that came whole and has no body, a response whose length is known.
//!
//! They go by without hyper, whose ways for everything a message can be cost them as much as all that is decided
//! about them. The first that is not plain ends this, and hyper reads it. The story of a request is the same on
//! either way (`Proxy::respond`), so are its deadlines, which `connection` watches.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::header::CONNECTION;
use http::{HeaderValue, Response, StatusCode};
use http_body::Body as _;

use super::head::{self, Head};
use super::io::{Came, Io};
use crate::pipe::{self, Pipe};
use crate::proxy::client::Phase;
use crate::proxy::{Body, Heads, Local, Proxy};

/// Why no more plain exchanges come.
pub enum Turn {
    /// The next one is for hyper, which finds it unread; where it has been answered, with what.
    Hyper(Option<Box<Response<Body>>>),
    /// Nothing more is to be sent.
    Finished,
    /// The socket failed, or the response broke off.
    Aborted,
}

/// Serves one plain exchange after the other.
pub async fn serve(proxy: &Rc<Proxy>, io: &Rc<Io>) -> Turn {
    let mut head = Head::new(proxy.local().arena());
    // Emptied as it goes out, for the next.
    let mut response = Response::new(());
    loop {
        let came =
            poll_fn(|cx| io.poll_head(cx, |bytes| head.take(bytes, |part| io.scratch.keep(part)))).await;
        let rest = match came {
            Ok(Came::Whole(rest)) => rest,
            Ok(Came::Bytes(mut bytes)) => match head.read(&bytes) {
                Some(length) => bytes.split_off(length),
                None => {
                    io.put_back(bytes);
                    return Turn::Hyper(None);
                }
            },
            Ok(Came::End) => return Turn::Finished,
            Err(_) => return Turn::Aborted,
        };
        let local = proxy.local();
        if !head.keeps_to(&local.snapshot.config.head) {
            io.put_back([head.text(), rest].concat().into());
            return Turn::Hyper(None);
        }
        io.head_was_whole(rest);
        io.client.phase.set(Phase::Received);
        let heads = Heads { parts: &mut head.parts, seen: &mut head.seen, response: &mut response };
        let body = proxy.respond(&local, &io.client, heads, None).await;
        let Some(length) = length_of(response.status(), &body) else {
            io.read_again(head.text());
            return Turn::Hyper(Some(Box::new(response.map(|()| body))));
        };
        if head.last {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let last = response.headers().contains_key(CONNECTION);
        let mut body = Rest::of(body, length);
        match send(&local, io, &mut response, &mut body).await {
            Ok(()) if last => return Turn::Finished,
            Ok(()) => response.extensions_mut().clear(),
            Err(_) => return Turn::Aborted,
        }
    }
}

/// `None`: where its body ends has to be said in it.
fn length_of(status: StatusCode, body: &Body) -> Option<u64> {
    let length = body.size_hint().exact()?;
    (length == 0 || head::may_have_a_body(status)).then_some(length)
}

/// Sends `response` and its body.
async fn send(local: &Local, io: &Io, response: &mut Response<()>, body: &mut Rest) -> io::Result<()> {
    let length = body.bytes;
    // What has come goes out with the head; for what has not, the head does not wait.
    let mut piece = match poll_fn(|cx| Poll::Ready(body.poll_piece(cx))).await {
        Poll::Ready(piece) => piece?.unwrap_or_default(),
        Poll::Pending => Bytes::new(),
    };
    poll_fn(|cx| io.poll_write_before(cx)).await?;
    let write = |out: &mut Vec<u8>| {
        let mut lines = io.client.lines.borrow_mut();
        head::write_response(response, &lines, length, out);
        lines.clear();
    };
    let (left, sent) = poll_fn(|cx| Poll::Ready(io.begin_answer(cx, write, &piece))).await?;
    if response.headers().capacity() > 0 {
        local.arena().recycle(std::mem::take(response.headers_mut()));
    }
    io.write_all(&left, || true).await?;
    piece.advance(sent);
    loop {
        io.write_all(&piece, || true).await?;
        if body.unread() >= pipe::LEAST
            && let Some(mut pipe) = io.scratch.pipes.lend()
        {
            // Boxed, for most bodies are small, and a connection's task is as large as this.
            Box::pin(through(&mut pipe, body, io)).await?;
        }
        match poll_fn(|cx| body.poll_piece(cx)).await? {
            Some(next) => piece = next,
            None => return Ok(()),
        }
    }
}

/// Moves to the client what is still unread of `body`.
async fn through(pipe: &mut Pipe, body: &mut Rest, io: &Io) -> io::Result<()> {
    while poll_fn(|cx| body.poll_move(pipe, cx)).await? {
        while !pipe.is_empty() {
            poll_fn(|cx| io.poll_write_pipe(cx, pipe)).await?;
        }
    }
    Ok(())
}

/// What is still to be taken from a body. It is let go of at its end and not behind it: the account is written then.
struct Rest {
    body: Option<Body>,
    bytes: u64,
}

impl Rest {
    /// All of `body`, which has so many `bytes`.
    fn of(body: Body, bytes: u64) -> Self {
        let body = if body.is_end_stream() { None } else { Some(body) };
        Self { body, bytes }
    }

    fn unread(&self) -> u64 {
        self.body.as_ref().map_or(0, Body::unread)
    }

    /// Has `pipe` take in what has come; false: there is no more.
    fn poll_move(&mut self, pipe: &mut Pipe, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some(body) = &mut self.body else { return Poll::Ready(Ok(false)) };
        let moved = ready!(body.poll_move(pipe, cx)).map_err(io::Error::other)?;
        let last = body.is_end_stream();
        Poll::Ready(self.took(moved, last).map(|()| true))
    }

    /// # Errors
    /// The body is not as long as its head says.
    fn took(&mut self, bytes: usize, last: bool) -> io::Result<()> {
        if last {
            self.body = None;
        }
        self.bytes = match self.bytes.checked_sub(bytes as u64) {
            Some(left) if left == 0 || self.body.is_some() => left,
            _ => return Err(io::Error::other("the body is not as long as its head says")),
        };
        Ok(())
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            let Some(body) = &mut self.body else { return Poll::Ready(Ok(None)) };
            let frame = ready!(Pin::new(&mut *body).poll_frame(cx)).transpose().map_err(io::Error::other)?;
            let last = frame.is_none() || body.is_end_stream();
            // Trailers have no place behind a body of known length.
            let piece = frame.and_then(|frame| frame.into_data().ok());
            self.took(piece.as_ref().map_or(0, Bytes::len), last)?;
            if piece.is_some() {
                return Poll::Ready(Ok(piece));
            }
        }
    }
}
