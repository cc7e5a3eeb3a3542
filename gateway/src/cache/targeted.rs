//! `CDN-Cache-Control`: cache directives for shared caches of a site (RFC 9213), a structured field.
//!
//! Where it is there, well formed and not empty, it stands in for `Cache-Control` and `Expires`;
//! otherwise it is as if it were not there. It is a dictionary (RFC 8941 §3.2), so that much of the
//! format is read here: keys, and values that are items or inner lists, with their parameters.

use http::{HeaderMap, HeaderName};

use super::control::Directives;

pub const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// The directives, or `None` where the field is to be ignored.
pub fn directives(headers: &HeaderMap) -> Option<Directives> {
    let mut lines = headers.get_all(CDN_CACHE_CONTROL).iter().peekable();
    lines.peek()?;
    let lines: Vec<&[u8]> = lines.map(|line| line.as_bytes()).collect();
    let text = lines.join(&b", "[..]);
    let members = Reader { text: &text }.dictionary()?;
    let mut directives = Directives::default();
    for (position, (name, value)) in members.iter().enumerate() {
        // Of a key given twice the last value holds (RFC 8941 §3.2).
        if members[position + 1..].iter().any(|(later, _)| later == name) {
            continue;
        }
        match (*name, value) {
            (
                b"max-age"
                | b"s-maxage"
                | b"stale-while-revalidate"
                | b"stale-if-error"
                | b"max-stale"
                | b"min-fresh",
                value,
            ) => match value {
                Value::Integer(digits) => directives.set(name, Some(digits)),
                Value::True | Value::False | Value::Text(_) | Value::Other => return None,
            },
            (_, Value::False) => {}
            (_, Value::True | Value::Integer(_) | Value::Other) => directives.set(name, None),
            (_, Value::Text(text)) => directives.set(name, Some(text)),
        }
    }
    (!members.is_empty()).then_some(directives)
}

enum Value<'a> {
    True,
    False,
    /// Sign and digits.
    Integer(&'a [u8]),
    /// A string, quotes included.
    Text(&'a [u8]),
    Other,
}

/// What is left to read. Every method is `None` where RFC 8941 §4.2 fails parsing.
struct Reader<'a> {
    text: &'a [u8],
}

impl<'a> Reader<'a> {
    fn dictionary(mut self) -> Option<Vec<(&'a [u8], Value<'a>)>> {
        let mut members = Vec::new();
        self.skip(b" ");
        while !self.text.is_empty() {
            let name = self.key()?;
            let value = if self.eat(b'=') { self.member()? } else { Value::True };
            self.parameters()?;
            members.push((name, value));
            self.skip(b" \t");
            if self.text.is_empty() {
                break;
            }
            self.eat(b',').then_some(())?;
            self.skip(b" \t");
            // A comma at the end.
            if self.text.is_empty() {
                return None;
            }
        }
        Some(members)
    }

    fn member(&mut self) -> Option<Value<'a>> {
        if !self.eat(b'(') {
            return self.item();
        }
        loop {
            self.skip(b" ");
            if self.eat(b')') {
                return Some(Value::Other);
            }
            self.item()?;
            self.parameters()?;
            matches!(self.text.first()?, b' ' | b')').then_some(())?;
        }
    }

    fn item(&mut self) -> Option<Value<'a>> {
        match *self.text.first()? {
            b'?' => match self.take(2)? {
                b"?1" => Some(Value::True),
                b"?0" => Some(Value::False),
                _ => None,
            },
            b'"' => {
                let mut escaped = false;
                let end = self.text.iter().skip(1).position(|&byte| {
                    let ends = byte == b'"' && !escaped;
                    escaped = byte == b'\\' && !escaped;
                    ends
                })?;
                self.take(end + 2).map(Value::Text)
            }
            b':' => {
                let end = memchr::memchr(b':', &self.text[1..])?;
                let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
                self.take(end + 2)?[1..=end].iter().all(base64).then_some(Value::Other)
            }
            b'-' | b'0'..=b'9' => self.number(),
            b'*' | b'a'..=b'z' | b'A'..=b'Z' => {
                let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte);
                self.take_while(token);
                Some(Value::Other)
            }
            _ => None,
        }
    }

    fn number(&mut self) -> Option<Value<'a>> {
        let whole = self.text;
        self.eat(b'-');
        let digits = self.take_while(|byte| byte.is_ascii_digit()).len();
        (1..=15).contains(&digits).then_some(())?;
        let integer = &whole[..whole.len() - self.text.len()];
        if !self.eat(b'.') {
            return Some(Value::Integer(integer));
        }
        let decimals = self.take_while(|byte| byte.is_ascii_digit()).len();
        (digits <= 12 && (1..=3).contains(&decimals)).then_some(Value::Other)
    }

    fn parameters(&mut self) -> Option<()> {
        while self.eat(b';') {
            self.skip(b" ");
            self.key()?;
            if self.eat(b'=') {
                self.item()?;
            }
        }
        Some(())
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        matches!(*self.text.first()?, b'a'..=b'z' | b'*').then_some(())?;
        Some(self.take_while(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*')))
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.text.first() == Some(&byte);
        self.text = &self.text[usize::from(found)..];
        found
    }

    fn skip(&mut self, bytes: &[u8]) {
        self.take_while(|byte| bytes.contains(&byte));
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.text.split_at_checked(length)?;
        self.text = rest;
        Some(taken)
    }

    fn take_while(&mut self, admits: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.text.iter().position(|&byte| !admits(byte)).unwrap_or(self.text.len());
        self.take(end).expect("the text is that long")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of(lines: &[&str]) -> Option<Directives> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CDN_CACHE_CONTROL, HeaderValue::from_str(line).unwrap());
        }
        directives(&headers)
    }

    #[test]
    fn what_holds() {
        let max_age = |seconds| Directives { max_age: Some(seconds), ..Directives::default() };
        for (lines, want) in [
            (&["max-age=60"][..], max_age(60)),
            (&["max-age=60;a=1;b"], max_age(60)),
            (&["foobar, max-age=60"], max_age(60)),
            (&["a=(1 \"x\" tok;p);q=?0 , b=:aGk=:, c=1.5, max-age=60"], max_age(60)),
            (&["foobar", "max-age=60"], max_age(60)),
            (&["max-age=60, max-age=9"], max_age(9)),
            (&["max-age=-5"], max_age(0)),
            (&["max-age=99999999999"], max_age(super::super::control::MAX_DELTA)),
            (&["no-store"], Directives { no_store: true, ..Directives::default() }),
            (&["no-store=?0"], Directives::default()),
            (
                &["private=\"a\""],
                Directives { fields: vec![HeaderName::from_static("a")], ..Directives::default() },
            ),
        ] {
            assert_eq!(of(lines), Some(want), "{lines:?}");
        }
    }

    #[test]
    fn what_is_ignored() {
        for lines in [
            &[][..],
            &[""],
            &["  "],
            &["max-age=60, &&&&&"],
            &["max-age=\"60\""],
            &["max-age"],
            &["max-age=60.5"],
            &["max-age=tok"],
            &["MaX-aGe=60"],
            &["max-age =60"],
            &["max-age= 60"],
            &["max-age=60,"],
            &["max-age=60 no-store"],
            &["max-age=1234567890123456"],
            &["a=\"b, max-age=60"],
            &["a=(1, max-age=60"],
            &["a=?2, max-age=60"],
        ] {
            assert_eq!(of(lines), None, "{lines:?}");
        }
    }
}
