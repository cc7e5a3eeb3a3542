//! What a stored response is found by: the target URI, and which route it belongs to.
//!
//! The key is text, `http://host/path?query` behind the route's scope, so that purging by URL or prefix
//! reads it as it stands. It is hashed with XXH3 under a seed of the process, and compared in full
//! wherever the hash has led to something. `Vary` and the route's fields and cookies are not part of
//! it: they select among the variants behind one key.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use http::Method;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::select::Selecting;
pub use crate::config::Query;

impl Query {
    fn is_plain(&self) -> bool {
        self.keep.is_none() && self.ignore.is_empty() && !self.sort
    }

    /// The backend gets all of the query, so what it may read otherwise counts: a name in disguise, and what may be two
    /// parameters, for some separate them by a semicolon as well.
    fn counts(&self, parameter: &str) -> bool {
        let name = parameter.split('=').next().unwrap_or_default();
        let is_in = |names: &[String]| names.iter().any(|listed| listed == name);
        let kept = self.keep.as_ref().is_none_or(|keep| name.contains(['%', '+']) || is_in(keep));
        parameter.contains(';') || kept && !is_in(&self.ignore)
    }

    fn write(&self, query: &str, out: &mut Vec<u8>) {
        let mut parameters: Vec<&str> = query.split('&').filter(|parameter| self.counts(parameter)).collect();
        if self.sort {
            // By name alone: the order of one name's values has a meaning.
            parameters.sort_by_key(|parameter| parameter.split('=').next());
        }
        for (position, parameter) in parameters.iter().enumerate() {
            out.push(if position == 0 { b'?' } else { b'&' });
            out.extend_from_slice(parameter.as_bytes());
        }
    }
}

/// Makes the keys of one process. With a secret seed nobody can choose URLs whose hashes collide.
pub struct Keys {
    seed: u64,
}

/// The hash first: two keys that differ in it are compared at the cost of a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key {
    pub hash: u64,
    pub bytes: Vec<u8>,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// How the client reached the site: by the word of a trusted proxy it can be another way than to here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub scheme: Scheme,
    /// The `Host`.
    pub authority: &'a str,
    /// Normalised.
    pub path: &'a str,
    pub query: Option<&'a str>,
}

impl Target<'_> {
    /// The URL as a key has it, with what `parts` leaves of its query.
    pub fn write(&self, parts: &Query, out: &mut Vec<u8>) {
        write_url(self.scheme, self.authority, self.path, out);
        match self.query {
            Some(query) if parts.is_plain() => {
                out.push(b'?');
                out.extend_from_slice(query.as_bytes());
            }
            Some(query) => parts.write(query, out),
            None => {}
        }
    }
}

/// Bytes before the URL.
pub const SCOPE_BYTES: usize = size_of::<u64>();

impl Default for Keys {
    fn default() -> Self {
        Self { seed: RandomState::new().hash_one(0) }
    }
}

impl Keys {
    pub fn hash(&self, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.seed)
    }

    /// `scope` tells routes apart. `bytes`: empty; memory that another key has had, if there is some.
    pub fn key(&self, scope: u64, target: &Target<'_>, parts: &Query, mut bytes: Vec<u8>) -> Key {
        /// Scope, scheme, and what most hosts are no longer than.
        const USUAL_BYTES: usize = 64;
        bytes.reserve(USUAL_BYTES + target.path.len() + target.query.map_or(0, str::len));
        bytes.extend_from_slice(&scope.to_ne_bytes());
        target.write(parts, &mut bytes);
        Key { hash: self.hash(&bytes), bytes }
    }

    /// The key of requests that are one: the same method, the same values of what `selecting` looks at, and nothing
    /// forgotten between them, which `generation` tells; the hash does not.
    pub fn of_flight(&self, key: &Key, method: &Method, selecting: &Selecting, generation: u64) -> Key {
        let mut bytes = key.bytes.clone();
        bytes.push(b'\n');
        bytes.extend_from_slice(method.as_str().as_bytes());
        for selector in selecting.selectors().iter() {
            bytes.push(b'\n');
            bytes.extend_from_slice(selector.name().as_bytes());
        }
        bytes.push(b'\n');
        bytes.extend_from_slice(selecting.values());
        let hash = self.hash(&bytes);
        bytes.extend_from_slice(&generation.to_ne_bytes());
        Key { hash, bytes }
    }
}

/// `http://host/path`, the host in lower case and without the scheme's own port.
pub fn write_url(scheme: Scheme, authority: &str, path: &str, out: &mut Vec<u8>) {
    let (prefix, port) = match scheme {
        Scheme::Http => ("http://", ":80"),
        Scheme::Https => ("https://", ":443"),
    };
    out.extend_from_slice(prefix.as_bytes());
    let start = out.len();
    out.extend_from_slice(authority.strip_suffix(port).unwrap_or(authority).as_bytes());
    out[start..].make_ascii_lowercase();
    out.extend_from_slice(path.as_bytes());
}

/// The URL in a key's bytes.
pub fn url(bytes: &[u8]) -> &[u8] {
    bytes.get(SCOPE_BYTES..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts() {
        let keys = Keys::default();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let plain = Query::default();
        let keep = Query { keep: Some(names(&["a", "b"])), ..plain.clone() };
        let ignore = Query { ignore: names(&["utm"]), ..plain.clone() };
        let sort = Query { sort: true, ..plain.clone() };
        for (parts, host, path, query, want) in [
            (&plain, "Example.ORG", "/x", None, "http://example.org/x"),
            (&plain, "example.org:80", "/x", None, "http://example.org/x"),
            (&plain, "example.org:8080", "/X", Some("b=1&a"), "http://example.org:8080/X?b=1&a"),
            (&plain, "a", "/", Some(""), "http://a/?"),
            (&keep, "a", "/", Some("c=1&b=2&a=3&ab=4"), "http://a/?b=2&a=3"),
            (&keep, "a", "/", Some("c=1"), "http://a/"),
            (&keep, "a", "/", Some("%61=1&c=1;a=2&c=%61"), "http://a/?%61=1&c=1;a=2"),
            (&ignore, "a", "/", Some("utm=1&b=2&utm"), "http://a/?b=2"),
            (&ignore, "a", "/", Some("utm=1;b=2"), "http://a/?utm=1;b=2"),
            (&sort, "a", "/", Some("b=2&a=9&a=1"), "http://a/?a=9&a=1&b=2"),
        ] {
            let target = Target { scheme: Scheme::Http, authority: host, path, query };
            let key = keys.key(7, &target, parts, Vec::new());
            assert_eq!(String::from_utf8_lossy(url(&key.bytes)), want);
        }
        let target = Target { scheme: Scheme::Https, authority: "a:443", path: "/", query: None };
        let of = |scope| keys.key(scope, &target, &plain, Vec::new());
        assert_eq!(url(&of(1).bytes), b"https://a/");
        assert_ne!(of(1), of(2), "routes share nothing");
        assert_eq!(of(1), of(1));
    }
}
