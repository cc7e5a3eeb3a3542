//! Network namespaces joined by a veth pair; each test makes its own and leaves none behind.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A namespace with its loopback up; gone when dropped.
pub struct Namespace {
    name: String,
}

/// The gateway's and the clients' namespace with a cable between them.
///
/// `gateway` has 10.77.0.1 and fd77::1 on `edge`; `clients` has 10.77.0.2 to .9 and fd77::2 on `client`.
pub struct Network {
    pub gateway: Namespace,
    pub clients: Namespace,
}

/// The gateway's end of the cable.
pub const EDGE: &str = "edge";

static MADE: AtomicU32 = AtomicU32::new(0);

impl Namespace {
    pub fn new() -> Self {
        let name = format!("gwtest-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` inside.
    pub fn ip(&self, words: &[&str]) -> String {
        ip(&[&["-n", &self.name], words].concat())
    }

    /// Runs `work` on a thread inside; what it starts is born inside too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(Path::new("/run/netns").join(&self.name)).expect("ip made it");
        let inside = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter");
            work()
        };
        let done = thread::scope(|scope| scope.spawn(inside).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The number of an interface.
    pub fn index(&self, interface: &str) -> u32 {
        let told = self.ip(&["-o", "link", "show", "dev", interface]);
        told.split(':').next().and_then(|number| number.parse().ok()).expect("ip begins with the number")
    }

    /// Identifiers and modes of the XDP programs on an interface, as `ip link` tells them; empty: none.
    pub fn xdp_on(&self, interface: &str) -> String {
        let told = self.ip(&["-d", "link", "show", "dev", interface]);
        told.lines().filter(|line| line.contains("prog/xdp")).collect()
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Not `ip`: a failure here must not hide the one that unwinds.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

impl Network {
    pub fn new() -> Self {
        let (gateway, clients) = (Namespace::new(), Namespace::new());
        gateway.ip(&["link", "add", EDGE, "type", "veth", "peer", "name", "client", "netns", clients.name()]);
        gateway.ip(&["address", "add", "10.77.0.1/24", "dev", EDGE]);
        gateway.ip(&["address", "add", "fd77::1/64", "dev", EDGE, "nodad"]);
        for last in 2..10 {
            clients.ip(&["address", "add", &format!("10.77.0.{last}/24"), "dev", "client"]);
        }
        clients.ip(&["address", "add", "fd77::2/64", "dev", "client", "nodad"]);
        gateway.ip(&["link", "set", EDGE, "up"]);
        clients.ip(&["link", "set", "client", "up"]);
        Self { gateway, clients }
    }

    /// Makes all of 10.78.0.0/24 and fd78::/32 addresses of the clients' namespace.
    pub fn add_strangers(&self) {
        for strangers in ["10.78.0.0/24", "fd78::/32"] {
            self.clients.ip(&["route", "add", "local", strangers, "dev", "lo"]);
        }
        // A local route is enough to bind to for IPv4 alone.
        self.clients.run(|| fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1")).expect("run as root");
        self.gateway.ip(&["route", "add", "10.78.0.0/24", "dev", EDGE]);
        self.gateway.ip(&["route", "add", "fd78::/32", "via", "fd77::2"]);
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

fn ip(words: &[&str]) -> String {
    let output = Command::new("ip").args(words).output().expect("iproute2 is installed");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    told
}
