//! The head of an upstream's response, and how long its body is.
//!
//! Pure: the bytes read so far in, a head out. httparse does the syntax; what two readers could
//! understand differently is refused here, so that nothing can be smuggled downstream (RFC 9112 §6.3, §11.2).

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, InvalidHeaderName, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use hyper::ext::ReasonPhrase;

use super::Malformed;
use super::arena::Arena;
use super::chunked::Decoder;
use super::hop::{ends_here, may_be_named};

const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_FIELDS: usize = 256;
/// Fields that the proxy adds: room for them saves the map from growing.
const ADDED_FIELDS: usize = 4;

/// How the end of a body is known.
#[derive(Debug, PartialEq)]
pub enum Framing {
    /// So many bytes are still to come; 0: none, it is over.
    Length(u64),
    Chunked(Decoder),
    UntilClose,
}

/// What stands at the front of the input.
#[derive(Debug)]
pub enum Head {
    /// A 1xx for the client, as it goes downstream.
    Interim(Vec<u8>),
    /// A 100, which answers an expectation of this hop.
    Continue,
    Final {
        response: Response<()>,
        framing: Framing,
        /// Whether the connection stays open behind the body, as far as this head says.
        keep_alive: bool,
    },
}

/// Takes the next head from `input`; `None`: not all of it is there. `bodiless`: the request was a HEAD.
pub fn parse(input: &mut Bytes, bodiless: bool, arena: &Arena) -> Result<Option<Head>, Malformed> {
    let bytes = input.clone();
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let length = match httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, &bytes, &mut fields)
        .map_err(explain)?
    {
        httparse::Status::Complete(length) if length <= MAX_HEAD_BYTES => length,
        httparse::Status::Partial if bytes.len() <= MAX_HEAD_BYTES => return Ok(None),
        httparse::Status::Complete(_) | httparse::Status::Partial => {
            return Err(Malformed("its head is larger than 64 KiB"));
        }
    };
    let code = parsed.code.ok_or(Malformed("it has no status"))?;
    let status = StatusCode::from_u16(code).map_err(|_| Malformed("its status is below 100"))?;
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let head = match code {
        100 => Head::Continue,
        101 => return Err(Malformed("it switches protocols, which nobody asked for")),
        102..200 => Head::Interim(interim(code, &parsed)),
        _ => {
            let mut hop = Hop::default();
            let mut headers = arena.map(parsed.headers.len() + ADDED_FIELDS);
            read(&bytes, parsed.headers, |name| arena.name(name), &mut hop, &mut headers)?;
            let framing = hop.framing(status, version, bodiless)?;
            let keep_alive = hop.keep_alive(version) && framing != Framing::UntilClose;
            let mut response = Response::new(());
            *response.status_mut() = status;
            *response.version_mut() = version;
            *response.headers_mut() = headers;
            if let Some(reason) = parsed.reason.filter(|reason| Some(*reason) != status.canonical_reason())
                && let Ok(reason) = ReasonPhrase::try_from(Bytes::copy_from_slice(reason.as_bytes()))
            {
                response.extensions_mut().insert(reason);
            }
            Head::Final { response, framing, keep_alive }
        }
    };
    let _ = input.split_to(length);
    Ok(Some(head))
}

/// The fields of a trailer section, its blank line included.
pub fn fields(section: &Bytes) -> Result<HeaderMap, Malformed> {
    let mut parsed = [httparse::EMPTY_HEADER; 64];
    let (_, parsed) = httparse::parse_headers(section, &mut parsed)
        .ok()
        .filter(httparse::Status::is_complete)
        .map(httparse::Status::unwrap)
        // A bare LF may end the section before its blank line.
        .filter(|(length, _)| *length == section.len())
        .ok_or(Malformed("its trailers are no fields"))?;
    let mut trailers = HeaderMap::with_capacity(parsed.len());
    read(section, parsed, HeaderName::from_bytes, &mut Hop::default(), &mut trailers)?;
    Ok(trailers)
}

/// What a head says to this hop alone: where the message ends, and the connection with it.
#[derive(Default)]
struct Hop {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    /// Fields that `Connection` names: they end here too.
    named: Vec<HeaderName>,
}

/// Puts `parsed`, found in `bytes`, into `headers` without a copy of the values. Hop-by-hop fields go
/// to `hop`.
fn read(
    bytes: &Bytes,
    parsed: &[httparse::Header<'_>],
    name_of: impl Fn(&[u8]) -> Result<HeaderName, InvalidHeaderName>,
    hop: &mut Hop,
    headers: &mut HeaderMap,
) -> Result<(), Malformed> {
    for field in parsed {
        let name = name_of(field.name.as_bytes()).map_err(|_| Malformed("a field's name is no token"))?;
        match name {
            CONTENT_LENGTH if !hop.takes_length(field.value)? => continue,
            TRANSFER_ENCODING => hop.take_coding(field.value)?,
            CONNECTION => hop.take_connection(field.value),
            _ if !ends_here(name.as_str()) => {
                let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value))
                    .map_err(|_| Malformed("a field's value holds a control character"))?;
                headers.append(name, value);
            }
            _ => {}
        }
    }
    for name in &hop.named {
        headers.remove(name);
    }
    Ok(())
}

