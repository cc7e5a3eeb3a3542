//! Numbers as text, without the formatter, which costs more than all the rest of a short value. And what a query's
//! text stands for.

use http::HeaderValue;

/// Adds a number to bytes of any length.
#[inline]
pub fn push_number(number: u64, out: &mut Vec<u8>) {
    let small = number as u16;
    let digit = |of: u16| b'0' + (of % 10) as u8;
    // Lengths that are known: what has one is copied without a call.
    match number {
        0..=9 => out.push(digit(small)),
        10..=99 => out.extend_from_slice(&[digit(small / 10), digit(small)]),
        100..=999 => out.extend_from_slice(&[digit(small / 100), digit(small / 10), digit(small)]),
        1_000..=9_999 => {
            let digits = [digit(small / 1_000), digit(small / 100), digit(small / 10), digit(small)];
            out.extend_from_slice(&digits);
        }
        _ => push_long(number, out),
    }
}

#[cold]
fn push_long(number: u64, out: &mut Vec<u8>) {
    let (digits, first) = digits(number);
    out.extend_from_slice(&digits[first..]);
}

/// A number's digits, and where the first of them stands.
#[inline]
fn digits(mut number: u64) -> ([u8; 20], usize) {
    let mut digits = [0; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return (digits, first);
        }
    }
}

/// A number as a field's value.
pub fn number(number: u64) -> HeaderValue {
    let (digits, first) = digits(number);
    HeaderValue::from_bytes(&digits[first..]).expect("digits are visible ASCII")
}

/// A name or value of a query without its escapes; what is no escape stands for itself.
pub fn decoded(text: &str) -> impl Iterator<Item = u8> + '_ {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (byte, length) = match rest {
            [b'%', high, low, ..] => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, 3),
                _ => (b'%', 1),
            },
            [b'+', ..] => (b' ', 1),
            [byte, ..] => (*byte, 1),
            [] => return None,
        };
        rest = &rest[length..];
        Some(byte)
    })
}

fn digit(hex: u8) -> Option<u8> {
    char::from(hex).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for value in [0, 9, 10, 65_536, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(number(value), value.to_string());
        }
        for value in (0..20_000).chain([u64::MAX]) {
            let mut text = b"x".to_vec();
            push_number(value, &mut text);
            assert_eq!(text, format!("x{value}").into_bytes());
        }
    }
}
