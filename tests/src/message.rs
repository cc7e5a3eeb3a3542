//! An HTTP/1 message as it stood on the wire, read by rules of its own.
//!
//! Both ends of the tests read with this, so that no library shared with the gateway hides what the
//! gateway really sent. Names of fields keep their case; look-ups ignore it.

use std::fmt;
use std::io::{self, BufRead, Read};

#[derive(Clone, Default)]
pub struct Message {
    /// The request line or the status line.
    pub start: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Message {
    /// One request with its body; `None` where the input ends instead of beginning one.
    pub fn read_request(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let Some(mut message) = Self::read_head(from)? else { return Ok(None) };
        if message.is_chunked() || message.field("content-length").is_some() {
            message.read_body(from)?;
        }
        Ok(Some(message))
    }

    /// One final or interim response to `method`, with its body.
    pub fn read_response(from: &mut impl BufRead, method: &str) -> io::Result<Self> {
        let mut message = Self::read_head(from)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "an end instead of a head"))?;
        message.check_status_line()?;
        if method != "HEAD" && !matches!(message.status(), 100..=199 | 204 | 304) {
            message.read_body(from)?;
        }
        Ok(message)
    }

    /// A start line and its fields; `None` at the end of the input.
    pub fn read_head(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let Some(start) = read_line(from)? else { return Ok(None) };
        let fields = read_fields(from)?;
        Ok(Some(Self { start, fields, ..Self::default() }))
    }

    /// The body that the head announces: chunked, counted, or up to the end of the input.
    pub fn read_body(&mut self, from: &mut impl BufRead) -> io::Result<()> {
        if self.is_chunked() {
            while let Some(chunk) = read_chunk(from)? {
                self.body.extend_from_slice(&chunk);
            }
            self.trailers = read_fields(from)?;
        } else if let Some(length) = self.field("content-length") {
            let length = length.parse().map_err(|_| invalid(format!("content-length: {length}")))?;
            self.body = read_exactly(from, length)?;
        } else {
            from.read_to_end(&mut self.body)?;
        }
        Ok(())
    }

    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default()
    }

    pub fn method(&self) -> &str {
        self.start.split(' ').next().unwrap_or_default()
    }

    pub fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// The value of a field that stands there once; `None` otherwise.
    pub fn field(&self, name: &str) -> Option<&str> {
        match self.all(name)[..] {
            [value] => Some(value),
            _ => None,
        }
    }

    /// Every value of a field, line by line.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// Whether the sender said that this is the connection's last message.
    pub fn closes(&self) -> bool {
        self.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    fn is_chunked(&self) -> bool {
        self.field("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }

    fn check_status_line(&self) -> io::Result<()> {
        let mut words = self.start.splitn(3, ' ');
        let version = words.next().is_some_and(|version| version == "HTTP/1.1" || version == "HTTP/1.0");
        let status = words.next().is_some_and(|status| {
            status.len() == 3 && status.bytes().all(|digit| digit.is_ascii_digit()) && status >= "100"
        });
        if version && status { Ok(()) } else { Err(invalid(format!("status line: {:?}", self.start))) }
    }
}

/// The next chunk's bytes; `None` for the last, whose trailers are still to be read.
pub fn read_chunk(from: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let line = read_line(from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let digits = line.split(';').next().unwrap_or_default().trim();
    let size = u64::from_str_radix(digits, 16).map_err(|_| invalid(format!("chunk size: {line:?}")))?;
    if size == 0 {
        return Ok(None);
    }
    let chunk = read_exactly(from, size)?;
    match read_line(from)?.as_deref() {
        Some("") => Ok(Some(chunk)),
        other => Err(invalid(format!("after a chunk: {other:?}"))),
    }
}

fn read_exactly(from: &mut impl BufRead, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        all if all == length => Ok(bytes),
        some => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{some} of {length} bytes"))),
    }
}

/// A line without its CRLF; `None` where the input has ended before it.
fn read_line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if from.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    match line.strip_suffix(b"\r\n") {
        Some(line) => Ok(Some(String::from_utf8_lossy(line).into_owned())),
        None if line.ends_with(b"\n") => {
            Err(invalid(format!("bare LF: {:?}", String::from_utf8_lossy(&line))))
        }
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn read_fields(from: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let line = read_line(from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if line.is_empty() {
            return Ok(fields);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid(format!("field: {line:?}")))?;
        fields.push((name.to_owned(), value.trim().to_owned()));
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.start)?;
        for (name, value) in &self.fields {
            writeln!(f, "{name}: {value}")?;
        }
        write!(f, "\n{}", String::from_utf8_lossy(&self.body[..self.body.len().min(2000)]))
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
