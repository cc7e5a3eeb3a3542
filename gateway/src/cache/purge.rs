//! Forgetting what is stored at somebody's wish: one URL, everything below a prefix, or a tag.

use rustc_hash::FxHashSet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::key::{self, Query, Scheme, Target};
use super::{Cache, Route};
use crate::path;

/// What is to go. URLs are whole: `http://host/path?query`; those of every route count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Purge {
    Url(String),
    /// Everything that begins so.
    Prefix(String),
    /// Named by a response's `Cache-Tag` or `Surrogate-Key`.
    Tag(String),
}

impl Purge {
    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Url(text) | Self::Prefix(text) | Self::Tag(text) => text.is_empty(),
        }
    }
}

impl Cache {
    /// Tells how many responses went. `routes`: those whose responses these are.
    pub fn purge<'a>(&self, what: &Purge, routes: impl Iterator<Item = &'a Route>) -> usize {
        match what {
            Purge::Url(url) => {
                let urls = urls(url, routes.map(|route| &route.query));
                self.store.purge(move |key, _| urls.contains(key::url(key)))
            }
            Purge::Prefix(prefix) => {
                let prefix = normal(prefix);
                self.store.purge(move |key, _| key::url(key).starts_with(&prefix))
            }
            Purge::Tag(tag) => {
                let tag = tag.clone();
                self.store.purge(move |_, entry| entry.has_tag(tag.as_bytes()))
            }
        }
    }
}

/// The URL as keys have it, those of any route: each has its own idea of what counts in a query. As it stands, too: what a
/// route has left that is gone may be served again when it comes back.
fn urls<'a>(url: &str, queries: impl Iterator<Item = &'a Query>) -> FxHashSet<Vec<u8>> {
    let (scheme, authority, rest) = split(url);
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    let path = if path.is_empty() { "/" } else { path };
    // What has no normal form is stored under no key either.
    let normal = path::normalise(path).unwrap_or(path.into());
    let target = Target { scheme, authority, path: &normal, query };
    let url = |query: &Query| {
        let mut out = Vec::new();
        target.write(query, &mut out);
        out
    };
    queries.map(url).chain([url(&Query::default())]).collect()
}

/// A prefix as keys have it.
fn normal(prefix: &str) -> Vec<u8> {
    let (scheme, authority, rest) = split(prefix);
    let mut out = Vec::with_capacity(prefix.len() + 8);
    key::write_url(scheme, authority, if rest.starts_with('/') { "" } else { "/" }, &mut out);
    out.extend_from_slice(rest.as_bytes());
    out
}

/// Scheme, authority, and all that comes behind.
fn split(url: &str) -> (Scheme, &str, &str) {
    let (scheme, rest) = match url.strip_prefix("https://") {
        Some(rest) => (Scheme::Https, rest),
        None => (Scheme::Http, url.strip_prefix("http://").unwrap_or(url)),
    };
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    (scheme, authority, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_goes_as_it_stands_whatever_routes_there_are() {
        let found = |url: &str| urls(url, std::iter::empty()).into_iter().next();
        for (url, want) in [
            ("http://A:80/x?b=1&a=2", "http://a/x?b=1&a=2"),
            ("a", "http://a/"),
            ("https://a?q", "https://a/?q"),
            ("a/%78/../y", "http://a/y"),
        ] {
            assert_eq!(found(url).as_deref(), Some(want.as_bytes()), "{url}");
        }
    }
}
