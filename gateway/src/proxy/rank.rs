//! How well the other end of a connection is known: who makes room for whom, and who is turned away.
//!
//! Asked only where room is short, by the crowd for a connection and by `shed` for a request.

use std::net::IpAddr;

use gateway_common::standing::Class;

use super::identity::{Identity, is_trusted};
use crate::snapshot::Snapshot;

/// A trusted proxy speaks for many, and is never turned away before others are. `relayed`: a PROXY header named the
/// peer; what such clients do is not kept, for the kernel half never sees them.
pub fn class_of(snapshot: &Snapshot, peer: IpAddr, relayed: bool) -> Class {
    let (peer, config) = (peer.to_canonical(), &snapshot.config);
    if is_trusted(peer, &config.trusted_proxies) {
        Class::Proven
    } else if relayed {
        Class::Unknown
    } else {
        snapshot.sources.class(Identity::of_peer(peer, false, config.client_ipv6_prefix).address)
    }
}
