//! A reader of HTTP/1.1 answers that looks at nothing but where an answer ends.
//!
//! One per connection; it is fed what the socket gave and keeps no body. It allocates only when a head
//! arrives in pieces. It is for answers to requests of ours other than HEAD.

use memchr::memchr;

/// What is known of an answer once its last byte is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body_bytes: u64,
    /// The server said that it closes the connection, or the end of the connection ends the body.
    pub close: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an HTTP/1.1 answer")]
pub struct Malformed;

/// The state of one answer in the making.
#[derive(Default)]
pub struct Reader {
    state: State,
    answer: Option<Answer>,
    /// The beginning of a head whose end has not arrived.
    head: Vec<u8>,
}

#[derive(Default, Clone, Copy)]
enum State {
    #[default]
    Head,
    Length {
        left: u64,
    },
    Chunked(Chunk),
    UntilClose,
}

#[derive(Clone, Copy)]
enum Chunk {
    Size { bytes: u64, digits: u8 },
    Extension { bytes: u64 },
    Bytes { left: u64 },
    BytesEnd,
    Trailer { line_empty: bool },
}

struct Head {
    bytes: usize,
    status: u16,
    length: Option<u64>,
    chunked: bool,
    close: bool,
}

impl Reader {
    /// Whether nothing of an answer has been seen since the last one ended.
    pub fn is_fresh(&self) -> bool {
        matches!(self.state, State::Head) && self.head.is_empty()
    }

    /// Forgets a half-read answer, for use on a new connection.
    pub fn reset(&mut self) {
        self.state = State::Head;
        self.answer = None;
        self.head.clear();
    }

    /// Takes from `input` what belongs to the current answer; returns it when it is complete.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Answer>, Malformed> {
        loop {
            match &mut self.state {
                State::Head => {
                    let Some(head) = self.take_head(input)? else { return Ok(None) };
                    if (100..200).contains(&head.status) {
                        continue;
                    }
                    self.answer = Some(Answer { status: head.status, body_bytes: 0, close: head.close });
                    self.state = match (head.status, head.chunked, head.length) {
                        (204 | 304, _, _) => State::Length { left: 0 },
                        (_, true, _) => State::Chunked(Chunk::Size { bytes: 0, digits: 0 }),
                        (_, false, Some(left)) => State::Length { left },
                        (_, false, None) => State::UntilClose,
                    };
                }
                State::Length { left } => {
                    let taken = (*left).min(input.len() as u64);
                    *left -= taken;
                    let done = *left == 0;
                    self.take_body(input, taken);
                    return Ok(if done { self.finish() } else { None });
                }
                State::UntilClose => {
                    self.take_body(input, input.len() as u64);
                    return Ok(None);
                }
                State::Chunked(chunk) => {
                    if let Chunk::Bytes { left } = chunk {
                        let taken = (*left).min(input.len() as u64);
                        *left -= taken;
                        if *left == 0 {
                            *chunk = Chunk::BytesEnd;
                        }
                        self.take_body(input, taken);
                        if input.is_empty() {
                            return Ok(None);
                        }
                        continue;
                    }
                    let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
                    *input = rest;
                    match chunk.next(byte)? {
                        Some(next) => *chunk = next,
                        None => return Ok(self.finish()),
                    }
                }
            }
        }
    }

    /// The answer that the end of the connection completes, if it was of that kind.
    pub fn end(&mut self) -> Option<Answer> {
        let until_close = matches!(self.state, State::UntilClose);
        until_close.then(|| self.finish()).flatten().map(|answer| Answer { close: true, ..answer })
    }

    fn take_body(&mut self, input: &mut &[u8], bytes: u64) {
        *input = &input[bytes as usize..];
        if let Some(answer) = &mut self.answer {
            answer.body_bytes += bytes;
        }
    }

    fn finish(&mut self) -> Option<Answer> {
        self.state = State::Head;
        self.answer.take()
    }

    fn take_head(&mut self, input: &mut &[u8]) -> Result<Option<Head>, Malformed> {
        if self.head.is_empty() {
            let found = parse_head(input)?;
            match &found {
                Some(head) => *input = &input[head.bytes..],
                None => self.head.extend_from_slice(std::mem::take(input)),
            }
            return Ok(found);
        }
        let before = self.head.len();
        self.head.extend_from_slice(input);
        let found = parse_head(&self.head)?;
        *input = match &found {
            Some(head) => &input[head.bytes - before..],
            None => &[],
        };
        if found.is_some() {
            self.head.clear();
        }
        Ok(found)
    }
}

