//! A worker's connections to one endpoint, and the lease on it that a request has.
//!
//! An idle connection is polled by nobody; it is looked at when it is checked out and by the
//! worker's sweep.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Body, SizeHint};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::arena::Arena;
use super::breaker::{Ticket, Verdict};
use super::dice::Dice;
use super::slots::{Crowded, Slot};
use super::stream::Stream;
use super::{Endpoint, Error, Outgoing, Piece};
use crate::config::Upstreams;
use crate::metrics::{self, Again, Cause};
use crate::pipe::Pipe;
use crate::timer::Tick;

/// Idle connections kept per worker and endpoint.
const MAX_IDLE: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot connect to {address}: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    /// The endpoint has no part in it.
    #[error("no file descriptor is left to connect to {address}")]
    Descriptors { address: SocketAddr },
    /// By `max_connections`.
    #[error("too many requests wait for a connection")]
    Crowded,
}

/// A worker's pool for one endpoint; `B` is the body of the requests.
pub struct Pool<B> {
    pub endpoint: Arc<Endpoint>,
    worker: usize,
    arena: Rc<Arena>,
    dice: Rc<Dice>,
    rules: Cell<Rules>,
    /// The one used last at the end.
    idle: RefCell<Vec<Idle<B>>>,
    /// Of the endpoint's addresses, the one that served last.
    preferred: Cell<usize>,
    /// Requests under way on the other workers, as of the last tick.
    elsewhere: Cell<u64>,
    /// The configuration leads here no more: nothing is kept.
    retired: Cell<bool>,
}

/// What the configuration says of connections.
#[derive(Clone, Copy)]
struct Rules {
    idle: Duration,
    max_age: Duration,
    keepalive: Duration,
    user_timeout: Duration,
}

struct Idle<B> {
    connection: Box<Connection<B>>,
    since: Tick,
}

struct Connection<B> {
    stream: Stream<B>,
    opened: Tick,
    _open: Open,
}

/// Counts a connection for as long as there is one.
struct Open {
    endpoint: Arc<Endpoint>,
    worker: usize,
    _slot: Slot,
}

impl Open {
    fn new(endpoint: Arc<Endpoint>, worker: usize, slot: Slot) -> Self {
        endpoint.cells[worker].open.add(1);
        Self { endpoint, worker, _slot: slot }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.endpoint.cells[self.worker].open.sub(1);
    }
}

