//! What a request asks for, made unambiguous before anything is decided on it.
//!
//! After [`settle`] there is one `Host` (RFC 9112 §3.2), one length, and a normalised path; the
//! URI is in origin form, as it goes upstream.

use http::header::{HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri, Version, request::Parts};

use super::client::{Client, MAX_QUOTED};
use super::error::Failure;
use super::headers::Seen;
use crate::path;

pub fn settle(parts: &mut Parts, seen: &mut Seen, client: &Client) -> Result<(), Failure> {
    if parts.method == Method::CONNECT {
        return Err(Failure::NotImplemented("This gateway opens no tunnels."));
    }
    if seen.transfer_encoding && framed_twice(parts, client) {
        return Err(Failure::BadRequest("The request has both Content-Length and Transfer-Encoding."));
    }
    if seen.transfer_encoding && !is_chunked_alone(&parts.headers) {
        return Err(Failure::NotImplemented("The request's body has a transfer coding besides chunked."));
    }
    settle_host(parts, seen)?;
    settle_path(parts)
}

/// hyper looks at the last coding only, takes chunked off, and would hand on the others' bytes as the content.
fn is_chunked_alone(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings.next().is_some_and(|coding| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

fn framed_twice(parts: &Parts, client: &Client) -> bool {
    let found = client.framed_twice.borrow();
    let is_this = |line: &Vec<u8>| {
        // `POST /x HTTP/1.1`, perhaps with the end of another request's body before it.
        let mut words = line.rsplit(|&byte| byte == b' ').skip(1);
        let target = words.next().and_then(|target| Uri::try_from(target).ok());
        let method = words.next().unwrap_or_default();
        target.as_ref() == Some(&parts.uri) && method.ends_with(parts.method.as_str().as_bytes())
    };
    // So many that were never claimed are no accident.
    found.len() > MAX_QUOTED || found.iter().any(is_this)
}

fn settle_host(parts: &mut Parts, seen: &mut Seen) -> Result<(), Failure> {
    match &seen.host {
        Some(_) if seen.hosts > 1 => {
            return Err(Failure::BadRequest("The request has several Host fields."));
        }
        Some(_) if !seen.is_authority => {
            return Err(Failure::BadRequest("The Host field is not a host name with an optional port."));
        }
        None if parts.version == Version::HTTP_11 => {
            return Err(Failure::BadRequest("The request has no Host field."));
        }
        Some(_) | None => {}
    }
    // An absolute-form target's authority outranks the field (RFC 9112 §3.2.2).
    if let Some(authority) = parts.uri.authority() {
        if authority.as_str().contains('@') {
            return Err(Failure::BadRequest("The request's target holds user information."));
        }
        let host = HeaderValue::try_from(authority.as_str())
            .map_err(|_| Failure::BadRequest("The request's target names no valid host."))?;
        seen.host = Some(host.clone());
        parts.headers.insert(HOST, host);
    }
    Ok(())
}

fn settle_path(parts: &mut Parts) -> Result<(), Failure> {
    let raw = parts.uri.path();
    if raw == "*" {
        return Err(Failure::NoRoute);
    }
    let normal = path::normalise(raw).map_err(|invalid| {
        Failure::BadRequest(match invalid {
            path::Invalid::NotAbsolute => "The request's target is not a path.",
            path::Invalid::Nul => "The path holds a NUL character.",
            path::Invalid::Backslash => "The path holds a backslash.",
            path::Invalid::Escape => "The path holds a malformed percent-encoding.",
        })
    })?;
    let changed = match normal {
        std::borrow::Cow::Borrowed(_) if parts.uri.authority().is_none() => return Ok(()),
        normal => match parts.uri.query() {
            Some(query) => format!("{normal}?{query}"),
            None => normal.into_owned(),
        },
    };
    let target = PathAndQuery::try_from(changed)
        .map_err(|_| Failure::BadRequest("The request's target is not a path."))?;
    parts.uri = Uri::from(target);
    Ok(())
}
