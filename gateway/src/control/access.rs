//! Who may ask for what. The Unix socket's file has an owner, who may do everything; over TCP a token says who asks.

use std::hint::black_box;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use http::header::{AUTHORIZATION, HOST};
use http::{StatusCode, request};

use super::problem::Problem;
use crate::config::{self, SecretError};

/// What it takes to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Open,
    /// This host, or a token: it tells how the gateway is set up and how it fares.
    Local,
    /// A token: it names clients.
    Private,
    /// A token: it changes something.
    Change,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Through the Unix socket.
    Owner,
    Peer {
        /// On this host.
        is_local: bool,
        /// It calls the gateway by an address or as localhost. A page whose name was made to lead here does not.
        names_host: bool,
        token: Token,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// None is configured: whatever was sent is none.
    Unset,
    Absent,
    Wrong,
    Right,
}

/// Why no token is right.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("control.token_file {0}; it has to be readable for the user that the gateway runs as")]
    Read(#[from] SecretError),
    #[error(
        "control.token_file {}: holds less than {SHORTEST_TOKEN_BYTES} bytes, which could be guessed: \
         `openssl rand -hex 32` makes some",
        .file.display()
    )]
    Short { file: PathBuf },
}

const SHORTEST_TOKEN_BYTES: usize = 16;

/// A token as its file holds it, white space around it aside.
pub fn read_token(file: &Path) -> Result<Vec<u8>, TokenError> {
    let content = config::secret(file)?;
    match content.trim_ascii() {
        token if token.len() >= SHORTEST_TOKEN_BYTES => Ok(token.as_bytes().to_owned()),
        _ => Err(TokenError::Short { file: file.to_owned() }),
    }
}

impl Caller {
    /// `token`: what is to be sent; `None`: nothing would do.
    pub fn peer(address: IpAddr, head: &request::Parts, token: Option<&[u8]>) -> Self {
        let mut sent = head.headers.get_all(AUTHORIZATION).iter();
        let token = match (token, sent.next(), sent.next()) {
            (None, _, _) => Token::Unset,
            (Some(_), None, _) => Token::Absent,
            (Some(token), Some(sent), None) if is_bearer(sent.as_bytes(), token) => Token::Right,
            (Some(_), Some(_), _) => Token::Wrong,
        };
        let mut hosts = head.headers.get_all(HOST).iter();
        let host = match (head.uri.authority(), hosts.next(), hosts.next()) {
            (Some(authority), _, None) => Some(authority.as_str()),
            (None, Some(host), None) => host.to_str().ok(),
            (_, _, _) => None,
        };
        let names_host = host.is_some_and(is_of_this_host);
        Self::Peer { is_local: address.to_canonical().is_loopback(), names_host, token }
    }

    /// Whether anything at all is answered.
    pub fn enter(&self) -> Result<(), Problem> {
        match self {
            Self::Peer { token: Token::Wrong, .. } => {
                Err(Problem::new(StatusCode::UNAUTHORIZED, "the token is not that of control.token_file"))
            }
            Self::Peer { names_host: false, token: Token::Unset | Token::Absent, .. } => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "without a token the Host has to be an IP address or localhost, so that no web page can ask",
            )),
            Self::Peer { .. } | Self::Owner => Ok(()),
        }
    }

    pub fn may(&self, access: Access) -> Result<(), Problem> {
        match (self, access) {
            (Self::Owner | Self::Peer { token: Token::Right, .. }, _)
            | (_, Access::Open)
            | (Self::Peer { is_local: true, .. }, Access::Local) => Ok(()),
            (Self::Peer { token: Token::Unset, .. }, _) => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "over TCP this takes a token: name a file that holds one as control.token_file, or ask at \
                 control.socket",
            )),
            (Self::Peer { .. }, _) => Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "send \"Authorization: Bearer\" with the token of control.token_file, or ask at control.socket",
            )),
        }
    }
}

fn is_bearer(sent: &[u8], token: &[u8]) -> bool {
    const SCHEME: &[u8] = b"Bearer ";
    match sent.split_at_checked(SCHEME.len()) {
        Some((scheme, sent)) => scheme.eq_ignore_ascii_case(SCHEME) && is_same(sent, token),
        None => false,
    }
}

/// In a time that does not tell how much of it is right.
fn is_same(sent: &[u8], token: &[u8]) -> bool {
    let differ = sent.iter().zip(token).fold(0, |all, (sent, token)| black_box(all | (sent ^ token)));
    sent.len() == token.len() && differ == 0
}

