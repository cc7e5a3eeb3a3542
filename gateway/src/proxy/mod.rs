//! The request's story: from a parsed head to the response that goes downstream.
//!
//! Called by a downstream connection, once per request, on the worker's own thread. It decides and
//! forwards; sockets of either side belong to `downstream` and `upstream`.

mod answers;
mod balance;
mod body;
mod cached;
pub mod client;
mod error;
mod exchange;
mod fetch;
pub mod forgotten;
mod forward;
mod headers;
pub mod identity;
mod limit;
pub mod rank;
mod request_id;
mod shed;
mod target;
mod trace;

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::Cache;
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderValue, Method, Response, Version};
use hyper::body::Incoming;
use rustc_hash::{FxHashMap, FxHashSet};

pub use body::{Body, RequestBody};
use body::{Pool, Source};
use cached::{Ask, Verdict};
use client::{Client, Phase};
pub use error::Failure;
use error::Wants;
use exchange::Exchange;
use forward::Way;
pub use headers::Seen;
use headers::{Announced, Upward};
use request_id::RequestId;
use trace::Trace;

use crate::access::{Cached, Desk};
use crate::cache::fanout::Fanout;
use crate::cache::policy;
use crate::cache::status::{CACHE_STATUS, Forward, Status};
use crate::config::Config;
use crate::datapath::Served;
use crate::limit::cluster::{Asked, Asking, Store};
use crate::lines;
use crate::metrics::{self, Outcome, Registry};
use crate::overload::Cause;
use crate::overload::distress::State;
use crate::overload::line::Line;
use crate::snapshot::{Current, Snapshot};
use crate::timer::Wheel;
use crate::upstream::balancer::Turns;
use crate::upstream::dice::Dice;
use crate::upstream::{Arena, Endpoint};

/// Requests of one connection that are told together.
const TOLD_AT_ONCE: u32 = 64;

/// One worker's proxy. Everything in it is touched by that worker's thread alone.
pub struct Proxy {
    pub worker: usize,
    pub registry: Arc<Registry>,
    pub wheel: Rc<Wheel>,
    /// Connections close after the answer under way.
    pub draining: Cell<bool>,
    /// Sources whose connections do, and the number of the set.
    blocked: RefCell<(u64, Arc<FxHashSet<IpAddr>>)>,
    has_blocked: Cell<bool>,
    current: RefCell<Cache<Arc<Current>, Arc<Snapshot>>>,
    local: RefCell<Rc<Local>>,
    ids: request_id::Ids,
    date: RefCell<HeaderValue>,
}

/// A snapshot with this worker's own connections to its endpoints.
pub struct Local {
    pub snapshot: Arc<Snapshot>,
    worker: usize,
    registry: Arc<Registry>,
    /// What all pools read into.
    arena: Rc<Arena>,
    dice: Rc<Dice>,
    /// By the snapshot's endpoint index.
    pools: Vec<Rc<Pool>>,
    /// By the snapshot's route index.
    lines: Vec<Rc<Line>>,
    /// By the snapshot's cluster index.
    turns: Vec<RefCell<Turns>>,
    limiter: limit::Limiter,
    /// Where rules are counted that several gateways share; `None`: there are no such rules.
    store: Option<Rc<Store>>,
    /// What was heard of sources since the last sweep.
    heard: Rc<RefCell<Vec<(IpAddr, Served)>>>,
    /// Empty: the memory of a key that was looked up.
    key: RefCell<Vec<u8>>,
    /// Wakes those on this worker who wait for a fetch.
    fanout: Rc<Fanout>,
    /// `None`: nothing is written about requests.
    desk: Option<Rc<Desk>>,
}

impl Proxy {
    pub fn new(worker: usize, current: Arc<Current>, registry: Arc<Registry>, wheel: Rc<Wheel>) -> Self {
        let local = Local::new(current.load_full(), worker, registry.clone(), &wheel, None);
        Self {
            worker,
            registry,
            wheel,
            draining: Cell::new(false),
            blocked: RefCell::default(),
            has_blocked: Cell::new(false),
            current: RefCell::new(Cache::new(current)),
            local: RefCell::new(Rc::new(local)),
            ids: request_id::Ids::new(),
            date: RefCell::new(http_date()),
        }
    }

