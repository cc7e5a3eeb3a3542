//! The admin API as a program asks it: a connection for each request, over the Unix socket or over TCP.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::Value;

use crate::{Gateway, Message, PATIENCE};

/// Where it is asked, and with which fields.
#[derive(Clone)]
pub struct Api {
    at: Place,
    fields: String,
}

#[derive(Clone)]
enum Place {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// Both kinds of stream.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Api {
    /// The control socket that stands beside the gateway's configuration.
    pub fn of(gateway: &Gateway) -> Self {
        let at = Place::Unix(gateway.directory().join("control.sock"));
        Self { at, fields: "Host: localhost\r\n".to_owned() }
    }

    pub fn tcp(address: SocketAddr) -> Self {
        Self { at: Place::Tcp(address), fields: format!("Host: {address}\r\n") }
    }

    /// Another `Host`.
    pub fn called(&self, host: &str) -> Self {
        Self { fields: format!("Host: {host}\r\n"), ..self.clone() }
    }

    /// With this field too.
    pub fn with(&self, name: &str, value: &str) -> Self {
        Self { fields: format!("{}{name}: {value}\r\n", self.fields), ..self.clone() }
    }

    #[track_caller]
    pub fn get(&self, target: &str) -> Message {
        self.ask("GET", target, "")
    }

    #[track_caller]
    pub fn delete(&self, target: &str) -> Message {
        self.ask("DELETE", target, "")
    }

    /// A document, as what it is.
    #[track_caller]
    pub fn post(&self, target: &str, document: &Value) -> Message {
        self.with("Content-Type", "application/json").ask("POST", target, document.to_string())
    }

    #[track_caller]
    pub fn ask(&self, method: &str, target: &str, body: impl AsRef<[u8]>) -> Message {
        let body = body.as_ref();
        let length = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        let head = format!("{method} {target} HTTP/1.1\r\n{}{length}\r\n", self.fields);
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).expect("the gateway reads");
        // A refusal may come before the last byte is taken.
        let _ = stream.write_all(body);
        Message::read_response(&mut BufReader::new(stream), method).unwrap_or_else(|error| panic!("{error}"))
    }

    fn connect(&self) -> Box<dyn Stream> {
        match &self.at {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path).expect("the gateway listens");
                stream.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
                Box::new(stream)
            }
            Place::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, PATIENCE).expect("the gateway listens");
                stream.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
                Box::new(stream)
            }
        }
    }
}
