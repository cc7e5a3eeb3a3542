//! One client's connection, from accept to close: a task that waits, serves, parks, closes.
//!
//! The only place on this side that knows hyper's connection type.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::crowd::Seat;
use super::io::{Half, Io};
use super::of_source;
use super::plain::{self, Turn};
use super::proxy_protocol;
use super::warm::Warm;
use crate::config::Config;
use crate::limit::connections::OfSource;
use crate::proxy::client::{Client, Phase};
use crate::proxy::{Body, Heads, Proxy, Seen};
use crate::proxy::{forgotten, identity};
use crate::timer::{Tick, Timer};

/// How long connections without a request stay open when the gateway drains, and how long what is under way to it
/// is still accepted: a round trip to anywhere, and no more than that.
pub const DRAIN_GRACE: Duration = Duration::from_millis(500);
/// How long a client may take to notice that an answer was the last one.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes of a body that hyper may buffer per direction.
const BUFFER_BYTES: usize = 64 * 1024;
/// hyper keeps this many on the stack; another number costs an allocation per request.
const DEFAULT_MAX_HEADERS: usize = 100;
/// Plain requests in a row after which hyper is let go of: to build it again costs as much as it saves in two or three.
const PLAIN_AGAIN: u32 = 8;

/// How a stretch with a hyper connection ended.
enum End {
    /// Between two requests, with its buffers given back.
    Parked,
    /// The same, and what comes now may well do without hyper.
    Plain,
    /// Nothing more is to be sent.
    Finished,
    /// hyper refused a head with this status and wrote nothing.
    Refused(u16),
    /// A deadline passed, or the socket failed.
    Aborted,
}

/// Serves `stream` until either side closes it.
pub async fn serve(
    proxy: Rc<Proxy>,
    warm: Rc<Warm>,
    seat: Seat,
    stream: TcpStream,
    peer: SocketAddr,
    origin: Origin,
) {
    if let Some(io) = begin(&proxy, &warm, stream, peer, origin).await {
        seat.take(&io);
        converse(&proxy, &warm, &io).await;
        of_source::note(&proxy, &io);
        proxy.took_leave(&io.client);
    }
}

/// Whose a new connection is.
pub enum Origin {
    /// Its peer's, with a place among the connections of that one where it needs one.
    Peer(Option<OfSource>),
    /// A PROXY header is to say.
    Relay,
}

/// Finds out who is there; `None`: nobody that is to be served.
async fn begin(
    proxy: &Proxy,
    warm: &Warm,
    stream: TcpStream,
    peer: SocketAddr,
    origin: Origin,
) -> Option<Rc<Io>> {
    let header_read = proxy.local().snapshot.config.timeouts.header_read;
    let task = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    let (source, read, of_source) = match origin {
        Origin::Peer(of_source) => (None, Bytes::new(), of_source),
        Origin::Relay => {
            // Boxed so that it costs nothing afterwards.
            let (source, read) = Box::pin(announced(proxy, &stream, peer, &task)).await?;
            (source, read, of_source::enter(proxy, source.unwrap_or(peer).ip(), true).ok()?)
        }
    };
    let client = Client::new(source.unwrap_or(peer), &proxy.wheel, header_read, &task);
    client.relayed.set(source.is_some());
    if let Some(of_source) = of_source {
        // The cell is new.
        let _ = client.of_source.set(of_source);
    }
    client.timer.arm(client.timer.now().plus(header_read));
    let io = Io::new(stream, client, warm.scratch.clone());
    io.read_before(read);
    Some(io)
}

/// What the load balancer at `peer` says in a PROXY header: the source, and what it sent behind it.
async fn announced(
    proxy: &Proxy,
    stream: &TcpStream,
    peer: SocketAddr,
    task: &Waker,
) -> Option<(Option<SocketAddr>, Bytes)> {
    let timer = Timer::new(&proxy.wheel);
    timer.register(task);
    timer.arm(timer.now().plus(proxy.local().snapshot.config.timeouts.header_read));
    let patient = || {
        if proxy.draining.get() {
            timer.arm_sooner(timer.now().plus(DRAIN_GRACE));
        }
        !timer.expired()
    };
    let received = proxy_protocol::receive(stream, patient).await;
    let address = peer.ip().to_canonical();
    let fault = match received {
        Ok(Some((header, behind))) => {
            if identity::is_trusted(address, &proxy.local().snapshot.config.trusted_proxies) {
                return Some((header.source, behind));
            }
            forgotten::warn(address, "PROXY");
            "the peer is not in trusted_proxies"
        }
        Ok(None) => return None,
        Err(fault) => fault,
    };
    tracing::debug!(%peer, fault, "refused a connection for its PROXY header");
    proxy.registry.workers[proxy.worker].proxy_headers_refused.add(1);
    None
}

