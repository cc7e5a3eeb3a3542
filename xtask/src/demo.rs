//! The demo backend: a small list of users over HTTP/1.1, so that a first request has something behind it.
//!
//! `cargo xtask run` starts it in a thread. A thread serves each connection; nothing is kept beyond the run.
//! It reads no chunked bodies and answers 411 to them.

use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

const MAX_HEAD_BYTES: u64 = 16 * 1024;
const MAX_BODY_BYTES: u64 = 64 * 1024;
const MAX_USERS: usize = 1000;
const PATH: &str = "/api/users";

/// A demo backend that has its port and waits to serve.
pub struct Demo {
    listener: TcpListener,
    users: Arc<Mutex<Vec<String>>>,
}

struct Request {
    method: String,
    path: String,
    if_none_match: Option<String>,
    close: bool,
    body: Vec<u8>,
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Demo {
    pub fn bind(addr: SocketAddr) -> io::Result<Demo> {
        let users = ["Ada", "Grace", "Linus"].map(String::from).to_vec();
        Ok(Demo { listener: TcpListener::bind(addr)?, users: Arc::new(Mutex::new(users)) })
    }

    /// Serves until the process ends.
    pub fn serve(self) {
        for stream in self.listener.incoming().filter_map(Result::ok) {
            let users = self.users.clone();
            // A connection that breaks has nobody left to be told.
            std::thread::spawn(move || converse(&stream, &users));
        }
    }
}

fn converse(stream: &TcpStream, users: &Mutex<Vec<String>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let (request, answer) = match read(&mut reader)? {
            None => return Ok(()),
            Some(Ok(request)) => {
                let answer = respond(&request, &mut users.lock().unwrap_or_else(PoisonError::into_inner));
                (Some(request), answer)
            }
            Some(Err(status)) => (None, Answer::new(status, json!({ "error": status }))),
        };
        let close = request.as_ref().is_none_or(|request| request.close);
        let head_only = request.is_some_and(|request| request.method == "HEAD");
        write(stream, &answer, close, head_only)?;
        if close {
            return Ok(());
        }
    }
}

fn write(mut stream: &TcpStream, answer: &Answer, close: bool, head_only: bool) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {}\r\n", answer.status);
    answer.headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
    if answer.status.starts_with("304") {
        text.push_str("\r\n");
        return stream.write_all(text.as_bytes());
    }
    if close {
        text.push_str("Connection: close\r\n");
    }
    text.push_str(&format!(
        "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        answer.body.len()
    ));
    if !head_only {
        text.push_str(&answer.body);
    }
    stream.write_all(text.as_bytes())
}

/// Reads a request; `None` at the end of the connection, the status to refuse it with where it is not one.
fn read(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Result<Request, &'static str>>> {
    let mut head = reader.by_ref().take(MAX_HEAD_BYTES);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(Some(Err("400 Bad Request")));
    };
    let mut request = Request {
        method: method.to_owned(),
        path: target.split('?').next().unwrap_or_default().to_owned(),
        if_none_match: None,
        close: words.next() != Some("HTTP/1.1"),
        body: Vec::new(),
    };
    let mut length = 0;
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(Some(Err("400 Bad Request")));
        }
        let Some((name, value)) = line.split_once(':') else { break };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "transfer-encoding" => return Ok(Some(Err("411 Length Required"))),
            "content-length" => length = value.parse().unwrap_or(u64::MAX),
            "connection" => request.close |= value.eq_ignore_ascii_case("close"),
            "if-none-match" => request.if_none_match = Some(value.to_owned()),
            _ => {}
        }
    }
    if length > MAX_BODY_BYTES {
        return Ok(Some(Err("413 Content Too Large")));
    }
    reader.take(length).read_to_end(&mut request.body)?;
    Ok(Some(Ok(request)))
}

fn respond(request: &Request, users: &mut Vec<String>) -> Answer {
    let user = |(at, name): (usize, &String)| json!({ "id": at + 1, "name": name });
    let rest = request.path.strip_prefix(PATH).unwrap_or("none");
    let number = rest.strip_prefix('/').and_then(|digits| digits.parse::<usize>().ok());
    match (request.method.as_str(), rest, number) {
        ("GET" | "HEAD", "" | "/", _) => {
            list(users.iter().enumerate().map(user).collect(), request.if_none_match.as_deref())
        }
        ("POST", "" | "/", _) => match name_in(&request.body) {
            None => Answer::new(
                "400 Bad Request",
                json!({ "error": "a body like {\"name\": \"Ada\"} is needed" }),
            ),
            Some(_) if users.len() == MAX_USERS => {
                Answer::new("507 Insufficient Storage", json!({ "error": "the demo is full" }))
            }
            Some(name) => {
                users.push(name);
                let at = users.len() - 1;
                Answer::new("201 Created", user((at, &users[at])))
                    .with("Location", format!("{PATH}/{}", at + 1))
            }
        },
        (_, "" | "/", _) => Answer::new("405 Method Not Allowed", json!({ "error": "GET or POST" }))
            .with("Allow", "GET, HEAD, POST".into()),
        ("GET" | "HEAD", _, Some(number @ 1..)) if number <= users.len() => {
            Answer::new("200 OK", user((number - 1, &users[number - 1])))
        }
        (_, _, _) => Answer::new("404 Not Found", json!({ "error": "there is nothing here" })),
    }
}

