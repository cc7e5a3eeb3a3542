//! The host's own addresses: what a listener on "any" address stands for in the kernel half.
//!
//! Only they are ours: on a router or a container host, traffic to somebody else's address passes by.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::sys;

/// Addresses of all interfaces of this thread's network namespace.
pub fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    sys::interface_addresses()
}

/// Where packets for `listeners` go, each with its listener's place in the list.
pub fn expand(listeners: &[SocketAddr], host: &BTreeSet<IpAddr>) -> BTreeMap<SocketAddr, u32> {
    let mut places = BTreeMap::new();
    for (index, listener) in (0..).zip(listeners) {
        let address = listener.ip().to_canonical();
        // The IPv6 wildcard takes IPv4 as well.
        let stands_for = |own: &&IpAddr| address.is_ipv6() || own.is_ipv4();
        let single = [address].into_iter().filter(|address| !address.is_unspecified());
        let all = host.iter().filter(|own| address.is_unspecified() && stands_for(own)).copied();
        for own in single.chain(all) {
            places.entry(SocketAddr::new(own, listener.port())).or_insert(index);
        }
    }
    places
}

/// A descriptor that turns readable when an address or an interface came to the host or left it.
pub struct AddressChanges(OwnedFd);

const RTMGRP_LINK: u32 = 0x1;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;

impl AddressChanges {
    /// Listens to this thread's network namespace. Needs no privilege.
    pub fn new() -> io::Result<Self> {
        // Protocol 0, the default, is NETLINK_ROUTE.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        let groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self(socket))
    }

    /// Reads away what made it readable; what has changed is for `Datapath::refresh` and
    /// `Datapath::follow_interfaces` to find out.
    pub fn clear(&self) -> io::Result<()> {
        let mut message = [0; 4096];
        loop {
            match recv(&self.0, &mut message[..], RecvFlags::TRUNC) {
                // NOBUFS: changes were lost, which is one more reason to look.
                Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for AddressChanges {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for AddressChanges {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_stands_for_those_of_the_host() {
        let host = ["127.0.0.1", "::1", "192.0.2.1"].map(|text| text.parse().unwrap()).into();
        type Row<'a> = (&'a [&'a str], &'a [(&'a str, u32)]);
        let rows: [Row<'_>; 5] = [
            (&["[::]:80"], &[("127.0.0.1:80", 0), ("192.0.2.1:80", 0), ("[::1]:80", 0)]),
            (&["0.0.0.0:80"], &[("127.0.0.1:80", 0), ("192.0.2.1:80", 0)]),
            (&["198.51.100.9:80"], &[("198.51.100.9:80", 0)]),
            (&["[::ffff:192.0.2.1]:80"], &[("192.0.2.1:80", 0)]),
            (&["192.0.2.1:80", "0.0.0.0:80"], &[("127.0.0.1:80", 1), ("192.0.2.1:80", 0)]),
        ];
        for (listeners, places) in rows {
            let listeners: Vec<SocketAddr> = listeners.iter().map(|text| text.parse().unwrap()).collect();
            let places = places.iter().map(|(text, index)| (text.parse().unwrap(), *index)).collect();
            assert_eq!(expand(&listeners, &host), places, "{listeners:?}");
        }
    }
}