    /// The snapshot in force; a request calls this once.
    pub fn local(&self) -> Rc<Local> {
        let (mut current, mut local) = (self.current.borrow_mut(), self.local.borrow_mut());
        let current = current.load();
        if local.snapshot.serial != current.serial {
            let (next, registry) = (Arc::clone(current), self.registry.clone());
            let next = Local::new(next, self.worker, registry, &self.wheel, Some(&local));
            *local = Rc::new(next);
        }
        local.clone()
    }

    /// Called once a second: the `Date` field has that grain.
    pub fn set_date(&self) {
        *self.date.borrow_mut() = http_date();
    }

    /// Wakes those on this worker who wait for a fetch, for as long as it is polled.
    pub async fn wake_followers(&self) {
        let fanout = self.local().fanout.clone();
        fanout.run().await
    }

    /// Closes upstream connections that have been idle too long or were closed by the other side, and
    /// forgets keys of rate limits that owe nothing any more.
    pub fn sweep(&self) {
        let local = self.local();
        if self.worker == 0 {
            let (limits, now) = (&local.snapshot.limits, Instant::now());
            limits.sweep(limits.at(now));
            for cluster in &local.snapshot.clusters {
                cluster.compare(&local.snapshot.config.upstreams, now);
            }
        }
        for pool in &local.pools {
            pool.sweep(self.wheel.now());
        }
        local.tell_of_sources();
        local.desk.iter().for_each(|desk| desk.flush());
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        self.registry.workers[self.worker].tasks.set(tasks as u64);
    }

    /// Called at each tick of the worker's clock: looks at how endpoints are doing, and who is blocked.
    pub fn tick(&self, now: Instant) {
        let local = self.local();
        let sources = &local.snapshot.sources;
        sources.press(pressure(local.snapshot.distress.read(now)));
        if sources.changes() != self.blocked.borrow().0 {
            let blocked = sources.blocked();
            self.has_blocked.set(!blocked.1.is_empty());
            self.blocked.replace(blocked);
            self.wheel.wake_all();
        }
        local.pools.iter().for_each(|pool| pool.look_around());
        if self.worker == 0 {
            local.snapshot.endpoints.iter().for_each(|endpoint| endpoint.tick(now));
            for cluster in &local.snapshot.clusters {
                cluster.tick(&local.snapshot.config.upstreams);
            }
        }
    }

    /// Whether the connections of this source end: after the answer under way, where there is one.
    #[inline]
    pub fn blocks(&self, client: &Client) -> bool {
        self.has_blocked.get() && self.is_blocked(client)
    }

    #[cold]
    fn is_blocked(&self, client: &Client) -> bool {
        let snapshot = &self.local().snapshot;
        let source = client.standing(snapshot).identity;
        let is_blocked = source.is_peer && self.blocked.borrow().1.contains(&source.address);
        is_blocked && snapshot.sources.ends(client.peer.ip())
    }

    /// A connection is over: tells what has not been told of its requests.
    pub fn took_leave(&self, client: &Client) {
        if client.untold.get() != Served::default() {
            self.local().enter(client);
        }
    }

