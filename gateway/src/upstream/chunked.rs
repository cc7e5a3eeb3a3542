//! The chunked coding of a response's body (RFC 9112 §7.1), taken apart as the bytes come.
//!
//! Pure: bytes in, frames out. Strict where a lenient reader could be made to see another message
//! than the sender meant: lines end in CRLF, sizes are bare hexadecimal digits.

use bytes::{Buf, Bytes};
use http::HeaderMap;

use super::Malformed;
use super::response::fields;

/// A line of a chunk's size with its extensions; the trailers with their blank line.
const MAX_LINE_BYTES: usize = 4 * 1024;
const MAX_TRAILER_BYTES: usize = 16 * 1024;
/// Sixteen would fit into 64 bits; no body has that many bytes.
const MAX_SIZE_DIGITS: usize = 15;

#[derive(Debug, Default, PartialEq)]
pub struct Decoder(State);

#[derive(Debug, Default, PartialEq)]
enum State {
    #[default]
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    End,
}

/// What could be taken from the input.
#[derive(Debug, PartialEq)]
pub enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    /// The body is over.
    End,
    /// The input holds no whole element.
    More,
}

impl Decoder {
    /// Takes the next element from the front of `input`.
    pub fn step(&mut self, input: &mut Bytes) -> Result<Step, Malformed> {
        loop {
            match self.0 {
                State::Size => {
                    let Some(line) = line(input)? else { return Ok(Step::More) };
                    self.0 = match size(&line)? {
                        0 => State::Trailers,
                        size => State::Data(size),
                    };
                }
                State::Data(_) if input.is_empty() => return Ok(Step::More),
                State::Data(left) => {
                    let taken = left.min(input.len() as u64);
                    let data = input.split_to(taken as usize);
                    self.0 = if left == taken { State::DataEnd } else { State::Data(left - taken) };
                    // What follows is taken along, so that the last chunk does not wait for another turn.
                    if self.0 == State::DataEnd && input.starts_with(b"\r\n0\r\n\r\n") {
                        input.advance(b"\r\n0\r\n\r\n".len());
                        self.0 = State::End;
                    }
                    return Ok(Step::Data(data));
                }
                State::DataEnd => {
                    if input.len() < 2 {
                        return Ok(Step::More);
                    }
                    if !input.starts_with(b"\r\n") {
                        return Err(Malformed("a chunk is longer than its size"));
                    }
                    input.advance(2);
                    self.0 = State::Size;
                }
                State::Trailers => {
                    if input.starts_with(b"\r\n") {
                        input.advance(2);
                        self.0 = State::End;
                        return Ok(Step::End);
                    }
                    return match memchr::memmem::find(input, b"\r\n\r\n") {
                        Some(end) if end <= MAX_TRAILER_BYTES => {
                            let trailers = fields(&input.split_to(end + 4))?;
                            self.0 = State::End;
                            Ok(Step::Trailers(trailers))
                        }
                        None if input.len() <= MAX_TRAILER_BYTES => Ok(Step::More),
                        Some(_) | None => Err(Malformed("the trailers are too long")),
                    };
                }
                State::End => return Ok(Step::End),
            }
        }
    }

    pub fn is_end(&self) -> bool {
        self.0 == State::End
    }
}

/// The first line of `input`, taken from it without its CRLF.
fn line(input: &mut Bytes) -> Result<Option<Bytes>, Malformed> {
    match memchr::memchr(b'\n', input) {
        Some(end) if end > MAX_LINE_BYTES => Err(Malformed("a chunk's size line is too long")),
        Some(end) => {
            let mut line = input.split_to(end + 1);
            if !line.ends_with(b"\r\n") {
                return Err(Malformed("a chunk's size line does not end in CRLF"));
            }
            line.truncate(line.len() - 2);
            Ok(Some(line))
        }
        None if input.len() > MAX_LINE_BYTES => Err(Malformed("a chunk's size line is too long")),
        None => Ok(None),
    }
}

/// The number before the extensions.
fn size(line: &[u8]) -> Result<u64, Malformed> {
    let extensions = memchr::memchr(b';', line).unwrap_or(line.len());
    // Blanks before the extensions are bad but common (RFC 9112 §7.1.1).
    let digits = line[..extensions].trim_ascii_end();
    if digits.is_empty() || digits.len() > MAX_SIZE_DIGITS || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(Malformed("a chunk's size is no hexadecimal number"));
    }
    if line[extensions..].iter().any(|&byte| byte == b'\r' || byte == 0) {
        return Err(Malformed("a chunk's extension holds a control character"));
    }
    let digit = |byte: &u8| u64::from((*byte as char).to_digit(16).expect("it is a hexadecimal digit"));
    Ok(digits.iter().fold(0, |size, byte| size << 4 | digit(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `stream` in reads of `size` bytes: the body, the trailers, and what is left after the end.
    fn decode(stream: &[u8], size: usize) -> Result<(Vec<u8>, usize, Vec<u8>), Malformed> {
        let (mut decoder, mut input, mut body, mut trailers) =
            (Decoder::default(), Bytes::new(), Vec::new(), 0);
        let mut reads = stream.chunks(size);
        loop {
            match decoder.step(&mut input)? {
                Step::Data(data) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                }
                Step::Trailers(fields) => trailers += fields.len(),
                Step::End => {
                    return Ok((body, trailers, [&input[..], &reads.collect::<Vec<_>>().concat()].concat()));
                }
                Step::More => match reads.next() {
                    Some(read) => input = [&input[..], read].concat().into(),
                    None => return Err(Malformed("no end")),
                },
            }
        }
    }

    #[test]
    fn the_same_body_however_the_bytes_are_split() {
        for (stream, body, trailers) in [
            ("0\r\n\r\n", "", 0),
            ("3\r\nabc\r\n0\r\n\r\n", "abc", 0),
            ("3\r\nabc\r\n00A;x=\"y\"\r\n0123456789\r\n000\r\n\r\n", "abc0123456789", 0),
            ("3 ;a\r\n\r\n0\r\n0\r\n\r\n", "\r\n0", 0),
            ("1\r\na\r\n0\r\nA: 1\r\nB: 2\r\n\r\n", "a", 2),
        ] {
            let stream = format!("{stream}rest");
            for size in 1..=stream.len() {
                let decoded = decode(stream.as_bytes(), size).unwrap();
                assert_eq!(decoded, (body.into(), trailers, b"rest".to_vec()), "{size}: {stream}");
            }
        }
    }

    #[test]
    fn refused() {
        let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(MAX_LINE_BYTES));
        let trailers = format!("0\r\nA: {}\r\n\r\n", "x".repeat(2 * MAX_TRAILER_BYTES));
        for stream in [
            "x\r\n",
            "\r\n",
            "-1\r\n",
            "+1\r\na\r\n",
            "0x1\r\na\r\n",
            " 1\r\na\r\n",
            "1\na\n0\n\n",
            "1\r\nab\r\n0\r\n\r\n",
            "1\r\na0\r\n\r\n",
            "1;a\rb\r\na\r\n",
            "1234567890abcdef\r\n",
            "ffffffffffffffffff\r\n",
            "1_0\r\n",
            "0\r\nA b: 1\r\n\r\n",
            "0\r\n\n",
            "0\r\nA: 1\n\nB: 1\r\n\r\n",
            &long,
            &trailers,
        ] {
            for size in [1, 7, stream.len()] {
                decode(stream.as_bytes(), size).expect_err(stream);
            }
        }
    }
}
