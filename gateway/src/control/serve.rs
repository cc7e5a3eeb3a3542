//! The gateway's end: accepts, finds out who asks and for what, and has it carried out. It also sees entries of the
//! lists off when their time is over.
//!
//! A connection is one request: whoever asks is a person or a program that asks now and then.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::{RecvFlags, recv};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Interest};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{sleep, timeout};

use super::access::{self, Caller, TokenError};
use super::problem::Problem;
use super::profile::profile;
use super::router::{self, Call, Operation, Route};
use super::{HAND_OVER, PATIENCE, Seconds, explain, now, openapi, process, status};
use crate::admin::patient::Patient;
use crate::admin::{self, State, reply};
use crate::kernel::Kernel;
use crate::reload::Asks;

/// What requests are answered from.
pub struct Control {
    pub kernel: Kernel,
    pub state: Arc<State>,
    pub places: Places,
    pub(super) asks: Asks,
    /// Lists have changed, and with them which entry ends next.
    pub(super) lists_changed: Notify,
    /// Where those are heard who ask to follow this gateway.
    successors: mpsc::UnboundedSender<UnixStream>,
    /// One of them has read the lists and is about to take over.
    is_followed: AtomicBool,
}

/// Where the gateway listens.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    pub proxy: SocketAddr,
    pub metrics: SocketAddr,
    pub admin: Option<SocketAddr>,
}

/// Connections at once; others wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_BODY_BYTES: usize = 16 * 1024;
/// Longest line of a successor.
const MAX_LINE_BYTES: u64 = 64;
/// From accept to close, whatever is asked.
const LONGEST: Duration = Duration::from_secs(Seconds::MOST + 300);
const BACK_OFF: Duration = Duration::from_millis(100);
/// Between two looks at the clock, which somebody may set.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// A policy that could not be put in force is tried again after this.
const RETRY: Duration = Duration::from_secs(10);

impl Control {
    pub fn new(
        kernel: Kernel,
        state: Arc<State>,
        places: Places,
        asks: Asks,
        successors: mpsc::UnboundedSender<UnixStream>,
    ) -> Arc<Self> {
        let (lists_changed, is_followed) = (Notify::new(), AtomicBool::new(false));
        Arc::new(Self { kernel, state, places, asks, lists_changed, successors, is_followed })
    }

    /// From here on lists stay as they are, or else change again.
    pub fn set_followed(&self, is_followed: bool) {
        self.is_followed.store(is_followed, Relaxed);
        self.lists_changed.notify_one();
    }

    pub(super) fn is_followed(&self) -> bool {
        self.is_followed.load(Relaxed)
    }

    /// Answers at a socket for as long as it is polled.
    pub async fn serve(self: Arc<Self>, listener: io::Result<UnixListener>) {
        match listener.and_then(tokio::net::UnixListener::from_std) {
            Ok(listener) => {
                welcome(|cx| listener.poll_accept(cx), |(stream, _)| self.clone().meet(stream)).await
            }
            Err(error) => tracing::error!(%error, "the control socket cannot be served"),
        }
    }

    /// Answers over TCP, by the rules for peers.
    pub async fn serve_tcp(self: Arc<Self>, listener: io::Result<TcpListener>) {
        if let Err(error) = self.token().transpose() {
            tracing::warn!(%error, "no token is taken at control.admin_addr, so most of it is refused there");
        }
        match listener.and_then(tokio::net::TcpListener::from_std) {
            Ok(listener) => {
                let meet = |(stream, peer)| self.clone().converse(stream, Some(peer));
                welcome(|cx| listener.poll_accept(cx), meet).await;
            }
            Err(error) => tracing::error!(%error, "control.admin_addr cannot be served"),
        }
    }

    /// What is to be sent over TCP, read anew for whoever sends one; `None`: none is configured.
    fn token(&self) -> Option<Result<Vec<u8>, TokenError>> {
        let snapshot = self.state.current.load();
        let file = snapshot.config.control.as_ref()?.token_file.clone()?;
        Some(access::read_token(&file))
    }

    /// Takes entries out of force at their end.
    pub async fn see_off(self: Arc<Self>) {
        loop {
            let now = now();
            let wait = match self.kernel.lists().next_end() {
                // The kernel half knows the ends by itself.
                _ if self.is_followed() => LONGEST_SLEEP,
                Some(end) if end <= now => {
                    match self.kernel.change(now, |_| ()) {
                        Ok(()) => continue,
                        Err(error) => tracing::error!(%error, "an entry whose time is over stays in force"),
                    }
                    RETRY
                }
                Some(end) => Duration::from_secs(end - now).min(LONGEST_SLEEP),
                None => LONGEST_SLEEP,
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = self.lists_changed.notified() => {}
            }
        }
    }

    /// A successor's line begins with a quotation mark, as no request of HTTP does.
    async fn meet(self: Arc<Self>, stream: tokio::net::UnixStream) -> io::Result<()> {
        match timeout(PATIENCE, first_byte(&stream)).await?? {
            b'"' => timeout(PATIENCE, self.meet_successor(stream)).await?,
            _ => self.converse(stream, None).await,
        }
    }