    /// The answer to a head that hyper refused with `status`, as bytes.
    pub fn refuse_head(&self, status: u16, client: &Rc<Client>) -> Vec<u8> {
        let failure = Failure::from_refused_head(status);
        let mut exchange = Exchange::begin(client, &self.local());
        exchange.answer(http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::BAD_REQUEST));
        exchange.fail(failure.outcome());
        failure.raw(&self.ids.next(), &self.date.borrow())
    }

    /// The answer to a connection for which there is no place, as bytes.
    pub fn turn_away(&self) -> Vec<u8> {
        Failure::Shed(Cause::Descriptors).raw(&self.ids.next(), &self.date.borrow())
    }

    /// Whether the request under way is to be the last of its connection.
    fn is_last(&self, client: &Client, config: &Config) -> bool {
        if config.connections.max_requests.is_some_and(|most| client.requests.get() >= most) {
            self.registry.workers[self.worker].ended.requests.add(1);
            return true;
        }
        self.draining.get() || self.blocks(client)
    }

    /// Answers one request under what is in force; every failure is a response. `body`: `None` where the request is plain
    /// and has none.
    pub async fn respond(
        self: &Rc<Self>,
        local: &Rc<Local>,
        client: &Rc<Client>,
        mut heads: Heads<'_>,
        body: Option<Incoming>,
    ) -> Body {
        client.header_read.set(local.snapshot.config.timeouts.header_read);
        let mut exchange = Exchange::begin(client, local);
        let trusted = client.standing(&local.snapshot).trusted;
        let is_plain = body.is_none();
        let body = RequestBody::new(body, client);
        let (parts, seen) = (&*heads.parts, &*heads.seen);
        if trusted {
            exchange.identify(&parts.headers);
        } else if let Some(field) = seen.proxy_field {
            client.spoke_like_a_proxy(field);
        }
        let wants = if seen.accept { Wants::of(&parts.headers) } else { Wants::Problem };
        let told = (trusted && seen.request_id).then(|| parts.headers.get(headers::X_REQUEST_ID)).flatten();
        let told = told.filter(|id| request_id::is_plain(id)).cloned();
        let request_id = told.map_or_else(|| self.ids.next(), RequestId::Told);
        let mode = local.snapshot.config.trace_context;
        let trace = Trace::of(mode, seen, &parts.headers, &self.ids);
        exchange.note(parts, seen, request_id.as_bytes(), &trace);
        let told = Told { trusted, request_id: request_id.as_bytes(), trace: &trace };
        let answered = answer(self, local, &mut exchange, told, &mut heads, body).await;
        let Heads { seen, response, .. } = heads;
        let last = self.is_last(client, &local.snapshot.config);
        match answered {
            Ok(source) => {
                let version = std::mem::replace(response.version_mut(), Version::HTTP_11);
                let (headers, mut lines) = (response.headers_mut(), client.lines.borrow_mut());
                let (id, date) = (&request_id, &self.date.borrow());
                match source.is_upstream() {
                    true if is_plain => headers::write_downstream(headers, &mut lines, version, id, date),
                    true => headers::toward_downstream(headers, version, id, date),
                    false if !lines.is_empty() => headers::write_id(&mut lines, id),
                    false => drop(headers.insert(headers::X_REQUEST_ID, id.value())),
                }
                drop(lines);
                if last {
                    headers.insert(CONNECTION, HeaderValue::from_static("close"));
                }
                exchange.answer(response.status());
                Body::new(source, exchange)
            }
            Err(failure) => {
                // A body that waits for 100 and does not get it is not read: hyper ends the connection.
                let last = last || seen.expect && client.phase.get() == Phase::Receiving;
                let body = failure.respond(wants, &request_id, &self.date.borrow(), last, exchange, response);
                // The next that hyper writes may be a 100.
                if seen.expect {
                    lines::take_back(&mut client.lines.borrow_mut(), response.headers_mut());
                }
                body
            }
        }
    }
}

/// The heads of an exchange. They are lent: they are too large to be handed on more often than need be, and the
/// request's is of use to the connection's next.
pub struct Heads<'a> {
    pub parts: &'a mut Parts,
    /// What is seen of the request's fields.
    pub seen: &'a mut Seen,
    /// The answer's, to be filled in.
    pub response: &'a mut Response<()>,
}

/// What is known of a request besides what it says itself.
struct Told<'a> {
    trusted: bool,
    request_id: &'a [u8],
    trace: &'a Trace,
}

