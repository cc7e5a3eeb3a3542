//! The bound on the connections of one source, and who is penalised for pushing against it.
//!
//! The listener asks at each accept, for a refusal is to cost nothing but that; where a PROXY header is to name the
//! source, the connection asks when it has read it. Whoever that names cannot be penalised: the packets are another's.

use std::net::IpAddr;
use std::time::Instant;

use gateway_common::standing::OF_CONNECTIONS;

use super::io::Io;
use crate::datapath::Suspect;
use crate::limit::connections::{Full, OfSource};
use crate::proxy::Proxy;
use crate::proxy::client::Phase;
use crate::proxy::identity::{Identity, is_trusted};

/// A connection that has moved so many bytes is good for something, though its first request is not here yet.
const USED_BYTES: u64 = 64 * 1024;

/// There are as many as there may be.
#[derive(Debug)]
pub struct Refused;

/// A place for a connection of `source`, or `None` where it needs none; `relayed`: a PROXY header names it.
pub fn enter(proxy: &Proxy, source: IpAddr, relayed: bool) -> Result<Option<OfSource>, Refused> {
    let snapshot = &proxy.local().snapshot;
    let config = &snapshot.config;
    let source = source.to_canonical();
    if is_trusted(source, &config.trusted_proxies) {
        return Ok(None);
    }
    let address = Identity::of_peer(source, relayed, config.client_ipv6_prefix).address;
    let now_ns = snapshot.limits.at(Instant::now());
    let Full { pushed } =
        match snapshot.limits.connections.enter(address, config.connections.max_per_source, now_ns) {
            Ok(of_source) => return Ok(Some(of_source)),
            Err(full) => full,
        };
    proxy.registry.workers[proxy.worker].refused_of_source.add(1);
    if let Some(refused) = pushed.filter(|_| !relayed) {
        // Those that it holds end as soon as workers hear of it.
        let suspect = Suspect { address, rule: OF_CONNECTIONS, refused, ignored: 0 };
        let _ends = snapshot.sources.suspect(suspect, source);
    }
    Err(Refused)
}

/// Says what the connection has been good for by now.
pub fn note(proxy: &Proxy, io: &Io) {
    let client = &io.client;
    let Some(of_source) = client.of_source.get() else { return };
    let unread = client.phase.get() == Phase::Receiving;
    let whole = client.requests.get().wrapping_sub(u32::from(unread));
    let is_used = whole > 0 || io.bytes.get() >= USED_BYTES;
    of_source.note(whole, is_used, || proxy.local().snapshot.limits.at(Instant::now()));
}
