//! The heads of plain exchanges: a request that came whole and has no body, a response whose length is known.
//!
//! Pure: bytes in, a request out; a response in, bytes out. It reads with the parser that hyper reads with, and
//! whatever a reader could understand in more than one way it leaves to hyper.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE};
use http::response::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, StatusCode, Uri, request};
use hyper::ext::ReasonPhrase;

use crate::config::HeadLimits;
use crate::lines::{self, write, write_count};
use crate::upstream::Arena;

const MAX_FIELDS: usize = 64;

pub struct Head {
    pub parts: request::Parts,
    /// Bytes of the head.
    pub length: usize,
    /// The client asks for no more after this.
    pub last: bool,
}

/// The plain request at the front of `bytes`; `None`: what stands there is something else, or not all of it has come.
pub fn read(bytes: &Bytes, bounds: &HeadLimits, arena: &Arena) -> Option<Head> {
    // An absolute path: whatever else a target can be is rare.
    if !bytes.starts_with(b"GET /") {
        return None;
    }
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let config = httparse::ParserConfig::default();
    let status = config.parse_request_with_uninit_headers(&mut parsed, bytes, &mut fields).ok()?;
    let httparse::Status::Complete(length) = status else { return None };
    if parsed.version != Some(1) || length > bounds.max_bytes || parsed.headers.len() > bounds.max_headers {
        return None;
    }
    let target = PathAndQuery::from_maybe_shared(bytes.slice_ref(parsed.path?.as_bytes())).ok()?;
    let mut headers = arena.map(parsed.headers.len());
    let mut last = false;
    for field in parsed.headers.iter() {
        let name = arena.name(field.name.as_bytes()).ok()?;
        match name {
            CONNECTION if field.value.eq_ignore_ascii_case(b"keep-alive") => {}
            CONNECTION if field.value.eq_ignore_ascii_case(b"close") => last = true,
            // What else becomes of the connection, and where the request ends, is hyper's to say.
            CONNECTION => return None,
            CONTENT_LENGTH | TRANSFER_ENCODING | EXPECT | UPGRADE => return None,
            _ => {}
        }
        headers.append(name, HeaderValue::from_maybe_shared(bytes.slice_ref(field.value)).ok()?);
    }
    let (mut parts, ()) = Request::new(()).into_parts();
    (parts.uri, parts.headers) = (Uri::from(target), headers);
    Some(Head { parts, length, last })
}

/// Writes the head of a response with a body of `length` bytes. `more`: fields besides its own, as lines.
pub fn write_response(parts: &Parts, more: &[u8], length: u64, out: &mut Vec<u8>) {
    let status = parts.status;
    let reason = parts.extensions.get::<ReasonPhrase>();
    match reason {
        None if status == StatusCode::OK => out.extend_from_slice(b"HTTP/1.1 200 OK"),
        reason => {
            out.extend_from_slice(b"HTTP/1.1 ");
            out.extend_from_slice(status.as_str().as_bytes());
            out.push(b' ');
            let usual = || status.canonical_reason().unwrap_or("<none>").as_bytes();
            out.extend_from_slice(reason.map_or_else(usual, ReasonPhrase::as_bytes));
        }
    }
    out.extend_from_slice(lines::END);
    out.extend_from_slice(more);
    for (name, value) in &parts.headers {
        if *name != CONTENT_LENGTH {
            write(out, name, value.as_bytes());
        }
    }
    if may_have_a_body(status) {
        write_count(out, b"content-length: ", length);
    }
    out.extend_from_slice(lines::END);
}

