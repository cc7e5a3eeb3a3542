//! Responses made of what is stored or being fetched, as one request wants them.
//!
//! Preconditions, ranges and HEAD are answered here, from whole responses (RFC 9110 §13, §14). An answer's head is
//! filled in where it lies, and its body's source returned.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT_RANGES, AGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::body::{Source, Stored};
use super::cached::Ask;
use crate::cache::conditional;
use crate::cache::entry::Entry;
use crate::cache::flight::{Head, Reader};
use crate::cache::range::{self, Part};
use crate::cache::status::{CACHE_STATUS, Status};
use crate::lines;
use crate::text::number;

/// The answer from a stored response of `age`.
pub fn stored(
    entry: &Entry,
    age: Duration,
    ask: &Ask<'_>,
    status: Status,
    response: &mut Response<()>,
) -> Source {
    let request = &ask.parts.headers;
    let whole = || Source::Stored(Stored::new(entry.body.clone(), 0..entry.body.len()));
    if !(ask.seen.caching || ask.seen.expect || ask.is_head()) {
        *response.status_mut() = entry.status;
        let mut lines = ask.client.lines.borrow_mut();
        lines.extend_from_slice(&entry.lines);
        lines::write_count(&mut lines, b"age: ", age.as_secs());
        lines.extend_from_slice(b"cache-status: ");
        status.write(&mut lines);
        lines.extend_from_slice(lines::END);
        return whole();
    }
    fill(response, entry.status, &entry.headers, ask, status);
    response.headers_mut().insert(AGE, number(age.as_secs()));
    if ask.seen.caching {
        if conditional::not_modified(request, entry.status, &entry.headers, Some(entry.date)) {
            not_modified(response);
            return Source::Full(None);
        }
        let partial = entry.status == StatusCode::OK && !ask.is_head() && request.contains_key(RANGE);
        if partial && conditional::range_holds(request, &entry.headers) {
            let length = entry.body.len();
            match range::part(request, length) {
                Part::Whole => {}
                Part::Bytes(part) => {
                    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                    let headers = response.headers_mut();
                    headers.insert(CONTENT_RANGE, range::content_range(Some(&part), length));
                    headers.insert(CONTENT_LENGTH, HeaderValue::from(part.end - part.start));
                    return Source::Stored(Stored::new(entry.body.clone(), part));
                }
                Part::Unsatisfiable => {
                    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
                    let headers = response.headers_mut();
                    headers.insert(CONTENT_RANGE, range::content_range(None, length));
                    headers.remove(CONTENT_TYPE);
                    headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
                    return Source::Full(None);
                }
            }
        }
    }
    if ask.is_head() { Source::Full(None) } else { whole() }
}

/// The answer from a response that is being fetched.
pub fn fetched(
    head: &Arc<Head>,
    reader: Reader,
    ask: &Ask<'_>,
    status: Status,
    response: &mut Response<()>,
) -> Source {
    let headers = if reader.leads() { &head.headers } else { head.for_others() };
    fill(response, head.status, headers, ask, status);
    let unchanged = || conditional::not_modified(&ask.parts.headers, head.status, &head.headers, None);
    if ask.seen.caching && unchanged() {
        not_modified(response);
        return Source::Full(None);
    }
    let bodiless = ask.is_head() || matches!(head.status.as_u16(), 204 | 304);
    if bodiless { Source::Full(None) } else { Source::Followed { reader, left: head.length } }
}

fn fill(response: &mut Response<()>, status: StatusCode, headers: &HeaderMap, ask: &Ask<'_>, cached: Status) {
    /// Age, `Cache-Status`, the request's identity, and the connection's own: a map that grows costs
    /// more than copying all fields does.
    const ADDED: usize = 6;
    let mut copy = ask.local.arena.map(headers.len() + ADDED);
    for (name, value) in headers {
        copy.append(name.clone(), value.clone());
    }
    // Behind what caches nearer to the origin have said (RFC 9211 §2).
    copy.append(CACHE_STATUS, cached.value());
    *response.status_mut() = status;
    *response.headers_mut() = copy;
}

fn not_modified(response: &mut Response<()>) {
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    conditional::strip_for_304(response.headers_mut());
    response.headers_mut().remove(ACCEPT_RANGES);
}
