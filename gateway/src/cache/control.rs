//! Cache directives as a message carries them: `Cache-Control` (RFC 9111 §5.2) read into one struct.
//!
//! Read by the policy, for requests and responses alike; what a directive means is decided there. Of
//! directives given twice the more restrictive one holds (§4.2.1); an argument that is no number makes
//! a lifetime zero.

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Seconds; larger numbers stand for this one, which is later than any cache lives (RFC 9111 §1.2.2).
pub const MAX_DELTA: u32 = 1 << 31;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    pub no_store: bool,
    pub no_cache: bool,
    pub private: bool,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub only_if_cached: bool,
    pub max_age: Option<u32>,
    pub s_maxage: Option<u32>,
    pub min_fresh: Option<u32>,
    pub max_stale: Option<u32>,
    pub stale_while_revalidate: Option<u32>,
    pub stale_if_error: Option<u32>,
    /// What `no-cache="…"` and `private="…"` name: not to be kept by a shared cache.
    pub fields: Vec<HeaderName>,
}

impl Directives {
    /// Of all `Cache-Control` lines; `None` where there is none.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(CACHE_CONTROL).iter().peekable();
        lines.peek()?;
        let mut directives = Self::default();
        for line in lines {
            members(line.as_bytes()).for_each(|member| directives.take(member));
        }
        Some(directives)
    }

    fn take(&mut self, member: &[u8]) {
        let (name, argument) = match memchr::memchr(b'=', member) {
            Some(at) => (&member[..at], Some(&member[at + 1..])),
            None => (member, None),
        };
        let mut lower = [0; 32];
        let name = name.trim_ascii();
        let Some(lower) = lower.get_mut(..name.len()) else { return };
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        self.set(lower, argument);
    }

    /// Takes one directive, its name in lower case. A targeted field's members come in here too.
    pub(super) fn set(&mut self, name: &[u8], argument: Option<&[u8]>) {
        match name {
            b"no-store" => self.no_store = true,
            b"no-cache" => self.no_cache |= !self.name_fields(argument),
            b"private" => self.private |= !self.name_fields(argument),
            b"public" => self.public = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"must-understand" => self.must_understand = true,
            b"only-if-cached" => self.only_if_cached = true,
            b"max-age" => shorten(&mut self.max_age, delta(argument)),
            b"s-maxage" => shorten(&mut self.s_maxage, delta(argument)),
            b"min-fresh" => {
                let seconds = delta(argument);
                self.min_fresh = Some(self.min_fresh.map_or(seconds, |before| before.max(seconds)));
            }
            // Without an argument any staleness will do.
            b"max-stale" if argument.is_none() => shorten(&mut self.max_stale, MAX_DELTA),
            b"max-stale" => shorten(&mut self.max_stale, delta(argument)),
            b"stale-while-revalidate" => shorten(&mut self.stale_while_revalidate, delta(argument)),
            b"stale-if-error" => shorten(&mut self.stale_if_error, delta(argument)),
            // Unknown directives are ignored (RFC 9111 §5.2.3).
            _ => {}
        }
    }

    /// Whether `argument` names fields, which are noted; one that cannot be read restricts the whole response.
    fn name_fields(&mut self, argument: Option<&[u8]>) -> bool {
        let Some(list) = argument.and_then(unquote) else { return false };
        let names: Result<Vec<_>, _> = members(list).map(HeaderName::from_bytes).collect();
        match names {
            Ok(names) if !names.is_empty() => {
                self.fields.extend(names);
                true
            }
            Ok(_) | Err(_) => false,
        }
    }
}

fn shorten(held: &mut Option<u32>, seconds: u32) {
    *held = Some(held.map_or(seconds, |before| before.min(seconds)));
}

/// Whole seconds, in quotes or not. What is no such number counts as none at all: a response whose
/// freshness cannot be read is stale (RFC 9111 §4.2.1).
fn delta(argument: Option<&[u8]>) -> u32 {
    argument.and_then(|text| seconds(unquote(text).unwrap_or(text))).unwrap_or(0)
}

