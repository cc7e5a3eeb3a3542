//! The fields that tell a client of its limits (draft-ietf-httpapi-ratelimit-headers-11): names and items.
//!
//! The proxy puts them into answers.

use http::HeaderName;

use crate::text::Text;

pub const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
pub const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
pub const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// An item of the `RateLimit` field: `"name";r=9;t=60`.
pub fn item(policy: &str, left: u32, reset_s: u32) -> Text {
    let mut item = Text::default();
    item.push("\"");
    item.push(policy);
    item.push("\";r=");
    item.push_number(left.into());
    item.push(";t=");
    item.push_number(reset_s.into());
    item
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_of_the_field() {
        let longest = "a".repeat(40) + "-burst";
        assert_eq!(item(&longest, u32::MAX, u32::MAX).as_bytes().len(), 46 + 28);
        for (left, reset_s, want) in [
            (0, 1, r#""burst";r=0;t=1"#),
            (10, 60, r#""burst";r=10;t=60"#),
            (u32::MAX, 86_400, r#""burst";r=4294967295;t=86400"#),
        ] {
            assert_eq!(item("burst", left, reset_s).as_bytes(), want.as_bytes());
        }
    }
}
