//! One request's way to its upstream and back to the response's head: choose, send, judge, send again.
//!
//! A kept connection may have been closed by the upstream just now. When that happens before a byte of
//! an answer, and repeating is safe (RFC 9110 §9.2.2), the request goes out once more on a new
//! connection, which is no fault of anybody's. Any other failure is the endpoint's, and what the route
//! says of retries decides what becomes of the request.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use http::Response;
use http::header::RETRY_AFTER;

use super::Local;
use super::body::{Lease, Request};
use super::client::{Client, Met};
use super::error::Failure;
use crate::metrics::{Again, Cause};
use crate::overload;
use crate::snapshot::Route;
use crate::timer::Tick;
use crate::upstream::budget::Charge;
use crate::upstream::cluster::{Asked, Cluster};
use crate::upstream::health::Refused;
use crate::upstream::{self, ConnectError};

/// A request that cannot be repeated goes over a connection used this recently, or over a new one:
/// servers do not close those, so the race is all but excluded.
const FRESH: Duration = Duration::from_secs(1);

/// Before the same endpoint is asked once more; doubled for each time.
const BACK_OFF: Duration = Duration::from_millis(25);

/// Where a request goes, and under which conditions.
pub struct Way<'a> {
    pub local: &'a Rc<Local>,
    pub client: &'a Client,
    pub route: &'a Route,
    /// Holds for all tries together.
    pub deadline: Tick,
    /// Of the request, hashed, where the balancer goes by one.
    pub key: u64,
    /// The head begins with the endpoint's own name.
    pub own_host: bool,
    /// Sending it twice does no harm.
    pub idempotent: bool,
}

/// No response, and whether that came of more than one try, or of what another would meet as well.
pub struct Failed {
    pub failure: Failure,
    pub retried: bool,
}

/// One try that came to nothing.
struct Miss {
    failure: Failure,
    why: Again,
    /// Where it can be sent again.
    request: Option<Request>,
}

/// The try that follows one.
struct Next {
    member: usize,
    lease: Lease,
    why: Again,
    /// Before it begins.
    wait: Duration,
    _charge: Charge,
}

/// Boxed: what goes well need not carry the room for it.
type Outcome = Result<Response<()>, Box<Miss>>;

/// Sends `request`, more than once if that is allowed and helps.
pub async fn send(way: &Way<'_>, mut request: Request) -> Result<(Response<()>, Lease), Failed> {
    let first = way.choose(&[]).map_err(|failure| Failed { failure, retried: false });
    let (member, mut lease) = first?;
    if way.idempotent && way.route.config.retry.attempts > 0 {
        request.keep(way.route.config.retry.max_body_bytes);
    }
    let outcome = way.attempt(&mut lease, request).await;
    match outcome {
        Ok(response) if !way.is_none(&response) => Ok((response, lease)),
        // Boxed: what goes well need not carry the room for it.
        outcome => Box::pin(way.go_on(member, lease, outcome)).await,
    }
}

