//! A gateway in a memory cgroup that is smaller than what it is asked to keep.

use std::fs;
use std::path::{Path, PathBuf};

use gateway_tests::upstream::ok;
use gateway_tests::{Gateway, Upstream};
use serde_json::json;

/// A cgroup of its own, gone at the end.
struct Cgroup(PathBuf);

impl Cgroup {
    /// Of either version, for at most `bytes`.
    fn with_limit(bytes: u64) -> Self {
        let version_1 = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) = if version_1.is_dir() {
            (version_1, "memory.limit_in_bytes")
        } else {
            let root = Path::new("/sys/fs/cgroup");
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
            (root, "memory.max")
        };
        let folder = root.join(format!("gateway-test-{}", std::process::id()));
        fs::create_dir(&folder).unwrap_or_else(|error| {
            panic!("{}: {error}: this needs root and a writable memory cgroup", folder.display())
        });
        let this = Self(folder);
        fs::write(this.0.join(limit), bytes.to_string()).unwrap_or_else(|error| panic!("{limit}: {error}"));
        this
    }

    /// What a shell does to be in it.
    fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.0.display())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its last process has just been waited for.
        while fs::remove_dir(&self.0).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
            std::thread::yield_now();
        }
    }
}

/// A cache that may hold four times what there is: it shrinks, and every request is answered.
#[test]
fn a_cache_larger_than_the_cgroup_shrinks_and_nobody_is_killed() {
    const LIMIT: u64 = 192 << 20;
    const BODY_BYTES: usize = 64 << 10;
    let cgroup = Cgroup::with_limit(LIMIT);
    let answer = ok(&"x".repeat(BODY_BYTES)).replace("\r\n\r\n", "\r\nCache-Control: max-age=600\r\n\r\n");
    let upstream = Upstream::answering(answer);
    let config = json!({
        "routes": [{ "path": "/", "backend": upstream.url(), "enable_cache": true }],
        "cache": { "max_bytes": 4 * LIMIT },
    });
    let mut gateway = Gateway::start_after(&cgroup.enter(), config);
    let mut client = gateway.connect();
    // Twice what there is.
    for n in 0..2 * LIMIT as usize / BODY_BYTES {
        match client.get(&format!("/{n}")).status() {
            200 | 503 => {}
            other => panic!("request {n}: {other}"),
        }
    }
    assert!(gateway.is_running());
    let metrics = gateway.scrape();
    assert!(
        metrics.get("gateway_cache_evictions_total", &[]).is_some_and(|evicted| evicted > 0.0),
        "{metrics}"
    );
    // By itself it is well again.
    gateway.wait_for_metrics("memory to spare", |metrics| {
        metrics.get("gateway_memory_used_ratio", &[]).is_some_and(|used| used < 0.85)
            && metrics.get("gateway_route_ceiling", &[]).is_none()
    });
    for n in 0..100 {
        assert_eq!(client.get(&format!("/again/{n}")).status(), 200, "request {n}");
    }
    drop(gateway);
}
