//! Which route a request belongs to: a trie over path segments, one per host name.
//!
//! Built with each snapshot, read by the proxy. It maps (host, path) to an index and knows nothing
//! of backends or methods. A look-up costs one hash per segment of the path, however many routes.

use rustc_hash::FxHashMap;

use crate::path;

/// The routes by host and path prefix; the values are indices into the snapshot's list.
#[derive(Default)]
pub struct Table {
    any_host: Node,
    hosts: FxHashMap<Box<str>, Node>,
}

#[derive(Default)]
struct Node {
    route: Option<usize>,
    children: FxHashMap<Box<str>, Node>,
}

impl Table {
    /// Adds a prefix; a route already there for the same host and segments is replaced.
    pub fn insert(&mut self, host: Option<&str>, prefix: &str, route: usize) {
        let root = match host {
            None => &mut self.any_host,
            Some(host) => self.hosts.entry(host.into()).or_default(),
        };
        let node = path::segments(prefix)
            .fold(root, |node, segment| node.children.entry(segment.into()).or_default());
        node.route = Some(route);
    }

    /// The longest prefix of `path` on segment borders: among the host's own routes first, then
    /// among those for any host. `authority` is the `Host` field as it came, port included.
    pub fn find(&self, authority: &str, path: &str) -> Option<usize> {
        self.host(authority).and_then(|node| node.longest(path)).or_else(|| self.any_host.longest(path))
    }

    fn host(&self, authority: &str) -> Option<&Node> {
        if self.hosts.is_empty() {
            return None;
        }
        let name = host_name(authority);
        match self.hosts.get(name) {
            Some(node) => Some(node),
            None => self.hosts.get(name.to_ascii_lowercase().as_str()),
        }
    }
}

impl Node {
    fn longest(&self, path: &str) -> Option<usize> {
        let mut best = self.route;
        let mut node = self;
        let mut segments = path::segments(path);
        // Where nothing lies below, the path is not even taken apart.
        while !node.children.is_empty()
            && let Some(child) = segments.next().and_then(|segment| node.children.get(segment))
        {
            best = child.route.or(best);
            node = child;
        }
        best
    }
}

/// `example.org:8080` → `example.org`, `[::1]:8080` → `[::1]`; a trailing dot is dropped.
fn host_name(authority: &str) -> &str {
    let name = match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    };
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::default();
        table.insert(None, "/", 0);
        table.insert(None, "/api/users", 1);
        table.insert(None, "/api/users/admin", 2);
        table.insert(Some("shop.example"), "/api", 3);
        table.insert(Some("[::1]"), "/", 4);
        table
    }

    #[test]
    fn longest_prefix_on_segment_borders() {
        for (host, path, want) in [
            ("a", "/", 0),
            ("a", "/api", 0),
            ("a", "/api/users", 1),
            ("a", "/api/users/", 1),
            ("a", "/api/users/7/posts", 1),
            ("a", "/api/usersX", 0),
            ("a", "/api/users/admin/x", 2),
            ("a", "/api//users//admin", 2),
            ("a", "/API/users", 0),
            ("shop.example", "/api/users", 3),
            ("SHOP.example:8080", "/api/users", 3),
            ("shop.example.", "/api/users", 3),
            ("shop.example", "/other", 0),
            ("[::1]:8080", "/api/users", 4),
            ("", "/api/users", 1),
        ] {
            assert_eq!(table().find(host, path), Some(want), "{host} {path}");
        }
    }

    #[test]
    fn no_prefix_no_route() {
        let mut table = Table::default();
        table.insert(None, "/api", 0);
        assert_eq!(table.find("a", "/"), None);
        assert_eq!(table.find("a", "/apix"), None);
    }
}
