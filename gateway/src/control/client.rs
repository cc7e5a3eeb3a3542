//! The other end of the control socket: what the command line asks, and a gateway that is to follow this one.

use std::error::Error;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::PATIENCE;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub document: Option<Value>,
    /// How long the answer may take.
    patience: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no gateway answers at {}: {source}{}", .socket.display(), advice(.source))]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("what answers at {} is no gateway of this version: {source}", .socket.display())]
    Nonsense { socket: PathBuf, source: Box<dyn Error + Send + Sync> },
}

impl Request {
    pub fn get(target: impl Into<String>) -> Self {
        Self { method: Method::GET, target: target.into(), document: None, patience: PATIENCE }
    }

    pub fn delete(target: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(target) }
    }

    /// Has it do something that takes no document.
    pub fn act(target: impl Into<String>) -> Self {
        Self { method: Method::POST, ..Self::get(target) }
    }

    pub fn put(target: impl Into<String>, document: &impl Serialize) -> Self {
        Self { method: Method::PUT, ..Self::post(target, document) }
    }

    pub fn post(target: impl Into<String>, document: &impl Serialize) -> Self {
        let document = serde_json::to_value(document).expect("it has string keys and numbers only");
        Self { method: Method::POST, document: Some(document), ..Self::get(target) }
    }

    /// For what takes its time.
    pub fn answered_within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        let Self { method, target, document, .. } = self;
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
        match document.as_ref().map(Value::to_string) {
            Some(body) => {
                text += &format!(
                    "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
            }
            None => text += "\r\n",
        }
        text.into_bytes()
    }
}

/// Asks the gateway behind `socket` for a document; inside is why it says no.
pub fn ask(socket: &Path, request: &Request) -> Result<Result<Value, String>, AskError> {
    let nonsense =
        |source: serde_json::Error| AskError::Nonsense { socket: socket.to_owned(), source: source.into() };
    match fetch(socket, request)? {
        Ok(body) => serde_json::from_slice(&body).map(Ok).map_err(nonsense),
        Err(refusal) => Ok(Err(refusal)),
    }
}

/// The same for what is no document.
pub fn fetch(socket: &Path, request: &Request) -> Result<Result<Vec<u8>, String>, AskError> {
    let exchange = || -> io::Result<Vec<u8>> {
        let mut stream = connect(socket)?;
        stream.set_read_timeout(Some(request.patience))?;
        stream.write_all(&request.bytes())?;
        // A connection is one request.
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
    };
    let answer = exchange().map_err(|source| AskError::Unreachable { socket: socket.to_owned(), source })?;
    understand(answer).map_err(|source| AskError::Nonsense { socket: socket.to_owned(), source })
}

fn understand(mut answer: Vec<u8>) -> Result<Result<Vec<u8>, String>, Box<dyn Error + Send + Sync>> {
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = head.parse(&answer)? else {
        return Err("its answer breaks off".into());
    };
    let code = head.code;
    let body = answer.split_off(length);
    match code {
        Some(200..=299) => Ok(Ok(body)),
        _ => {
            let document: Value = serde_json::from_slice(&body)?;
            Ok(Err(document["detail"].as_str().ok_or("it does not say why not")?.to_owned()))
        }
    }
}

/// Asks for something in a line of JSON and keeps the connection: what follows is between the two.
pub(crate) fn converse<A: DeserializeOwned>(
    socket: &Path,
    request: &impl Serialize,
) -> Result<(A, UnixStream), AskError> {
    let exchange = || -> io::Result<(String, UnixStream)> {
        let mut stream = connect(socket)?;
        let mut line = serde_json::to_string(request).expect("it has string keys and numbers only");
        line.push('\n');
        stream.write_all(line.as_bytes())?;
        let answer = read_line(&stream)?;
        if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok((answer, stream)) }
    };
    let (answer, stream) =
        exchange().map_err(|source| AskError::Unreachable { socket: socket.to_owned(), source })?;
    let understood = serde_json::from_str(&answer);
    let answer = understood
        .map_err(|source| AskError::Nonsense { socket: socket.to_owned(), source: source.into() })?;
    Ok((answer, stream))
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Byte by byte: what comes behind the line may carry descriptors, which a buffer would lose.
fn read_line(mut stream: &UnixStream) -> io::Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    String::from_utf8(line).map_err(io::Error::other)
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "; is it running, with this `control.socket` in its configuration?"
        }
        io::ErrorKind::PermissionDenied => "; ask as the user who started it",
        io::ErrorKind::WouldBlock => "; it is stopped, or too busy to answer",
        _ => "",
    }
}