/// Serves, parks and serves again.
async fn converse(proxy: &Rc<Proxy>, warm: &Warm, io: &Rc<Io>) {
    let client = &io.client;
    loop {
        match parked(proxy, io).await {
            Woken::Readable => {}
            Woken::Expired if proxy.draining.get() => return finish(proxy, io).await,
            Woken::Expired => return count_expiry(proxy, io),
            Woken::Gone => return,
        }
        warm.admit(io);
        // Boxed so that a parked connection's task is small.
        let end = Box::pin(run(proxy, io)).await;
        // Nor is room for lines kept.
        client.lines.take();
        match end {
            End::Parked | End::Plain => continue,
            End::Finished => {
                let stall = proxy.local().snapshot.config.timeouts.body_stall;
                client.timer.arm(proxy.wheel.now().plus(stall));
                if io.release_held(|| !client.timer.expired()).await.is_ok() {
                    finish(proxy, io).await;
                }
            }
            End::Refused(status) => {
                let answer = proxy.refuse_head(status, client);
                client.timer.arm(proxy.wheel.now().plus(LINGER));
                if io.write_all(&answer, || !client.timer.expired()).await.is_ok() {
                    finish(proxy, io).await;
                }
            }
            End::Aborted => {}
        }
        break;
    }
}

/// How a wait without buffers ended.
enum Woken {
    /// There is something to read.
    Readable,
    /// Nothing came in time.
    Expired,
    /// The socket failed, or is needed for another.
    Gone,
}

/// Waits without buffers.
async fn parked(proxy: &Proxy, io: &Io) -> Woken {
    let cells = &proxy.registry.workers[proxy.worker];
    cells.parked.add(1);
    let woken = poll_fn(|cx| {
        // Even if something has just come: another has its place already.
        if io.evicted.get() || proxy.blocks(&io.client) {
            return Poll::Ready(Woken::Gone);
        }
        match io.poll_readable(cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(Woken::Readable),
            Poll::Ready(Err(_)) => return Poll::Ready(Woken::Gone),
            Poll::Pending => {}
        }
        hasten(proxy, &io.client);
        if io.client.timer.expired() { Poll::Ready(Woken::Expired) } else { Poll::Pending }
    })
    .await;
    cells.parked.sub(1);
    woken
}

/// While the gateway drains, a client that is between two requests, or before its first, has little time left to
/// ask: whoever asks is served, and nobody finds the connection closed under a request that is on its way.
fn hasten(proxy: &Proxy, client: &Client) {
    if proxy.draining.get() && client.phase.get() == Phase::Idle {
        client.timer.arm_sooner(client.timer.now().plus(DRAIN_GRACE));
    }
}

/// A deadline has passed between two requests, or in a head.
fn count_expiry(proxy: &Proxy, io: &Io) {
    let ended = &proxy.registry.workers[proxy.worker].ended;
    let idle = io.client.phase.get() == Phase::Idle && io.client.requests.get() > 0;
    if idle { ended.idle.add(1) } else { ended.head.add(1) }
}

/// Serves until something is to be done that needs no buffers.
async fn run(proxy: &Rc<Proxy>, io: &Rc<Io>) -> End {
    let stall = Timer::new(&proxy.wheel);
    loop {
        let turn = {
            let mut plain = pin!(plain::serve(proxy, io));
            watched(proxy, io, &stall, |cx| plain.as_mut().poll(cx).map(Ok)).await
        };
        let answered = match turn {
            Ok(Turn::Hyper(answered)) => answered,
            Ok(Turn::Finished) => return End::Finished,
            Ok(Turn::Aborted) => return End::Aborted,
            Err(end) => return end,
        };
        match run_hyper(proxy, io, &stall, answered).await {
            End::Plain => {}
            end => return end,
        }
    }
}

