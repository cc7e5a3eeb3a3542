//! SYN cookies: the answer to a connection request, and the check of what comes back.
//!
//! `entry` calls it for XDP. The cookie itself is the stack's own (`bpf_tcp_raw_gen_syncookie_*`), so that
//! the stack takes the connection that comes of it. The answer carries a segment size and no other option:
//! such a connection has neither window scaling nor selective acknowledgements.

#![allow(unsafe_code)]

use core::arch::asm;
use core::mem::size_of_val;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::helpers::generated::{
    bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_raw_check_syncookie_ipv4, bpf_tcp_raw_check_syncookie_ipv6,
    bpf_tcp_raw_gen_syncookie_ipv4, bpf_tcp_raw_gen_syncookie_ipv6, bpf_xdp_adjust_tail,
    bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use aya_ebpf::programs::XdpContext;
use gateway_common::Family;

use crate::packet::{Answer, Segment};

const IPV4_WORDS: usize = 5;
const IPV6_WORDS: usize = 10;
/// A TCP header with one option of one word.
const TCP_WORDS: usize = 6;
/// The longest TCP header, in double words.
const LONGEST: usize = 8;
const BASIC_BYTES: u64 = 20;
const BASIC_WORDS: usize = 5;

const HOPS: u8 = 64;
const TCP: u8 = 6;
const SYN_ACK: u8 = 0x12;
/// Without scaling there is no larger one.
const WINDOW: u16 = 65_535;
const SEGMENT_SIZE: [u8; 2] = [2, 4];

const CURRENT_NAMESPACE: u64 = -1_i64 as u64;
const LISTEN: u32 = 10;

/// Turns `request` into its answer: addresses and ports swapped, the cookie as its sequence number.
#[inline(always)]
pub fn answer(context: &XdpContext, request: &Segment, segment_bytes: u16, may_have_socket: bool) -> Answer {
    if !request.is_plain {
        return Answer::Impossible;
    }
    match request.family {
        Family::Ipv4 => answer_ipv4(context, request.ip, request.tcp_words, segment_bytes, may_have_socket),
        Family::Ipv6 => answer_ipv6(context, request.ip, request.tcp_words, segment_bytes, may_have_socket),
        Family::Other => Answer::Impossible,
    }
}

#[inline(never)]
fn answer_ipv4(
    context: &XdpContext,
    ip_place: usize,
    tcp_words: u8,
    segment_bytes: u16,
    may_have_socket: bool,
) -> Answer {
    // The ports follow the addresses on the wire as they do in a tuple.
    let (mut ip, mut tcp) = ([0; IPV4_WORDS + 1], room());
    let length = header(context, ip_place + IPV4_WORDS * 4, tcp_words, &mut tcp);
    if length == 0 || !load(context, ip_place, &mut ip) {
        return Answer::Impossible;
    }
    let [_, _, _, tuple @ ..] = &ip;
    if may_have_socket && has_socket(context, tuple) {
        return Answer::Unwanted;
    }
    // SAFETY: an IPv4 header, and `length` bytes of a TCP header's room, both on the stack.
    let cookie =
        unsafe { bpf_tcp_raw_gen_syncookie_ipv4((&raw mut ip).cast(), tcp.as_mut_ptr().cast(), length) };
    if cookie < 0 {
        return Answer::Impossible;
    }
    let [_, _, _, source, destination, _] = ip;
    let bytes = ((IPV4_WORDS + TCP_WORDS) * 4) as u16;
    let [high, low] = bytes.to_be_bytes();
    let mut ip = [
        u32::from_ne_bytes([0x45, 0, high, low]),
        // Do not fragment.
        u32::from_ne_bytes([0, 0, 0x40, 0]),
        u32::from_ne_bytes([HOPS, TCP, 0, 0]),
        destination,
        source,
    ];
    let pseudo = sum(&[source, destination]);
    let tcp = reply_header(&tcp, cookie as u32, segment_bytes, pseudo);
    let [low, high] = fold(sum(&ip)).to_ne_bytes();
    ip[2] = u32::from_ne_bytes([HOPS, TCP, low, high]);
    send(context, ip_place, &ip, &tcp)
}

#[inline(never)]
fn answer_ipv6(
    context: &XdpContext,
    ip_place: usize,
    tcp_words: u8,
    segment_bytes: u16,
    may_have_socket: bool,
) -> Answer {
    let (mut ip, mut tcp) = ([0; IPV6_WORDS + 1], room());
    let length = header(context, ip_place + IPV6_WORDS * 4, tcp_words, &mut tcp);
    if length == 0 || !load(context, ip_place, &mut ip) {
        return Answer::Impossible;
    }
    let [_, _, tuple @ ..] = &ip;
    if may_have_socket && has_socket(context, tuple) {
        return Answer::Unwanted;
    }
    // SAFETY: an IPv6 header, and `length` bytes of a TCP header's room, both on the stack.
    let cookie =
        unsafe { bpf_tcp_raw_gen_syncookie_ipv6((&raw mut ip).cast(), tcp.as_mut_ptr().cast(), length) };
    if cookie < 0 {
        return Answer::Impossible;
    }
    ip[0] = u32::from_ne_bytes([0x60, 0, 0, 0]);
    ip[1] = u32::from_ne_bytes([0, (TCP_WORDS * 4) as u8, TCP, HOPS]);
    let mut pseudo = 0;
    // In place: there is no room on the stack for a second header.
    for word in 2..6 {
        let (source, destination) = (ip[word], ip[word + 4]);
        pseudo += u64::from(source) + u64::from(destination);
        (ip[word], ip[word + 4]) = (destination, source);
    }
    let tcp = reply_header(&tcp, cookie as u32, segment_bytes, pseudo);
    let [ip @ .., _] = &ip;
    send(context, ip_place, ip, &tcp)
}

/// Room for a TCP header. The compiler would make a call of zeros that it knows.
#[inline(always)]
fn room() -> [u64; LONGEST] {
    let mut zero = 0_u64;
    // SAFETY: moves a register onto itself.
    unsafe { asm!("{0} = {0}", inout(reg) zero) };
    [zero, zero, zero, zero, zero, zero, zero, zero]
}

/// Reads the request's TCP header with its options; its length in bytes, or 0.
#[inline(always)]
fn header(context: &XdpContext, tcp: usize, tcp_words: u8, room: &mut [u64; LONGEST]) -> u32 {
    let mut length = u64::from(tcp_words) * 4;
    // SAFETY: moves a register onto itself. The compiler must not fold the check below onto the byte that the
    // length came from, for the verifier knows bounds of the length only.
    unsafe { asm!("{0} = {0}", inout(reg) length) };
    // Four bits of words: it is no longer than the room.
    if length < BASIC_BYTES {
        return 0;
    }
    // SAFETY: the room is longer than any length.
    let loaded = unsafe {
        bpf_xdp_load_bytes(context.as_ptr().cast(), tcp as u32, room.as_mut_ptr().cast(), length as u32)
    };
    if loaded == 0 { length as u32 } else { 0 }
}

/// The answer's TCP header, complete with its checksum. `pseudo`: the sum of both addresses.
#[inline(always)]
fn reply_header(request: &[u64; LONGEST], cookie: u32, segment_bytes: u16, pseudo: u64) -> [u32; TCP_WORDS] {
    let [ports, sequence] = halves(request[0]);
    let [high, low] = segment_bytes.to_be_bytes();
    let [kind, size] = SEGMENT_SIZE;
    let [window_high, window_low] = WINDOW.to_be_bytes();
    let mut header = [
        ports.rotate_left(16),
        cookie.to_be(),
        u32::from_be(sequence).wrapping_add(1).to_be(),
        u32::from_ne_bytes([(TCP_WORDS as u8) << 4, SYN_ACK, window_high, window_low]),
        0,
        u32::from_ne_bytes([kind, size, high, low]),
    ];
    let lengths = u32::from_ne_bytes([0, TCP, 0, (TCP_WORDS * 4) as u8]);
    let checksum = fold(sum(&header) + pseudo + u64::from(lengths));
    let [low, high] = checksum.to_ne_bytes();
    header[4] = u32::from_ne_bytes([low, high, 0, 0]);
    header
}

#[inline(always)]
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

/// Ones' complement sum, not folded; the order of bytes does not matter (RFC 1071, 2).
#[inline(always)]
fn sum<const N: usize>(words: &[u32; N]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(*word);
    }
    sum
}

