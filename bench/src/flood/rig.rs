//! The rig: network namespaces for a server, a good client and an attacker, and a cable from each client to the
//! server.
//!
//! A cable brings frames as a network card does, in a page with room before them. A veth alone would not: what a socket
//! has sent it first copies, on the receiver's core, for any XDP program there. So a client's interface leads to a relay
//! in its own namespace, two interfaces that XDP joins, and the copy is made where the client's work is done.
//!
//! The server's ends hand their packets to threads of their own, which are kept on the core of the system under
//! test: what receiving costs falls on it and on nobody else. The clients' ends hand theirs to the load's core.
//! Each round has a rig of its own, so that none meets what another has left in a stack or a cable.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use rustix::thread::{CpuSet, LinkNameSpaceType, Pid, move_into_link_name_space, sched_setaffinity};

use super::traces::{self, Trace};
use super::xdp::{self, Network, Rest};
use crate::machine::Cores;
use crate::system::on_path;

/// Where the system under test listens. Its namespace is the rig's own, so nobody else has the port.
pub const PORT: u16 = 8080;
/// Addresses that belong to nobody but are routed back to the attacker: network and prefix length.
pub const FORGED: Network = (Ipv4Addr::new(100, 64, 0, 0), 10);

/// A client's own interface, and its relay's two: the one that it leads to, and the one that leads to the server. A
/// namespace has nothing else, so each can have the same number in all of them.
const CLIENT: &str = "client";
const INNER: (&str, u32) = ("inner", 101);
const OUTER: (&str, u32) = ("outer", 102);

#[derive(Debug, thiserror::Error)]
pub enum RigError {
    #[error("network namespaces and XDP need root: run it as root, or through sudo")]
    NotRoot,
    #[error("`{0}` is missing: install the package {1}")]
    Missing(&'static str, &'static str),
    #[error("{command}: {told}")]
    Command { command: String, told: String },
    #[error("{0} has no receive thread: this kernel's veth knows no threaded NAPI")]
    NoReceiveThread(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A network namespace with its loopback up; gone when dropped.
pub struct Namespace {
    name: String,
    file: File,
}

/// One client and its cable.
pub struct Client {
    pub namespace: Namespace,
    /// Where it reaches the server.
    pub target: SocketAddrV4,
    /// The server's end of the cable.
    pub interface: String,
}

pub struct Rig {
    pub server: Namespace,
    pub good: Client,
    pub attacker: Client,
    pub cores: Cores,
}

impl Rig {
    /// Checks what is needed, clears what a killed run left, and makes all of it.
    pub fn new(cores: Cores) -> Result<Rig, RigError> {
        if !rustix::process::geteuid().is_root() {
            return Err(RigError::NotRoot);
        }
        for (program, package) in [("ip", "iproute2"), ("ethtool", "ethtool")] {
            on_path(program).ok_or(RigError::Missing(program, package))?;
        }
        traces::sweep();
        let server = Namespace::new("server")?;
        server.set("net/ipv4/conf/all/rp_filter", "0")?;
        server.set("net/ipv4/conf/default/rp_filter", "0")?;
        server.set("net/ipv4/tcp_syncookies", "1")?;
        let good = Client::new(&server, "good", Ipv4Addr::new(10, 78, 1, 1))?;
        let attacker = Client::new(&server, "evil", Ipv4Addr::new(10, 78, 2, 1))?;
        let (network, prefix) = FORGED;
        let via = attacker.address().to_string();
        server.ip(&["route", "add", &format!("{network}/{prefix}"), "via", &via])?;
        attacker.namespace.set("net/ipv4/ip_local_port_range", "1024 65535")?;
        Ok(Rig { server, good, attacker, cores })
    }

    /// Does `work` in the attacker's namespace, on a thread that is otherwise in the good client's.
    pub fn as_attacker<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        self.attacker.namespace.enter()?;
        let done = work();
        self.good.namespace.enter()?;
        Ok(done)
    }

    /// Drops everything that the attacker sends, where it arrives and before anybody has looked at it.
    pub fn drop_attacker(&self) -> Result<(), RigError> {
        self.server.program(&self.attacker.interface, xdp::EVERYWHERE, Rest::Pass)
    }

    /// Keeps the receive threads on the system's core and names them. They are new ones whenever a program was
    /// attached to their interface or taken off it.
    pub fn pin_receive_threads(&self) -> Result<Vec<Pid>, RigError> {
        let mut core = CpuSet::new();
        core.set(self.cores.system);
        let mut found = Vec::new();
        for interface in [&self.good.interface, &self.attacker.interface] {
            let threads = kernel_threads(&format!("napi/{interface}-"))?;
            if threads.is_empty() {
                return Err(RigError::NoReceiveThread(interface.clone()));
            }
            for thread in threads {
                sched_setaffinity(Some(thread), &core).map_err(io::Error::from)?;
                found.push(thread);
            }
        }
        let mut load = CpuSet::new();
        load.set(self.cores.load);
        for thread in kernel_threads(&format!("napi/{}-", OUTER.0))? {
            sched_setaffinity(Some(thread), &load).map_err(io::Error::from)?;
        }
        Ok(found)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Namespaces go in their own time; the next rig looks for its receive threads by the interfaces' names.
        for client in [&self.good, &self.attacker] {
            let _ = self.server.ip(&["link", "del", &client.interface]);
        }
    }
}

impl Client {
    fn new(server: &Namespace, role: &str, target: Ipv4Addr) -> Result<Client, RigError> {
        let namespace = Namespace::new(role)?;
        let interface = format!("{role}{}", std::process::id());
        let client = Client { namespace, target: SocketAddrV4::new(target, PORT), interface };
        let near = client.interface.as_str();
        let (inside, (inner, inner_number), (outer, outer_number)) = (&client.namespace, INNER, OUTER);
        let queues = ["numrxqueues", "1", "numtxqueues", "1"];
        let link = |(name, number): (&str, u32), peer: &[&str]| {
            let number = number.to_string();
            let first = [&["link", "add", name, "index", &number], &queues[..]].concat();
            inside.ip(&[&first[..], &["type", "veth", "peer", "name"], peer, &queues[..]].concat())
        };
        link(INNER, &[CLIENT])?;
        link(OUTER, &[near, "netns", &server.name])?;
        for (namespace, interface, address) in [(server, near, target), (inside, CLIENT, client.address())] {
            namespace.ip(&["address", "add", &format!("{address}/24"), "dev", interface])?;
            // A relay takes no promises of a checksum, and no segments to be taken apart.
            namespace.exec(&["ethtool", "-K", interface, "tx", "off", "tso", "off", "gro", "on"])?;
            namespace.ip(&["link", "set", interface, "up"])?;
        }
        server.class(near, "threaded", "1")?;
        for interface in [inner, outer] {
            inside.exec(&["ethtool", "-K", interface, "gro", "on"])?;
            inside.ip(&["link", "set", interface, "up"])?;
        }
        inside.program(inner, xdp::NOWHERE, Rest::To(outer_number))?;
        inside.program(outer, FORGED, Rest::To(inner_number))?;
        // What the server sends would else be taken in on its core.
        inside.class(outer, "threaded", "1")?;
        Ok(client)
    }

