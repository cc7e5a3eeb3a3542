//! Load balancers that `trusted_proxies` forgot: peers that speak like a proxy and are not believed.
//!
//! All clients of such a peer look like one, so it is worth a line in the log; one for each network
//! and a bounded number of them, since anybody can send such a field.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;

/// Networks that are named in the life of a process.
const MAX_NAMED: usize = 16;
/// How far the addresses of one operator's load balancers are taken to lie apart.
const IPV4_PREFIX: u8 = 24;
const IPV6_PREFIX: u8 = 64;

/// One for all workers, as the log is.
static NAMED: Mutex<Vec<IpNet>> = Mutex::new(Vec::new());

/// Says in the log that `peer` sends what only proxies send (`field`), unless that has been said.
pub fn warn(peer: IpAddr, field: &str) {
    let fresh = first_of_its_network(&mut NAMED.lock().unwrap_or_else(PoisonError::into_inner), peer);
    if let Some(network) = fresh {
        tracing::warn!(
            %peer,
            field,
            add = %network,
            "a peer speaks like a proxy and is not believed: if it is a load balancer of yours, add it to trusted_proxies"
        );
    }
}

fn first_of_its_network(named: &mut Vec<IpNet>, peer: IpAddr) -> Option<IpNet> {
    if named.len() >= MAX_NAMED || named.iter().any(|network| network.contains(&peer)) {
        return None;
    }
    let prefix = if peer.is_ipv4() { IPV4_PREFIX } else { IPV6_PREFIX };
    let network = IpNet::new(peer, prefix).expect("the prefix is no longer than the address").trunc();
    named.push(network);
    Some(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_once_and_not_too_many() {
        let mut named = Vec::new();
        let mut say = |peer: &str| {
            first_of_its_network(&mut named, peer.parse().unwrap()).map(|network| network.to_string())
        };
        assert_eq!(say("10.0.0.7").as_deref(), Some("10.0.0.0/24"));
        assert_eq!(say("10.0.0.8"), None);
        assert_eq!(say("10.0.1.8").as_deref(), Some("10.0.1.0/24"));
        assert_eq!(say("2001:db8::7").as_deref(), Some("2001:db8::/64"));
        assert_eq!(say("2001:db8::1:0:0:7"), None);
        let more = (0..=255).filter(|third| say(&format!("192.0.{third}.1")).is_some()).count();
        assert_eq!(more, MAX_NAMED - 3);
    }
}
