//! DNS as a stub resolver speaks it: asks name servers for the addresses of a name, and for how long they hold.
//!
//! Blocking, called by `resolve` on threads of its own. It caches nothing and follows no referrals; servers are
//! expected to recurse. One question at a time: nobody waits for it but the next look-up.

mod message;
pub mod system;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use message::{Kind, Reply};

/// How long one server has for one answer.
const WAIT: Duration = Duration::from_secs(1);
/// More than a server sends to those who do not say that they take more than 512 bytes.
const DATAGRAM: usize = 4096;

/// Why there are no addresses.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the name does not exist")]
    NotFound,
    #[error("it has no address")]
    Empty,
    #[error("{0} refuses to answer (code {1})")]
    Refused(SocketAddr, u8),
    #[error("{0} answers with something malformed")]
    Malformed(SocketAddr),
    #[error("{0} does not answer within {WAIT:?}")]
    Silent(SocketAddr),
    #[error("{0} cannot be asked: {1}")]
    Unreachable(SocketAddr, io::Error),
    #[error("it is too long for a name")]
    TooLong,
    #[error("{0}")]
    System(io::Error),
}

impl Failure {
    /// As metrics name it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Empty => "no_address",
            Self::Refused(..) => "refused",
            Self::Malformed(_) => "malformed",
            Self::Silent(_) => "timeout",
            Self::Unreachable(..) => "unreachable",
            Self::TooLong => "too_long",
            Self::System(_) => "system",
        }
    }

    /// Said of the name, so another server would say the same.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::NotFound | Self::Empty | Self::TooLong)
    }
}

/// The addresses of a name, and how long they hold.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub addresses: Vec<IpAddr>,
    pub ttl: Duration,
}

/// All addresses of `name`, those of the family first that the system has a way to.
///
/// The first of `servers` is asked, the next one where it gives no answer, and all of them `rounds` times.
pub fn resolve(name: &str, servers: &[SocketAddr], rounds: usize) -> Result<Answer, Failure> {
    let v4 = match ask(name, Kind::A, servers, rounds) {
        Ok(answer) => Some(answer),
        Err(Failure::Empty) => None,
        Err(failure) => return Err(failure),
    };
    match (v4, ask(name, Kind::Aaaa, servers, rounds)) {
        (None, v6) => v6,
        // Servers that cannot answer for IPv6 are as good as those that have none.
        (Some(v4), Err(_)) => Ok(v4),
        (Some(v4), Ok(v6)) => {
            let ttl = v4.ttl.min(v6.ttl);
            let (first, then) = if is_routed(v6.addresses[0]) { (v6, v4) } else { (v4, v6) };
            Ok(Answer { addresses: [first.addresses, then.addresses].concat(), ttl })
        }
    }
}

/// Whether the system has a way there. Nothing is sent.
fn is_routed(address: IpAddr) -> bool {
    socket_to(SocketAddr::new(address, 9)).is_ok()
}

fn ask(name: &str, kind: Kind, servers: &[SocketAddr], rounds: usize) -> Result<Answer, Failure> {
    let mut last = Failure::System(io::Error::other("there is no name server to ask"));
    for server in std::iter::repeat_n(servers, rounds).flatten() {
        let query = message::query(random(), name, kind).ok_or(Failure::TooLong)?;
        match exchange(*server, &query, kind) {
            Err(failure) if !failure.is_final() => last = failure,
            answer => return answer,
        }
    }
    Err(last)
}

fn exchange(server: SocketAddr, query: &[u8], kind: Kind) -> Result<Answer, Failure> {
    let until = Instant::now() + WAIT;
    let broken = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Failure::Silent(server),
        ErrorKind::UnexpectedEof => Failure::Malformed(server),
        _ => Failure::Unreachable(server, error),
    };
    let socket = socket_to(server).map_err(broken)?;
    socket.send(query).map_err(broken)?;
    let mut datagram = [0; DATAGRAM];
    loop {
        socket.set_read_timeout(Some(left(until).map_err(broken)?)).map_err(broken)?;
        let length = match socket.recv(&mut datagram) {
            // With a timeout no wait goes on by itself after a signal, such as a profile's.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            received => received.map_err(broken)?,
        };
        match message::read(&datagram[..length], query, kind) {
            // An answer to somebody else, or a forged one.
            Reply::Stray => {}
            Reply::Truncated => break,
            reply => return judge(server, reply),
        }
    }
    let bytes = exchange_whole(server, query, until).map_err(broken)?;
    judge(server, message::read(&bytes, query, kind))
}

/// Over TCP, where the answer is too long for a datagram.
fn exchange_whole(server: SocketAddr, query: &[u8], until: Instant) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, left(until)?)?;
    let length = u16::try_from(query.len()).expect("a name is no longer than 255 bytes");
    stream.write_all(&[&length.to_be_bytes(), query].concat())?;
    let mut length = [0; 2];
    read_exact(&mut stream, &mut length, until)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    read_exact(&mut stream, &mut bytes, until)?;
    Ok(bytes)
}

/// Ends in time, even if the bytes come one by one.
fn read_exact(stream: &mut TcpStream, mut into: &mut [u8], until: Instant) -> io::Result<()> {
    while !into.is_empty() {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(into) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => into = &mut into[length..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn judge(server: SocketAddr, reply: Reply) -> Result<Answer, Failure> {
    match reply {
        Reply::Answer(answer) => Ok(answer),
        Reply::NotFound => Err(Failure::NotFound),
        Reply::Empty => Err(Failure::Empty),
        Reply::Refused(code) => Err(Failure::Refused(server, code)),
        Reply::Stray | Reply::Truncated | Reply::Malformed => Err(Failure::Malformed(server)),
    }
}

/// Hears of `address` alone, and of its port being closed.
fn socket_to(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    Ok(socket)
}

/// What others cannot guess, as the system's port of each question is.
fn random() -> u16 {
    RandomState::new().hash_one(Instant::now()) as u16
}
