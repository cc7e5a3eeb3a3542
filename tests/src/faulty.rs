//! Backends that do one thing wrong, and backends that go away and come back at the same address.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::upstream::ok;
use crate::{Conn, Message, PATIENCE, Upstream};

/// What a backend does to each request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Takes the connection and never reads.
    AcceptAndHang,
    ResetOnAccept,
    /// Reads the request and says nothing.
    Silent,
    Close,
    Reset,
    HalfAHeadThenClose,
    HalfAHeadThenStall,
    Garbage,
    Status(u16),
    /// 503, and not before so many seconds.
    RetryAfter(u32),
    /// A head that announces ten bytes, three of them, and then:
    CloseAmidBody,
    ResetAmidBody,
    StallAmidBody,
    /// A chunk longer than it says.
    BadChunk,
    /// A byte now and then, without an end.
    Drip,
    /// A whole answer, and no more after it.
    HalfClose,
    /// A whole answer, late.
    Delay(Duration),
}

impl Fault {
    /// A backend with this fault.
    pub fn start(self) -> Upstream {
        Upstream::start(move |conn| self.run(conn))
    }

    fn run(self, mut conn: Conn) {
        match self {
            Self::AcceptAndHang => {
                // Not a byte is read before the gateway has given up.
                wait_for_end(&conn, PATIENCE);
                return;
            }
            Self::ResetOnAccept => return conn.reset(),
            _ => {}
        }
        while conn.request().is_some() {
            match self {
                Self::AcceptAndHang | Self::ResetOnAccept => unreachable!("they read nothing"),
                Self::Silent => drop(conn.wait_closed()),
                Self::Close => return,
                Self::Reset => return conn.reset(),
                Self::HalfAHeadThenClose => return conn.send("HTTP/1.1 200 OK\r\nContent-"),
                Self::HalfAHeadThenStall => {
                    conn.send("HTTP/1.1 200 OK\r\nContent-");
                    conn.wait_closed();
                }
                Self::Garbage => conn.send("\u{1}\u{2}\u{3} what is this\r\n\r\n"),
                Self::Status(status) => {
                    conn.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"))
                }
                Self::RetryAfter(seconds) => conn
                    .send(format!("HTTP/1.1 503 X\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\n\r\n")),
                Self::CloseAmidBody => return conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
                Self::ResetAmidBody => {
                    conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
                    // A reset overtakes what it follows; nobody reads the rest either way.
                    return conn.reset();
                }
                Self::StallAmidBody => {
                    conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
                    conn.wait_closed();
                }
                Self::BadChunk => {
                    conn.send(
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
                    );
                }
                Self::Drip => {
                    conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    while !has_ended(&mut conn, Duration::from_millis(20)) {
                        conn.send("1\r\na\r\n");
                    }
                }
                Self::HalfClose => {
                    conn.send(ok("whole"));
                    conn.half_close();
                }
                Self::Delay(delay) => {
                    has_ended(&mut conn, delay);
                    conn.send(ok("late"));
                }
            }
        }
    }
}

/// Waits for `time`, or until the gateway ends the connection: true then.
fn has_ended(conn: &mut Conn, time: Duration) -> bool {
    let stream = conn.reader.get_mut();
    stream.set_read_timeout(Some(time)).expect("it is not zero");
    let ended = !matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
    ended
}

/// The same without taking a byte that has come.
fn wait_for_end(conn: &Conn, time: Duration) {
    let stream = conn.reader.get_ref();
    let hung_up = rustix::event::PollFlags::RDHUP;
    let mut waits = [rustix::event::PollFd::new(stream, hung_up)];
    let time = rustix::event::Timespec { tv_sec: time.as_secs() as i64, tv_nsec: 0 };
    rustix::event::poll(&mut waits, Some(&time)).expect("it is a socket");
}

/// A backend that answers 200 with its address, and can be killed and started again.
pub struct Restartable {
    pub address: SocketAddr,
    served: Arc<AtomicUsize>,
    running: Option<Running>,
}

struct Running {
    stopped: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    acceptor: JoinHandle<()>,
}

impl Restartable {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let served = Arc::new(AtomicUsize::new(0));
        let running = Some(Running::start(listener, served.clone()));
        Self { address, served, running }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Requests answered so far.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    /// Stops listening and cuts every connection, whatever is under way on it.
    pub fn kill(&mut self) {
        let Some(Running { stopped, streams, acceptor }) = self.running.take() else { return };
        stopped.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then lets go of the port.
        let _ = TcpStream::connect(self.address);
        acceptor.join().expect("it does not panic");
        for stream in streams.lock().expect("no panic while held").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Listens again where it did before.
    #[track_caller]
    pub fn restart(&mut self) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there are sockets");
        socket.set_reuse_address(true).expect("it is a socket");
        socket.bind(&self.address.into()).expect("nobody else has taken the port");
        socket.listen(128).expect("it is bound");
        self.running = Some(Running::start(socket.into(), self.served.clone()));
    }
}

impl Drop for Restartable {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Running {
    fn start(listener: TcpListener, served: Arc<AtomicUsize>) -> Self {
        let (stopped, streams) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let acceptor = std::thread::spawn({
            let (stopped, streams) = (stopped.clone(), streams.clone());
            move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if stopped.load(Ordering::SeqCst) {
                        break;
                    }
                    let kept = stream.try_clone().expect("there is a descriptor left");
                    streams.lock().expect("no panic while held").push(kept);
                    let served = served.clone();
                    std::thread::spawn(move || answer(stream, &served));
                }
            }
        });
        Self { stopped, streams, acceptor }
    }
}

fn answer(stream: TcpStream, served: &AtomicUsize) {
    stream.set_nodelay(true).expect("it is a TCP socket");
    let body = stream.local_addr().map(|address| address.to_string()).unwrap_or_default();
    let mut reader = BufReader::new(stream);
    while let Ok(Some(_)) = Message::read_request(&mut reader) {
        served.fetch_add(1, Ordering::SeqCst);
        if reader.get_mut().write_all(ok(&body).as_bytes()).is_err() {
            return;
        }
    }
}
