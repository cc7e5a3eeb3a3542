//! What of a request a consistent hash goes by.

use std::net::IpAddr;

use http::header::COOKIE;
use http::request::Parts;

use crate::config::{HashKey, Policy};
use crate::upstream::balancer::hash;

/// The request's key, hashed; 0 where the balancer needs none. Who sends no such field goes by address.
pub fn key(policy: &Policy, client: IpAddr, parts: &Parts) -> u64 {
    let key = match policy {
        Policy::LeastRequests | Policy::RoundRobin => return 0,
        Policy::Hash(key) => key,
    };
    let found = match key {
        HashKey::Client => None,
        HashKey::Path => Some(hash(parts.uri.path().as_bytes())),
        HashKey::Header(name) => parts.headers.get(name).map(|value| hash(value.as_bytes())),
        HashKey::Cookie(name) => {
            let cookies = parts.headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
            pairs(cookies, ';', name).map(|value| hash(value.as_bytes()))
        }
        HashKey::Query(name) => {
            pairs(parts.uri.query().into_iter(), '&', name).map(|value| hash(value.as_bytes()))
        }
    };
    found.unwrap_or_else(|| match client {
        IpAddr::V4(address) => hash(&address.octets()),
        IpAddr::V6(address) => hash(&address.octets()),
    })
}

/// The value of the first `name=value` in lists of such pairs.
fn pairs<'a>(lists: impl Iterator<Item = &'a str>, between: char, name: &str) -> Option<&'a str> {
    let mut pairs = lists.flat_map(|list| list.split(between));
    pairs.find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hashed() {
        let request = http::Request::get("/a/b?x=1&user=7&y").header("cookie", "a=1; user=8;b=2");
        let (parts, ()) = request.header("x-user", "9").body(()).unwrap().into_parts();
        let client = "192.0.2.7".parse().unwrap();
        let address = hash(&[192, 0, 2, 7]);
        for (key, want) in [
            (HashKey::Client, address),
            (HashKey::Path, hash(b"/a/b")),
            (HashKey::Header("x-user".parse().unwrap()), hash(b"9")),
            (HashKey::Header("x-none".parse().unwrap()), address),
            (HashKey::Cookie("user".to_owned()), hash(b"8")),
            (HashKey::Cookie("b".to_owned()), hash(b"2")),
            (HashKey::Cookie("use".to_owned()), address),
            (HashKey::Query("user".to_owned()), hash(b"7")),
            (HashKey::Query("y".to_owned()), address),
        ] {
            assert_eq!(super::key(&Policy::Hash(key.clone()), client, &parts), want, "{key:?}");
        }
        assert_eq!(super::key(&Policy::LeastRequests, client, &parts), 0);
    }
}