#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Into `words`: what came back by value would lie on the stack twice.
#[inline(always)]
fn load<const N: usize>(context: &XdpContext, offset: usize, words: &mut [u32; N]) -> bool {
    // SAFETY: the helper writes as many bytes as the array has.
    unsafe {
        bpf_xdp_load_bytes(
            context.as_ptr().cast(),
            offset as u32,
            words.as_mut_ptr().cast(),
            size_of_val(words) as u32,
        ) == 0
    }
}

/// Puts both headers in the request's place and swaps the ends of the link.
#[inline(always)]
fn send<const N: usize>(
    context: &XdpContext,
    ip_place: usize,
    ip: &[u32; N],
    tcp: &[u32; TCP_WORDS],
) -> Answer {
    let pointer = context.as_ptr();
    let behind_ip = ip_place + size_of_val(ip);
    let bytes = (behind_ip + size_of_val(tcp)) as i32;
    let mut ends = [0; 3];
    if !load(context, 0, &mut ends) {
        return Answer::Impossible;
    }
    let [[d0, d1, d2, d3], [d4, d5, s0, s1], [s2, s3, s4, s5]] = ends.map(u32::to_ne_bytes);
    // In place, as the addresses are.
    ends = [[s0, s1, s2, s3], [s4, s5, d0, d1], [d2, d3, d4, d5]].map(u32::from_ne_bytes);
    // SAFETY: a helper on this packet.
    let fits = unsafe {
        let length = bpf_xdp_get_buff_len(pointer.cast()) as i32;
        bpf_xdp_adjust_tail(pointer.cast(), bytes - length) == 0
    };
    let stored =
        fits && store(context, 0, &ends) && store(context, ip_place, ip) && store(context, behind_ip, tcp);
    if stored { Answer::Sent } else { Answer::Impossible }
}

