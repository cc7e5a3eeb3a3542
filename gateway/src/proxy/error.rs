//! The only place that turns a failure into a response.
//!
//! Every status the gateway makes up itself comes from [`Failure`]; the body is problem+json
//! (RFC 9457) or a small page for browsers, and never holds anything the client sent.

use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::headers::X_REQUEST_ID;
use crate::metrics::Outcome;

#[derive(Debug)]
pub enum Failure {
    /// Malformed; the connection closes, since its framing cannot be trusted.
    BadRequest(&'static str),
    HeadTooLarge,
    UriTooLong,
    NotImplemented(&'static str),
    NoRoute,
    MethodNotAllowed(Option<HeaderValue>),
    /// No connection to the upstream.
    Connect(String),
    /// The upstream closed, or spoke nonsense, before a response head.
    Upstream(String),
    Timeout(&'static str),
}

/// A failure in the terms of RFC 9457.
struct Problem {
    status: StatusCode,
    title: &'static str,
    detail: &'static str,
    outcome: Outcome,
    closes: bool,
}

impl Failure {
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
        };
        Problem { status, title, detail, outcome, closes }
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

    /// The response's head and its body's bytes. `request` is what the client sent.
    pub fn response(self, request: Wants, request_id: &str) -> Response<String> {
        let Problem { status, title, detail, closes, .. } = self.problem();
        let code = status.as_u16();
        let (kind, body) = match request {
            Wants::Html => (
                "text/html; charset=utf-8",
                format!(
                    "<!doctype html><title>{code} {title}</title><h1>{code} {title}</h1><p>{detail}</p><p>Request {request_id}</p>\n"
                ),
            ),
            Wants::Problem => (
                "application/problem+json",
                format!(
                    "{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{code},\"detail\":\"{detail}\",\"request_id\":\"{request_id}\"}}\n"
                ),
            ),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Self::MethodNotAllowed(Some(allow)) = self {
            headers.insert(ALLOW, allow);
        }
        response
    }

    /// The same as bytes on the wire, for a head that hyper itself refused.
    pub fn raw(self, request_id: HeaderValue, date: HeaderValue) -> Vec<u8> {
        let mut response = self.response(Wants::Problem, request_id.to_str().unwrap_or_default());
        let length = HeaderValue::from(response.body().len());
        let added = [(X_REQUEST_ID, request_id), (DATE, date), (CONTENT_LENGTH, length)];
        response.headers_mut().extend(added);
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

/// What the client can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    Problem,
    Html,
}

impl Wants {
    pub fn of(headers: &HeaderMap) -> Self {
        let accept = headers.get(ACCEPT).map(HeaderValue::as_bytes).unwrap_or_default();
        match memchr::memmem::find(accept, b"text/html") {
            Some(_) => Self::Html,
            None => Self::Problem,
        }
    }
}
