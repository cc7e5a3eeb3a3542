//! One line of a JSON access log, as far as a rehearsal needs it. Pure.

use std::borrow::Cow;
use std::net::IpAddr;

use http::Method;
use serde::Deserialize;

#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    time: Cow<'a, str>,
    client: IpAddr,
    peer: IpAddr,
    #[serde(default)]
    relayed: bool,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    host: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    path: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    query: Option<Cow<'a, str>>,
    #[serde(borrow)]
    outcome: Cow<'a, str>,
    #[serde(default)]
    sample: Option<u32>,
}

/// A request that was.
#[derive(Debug, PartialEq)]
pub struct Record {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub client: IpAddr,
    pub peer: IpAddr,
    pub relayed: bool,
    /// `None`: its head could not be read.
    pub asked: Option<Asked>,
    /// A limit refused it at the time.
    pub was_limited: bool,
    /// It stands for others that were not written.
    pub sampled: bool,
}

#[derive(Debug, PartialEq)]
pub struct Asked {
    pub method: Method,
    pub host: String,
    pub path: String,
    pub query: Option<String>,
}

impl Record {
    pub fn read(line: &str) -> Result<Self, String> {
        let written: Written<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let at_ms = millis(&written.time).ok_or_else(|| format!("{:?} is no time", written.time))?;
        let asked = match (written.method, written.path) {
            (Some(method), Some(path)) => Some(Asked {
                method: Method::from_bytes(method.as_bytes())
                    .map_err(|_| format!("{method:?} is no method"))?,
                host: written.host.unwrap_or_default().into_owned(),
                path: path.into_owned(),
                query: written.query.map(Cow::into_owned),
            }),
            _ => None,
        };
        Ok(Self {
            at_ms,
            client: written.client,
            peer: written.peer,
            relayed: written.relayed,
            asked,
            was_limited: written.outcome == "limited",
            sampled: written.sample.is_some(),
        })
    }
}

/// `2026-11-29T14:45:55.123Z` in milliseconds since 1970.
fn millis(text: &str) -> Option<u64> {
    let shape = text.len() == 24
        && text.bytes().zip(*b"0000-00-00T00:00:00.000Z").all(|(byte, of)| match of {
            b'0' => byte.is_ascii_digit(),
            mark => byte == mark,
        });
    let number = |range: std::ops::Range<usize>| text[range].parse::<u64>().ok();
    if !shape {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // March is the first month, so that a leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000 + number(20..23)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, want) in [
            ("1970-01-01T00:00:00.000Z", Some(0)),
            ("2000-02-28T23:59:59.999Z", Some(951_782_399_999)),
            ("2000-02-29T00:00:00.000Z", Some(951_782_400_000)),
            ("2100-03-01T00:00:00.007Z", Some(4_107_542_400_007)),
            ("2026-11-29T14:45:55.123Z", Some(1_795_963_555_123)),
            ("2026-11-29 14:45:55.123Z", None),
            ("2026-13-29T14:45:55.123Z", None),
            ("1969-12-31T23:59:59.999Z", None),
            ("2026-11-29T14:45:55Z", None),
            ("\u{e9}026-11-29T14:45:55.12Z", None),
        ] {
            assert_eq!(millis(text), want, "{text}");
        }
    }

    #[test]
    fn lines() {
        let line = r#"{"time":"1970-01-01T00:00:01.000Z","client":"192.0.2.7","peer":"10.0.0.1","method":"GET","path":"/a\u00e9","outcome":"limited","more":[1]}"#;
        let record = Record::read(line).expect("a record");
        assert_eq!((record.at_ms, record.was_limited, record.sampled), (1_000, true, false));
        assert_eq!(
            record.asked.map(|asked| (asked.host, asked.path)),
            Some((String::new(), "/a\u{e9}".into()))
        );
        for bad in [
            "",
            "{}",
            "192.0.2.7 - - [29/Nov/2026:14:45:55 +0000] \"GET / HTTP/1.1\" 200 2 \"-\" \"-\"",
            r#"{"time":"yesterday","client":"192.0.2.7","peer":"10.0.0.1","outcome":"ok"}"#,
            r#"{"time":"1970-01-01T00:00:01.000Z","client":"nobody","peer":"10.0.0.1","outcome":"ok"}"#,
        ] {
            assert!(Record::read(bad).is_err(), "{bad}");
        }
    }
}
