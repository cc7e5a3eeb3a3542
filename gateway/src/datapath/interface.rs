//! What the kernel says of an interface, and who holds its hooks: for an error that names the holder, and
//! for `doctor`.
//!
//! Asked over netlink, which needs no privilege and knows this thread's network namespace, unlike sysfs.

use std::io;

use aya::programs::loaded_programs;
use gateway_common::maps::{PROGRAM_TC, PROGRAM_XDP, PROGRAM_XDP_FRAGS};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice, netlink, recv, sendto, socket,
    socket_with,
};

use super::sys;

/// An interface of this network namespace.
#[derive(Clone, Debug)]
pub struct Interface {
    pub is_up: bool,
    /// Its packets begin with an Ethernet header.
    pub is_ethernet: bool,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Such as `veth`, `bridge` or `loopback`, of those that are no hardware.
    pub kind: Option<String>,
    pub xdp: Option<Holder>,
}

/// A program at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub id: u32,
    /// `None`: this process may not ask.
    pub name: Option<String>,
    /// At XDP, whether it runs in the stack and not in the driver.
    pub is_generic: bool,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, name, .. } = self;
        write!(f, "program {id}")?;
        name.iter().try_for_each(|name| write!(f, " \"{name}\""))
    }
}

impl Interface {
    pub fn look(name: &str) -> io::Result<Self> {
        let message = ask(name)?;
        let mut interface = Self {
            is_up: message.header.flags.contains(LinkFlags::Up),
            is_ethernet: matches!(
                message.header.link_layer_type,
                LinkLayerType::Ether | LinkLayerType::Loopback
            ),
            mtu: 0,
            kind: (message.header.link_layer_type == LinkLayerType::Loopback).then(|| "loopback".to_owned()),
            xdp: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
                LinkAttribute::Xdp(xdp) => interface.xdp = holder(&xdp),
                LinkAttribute::LinkInfo(infos) => {
                    interface.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Ok(interface)
    }
}

impl Holder {
    /// Whether the program is a gateway's, by its name.
    pub fn is_gateway(&self) -> bool {
        let name = self.name.as_deref();
        name.is_some_and(|name| [PROGRAM_XDP, PROGRAM_XDP_FRAGS, PROGRAM_TC].contains(&name))
    }
}

/// The programs at TCX ingress, in their order; none where the kernel has no TCX or this process may not ask.
pub fn tcx(interface: &str) -> Vec<Holder> {
    let programs = index(interface).and_then(sys::tcx_ingress).unwrap_or_default();
    programs.into_iter().map(|id| Holder { id, name: program_name(id), is_generic: false }).collect()
}

/// The number of an interface.
pub fn index(name: &str) -> io::Result<u32> {
    let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    Ok(netdevice::name_to_index(any, name)?)
}

fn holder(attributes: &[LinkXdp]) -> Option<Holder> {
    let id = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    })?;
    let is_generic = attributes.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
    Some(Holder { id, name: program_name(id), is_generic })
}

fn program_name(id: u32) -> Option<String> {
    let program = loaded_programs().find_map(|program| program.ok().filter(|program| program.id() == id))?;
    program.name_as_str().map(str::to_owned)
}

fn ask(name: &str) -> io::Result<LinkMessage> {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::GetLink(link)));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    // Protocol 0, the default, is NETLINK_ROUTE; so is the kernel's address.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sendto(&socket, &bytes, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut answer = vec![0; 64 * 1024];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer[..length]);
    match answer.map_err(io::Error::other)?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(link),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(io::Error::other(format!("not an answer: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_known_and_nobody_is_not() {
        let loopback = Interface::look("lo").unwrap();
        assert!(loopback.is_ethernet && loopback.mtu >= 1_500, "{loopback:?}");
        assert_eq!(loopback.kind.as_deref(), Some("loopback"));
        let error = Interface::look("nowhere0").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