    /// The client's own address: the one after the server's.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.target.ip().to_bits() + 1)
    }
}

impl Namespace {
    fn new(role: &str) -> Result<Namespace, RigError> {
        let name = format!("{}{role}", traces::prefix());
        let make = || {
            run(Command::new("ip").args(["netns", "add", &name]))?;
            Ok::<_, RigError>(((), Trace::Namespace(name.clone())))
        };
        traces::leave(make)?;
        let file = File::open(Path::new("/run/netns").join(&name));
        let namespace = Namespace { file: file.inspect_err(|_| take_away(&name))?, name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Moves the calling thread in; what it opens and starts from now on belongs here.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Runs `work` on a thread inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let inside = || self.enter().map(|()| work());
        let done = std::thread::scope(|scope| scope.spawn(inside).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn ip(&self, words: &[&str]) -> Result<(), RigError> {
        run(Command::new("ip").args(["-n", &self.name]).args(words))
    }

    /// Has the driver drop whatever comes in by an interface and goes to `network`; `rest` says what else becomes of it.
    fn program(&self, interface: &str, network: Network, rest: Rest) -> Result<(), RigError> {
        let mut object = tempfile::NamedTempFile::new()?;
        object.write_all(&xdp::object(network, rest))?;
        let object = object.path().to_string_lossy();
        let program = ["xdpdrv", "object", &object, "section", xdp::SECTION];
        self.ip(&[&["link", "set", interface][..], &program].concat())
    }

    fn exec(&self, words: &[&str]) -> Result<(), RigError> {
        run(Command::new("ip").args(["netns", "exec", &self.name]).args(words))
    }

    fn set(&self, key: &str, value: &str) -> io::Result<()> {
        self.run(|| fs::write(Path::new("/proc/sys").join(key), value))?
    }

    /// Sets an interface's attribute. `ip netns exec` mounts the /sys of the namespace.
    fn class(&self, interface: &str, attribute: &str, value: &str) -> Result<(), RigError> {
        let path = format!("/sys/class/net/{interface}/{attribute}");
        self.exec(&["sh", "-c", "echo \"$1\" > \"$2\"", "sh", value, &path])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        take_away(&self.name);
    }
}

fn take_away(name: &str) {
    traces::take_away(&Trace::Namespace(name.to_owned()));
}

/// The threads of the kernel whose names begin so.
fn kernel_threads(prefix: &str) -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { continue };
        // A process may end while it is looked at.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with(prefix) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn run(command: &mut Command) -> Result<(), RigError> {
    let shown = format!("{command:?}").replace('"', "");
    let failed = |told: String| RigError::Command { command: shown.clone(), told };
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}
