//! W3C Trace Context: which trace a request belongs to, and what is said of it upstream.
//!
//! Pure. The gateway keeps no spans: it passes on who began the trace, or begins one so that the parts
//! behind it find together.

use http::{HeaderMap, HeaderName};

use super::headers::Seen;
use super::request_id::Ids;
use crate::config::TraceContext;

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Lower-case hexadecimal digits, not all of them 0.
pub type TraceId = [u8; 32];

/// `00-<trace>-<parent>-<flags>`
type Parent = [u8; 55];

/// What becomes of `traceparent` and `tracestate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// Both go upstream as they came, if they did.
    Kept(Option<TraceId>),
    /// Neither goes on.
    Dropped,
    /// A new parent in the client's trace; its state stays.
    Continued(Parent),
    /// A trace of the gateway's own.
    Begun(Parent),
}

impl Trace {
    pub fn of(mode: TraceContext, seen: &Seen, headers: &HeaderMap, ids: &Ids) -> Self {
        match mode {
            TraceContext::Off => Self::Kept(None),
            TraceContext::Propagate if !seen.trace => Self::Kept(None),
            TraceContext::Propagate => match found(headers) {
                Some(parent) => Self::Kept(Some(trace_id(&parent))),
                None => Self::Dropped,
            },
            TraceContext::Generate => match seen.trace.then(|| found(headers)).flatten() {
                Some(mut parent) => {
                    parent[..3].copy_from_slice(b"00-");
                    parent[36..52].copy_from_slice(&ids.digits()[..16]);
                    Self::Continued(parent)
                }
                None => {
                    let mut parent = *b"00-00000000000000000000000000000000-0000000000000000-01";
                    parent[3..35].copy_from_slice(&ids.digits());
                    parent[36..52].copy_from_slice(&ids.digits()[..16]);
                    Self::Begun(parent)
                }
            },
        }
    }

    pub fn id(&self) -> Option<TraceId> {
        match self {
            Self::Kept(id) => *id,
            Self::Dropped => None,
            Self::Continued(parent) | Self::Begun(parent) => Some(trace_id(parent)),
        }
    }

    /// The `traceparent` that goes upstream in place of the client's.
    pub fn parent(&self) -> Option<&Parent> {
        match self {
            Self::Kept(_) | Self::Dropped => None,
            Self::Continued(parent) | Self::Begun(parent) => Some(parent),
        }
    }

    pub fn keeps_parent(&self) -> bool {
        matches!(self, Self::Kept(_))
    }

    pub fn keeps_state(&self) -> bool {
        matches!(self, Self::Kept(_) | Self::Continued(_))
    }
}

fn trace_id(parent: &Parent) -> TraceId {
    parent[3..35].try_into().expect("32 of 55 bytes")
}

/// The one valid `traceparent`; of later versions the part that is known.
fn found(headers: &HeaderMap) -> Option<Parent> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let value = values.next()?.as_bytes();
    let (known, rest) = value.split_first_chunk::<55>()?;
    let hex = |range: std::ops::Range<usize>| {
        known[range].iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte))
    };
    let zero = |range: std::ops::Range<usize>| known[range].iter().all(|&byte| byte == b'0');
    let ends = match &known[..2] {
        b"ff" => false,
        b"00" => rest.is_empty(),
        _ => rest.first().is_none_or(|&byte| byte == b'-'),
    };
    let valid = values.next().is_none()
        && ends
        && [2, 35, 52].iter().all(|&at| known[at] == b'-')
        && [0..2, 3..35, 36..52, 53..55].into_iter().all(hex)
        && !zero(3..35)
        && !zero(36..52);
    valid.then_some(*known)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn of(mode: TraceContext, parents: &[&str]) -> Trace {
        let mut headers = HeaderMap::new();
        for parent in parents {
            headers.append(TRACEPARENT, HeaderValue::from_str(parent).unwrap());
        }
        Trace::of(mode, &Seen::of(&headers), &headers, &Ids::new())
    }

    #[test]
    fn valid_and_invalid() {
        let id: TraceId = TRACE.as_bytes().try_into().unwrap();
        for (parent, valid) in [
            (VALID, true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff", true),
            // Later versions may say more, behind a dash.
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-brings", true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-", false),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false),
            ("0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g", false),
            ("", false),
        ] {
            assert_eq!(of(TraceContext::Off, &[parent]), Trace::Kept(None));
            let passed = of(TraceContext::Propagate, &[parent]);
            assert_eq!(passed, if valid { Trace::Kept(Some(id)) } else { Trace::Dropped }, "{parent}");
            match (of(TraceContext::Generate, &[parent]), valid) {
                (Trace::Continued(next), true) => {
                    assert!(next.starts_with(b"00-") && trace_id(&next) == id, "{parent}");
                    assert_eq!(&next[52..], &parent.as_bytes()[52..55], "{parent}");
                    assert_ne!(&next[36..52], b"00f067aa0ba902b7", "{parent}");
                }
                (Trace::Begun(next), false) => assert_ne!(trace_id(&next), id, "{parent}"),
                (other, _) => panic!("{parent}: {other:?}"),
            }
        }
    }

    #[test]
    fn several_are_none_and_none_is_left_alone() {
        assert_eq!(of(TraceContext::Propagate, &[VALID, VALID]), Trace::Dropped);
        assert_eq!(of(TraceContext::Propagate, &[]), Trace::Kept(None));
    }

    #[test]
    fn what_is_begun_is_valid_and_differs() {
        let (Trace::Begun(one), Trace::Begun(other)) =
            (of(TraceContext::Generate, &[]), of(TraceContext::Generate, &[]))
        else {
            panic!("there was none");
        };
        assert_ne!(one, other);
        let again = of(TraceContext::Propagate, &[str::from_utf8(&one).unwrap()]);
        assert_eq!(again.id(), Some(trace_id(&one)));
    }
}
