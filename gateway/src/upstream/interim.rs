//! Interim (1xx) responses, found in the raw bytes of an upstream connection.
//!
//! hyper's client skips them; [`Scan`] sees each read first and keeps those a client should get
//! (RFC 9110 §15.2: a proxy must forward them, except a 100 it asked for itself). It never changes
//! what hyper reads. For a response without any, the cost is one comparison.

/// The longest head that is looked at; a longer one passes unseen, and hyper judges it.
const MAX_BYTES: usize = 16 * 1024;

/// Watches one response's beginning.
#[derive(Default)]
pub struct Scan {
    /// Bytes of an interim response that is not complete yet.
    partial: Vec<u8>,
    done: bool,
}

impl Scan {
    pub fn is_done(&self) -> bool {
        self.done
    }

    pub fn restart(&mut self) {
        self.done = false;
        self.partial.clear();
    }

    /// Takes the bytes of one read; calls `found` with each interim response fit to be forwarded.
    pub fn feed(&mut self, bytes: &[u8], mut found: impl FnMut(Vec<u8>)) {
        if self.partial.is_empty() && is_final(bytes) == Some(true) {
            self.done = true;
            return;
        }
        self.partial.extend_from_slice(bytes);
        while is_final(&self.partial) == Some(false) {
            let Some(end) = memchr::memmem::find(&self.partial, b"\r\n\r\n") else { break };
            let head: Vec<u8> = self.partial.drain(..end + 4).collect();
            if let Some(head) = forwarded(&head) {
                found(head);
            }
        }
        if is_final(&self.partial) == Some(true) || self.partial.len() > MAX_BYTES {
            self.done = true;
            self.partial = Vec::new();
        }
    }
}

/// Whether a response that begins like this is the final one; `None`: too short to tell.
fn is_final(bytes: &[u8]) -> Option<bool> {
    // `HTTP/1.1 103`
    let class = *bytes.get(9)?;
    Some(!bytes.starts_with(b"HTTP/1.") || class != b'1')
}

/// The head without its hop-by-hop fields; `None` for 100 and 101, which concern this hop alone.
fn forwarded(head: &[u8]) -> Option<Vec<u8>> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    response.parse(head).ok()?;
    let code = response.code.filter(|code| (102..200).contains(code))?;
    let mut out = format!("HTTP/1.1 {code} {}\r\n", response.reason.unwrap_or_default()).into_bytes();
    for field in response.headers.iter() {
        let hop = ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];
        let named = |name: &&str| field.name.eq_ignore_ascii_case(name);
        if !hop.iter().any(named) && !field.name.eq_ignore_ascii_case("content-length") {
            out.extend_from_slice(field.name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(field.value);
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x\r\n\r\n";
    const FINAL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

    /// Feeds `stream` in reads of `size` bytes.
    fn scan(stream: &str, size: usize) -> (Vec<String>, bool) {
        let (mut scan, mut found) = (Scan::default(), Vec::new());
        for read in stream.as_bytes().chunks(size) {
            if !scan.is_done() {
                scan.feed(read, |head| found.push(String::from_utf8(head).unwrap()));
            }
        }
        (found, scan.is_done())
    }

    #[test]
    fn found_however_the_bytes_are_split() {
        let stream = format!("HTTP/1.1 100 Continue\r\n\r\n{HINTS}{HINTS}{FINAL}");
        for size in 1..stream.len() + 1 {
            let (found, done) = scan(&stream, size);
            assert!(done, "reads of {size}");
            assert_eq!(found, ["HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"; 2]);
        }
    }

    #[test]
    fn nothing_else_is_kept() {
        for stream in [FINAL, "HTTP/1.1 101 Switching\r\n\r\nHTTP/1.1 200 OK\r\n", "garbage, not HTTP at all"]
        {
            assert_eq!(scan(stream, 4096), (vec![], true), "{stream}");
        }
        assert!(scan(&format!("HTTP/1.1 103 x\r\nA: {}", "b".repeat(MAX_BYTES)), 1000).1, "unbounded head");
    }
}
