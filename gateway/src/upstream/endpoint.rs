//! One upstream origin: its name, its addresses, its counters.
//!
//! Shared by all workers and kept over a reload while the configuration still names it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderValue;

use crate::config::Backend;
use crate::metrics;

pub struct Endpoint {
    pub backend: Backend,
    /// The `Host` a route sends that does not preserve the client's.
    pub authority: HeaderValue,
    /// One cell for each worker.
    pub cells: Arc<[metrics::Endpoint]>,
}

impl Endpoint {
    pub fn new(backend: Backend, registry: &metrics::Registry) -> Self {
        let authority = backend.to_string();
        let cells = registry.endpoints.member(&authority);
        let authority =
            HeaderValue::try_from(authority).expect("the configuration admits host names and ports only");
        Self { backend, authority, cells }
    }

    /// Every address of the name, in the resolver's order.
    pub async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = self.backend.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, self.backend.port)]);
        }
        let found = tokio::net::lookup_host((self.backend.host.as_str(), self.backend.port)).await?;
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }
}
