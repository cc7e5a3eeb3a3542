//! What clients write, made fit for a line of the log. Pure.
//!
//! What comes out is visible ASCII: it ends no string and no line, opens none, and tells a terminal nothing.

/// Of one value; what a client sends beyond that is cut off.
pub const LONGEST_BYTES: usize = 2048;

/// Appends `text` as the inside of a JSON string. What is no UTF-8 is replaced by U+FFFD.
pub fn json(text: &[u8], out: &mut Vec<u8>) {
    let text = &text[..text.len().min(LONGEST_BYTES)];
    if text.iter().all(|&byte| PLAIN[usize::from(byte)]) {
        return out.extend_from_slice(text);
    }
    json_slowly(text, out);
}

#[cold]
fn json_slowly(text: &[u8], out: &mut Vec<u8>) {
    for character in String::from_utf8_lossy(text).chars() {
        match character {
            '"' | '\\' => out.extend_from_slice(&[b'\\', character as u8]),
            ' '..='~' => out.push(character as u8),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    out.extend_from_slice(b"\\u");
                    out.extend([12, 8, 4, 0].map(|shift| HEX[usize::from(*unit >> shift & 15)]));
                }
            }
        }
    }
}

/// Appends `text` as the inside of a quoted value of the combined format, as nginx escapes it.
pub fn combined(text: &[u8], out: &mut Vec<u8>) {
    for &byte in &text[..text.len().min(LONGEST_BYTES)] {
        match PLAIN[usize::from(byte)] {
            true => out.push(byte),
            false => out.extend([b'\\', b'x', UPPER[usize::from(byte >> 4)], UPPER[usize::from(byte & 15)]]),
        }
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";
const UPPER: &[u8; 16] = b"0123456789ABCDEF";

/// What stands for itself in both.
static PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = b' ';
    while byte <= b'~' {
        plain[byte as usize] = byte != b'"' && byte != b'\\';
        byte += 1;
    }
    plain
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (text, in_json, in_combined) in [
            (&b"/plain?a=b&c=%20"[..], r"/plain?a=b&c=%20", r"/plain?a=b&c=%20"),
            (b"", "", ""),
            (b"a\"b", r#"a\"b"#, r"a\x22b"),
            (br"a\b", r"a\\b", r"a\x5Cb"),
            (b"a\r\nb", r"a\u000d\u000ab", r"a\x0D\x0Ab"),
            (b"\0\t\x1b[2J\x7f", r"\u0000\u0009\u001b[2J\u007f", r"\x00\x09\x1B[2J\x7F"),
            ("\u{85}\u{2028}\u{202e}".as_bytes(), r"\u0085\u2028\u202e", r"\xC2\x85\xE2\x80\xA8\xE2\x80\xAE"),
            ("é\u{1f980}".as_bytes(), r"\u00e9\ud83e\udd80", r"\xC3\xA9\xF0\x9F\xA6\x80"),
            (b"\xff\xc0\x80", r"\ufffd\ufffd\ufffd", r"\xFF\xC0\x80"),
            (
                b"\",\"status\":200,\"x\":\"",
                r#"\",\"status\":200,\"x\":\""#,
                r"\x22,\x22status\x22:200,\x22x\x22:\x22",
            ),
        ] {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            json(text, &mut a);
            combined(text, &mut b);
            let shown = text.escape_ascii();
            assert_eq!(
                [a, b].map(|text| String::from_utf8(text).unwrap()),
                [in_json, in_combined],
                "{shown}"
            );
        }
    }

    #[test]
    fn whatever_comes_is_read_back_and_visible() {
        for first in 0..=u8::MAX {
            for second in [b'a', b'"', b'\\', 0x80, 0xbf, 0xc3, 0xff] {
                let text = [first, second];
                let mut line = b"\"".to_vec();
                json(&text, &mut line);
                line.push(b'"');
                assert!(line.iter().all(|byte| (b' '..=b'~').contains(byte)));
                let mut quoted = Vec::new();
                combined(&text, &mut quoted);
                assert!(quoted.iter().all(|byte| (b' '..=b'~').contains(byte) && *byte != b'"'));
                let inside = &line[1..line.len() - 1];
                let open = inside.iter().fold(false, |escaped, byte| *byte == b'\\' && !escaped);
                assert!(!open, "the last quote is escaped: {}", line.escape_ascii());
            }
        }
    }

    #[test]
    fn what_is_too_long_is_cut_off() {
        let mut out = Vec::new();
        json(&[b'a'; 3 * LONGEST_BYTES], &mut out);
        combined(&[b'\n'; 3 * LONGEST_BYTES], &mut out);
        assert_eq!(out.len(), 5 * LONGEST_BYTES);
    }
}
