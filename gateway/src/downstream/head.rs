//! The heads of plain exchanges: a request that came whole and has no body, a response whose length is known.
//!
//! Pure: bytes in, a request out; a response in, bytes out. It reads with the parser that hyper reads with, and
//! whatever a reader could understand in more than one way it leaves to hyper.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode, Uri, request};
use httparse::{Header, ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use crate::config::HeadLimits;
use crate::lines::{self, write, write_count};
use crate::proxy::Seen;
use crate::upstream::Arena;

const MAX_FIELDS: usize = 64;

/// The request of a connection that was read last. A client says the same of itself each time: fields that are, byte
/// for byte, those of the request before are not read again.
pub struct Head {
    pub parts: request::Parts,
    /// What is seen of the fields.
    pub seen: Seen,
    /// The client asks for no more after this.
    pub last: bool,
    /// Bytes of the head.
    length: usize,
    /// The fields as they came, the blank line included; empty: there are none yet.
    fields: Bytes,
    arena: Rc<Arena>,
}

impl Head {
    pub fn new(arena: &Rc<Arena>) -> Self {
        let (parts, ()) = Request::new(()).into_parts();
        let (seen, fields) = (Seen::default(), Bytes::new());
        Self { parts, seen, last: false, length: 0, fields, arena: arena.clone() }
    }

    /// Takes in the head at the front of `bytes` if its fields are those of the last; its length. `keep` has its target
    /// outlast `bytes`.
    pub fn take(&mut self, bytes: &[u8], keep: impl FnOnce(&[u8]) -> Bytes) -> Option<usize> {
        let line = line_of(bytes)?;
        if self.fields.is_empty() || !bytes[line..].starts_with(&self.fields) {
            return None;
        }
        self.ask_for(keep(target_of(&bytes[..line])?))?;
        self.length = line + self.fields.len();
        Some(self.length)
    }

    /// Reads the plain request at the front of `bytes`; `None`: what stands there is something else, or not all of it
    /// has come.
    pub fn read(&mut self, bytes: &Bytes) -> Option<usize> {
        if let Some(length) = self.take(bytes, |target| bytes.slice_ref(target)) {
            return Some(length);
        }
        let line = line_of(bytes)?;
        let target = self.parse(bytes, line)?;
        self.ask_for(bytes.slice_ref(target))?;
        self.length = line + self.fields.len();
        Some(self.length)
    }

    fn ask_for(&mut self, target: Bytes) -> Option<()> {
        let length = target.len();
        let path = PathAndQuery::from_maybe_shared(target).ok()?;
        // A fragment has no place in a target.
        if path.as_str().len() != length {
            return None;
        }
        self.parts.uri = Uri::from(path);
        Some(())
    }

    pub fn keeps_to(&self, bounds: &HeadLimits) -> bool {
        self.length <= bounds.max_bytes && self.parts.headers.len() <= bounds.max_headers
    }

    /// The head once more, for another reader.
    pub fn text(&self) -> Bytes {
        let target = self.parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        [b"GET ", target.as_bytes(), b" HTTP/1.1\r\n", &self.fields].concat().into()
    }

    /// Has the parser read all of the head, whose first line has `line` bytes; its target.
    fn parse<'a>(&mut self, bytes: &'a Bytes, line: usize) -> Option<&'a [u8]> {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Request::new(&mut []);
        let config = ParserConfig::default();
        let status = config.parse_request_with_uninit_headers(&mut parsed, bytes, &mut fields).ok()?;
        let Status::Complete(length) = status else { return None };
        if parsed.version != Some(1) {
            return None;
        }
        self.read_fields(parsed.headers, bytes, line..length)?;
        parsed.path.map(str::as_bytes)
    }

    /// Takes in the fields that lie in a `part` of `bytes`.
    fn read_fields(&mut self, parsed: &[Header<'_>], bytes: &Bytes, part: Range<usize>) -> Option<()> {
        self.fields = Bytes::new();
        let headers = &mut self.parts.headers;
        match headers.capacity() {
            0 => *headers = self.arena.map(parsed.len()),
            _ => headers.clear(),
        }
        self.last = false;
        for field in parsed {
            let name = self.arena.name(field.name.as_bytes()).ok()?;
            match name {
                CONNECTION if field.value.eq_ignore_ascii_case(b"keep-alive") => {}
                CONNECTION if field.value.eq_ignore_ascii_case(b"close") => self.last = true,
                // What else becomes of the connection, and where the request ends, is hyper's to say.
                CONNECTION => return None,
                CONTENT_LENGTH | TRANSFER_ENCODING | EXPECT | UPGRADE => return None,
                _ => {}
            }
            headers.append(name, HeaderValue::from_maybe_shared(bytes.slice_ref(field.value)).ok()?);
        }
        self.seen = Seen::of(headers);
        self.fields = bytes.slice(part);
        Some(())
    }
}

