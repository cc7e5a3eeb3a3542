//! Preconditions of a request, judged against a response at hand (RFC 9110 §13, RFC 9111 §4.3.2).
//!
//! `If-None-Match` and `If-Modified-Since` of a GET or HEAD, and `If-Range`. Pure; the proxy makes the
//! 304 of it.

use std::time::SystemTime;

use http::header::{
    CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, StatusCode};

use super::control;
use super::policy::date;

/// Whether the client has the response already. `stored`: when it came, of one that is stored; such a one without
/// `Last-Modified` goes by its date, and any other by nothing (RFC 9110 §13.1.3).
pub fn not_modified(
    request: &HeaderMap,
    status: StatusCode,
    response: &HeaderMap,
    stored: Option<SystemTime>,
) -> bool {
    // RFC 9110 §13.2.1: a precondition is for what would otherwise succeed.
    if status != StatusCode::OK {
        return false;
    }
    // RFC 9110 §13.2.2: where there is the one, the other is not looked at.
    if request.contains_key(IF_NONE_MATCH) {
        let any = |tag: &[u8]| {
            tag == b"*" || response.get(ETAG).is_some_and(|own| opaque(own.as_bytes()) == opaque(tag))
        };
        return control::all_members(request, IF_NONE_MATCH).any(any);
    }
    let Some(since) = date(request, IF_MODIFIED_SINCE) else { return false };
    let dated = || stored.map(|received| date(response, DATE).unwrap_or(received));
    date(response, LAST_MODIFIED).or_else(dated).is_some_and(|modified| modified <= since)
}

/// Whether a range may be taken from the response: there is no `If-Range`, or it names this one
/// (RFC 9110 §13.1.5; weak tags name nothing here).
pub fn range_holds(request: &HeaderMap, response: &HeaderMap) -> bool {
    let Some(wanted) = request.get(IF_RANGE).map(|value| value.as_bytes().trim_ascii()) else { return true };
    if wanted.starts_with(b"\"") {
        return response.get(ETAG).is_some_and(|own| own.as_bytes() == wanted);
    }
    // A date is a strong validator only where a change within its second would show.
    let modified = response.get(LAST_MODIFIED).filter(|own| own.as_bytes() == wanted);
    modified.is_some() && date(response, LAST_MODIFIED) < date(response, DATE)
}

/// The tag without its weakness: a cache compares weakly (RFC 9110 §8.8.3.2).
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Takes from a response's fields those that a 304 does not repeat (RFC 9110 §15.4.5).
pub fn strip_for_304(headers: &mut HeaderMap) {
    const REPRESENTATION: [HeaderName; 5] =
        [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_RANGE];
    for name in &REPRESENTATION {
        headers.remove(name);
    }
    if headers.contains_key(ETAG) {
        headers.remove(LAST_MODIFIED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(lines: &str) -> HeaderMap {
        let pair = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        lines.lines().map(pair).collect()
    }

    const T1: &str = "Wed, 01 Jan 2020 00:00:00 GMT";
    const T2: &str = "Wed, 01 Jan 2020 00:00:01 GMT";

    #[test]
    fn preconditions() {
        let dated = format!("etag: \"a\"\nlast-modified: {T2}");
        for (request, response, want, section) in [
            ("", "etag: \"a\"", false, "13"),
            ("if-none-match: \"a\"", "etag: \"a\"", true, "13.1.2"),
            ("if-none-match: \"b\", \"a\"", "etag: \"a\"", true, "13.1.2"),
            ("if-none-match: \"b\"\nif-none-match: \"a\"", "etag: \"a\"", true, "13.1.2"),
            ("if-none-match: \"b,\\\"a\"", "etag: \"a\"", false, "8.8.3"),
            ("if-none-match: W/\"a\"", "etag: \"a\"", true, "8.8.3.2, weak"),
            ("if-none-match: \"a\"", "etag: W/\"a\"", true, "8.8.3.2, weak"),
            ("if-none-match: \"b\"", "etag: \"a\"", false, "13.1.2"),
            ("if-none-match: *", "etag: \"a\"", true, "13.1.2"),
            ("if-none-match: \"a\"", "", false, "13.1.2"),
            (&format!("if-modified-since: {T2}"), &dated, true, "13.1.3"),
            (&format!("if-modified-since: {T1}"), &dated, false, "13.1.3"),
            ("if-modified-since: yesterday", &dated, false, "13.1.3"),
            (&format!("if-modified-since: {T2}"), &format!("date: {T1}"), true, "RFC 9111 4.3.2"),
            (&format!("if-modified-since: {T1}"), "", false, "RFC 9111 4.3.2"),
            (&format!("if-none-match: \"b\"\nif-modified-since: {T2}"), &dated, false, "13.2.2"),
            (&format!("if-none-match: \"a\"\nif-modified-since: {T1}"), &dated, true, "13.2.2"),
        ] {
            let (request, response) = (headers(request), headers(response));
            let received = Some(httpdate::parse_http_date(T2).unwrap());
            let found = not_modified(&request, StatusCode::OK, &response, received);
            assert_eq!(found, want, "{request:?} {response:?} (RFC 9110 {section})");
            assert!(!not_modified(&request, StatusCode::NOT_FOUND, &response, received), "RFC 9110 13.2.1");
            let fresh = not_modified(&request, StatusCode::OK, &response, None);
            assert_eq!(fresh, want && !section.contains("4.3.2"), "{request:?} {response:?} not stored");
        }
    }

    #[test]
    fn ranges() {
        for (request, response, want) in [
            ("", "etag: \"a\"", true),
            ("if-range: \"a\"", "etag: \"a\"", true),
            ("if-range: \"b\"", "etag: \"a\"", false),
            ("if-range: W/\"a\"", "etag: W/\"a\"", false),
            (&format!("if-range: {T1}"), &format!("last-modified: {T1}\ndate: {T2}"), true),
            (&format!("if-range: {T1}"), &format!("last-modified: {T1}\ndate: {T1}"), false),
            (&format!("if-range: {T2}"), &format!("last-modified: {T1}\ndate: {T2}"), false),
            (&format!("if-range: {T1}"), "", false),
        ] {
            assert_eq!(range_holds(&headers(request), &headers(response)), want, "{request} {response}");
        }
    }
}