async fn answer(
    proxy: &Rc<Proxy>,
    local: &Rc<Local>,
    exchange: &mut Exchange,
    told: Told<'_>,
    heads: &mut Heads<'_>,
    body: RequestBody,
) -> Result<Source, Failure> {
    let Told { trusted, request_id, trace } = told;
    let client = exchange.client().clone();
    target::settle(heads.parts, heads.seen, &client)?;
    let (parts, seen, response) = (&*heads.parts, &*heads.seen, &mut *heads.response);

    let snapshot = &*local.snapshot;
    let authority = seen.authority();
    let index = snapshot.table.find(authority, parts.uri.path()).ok_or(Failure::NoRoute)?;
    let route = &snapshot.routes[index];
    shed::begin(exchange, snapshot, index, parts.uri.path())?;
    if !route.admits(&parts.method) {
        return Err(Failure::MethodNotAllowed(route.allow.clone()));
    }
    let entered = limit::enter(local, exchange, index);
    let asked = match route.limits.are_shared() && entered.is_ok() {
        false => Asked::Skipped,
        true => match limit::ask(local, exchange, index, parts) {
            Asking::Known(asked) => asked,
            // Boxed for the same reason as below.
            Asking::Wait(waiting) => Box::pin(waiting.answer()).await,
        },
    };
    entered?;
    let standing = limit::admit(local, exchange, index, parts, &asked)?;

    let deadline = client.timer.now().plus(route.config.timeout);
    let announced = body.announced();
    let cluster = &snapshot.clusters[route.cluster];
    let balance_key = balance::key(&cluster.config.policy, exchange.identity.address, parts);
    let ask = {
        let (client, now) = (&client, exchange.started());
        Ask {
            proxy,
            local,
            route: index,
            client,
            parts,
            seen,
            authority,
            trusted,
            request_id,
            trace,
            now,
            deadline,
            balance_key,
        }
    };
    let mut past_the_cache = None;
    if route.cache.is_some() {
        let verdict = match announced {
            Announced::Nothing => cached::look(&ask, response)?,
            Announced::Length(_) | Announced::Chunked => Verdict::Forward(Forward::Method),
        };
        let answered = match verdict {
            Verdict::Answered(source) => Some(source),
            // Boxed: a request that does not wait need not carry the room for it.
            Verdict::Wait(request, miss) => Some(Box::pin(request.wait(miss, response)).await?),
            Verdict::Forward(why) => {
                ask.counts().bypassed.add(1);
                client.met_cache(Cached::Bypass);
                past_the_cache = Some(why);
                None
            }
        };
        if let Some(source) = answered {
            limit::announce(local, index, standing, response.headers_mut());
            return Ok(source);
        }
    }

    let own_host = !route.config.preserve_host || seen.host.is_none();
    let host = own_host.then_some(&cluster.authority);
    let to = Upward { client: &client, trusted, host, request_id, trace, body: announced };
    let head = headers::write_upstream(parts, seen, &to);
    client.takes_interim.set(parts.version == Version::HTTP_11);

    let idempotent = parts.method.is_idempotent();
    let is_head = parts.method == Method::HEAD;
    let request = body::Request::new(head, body, announced == Announced::Chunked, is_head);
    let way = Way { local, client: &client, route, deadline, key: balance_key, own_host, idempotent };
    let exempt = || shed::is_exempt(snapshot, parts.uri.path());
    let sent = shed::send(&way, index, exempt, exchange.started(), request).await;
    let (head, lease, since) = sent.map_err(|failed| failed.failure)?;
    *response = head;
    exchange.answered(since);
    client.timer.arm(deadline);
    limit::announce(local, index, standing, response.headers_mut());
    if let Some(why) = past_the_cache {
        if policy::invalidates(&parts.method, response.status()) {
            ask.invalidate(response.headers());
        }
        let status = Status::Forwarded { why, status: None, stored: false, collapsed: false };
        response.headers_mut().append(CACHE_STATUS, status.value());
    }
    Ok(Source::Upstream(lease))
}

/// What the kernel half is to hear of the gateway's distress: nothing while refusals of its own may end it, then a
/// tenth, and all of it at twice the distress at which requests begin to be refused.
fn pressure(distress: State) -> f64 {
    const LEAST: f64 = 0.1;
    let beyond = (f64::from(distress.permille) - 1_000.0) / 1_000.0;
    if distress.lasting { beyond.clamp(LEAST, 1.0) } else { 0.0 }
}

fn http_date() -> HeaderValue {
    let now = httpdate::fmt_http_date(std::time::SystemTime::now());
    HeaderValue::try_from(now).expect("a date is visible ASCII")
}

