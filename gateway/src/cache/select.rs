//! Which requests a stored response answers beyond its key: `Vary` (RFC 9111 §4.1) and the fields and
//! cookies that the route makes part of the key.
//!
//! A [`Selecting`] holds names and the values of the request that fetched the response. The store
//! keeps one with every variant; coalescing makes a group's key of one.

use std::sync::Arc;

use http::header::{ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, COOKIE, VARY};
use http::{HeaderMap, HeaderName};

use super::control;

/// What is looked at in a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    Field(HeaderName),
    Cookie(Box<str>),
}

impl Selector {
    pub fn name(&self) -> &str {
        match self {
            Self::Field(name) => name.as_str(),
            Self::Cookie(name) => name,
        }
    }
}

/// Selectors with the values of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selecting {
    selectors: Arc<[Selector]>,
    /// One after the other, see [`values`].
    values: Box<[u8]>,
}

impl Selecting {
    pub fn new(selectors: Arc<[Selector]>, request: &HeaderMap) -> Self {
        let mut buffer = Vec::new();
        values(&selectors, request, &mut buffer);
        Self { selectors, values: buffer.into() }
    }

    /// Whether `request` would have been given the same response.
    pub fn matches(&self, request: &HeaderMap) -> bool {
        Matcher::new(request).matches(self)
    }

    pub fn selectors(&self) -> &Arc<[Selector]> {
        &self.selectors
    }

    /// The values, for a key.
    pub fn values(&self) -> &[u8] {
        &self.values
    }

    pub fn bytes(&self) -> usize {
        self.values.len() + size_of_val(&*self.selectors)
    }
}

/// Holds one request against several [`Selecting`]s, which mostly look at the same fields.
pub struct Matcher<'a> {
    request: &'a HeaderMap,
    /// What `values` are of.
    selectors: &'a [Selector],
    values: Vec<u8>,
}

impl<'a> Matcher<'a> {
    pub fn new(request: &'a HeaderMap) -> Self {
        Self { request, selectors: &[], values: Vec::new() }
    }

    pub fn matches(&mut self, selecting: &'a Selecting) -> bool {
        if *self.selectors != *selecting.selectors {
            self.selectors = &selecting.selectors;
            self.values.clear();
            values(self.selectors, self.request, &mut self.values);
        }
        *self.values == *selecting.values
    }
}

/// The selectors of a response: those of the route and what its `Vary` names besides. The caller has
/// refused `*` before.
pub fn selectors(route: &Arc<[Selector]>, response: &HeaderMap) -> Arc<[Selector]> {
    if !response.contains_key(VARY) {
        return route.clone();
    }
    let mut all = route.to_vec();
    for name in control::all_members(response, VARY).filter_map(|name| HeaderName::from_bytes(name).ok()) {
        let selector = Selector::Field(name);
        if !all.contains(&selector) {
            all.push(selector);
        }
    }
    // The order they are named in makes no difference.
    all[route.len()..].sort_by(|a, b| a.name().cmp(b.name()));
    all.into()
}

/// Writes the request's values of `selectors`, normalised: lines of a field are joined, white space
/// around commas is dropped, and of lists whose order and case mean nothing neither is kept. A field
/// that is not there differs from an empty one.
fn values(selectors: &[Selector], request: &HeaderMap, out: &mut Vec<u8>) {
    const ABSENT: u8 = 0;
    const PRESENT: u8 = 1;
    for selector in selectors {
        let found = match selector {
            Selector::Cookie(name) => cookies(request, name)
                .map(|value| {
                    // Of one sent twice some backends take the last.
                    out.extend_from_slice(value);
                    out.push(b';');
                })
                .last(),
            Selector::Field(name) => request.contains_key(name).then(|| field(request, name, out)),
        };
        // Neither byte can stand in a field's value.
        out.push(if found.is_some() { PRESENT } else { ABSENT });
    }
}