/// Has hyper read and write; `answered`: the answer to what it reads first, where there is one already.
async fn run_hyper(
    proxy: &Rc<Proxy>,
    io: &Rc<Io>,
    stall: &Timer,
    answered: Option<Box<Response<Body>>>,
) -> End {
    let client = &io.client;
    let answered = Cell::new(answered);
    let plain = Cell::new(0);
    let service = service_fn(|request: http::Request<Incoming>| {
        let whole = request.is_end_stream();
        plain.set(if whole && request.method() == Method::GET { plain.get() + 1 } else { 0 });
        // Now and not when the answer is first polled: hyper reads on in between, and may find the end.
        client.phase.set(if whole { Phase::Received } else { Phase::Receiving });
        let (proxy, client, answered) = (proxy.clone(), client.clone(), answered.take());
        async move {
            Ok::<_, Infallible>(match answered {
                Some(answered) => *answered,
                None => {
                    let (local, (mut parts, body)) = (proxy.local(), request.into_parts());
                    let mut seen = Seen::of(&parts.headers);
                    let mut response = Response::new(());
                    let heads = Heads { parts: &mut parts, seen: &mut seen, response: &mut response };
                    let body = proxy.respond(&local, &client, heads, Some(body)).await;
                    local.arena().recycle(parts.headers);
                    response.map(|()| body)
                }
            })
        }
    });
    // The snapshot is not kept: a connection would hold an old one, and its upstream connections, for life.
    let buffer_bytes = buffer_bytes(&proxy.local().snapshot.config);
    // A read in its buffer, one in the body's channel, and as much again to be sure.
    io.hyper_holds.set(4 * buffer_bytes as u64);
    let builder = builder(&proxy.local().snapshot.config);
    let mut http = builder.serve_connection(TokioIo::new(Half(io.clone())), service);
    let end = watched(proxy, io, stall, |cx| match Pin::new(&mut http).poll(cx) {
        Poll::Ready(result) => Poll::Ready(Ok(match (result, io.refused()) {
            (Err(error), Some(status)) if error.is_parse() => End::Refused(status),
            // Such as the beginning of HTTP/2, to which hyper has no answer.
            (Err(error), None) if error.is_parse() && !io.client.is_busy() => End::Refused(400),
            (Err(error), _) if !error.is_parse() => End::Aborted,
            _ => End::Finished,
        })),
        Poll::Pending if plain.get() >= PLAIN_AGAIN && is_between(io) => Poll::Ready(Ok(End::Plain)),
        Poll::Pending => Poll::Pending,
    });
    let end = end.await.unwrap_or_else(|end| end);
    client.lines.take();
    if let End::Parked | End::Plain = end {
        io.put_back(http.into_parts().read_buf);
    }
    end
}