/// Bytes of the first line, if it asks for an absolute path: whatever else a target can be is rare.
fn line_of(bytes: &[u8]) -> Option<usize> {
    bytes.starts_with(b"GET /").then(|| memchr::memchr(b'\n', bytes))?.map(|end| end + 1)
}

/// What a line asks for. The parser ends a target at a space, and at what cannot stand in one; who reads it as a path
/// refuses those, up to a fragment.
fn target_of(line: &[u8]) -> Option<&[u8]> {
    line.strip_prefix(b"GET ")?.strip_suffix(b" HTTP/1.1\r\n")
}

impl Drop for Head {
    fn drop(&mut self) {
        self.arena.recycle(std::mem::take(&mut self.parts.headers));
    }
}

/// Writes the head of a response with a body of `length` bytes. `more`: fields besides its own, as lines.
pub fn write_response(response: &Response<()>, more: &[u8], length: u64, out: &mut Vec<u8>) {
    let status = response.status();
    let reason = response.extensions().get::<ReasonPhrase>();
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
    for (name, value) in response.headers() {
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

    fn read(stream: impl AsRef<[u8]>) -> Option<Head> {
        let mut head = Head::new(&Rc::default());
        head.read(&Bytes::copy_from_slice(stream.as_ref())).filter(|_| head.keeps_to(&BOUNDS))?;
        Some(head)
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
            (format!("GET /a#b {end}\r\n"), false),
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
        let read_whole = read(format!("{head}GET")).unwrap();
        let parts = &read_whole.parts;
        assert_eq!((read_whole.length, read_whole.last), (head.len(), false));
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

    /// Whatever came before on the connection, a head is read as if it were the first.
    #[test]
    fn fields_that_came_before_are_what_they_would_be_if_read_again() {
        let lines = [
            "GET / HTTP/1.1\r\n",
            "GET /a/b?c HTTP/1.1\n",
            "GET /a HTTP/1.0\r\n",
            "GET /a b HTTP/1.1\r\n",
            "GET /#a b HTTP/1.1\r\n",
            "GET /a\r\n",
            "GET /a HTTP/1.1\r\r\n",
            "GET / HTTP/1.1\r\nY: z\r\n",
            "HEAD / HTTP/1.1\r\n",
        ];
        let fields = [
            "Host: a\r\n\r\n",
            "Host: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "Host: a\r\n",
            "Host: a\r\nConnection: close\r\n\r\n",
            "Host: a\r\nUpgrade: h2c\r\n\r\n",
            "Host: a\r\nX: 1\r\nX: 2\r\n\r\n",
            "Host: a\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n",
            "\r\n",
            "",
        ];
        let all = lines.iter().flat_map(|line| fields.map(|fields| format!("{line}{fields}").into_bytes()));
        let all: Vec<Vec<u8>> = all.collect();
        let asked = |head: &Head| (head.parts.uri.clone(), head.parts.headers.clone(), head.last);
        let told = |head: &Head| {
            let fields = head.parts.headers.clone();
            (head.parts.uri.clone(), fields, head.length, head.last, head.seen.clone())
        };
        let check = |before: &[u8], stream: &[u8]| {
            let mut head = Head::new(&Rc::default());
            let _ = head.read(&Bytes::copy_from_slice(before));
            let read_again = head.read(&Bytes::copy_from_slice(stream));
            let again = read_again.filter(|_| head.keeps_to(&BOUNDS)).map(|_| told(&head));
            let (first, what) = (read(stream), stream.escape_ascii());
            assert_eq!(again, first.as_ref().map(told), "{what} after {}", before.escape_ascii());
            // Whoever else reads it reads the same.
            if first.is_some() {
                assert_eq!(read(head.text()).as_ref().map(asked), first.as_ref().map(asked), "{what}");
            }
        };
        for before in &all {
            all.iter().for_each(|stream| check(before, stream));
        }
        for byte in 0..=255 {
            for path in [&b"/a"[..], b"/a?", b"/a#"] {
                let end = b"b HTTP/1.1\r\nHost: a\r\n\r\n";
                check(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", &[b"GET ", path, &[byte], end].concat());
            }
        }
        // A bound that has become narrower in between holds.
        let mut head = Head::new(&Rc::default());
        let stream = Bytes::from_static(b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n");
        assert!(head.read(&stream).is_some() && head.keeps_to(&BOUNDS));
        for bounds in [HeadLimits { max_headers: 1, ..BOUNDS }, HeadLimits { max_bytes: 30, ..BOUNDS }] {
            assert!(head.read(&stream).is_some() && !head.keeps_to(&bounds));
        }
    }

    fn written(status: u16, fields: &[(&'static str, &'static str)], more: &str, length: u64) -> String {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in fields {
            response.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        let mut out = Vec::new();
        write_response(&response, more.as_bytes(), length, &mut out);
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