impl Local {
    /// For `snapshot`, with the connections, the queues and all else of `before` that both have.
    fn new(
        snapshot: Arc<Snapshot>,
        worker: usize,
        registry: Arc<Registry>,
        wheel: &Rc<Wheel>,
        before: Option<&Self>,
    ) -> Self {
        let pools = before.into_iter().flat_map(|before| &before.pools);
        let mut kept: FxHashMap<_, _> = pools.map(|pool| (Arc::as_ptr(&pool.endpoint), pool)).collect();
        let queues = before.into_iter().flat_map(|before| &before.lines);
        let queues: FxHashMap<_, _> = queues.map(|line| (Arc::as_ptr(&line.gate), line)).collect();
        let lines = snapshot.routes.iter().map(|route| {
            let queue = queues.get(&Arc::as_ptr(&route.gate)).copied();
            queue.cloned().unwrap_or_else(|| Line::new(route.gate.clone(), worker))
        });
        let lines = lines.collect();
        let own = |before: &Self| (before.arena.clone(), before.dice.clone(), before.heard.clone());
        let (arena, dice, heard) = before.map_or_else(Default::default, own);
        let fanout = before.map_or_else(
            || Fanout::new(worker, snapshot.cache.flights.inbox(worker).clone()),
            |before| before.fanout.clone(),
        );
        let mut this = Self {
            pools: Vec::new(),
            turns: turns(&snapshot),
            lines,
            limiter: limit::Limiter::new(&snapshot),
            store: limit::store(
                &snapshot,
                worker,
                &registry,
                wheel,
                before.and_then(|before| before.store.as_ref()),
            ),
            desk: desk(&snapshot, worker, &registry, before.and_then(|before| before.desk.as_ref())),
            snapshot,
            worker,
            registry,
            arena,
            dice,
            heard,
            key: RefCell::default(),
            fanout,
        };
        let config = &this.snapshot.config;
        let pools =
            this.snapshot.endpoints.iter().map(|endpoint| match kept.remove(&Arc::as_ptr(endpoint)) {
                Some(pool) => {
                    pool.configure(&config.upstreams, config.timeouts.upstream_idle);
                    pool.clone()
                }
                None => this.pool(endpoint),
            });
        this.pools = pools.collect();
        kept.into_values().for_each(|pool| pool.retire());
        this
    }

    fn pool(&self, endpoint: &Arc<Endpoint>) -> Rc<Pool> {
        let (shared, config) = ((self.arena.clone(), self.dice.clone()), &self.snapshot.config);
        Pool::new(endpoint.clone(), self.worker, shared, &config.upstreams, config.timeouts.upstream_idle)
    }

    /// What heads of either side are read with.
    pub fn arena(&self) -> &Rc<Arena> {
        &self.arena
    }

    /// Notes how a request of a peer ended. The first of a connection is told with the next sweep, the others when
    /// there are many.
    fn hear(&self, client: &Client, outcome: Outcome) {
        let mut served = client.untold.get();
        match outcome {
            Outcome::Ok => served.completed += 1,
            Outcome::Limited => served.refused += 1,
            Outcome::BadRequest
            | Outcome::NoRoute
            | Outcome::MethodNotAllowed
            | Outcome::Concurrency
            | Outcome::ConnectFailed
            | Outcome::UpstreamFailed
            | Outcome::Timeout
            | Outcome::Overloaded
            | Outcome::ShedLimit
            | Outcome::ShedQueue
            | Outcome::ShedDelay
            | Outcome::ShedMemory
            | Outcome::ShedDescriptors
            | Outcome::ClientAbort
            | Outcome::Unavailable => return,
        }
        client.untold.set(served);
        if !client.is_told_of.replace(true) || served.completed + served.refused >= TOLD_AT_ONCE {
            self.enter(client);
        }
    }

    fn enter(&self, client: &Client) {
        let source = client.standing(&self.snapshot).identity.address;
        self.heard.borrow_mut().push((source, client.untold.take()));
    }

    /// Called once a second.
    fn tell_of_sources(&self) {
        let mut heard = self.heard.borrow_mut();
        if !heard.is_empty() {
            self.snapshot.sources.served(&heard);
            heard.clear();
        }
    }

    /// This worker's counts for a route of the snapshot, or for requests without one.
    fn cells(&self, route: Option<usize>) -> &metrics::Route {
        match route {
            Some(route) => &self.snapshot.routes[route].cells[self.worker],
            None => &self.registry.unrouted[self.worker],
        }
    }

    /// How many requests are under way on this worker.
    fn under_way(&self) -> &metrics::Cell {
        &self.registry.workers[self.worker].under_way
    }
}

/// This worker's side of the log that `snapshot` has; `kept` where it is the same.
fn desk(
    snapshot: &Snapshot,
    worker: usize,
    registry: &Arc<Registry>,
    kept: Option<&Rc<Desk>>,
) -> Option<Rc<Desk>> {
    let access = snapshot.access.as_ref()?;
    let kept = kept.filter(|desk| desk.is_of(access)).cloned();
    Some(kept.unwrap_or_else(|| Rc::new(Desk::new(access.clone(), registry.clone(), worker))))
}

/// Everybody's first turn, in each cluster.
fn turns(snapshot: &Snapshot) -> Vec<RefCell<Turns>> {
    snapshot.clusters.iter().map(|_| RefCell::default()).collect()
}