impl<B> Pool<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// `arena` and `dice` are the worker's; `idle`: how long an unused connection is kept.
    pub fn new(
        endpoint: Arc<Endpoint>,
        worker: usize,
        (arena, dice): (Rc<Arena>, Rc<Dice>),
        upstreams: &Upstreams,
        idle: Duration,
    ) -> Rc<Self> {
        Rc::new(Self {
            endpoint,
            worker,
            arena,
            dice,
            rules: Cell::new(Rules::of(upstreams, idle)),
            idle: RefCell::default(),
            preferred: Cell::new(0),
            elsewhere: Cell::new(0),
            retired: Cell::new(false),
        })
    }

    /// Goes on under another configuration.
    pub fn configure(&self, upstreams: &Upstreams, idle: Duration) {
        self.rules.set(Rules::of(upstreams, idle));
    }

    /// Begins a request that the endpoint's breaker has admitted with `ticket`.
    pub fn enter(self: &Rc<Self>, ticket: Ticket) -> Lease<B> {
        self.cells().active.add(1);
        self.cells().waiting.add(1);
        Lease {
            connection: None,
            pool: self.clone(),
            ticket: Some(ticket),
            active: true,
            waiting: true,
            reused: false,
            queued: false,
            failed: false,
        }
    }

    /// Requests under way, on all workers; those of others as of the last tick.
    pub fn load(&self) -> u64 {
        self.cells().active.get() + self.elsewhere.get()
    }

    /// Looks at the other workers: how busy they are, and whether one waits for a connection to end; and whether
    /// any are to be kept.
    pub fn look_around(&self) {
        self.elsewhere.set(self.endpoint.active().saturating_sub(self.cells().active.get()));
        if self.endpoint.slots.is_wanted() || self.endpoint.health.word().is_drained() {
            self.close_idle();
        }
    }

    /// Closes what has been idle too long or is too old, and what the upstream has closed.
    pub fn sweep(&self, now: Tick) {
        let swept = std::mem::take(&mut *self.idle.borrow_mut());
        self.cells().idle.sub(swept.len() as u64);
        let rules = self.rules.get();
        for Idle { connection, since } in swept {
            let fresh = since.plus(rules.idle) > now && connection.opened.plus(rules.max_age) > now;
            if fresh && connection.stream.is_quiet() {
                self.keep(connection, since);
            }
        }
    }

    /// Lets requests under way end, and keeps no connection.
    pub fn retire(&self) {
        self.retired.set(true);
        self.close_idle();
    }

    pub fn count_retry(&self, why: Again) {
        self.cells().retries[why as usize].add(1);
    }

    fn close_idle(&self) {
        let closed = std::mem::take(&mut *self.idle.borrow_mut());
        self.cells().idle.sub(closed.len() as u64);
    }

    fn keep(&self, connection: Box<Connection<B>>, since: Tick) {
        self.idle.borrow_mut().push(Idle { connection, since });
        self.cells().idle.add(1);
    }

    fn has_room(&self) -> bool {
        let endpoint = &self.endpoint;
        let wanted = endpoint.slots.is_wanted() || endpoint.health.word().is_drained();
        !self.retired.get() && self.idle.borrow().len() < MAX_IDLE && !wanted
    }

    fn cells(&self) -> &metrics::Endpoint {
        &self.endpoint.cells[self.worker]
    }

    /// The connection used last, if one is alive that has been idle for less than `fresh`.
    fn reuse(&self, now: Tick, fresh: Duration) -> Option<Box<Connection<B>>> {
        let max_age = self.rules.get().max_age;
        loop {
            let Idle { connection, since } = self.idle.borrow_mut().pop()?;
            self.cells().idle.sub(1);
            if since.plus(fresh) < now {
                // The stack is ordered: all below are older.
                self.keep(connection, since);
                return None;
            }
            if connection.opened.plus(max_age) > now && connection.stream.is_quiet() {
                self.cells().reuses.add(1);
                return Some(connection);
            }
        }
    }

    async fn connect(&self, now: Tick, slot: Slot) -> Result<Box<Connection<B>>, ConnectError> {
        let open = Open::new(self.endpoint.clone(), self.worker, slot);
        let socket = self.open().await.inspect_err(|error| {
            if matches!(error, ConnectError::Connect { .. }) {
                self.cells().connect_failures.add(1);
            }
        })?;
        self.cells().connects.add(1);
        Ok(Box::new(Connection { stream: Stream::new(socket, self.arena.clone()), opened: now, _open: open }))
    }

    /// Every address of the server is tried, the one that served last first.
    async fn open(&self) -> Result<TcpStream, ConnectError> {
        let addresses = &self.endpoint.addresses;
        let mut failure = None;
        for step in 0..addresses.len() {
            let position = (self.preferred.get() + step) % addresses.len();
            let address = addresses[position];
            match TcpStream::connect(address).await.and_then(|socket| self.prepared(socket)) {
                Ok(socket) => {
                    self.preferred.set(position);
                    return Ok(socket);
                }
                Err(error) if lacks_descriptors(&error) => return Err(ConnectError::Descriptors { address }),
                Err(source) => failure = Some(ConnectError::Connect { address, source }),
            }
        }
        Err(failure.expect("an endpoint has an address"))
    }

    /// Dead peers are found out: an idle one by the system's own probes, a silent one by bytes that it
    /// does not acknowledge.
    fn prepared(&self, socket: TcpStream) -> io::Result<TcpStream> {
        let rules = self.rules.get();
        socket.set_nodelay(true)?;
        let options = SockRef::from(&socket);
        options.set_tcp_keepalive(
            &TcpKeepalive::new().with_time(rules.keepalive).with_interval(rules.keepalive),
        )?;
        options.set_tcp_user_timeout(Some(rules.user_timeout))?;
        Ok(socket)
    }
}

