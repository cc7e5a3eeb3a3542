//! A client that writes the bytes it is told to and reads what comes back.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::{Message, PATIENCE};

pub struct Client {
    pub reader: BufReader<TcpStream>,
}

impl Client {
    #[track_caller]
    pub fn connect(to: SocketAddr) -> Self {
        Self::over(TcpStream::connect_timeout(&to, PATIENCE).expect("the gateway listens"))
    }

    /// The same, where the gateway may refuse to take the connection.
    pub fn try_connect(to: SocketAddr) -> io::Result<Self> {
        TcpStream::connect_timeout(&to, PATIENCE).map(Self::over)
    }

    /// Connects from an address of the loopback: another client, as the gateway sees it.
    #[track_caller]
    pub fn connect_from(source: [u8; 4], to: SocketAddr) -> Self {
        Self::try_connect_from(source, to).expect("the gateway listens")
    }

    fn try_connect_from(source: [u8; 4], to: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there are sockets");
        socket.bind(&SocketAddr::from((source, 0)).into()).expect("the loopback has all of 127/8");
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(Self::over(socket.into()))
    }

    /// Fails unless a connection from `source` is reset, be it before whoever connects has noticed that it stands.
    #[track_caller]
    pub fn expect_reset(source: [u8; 4], to: SocketAddr) {
        let error =
            Self::try_connect_from(source, to).and_then(|mut client| client.rest()).expect_err("no reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }

    /// Over a connection that somebody else has opened.
    #[track_caller]
    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("it is not zero");
        stream.set_nodelay(true).expect("it is a TCP socket");
        Self { reader: BufReader::new(stream) }
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream().write_all(bytes.as_ref()).expect("the gateway reads");
        self
    }

    /// Sends what the gateway may refuse to take to its end.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream().write_all(bytes.as_ref())
    }

    /// The next response, interim ones included.
    #[track_caller]
    pub fn response(&mut self) -> Message {
        self.response_to("GET")
    }

    #[track_caller]
    pub fn response_to(&mut self, method: &str) -> Message {
        self.try_response(method).unwrap_or_else(|error| panic!("no response: {error}"))
    }

    pub fn try_response(&mut self, method: &str) -> io::Result<Message> {
        Message::read_response(&mut self.reader, method)
    }

    /// A response's head; its body stays to be read.
    #[track_caller]
    pub fn head(&mut self) -> Message {
        Message::read_head(&mut self.reader).expect("a head").expect("a head, not an end")
    }

    /// `GET target`, and its answer.
    #[track_caller]
    pub fn get(&mut self, target: &str) -> Message {
        self.send(get(target)).response()
    }

    /// Everything up to the gateway's end of the connection, or to its reset.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest)?;
        Ok(rest)
    }

    /// Fails unless the gateway closes without another byte.
    #[track_caller]
    pub fn expect_closed(&mut self) {
        match self.rest() {
            Ok(rest) => assert!(rest.is_empty(), "more came: {}", String::from_utf8_lossy(&rest)),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "it stayed open"),
        }
    }

    /// The client sends no more.
    pub fn half_close(&mut self) -> &mut Self {
        self.stream().shutdown(Shutdown::Write).expect("it is connected");
        self
    }

    /// Leaves with a reset.
    pub fn reset(self) {
        reset(self.reader.into_inner());
    }

    /// Writes `total` bytes until the other side takes no more for `stalled`; returns how many it took.
    pub fn send_until_stalled(&mut self, total: usize, stalled: Duration) -> usize {
        self.stream().set_write_timeout(Some(stalled)).expect("it is not zero");
        let sent = write_until_stalled(self.stream(), total);
        self.stream().set_write_timeout(Some(PATIENCE)).expect("it is not zero");
        sent
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }
}

/// A plain GET.
pub fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// Returns when a gateway of one worker has taken in whatever had been sent to it before, from either
/// side: it has accepted, read and answered on a connection that came later.
#[track_caller]
pub fn turn(gateway: SocketAddr) {
    assert_eq!(Client::connect(gateway).get("/%00").status(), 400, "refused without an upstream");
}

/// Closes with a reset instead of an orderly end.
pub fn reset(stream: TcpStream) {
    Socket::from(stream).set_linger(Some(Duration::ZERO)).expect("it is a TCP socket");
}

pub fn write_until_stalled(stream: &mut TcpStream, total: usize) -> usize {
    static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];
    let mut sent = 0;
    while sent < total {
        match stream.write(&PIECE[..PIECE.len().min(total - sent)]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return sent,
            Err(error) => panic!("cannot write: {error}"),
        }
    }
    sent
}
