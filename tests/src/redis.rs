//! A real redis-server of a test's own, on an address of the loopback that nobody else uses, so that it can be ended
//! and started again in the same place.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::PATIENCE;
use crate::log::Log;

const PORT: u16 = 6379;

pub struct Redis {
    pub address: SocketAddr,
    arguments: Vec<String>,
    child: Child,
    directory: TempDir,
}

impl Redis {
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// `arguments` come last on its command line.
    #[track_caller]
    pub fn start_with(arguments: &[&str]) -> Self {
        let directory = TempDir::new().expect("there is room for a folder");
        let address = own_address();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>();
        let child = spawn(address, &directory, &arguments, "Ready to accept connections");
        Self { address, arguments, child, directory }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Ends it as a crash would: nobody is told, nothing is saved.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is our child");
    }

    /// Starts it again after [`Self::kill`], with `more` arguments, and waits for a line of its log that holds `until`.
    #[track_caller]
    pub fn restart(&mut self, more: &[&str], until: &str) {
        let arguments: Vec<_> =
            self.arguments.iter().cloned().chain(more.iter().map(|&more| more.into())).collect();
        self.child = spawn(self.address, &self.directory, &arguments, until);
    }

    /// What it answers to one command, errors included; the elements of a list are lines.
    #[track_caller]
    pub fn ask(&self, command: &[&str]) -> String {
        self.connect().ask(command)
    }

    #[track_caller]
    pub fn connect(&self) -> Session {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
        stream.set_nodelay(true).expect("it is a TCP socket");
        Session(BufReader::new(stream))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection to it.
pub struct Session(BufReader<TcpStream>);

impl Session {
    /// As [`Redis::ask`].
    #[track_caller]
    pub fn ask(&mut self, command: &[&str]) -> String {
        let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
        for word in command {
            bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
        }
        self.0.get_mut().write_all(&bytes).expect("it reads");
        self.reply().unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    fn reply(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (kind, rest) = line.trim_end().split_at(1);
        let length = || rest.parse::<usize>().map_err(io::Error::other);
        match kind {
            "$" if rest == "-1" => Ok(String::new()),
            "$" => {
                let mut text = vec![0; length()? + 2];
                self.0.read_exact(&mut text)?;
                text.truncate(text.len() - 2);
                Ok(String::from_utf8_lossy(&text).into_owned())
            }
            "*" => {
                let elements: io::Result<Vec<_>> = (0..length()?).map(|_| self.reply()).collect();
                Ok(elements?.join("\n"))
            }
            _ => Ok(rest.to_owned()),
        }
    }
}

#[track_caller]
fn spawn(address: SocketAddr, directory: &TempDir, arguments: &[String], until: &str) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()]);
    command.args(["--save", "", "--repl-diskless-sync-delay", "0"]).args(arguments);
    command.current_dir(directory.path()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("redis-server is installed: apt-get install redis-server");
    Log::of(child.stdout.take().expect("it is a pipe")).wait_for(until);
    child
}

/// One of the sixteen million addresses of the loopback, by the process and a count.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(64) + NEXT.fetch_add(1, Ordering::Relaxed);
        let [_, a, b, c] = number.to_be_bytes();
        let address = SocketAddr::from((Ipv4Addr::new(127, a, b, c), PORT));
        // Not the host's own, nor one that another test has.
        if a != 0 && TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
