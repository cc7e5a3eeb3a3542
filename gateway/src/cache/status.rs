//! The `Cache-Status` field (RFC 9211): what the cache did with a request, for whoever looks.

use http::{HeaderName, HeaderValue};

use crate::text::push_number;

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
        let mut text = Vec::with_capacity(64);
        self.write(&mut text);
        HeaderValue::try_from(text).expect("it is visible ASCII")
    }

    pub fn write(self, out: &mut Vec<u8>) {
        match self {
            Self::Hit { ttl } => {
                out.extend_from_slice(b"gateway; hit; ttl=");
                push_signed(ttl, out);
            }
            Self::StaleOnError { ttl } => {
                out.extend_from_slice(b"gateway; fwd=stale; ttl=");
                push_signed(ttl, out);
                out.extend_from_slice(b"; detail=stale-if-error");
            }
            Self::Forwarded { why, status, stored, collapsed } => {
                out.extend_from_slice(b"gateway; fwd=");
                out.extend_from_slice(why.token().as_bytes());
                if let Some(status) = status {
                    out.extend_from_slice(b"; fwd-status=");
                    push_number(status.into(), out);
                }
                out.extend_from_slice(if stored { b"; stored" } else { b"" });
                out.extend_from_slice(if collapsed { b"; collapsed" } else { b"" });
            }
        }
    }
}

fn push_signed(number: i64, out: &mut Vec<u8>) {
    if number < 0 {
        out.push(b'-');
    }
    push_number(number.unsigned_abs(), out);
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
