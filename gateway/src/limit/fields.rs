//! The fields that tell a client of its limits (draft-ietf-httpapi-ratelimit-headers-11): names and items.
//!
//! The proxy puts them into answers.

use http::{HeaderName, HeaderValue};

use crate::text::push_number;

pub const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
pub const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
pub const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Writes an item of the `RateLimit` field: `"name";r=9;t=60`.
pub fn write_item(policy: &str, left: u32, reset_s: u32, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(policy.as_bytes());
    out.extend_from_slice(b"\";r=");
    push_number(left.into(), out);
    out.extend_from_slice(b";t=");
    push_number(reset_s.into(), out);
}

/// The same as a value.
pub fn item(policy: &str, left: u32, reset_s: u32) -> HeaderValue {
    const USUAL_BYTES: usize = 64;
    let mut item = Vec::with_capacity(USUAL_BYTES);
    write_item(policy, left, reset_s, &mut item);
    HeaderValue::try_from(item).expect("names and numbers are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_of_the_field() {
        for (left, reset_s, want) in [
            (0, 1, r#""burst";r=0;t=1"#),
            (10, 60, r#""burst";r=10;t=60"#),
            (u32::MAX, 86_400, r#""burst";r=4294967295;t=86400"#),
        ] {
            assert_eq!(item("burst", left, reset_s).as_bytes(), want.as_bytes());
        }
    }
}