/// Takes a step whenever something has happened, until one is the last, or a deadline or the other end ends it.
async fn watched<T>(
    proxy: &Proxy,
    io: &Io,
    stall: &Timer,
    mut step: impl FnMut(&mut Context<'_>) -> Poll<Result<T, End>>,
) -> Result<T, End> {
    poll_fn(|cx| {
        if io.evicted.get() && is_free(io) || proxy.blocks(&io.client) && (is_free(io) || waits_in_vain(io)) {
            return Poll::Ready(Err(End::Aborted));
        }
        match step(cx) {
            Poll::Ready(last) => Poll::Ready(last),
            Poll::Pending => poll_between(proxy, io, stall, cx).map(Err),
        }
    })
    .await
}

/// Nothing is being answered.
fn is_free(io: &Io) -> bool {
    !io.client.is_busy() && !io.blocked.get()
}

/// What is missing of a request cannot come from a source whose packets are dropped.
fn waits_in_vain(io: &Io) -> bool {
    let client = &io.client;
    client.phase.get() == Phase::Receiving && client.starved.get() && !client.answering.get()
}

/// Nothing of a request is here, and nothing of an answer is left.
fn is_between(io: &Io) -> bool {
    io.client.phase.get() == Phase::Idle && !io.blocked.get()
}

/// What is looked at whenever there is nothing to do.
fn poll_between(proxy: &Proxy, io: &Io, stall: &Timer, cx: &mut Context<'_>) -> Poll<End> {
    let client = &io.client;
    let released = io.poll_release_held(cx);
    if io.flush_interim(cx).is_err() || matches!(released, Poll::Ready(Err(_))) {
        return Poll::Ready(End::Aborted);
    }
    of_source::note(proxy, io);
    hasten(proxy, client);
    if client.timer.expired() {
        if client.is_busy() {
            return Poll::Ready(give_up(io));
        }
        if !io.blocked.get() {
            // The client's socket stays open for what it may be sending just now.
            if proxy.draining.get() && client.phase.get() == Phase::Idle {
                return Poll::Ready(End::Finished);
            }
            count_expiry(proxy, io);
            return Poll::Ready(End::Aborted);
        }
        // Between two requests, but the client has not taken all of the last answer: it is not idle yet.
        client.timer.arm(client.timer.now().plus(proxy.local().snapshot.config.timeouts.idle));
    }
    if client.phase.get() == Phase::Received && io.is_reset(cx) {
        return Poll::Ready(End::Aborted);
    }
    if io.blocked.get() || client.phase.get() == Phase::Receiving || client.answering.get() {
        let local = proxy.local();
        let config = &local.snapshot.config;
        let due = io.moved.get().plus(config.timeouts.body_stall);
        let ended = &proxy.registry.workers[proxy.worker].ended;
        if client.timer.now() >= due {
            ended.stalled.add(u64::from(is_asked(io)));
            return Poll::Ready(give_up(io));
        }
        let Some(judged) = pace(io, config) else {
            ended.slow.add(1);
            return Poll::Ready(give_up(io));
        };
        stall.register(cx.waker());
        stall.arm(due.min(judged));
    }
    if io.park.get() && is_between(io) {
        return Poll::Ready(End::Parked);
    }
    Poll::Pending
}

/// A deadline has passed. Where nothing is asked of the client, the upstream is the one that waits.
fn give_up(io: &Io) -> End {
    let client = &io.client;
    client.let_down.set(client.answering.get() && !is_asked(io));
    End::Aborted
}

/// Whether something is to come from the client, or to be taken by it.
fn is_asked(io: &Io) -> bool {
    io.blocked.get() || io.client.phase.get() == Phase::Receiving
}

/// When the client's pace is judged next; `None`: it has been waited for all the time, and moved too little.
///
/// Only what is up to the client counts: a body that its reader waits for, an answer that its socket does not take.
fn pace(io: &Io, config: &Config) -> Option<Tick> {
    let client = &io.client;
    let (now, rate, stretch) =
        (client.timer.now(), config.connections.min_body_rate, config.timeouts.body_rate);
    let starved = client.phase.get() == Phase::Receiving && client.starved.get();
    if rate == 0 || !(io.blocked.get() || starved) {
        io.awaited.set(None);
        return Some(Tick::NEVER);
    }
    if let Some((since, before)) = io.awaited.get() {
        let due = since.plus(stretch);
        if now < due {
            return Some(due);
        }
        if ((io.bytes.get() - before) as f64) < f64::from(rate) * stretch.as_secs_f64() {
            return None;
        }
    }
    io.awaited.set(Some((now, io.bytes.get())));
    Some(now.plus(stretch))
}

/// Closes in the order that lets the client read the last answer.
async fn finish(proxy: &Proxy, io: &Io) {
    let timer = &io.client.timer;
    timer.arm(proxy.wheel.now().plus(LINGER));
    io.close(proxy.draining.get(), || !timer.expired()).await;
}

/// hyper refuses a head only when its buffer is full, which also holds a body's bytes.
fn buffer_bytes(config: &Config) -> usize {
    config.head.max_bytes.max(BUFFER_BYTES)
}

fn builder(config: &Config) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // hyper reads on during an answer only to find an end of input and take it for an abort, and
        // needs a second buffer for it.
        .half_close(true)
        // `Io` decides what goes out flat.
        .writev(true)
        .auto_date_header(false)
        .max_header_size(config.head.max_bytes)
        .max_buf_size(buffer_bytes(config));
    if config.head.max_headers != DEFAULT_MAX_HEADERS {
        builder.max_headers(config.head.max_headers);
    }
    builder
}
