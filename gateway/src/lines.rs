//! Fields of a response as the lines they go out in.
//!
//! What the gateway answers by itself is written once: hyper gets its status and its body, and the lines go out
//! behind hyper's status line (`downstream/io.rs`). A map of fields, which hyper would write the lines from, costs
//! several times as much as they do.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::text::push_number;

pub const END: &[u8] = b"\r\n";

pub fn write(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(END);
}

/// The same where the name is known, the colon and the space behind it included: it is copied without a call.
#[inline]
pub fn write_known<const N: usize>(out: &mut Vec<u8>, name: &[u8; N], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(value);
    out.extend_from_slice(END);
}

/// A field that is a number, its name as in [`write_known`].
#[inline]
pub fn write_count<const N: usize>(out: &mut Vec<u8>, name: &[u8; N], value: u64) {
    out.extend_from_slice(name);
    push_number(value, out);
    out.extend_from_slice(END);
}

pub fn write_number(out: &mut Vec<u8>, name: &HeaderName, value: u64) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    push_number(value, out);
    out.extend_from_slice(END);
}

/// How many bytes a line has.
pub fn bytes(name: &HeaderName, value: &[u8]) -> usize {
    name.as_str().len() + b": ".len() + value.len() + END.len()
}

/// Moves the lines to `headers`.
pub fn take_back(lines: &mut Vec<u8>, headers: &mut HeaderMap) {
    for line in lines.split(|&byte| byte == b'\n').filter_map(|line| line.strip_suffix(b"\r")) {
        let colon = memchr::memchr(b':', line).expect("a line names its field");
        let name = HeaderName::from_bytes(&line[..colon]).expect("it was a name");
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii_start()).expect("it was a value");
        headers.append(name, value);
    }
    lines.clear();
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{AGE, SERVER};

    #[test]
    fn what_is_written_can_be_taken_back() {
        let mut lines = Vec::new();
        write(&mut lines, &SERVER, b"a: b");
        write_number(&mut lines, &AGE, 10);
        write(&mut lines, &SERVER, b"");
        assert_eq!(lines, b"server: a: b\r\nage: 10\r\nserver: \r\n");
        let mut headers = HeaderMap::new();
        take_back(&mut lines, &mut headers);
        assert_eq!(headers.get_all(SERVER).iter().collect::<Vec<_>>(), ["a: b", ""]);
        assert_eq!(headers[AGE], "10");
        assert!(lines.is_empty());
    }
}
