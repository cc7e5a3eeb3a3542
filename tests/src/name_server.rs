//! A name server of a test's own on the loopback, over UDP and TCP.
//!
//! Speaks the wire format by itself: what the gateway reads is not what the gateway wrote.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const A: u16 = 1;
const AAAA: u16 = 28;

/// A question for IPv4 addresses.
#[derive(Clone, Copy)]
pub struct Asked {
    pub at: Instant,
    pub over_tcp: bool,
}

/// What it says of a name.
#[derive(Clone)]
pub enum Says {
    /// How many seconds they hold, and the addresses.
    Addresses(u32, Vec<IpAddr>),
    /// The same, in full over TCP alone.
    Long(u32, Vec<IpAddr>),
    NotFound,
    /// A pointer of the name to itself.
    Malformed,
}

pub struct NameServer {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, Says>,
    asked: BTreeMap<String, Vec<Asked>>,
    silent: bool,
}

impl NameServer {
    pub fn start() -> Self {
        // A port that is free for datagrams may be taken for streams.
        Self::on((0..100).map(|_| SocketAddr::from(([127, 0, 0, 1], 0))))
    }

    /// At the port that `resolv.conf` means, on an address that nobody else uses.
    pub fn at_the_known_port() -> Self {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        Self::on((1..=254).map(|last| SocketAddr::from(([127, high.max(1), low, last], 53))))
    }

    fn on(addresses: impl Iterator<Item = SocketAddr>) -> Self {
        let both = |address| {
            let socket = UdpSocket::bind(address).ok()?;
            let listener = TcpListener::bind(socket.local_addr().ok()?).ok()?;
            Some((socket, listener))
        };
        let (socket, listener) = { addresses }.find_map(both).expect("a port is free for both");
        let address = socket.local_addr().expect("it is bound");
        let state = Arc::<Mutex<State>>::default();
        let (over_udp, over_tcp) = (state.clone(), state.clone());
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                if let Some(answer) = answer(&over_udp, &query[..length], false) {
                    // Whoever asked may have gone.
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                stream.set_read_timeout(Some(Duration::from_secs(5))).expect("it is not zero");
                let mut length = [0; 2];
                let mut query = vec![0; 512];
                let Ok(()) = stream.read_exact(&mut length) else { continue };
                query.truncate(usize::from(u16::from_be_bytes(length)));
                let Ok(()) = stream.read_exact(&mut query) else { continue };
                if let Some(answer) = answer(&over_tcp, &query, true) {
                    let length = u16::try_from(answer.len()).expect("no test has so many addresses");
                    let _ = stream.write_all(&[&length.to_be_bytes(), &answer[..]].concat());
                }
            }
        });
        Self { address, state }
    }

    /// From the next answer on.
    pub fn says(&self, name: &str, says: Says) {
        self.state.lock().expect("no panic while held").names.insert(name.to_owned(), says);
    }

    pub fn addresses(&self, name: &str, ttl: u32, addresses: &[&str]) {
        let addresses = addresses.iter().map(|ip| ip.parse().expect("it is an address")).collect();
        self.says(name, Says::Addresses(ttl, addresses));
    }

    /// Answers nobody from now on, or everybody again.
    pub fn silence(&self, silent: bool) {
        self.state.lock().expect("no panic while held").silent = silent;
    }

    /// The questions for `name` so far.
    pub fn asked(&self, name: &str) -> Vec<Asked> {
        self.state.lock().expect("no panic while held").asked.get(name).cloned().unwrap_or_default()
    }
}

fn answer(state: &Mutex<State>, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
    let mut state = state.lock().expect("no panic while held");
    let (mut at, mut labels) = (12, Vec::new());
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8(query[at + 1..end].to_vec()).expect("hosts have names of ASCII"));
        at = end;
    }
    let name = labels.join(".");
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    if kind == A {
        state.asked.entry(name.clone()).or_default().push(Asked { at: Instant::now(), over_tcp });
    }
    if state.silent {
        return None;
    }
    let says = state.names.get(&name).cloned().unwrap_or(Says::NotFound);
    let mut answer = query[..at + 5].to_vec();
    // A response, recursion wanted and available.
    (answer[2], answer[3]) = (0x81, 0x80);
    match says {
        Says::NotFound => answer[3] |= 3,
        Says::Malformed => {
            let here = answer.len() as u8;
            answer[7] = 1;
            answer.extend([0xc0, here]);
        }
        Says::Long(..) if !over_tcp => answer[2] |= 2,
        Says::Addresses(ttl, addresses) | Says::Long(ttl, addresses) => {
            let addresses =
                addresses.iter().filter(|ip| kind == if ip.is_ipv4() { A } else { AAAA }).collect::<Vec<_>>();
            answer[6..8].copy_from_slice(&(addresses.len() as u16).to_be_bytes());
            for ip in addresses {
                let bytes = match ip {
                    IpAddr::V4(ip) => ip.octets().to_vec(),
                    IpAddr::V6(ip) => ip.octets().to_vec(),
                };
                answer.extend([0xc0, 12]);
                answer.extend(kind.to_be_bytes());
                answer.extend(1_u16.to_be_bytes());
                answer.extend(ttl.to_be_bytes());
                answer.extend((bytes.len() as u16).to_be_bytes());
                answer.extend(bytes);
            }
        }
    }
    Some(answer)
}