/// Whether this process, or the host, may open no more files: no word about whoever was to be connected to.
pub fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

impl Rules {
    fn of(upstreams: &Upstreams, idle: Duration) -> Self {
        let Upstreams { max_age, keepalive, user_timeout, .. } = *upstreams;
        Self { idle, max_age, keepalive, user_timeout }
    }
}

/// The right to one request to an endpoint and its response. Dropped before the response has been read
/// to its end, it closes the connection; afterwards the connection goes back to the pool. It tells the
/// endpoint's health how the request went, or, dropped before that is known, that nobody knows.
pub struct Lease<B> {
    /// `None`: there is none yet, or it has been given back.
    connection: Option<Box<Connection<B>>>,
    pool: Rc<Pool<B>>,
    /// `None`: the result is known.
    ticket: Option<Ticket>,
    active: bool,
    waiting: bool,
    reused: bool,
    /// It waits for a connection to end.
    queued: bool,
    /// That it failed is counted.
    failed: bool,
}

/// Why no response head came, and whether the upstream had begun to answer.
#[derive(Debug)]
pub struct Unanswered<E> {
    pub error: Error<E>,
    pub answered: bool,
}

impl<B> Lease<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// Takes a kept connection that has been idle for less than `fresh`, and no longer than is allowed.
    pub fn reuse(&mut self, now: Tick, fresh: Duration) -> bool {
        self.connection = self.pool.reuse(now, fresh.min(self.pool.rules.get().idle));
        self.reused = self.connection.is_some();
        self.reused
    }

    /// Opens a new connection.
    pub async fn connect(&mut self, now: Tick) -> Result<(), ConnectError> {
        self.reused = false;
        self.queued = true;
        let slot = self.pool.endpoint.slots.take().await.map_err(|Crowded| ConnectError::Crowded)?;
        self.queued = false;
        self.connection = Some(self.pool.connect(now, slot).await?);
        Ok(())
    }

    /// Whether it waits for its turn to connect: the endpoint is not to blame for that.
    pub fn is_queued(&self) -> bool {
        self.queued
    }

    /// Whether the request under way can be had back with [`Self::take_request`] and sent again.
    pub fn can_rewind(&self, repeatable: bool) -> bool {
        self.connection.as_deref().is_some_and(|connection| connection.stream.can_rewind(repeatable))
    }

    pub fn pool(&self) -> &Rc<Pool<B>> {
        &self.pool
    }

    /// Whether the connection has served before: only then can it have been closed unnoticed.
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// Puts `request` on the way; it moves while the response's head is polled for.
    pub fn begin(&mut self, request: Outgoing<B>) {
        self.connected().begin(request);
    }

    /// Sends what the socket takes and looks for the response's head. `interim` gets what arrives before it.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        interim: &mut impl FnMut(Vec<u8>),
    ) -> Poll<Result<Response<()>, Unanswered<B::Error>>> {
        let stream = self.connected();
        let head = std::task::ready!(stream.poll_head(cx, interim));
        Poll::Ready(head.map_err(|error| Unanswered { error, answered: stream.answered() }))
    }

    fn connected(&mut self) -> &mut Stream<B> {
        &mut self.connection.as_deref_mut().expect("a lease is sent over while it is connected").stream
    }

    /// The request that got no response; closes the connection.
    pub fn take_request(&mut self) -> Option<Outgoing<B>> {
        self.connection.take()?.stream.take_request()
    }

    /// The response's head has come, in good time or not.
    pub fn judge(&mut self, status: u16, slow: bool) {
        self.stop_waiting();
        match status {
            // These speak of the request.
            501 | 505 => self.settle(Verdict::Neutral),
            500.. => self.fail(Cause::ResponseStatus),
            429 => self.settle(Verdict::Soft),
            400.. => self.settle(Verdict::Neutral),
            _ if slow => self.settle(Verdict::Soft),
            // A stream without an end would keep a probe's place.
            _ if self.ticket.is_some_and(Ticket::is_probe) => self.settle(Verdict::Success),
            // Only its end tells.
            _ => {}
        }
    }

    /// It has failed, and the endpoint is to blame.
    pub fn fail(&mut self, cause: Cause) {
        // What happens to the client after the response's end is not the endpoint's.
        if !self.active || std::mem::replace(&mut self.failed, true) {
            return;
        }
        self.pool.cells().failures[cause as usize].add(1);
        let (phase, what) = cause.names();
        tracing::debug!(upstream = self.pool.endpoint.name, phase, cause = what, "upstream failed");
        self.settle(Verdict::Failure);
    }

    /// The next piece of the response's body.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Piece<B::Error>> {
        let Some(connection) = self.connection.as_deref_mut() else { return Poll::Ready(None) };
        let polled = connection.stream.poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &polled {
            self.broke_off(error);
        }
        polled
    }

    /// Bytes of the body that [`Self::poll_move`] can have a pipe take.
    pub fn unread(&self) -> u64 {
        self.connection.as_deref().map_or(0, |connection| connection.stream.unread())
    }

    /// Has `pipe` take in the next bytes of the body; says how many.
    pub fn poll_move(
        &mut self,
        pipe: &mut Pipe,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, Error<B::Error>>> {
        let polled = self.connected().poll_move(pipe, cx);
        if let Poll::Ready(Err(error)) = &polled {
            self.broke_off(error);
        }
        polled
    }

    fn broke_off(&mut self, error: &Error<B::Error>) {
        match error {
            Error::Request(_) => {}
            Error::Malformed(_) => self.fail(Cause::BodyMalformed),
            Error::Closed | Error::Cut | Error::Io(_) => self.fail(Cause::BodyCut),
        }
    }

    pub fn is_end_stream(&self) -> bool {
        self.connection.as_deref().is_none_or(|connection| connection.stream.is_end_stream())
    }

    pub fn size_hint(&self) -> SizeHint {
        self.connection
            .as_deref()
            .map_or_else(|| SizeHint::with_exact(0), |connection| connection.stream.size_hint())
    }

    /// The response has been read to its end.
    pub fn release(&mut self, now: Tick) {
        self.settle(Verdict::Success);
        self.stop();
        if let Some(mut connection) = self.connection.take()
            && connection.stream.is_between()
            && connection.opened.plus(self.pool.rules.get().max_age) > now
            && self.pool.has_room()
        {
            // It holds on to the client that it came from.
            drop(connection.stream.take_request());
            self.pool.keep(connection, now);
        }
    }
}

impl<B> Lease<B> {
    fn settle(&mut self, verdict: Verdict) {
        let Some(ticket) = self.ticket.take() else { return };
        let endpoint = &*self.pool.endpoint;
        let chance = match verdict {
            Verdict::Success => {
                endpoint.cells[self.pool.worker].successes.add(1);
                0.0
            }
            Verdict::Failure | Verdict::Soft => self.pool.dice.fraction(),
            Verdict::Neutral | Verdict::Unknown => 0.0,
        };
        endpoint.health.settle(ticket, verdict, || endpoint.successes(), chance);
    }

    fn stop_waiting(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.pool.endpoint.cells[self.pool.worker].waiting.sub(1);
        }
    }

    fn stop(&mut self) {
        self.stop_waiting();
        if std::mem::take(&mut self.active) {
            self.pool.endpoint.cells[self.pool.worker].active.sub(1);
        }
    }
}

impl<B> Drop for Lease<B> {
    fn drop(&mut self) {
        self.settle(Verdict::Unknown);
        self.stop();
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
