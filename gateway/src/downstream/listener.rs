//! Listening sockets: bound in one place, given to the workers, accepted from until the drain.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::{Warm, serve};
use crate::config::ListenAddr;
use crate::proxy::Proxy;

const BACKLOG: i32 = 4096;
/// Pause after a failed accept: descriptors or memory are short, and trying at once would spin.
const BACK_OFF: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", explain(source))]
pub struct BindError {
    pub address: ListenAddr,
    pub source: io::Error,
}

/// One socket per worker on the same address; the kernel spreads connections over them.
pub fn bind(address: ListenAddr, workers: NonZeroUsize) -> Result<Vec<TcpListener>, BindError> {
    let bind_all = || {
        let first = match open(address.socket_addr(), matches!(address, ListenAddr::Any(_))) {
            // A host without IPv6.
            Err(error) if is_without_ipv6(&error) && matches!(address, ListenAddr::Any(_)) => {
                open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())), false)
            }
            opened => opened,
        }?;
        let bound = first.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        let mut all = vec![first];
        for _ in 1..workers.get() {
            all.push(socket(bound, true, matches!(address, ListenAddr::Any(_)))?);
        }
        for listener in &all {
            listener.listen(BACKLOG)?;
        }
        Ok(all.into_iter().map(TcpListener::from).collect())
    };
    bind_all().map_err(|source| BindError { address, source })
}

/// Accepts until `drain` is set and the queue is empty.
pub async fn accept(
    proxy: Rc<Proxy>,
    listener: tokio::net::TcpListener,
    drain: tokio::sync::watch::Receiver<bool>,
) {
    let warm = Rc::new(Warm::default());
    let cells = &proxy.registry.workers[proxy.worker];
    let mut draining = drain.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = draining.wait_for(|draining| *draining) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                cells.accepted.add(1);
                tokio::task::spawn_local(serve(proxy.clone(), warm.clone(), stream, peer));
            }
            // The client left while it waited.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if cells.accept_errors.get() == 0 {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                }
                cells.accept_errors.add(1);
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

fn open(address: SocketAddr, both_families: bool) -> io::Result<Socket> {
    // With SO_REUSEPORT a second gateway would share the port in silence: ask without it first.
    if address.port() != 0 {
        drop(socket(address, false, both_families)?);
    }
    socket(address, true, both_families)
}

fn socket(address: SocketAddr, shared: bool, both_families: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!both_families)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    // Accepted sockets inherit it, which saves a call each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable) || error.raw_os_error() == Some(EAFNOSUPPORT)
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is taken; stop the program that holds it (`ss -ltnp` shows it) or choose another".into()
        }
        io::ErrorKind::PermissionDenied => {
            "not permitted; a port below 1024 needs root or CAP_NET_BIND_SERVICE".into()
        }
        io::ErrorKind::AddrNotAvailable => "this host has no such address".into(),
        _ => error.to_string(),
    }
}
