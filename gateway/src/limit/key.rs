//! Whom a rule counts: the parts of a request that make one key, as bytes and their hash.
//!
//! A worker keeps one [`Keys`] and reads each request's parts into it, so that a key costs no allocation.
//! Parts carry a tag and, where they vary, their length: different requests never spell the same key.
//! What becomes of a key is the store's business.

use std::net::IpAddr;
use std::ops::Range;

use http::HeaderMap;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::config::LimitKey as Part;
use crate::text::decoded;

/// A longer value of a header or a query parameter is taken for none.
const LONGEST_VALUE_BYTES: usize = 4096;

const ROUTE: u8 = 1;
const HEADER: u8 = 2;
const QUERY: u8 = 3;
const IPV4: u8 = 4;
const IPV6: u8 = 6;

/// What keys are made of.
pub struct Request<'a> {
    pub client: IpAddr,
    /// What stands for the route.
    pub route: u64,
    pub headers: &'a HeaderMap,
    pub query: Option<&'a str>,
}

/// The keys of one request, in the order in which they were asked for. A part that a request lacks is
/// replaced by its client.
#[derive(Default)]
pub struct Keys {
    bytes: Vec<u8>,
    found: Vec<(Range<usize>, u64)>,
}

impl Keys {
    /// Replaces the keys by those of `request` under `specs`. `seed` is the process's own, so that nobody
    /// outside can choose keys that collide.
    pub fn read<'a>(
        &mut self,
        specs: impl IntoIterator<Item = &'a [Part]>,
        request: &Request<'_>,
        seed: u64,
    ) {
        self.bytes.clear();
        self.found.clear();
        for spec in specs {
            let start = self.bytes.len();
            for part in spec {
                self.push(part, request);
            }
            let range = start..self.bytes.len();
            let hash = xxh3_64_with_seed(&self.bytes[range.clone()], seed);
            self.found.push((range, hash));
        }
    }

    pub fn get(&self, spec: usize) -> (&[u8], u64) {
        let (range, hash) = &self.found[spec];
        (&self.bytes[range.clone()], *hash)
    }

    #[cfg(test)]
    pub fn capacity(&self) -> (usize, usize) {
        (self.bytes.capacity(), self.found.capacity())
    }

    fn push(&mut self, part: &Part, request: &Request<'_>) {
        let found = match part {
            Part::Client => false,
            Part::Route => {
                self.bytes.push(ROUTE);
                self.bytes.extend_from_slice(&request.route.to_le_bytes());
                true
            }
            Part::Header(name) => {
                let values = request.headers.get_all(name).iter();
                let value = only(values).map(|value| value.as_bytes().iter().copied());
                value.is_some_and(|value| self.push_value(HEADER, value))
            }
            Part::Query(name) => {
                let value = request.query.and_then(|query| parameter(query, name));
                value.is_some_and(|value| self.push_value(QUERY, value))
            }
        };
        if !found {
            self.push_client(request.client);
        }
    }

    fn push_client(&mut self, client: IpAddr) {
        match client {
            IpAddr::V4(address) => {
                self.bytes.push(IPV4);
                self.bytes.extend_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                self.bytes.push(IPV6);
                self.bytes.extend_from_slice(&address.octets());
            }
        }
    }

    /// False where the value is empty or too long.
    fn push_value(&mut self, tag: u8, value: impl Iterator<Item = u8>) -> bool {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[tag, 0, 0]);
        self.bytes.extend(value.take(LONGEST_VALUE_BYTES + 1));
        let length = self.bytes.len() - start - 3;
        if length == 0 || length > LONGEST_VALUE_BYTES {
            self.bytes.truncate(start);
            return false;
        }
        self.bytes[start + 1..start + 3].copy_from_slice(&(length as u16).to_le_bytes());
        true
    }
}

