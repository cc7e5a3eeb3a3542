//! One range of a stored body (RFC 9110 §14).
//!
//! Only a single range of bytes is taken; for several at once, as for any other unit, the whole
//! response is the answer, which §14.2 leaves to the server. Pure.

use std::ops::Range;

use http::header::RANGE;
use http::{HeaderMap, HeaderValue};

/// What a request's `Range` makes of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// Not empty, and within the body.
    Bytes(Range<u64>),
    /// 416.
    Unsatisfiable,
}

/// `length`: of the whole body, in bytes.
pub fn part(request: &HeaderMap, length: u64) -> Part {
    let mut lines = request.get_all(RANGE).iter();
    match (lines.next().and_then(|line| line.to_str().ok()), lines.next()) {
        (Some(line), None) => single(line, length).unwrap_or(Part::Whole),
        (_, _) => Part::Whole,
    }
}

/// `None`: malformed, of another unit, or a set of ranges.
fn single(line: &str, length: u64) -> Option<Part> {
    let (unit, range) = line.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    let range = match (first, last) {
        ("", suffix) => length.saturating_sub(number(suffix)?)..length,
        (first, "") => number(first)?..length,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return None;
            }
            first..length.min(last.saturating_add(1))
        }
    };
    Some(if range.is_empty() { Part::Unsatisfiable } else { Part::Bytes(range) })
}

/// Digits alone; more than fit are more than any body has.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The `Content-Range` of a part, or of none (RFC 9110 §14.4).
pub fn content_range(part: Option<&Range<u64>>, length: u64) -> HeaderValue {
    let text = match part {
        Some(range) => format!("bytes {}-{}/{length}", range.start, range.end - 1),
        None => format!("bytes */{length}"),
    };
    HeaderValue::try_from(text).expect("digits and a few signs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_request() {
        for (line, length, want) in [
            ("bytes=0-1", 11, Part::Bytes(0..2)),
            ("bytes=1-", 11, Part::Bytes(1..11)),
            ("bytes=-1", 11, Part::Bytes(10..11)),
            ("bytes=-20", 11, Part::Bytes(0..11)),
            ("bytes=5-99", 11, Part::Bytes(5..11)),
            ("BYTES=0-0", 11, Part::Bytes(0..1)),
            ("bytes=0-99999999999999999999999", 11, Part::Bytes(0..11)),
            ("bytes=11-", 11, Part::Unsatisfiable),
            ("bytes=99-100", 11, Part::Unsatisfiable),
            ("bytes=-0", 11, Part::Unsatisfiable),
            ("bytes=0-", 0, Part::Unsatisfiable),
            ("bytes=2-1", 11, Part::Whole),
            ("bytes=0-1,3-4", 11, Part::Whole),
            ("bytes=-", 11, Part::Whole),
            ("bytes=a-b", 11, Part::Whole),
            ("bytes=+1-2", 11, Part::Whole),
            ("bytes", 11, Part::Whole),
            ("lines=0-1", 11, Part::Whole),
        ] {
            let request = HeaderMap::from_iter([(RANGE, HeaderValue::from_static(line))]);
            assert_eq!(part(&request, length), want, "{line} of {length}");
        }
        assert_eq!(part(&HeaderMap::new(), 11), Part::Whole);
    }

    #[test]
    fn said_of_a_part() {
        assert_eq!(content_range(Some(&(0..2)), 11), "bytes 0-1/11");
        assert_eq!(content_range(None, 11), "bytes */11");
    }
}
