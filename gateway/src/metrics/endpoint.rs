//! What an upstream endpoint's connections and requests came to, and why requests were sent again or failed.

use super::Cell;

/// One worker's counts for one upstream endpoint.
#[derive(Default)]
#[repr(align(128))]
pub struct Endpoint {
    pub connects: Cell,
    pub connect_failures: Cell,
    pub reuses: Cell,
    pub idle: Cell,
    /// Connections, those in use included.
    pub open: Cell,
    /// Requests under way, from the choice of the endpoint to the end of the response's body.
    pub active: Cell,
    /// Of these, those whose response has not begun.
    pub waiting: Cell,
    /// Requests that went well.
    pub successes: Cell,
    /// By [`Again`].
    pub retries: [Cell; Again::ALL.len()],
    /// By [`Cause`].
    pub failures: [Cell; Cause::ALL.len()],
}

/// Why a request was sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Again {
    /// A kept connection turned out to be closed: the same endpoint, on a new one.
    Stale,
    /// No connection.
    Connect,
    /// No response, or nonsense.
    Response,
    /// None in the time for one try.
    Timeout,
    /// A status that is as good as none.
    Status,
}

impl Again {
    pub const ALL: [Self; 5] = [Self::Stale, Self::Connect, Self::Response, Self::Timeout, Self::Status];

    pub fn name(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Connect => "connect",
            Self::Response => "response",
            Self::Timeout => "timeout",
            Self::Status => "status",
        }
    }
}

/// What went wrong with a try, as far as the endpoint is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    ConnectRefused,
    ConnectFailed,
    ConnectTimeout,
    /// Closed before a whole head.
    ResponseClosed,
    ResponseReset,
    ResponseMalformed,
    ResponseTimeout,
    /// A status of 500 or more, 501 and 505 aside.
    ResponseStatus,
    BodyCut,
    BodyMalformed,
    BodyTimeout,
}

impl Cause {
    pub const ALL: [Self; 11] = [
        Self::ConnectRefused,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::ResponseClosed,
        Self::ResponseReset,
        Self::ResponseMalformed,
        Self::ResponseTimeout,
        Self::ResponseStatus,
        Self::BodyCut,
        Self::BodyMalformed,
        Self::BodyTimeout,
    ];

    /// The phase it happened in, and what happened.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::ConnectRefused => ("connect", "refused"),
            Self::ConnectFailed => ("connect", "failed"),
            Self::ConnectTimeout => ("connect", "timeout"),
            Self::ResponseClosed => ("response", "closed"),
            Self::ResponseReset => ("response", "reset"),
            Self::ResponseMalformed => ("response", "malformed"),
            Self::ResponseTimeout => ("response", "timeout"),
            Self::ResponseStatus => ("response", "status"),
            Self::BodyCut => ("body", "cut"),
            Self::BodyMalformed => ("body", "malformed"),
            Self::BodyTimeout => ("body", "timeout"),
        }
    }
}