impl Hop {
    /// False: it only says again what is known.
    fn takes_length(&mut self, value: &[u8]) -> Result<bool, Malformed> {
        // A sign would be taken by the number's own parser.
        let digits = value.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(value).ok()).flatten();
        let length = digits.and_then(|digits| digits.parse().ok());
        let length = length.ok_or(Malformed("its Content-Length is no number"))?;
        match self.length.replace(length) {
            None => Ok(true),
            Some(before) if before == length => Ok(false),
            Some(_) => Err(Malformed("it has two Content-Lengths")),
        }
    }

    fn take_coding(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if !value.eq_ignore_ascii_case(b"chunked") || std::mem::replace(&mut self.chunked, true) {
            return Err(Malformed("it has a transfer coding besides chunked"));
        }
        Ok(())
    }

    fn take_connection(&mut self, value: &[u8]) {
        if value.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
            return;
        }
        for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if let Ok(name) = HeaderName::from_bytes(option)
                && may_be_named(name.as_str())
            {
                self.named.push(name);
            }
        }
    }

    /// RFC 9112 §6.3; where it leaves a choice between tolerance and refusal, refusal.
    fn framing(&self, status: StatusCode, version: Version, bodiless: bool) -> Result<Framing, Malformed> {
        if self.chunked && version == Version::HTTP_10 {
            return Err(Malformed("it is chunked, which HTTP/1.0 does not know"));
        }
        if self.chunked && self.length.is_some() {
            return Err(Malformed("it has both Content-Length and Transfer-Encoding"));
        }
        if bodiless || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
            return Ok(Framing::Length(0));
        }
        Ok(match self.length {
            _ if self.chunked => Framing::Chunked(Decoder::default()),
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        })
    }

    fn keep_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep_alive)
    }
}

/// An interim head without its hop-by-hop fields (RFC 9110 §15.2: a proxy must forward it).
fn interim(code: u16, parsed: &httparse::Response<'_, '_>) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {code} {}\r\n", parsed.reason.unwrap_or_default()).into_bytes();
    for field in parsed.headers.iter() {
        let name = field.name.to_ascii_lowercase();
        if !ends_here(&name) && name != "content-length" {
            out.extend_from_slice(field.name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(field.value);
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn explain(error: httparse::Error) -> Malformed {
    Malformed(match error {
        httparse::Error::HeaderName => "a field's name is no token",
        httparse::Error::HeaderValue => "a field's value holds a control character",
        httparse::Error::NewLine => "a line does not end as it should",
        httparse::Error::Status => "its status is no number",
        httparse::Error::Token => "its status line is malformed",
        httparse::Error::TooManyHeaders => "it has more than 256 fields",
        httparse::Error::Version => "it is not HTTP/1.0 or HTTP/1.1",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str, bodiless: bool) -> Result<(u16, Framing, bool), Malformed> {
        let mut input = Bytes::copy_from_slice(text.as_bytes());
        match parse(&mut input, bodiless, &Arena::default())? {
            Some(Head::Final { response, framing, keep_alive }) => {
                assert_eq!(&input[..], b"rest", "{text}");
                Ok((response.status().as_u16(), framing, keep_alive))
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn the_end_of_a_body() {
        let chunked = || Framing::Chunked(Decoder::default());
        for (status, fields, bodiless, want) in [
            ("200 OK", "Content-Length: 3\r\n", false, Framing::Length(3)),
            ("200 OK", "Content-Length: 3\r\nContent-Length: 3\r\n", false, Framing::Length(3)),
            ("200 OK", "Content-Length: 0\r\n", false, Framing::Length(0)),
            ("200 OK", "Content-Length: 3\r\n", true, Framing::Length(0)),
            ("200", "Transfer-Encoding: Chunked\r\n", false, chunked()),
            ("200", "Transfer-Encoding: chunked\r\n", true, Framing::Length(0)),
            ("204 No Content", "Content-Length: 3\r\n", false, Framing::Length(0)),
            ("304 Not Modified", "Content-Length: 3\r\n", false, Framing::Length(0)),
            ("200 OK", "", false, Framing::UntilClose),
        ] {
            let text = format!("HTTP/1.1 {status}\r\n{fields}\r\nrest");
            assert_eq!(head(&text, bodiless).unwrap().1, want, "{text}");
        }
    }

    #[test]
    fn whether_the_connection_stays() {
        for (version, fields, want) in [
            ("1.1", "", true),
            ("1.1", "Connection: x, Close\r\n", false),
            ("1.1", "Connection: keep-alive\r\n", true),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
        ] {
            let text = format!("HTTP/{version} 200 OK\r\nContent-Length: 1\r\n{fields}\r\nrest");
            assert_eq!(head(&text, false).unwrap().2, want, "{text}");
        }
        assert!(!head("HTTP/1.1 200 OK\r\n\r\nrest", false).unwrap().2, "its body ends with it");
    }

    #[test]
    fn refused() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: 1\r\n".repeat(MAX_FIELDS + 1));
        let long = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(MAX_HEAD_BYTES));
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 99 Low\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: 1\r\n b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "220 mail.example\r\n",
            &many,
            &long,
        ] {
            parse(&mut Bytes::copy_from_slice(text.as_bytes()), false, &Arena::default()).expect_err(text);
        }
    }

    #[test]
    fn not_all_there_yet() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        for end in 0..whole.len() {
            let mut input = Bytes::copy_from_slice(&whole.as_bytes()[..end]);
            assert!(parse(&mut input, false, &Arena::default()).unwrap().is_none(), "{end}");
            assert_eq!(input.len(), end);
        }
    }

    #[test]
    fn interim_heads_lose_what_is_of_this_hop() {
        let text = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x\r\n\r\nHTTP/1.1 100 Go\r\n\r\n";
        let mut input = Bytes::from_static(text.as_bytes());
        match parse(&mut input, false, &Arena::default()) {
            Ok(Some(Head::Interim(bytes))) => {
                assert_eq!(bytes, b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n");
            }
            other => panic!("{other:?}"),
        }
        assert!(
            matches!(parse(&mut input, false, &Arena::default()), Ok(Some(Head::Continue)))
                && input.is_empty()
        );
    }
}