fn list(users: Vec<Value>, if_none_match: Option<&str>) -> Answer {
    let answer = Answer::new("200 OK", Value::Array(users));
    let mut hasher = DefaultHasher::new();
    hasher.write(answer.body.as_bytes());
    let tag = format!("\"{:016x}\"", hasher.finish());
    let unchanged = if_none_match == Some(tag.as_str());
    let answer = if unchanged { Answer { status: "304 Not Modified", ..answer } } else { answer };
    answer.with("ETag", tag).with("Cache-Control", "public, max-age=5".into())
}

fn name_in(body: &[u8]) -> Option<String> {
    Some(serde_json::from_slice::<Value>(body).ok()?.get("name")?.as_str()?.to_owned())
}

impl Answer {
    fn new(status: &'static str, body: Value) -> Answer {
        Answer { status, headers: Vec::new(), body: format!("{body}\n") }
    }

    fn with(mut self, name: &'static str, value: String) -> Answer {
        self.headers.push((name, value));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends requests over one connection and reads until it ends.
    fn exchange(requests: &str) -> String {
        let demo = Demo::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let addr = demo.listener.local_addr().unwrap();
        std::thread::spawn(move || demo.serve());
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.write_all(requests.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).unwrap();
        answers
    }

    #[test]
    fn each_request_has_its_answer() {
        let cases = [
            ("GET /api/users HTTP/1.1\r\n\r\n", "200 OK", "\"name\":\"Ada\""),
            ("GET /api/users?page=1 HTTP/1.1\r\n\r\n", "200 OK", "Cache-Control: public, max-age=5\r\n"),
            ("GET /api/users/2 HTTP/1.1\r\n\r\n", "200 OK", "{\"id\":2,\"name\":\"Grace\"}\n"),
            ("GET /api/users/4 HTTP/1.1\r\n\r\n", "404 Not Found", "error"),
            ("GET /api/users/0 HTTP/1.1\r\n\r\n", "404 Not Found", "error"),
            ("GET /other HTTP/1.1\r\n\r\n", "404 Not Found", "error"),
            ("DELETE /api/users HTTP/1.1\r\n\r\n", "405 Method Not Allowed", "Allow: GET, HEAD, POST\r\n"),
            (
                "POST /api/users HTTP/1.1\r\nContent-Length: 15\r\n\r\n{\"name\": \"Bob\"}",
                "201 Created",
                "Location: /api/users/4\r\n",
            ),
            ("POST /api/users HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", "400 Bad Request", "error"),
            ("POST /api/users HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", "413 Content Too Large", "error"),
            (
                "POST /api/users HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "411 Length Required",
                "error",
            ),
            ("nonsense\r\n\r\n", "400 Bad Request", "Connection: close\r\n"),
            ("GET /api/users HTTP/1.1\r\nConnection: close\r\n\r\n", "200 OK", "Connection: close\r\n"),
        ];
        for (request, status, part) in cases {
            let answer = exchange(request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request:?}: {answer}");
            assert!(answer.contains(part), "{request:?}: {answer}");
        }
    }

    #[test]
    fn a_connection_serves_many_and_remembers() {
        let answers = exchange(
            "POST /api/users HTTP/1.1\r\nContent-Length: 15\r\n\r\n{\"name\": \"Bob\"}\
             HEAD /api/users HTTP/1.1\r\n\r\n\
             GET /api/users/4 HTTP/1.1\r\n\r\n",
        );
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 3, "{answers}");
        assert!(answers.ends_with("\r\n\r\n{\"id\":4,\"name\":\"Bob\"}\n"), "{answers}");
    }

    #[test]
    fn an_unchanged_list_is_not_sent_again() {
        let first = exchange("GET /api/users HTTP/1.1\r\n\r\n");
        let tag = first.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap();
        let second = exchange(&format!("GET /api/users HTTP/1.1\r\nIf-None-Match: {tag}\r\n\r\n"));
        assert!(second.starts_with("HTTP/1.1 304 Not Modified\r\n"), "{second}");
        assert!(second.ends_with("\r\n\r\n"), "{second}");
    }
}
