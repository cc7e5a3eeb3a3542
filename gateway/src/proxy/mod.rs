//! The request's story: from a parsed head to the response that goes downstream.
//!
//! Called by a downstream connection, once per request, on the worker's own thread. It decides and
//! forwards; sockets of either side belong to `downstream` and `upstream`.

mod body;
pub mod client;
mod error;
mod exchange;
mod forward;
mod headers;
mod request_id;
mod target;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, DATE};
use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;

pub use body::{Body, RequestBody};
use body::{Lease, Pool};
use client::{Client, Phase};
pub use error::Failure;
use error::Wants;
use exchange::Exchange;
use headers::Seen;

use crate::metrics::{self, Registry};
use crate::snapshot::{Current, Snapshot};
use crate::timer::Wheel;

/// One worker's proxy. Everything in it is touched by that worker's thread alone.
pub struct Proxy {
    pub worker: usize,
    pub registry: Arc<Registry>,
    pub wheel: Rc<Wheel>,
    /// Connections close after the answer under way.
    pub draining: Cell<bool>,
    current: Arc<Current>,
    local: RefCell<Rc<Local>>,
    ids: request_id::Ids,
    date: RefCell<HeaderValue>,
}

/// A snapshot with this worker's own connections to its endpoints.
pub struct Local {
    pub snapshot: Arc<Snapshot>,
    worker: usize,
    registry: Arc<Registry>,
    /// By the snapshot's endpoint index.
    pools: Vec<Rc<Pool>>,
}

impl Proxy {
    pub fn new(worker: usize, current: Arc<Current>, registry: Arc<Registry>, wheel: Rc<Wheel>) -> Self {
        let local = Local::new(current.load_full(), worker, registry.clone(), &[]);
        Self {
            worker,
            registry,
            wheel,
            draining: Cell::new(false),
            current,
            local: RefCell::new(Rc::new(local)),
            ids: request_id::Ids::new(),
            date: RefCell::new(http_date()),
        }
    }

    /// The snapshot in force; a request calls this once.
    pub fn local(&self) -> Rc<Local> {
        let current = self.current.load();
        let mut local = self.local.borrow_mut();
        if local.snapshot.generation != current.generation {
            let next = Local::new(Arc::clone(&current), self.worker, self.registry.clone(), &local.pools);
            *local = Rc::new(next);
        }
        local.clone()
    }

    /// Called once a second: the `Date` field has that grain.
    pub fn set_date(&self) {
        *self.date.borrow_mut() = http_date();
    }

    /// Closes upstream connections that have been idle too long or were closed by the other side.
    pub fn sweep(&self) {
        let local = self.local();
        for pool in &local.pools {
            pool.sweep(self.wheel.now(), local.snapshot.config.timeouts.upstream_idle);
        }
    }

    /// The answer to a head that hyper refused with `status`, as bytes.
    pub fn refuse_head(&self, status: u16, client: &Rc<Client>) -> Vec<u8> {
        let failure = Failure::from_refused_head(status);
        let mut exchange = Exchange::begin(client, &self.local());
        exchange.answer(http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::BAD_REQUEST));
        exchange.fail(failure.outcome());
        failure.raw(self.ids.next(), self.date.borrow().clone())
    }

    /// Answers one request; every failure is a response.
    pub async fn respond(
        self: Rc<Self>,
        client: Rc<Client>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let local = self.local();
        client.header_read.set(local.snapshot.config.timeouts.header_read);
        let mut exchange = Exchange::begin(&client, &local);
        let trusted = client.is_trusted(&local.snapshot.config.trusted_proxies);
        let seen = Seen::of(request.headers());
        let wants = if seen.accept { Wants::of(request.headers()) } else { Wants::Problem };
        let told =
            (trusted && seen.request_id).then(|| request.headers().get(headers::X_REQUEST_ID)).flatten();
        let request_id = told.cloned().unwrap_or_else(|| self.ids.next());
        let expects = seen.expect;
        match answer(&local, &mut exchange, seen, trusted, &request_id, request).await {
            Ok((mut response, lease)) => {
                let version = std::mem::replace(response.version_mut(), Version::HTTP_11);
                headers::toward_downstream(response.headers_mut(), version, request_id, &self.date.borrow());
                exchange.answer(response.status());
                Ok(response.map(|body| Body::upstream(body, lease, exchange)))
            }
            Err(failure) => {
                // A body that waits for 100 and does not get it is not read: hyper ends the connection.
                let unread = expects && client.phase.get() == Phase::Receiving;
                let mut response = refuse(failure, wants, request_id, &self.date.borrow(), exchange);
                if unread {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok(response)
            }
        }
    }
}

async fn answer(
    local: &Local,
    exchange: &mut Exchange,
    mut seen: Seen,
    trusted: bool,
    request_id: &HeaderValue,
    request: Request<Incoming>,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let client = exchange.client().clone();
    let (mut parts, body) = request.into_parts();
    let body = RequestBody::new(body, &client);
    target::settle(&mut parts, &mut seen, &client)?;

    let snapshot = &*local.snapshot;
    let index = snapshot.table.find(seen.authority(), parts.uri.path()).ok_or(Failure::NoRoute)?;
    let route = &snapshot.routes[index];
    exchange.routed(index);
    if !route.admits(&parts.method) {
        return Err(Failure::MethodNotAllowed(route.allow.clone()));
    }

    let pool = &local.pools[route.endpoint];
    let host = (!route.config.preserve_host || seen.host.is_none()).then_some(&pool.endpoint.authority);
    headers::toward_upstream(&mut parts.headers, seen, &client, trusted, parts.version, host);
    parts.headers.insert(headers::X_REQUEST_ID, request_id.clone());
    client.takes_interim.set(parts.version == Version::HTTP_11);
    parts.version = Version::HTTP_11;

    let deadline = client.timer.now().plus(route.config.timeout);
    let request = Request::from_parts(parts, body);
    let answered = forward::send(pool, &client, &snapshot.config.timeouts, deadline, request).await?;
    client.timer.arm(deadline);
    Ok(answered)
}

fn refuse(
    failure: Failure,
    wants: Wants,
    request_id: HeaderValue,
    date: &HeaderValue,
    mut exchange: Exchange,
) -> Response<Body> {
    tracing::debug!(?failure, peer = %exchange.client().peer, "refused");
    exchange.fail(failure.outcome());
    let mut response = failure.response(wants, request_id.to_str().unwrap_or_default());
    exchange.answer(response.status());
    response.headers_mut().insert(headers::X_REQUEST_ID, request_id);
    response.headers_mut().insert(DATE, date.clone());
    response.map(|body| Body::full(Bytes::from(body), exchange))
}

fn http_date() -> HeaderValue {
    let now = httpdate::fmt_http_date(std::time::SystemTime::now());
    HeaderValue::try_from(now).expect("a date is visible ASCII")
}

impl Local {
    fn new(snapshot: Arc<Snapshot>, worker: usize, registry: Arc<Registry>, before: &[Rc<Pool>]) -> Self {
        let pools = snapshot.endpoints.iter().map(|endpoint| {
            let kept = before.iter().find(|pool| Arc::ptr_eq(&pool.endpoint, endpoint));
            kept.cloned().unwrap_or_else(|| Pool::new(endpoint.clone(), worker))
        });
        Self { pools: pools.collect(), snapshot, worker, registry }
    }

    /// This worker's counts for a route of the snapshot, or for requests without one.
    fn cells(&self, route: Option<usize>) -> &metrics::Route {
        match route {
            Some(route) => &self.snapshot.routes[route].cells[self.worker],
            None => &self.registry.unrouted[self.worker],
        }
    }
}
