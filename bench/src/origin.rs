//! The origin: the smallest server that can stand behind a proxy without being what is measured.
//!
//! One epoll and no thread of its own: the generator turns it between its own turns, so that the two never wait
//! for each other's time slice. It answers every request with 200: `/bytes/N` with a body of N bytes,
//! `/cached/N` with the same for every cache to keep for an hour, everything else, uploads included, with one of
//! [`SMALL_BODY_BYTES`]. It reads and drops request bodies. It has no
//! opinion on what it is sent beyond where a request ends.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use memchr::{memchr, memmem};
use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_nodelay;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, listen, recv, send};

use crate::poll::{Events, Interest, Poll, Ready};

pub const SMALL_BODY_BYTES: u64 = 150;
const LISTENER: usize = usize::MAX;
const SCRATCH_BYTES: usize = 256 * 1024;
const MAX_HEAD_BYTES: usize = 64 * 1024;
const BACKLOG: i32 = 4_096;
/// As many descriptors as one turn looks after.
pub const EVENTS: usize = 1024;
/// How long [`Origin::serve_during`] may take to notice that the work is done.
const STOP_LATENCY: Duration = Duration::from_millis(1);

/// An origin on a loopback port; it answers while somebody turns it.
pub struct Origin {
    pub addr: SocketAddr,
    /// How many requests it has answered.
    pub answered: Arc<AtomicU64>,
    listener: OwnedFd,
    poll: Poll,
    scratch: Vec<u8>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    answers: Answers,
}

struct Connection {
    socket: OwnedFd,
    request: Request,
    /// Answers that the socket did not take yet, and how much of the first has left.
    unsent: VecDeque<Arc<[u8]>>,
    sent: usize,
    blocked: bool,
    /// The last request asked for the end of the connection.
    closing: bool,
}

/// How far the request at the front of the stream has been read.
enum Request {
    Head(Vec<u8>),
    Body {
        left: u64,
        answer: Answer,
    },
    /// The last bytes are kept, to know the end when it comes in pieces.
    Chunked {
        tail: Vec<u8>,
        answer: Answer,
    },
}

/// What a request is answered with.
#[derive(Clone)]
struct Answer {
    bytes: Arc<[u8]>,
    close: bool,
}

/// Whole answers by body length, rendered once.
struct Answers {
    small: Arc<[u8]>,
    by_path: HashMap<Box<[u8]>, Arc<[u8]>>,
}

impl Answers {
    fn new() -> Answers {
        Answers { small: render(SMALL_BODY_BYTES, ""), by_path: HashMap::new() }
    }

    fn for_path(&mut self, path: &[u8]) -> Arc<[u8]> {
        if let Some(known) = self.by_path.get(path) {
            return known.clone();
        }
        let (digits, fields) = match (path.strip_prefix(b"/bytes/"), path.strip_prefix(b"/cached/")) {
            (Some(digits), _) => (digits, ""),
            // A validator as well: some caches keep nothing that they could not ask about again.
            (None, Some(digits)) => (digits, "Cache-Control: public, max-age=3600\r\nETag: \"1\"\r\n"),
            (None, None) => return self.small.clone(),
        };
        let length = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        let Some(length) = length else { return self.small.clone() };
        self.by_path.entry(path.into()).or_insert_with(|| render(length, fields)).clone()
    }
}

fn render(length: u64, fields: &str) -> Arc<[u8]> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n";
    let mut answer = format!("{head}{fields}Content-Length: {length}\r\n\r\n").into_bytes();
    answer.extend((0..length).map(|at| b"0123456789abcdef"[at as usize % 16]));
    answer.into()
}

impl Origin {
    /// Listens on a free loopback port.
    pub fn bind() -> io::Result<Origin> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        // The standard library asks for few; a proxy may open a thousand at once.
        listen(&listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let poll = Poll::new()?;
        poll.add(&listener, LISTENER, Interest::Read)?;
        Ok(Origin {
            addr,
            answered: Arc::default(),
            listener: listener.into(),
            poll,
            scratch: vec![0; SCRATCH_BYTES],
            connections: Vec::new(),
            free: Vec::new(),
            answers: Answers::new(),
        })
    }

