//! Finds heads that give their length twice: `Content-Length` and `Transfer-Encoding`.
//!
//! RFC 9112 §6.1 lets a server refuse them, and behind another proxy they are how requests are
//! smuggled. hyper drops the former field in silence, so the raw bytes are searched before hyper
//! reads them. The search only names a request line; whether hyper took it for one is checked by
//! the proxy, so a body that quotes such a head refuses nothing.

/// What is kept of a head, or of an upload's last read, until its end comes.
const MAX_PENDING: usize = 64 * 1024;
const MAX_PENDING_IN_BODY: usize = 2 * 1024;

/// The bytes of one connection, read by read.
#[derive(Default)]
pub struct Framing {
    /// What has come since the last blank line, where a head may still go on.
    pending: Vec<u8>,
}

impl Framing {
    /// Passes over a read that lies within a body.
    pub fn skip(&mut self) {
        self.pending = Vec::new();
    }

    /// Takes one read; returns the request lines of heads framed twice. `in_body`: the bytes are
    /// expected to be a request's body, so that a head can only follow it.
    pub fn feed(&mut self, bytes: &[u8], in_body: bool) -> Vec<Vec<u8>> {
        if self.pending.is_empty() {
            if ends_head(bytes) && !mentions_transfer_encoding(bytes) {
                return Vec::new();
            }
        } else {
            self.pending.extend_from_slice(bytes);
        }
        let window = if self.pending.is_empty() { bytes } else { &self.pending };
        let found = if mentions_transfer_encoding(window) { search(window) } else { Vec::new() };
        let rest = after_last_blank_line(window);
        let limit = if in_body && !holds_request_line(rest) { MAX_PENDING_IN_BODY } else { MAX_PENDING };
        let from = window.len() - rest.len().min(limit);
        self.pending = window[from..].to_vec();
        found
    }
}

fn ends_head(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\r\n\r\n")
}

fn mentions_transfer_encoding(bytes: &[u8]) -> bool {
    const BEFORE: &[u8] = b"transfer";
    const AFTER: &[u8] = b"-encoding";
    memchr::memchr_iter(b'-', bytes).any(|dash| {
        dash >= BEFORE.len()
            && bytes[dash - BEFORE.len()..dash].eq_ignore_ascii_case(BEFORE)
            && starts_with(&bytes[dash..], AFTER)
    })
}

/// A field's value and the end of a body can look like a request line: every line that does is named
/// which has both fields behind it.
fn search(window: &[u8]) -> Vec<Vec<u8>> {
    let (mut request_lines, mut length, mut encoding) = (Vec::new(), None::<usize>, None);
    let mut found = Vec::new();
    for (number, line) in window.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if is_request_line(line) {
            request_lines.push((number, line));
        } else if line.is_empty() {
            let both =
                length.take().zip(encoding.take()).map_or(0, |(length, encoding)| length.min(encoding));
            let before = request_lines.drain(..).filter(|(number, _)| *number < both);
            found.extend(before.map(|(_, line)| line.to_vec()));
        } else if starts_with(line, b"content-length") {
            length = Some(number);
        } else if starts_with(line, b"transfer-encoding") {
            encoding = Some(number);
        }
    }
    found
}

fn is_request_line(line: &[u8]) -> bool {
    line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")
}

fn holds_request_line(window: &[u8]) -> bool {
    memchr::memmem::find_iter(window, b" HTTP/1.").any(|at| {
        let line = window[at..].split(|&byte| byte == b'\n').next().unwrap_or_default();
        is_request_line(line.strip_suffix(b"\r").unwrap_or(line))
    })
}

/// httparse takes a bare LF for a line's end, so two of them end a head as well.
fn after_last_blank_line(window: &[u8]) -> &[u8] {
    let mut end = window.len();
    while let Some(newline) = memchr::memrchr(b'\n', &window[..end]) {
        let before = &window[..newline];
        if before.strip_suffix(b"\r").unwrap_or(before).ends_with(b"\n") {
            return &window[newline + 1..];
        }
        end = newline;
    }
    window
}

fn starts_with(bytes: &[u8], lower: &[u8]) -> bool {
    bytes.len() >= lower.len() && bytes[..lower.len()].eq_ignore_ascii_case(lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWICE: &str =
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTRANSFER-Encoding: chunked\r\n\r\n";

    fn feed(stream: &str, size: usize, in_body: bool) -> Vec<Vec<u8>> {
        let mut framing = Framing::default();
        stream.as_bytes().chunks(size).flat_map(|read| framing.feed(read, in_body)).collect()
    }

    #[test]
    fn found_however_the_bytes_are_split() {
        let pipelined = format!("GET / HTTP/1.1\r\nHost: a\r\n\r\n{TWICE}0\r\n\r\n");
        let bare = TWICE.replace('\r', "");
        let glued = format!("body of a post{TWICE}");
        for stream in [TWICE, &pipelined, &bare, &glued] {
            for size in 1..=stream.len() {
                let found = feed(stream, size, stream == glued);
                assert!(
                    found.last().is_some_and(|line| line.ends_with(b"POST /x HTTP/1.1")),
                    "{size}: {stream}"
                );
            }
        }
    }

    #[test]
    fn one_length_is_fine() {
        for stream in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            TWICE.replace("Content-Length: 3\r\n", ""),
            TWICE.replace("TRANSFER-Encoding: chunked\r\n", ""),
            format!("{}{}", TWICE.replace("TRANSFER-Encoding: chunked\r\n", ""), "abc"),
            "GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
        ] {
            for size in 1..=stream.len() {
                assert_eq!(feed(&stream, size, false), Vec::<Vec<u8>>::new(), "{size}: {stream}");
            }
        }
    }
}
