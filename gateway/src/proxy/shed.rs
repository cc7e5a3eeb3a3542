//! A request before its route's gate: where it is let in, queues, or is refused so that others are served.
//!
//! `answer` asks as a request begins, and whoever sends one upstream asks again. What a gate admits is
//! `crate::overload`'s; the answer to a refusal is `error`'s.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use http::Response;

use super::Local;
use super::body::{Lease, Request};
use super::client::Client;
use super::error::Failure;
use super::exchange::Exchange;
use super::forward::{self, Failed, Way};
use crate::overload::Cause;
use crate::overload::line::{Line, Place};
use crate::snapshot::Snapshot;

/// Opens the request's account with its route, unless pressure on the gateway leaves no room for it. Who asks matters
/// only then.
pub fn begin(exchange: &mut Exchange, snapshot: &Snapshot, route: usize, path: &str) -> Result<(), Failure> {
    if exchange.routed(route) || is_exempt(snapshot, path) || exchange.is_favoured(route) {
        return Ok(());
    }
    // At ease, the route has met the share of connections that one may have.
    let distress = snapshot.distress.read(Instant::now());
    Err(Failure::Shed(if distress.shedding { distress.cause } else { Cause::Descriptors }))
}

/// Whether a request for `path` is never refused here.
pub fn is_exempt(snapshot: &Snapshot, path: &str) -> bool {
    let overload = &snapshot.config.overload;
    !overload.enabled || overload.exempts(path)
}

/// Sends `request` once there is a place for it before the upstream of `route`, which it has until the answer begins.
/// Returns since when it had it, too: since `now`, unless it queued.
#[inline]
pub async fn send(
    way: &Way<'_>,
    route: usize,
    exempt: impl FnOnce() -> bool,
    now: Instant,
    request: Request,
) -> Result<(Response<()>, Lease, Instant), Failed> {
    let line = &way.local.lines[route];
    let place = match line.enter(now) {
        Some(place) => place,
        None if exempt() => line.force(now),
        // Boxed: a request that finds a place need not carry the room for it. To try again would be refused too.
        None => Box::pin(queue(way.local, line, way.client))
            .await
            .map_err(|failure| Failed { failure, retried: true })?,
    };
    let sent = place.since().unwrap_or(now);
    let (response, lease) = forward::send(way, request).await?;
    // What failed quickly is no measure of what waits.
    match response.status().is_server_error() {
        true => place.failed(),
        false => place.answered(Instant::now()),
    }
    Ok((response, lease, sent))
}

async fn queue(local: &Local, line: &Rc<Line>, client: &Client) -> Result<Place, Failure> {
    let overload = &local.snapshot.config.overload;
    let longest = overload.queue.div_ceil(local.registry.workers.len() as u32) as usize;
    let shed = |cause| Failure::Shed(if line.is_limited() { cause } else { Cause::Descriptors });
    let mut queued = line.queue(longest, Instant::now()).ok_or_else(|| shed(Cause::Limit))?;
    let deadline = client.timer.now().plus(overload.queue_timeout);
    client.timer.arm(deadline);
    poll_fn(|cx| match queued.poll(cx) {
        Poll::Ready(place) => Poll::Ready(Ok(place)),
        Poll::Pending if client.timer.now() >= deadline => Poll::Ready(Err(shed(Cause::Queue))),
        Poll::Pending => Poll::Pending,
    })
    .await
}