#[inline(always)]
fn store<const N: usize>(context: &XdpContext, offset: usize, words: &[u32; N]) -> bool {
    // SAFETY: the helper reads as many bytes as the array has.
    unsafe {
        bpf_xdp_store_bytes(
            context.as_ptr().cast(),
            offset as u32,
            words.as_ptr() as *mut _,
            size_of_val(words) as u32,
        ) == 0
    }
}

/// Whether the stack has a connection, or half of one, that the segment is part of.
#[inline(always)]
pub fn is_of_connection(context: &XdpContext, segment: &Segment) -> bool {
    let ports = ports(segment);
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (segment.source.words(), segment.destination.words());
    match segment.family {
        Family::Ipv4 => look_up(context, &[s3, d3, ports]),
        Family::Ipv6 => look_up(context, &[s0, s1, s2, s3, d0, d1, d2, d3, ports]),
        Family::Other => false,
    }
}

#[inline(never)]
fn look_up<const N: usize>(context: &XdpContext, tuple: &[u32; N]) -> bool {
    has_socket(context, tuple)
}

/// Whether there is one between two addresses and ports that does not listen.
#[inline(always)]
fn has_socket<const N: usize>(context: &XdpContext, tuple: &[u32; N]) -> bool {
    // SAFETY: a tuple of the length that is said; the socket is released before the program ends.
    unsafe {
        let socket = bpf_skc_lookup_tcp(
            context.as_ptr(),
            tuple.as_ptr() as *mut bpf_sock_tuple,
            size_of_val(tuple) as u32,
            CURRENT_NAMESPACE,
            0,
        );
        if socket.is_null() {
            return false;
        }
        let listens = (*socket).state == LISTEN;
        bpf_sk_release(socket.cast());
        !listens
    }
}

/// Whether the segment acknowledges a cookie that this host made for it, in the last two minutes. Wherever its TCP header
/// stands: the stack takes it as well.
#[inline(always)]
pub fn is_returned(segment: &Segment) -> bool {
    let [sequence, acknowledged] = segment.numbers;
    let tcp = [ports(segment), sequence, acknowledged, 0, 0];
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (segment.source.words(), segment.destination.words());
    match segment.family {
        Family::Ipv4 => is_returned_ipv4(&[0, 0, 0, s3, d3], &tcp),
        Family::Ipv6 => is_returned_ipv6(&[0, 0, s0, s1, s2, s3, d0, d1, d2, d3], &tcp),
        Family::Other => false,
    }
}

/// Of the headers only addresses, ports and numbers count.
#[inline(never)]
fn is_returned_ipv4(ip: &[u32; IPV4_WORDS], tcp: &[u32; BASIC_WORDS]) -> bool {
    // SAFETY: both headers are whole, on the stack.
    unsafe { bpf_tcp_raw_check_syncookie_ipv4(ip.as_ptr() as *mut _, tcp.as_ptr() as *mut _) == 0 }
}

#[inline(never)]
fn is_returned_ipv6(ip: &[u32; IPV6_WORDS], tcp: &[u32; BASIC_WORDS]) -> bool {
    // SAFETY: as above.
    unsafe { bpf_tcp_raw_check_syncookie_ipv6(ip.as_ptr() as *mut _, tcp.as_ptr() as *mut _) == 0 }
}

/// Both ports as a header has them.
#[inline(always)]
fn ports(segment: &Segment) -> u32 {
    let ([a, b], [c, d]) = (segment.source_port.to_ne_bytes(), segment.destination_port.to_be_bytes());
    u32::from_ne_bytes([a, b, c, d])
}
