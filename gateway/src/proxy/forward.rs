//! One request's way to its upstream and back to the response's head.
//!
//! A kept connection may have been closed by the upstream just now. When that happens before a
//! byte of an answer, and repeating is safe (RFC 9110 §9.2.2), the request goes out once more on a
//! new connection, so nobody sees a 502 for it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;

use super::body::{Lease, Pool, RequestBody};
use super::client::Client;
use super::error::Failure;
use crate::config::Timeouts;
use crate::timer::Tick;
use crate::upstream::SendError;

/// More fields than the configuration admits, and those the gateway adds.
const MAX_HEADERS: usize = 1024;
/// A request that cannot be repeated goes over a connection used this recently, or over a new one:
/// servers do not close those, so the race is all but excluded.
const FRESH: Duration = Duration::from_secs(1);

/// Sends `request` through `pool`. `deadline` holds for all attempts together.
pub async fn send(
    pool: &Rc<Pool>,
    client: &Client,
    timeouts: &Timeouts,
    deadline: Tick,
    request: Request<RequestBody>,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let repeatable = request.method().is_idempotent() && matches!(request.body(), RequestBody::Empty);
    let idle = if repeatable { timeouts.upstream_idle } else { FRESH };
    let mut lease = match pool.reuse(client.timer.now(), idle) {
        Some(lease) => lease,
        None => connect(pool, client, timeouts, deadline).await?,
    };
    let keep = lease.reused() && repeatable;
    let failed = match attempt(&mut lease, client, deadline, request, keep).await? {
        Ok(response) => return Ok((response, lease)),
        Err(failed) => failed,
    };
    let closed_unnoticed = keep && !failed.answered;
    let again = match failed.unsent {
        Some(request) => *request,
        None if closed_unnoticed => rebuild(&lease.sent()).ok_or_else(|| failure(failed.error))?,
        None => return Err(failure(failed.error)),
    };
    drop(lease);
    pool.count_retry();
    let mut lease = connect(pool, client, timeouts, deadline).await?;
    let response = attempt(&mut lease, client, deadline, again, false).await?;
    Ok((response.map_err(|failed| failure(failed.error))?, lease))
}

async fn connect(
    pool: &Rc<Pool>,
    client: &Client,
    timeouts: &Timeouts,
    deadline: Tick,
) -> Result<Lease, Failure> {
    let now = client.timer.now();
    let limit = deadline.min(now.plus(timeouts.connect));
    let connected = until(client, limit, "connect", pin!(pool.connect(now))).await?;
    connected.map_err(|error| Failure::Connect(error.to_string()))
}

async fn attempt(
    lease: &mut Lease,
    client: &Client,
    deadline: Tick,
    request: Request<RequestBody>,
    keep: bool,
) -> Result<Result<Response<Incoming>, SendError<RequestBody>>, Failure> {
    let interim = |heads: Vec<u8>| {
        if client.takes_interim.get() {
            client.interim.borrow_mut().extend_from_slice(&heads);
        }
    };
    until(client, deadline, "response", pin!(lease.send(request, keep, &client.mute, interim))).await
}

/// Polls `future` until the connection's clock passes `limit`.
async fn until<F: Future>(
    client: &Client,
    limit: Tick,
    phase: &'static str,
    mut future: Pin<&mut F>,
) -> Result<F::Output, Failure> {
    client.timer.arm(limit);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending if client.timer.now() >= limit => Poll::Ready(Err(Failure::Timeout(phase))),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// The request without a body whose head hyper wrote as `head`.
fn rebuild(head: &[u8]) -> Option<Request<RequestBody>> {
    let mut fields = vec![httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut fields);
    if !parsed.parse(head).ok()?.is_complete() {
        return None;
    }
    let mut request = Request::builder().method(parsed.method?).uri(parsed.path?);
    for field in parsed.headers.iter() {
        request = request.header(field.name, field.value);
    }
    request.body(RequestBody::Empty).ok()
}

fn failure(error: hyper::Error) -> Failure {
    // Our own request's body is the only user-made part: the client sent it wrong or not to its end.
    if error.is_user() {
        Failure::BadRequest("The request's body is malformed or incomplete.")
    } else {
        Failure::Upstream(describe(&error))
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
