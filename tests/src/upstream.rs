//! A backend that does what a script says, byte by byte.
//!
//! Each accepted connection runs the script on a thread of its own. What the gateway sent is kept, so
//! that a test can look at it.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use crate::client::{reset, write_until_stalled};
use crate::{Gate, Message, PATIENCE};

pub struct Upstream {
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    stopped: AtomicBool,
    connections: AtomicUsize,
    requests: Mutex<Vec<Message>>,
}

/// One connection from the gateway.
pub struct Conn {
    /// From 0, in the order of acceptance.
    pub index: usize,
    pub reader: BufReader<TcpStream>,
    state: Arc<State>,
}

impl Upstream {
    /// Runs `script` for each connection.
    pub fn start(script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(State::default());
        let (this, script) = (state.clone(), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if this.stopped.load(Ordering::SeqCst) {
                    break;
                }
                stream.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
                stream.set_nodelay(true).expect("it is a TCP socket");
                let index = this.connections.fetch_add(1, Ordering::SeqCst);
                let conn = Conn { index, reader: BufReader::new(stream), state: this.clone() };
                let script = script.clone();
                std::thread::spawn(move || script(conn));
            }
        });
        Self { address, state }
    }

    /// Gives every request the same answer and keeps the connection.
    pub fn answering(answer: impl Into<String>) -> Self {
        let answer = answer.into();
        Self::start(move |mut conn| {
            while conn.request().is_some() {
                conn.send(&answer);
            }
        })
    }

    /// Answers 200 with an empty body.
    pub fn ok() -> Self {
        Self::answering(ok(""))
    }

    /// Tells of each request when it has come, and answers `body` from when the gate is open.
    pub fn gated(body: &str) -> (Self, mpsc::Receiver<()>, Gate) {
        let (came, arrived) = mpsc::channel();
        let (came, gate, answer) = (Mutex::new(came), Gate::default(), ok(body));
        let opened = gate.clone();
        let upstream = Self::start(move |mut conn| {
            while conn.request().is_some() {
                // The test may have seen enough.
                let _ = came.lock().expect("no panic while held").send(());
                opened.wait();
                conn.send(&answer);
            }
        });
        (upstream, arrived, gate)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Requests read so far, with their bodies.
    pub fn requests(&self) -> Vec<Message> {
        self.state.requests.lock().expect("no panic while held").clone()
    }

    /// The request read last.
    #[track_caller]
    pub fn last(&self) -> Message {
        self.requests().pop().expect("a request came")
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then lets go of the port.
        let _ = TcpStream::connect(self.address);
    }
}

impl Conn {
    /// The next request, with its body; `None` when the gateway has closed.
    pub fn request(&mut self) -> Option<Message> {
        let request = Message::read_request(&mut self.reader).ok().flatten()?;
        self.state.requests.lock().expect("no panic while held").push(request.clone());
        Some(request)
    }

    /// The next request's head; its body stays to be read.
    pub fn head(&mut self) -> Option<Message> {
        Message::read_head(&mut self.reader).ok().flatten()
    }

    /// Sends; a gateway that has gone is no failure of the upstream.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.reader.get_mut().write_all(bytes.as_ref());
    }

    /// Sends no more, and goes on reading.
    pub fn half_close(&mut self) {
        let _ = self.reader.get_mut().shutdown(Shutdown::Write);
    }

    pub fn reset(self) {
        reset(self.reader.into_inner());
    }

    /// Waits until the gateway closes or resets the connection.
    pub fn wait_closed(&mut self) -> bool {
        let mut scrap = Vec::new();
        match self.reader.read_to_end(&mut scrap) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Writes `total` bytes until the gateway takes no more for `stalled`; returns how many it took.
    pub fn send_until_stalled(&mut self, total: usize, stalled: Duration) -> usize {
        let stream = self.reader.get_mut();
        stream.set_write_timeout(Some(stalled)).expect("it is not zero");
        let sent = write_until_stalled(stream, total);
        stream.set_write_timeout(None).expect("no timeout is a valid one");
        sent
    }
}

/// A 200 with a body of known length.
pub fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// An address of the loopback where nobody listens.
pub fn nowhere() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
    listener.local_addr().expect("it is bound")
}