    /// Answers from a thread of its own for as long as `work` takes.
    pub fn serve_during<T>(&mut self, work: impl FnOnce() -> T) -> T {
        struct StopOnDrop<'a>(&'a AtomicBool);
        impl Drop for StopOnDrop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stopped = &stop;
            scope.spawn(move || {
                let mut events = Events::with_capacity(EVENTS);
                while !stopped.load(Ordering::Relaxed) {
                    self.turn(&mut events, STOP_LATENCY);
                }
            });
            let _stop = StopOnDrop(&stop);
            work()
        })
    }

    /// Answers what is ready, waiting for it at most so long; says whether there was anything.
    pub fn turn(&mut self, events: &mut Events, wait: Duration) -> bool {
        self.poll.wait(events, wait).expect("our own epoll descriptor stays valid");
        for Ready { token, writable, .. } in events.iter() {
            match token {
                LISTENER => self.accept(),
                token if self.serve(token, writable).is_err() => {
                    self.connections[token] = None;
                    self.free.push(token);
                }
                _ => {}
            }
        }
        !events.is_empty()
    }

    fn accept(&mut self) {
        while let Ok(socket) = accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            let token = self.free.pop().unwrap_or(self.connections.len());
            if token == self.connections.len() {
                self.connections.push(None);
            }
            // A connection that is gone already says so when it is read.
            let _ = set_tcp_nodelay(&socket, true);
            if self.poll.add(&socket, token, Interest::Read).is_err() {
                self.free.push(token);
                continue;
            }
            self.connections[token] = Some(Connection {
                socket,
                request: Request::Head(Vec::new()),
                unsent: VecDeque::new(),
                sent: 0,
                blocked: false,
                closing: false,
            });
        }
    }

    /// Reads once and answers what is complete; an error ends the connection.
    fn serve(&mut self, token: usize, writable: bool) -> Result<(), Errno> {
        let Some(connection) = &mut self.connections[token] else { return Ok(()) };
        if writable && !connection.unsent.is_empty() {
            return connection.flush(token, &self.poll);
        }
        let bytes = match recv(&connection.socket, &mut self.scratch[..], RecvFlags::empty()) {
            Ok((0, _)) => return Err(Errno::CONNRESET),
            Ok((bytes, _)) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut input = &self.scratch[..bytes];
        while let Some(answer) = connection.request.take(&mut input, &mut self.answers)? {
            self.answered.fetch_add(1, Ordering::Relaxed);
            connection.closing |= answer.close;
            connection.unsent.push_back(answer.bytes);
        }
        connection.flush(token, &self.poll)
    }
}

impl Connection {
    fn flush(&mut self, token: usize, poll: &Poll) -> Result<(), Errno> {
        while let Some(answer) = self.unsent.front() {
            match send(&self.socket, &answer[self.sent..], SendFlags::NOSIGNAL) {
                Ok(bytes) => self.sent += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return self.wait_for_room(true, token, poll),
                Err(error) => return Err(error),
            }
            if self.sent == answer.len() {
                self.unsent.pop_front();
                self.sent = 0;
            }
        }
        if self.closing {
            return Err(Errno::SHUTDOWN);
        }
        self.wait_for_room(false, token, poll)
    }

    fn wait_for_room(&mut self, blocked: bool, token: usize, poll: &Poll) -> Result<(), Errno> {
        if self.blocked != blocked {
            self.blocked = blocked;
            let interest = if blocked { Interest::ReadWrite } else { Interest::Read };
            poll.change(&self.socket, token, interest).map_err(|_| Errno::BADF)?;
        }
        Ok(())
    }
}

impl Request {
    /// Takes the rest of one request from `input`; returns its answer once it is complete.
    fn take(&mut self, input: &mut &[u8], answers: &mut Answers) -> Result<Option<Answer>, Errno> {
        loop {
            let answer = match self {
                Request::Head(_) if input.is_empty() => return Ok(None),
                Request::Head(partial) => {
                    let before = partial.len();
                    let whole: &[u8] = if before == 0 {
                        input
                    } else {
                        partial.extend_from_slice(input);
                        partial
                    };
                    let Some(end) = memmem::find(whole, b"\r\n\r\n").map(|at| at + 4) else {
                        if before == 0 {
                            partial.extend_from_slice(input);
                        }
                        *input = &[];
                        return if partial.len() > MAX_HEAD_BYTES { Err(Errno::MSGSIZE) } else { Ok(None) };
                    };
                    let next = Request::after(&whole[..end], answers);
                    *input = &input[end - before..];
                    *self = next;
                    continue;
                }
                Request::Body { left, answer } => {
                    let taken = (*left).min(input.len() as u64);
                    *left -= taken;
                    *input = &input[taken as usize..];
                    if *left > 0 {
                        return Ok(None);
                    }
                    answer.clone()
                }
                Request::Chunked { tail, answer } => {
                    // Bodies that the bench sends hold no line ends, so the last chunk is where it looks to be.
                    let before = tail.len();
                    tail.extend_from_slice(input);
                    let Some(end) = memmem::find(tail, b"0\r\n\r\n").map(|at| at + 5) else {
                        tail.drain(..tail.len().saturating_sub(4));
                        *input = &[];
                        return Ok(None);
                    };
                    *input = &input[end - before..];
                    answer.clone()
                }
            };
            *self = Request::Head(Vec::new());
            return Ok(Some(answer));
        }
    }

    /// What follows a head.
    fn after(head: &[u8], answers: &mut Answers) -> Request {
        let line = &head[..memchr(b'\r', head).unwrap_or(head.len())];
        let mut words = line.split(|byte| *byte == b' ');
        let bodiless = matches!(words.next(), Some(b"GET" | b"HEAD"));
        let bytes = answers.for_path(words.next().unwrap_or_default());
        // As the generator writes it; proxies keep it to themselves.
        let answer = Answer { bytes, close: memmem::find(head, b"Connection: close").is_some() };
        if bodiless {
            return Request::Body { left: 0, answer };
        }
        let mut left = 0;
        for line in head.split(|byte| *byte == b'\n') {
            let Some(colon) = memchr(b':', line) else { continue };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"transfer-encoding") {
                return Request::Chunked { tail: Vec::new(), answer };
            }
            if name.eq_ignore_ascii_case(b"content-length") {
                left = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0);
            }
        }
        Request::Body { left, answer }
    }
}
