//! Listening sockets: bound in one place, given to the workers, accepted from until the drain.

use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::{NonZeroU32, NonZeroUsize};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use gateway_common::standing::Class;
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;

use super::crowd::{Affordable, Crowd};
use super::io::Scratch;
use super::{Origin, Warm, of_source, serve};
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

/// One socket per worker on the same address; the kernel spreads connections over them. `inherited`: those that
/// another process has opened there.
pub fn bind(
    address: ListenAddr,
    workers: NonZeroUsize,
    mut inherited: Vec<TcpListener>,
) -> Result<Vec<TcpListener>, BindError> {
    inherited.truncate(workers.get());
    let both_families = matches!(address, ListenAddr::Any(_));
    let more = |bound: SocketAddr, have: usize| {
        let more = (have..workers.get()).map(|_| socket(bound, true, both_families && bound.is_ipv6()));
        more.collect::<io::Result<Vec<Socket>>>()
    };
    let bind_all = || {
        if let Some(first) = inherited.first() {
            let bound = first.local_addr()?;
            for socket in more(bound, inherited.len())? {
                socket.listen(BACKLOG)?;
                inherited.push(socket.into());
            }
            return Ok(inherited);
        }
        let first = match open(address.socket_addr(), both_families) {
            // A host without IPv6.
            Err(error) if is_without_ipv6(&error) && both_families => {
                open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())), false)
            }
            opened => opened,
        }?;
        let bound = first.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        let mut all = vec![first];
        all.extend(more(bound, 1)?);
        for listener in &all {
            listener.listen(BACKLOG)?;
        }
        Ok(all.into_iter().map(TcpListener::from).collect())
    };
    let bind_all = bind_all;
    bind_all().map_err(|source| BindError { address, source })
}

/// A worker's own listener, and what becomes of the connections it accepts.
pub struct Listener {
    proxy: Rc<Proxy>,
    warm: Rc<Warm>,
    pub crowd: Rc<Crowd>,
    /// It listens; the runtime waits for it as for a stream. A listener of its own would make each connection known to
    /// the poller before anybody has decided on it.
    socket: tokio::net::TcpStream,
}

impl Listener {
    pub fn new(proxy: &Rc<Proxy>, socket: TcpListener) -> io::Result<Self> {
        let socket = tokio::net::TcpStream::from_std(OwnedFd::from(socket).into())?;
        let affordable = Affordable::with(proxy.registry.workers.len());
        let warm = Rc::new(Warm::new(Scratch::with(affordable.pipes)));
        Ok(Self { proxy: proxy.clone(), warm, crowd: Crowd::new(proxy), socket })
    }

    /// Accepts until `end`.
    pub async fn accept_until(&self, end: impl Future) {
        let mut end = pin!(end);
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = self.socket.async_io(Interest::READABLE, || accept(&self.socket)) => accepted,
                _ = &mut end => return,
            };
            match accepted.and_then(|(stream, peer)| self.admit(stream, peer)) {
                Ok(()) => {}
                Err(error) if has_left(&error) => {}
                Err(error) => {
                    self.failed(&error);
                    self.proxy.wheel.sleep(BACK_OFF).await;
                }
            }
        }
    }

    /// Lets nobody begin to connect; whoever has begun still arrives. Bound to an interface that cannot be, the socket
    /// is found by no packet but those of connections under way. A filter over the TCP header would do the same,
    /// and newer kernels want CAP_NET_ADMIN for it, which is long given up.
    pub fn refuse_new(&self) {
        if let Err(error) = SockRef::from(&self.socket).bind_device_by_index_v4(Some(NO_INTERFACE)) {
            tracing::warn!(%error, "cannot keep new connections away while draining; some may be reset");
        }
    }

    /// Accepts what still waits, for it would be reset, and closes the socket.
    pub fn close(self) {
        // Without the runtime, which hears of the queue only now and then, and lets a task accept so many.
        loop {
            match accept(&self.socket).and_then(|(stream, peer)| self.admit(stream, peer)) {
                Ok(()) => {}
                Err(error) if has_left(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.failed(&error),
            }
        }
    }

    /// Decides before the runtime or a task knows of the connection: one that is refused costs accept and close.
    fn admit(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let proxy = &self.proxy;
        let cells = &proxy.registry.workers[proxy.worker];
        cells.accepted.add(1);
        let origin = if proxy.local().snapshot.config.proxy_protocol {
            Origin::Relay
        } else {
            match of_source::enter(proxy, peer.ip(), false) {
                Ok(of_source) => Origin::Peer(of_source),
                Err(of_source::Refused) => {
                    reset(&stream);
                    return Ok(());
                }
            }
        };
        let Some(seat) = self.crowd.admit(peer.ip()) else {
            cells.refused_in_all.add(1);
            // It is told why if that costs nothing.
            let _ = turn_away(stream, &proxy.turn_away());
            return Ok(());
        };
        let stream = tokio::net::TcpStream::from_std(stream)?;
        tokio::task::spawn_local(serve(proxy.clone(), self.warm.clone(), seat, stream, peer, origin));
        Ok(())
    }

    fn failed(&self, error: &io::Error) {
        let cells = &self.proxy.registry.workers[self.proxy.worker];
        if cells.accept_errors.get() == 0 {
            tracing::warn!(%error, "cannot accept connections");
        }
        cells.accept_errors.add(1);
        // Descriptors or memory are short: what nobody uses makes room for the next try.
        self.crowd.evict(Class::Proven);
    }
}

/// The kernel counts interfaces from 1 up.
const NO_INTERFACE: NonZeroU32 = NonZeroU32::new(i32::MAX as u32).unwrap();

/// The next connection that waits, which blocks nobody.
fn accept(listener: impl AsFd) -> io::Result<(TcpStream, SocketAddr)> {
    let (socket, peer) = acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    Ok((socket.into(), peer.ok_or(io::ErrorKind::ConnectionAborted)?))
}

/// Has it closed without a farewell, which the other end would have to answer, and of which nothing stays behind here.
fn reset(stream: &TcpStream) {
    // It closes in any case.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Answers whoever has asked already, without waiting for anything, and closes.
fn turn_away(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    // Closing over unread bytes would reset the connection under the answer.
    let _ = stream.read(&mut [0; 4096])?;
    stream.write_all(answer)
}

/// The client left while it waited.
fn has_left(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionAborted
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
