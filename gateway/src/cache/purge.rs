//! Forgetting what is stored at somebody's wish: one URL, everything below a prefix, or a tag.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Cache;
use super::key::{self, Scheme};

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
    /// Tells how many responses went.
    pub fn purge(&self, what: &Purge) -> usize {
        match what {
            Purge::Url(url) => {
                let url = normal(url);
                self.store.purge(move |key, _| key::url(key) == url)
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

/// The URL as keys have it.
fn normal(url: &str) -> Vec<u8> {
    let (scheme, rest) = match url.strip_prefix("https://") {
        Some(rest) => (Scheme::Https, rest),
        None => (Scheme::Http, url.strip_prefix("http://").unwrap_or(url)),
    };
    let path = rest.find(['/', '?']).unwrap_or(rest.len());
    let mut out = Vec::with_capacity(url.len() + 8);
    key::write_url(scheme, &rest[..path], if rest[path..].starts_with('/') { "" } else { "/" }, &mut out);
    out.extend_from_slice(&rest.as_bytes()[path..]);
    out
}
