//! The only place that turns a failure into a response.
//!
//! Every status the gateway makes up itself comes from [`Failure`]; the body is problem+json
//! (RFC 9457) or a small page for browsers, and never holds anything the client sent.

use std::time::Duration;

use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, RETRY_AFTER,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::headers::X_REQUEST_ID;
use super::limit::Limited;
use crate::config::CONCURRENCY;
use crate::limit::concurrency::Crowded;
use crate::metrics::Outcome;
use crate::overload::Cause;

/// Problem types of draft-ietf-httpapi-ratelimit-headers-11 §5.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";
const REDUCED_CAPACITY: &str = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";

/// As many as a refusal has, those that others add included.
pub const FIELDS: usize = 12;

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

impl Failure {
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

    /// The response's head, its fields in `headers`, which is empty, and its body's bytes.
    pub fn response(self, request: Wants, request_id: &str, mut headers: HeaderMap) -> Response<String> {
        let Problem { kind: problem, status, title, detail, closes, .. } = self.problem();
        let code = status.as_str();
        let policy = match self.policy() {
            Some(policy) => [",\"violated-policies\":[\"", policy, "\"]"],
            None => [""; 3],
        };
        // Joined in one piece: formatting each part costs a refusal more than its decision.
        let (kind, body) = match request {
            Wants::Html => {
                let page = format!(
                    "<!doctype html><title>{code} {title}</title><h1>{code} {title}</h1><p>{detail}</p><p>Request {request_id}</p>\n"
                );
                ("text/html; charset=utf-8", page)
            }
            Wants::Problem => {
                let [before, policy, after] = policy;
                #[rustfmt::skip]
                let members = [
                    "{\"type\":\"", problem, "\",\"title\":\"", title, "\",\"status\":", code, ",\"detail\":\"", detail,
                    "\",\"request_id\":\"", request_id, "\"", before, policy, after, "}\n",
                ];
                ("application/problem+json", members.concat())
            }
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Self::Unavailable(wait) = self {
            // Rounded up, so that who waits so long is not too early.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if let Self::Crowded(_)
        | Self::Drained
        | Self::StoreAway
        | Self::TooManyWaiting
        | Self::UpstreamFull
        | Self::Shed(_) = self
        {
            // Nobody knows when that changes: the soonest that can be said.
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Self::MethodNotAllowed(Some(allow)) = self {
            headers.insert(ALLOW, allow);
        } else if let Self::Limited(limited) = self {
            limited.announce(&mut headers);
        }
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    /// The same as bytes on the wire, the last of their connection: for a head that hyper itself refused, and for a
    /// connection that is not to be served.
    pub fn raw(self, request_id: HeaderValue, date: HeaderValue) -> Vec<u8> {
        let mut response =
            self.response(Wants::Problem, request_id.to_str().unwrap_or_default(), HeaderMap::new());
        let length = HeaderValue::from(response.body().len());
        let close = HeaderValue::from_static("close");
        let added = [(X_REQUEST_ID, request_id), (DATE, date), (CONTENT_LENGTH, length), (CONNECTION, close)];
        added.into_iter().for_each(|(name, value)| drop(response.headers_mut().insert(name, value)));
        let mut out = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
        for (name, value) in response.headers() {
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(response.body().as_bytes());
        out
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