    async fn meet_successor(&self, mut stream: tokio::net::UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.split();
        let mut line = Vec::new();
        BufReader::new(read.take(MAX_LINE_BYTES)).read_until(b'\n', &mut line).await?;
        if serde_json::from_slice::<String>(&line).is_ok_and(|line| line == HAND_OVER) {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            // Nobody hears it while this gateway is on its way out: the other end sees a connection that ends.
            return self.successors.send(stream).map_err(io::Error::other);
        }
        write.write_all(b"{\"refused\":\"not understood\"}\n").await
    }

    /// `peer`: of a TCP connection.
    async fn converse(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: Option<SocketAddr>,
    ) -> io::Result<()> {
        let service = service_fn(|request| async {
            let answered = self.respond(request, peer).await;
            Ok::<_, Infallible>(answered.unwrap_or_else(Problem::response))
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(MAX_HEAD_BYTES);
        let stream = TokioIo::new(Patient::new(stream, PATIENCE));
        let served = builder.keep_alive(false).serve_connection(stream, service).await;
        served.map_err(io::Error::other)
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        peer: Option<SocketAddr>,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let (head, body) = request.into_parts();
        let caller = peer.map_or(Caller::Owner, |peer| {
            let token = self.token().and_then(Result::ok);
            Caller::peer(peer.ip(), &head, token.as_deref())
        });
        caller.enter()?;
        let (route, captured) = router::find(&head.method, head.uri.path())?;
        caller.may(route.access)?;
        let body = read(route, &head.headers, body).await?;
        self.carry_out(route.operation, &Call::new(route, captured, head.uri.query(), body)?).await
    }

    async fn carry_out(&self, operation: Operation, call: &Call) -> Result<Response<Full<Bytes>>, Problem> {
        Ok(match operation {
            Operation::Page(path) => admin::page(&self.state, path).expect("the table names pages there are"),
            Operation::Status => json(&status::read(self)),
            Operation::Reload => json(&self.reload().await?),
            Operation::Level => json(&process::level()),
            Operation::SetLevel => json(&process::set_level(&call.document()?)?),
            Operation::Endpoints => json(&self.endpoints()),
            Operation::Drain(drained) => json(&self.drain(&call.parameter::<String>("endpoint")?, drained)?),
            Operation::Explain => {
                let snapshot = self.state.current.load();
                json(&explain::explain(&self.kernel, &snapshot, call.parameter("source")?)?)
            }
            Operation::List => json(&self.list(call.parameter("list")?)?),
            Operation::Add => json(&self.add(call.parameter("list")?, call.document()?)?),
            Operation::Purge => json(&self.purge(&call.document()?)?),
            Operation::Profile => {
                reply(StatusCode::OK, "application/gzip", profile(call.parameter("seconds")?).await?)
            }
            Operation::Routes => json(&self.routes()),
            Operation::Cache => json(&self.cache()),
            Operation::Limits => json(&self.limits()),
            Operation::Kernel => json(&self.kernel_half()?),
            Operation::Sources => json(&self.sources()?),
            Operation::Config => json(&self.config()),
            Operation::OpenApi => json(&openapi::document()),
            Operation::Delete => json(&self.del(call.parameter("list")?, call.parameter("network")?)?),
        })
    }
}

/// Accepts without end, and gives each connection its time.
async fn welcome<S, M>(accept: impl Fn(&mut Context<'_>) -> Poll<io::Result<S>>, meet: impl Fn(S) -> M)
where
    M: Future<Output = io::Result<()>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let seat = room.clone().acquire_owned().await.expect("nobody closes it");
        let Ok(stream) = poll_fn(&accept).await else {
            sleep(BACK_OFF).await;
            continue;
        };
        let met = meet(stream);
        tokio::spawn(async move {
            let _seat = seat;
            // Who asks too slowly, or leaves, gets no answer.
            let _ = timeout(LONGEST, met).await;
        });
    }
}

/// The request's body, where its row has one.
async fn read(route: &Route, headers: &HeaderMap, body: Incoming) -> Result<Bytes, Problem> {
    // A page in a browser may send other types without asking first.
    let is_json = headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"application/json")
    });
    if route.body.is_some() && !is_json {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(Problem::new(status, "send a JSON document, and Content-Type: application/json"));
    }
    let most = if route.body.is_some() { MAX_BODY_BYTES } else { 0 };
    let read = timeout(PATIENCE, Limited::new(body, most).collect()).await;
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
    read.map_err(late)?.map(http_body_util::Collected::to_bytes).map_err(|error| {
        match error.is::<LengthLimitError>() {
            true if most == 0 => Problem::unclear("this takes no body"),
            true => Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("a document has {MAX_BODY_BYTES} bytes at most"),
            ),
            false => Problem::unclear("the body broke off"),
        }
    })
}

fn json(document: &impl Serialize) -> Response<Full<Bytes>> {
    let mut text = serde_json::to_vec_pretty(document).expect("it has string keys and numbers only");
    text.push(b'\n');
    reply(StatusCode::OK, "application/json", text)
}

/// Waits for it, and leaves it to be read.
async fn first_byte(stream: &tokio::net::UnixStream) -> io::Result<u8> {
    loop {
        stream.readable().await?;
        let mut byte = [0];
        let peek = || recv(stream, &mut byte, RecvFlags::PEEK).map_err(io::Error::from);
        match stream.try_io(Interest::READABLE, peek) {
            Ok((1.., _)) => return Ok(byte[0]),
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
