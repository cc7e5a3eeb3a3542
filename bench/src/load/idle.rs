//! Idle connections: many keepalive connections that asked once, were answered, and now only stay.
//!
//! `side_by_side` holds them while it reads a system's memory. Nothing is timed here.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::response::Reader;

/// Opens `count` connections, each with one request answered on it, and keeps them open.
///
/// # Errors
/// The first connection that cannot be made, or whose answer is not a 200 that leaves it open.
pub fn hold(target: SocketAddr, request: &[u8], count: usize) -> io::Result<Vec<TcpStream>> {
    (0..count).map(|_| open(target, request)).collect()
}

/// Opens a connection on which one request has been answered with 200.
pub fn open(target: SocketAddr, request: &[u8]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    ask(&mut stream, request, 200)?;
    Ok(stream)
}

/// Sends one request and waits for its answer.
///
/// # Errors
/// Anything but an answer of `status` that leaves the connection open.
pub fn ask(stream: &mut TcpStream, request: &[u8], status: u16) -> io::Result<()> {
    stream.write_all(request)?;
    let (mut reader, mut buffer) = (Reader::default(), [0; 4096]);
    loop {
        let bytes = stream.read(&mut buffer)?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut input = &buffer[..bytes];
        match reader.feed(&mut input).map_err(io::Error::other)? {
            Some(answer) if answer.status == status && !answer.close => return Ok(()),
            Some(answer) => return Err(io::Error::other(format!("answered {answer:?}"))),
            None => {}
        }
    }
}