/// RFC 9110 §15.3.5, §15.4.5; 1xx are no final answers.
pub fn may_have_a_body(status: StatusCode) -> bool {
    !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: HeadLimits = HeadLimits { max_bytes: 200, max_headers: 4 };

    fn read(stream: &str) -> Option<Head> {
        super::read(&Bytes::copy_from_slice(stream.as_bytes()), &BOUNDS, &Arena::default())
    }

    #[test]
    fn what_is_plain() {
        let end = "HTTP/1.1\r\nHost: a\r\n";
        let long = format!("GET / {end}X: {}\r\n\r\n", "x".repeat(200));
        let many = format!("GET / {end}{}\r\n", "X: y\r\n".repeat(4));
        for (stream, plain) in [
            (format!("GET /a?b=c {end}\r\n"), true),
            (format!("GET / {end}Connection: Keep-Alive\r\nCookie: a\r\n\r\n"), true),
            (format!("GET / {end}\r\nGET /next"), true),
            ("GET / HTTP/1.1\nHost: a\n\n".into(), true),
            (format!("GET / {end}"), false),
            ("GET / HTTP/1.0\r\nHost: a\r\n\r\n".into(), false),
            (format!("HEAD / {end}\r\n"), false),
            (format!("GET http://a/ {end}\r\n"), false),
            (format!("GET * {end}\r\n"), false),
            (format!("\r\nGET / {end}\r\n"), false),
            (format!("GET / {end}Content-Length: 0\r\n\r\n"), false),
            (format!("GET / {end}transfer-ENCODING: chunked\r\n\r\n"), false),
            (format!("GET / {end}Connection: close\r\n\r\n"), true),
            (format!("GET / {end}Connection: keep-alive, X\r\n\r\n"), false),
            (format!("GET / {end}Upgrade: h2c\r\n\r\n"), false),
            (format!("GET / {end}Expect: 100-continue\r\n\r\n"), false),
            (format!("GET / {end}A B: c\r\n\r\n"), false),
            (format!("GET / {end}A: b\0\r\n\r\n"), false),
            (format!("GET / {end} folded\r\n\r\n"), false),
            (long, false),
            (many, false),
        ] {
            assert_eq!(read(&stream).is_some(), plain, "{stream:?}");
        }
    }

    #[test]
    fn a_plain_request_is_read_as_it_was_written() {
        let head = "GET /a/../b?c=%20 HTTP/1.1\r\nHost: a:1\r\nX: 1\r\nx: \t2 \r\n\r\n";
        let Head { parts, length, last } = read(&format!("{head}GET")).unwrap();
        assert_eq!((length, last), (head.len(), false));
        assert_eq!(parts.uri, "/a/../b?c=%20");
        let fields: Vec<_> = parts.headers.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let value = HeaderValue::from_static;
        assert_eq!(fields, [("host", &value("a:1")), ("x", &value("1")), ("x", &value("2"))]);
        assert!(
            read("GET / HTTP/1.1\r\nHost: a\r\nconnection: CLOSE\r\nConnection: keep-alive\r\n\r\n")
                .unwrap()
                .last
        );
        // Whoever has less of it waits for the rest.
        (0..head.len()).for_each(|n| assert!(read(&head[..n]).is_none(), "{n}"));
    }

    fn written(status: u16, fields: &[(&'static str, &'static str)], more: &str, length: u64) -> String {
        let mut parts = http::Response::new(()).into_parts().0;
        parts.status = StatusCode::from_u16(status).unwrap();
        for (name, value) in fields {
            parts.headers.append(*name, HeaderValue::from_static(value));
        }
        let mut out = Vec::new();
        write_response(&parts, more.as_bytes(), length, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_written() {
        for (got, want) in [
            (written(200, &[], "", 0), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
            (
                written(404, &[("a", "1"), ("content-length", "7"), ("a", "2")], "b: 3\r\n", 5),
                "HTTP/1.1 404 Not Found\r\nb: 3\r\na: 1\r\na: 2\r\ncontent-length: 5\r\n\r\n",
            ),
            (written(204, &[], "", 0), "HTTP/1.1 204 No Content\r\n\r\n"),
            (written(304, &[("content-length", "7")], "", 0), "HTTP/1.1 304 Not Modified\r\n\r\n"),
            (written(799, &[], "", 0), "HTTP/1.1 799 <none>\r\ncontent-length: 0\r\n\r\n"),
        ] {
            assert_eq!(got, want);
        }
    }
}
