//! A store for limits that gateways share: a redis-server of the bench's own, and where it is to be far away, a relay
//! that keeps its answers back.
//!
//! It runs beside the load, off the core of the system under test.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::free_ports;

const START_LIMIT: Duration = Duration::from_secs(10);

pub struct Store {
    /// Where gateways find it.
    pub addr: SocketAddr,
    child: Child,
}

impl Store {
    /// A store whose answers take `delay` longer than they would.
    pub fn start(delay: Duration) -> io::Result<Self> {
        let [server] = free_ports()?;
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            &server.ip().to_string(),
            "--port",
            &server.port().to_string(),
            "--save",
            "",
        ]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        // From here on dropping it ends the process.
        let mut this = Self { addr: server, child };
        let started = Instant::now();
        while let Err(error) = TcpStream::connect(server) {
            if started.elapsed() > START_LIMIT {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if !delay.is_zero() {
            this.addr = relay(server, delay)?;
        }
        Ok(this)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // It keeps nothing, so it need not be asked.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes connections on to `server`; what comes back is `delay` old when it goes on. The threads end with their
/// connections, the one that accepts with the process.
fn relay(server: SocketAddr, delay: Duration) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let addr = listener.local_addr()?;
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            // A connection that cannot be passed on is closed, as by a server that is not there.
            let _ = pass_on(client, server, delay);
        }
    });
    Ok(addr)
}

fn pass_on(client: TcpStream, server: SocketAddr, delay: Duration) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut asks, mut asked) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut asks, &mut asked);
        let _ = asked.shutdown(Shutdown::Both);
    });
    let (sender, answers) = mpsc::channel::<(Instant, Vec<u8>)>();
    let (mut answering, mut answered) = (server, client);
    std::thread::spawn(move || {
        let mut piece = [0; 16 * 1024];
        while let Ok(read @ 1..) = answering.read(&mut piece) {
            if sender.send((Instant::now() + delay, piece[..read].to_vec())).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        for (due, answer) in answers {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if answered.write_all(&answer).is_err() {
                break;
            }
        }
        let _ = answered.shutdown(Shutdown::Both);
    });
    Ok(())
}
