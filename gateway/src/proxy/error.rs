//! The only place that turns a failure into a response.
//!
//! Every status the gateway makes up itself comes from [`Failure`]; the body is problem+json
//! (RFC 9457) or a small page for browsers, and never holds anything the client sent.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONNECTION, CONTENT_LENGTH, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::body::Body;
use super::exchange::Exchange;
use super::limit::Limited;
use super::request_id::RequestId;
use crate::config::CONCURRENCY;
use crate::limit::concurrency::Crowded;
use crate::lines;
use crate::metrics::Outcome;
use crate::overload::Cause;

/// Problem types of draft-ietf-httpapi-ratelimit-headers-11 §5.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";
const REDUCED_CAPACITY: &str = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";

#[derive(Debug)]
pub enum Failure {
    /// Malformed; the connection closes, since its framing cannot be trusted.
    BadRequest(&'static str),
    HeadTooLarge,
    UriTooLong,
    NotImplemented(&'static str),
    NoRoute,
    MethodNotAllowed(Option<HeaderValue>),
    /// A rate limit of the route.
    Limited(Limited),
    /// Too many requests are under way, of the client or of the route.
    Crowded(Crowded),
    /// A rate limit that counts for several gateways refuses everything while its store is away.
    StoreAway,
    /// No connection to the upstream.
    Connect(String),
    /// The upstream closed, or spoke nonsense, before a response head.
    Upstream(String),
    Timeout(&'static str),
    /// No endpoint may be asked now: breakers are open. How long until that may change.
    Unavailable(Duration),
    /// The operator has taken every endpoint out.
    Drained,
    /// Too many wait for a connection to the upstream already, or this request did so in vain.
    UpstreamFull,
    /// The client wanted nothing but a stored response, and there is none.
    NotCached,
    /// Too many wait for the same response already.
    TooManyWaiting,
    /// Refused so that others are served.
    Shed(Cause),
}

/// A failure in the terms of RFC 9457.
struct Problem {
    kind: &'static str,
    status: StatusCode,
    title: &'static str,
    detail: &'static str,
    outcome: Outcome,
    closes: bool,
}

/// What a failure is answered with, its fields aside.
struct Answer {
    status: StatusCode,
    body: String,
    /// The connection ends with it.
    closes: bool,
}

impl Failure {
    /// Answers the request with it: fills in `response`, and returns the body. `last`: the connection ends with it.
    pub fn respond(
        self,
        wants: Wants,
        request_id: &RequestId,
        date: &HeaderValue,
        last: bool,
        mut exchange: Exchange,
        response: &mut Response<()>,
    ) -> Body {
        let client = exchange.client().clone();
        tracing::debug!(failure = ?self, client = %exchange.identity.address, peer = %client.peer, "refused");
        exchange.fail(self.outcome());
        self.rule().into_iter().for_each(|rule| exchange.refused_by(rule));
        let mut lines = client.lines.borrow_mut();
        lines.clear();
        let Answer { status, body, closes } = self.answer(wants, request_id, date, &mut lines);
        exchange.answer(status);
        // Nothing of an answer that may have been begun goes out with it.
        response.headers_mut().clear();
        *response.status_mut() = status;
        if last || closes {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Body::full(Bytes::from(body), exchange)
    }

    /// The policy that refused, where one did.
    pub fn rule(&self) -> Option<&str> {
        match self {
            Self::Limited(limited) => Some(limited.policy()),
            Self::Crowded(_) => Some(CONCURRENCY),
            Self::BadRequest(_)
            | Self::HeadTooLarge
            | Self::UriTooLong
            | Self::NotImplemented(_)
            | Self::NoRoute
            | Self::MethodNotAllowed(_)
            | Self::StoreAway
            | Self::Connect(_)
            | Self::Upstream(_)
            | Self::Timeout(_)
            | Self::Unavailable(_)
            | Self::Drained
            | Self::UpstreamFull
            | Self::NotCached
            | Self::TooManyWaiting
            | Self::Shed(_) => None,
        }
    }

    fn problem(&self) -> Problem {
        let (status, title, detail, outcome, closes) = match self {
            Self::BadRequest(why) => {
                (StatusCode::BAD_REQUEST, "Bad request", *why, Outcome::BadRequest, true)
            }
            Self::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "Request header fields too large",
                "The request's head is larger than this gateway accepts.",
                Outcome::BadRequest,
                true,
            ),
            Self::UriTooLong => (
                StatusCode::URI_TOO_LONG,
                "URI too long",
                "The request's target is longer than this gateway accepts.",
                Outcome::BadRequest,
                true,
            ),
            Self::NotImplemented(why) => {
                (StatusCode::NOT_IMPLEMENTED, "Not implemented", *why, Outcome::BadRequest, true)
            }
            Self::NoRoute => {
                (StatusCode::NOT_FOUND, "No route", "No route matches this request.", Outcome::NoRoute, false)
            }
            Self::MethodNotAllowed(_) => (
                StatusCode::METHOD_NOT_ALLOWED,
                "Method not allowed",
                "This route does not take this method; the Allow field lists those it takes.",
                Outcome::MethodNotAllowed,
                false,
            ),
            Self::Limited(limited) => (
                StatusCode::TOO_MANY_REQUESTS,
                "Too many requests",
                "The quota of a policy is exceeded; the Retry-After field says when to come again.",
                Outcome::Limited,
                limited.is_last,
            ),
            Self::Crowded(Crowded::Client) => (
                StatusCode::TOO_MANY_REQUESTS,
                "Too many requests at once",
                "Too many requests of this client are under way; wait until some have been answered.",
                Outcome::Concurrency,
                false,
            ),
            Self::Crowded(Crowded::Route) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Temporarily reduced capacity",
                "Too many requests for this route are under way.",
                Outcome::Concurrency,
                false,
            ),
            Self::StoreAway => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Temporarily reduced capacity",
                "Requests for this route cannot be counted at the moment.",
                Outcome::Limited,
                false,
            ),
            Self::Connect(_) => (
                StatusCode::BAD_GATEWAY,
                "Bad gateway",
                "The upstream server cannot be reached.",
                Outcome::ConnectFailed,
                false,
            ),
            Self::Upstream(_) => (
                StatusCode::BAD_GATEWAY,
                "Bad gateway",
                "The upstream server gave no valid response.",
                Outcome::UpstreamFailed,
                false,
            ),
            Self::Timeout(_) => (
                StatusCode::GATEWAY_TIMEOUT,
                "Gateway timeout",
                "The upstream server did not answer in time.",
                Outcome::Timeout,
                false,
            ),
            Self::Unavailable(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Upstream unavailable",
                "No upstream server is fit to be asked; the Retry-After field says when to come again.",
                Outcome::Unavailable,
                false,
            ),
            Self::Drained => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Upstream unavailable",
                "Every upstream server for this request is taken out of service for the moment.",
                Outcome::Unavailable,
                false,
            ),
            Self::UpstreamFull => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Temporarily reduced capacity",
                "Too many requests wait for the upstream server.",
                Outcome::Overloaded,
                false,
            ),
            Self::NotCached => (
                StatusCode::GATEWAY_TIMEOUT,
                "Not cached",
                "The request asks for a stored response only (only-if-cached), and none is stored.",
                Outcome::Ok,
                false,
            ),
            Self::TooManyWaiting => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Too many waiting",
                "Too many requests wait for this response already.",
                Outcome::Overloaded,
                false,
            ),
            Self::Shed(cause) => {
                let (detail, outcome) = shed(*cause);
                (StatusCode::SERVICE_UNAVAILABLE, "Temporarily reduced capacity", detail, outcome, false)
            }
        };
        let kind = if let Self::Limited(_) | Self::Crowded(Crowded::Client) = self {
            QUOTA_EXCEEDED
        } else if let Self::Crowded(Crowded::Route) | Self::StoreAway | Self::UpstreamFull | Self::Shed(_) =
            self
        {
            REDUCED_CAPACITY
        } else {
            "about:blank"
        };
        Problem { kind, status, title, detail, outcome, closes }
    }

    /// The policy that was violated.
    fn policy(&self) -> Option<&str> {
        if let Self::Limited(limited) = self {
            Some(limited.policy())
        } else if let Self::Crowded(_) = self {
            Some(CONCURRENCY)
        } else {
            None
        }
    }

    /// What hyper would have answered by itself with `status` and an empty body.
    pub fn from_refused_head(status: u16) -> Self {
        match status {
            431 => Self::HeadTooLarge,
            414 => Self::UriTooLong,
            _ => Self::BadRequest("The request is malformed."),
        }
    }

    pub fn outcome(&self) -> Outcome {
        self.problem().outcome
    }

    /// The answer, whose fields are written to `lines`: all but those that say where the body and the connection end.
    fn answer(
        self,
        request: Wants,
        request_id: &RequestId,
        date: &HeaderValue,
        lines: &mut Vec<u8>,
    ) -> Answer {
        let Problem { kind: problem, status, title, detail, closes, .. } = self.problem();
        let (code, id) = (status.as_str(), request_id.as_str());
        let policy = match self.policy() {
            Some(policy) => [",\"violated-policies\":[\"", policy, "\"]"],
            None => [""; 3],
        };
        // Joined in one piece: formatting each part costs a refusal more than its decision.
        let (kind, body) = match request {
            Wants::Html => {
                let page = format!(
                    "<!doctype html><title>{code} {title}</title><h1>{code} {title}</h1><p>{detail}</p><p>Request {id}</p>\n"
                );
                ("text/html; charset=utf-8", page)
            }
            Wants::Problem => {
                let [before, policy, after] = policy;
                #[rustfmt::skip]
                let members = [
                    "{\"type\":\"", problem, "\",\"title\":\"", title, "\",\"status\":", code, ",\"detail\":\"", detail,
                    "\",\"request_id\":\"", id, "\"", before, policy, after, "}\n",
                ];
                ("application/problem+json", members.concat())
            }
        };
        lines.extend_from_slice(b"cache-control: no-store\r\n");
        lines::write_known(lines, b"content-type: ", kind.as_bytes());
        lines::write_known(lines, b"x-request-id: ", request_id.as_bytes());
        lines::write_known(lines, b"date: ", date.as_bytes());
        match &self {
            Self::Unavailable(wait) => {
                // Rounded up, so that who waits so long is not too early.
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                lines::write_number(lines, &RETRY_AFTER, seconds.max(1));
            }
            // Nobody knows when that changes: the soonest that can be said.
            Self::Crowded(_)
            | Self::Drained
            | Self::StoreAway
            | Self::TooManyWaiting
            | Self::UpstreamFull
            | Self::Shed(_) => lines.extend_from_slice(b"retry-after: 1\r\n"),
            Self::MethodNotAllowed(Some(allow)) => lines::write(lines, &ALLOW, allow.as_bytes()),
            Self::Limited(limited) => limited.announce(lines),
            Self::BadRequest(_)
            | Self::HeadTooLarge
            | Self::UriTooLong
            | Self::NotImplemented(_)
            | Self::NoRoute
            | Self::MethodNotAllowed(None)
            | Self::Connect(_)
            | Self::Upstream(_)
            | Self::Timeout(_)
            | Self::NotCached => {}
        }
        Answer { status, body, closes }
    }

    /// The same as bytes on the wire, the last of their connection: for a head that hyper itself refused, and for a
    /// connection that is not to be served.
    pub fn raw(self, request_id: &RequestId, date: &HeaderValue) -> Vec<u8> {
        let mut lines = Vec::new();
        let Answer { status, body, .. } = self.answer(Wants::Problem, request_id, date, &mut lines);
        lines::write_number(&mut lines, &CONTENT_LENGTH, body.len() as u64);
        let status_line = format!("HTTP/1.1 {status}\r\n");
        [status_line.as_bytes(), &lines, b"connection: close\r\n\r\n", body.as_bytes()].concat()
    }
}

/// What a client is told of the cause, and under what it is counted.
fn shed(cause: Cause) -> (&'static str, Outcome) {
    let upstream = "The upstream server has as many requests as it can answer.";
    let gateway = "The gateway has as many requests as it can answer.";
    match cause {
        Cause::Limit => (upstream, Outcome::ShedLimit),
        Cause::Queue => (upstream, Outcome::ShedQueue),
        Cause::Delay => (gateway, Outcome::ShedDelay),
        Cause::Memory => (gateway, Outcome::ShedMemory),
        Cause::Descriptors => (gateway, Outcome::ShedDescriptors),
    }
}

/// What the client can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    Problem,
    Html,
}

impl Wants {
    /// Browsers name HTML and never JSON; whoever names JSON is a program, whatever else it takes.
    pub fn of(headers: &HeaderMap) -> Self {
        let accept = headers.get(ACCEPT).map(HeaderValue::as_bytes).unwrap_or_default();
        let names = |text: &str| memchr::memmem::find(accept, text.as_bytes()).is_some();
        if names("text/html") && !names("json") { Self::Html } else { Self::Problem }
    }
}