/// `10.0.0.1:9091`, `[::1]`, `localhost:9091`.
fn is_of_this_host(host: &str) -> bool {
    let port = |rest: &str| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_digits);
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok() && port(rest);
    }
    let (name, rest) = host.split_at(host.find(':').unwrap_or(host.len()));
    port(rest) && (name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::Ipv4Addr>().is_ok())
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn caller(address: &str, target: &str, fields: &[(&str, &str)], token: Option<&str>) -> Caller {
        let mut request = Request::builder().uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        Caller::peer(address.parse().unwrap(), &head, token.map(str::as_bytes))
    }

    #[test]
    fn hosts_that_no_name_server_leads_here() {
        for (host, plain) in [
            ("127.0.0.1", true),
            ("127.0.0.1:9091", true),
            ("192.0.2.1:1", true),
            ("localhost", true),
            ("LocalHost:9091", true),
            ("[::1]:9091", true),
            ("[::1]", true),
            ("", false),
            ("::1", false),
            ("evil.example", false),
            ("evil.example:9091", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("127.0.0.1:x", false),
            ("[::1].evil.example", false),
            ("[evil.example]", false),
            ("user@localhost", false),
        ] {
            assert_eq!(is_of_this_host(host), plain, "{host}");
        }
    }

    #[test]
    fn tokens_are_compared_whole() {
        for (sent, token) in [
            (&[][..], Token::Absent),
            (&["Bearer secret"], Token::Right),
            (&["bearer secret"], Token::Right),
            (&["Bearer secre"], Token::Wrong),
            (&["Bearer secrets"], Token::Wrong),
            (&["Bearer "], Token::Wrong),
            (&["Bearer"], Token::Wrong),
            (&["Basic secret"], Token::Wrong),
            (&["secret"], Token::Wrong),
            (&["Bearer secret", "Bearer secret"], Token::Wrong),
        ] {
            let fields: Vec<_> = sent.iter().map(|value| ("authorization", *value)).collect();
            let (is_local, names_host) = (true, false);
            assert_eq!(
                caller("::1", "/", &fields, Some("secret")),
                Caller::Peer { is_local, names_host, token }
            );
            let unset = Caller::Peer { is_local, names_host, token: Token::Unset };
            assert_eq!(caller("127.0.0.1", "/", &fields, None), unset, "nothing is right where none is set");
        }
    }

    #[test]
    fn who_may_what() {
        use Access::{Change, Local, Open, Private};
        let local = [("host", "127.0.0.1:9091")];
        let foreign = [("host", "evil.example")];
        let with = |value| [("host", "127.0.0.1"), ("authorization", value)];
        let outcome = |caller: &Caller, access| match caller.enter().and_then(|()| caller.may(access)) {
            Ok(()) => 200,
            Err(problem) => problem.status.as_u16(),
        };
        let set = Some("t");
        for (name, caller, want) in [
            ("the socket", Caller::Owner, [200; 4]),
            ("this host", caller("127.0.0.1", "/", &local, None), [200, 200, 403, 403]),
            ("this host, mapped", caller("::ffff:127.0.0.1", "/", &local, None), [200, 200, 403, 403]),
            ("this host, a token is set", caller("127.0.0.1", "/", &local, set), [200, 200, 401, 401]),
            ("its token", caller("127.0.0.1", "/", &with("Bearer t"), set), [200; 4]),
            ("another token", caller("127.0.0.1", "/", &with("Bearer x"), set), [401; 4]),
            ("another host", caller("192.0.2.9", "/", &local, set), [200, 401, 401, 401]),
            ("another host's token", caller("192.0.2.9", "/", &with("Bearer t"), set), [200; 4]),
            ("a page", caller("127.0.0.1", "/", &foreign, None), [403; 4]),
            ("a page, a token is set", caller("127.0.0.1", "/", &foreign, set), [403; 4]),
            ("no host", caller("127.0.0.1", "/", &[], None), [403; 4]),
            ("two hosts", caller("127.0.0.1", "/", &[local[0], foreign[0]], None), [403; 4]),
            ("a target's host", caller("127.0.0.1", "http://evil.example/", &local, None), [403; 4]),
        ] {
            assert_eq!([Open, Local, Private, Change].map(|access| outcome(&caller, access)), want, "{name}");
        }
        let named = caller("127.0.0.1", "/", &[foreign[0], ("authorization", "Bearer t")], set);
        assert_eq!(outcome(&named, Change), 200, "with its token whoever asks may call it what they like");
    }
}