/// The decoded value of the parameter called `name`: another spelling is no other key.
fn parameter<'a>(query: &'a str, name: &str) -> Option<impl Iterator<Item = u8> + 'a> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    only(pairs.filter(|(spelt, _)| decoded(spelt).eq(name.bytes()))).map(|(_, value)| decoded(value))
}

/// What stands there once. Of several, one backend takes the first and another the last: whoever counted
/// by either would leave the other to be made up anew with each request.
fn only<T>(mut values: impl Iterator<Item = T>) -> Option<T> {
    let value = values.next();
    value.filter(|_| values.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn bytes(spec: &[Part], client: &str, fields: &[(&'static str, &str)], query: Option<&str>) -> Vec<u8> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::try_from(*value).unwrap());
        }
        let request = Request { client: client.parse().unwrap(), route: 7, headers: &headers, query };
        let mut keys = Keys::default();
        keys.read([spec], &request, 1);
        let (bytes, hash) = keys.get(0);
        assert_eq!(hash, xxh3_64_with_seed(bytes, 1));
        bytes.to_vec()
    }

    #[test]
    fn spellings_of_one_value_are_one_key() {
        let tenant = || [Part::Query("tenant".to_owned())];
        let key = |query| bytes(&tenant(), "192.0.2.7", &[], Some(query));
        let plain = key("tenant=a b");
        for query in ["tenant=a+b", "tenant=a%20b", "%74enant=%61%20b", "x=1&tenant=a+b&y"] {
            assert_eq!(key(query), plain, "{query}");
        }
        for query in ["tenant=a%2", "tenant=A b", "tenant2=a b", "xtenant=a b", ""] {
            assert_ne!(key(query), plain, "{query}");
        }
    }

    #[test]
    fn without_the_value_the_client_is_counted() {
        let header = || [Part::Header(HeaderName::from_static("x-tenant"))];
        let client = bytes(&[Part::Client], "192.0.2.7", &[], None);
        let long = "a".repeat(LONGEST_VALUE_BYTES + 1);
        let twice = &[("x-tenant", "made-up"), ("x-tenant", "a")];
        for fields in
            [&[][..], &[("x-tenant", "")], &[("x-tenant", long.as_str())], &[("x-other", "a")], twice]
        {
            assert_eq!(bytes(&header(), "192.0.2.7", fields, None), client);
        }
        for query in ["t=", "t", "t=made-up&t=a", "t=a&%74=a", "x=1"] {
            assert_eq!(bytes(&[Part::Query("t".to_owned())], "192.0.2.7", &[], Some(query)), client);
        }
        let fits = &long[..LONGEST_VALUE_BYTES];
        let one = bytes(&header(), "192.0.2.7", &[("x-tenant", fits)], None);
        assert_eq!(one, bytes(&header(), "192.0.2.8", &[("x-tenant", fits)], None), "any client");
    }

    #[test]
    fn different_requests_have_different_keys() {
        let part = |name: &'static str| Part::Header(HeaderName::from_static(name));
        let both = [part("a"), part("b")];
        let all = [
            bytes(&[Part::Client], "192.0.2.7", &[], None),
            bytes(&[Part::Client], "::192.0.2.7", &[], None),
            bytes(&[Part::Route], "192.0.2.7", &[], None),
            bytes(&[Part::Client, Part::Route], "192.0.2.7", &[], None),
            bytes(&both, "192.0.2.7", &[("a", "xy"), ("b", "z")], None),
            bytes(&both, "192.0.2.7", &[("a", "x"), ("b", "yz")], None),
            bytes(&both, "192.0.2.7", &[("a", "x")], None),
            bytes(&both, "192.0.2.7", &[("b", "x")], None),
            // A value that spells an address is no address.
            bytes(&[part("a")], "192.0.2.7", &[("a", "192.0.2.7")], None),
            bytes(&[Part::Query("a".to_owned())], "192.0.2.7", &[], Some("a=192.0.2.7")),
        ];
        for (n, key) in all.iter().enumerate() {
            assert!(!all[..n].contains(key), "{n}: {key:?}");
        }
    }
}