fn field(request: &HeaderMap, name: &HeaderName, out: &mut Vec<u8>) {
    let mut members: Vec<&[u8]> = control::all_members(request, name).collect();
    let start = out.len();
    let unordered = [ACCEPT_LANGUAGE, ACCEPT_ENCODING, ACCEPT_CHARSET].contains(name);
    if unordered {
        members.sort_by_cached_key(|member| member.to_ascii_lowercase());
    }
    for (position, member) in members.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        out.extend_from_slice(member);
    }
    if unordered {
        out[start..].make_ascii_lowercase();
    }
}

/// The value of the first cookie called `name`.
pub fn cookie<'a>(request: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    cookies(request, name).next()
}

/// The values of the cookies called `name` (RFC 6265 §4.2.1).
fn cookies<'a>(request: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let pairs =
        request.get_all(COOKIE).into_iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b';'));
    pairs
        .map(<[u8]>::trim_ascii)
        .filter_map(move |pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(pair).collect()
    }

    #[test]
    fn which_requests_match() {
        for (vary, stored, asked, want) in [
            ("", &[("foo", "1")][..], &[("foo", "2")][..], true),
            ("foo", &[("foo", "1")], &[("foo", "1"), ("other", "x")], true),
            ("foo", &[("foo", "1")], &[("foo", "2")], false),
            ("foo", &[("foo", "1")], &[], false),
            ("foo", &[], &[("foo", "1")], false),
            ("foo", &[], &[("foo", "")], false),
            ("foo, bar, baz", &[("foo", "1"), ("baz", "789")], &[("baz", "789"), ("foo", "1")], true),
            ("foo, bar", &[("foo", "1"), ("bar", "abc4")], &[("foo", "1"), ("bar", "abc")], false),
            ("foo, bar", &[("foo", "a")], &[("bar", "a")], false),
            ("foo, bar", &[("foo", "ab"), ("bar", "c")], &[("foo", "a"), ("bar", "bc")], false),
            ("Foo", &[("foo", "1, 2")], &[("foo", "1"), ("foo", "2")], true),
            ("foo", &[("foo", "1,2")], &[("foo", " 1, 2 ")], true),
            ("foo", &[("foo", "a, b")], &[("foo", "b, a")], false),
            ("foo", &[("foo", "a")], &[("foo", "A")], false),
            ("accept-language", &[("accept-language", "en, de")], &[("accept-language", "De ,  eN")], true),
            ("accept-language", &[("accept-language", "en, de")], &[("accept-language", "en")], false),
            ("accept-encoding", &[("accept-encoding", "gzip, br")], &[("accept-encoding", "br,gzip")], true),
        ] {
            let none: Arc<[Selector]> = Arc::new([]);
            let selectors = selectors(&none, &headers(&[("vary", vary)]));
            let selecting = Selecting::new(selectors, &headers(stored));
            assert_eq!(
                selecting.matches(&headers(asked)),
                want,
                "{vary}: {stored:?} {asked:?} (RFC 9111 4.1)"
            );
        }
    }

    #[test]
    fn the_route_s_parts_count_too() {
        let route: Arc<[Selector]> =
            [Selector::Field(HeaderName::from_static("x-key")), Selector::Cookie("session".into())].into();
        let of = |fields: &[(&str, &str)]| Selecting::new(route.clone(), &headers(fields));
        let mine = of(&[("x-key", "1"), ("cookie", "a=b; session=me")]);
        assert!(mine.matches(&headers(&[("x-key", "1"), ("cookie", "session=me; theme=dark")])));
        assert!(!mine.matches(&headers(&[("x-key", "1"), ("cookie", "session=you")])));
        assert!(!mine.matches(&headers(&[("x-key", "1"), ("cookie", "xsession=me")])));
        assert!(!mine.matches(&headers(&[("x-key", "2"), ("cookie", "session=me")])));
        assert!(!mine.matches(&headers(&[("x-key", "1")])));
        assert!(!mine.matches(&headers(&[("x-key", "1"), ("cookie", "session=me; session=you")])));
        let varied = selectors(&route, &headers(&[("vary", "x-key, b, a")]));
        let names: Vec<&str> = varied.iter().map(Selector::name).collect();
        assert_eq!(names, ["x-key", "session", "a", "b"]);
    }
}