/// `delta-seconds`: digits alone, the largest of them being [`MAX_DELTA`].
pub fn seconds(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u32, digit: &u8| sum.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
    Some(text.iter().fold(0, add).min(MAX_DELTA))
}

fn unquote(text: &[u8]) -> Option<&[u8]> {
    text.strip_prefix(b"\"")?.strip_suffix(b"\"")
}

/// The members of a comma-separated list, without the white space around them; empty ones are left
/// out, and a comma inside a quoted string separates nothing (RFC 9110 §5.6.1, §5.6.4).
pub fn members(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(list);
    std::iter::from_fn(move || {
        let list = rest?;
        let (mut quoted, mut escaped) = (false, false);
        let comma = list.iter().position(|&byte| {
            let separates = byte == b',' && !quoted;
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ => {}
            }
            separates
        });
        let end = comma.unwrap_or(list.len());
        rest = list.get(end + 1..);
        Some(list[..end].trim_ascii())
    })
    .filter(|member| !member.is_empty())
}

/// The members of every line of a field.
pub fn all_members(
    headers: &HeaderMap,
    name: impl http::header::AsHeaderName,
) -> impl Iterator<Item = &[u8]> {
    headers.get_all(name).into_iter().map(HeaderValue::as_bytes).flat_map(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Directives {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, HeaderValue::from_str(line).unwrap());
        }
        Directives::of(&headers).unwrap()
    }

    #[test]
    fn lifetimes() {
        for (lines, want, section) in [
            (&["max-age=60"][..], Some(60), "5.2.2.1"),
            (&["MaX-aGe=60"], Some(60), "5.2, names know no case"),
            (&["max-age=\"60\""], Some(60), "5.2, both forms are to be read"),
            (&["max-age=0060"], Some(60), "1.2.2"),
            (&["max-age=99999999999"], Some(MAX_DELTA), "1.2.2, overflow"),
            (&["max-age=-1"], Some(0), "4.2.1, invalid is stale"),
            (&["max-age=3600.5"], Some(0), "4.2.1, invalid is stale"),
            (&["max-age=a60"], Some(0), "4.2.1, invalid is stale"),
            (&["max-age=60a"], Some(0), "4.2.1, invalid is stale"),
            (&["max-age='60'"], Some(0), "4.2.1, invalid is stale"),
            (&["max-age= 60"], Some(0), "5.2, no white space there"),
            (&["max-age"], Some(0), "4.2.1, invalid is stale"),
            (&["max-age=1800, max-age=1"], Some(1), "4.2.1, the more restrictive"),
            (&["max-age=1", "max-age=1800"], Some(1), "4.2.1, the more restrictive"),
            (&["extension=\"max-age=60\""], None, "5.2.3, quoted"),
            (&["extension=\"a\\\", max-age=60\", max-age=1"], Some(1), "5.2.3, quoted with an escape"),
            (&["foo, ,, max-age=60 ,bar"], Some(60), "RFC 9110 5.6.1"),
            (&["s-maxage=60"], None, "5.2.2.10"),
        ] {
            assert_eq!(of(lines).max_age, want, "{lines:?} §{section}");
        }
    }

    #[test]
    fn flags_and_fields() {
        let names =
            |list: &[&str]| list.iter().map(|n| HeaderName::try_from(*n).unwrap()).collect::<Vec<_>>();
        let found = of(&["No-StOrE, no-cache=\"a, b\"", "private=\"c\", must-revalidate"]);
        assert!(found.no_store && !found.no_cache && !found.private && found.must_revalidate);
        assert_eq!(found.fields, names(&["a", "b", "c"]));
        assert!(of(&["no-cache=\"\""]).no_cache, "naming nothing restricts everything");
        assert!(of(&["no-cache=\"a"]).no_cache, "unreadable restricts everything");
        assert!(of(&["private=a b"]).private, "unreadable restricts everything");
        assert_eq!(of(&["max-stale"]).max_stale, Some(MAX_DELTA));
        assert_eq!(of(&["min-fresh=3, min-fresh=9"]).min_fresh, Some(9));
    }
}