impl Chunk {
    /// The state after one byte of framing; `None` when it was the last of the body.
    fn next(self, byte: u8) -> Result<Option<Chunk>, Malformed> {
        Ok(Some(match (self, byte) {
            (Chunk::Size { digits: 0, .. }, b'\n') => return Err(Malformed),
            (Chunk::Size { bytes, .. } | Chunk::Extension { bytes }, b'\n') => match bytes {
                0 => Chunk::Trailer { line_empty: true },
                left => Chunk::Bytes { left },
            },
            (Chunk::Size { bytes, digits: 1.. }, b';' | b'\r' | b' ') => Chunk::Extension { bytes },
            (Chunk::Size { bytes, digits: digits @ 0..15 }, _) => {
                let digit = (byte as char).to_digit(16).ok_or(Malformed)?;
                Chunk::Size { bytes: bytes * 16 + u64::from(digit), digits: digits + 1 }
            }
            (Chunk::Size { .. }, _) => return Err(Malformed),
            (Chunk::Extension { bytes }, _) => Chunk::Extension { bytes },
            (Chunk::Bytes { .. } | Chunk::BytesEnd, b'\r') => Chunk::BytesEnd,
            (Chunk::Bytes { .. } | Chunk::BytesEnd, b'\n') => Chunk::Size { bytes: 0, digits: 0 },
            (Chunk::Bytes { .. } | Chunk::BytesEnd, _) => return Err(Malformed),
            (Chunk::Trailer { line_empty: true }, b'\n') => return Ok(None),
            (Chunk::Trailer { .. }, b'\n') => Chunk::Trailer { line_empty: true },
            (Chunk::Trailer { line_empty }, b'\r') => Chunk::Trailer { line_empty },
            (Chunk::Trailer { .. }, _) => Chunk::Trailer { line_empty: false },
        }))
    }
}

/// Reads a whole head from the front of `bytes`, or `None` when its end is not there yet.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Malformed> {
    let mut head = Head { bytes: 0, status: 0, length: None, chunked: false, close: false };
    while let Some(end) = memchr(b'\n', &bytes[head.bytes..]) {
        let line = bytes[head.bytes..head.bytes + end].trim_ascii_end();
        let first = head.bytes == 0;
        head.bytes += end + 1;
        if first {
            head.status = status(line).ok_or(Malformed)?;
        } else if line.is_empty() {
            return Ok(Some(head));
        } else {
            header(line, &mut head)?;
        }
    }
    Ok(None)
}

fn status(line: &[u8]) -> Option<u16> {
    let digits = line.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn header(line: &[u8], head: &mut Head) -> Result<(), Malformed> {
    // Most header lines end their part here: no other name of ours begins with these letters.
    if !matches!(line[0], b'c' | b'C' | b't' | b'T') {
        return Ok(());
    }
    let colon = memchr(b':', line).ok_or(Malformed)?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if name.eq_ignore_ascii_case(b"content-length") {
        let value = std::str::from_utf8(value).map_err(|_| Malformed)?;
        head.length = Some(value.parse().map_err(|_| Malformed)?);
    } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
        head.chunked = value.to_ascii_lowercase().ends_with(b"chunked");
    } else if name.eq_ignore_ascii_case(b"connection") {
        head.close = value.eq_ignore_ascii_case(b"close");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to cut the bytes in two gives the same answers.
    fn check(wire: &str, expected: &[(u16, u64, bool)]) {
        for cut in 0..=wire.len() {
            let mut reader = Reader::default();
            let mut seen = Vec::new();
            for mut part in [&wire.as_bytes()[..cut], &wire.as_bytes()[cut..]] {
                while !part.is_empty() {
                    if let Some(answer) = reader.feed(&mut part).expect(wire) {
                        seen.push((answer.status, answer.body_bytes, answer.close));
                    }
                }
            }
            seen.extend(reader.end().map(|answer| (answer.status, answer.body_bytes, answer.close)));
            assert_eq!(seen, expected, "cut at {cut} of {wire:?}");
        }
    }

    #[test]
    fn answers_end_where_their_framing_says() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", &[(200, 5, false)]);
        check("HTTP/1.1 200 OK\r\ncontent-length:0\r\nConnection: Close\r\n\r\n", &[(200, 0, true)]);
        check("HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n", &[(204, 0, false)]);
        check(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\nx",
            &[(201, 1, false)],
        );
        check("HTTP/1.0 200 OK\r\n\r\nall of it", &[(200, 9, true)]);
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA;ext=1\r\n0123456789\r\n0\r\n\r\n",
            &[(200, 15, false)],
        );
        check(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\n\r\n",
            &[(200, 0, false)],
        );
        let two = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        check(&two.repeat(2), &[(200, 2, false), (200, 2, false)]);
    }

    #[test]
    fn nonsense_is_not_an_answer() {
        for wire in [
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1ffffffffffffffff\r\n",
        ] {
            assert_eq!(Reader::default().feed(&mut wire.as_bytes()), Err(Malformed), "{wire:?}");
        }
    }
}
