//! The `Cache-Status` field (RFC 9211): what the cache did with a request, for whoever looks.

use http::{HeaderName, HeaderValue};

use crate::text::Text;

pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request went upstream (RFC 9211 §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// The route's conditions keep the request from the cache.
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    /// The request asked for validation.
    Request,
    Stale,
    /// A part is asked for of what is not stored.
    Partial,
}

impl Forward {
    fn token(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Request => "request",
            Self::Stale => "stale",
            Self::Partial => "partial",
        }
    }
}

/// What is said of one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `ttl`: seconds of freshness left, below 0 when stale.
    Hit {
        ttl: i64,
    },
    Forwarded {
        why: Forward,
        status: Option<u16>,
        stored: bool,
        collapsed: bool,
    },
    /// A stale response in place of an error.
    StaleOnError {
        ttl: i64,
    },
}

impl Status {
    pub fn value(self) -> HeaderValue {
        self.text().value()
    }

    pub fn text(self) -> Text {
        let mut text = Text::default();
        match self {
            Self::Hit { ttl } => {
                text.push("gateway; hit; ttl=");
                push_signed(&mut text, ttl);
            }
            Self::StaleOnError { ttl } => {
                text.push("gateway; fwd=stale; ttl=");
                push_signed(&mut text, ttl);
                text.push("; detail=stale-if-error");
            }
            Self::Forwarded { why, status, stored, collapsed } => {
                text.push("gateway; fwd=");
                text.push(why.token());
                if let Some(status) = status {
                    text.push("; fwd-status=");
                    text.push_number(status.into());
                }
                text.push(if stored { "; stored" } else { "" });
                text.push(if collapsed { "; collapsed" } else { "" });
            }
        }
        text
    }
}

fn push_signed(text: &mut Text, number: i64) {
    text.push(if number < 0 { "-" } else { "" });
    text.push_number(number.unsigned_abs());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_rfc_writes_it() {
        let forwarded = |why, status, stored, collapsed| Status::Forwarded { why, status, stored, collapsed };
        for (status, want) in [
            (Status::Hit { ttl: 545 }, "gateway; hit; ttl=545"),
            (Status::Hit { ttl: -3 }, "gateway; hit; ttl=-3"),
            (forwarded(Forward::UriMiss, None, true, false), "gateway; fwd=uri-miss; stored"),
            (forwarded(Forward::VaryMiss, None, true, true), "gateway; fwd=vary-miss; stored; collapsed"),
            (forwarded(Forward::Stale, Some(304), true, false), "gateway; fwd=stale; fwd-status=304; stored"),
            (forwarded(Forward::Bypass, None, false, false), "gateway; fwd=bypass"),
            (Status::StaleOnError { ttl: -9 }, "gateway; fwd=stale; ttl=-9; detail=stale-if-error"),
        ] {
            assert_eq!(status.value(), want);
        }
    }
}
