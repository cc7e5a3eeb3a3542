//! Receiving from a socket and sending to it as tokio does, by the system calls themselves.
//!
//! Where a process has threads, libc's `recv` and `send` are points at which one may be cancelled, with two locked
//! instructions and two calls around each: together a fiftieth of what an answer from the cache costs.

use std::io;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Receives once; 0: there will be no more.
pub fn poll_recv(socket: &TcpStream, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_read_ready(cx))?;
        let most = room.len();
        let got =
            once(socket, Interest::READABLE, most, || Ok(recv(socket, &mut *room, RecvFlags::empty())?.0));
        if got.is_ready() {
            return got;
        }
    }
}

/// Sends as much of `bytes` as the socket takes.
pub fn poll_send(socket: &TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_write_ready(cx))?;
        let sent =
            once(socket, Interest::WRITABLE, bytes.len(), || Ok(send(socket, bytes, SendFlags::NOSIGNAL)?));
        if sent.is_ready() {
            return sent;
        }
    }
}

/// Less than there was room for says that there is no more of it, and that an edge will tell of the next.
fn once(
    socket: &TcpStream,
    interest: Interest,
    most: usize,
    call: impl FnOnce() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    let mut part = None;
    let done = socket.try_io(interest, || match call()? {
        bytes if 0 < bytes && bytes < most => {
            part = Some(bytes);
            Err(io::ErrorKind::WouldBlock.into())
        }
        bytes => Ok(bytes),
    });
    match (part, done) {
        (Some(bytes), _) => Poll::Ready(Ok(bytes)),
        (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        (None, done) => Poll::Ready(done),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    fn pair() -> (std::net::TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = listener.accept().unwrap().0;
        ours.set_nonblocking(true).unwrap();
        (theirs, TcpStream::from_std(ours).unwrap())
    }

    fn run(test: impl Future) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(test);
    }

    async fn received(socket: &TcpStream, most: usize) -> Vec<u8> {
        let mut room = vec![0; most];
        let got = poll_fn(|cx| poll_recv(socket, cx, &mut room)).await.unwrap();
        room[..got].to_vec()
    }

    #[test]
    fn what_is_sent_comes_piece_by_piece_and_then_the_end() {
        run(async {
            let (mut theirs, ours) = pair();
            for _ in 0..3 {
                theirs.write_all(b"abcdef").unwrap();
                // A part leaves the rest, a whole buffer says nothing about what is behind it.
                assert_eq!(received(&ours, 4).await, b"abcd");
                assert_eq!(received(&ours, 2).await, b"ef");
                assert!(poll_fn(|cx| Poll::Ready(poll_recv(&ours, cx, &mut [0; 4]).is_pending())).await);
                theirs.write_all(b"gh").unwrap();
                assert_eq!(received(&ours, 4).await, b"gh");
            }
            drop(theirs);
            assert_eq!(received(&ours, 4).await, b"");
        });
    }

    #[test]
    fn what_the_socket_does_not_take_waits_until_it_does() {
        run(async {
            let (mut theirs, ours) = pair();
            let sent: Vec<u8> = (0..20_000_000u32).map(|n| (n % 251) as u8).collect();
            let reader = std::thread::spawn(move || {
                let mut got = Vec::new();
                theirs.read_to_end(&mut got).unwrap();
                got
            });
            let mut left = &sent[..];
            while !left.is_empty() {
                left = &left[poll_fn(|cx| poll_send(&ours, cx, left)).await.unwrap()..];
            }
            drop(ours);
            assert_eq!(reader.join().unwrap(), sent);
        });
    }

    #[test]
    fn a_reset_is_an_error() {
        run(async {
            let (theirs, ours) = pair();
            rustix::net::sockopt::set_socket_linger(&theirs, Some(std::time::Duration::ZERO)).unwrap();
            drop(theirs);
            let error = poll_fn(|cx| poll_recv(&ours, cx, &mut [0; 4])).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        });
    }
}
