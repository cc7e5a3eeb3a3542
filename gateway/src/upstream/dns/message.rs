//! Messages of DNS (RFC 1035 §4): a question for addresses, and what an answer to it says.
//!
//! Pure. Of an answer only the records that lead from the name to addresses are looked at; the sections
//! behind them are not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::Answer;

const HEADER: usize = 12;
const LABEL: usize = 63;
const NAME: usize = 255;
/// Aliases of aliases that are followed.
const ALIASES: usize = 16;

const RESPONSE: u8 = 0x80;
const TRUNCATED: u8 = 0x02;
const RECURSION: u8 = 0x01;
const NO_SUCH_NAME: u8 = 3;
const INTERNET: u16 = 1;
const ALIAS: u16 = 5;

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    A = 1,
    Aaaa = 28,
}

#[derive(Debug, PartialEq)]
pub enum Reply {
    /// To another question.
    Stray,
    /// There is more than fits.
    Truncated,
    Malformed,
    NotFound,
    /// The name is there, without such an address.
    Empty,
    Refused(u8),
    Answer(Answer),
}

/// `None`: no name can be as long.
pub fn query(id: u16, name: &str, kind: Kind) -> Option<Vec<u8>> {
    let mut bytes = vec![0; HEADER];
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    bytes[2] = RECURSION;
    bytes[5] = 1;
    for label in name.strip_suffix('.').unwrap_or(name).split('.') {
        if label.is_empty() || label.len() > LABEL {
            return None;
        }
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    if bytes.len() - HEADER > NAME {
        return None;
    }
    bytes.extend_from_slice(&(kind as u16).to_be_bytes());
    bytes.extend_from_slice(&INTERNET.to_be_bytes());
    Some(bytes)
}

/// What `bytes` say to `query`, a question for addresses of `kind`.
pub fn read(bytes: &[u8], query: &[u8], kind: Kind) -> Reply {
    if bytes.len() < HEADER || bytes[..2] != query[..2] || bytes[2] & RESPONSE == 0 {
        return Reply::Stray;
    }
    let code = bytes[3] & 0x0f;
    // Servers that did not understand a question need not repeat it.
    let repeats =
        bytes.get(HEADER..query.len()).is_some_and(|asked| asked.eq_ignore_ascii_case(&query[HEADER..]));
    match code {
        _ if !repeats && (code == 0 || code == NO_SUCH_NAME) => Reply::Malformed,
        _ if bytes[2] & TRUNCATED != 0 => Reply::Truncated,
        0 => addresses(bytes, query.len(), kind).unwrap_or(Reply::Malformed),
        NO_SUCH_NAME => Reply::NotFound,
        code => Reply::Refused(code),
    }
}

/// Reads the records from `at` on. `None`: they are malformed.
fn addresses(bytes: &[u8], at: usize, kind: Kind) -> Option<Reply> {
    let count = u16::from_be_bytes([bytes[6], bytes[7]]);
    let mut cursor = Cursor { bytes, at: HEADER };
    let mut name = cursor.name()?;
    cursor.at = at;
    let (mut aliases, mut found) = (BTreeMap::new(), Vec::new());
    for _ in 0..count {
        let owner = cursor.name()?;
        let (of, class) = (cursor.u16()?, cursor.u16()?);
        let ttl = u32::from(cursor.u16()?) << 16 | u32::from(cursor.u16()?);
        // RFC 2181 §8.
        let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
        let length = usize::from(cursor.u16()?);
        let data = bytes.get(cursor.at..cursor.at + length)?;
        if class == INTERNET && of == ALIAS {
            let target = Cursor { bytes, at: cursor.at }.name()?;
            aliases.insert(owner, (target, ttl));
        } else if class == INTERNET && of == kind as u16 {
            let address: IpAddr = match kind {
                Kind::A => <[u8; 4]>::try_from(data).ok()?.into(),
                Kind::Aaaa => <[u8; 16]>::try_from(data).ok()?.into(),
            };
            found.push((owner, address, ttl));
        }
        cursor.at += length;
    }
    let mut least = u32::MAX;
    for _ in 0..ALIASES {
        let Some((target, ttl)) = aliases.get(&name) else { break };
        least = least.min(*ttl);
        name.clone_from(target);
    }
    found.retain(|(owner, ..)| *owner == name);
    if found.is_empty() {
        return Some(Reply::Empty);
    }
    let least = found.iter().map(|(_, _, ttl)| *ttl).fold(least, u32::min);
    let addresses = found.into_iter().map(|(_, address, _)| address).collect();
    Some(Reply::Answer(Answer { addresses, ttl: Duration::from_secs(least.into()) }))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn u8(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    /// In lower case, as a row of labels with their lengths.
    fn name(&mut self) -> Option<Vec<u8>> {
        let (mut name, mut before, mut end) = (Vec::new(), self.at, None);
        loop {
            match self.u8()? {
                0 => break,
                length @ 1..=63 => {
                    let label = self.bytes.get(self.at..self.at + usize::from(length))?;
                    name.push(length);
                    name.extend(label.iter().map(u8::to_ascii_lowercase));
                    self.at += label.len();
                }
                high @ 0xc0.. => {
                    let target = usize::from(high & 0x3f) << 8 | usize::from(self.u8()?);
                    end = end.or(Some(self.at));
                    // Further back each time, so that it ends.
                    if target >= before {
                        return None;
                    }
                    (before, self.at) = (target, target);
                }
                _ => return None,
            }
            if name.len() > NAME {
                return None;
            }
        }
        self.at = end.unwrap_or(self.at);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u16 = Kind::A as u16;
    /// The name asked for.
    const ASKED: &[u8] = &[0xc0, 12];

    fn asked() -> Vec<u8> {
        query(7, "a.test", Kind::A).unwrap()
    }

    fn record(owner: &[u8], of: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
        let length = (data.len() as u16).to_be_bytes();
        [owner, &of.to_be_bytes(), &[0, 1], &ttl.to_be_bytes(), &length, data].concat()
    }

    fn answer(records: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = asked();
        bytes[2] |= RESPONSE;
        bytes[7] = records.len() as u8;
        bytes.extend(records.concat());
        bytes
    }

    fn reads(bytes: &[u8]) -> Reply {
        read(bytes, &asked(), Kind::A)
    }

    fn found(ips: &[[u8; 4]], ttl: u64) -> Reply {
        let addresses = ips.iter().map(|ip| IpAddr::from(*ip)).collect();
        Reply::Answer(Answer { addresses, ttl: Duration::from_secs(ttl) })
    }

    #[test]
    fn a_question_is_as_the_rfc_has_it() {
        let bytes = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x04test\0\0\x1c\0\x01";
        assert_eq!(query(0x1234, "a.test", Kind::Aaaa).unwrap(), bytes);
        assert_eq!(query(0x1234, "a.test.", Kind::Aaaa).unwrap(), bytes);
        for name in ["", "a..b", &"a".repeat(64), &"a.".repeat(128)] {
            assert_eq!(query(1, name, Kind::A), None, "{name}");
        }
        assert!(query(1, &"a.".repeat(127), Kind::A).is_some());
    }

    #[test]
    fn addresses_of_the_name_and_its_aliases() {
        let (one, two) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let (b, c) = (b"\x01b\0", b"\x01c\0");
        for (records, want) in [
            (vec![], Reply::Empty),
            (vec![record(ASKED, A, 60, &one)], found(&[one], 60)),
            (vec![record(b"\x01A\x04TEST\0", A, 60, &one)], found(&[one], 60)),
            (vec![record(ASKED, A, 60, &one), record(ASKED, A, 30, &two)], found(&[one, two], 30)),
            // Of another name, another kind, and for ever.
            (vec![record(b, A, 60, &one)], Reply::Empty),
            (vec![record(ASKED, 16, 60, b"text"), record(ASKED, A, 60, &one)], found(&[one], 60)),
            (vec![record(ASKED, A, u32::MAX, &one)], found(&[one], 0)),
            // Aliases, in their order and not; the shortest life counts.
            (vec![record(ASKED, ALIAS, 5, b), record(b, A, 60, &one)], found(&[one], 5)),
            (
                vec![record(c, A, 9, &one), record(b, ALIAS, 8, c), record(ASKED, ALIAS, 60, b)],
                found(&[one], 8),
            ),
            (vec![record(ASKED, ALIAS, 5, b)], Reply::Empty),
            (vec![record(ASKED, ALIAS, 5, ASKED), record(ASKED, A, 60, &one)], found(&[one], 5)),
            (vec![record(ASKED, ALIAS, 5, b), record(b, ALIAS, 5, ASKED)], Reply::Empty),
        ] {
            assert_eq!(reads(&answer(&records)), want, "{records:?}");
        }
    }

    #[test]
    fn answers_to_others_refusals_and_malformed_ones() {
        let good = answer(&[record(ASKED, A, 60, &[10, 0, 0, 1])]);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        for (bytes, want) in [
            (with(1, 8), Reply::Stray),
            (with(2, 0), Reply::Stray),
            (good[..11].to_vec(), Reply::Stray),
            (with(2, RESPONSE | TRUNCATED), Reply::Truncated),
            (with(3, 3), Reply::NotFound),
            (with(3, 2), Reply::Refused(2)),
            (vec![0, 7, RESPONSE, 1, 0, 0, 0, 0, 0, 0, 0, 0], Reply::Refused(1)),
            (vec![0, 7, RESPONSE, 0, 0, 0, 0, 0, 0, 0, 0, 0], Reply::Malformed),
            // Another name, more records than there are, an address of three bytes.
            (with(13, b'b'), Reply::Malformed),
            (with(7, 2), Reply::Malformed),
            (answer(&[record(ASKED, A, 60, &[10, 0, 0])]), Reply::Malformed),
            // Pointers to themselves, ahead, and out of the message; a label of a kind that nobody knows.
            (answer(&[record(&[0xc0, 24], A, 60, &[10, 0, 0, 1])]), Reply::Malformed),
            (answer(&[record(&[0xc0, 30], A, 60, &[10, 0, 0, 1])]), Reply::Malformed),
            (answer(&[record(&[0xff, 0xff], A, 60, &[10, 0, 0, 1])]), Reply::Malformed),
            (answer(&[record(&[0x40, 0], A, 60, &[10, 0, 0, 1])]), Reply::Malformed),
        ] {
            assert_eq!(reads(&bytes), want, "{bytes:?}");
        }
    }

    #[test]
    fn no_bytes_make_it_fail() {
        let good = answer(&[record(ASKED, ALIAS, 5, b"\x01b\xc0\x0e"), record(ASKED, A, 60, &[10, 0, 0, 1])]);
        for length in 0..good.len() {
            assert!(!matches!(reads(&good[..length]), Reply::Answer(_)), "{length} bytes");
        }
        for at in 0..good.len() {
            for byte in 0..=255 {
                let mut bytes = good.clone();
                bytes[at] = byte;
                reads(&bytes);
            }
        }
    }
}
