//! Writes that the socket takes in part, and those that it does not take at all.

use super::*;
use crate::timer::{TICK, Wheel};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::time::Instant;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

/// An `Io` that nobody reads from yet, and the other end.
async fn connected(wheel: &Rc<Wheel>) -> (Rc<Io>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reader = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let task = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    let client = Client::new(peer, wheel, TICK, &task);
    (Io::new(stream, client, Rc::default()), reader)
}

#[tokio::test]
async fn a_head_that_the_socket_takes_in_part_is_written_to_its_end() {
    // More than the socket buffers of both ends hold, in front of what hyper has written and behind it.
    let many = 64 << 20;
    for (lines, body) in [(many, 10), (10, 10), (10, many)] {
        let (io, mut reader) = connected(&Wheel::new(Instant::now())).await;
        let (lines, body) = ("l".repeat(lines), "b".repeat(body));
        *io.client.lines.borrow_mut() = lines.clone().into_bytes();
        let status = "HTTP/1.1 200 OK\r\n";
        let (head, want) = (format!("{status}a: b\r\n\r\n"), format!("{status}{lines}a: b\r\n\r\n{body}"));
        let hyper = [head.as_bytes(), body.as_bytes()];
        let write = async {
            let mut half = Half(io.clone());
            let mut written = 0;
            while written < head.len() + body.len() {
                let left = [
                    hyper[0].get(written..).unwrap_or_default(),
                    &hyper[1][written.saturating_sub(head.len())..],
                ];
                let left: Vec<_> =
                    left.into_iter().filter(|piece| !piece.is_empty()).map(IoSlice::new).collect();
                written += poll_fn(|cx| Pin::new(&mut half).poll_write_vectored(cx, &left)).await.unwrap();
            }
            poll_fn(|cx| io.poll_write_before(cx)).await.unwrap();
        };
        let mut got = vec![0; want.len()];
        let (read, ()) = tokio::join!(reader.read_exact(&mut got), write);
        assert_eq!(read.unwrap(), want.len());
        assert!(got == want.as_bytes());
    }
}

/// A refusal is written like this, after hyper has gone.
#[tokio::test]
async fn a_client_that_does_not_read_is_waited_for_until_the_deadline() {
    // More than the socket buffers of both ends hold.
    let bytes = vec![b'x'; 64 << 20];
    let started = Instant::now();
    let wheel = Wheel::new(started);
    let (io, _reader) = connected(&wheel).await;
    let client = io.client.clone();
    client.timer.arm(client.timer.now().plus(TICK));
    let mut written = pin!(io.write_all(&bytes, || !client.timer.expired()));
    assert!(poll_fn(|cx| Poll::Ready(written.as_mut().poll(cx))).await.is_pending());
    wheel.advance(started + 4 * TICK);
    assert_eq!(written.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
}