impl Way<'_> {
    /// Tries again for as long as there is a reason, a budget and an endpoint.
    async fn go_on(
        &self,
        member: usize,
        mut lease: Lease,
        mut outcome: Outcome,
    ) -> Result<(Response<()>, Lease), Failed> {
        let mut tried = vec![member];
        loop {
            let Some(mut next) = self.next(&tried, &outcome, &lease) else {
                return match outcome {
                    Ok(response) => Ok((response, lease)),
                    Err(miss) => {
                        let retried = tried.len() > 1 || matches!(miss.failure, Failure::Shed(_));
                        Err(Failed { failure: miss.failure, retried })
                    }
                };
            };
            let request = match outcome {
                Ok(_) => lease.take_request().and_then(|request| request.rewound(self.idempotent)),
                Err(miss) => miss.request,
            };
            let request = request.expect("a try follows only where the request can be had back");
            lease.pool().count_retry(next.why);
            drop(lease);
            if !next.wait.is_zero() {
                self.rest(next.wait).await;
            }
            tried.push(next.member);
            outcome = self.attempt(&mut next.lease, request).await;
            lease = next.lease;
        }
    }

    /// The try that is to follow, if one is.
    fn next(&self, tried: &[usize], outcome: &Outcome, lease: &Lease) -> Option<Next> {
        let (why, asked_to_wait) = match outcome {
            Ok(response) if self.is_none(response) && lease.can_rewind(self.idempotent) => {
                (Again::Status, retry_after(response))
            }
            Ok(_) => return None,
            // No endpoint would cure what the gateway itself is short of.
            Err(miss) if matches!(miss.failure, Failure::Shed(_)) => return None,
            Err(miss) => miss.request.as_ref().map(|_| (miss.why, Duration::ZERO))?,
        };
        if tried.len() > self.route.config.retry.attempts as usize {
            return None;
        }
        // Before the choice, which counts the request at another endpoint as well.
        let (cluster, rules) = (self.cluster(), &self.local.snapshot.config.upstreams);
        let charge = cluster.budget.charge(cluster.active(), rules.retry_percent, rules.retry_minimum)?;
        let (member, next) = self.choose(tried).ok()?;
        let times = tried.iter().filter(|&&other| other == member).count() as u32;
        // Another endpoint has said nothing about waiting.
        let wait = match times {
            0 => Duration::ZERO,
            _ => asked_to_wait.max(BACK_OFF * 2_u32.pow(times.min(6) - 1)),
        };
        if self.client.timer.now().plus(wait) >= self.deadline {
            return None;
        }
        Some(Next { member, lease: next, why, wait, _charge: charge })
    }

    /// Lets `wait` pass.
    async fn rest(&self, wait: Duration) {
        let limit = self.client.timer.now().plus(wait);
        let forever = pin!(std::future::pending::<()>());
        // It ends by its limit alone.
        let _ = until(self.client, limit, "retry", forever).await;
    }

    fn cluster(&self) -> &Cluster {
        &self.local.snapshot.clusters[self.route.cluster]
    }

    /// Whether an answer is as good as none.
    fn is_none(&self, response: &Response<()>) -> bool {
        let retry = &self.route.config.retry;
        response.status().as_u16() >= 400
            && self.idempotent
            && retry.attempts > 0
            && retry.statuses.contains(&response.status().as_u16())
    }

    /// An endpoint that may be asked; one that was not tried before, if there is one.
    fn choose(&self, tried: &[usize]) -> Result<(usize, Lease), Failure> {
        let cluster = self.cluster();
        if cluster.members.is_empty() {
            return Err(Failure::Connect(cluster.unresolved.join("; ")));
        }
        let retry = &self.route.config.retry;
        let asked = Asked {
            key: self.key,
            tried,
            expendable: self.idempotent && tried.len() < retry.attempts as usize,
            lost_after: self.route.config.timeout,
        };
        let pool = |member: usize| &self.local.pools[cluster.members[member].index];
        let mut turns = self.local.turns[self.route.cluster].borrow_mut();
        let chosen = cluster.choose(&asked, |member| pool(member).load(), &mut turns, &self.local.dice);
        match chosen {
            Ok((member, ticket)) => {
                let (met, endpoint) = (self.client.met.get(), cluster.members[member].index);
                self.client.met.set(Met { tries: met.tries + 1, endpoint, ..met });
                Ok((member, pool(member).enter(ticket)))
            }
            Err(Refused::For(wait)) => Err(Failure::Unavailable(wait)),
            Err(Refused::Drained) => Err(Failure::Drained),
        }
    }

    /// One try, from the connection to the response's head; tells the endpoint's health of it.
    async fn attempt(&self, lease: &mut Lease, mut request: Request) -> Outcome {
        if self.own_host {
            request.rehost(lease.pool().endpoint.authority.as_bytes());
        }
        let (timer, retry) = (&self.client.timer, &self.route.config.retry);
        let started = timer.now();
        let limit =
            retry.per_try_timeout.map_or(self.deadline, |limit| self.deadline.min(started.plus(limit)));
        let idle = if self.idempotent { Duration::MAX } else { FRESH };
        if !lease.reuse(started, idle)
            && let Err((failure, why)) = self.connect(lease, limit).await
        {
            return Err(Box::new(Miss { failure, why, request: Some(request) }));
        }
        lease.begin(request);
        let error = match self.head(lease, limit).await {
            Ok(Ok(response)) => {
                self.judge(lease, &response, started);
                return Ok(response);
            }
            Ok(Err(unanswered)) => {
                // A body that has failed would look like one that has ended.
                let client_failed = matches!(unanswered.error, upstream::Error::Request(_));
                let closed_unnoticed = lease.reused() && !unanswered.answered && !client_failed;
                let again =
                    closed_unnoticed.then(|| lease.take_request()?.rewound(self.idempotent)).flatten();
                match again {
                    Some(request) => return Box::pin(self.anew(lease, limit, started, request)).await,
                    None => Ok(unanswered.error),
                }
            }
            Err(timeout) => Err(timeout),
        };
        Err(self.miss(lease, error))
    }

    /// Once more to the same endpoint, on a new connection.
    async fn anew(&self, lease: &mut Lease, limit: Tick, started: Tick, request: Request) -> Outcome {
        lease.pool().count_retry(Again::Stale);
        if let Err((failure, why)) = self.connect(lease, limit).await {
            return Err(Box::new(Miss { failure, why, request: Some(request) }));
        }
        lease.begin(request);
        match self.head(lease, limit).await {
            Ok(Ok(response)) => {
                self.judge(lease, &response, started);
                Ok(response)
            }
            Ok(Err(unanswered)) => Err(self.miss(lease, Ok(unanswered.error))),
            Err(timeout) => Err(self.miss(lease, Err(timeout))),
        }
    }

    fn judge(&self, lease: &mut Lease, response: &Response<()>, started: Tick) {
        let breaker = self.local.snapshot.config.circuit_breaker.as_ref();
        let slow = breaker.and_then(|breaker| breaker.slow_call);
        let slow = slow.is_some_and(|slow| started.plus(slow) <= self.client.timer.now());
        lease.judge(response.status().as_u16(), slow);
    }

    /// No head came, for `error` or since the time was over.
    fn miss(&self, lease: &mut Lease, error: Result<upstream::Error<hyper::Error>, Failure>) -> Box<Miss> {
        let (cause, why, failure) = match error {
            Err(timeout) => (Some(Cause::ResponseTimeout), Again::Timeout, timeout),
            Ok(error) => (cause(&error), Again::Response, failure(error)),
        };
        // The client's own fault is nobody else's, and no reason to try again.
        let request = cause.and_then(|_| lease.take_request()?.rewound(self.idempotent));
        if let Some(cause) = cause {
            lease.fail(cause);
        }
        Box::new(Miss { failure, why, request })
    }

    async fn connect(&self, lease: &mut Lease, limit: Tick) -> Result<(), (Failure, Again)> {
        let now = self.client.timer.now();
        let limit = limit.min(now.plus(self.local.snapshot.config.timeouts.connect));
        let connected = until(self.client, limit, "connect", pin!(lease.connect(now))).await;
        let (failure, cause) = match connected {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(ConnectError::Crowded)) => (Failure::UpstreamFull, None),
            Ok(Err(ConnectError::Descriptors { .. })) => (Failure::Shed(overload::Cause::Descriptors), None),
            Err(_) if lease.is_queued() => (Failure::UpstreamFull, None),
            Err(timeout) => (timeout, Some(Cause::ConnectTimeout)),
            Ok(Err(error @ ConnectError::Connect { .. })) => {
                let refused = matches!(&error, ConnectError::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused);
                let cause = if refused { Cause::ConnectRefused } else { Cause::ConnectFailed };
                (Failure::Connect(error.to_string()), Some(cause))
            }
        };
        if let Some(cause) = cause {
            lease.fail(cause);
        }
        Err((failure, Again::Connect))
    }

    /// Sends the request that was begun and waits for the response's head, or for `limit`.
    fn head<'a>(
        &'a self,
        lease: &'a mut Lease,
        limit: Tick,
    ) -> impl Future<Output = Result<Result<Response<()>, upstream::Unanswered<hyper::Error>>, Failure>> + 'a
    {
        let client = self.client;
        let mut interim = |head: Vec<u8>| {
            if client.takes_interim.get() {
                client.first.borrow_mut().extend_from_slice(&head);
            }
        };
        client.timer.arm(limit);
        poll_fn(move |cx| match lease.poll_head(cx, &mut interim) {
            Poll::Ready(head) => Poll::Ready(Ok(head)),
            Poll::Pending if client.timer.now() >= limit => Poll::Ready(Err(Failure::Timeout("response"))),
            Poll::Pending => Poll::Pending,
        })
    }
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

/// `None`: the client is to blame.
fn cause(error: &upstream::Error<hyper::Error>) -> Option<Cause> {
    match error {
        upstream::Error::Request(_) => None,
        upstream::Error::Closed | upstream::Error::Cut => Some(Cause::ResponseClosed),
        upstream::Error::Malformed(_) => Some(Cause::ResponseMalformed),
        upstream::Error::Io(_) => Some(Cause::ResponseReset),
    }
}

fn failure(error: upstream::Error<hyper::Error>) -> Failure {
    match error {
        upstream::Error::Request(_) => Failure::BadRequest("The request's body is malformed or incomplete."),
        upstream::Error::Closed
        | upstream::Error::Cut
        | upstream::Error::Malformed(_)
        | upstream::Error::Io(_) => Failure::Upstream(error.to_string()),
    }
}

/// How long the upstream wants to be left alone (RFC 9110 §10.2.3).
fn retry_after(response: &Response<()>) -> Duration {
    let value = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value)
            .ok()
            .and_then(|date| date.duration_since(SystemTime::now()).ok())
            .unwrap_or_default(),
    }
}
