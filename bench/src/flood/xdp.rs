//! The rig's XDP programs: one drops what goes to a network, and passes everything else or hands it to another
//! interface.
//!
//! Two of them join the interfaces of a relay. Where answers to forged sources end they must cost little, for they
//! come on the load's core. Another is the floor: what an attack costs that is dropped before anybody looks at it.
//! `rig` has `ip` attach them, which wants an object file; this writes one.

use std::net::Ipv4Addr;

/// An address and the length of its prefix.
pub type Network = (Ipv4Addr, u8);
/// All there is, of IPv4: whoever asks for an Ethernet address is answered.
pub const EVERYWHERE: Network = (Ipv4Addr::UNSPECIFIED, 0);
/// Nothing is sent there.
pub const NOWHERE: Network = (Ipv4Addr::UNSPECIFIED, 32);

/// The section of the program in the object.
pub const SECTION: &str = "xdp";

/// What becomes of that which is not dropped.
#[derive(Debug, Clone, Copy)]
pub enum Rest {
    /// It goes to the stack.
    Pass,
    /// It leaves by the interface of this index.
    To(u32),
}

/// Drops what goes to the network.
fn program((network, prefix): Network, rest: Rest) -> Vec<u8> {
    const LOAD_32: u8 = 0x61;
    const LOAD_16: u8 = 0x69;
    const MOVE: u8 = 0xbf;
    const MOVE_NUMBER: u8 = 0xb7;
    const ADD_NUMBER: u8 = 0x07;
    const AND_NUMBER: u8 = 0x57;
    const TO_BIG_ENDIAN: u8 = 0xdc;
    const JUMP_IF_GREATER: u8 = 0x2d;
    const JUMP_UNLESS_EQUAL: u8 = 0x55;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const DROP: i32 = 1;
    const PASS: i32 = 2;
    /// The helper's number, `bpf_redirect`.
    const REDIRECT: i32 = 23;
    /// Of the EtherType in an Ethernet frame, and of the destination in the IPv4 packet behind it.
    const TYPE: i16 = 12;
    const DESTINATION: i16 = 30;
    const IPV4: i32 = 0x0800;

    let network = network.to_bits().cast_signed();
    let mask = (-1_i32).checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    // Code, destination, source, jump or offset, number. r1 is the context, r0 the answer.
    let rest = match rest {
        Rest::Pass => [(MOVE_NUMBER, 0, 0, 0, PASS), (EXIT, 0, 0, 0, 0)].to_vec(),
        Rest::To(index) => [
            (MOVE_NUMBER, 1, 0, 0, index.cast_signed()),
            (MOVE_NUMBER, 2, 0, 0, 0),
            (CALL, 0, 0, 0, REDIRECT),
            (EXIT, 0, 0, 0, 0),
        ]
        .to_vec(),
    };
    let drops: [(u8, u8, u8, i16, i32); 14] = [
        (LOAD_32, 2, 1, 0, 0),
        (LOAD_32, 3, 1, 4, 0),
        (MOVE, 4, 2, 0, 0),
        (ADD_NUMBER, 4, 0, 0, (DESTINATION + 4).into()),
        (JUMP_IF_GREATER, 4, 3, 9, 0),
        (LOAD_16, 5, 2, TYPE, 0),
        (TO_BIG_ENDIAN, 5, 0, 0, 16),
        (JUMP_UNLESS_EQUAL, 5, 0, 6, IPV4),
        (LOAD_32, 5, 2, DESTINATION, 0),
        (TO_BIG_ENDIAN, 5, 0, 0, 32),
        (AND_NUMBER, 5, 0, 0, mask),
        (JUMP_UNLESS_EQUAL, 5, 0, 2, network),
        (MOVE_NUMBER, 0, 0, 0, DROP),
        (EXIT, 0, 0, 0, 0),
    ];
    let mut bytes = Vec::new();
    for (code, to, from, offset, number) in drops.into_iter().chain(rest) {
        bytes.extend([code, from << 4 | to]);
        bytes.extend(offset.to_le_bytes());
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

/// The program as an ELF object.
pub fn object(network: Network, rest: Rest) -> Vec<u8> {
    const HEADER_BYTES: usize = 64;
    const SECTION_BYTES: u16 = 64;
    const SYMBOL_BYTES: u64 = 24;
    const RELOCATABLE: u16 = 1;
    const BPF: u16 = 247;
    const CONTENT: u32 = 1;
    const SYMBOLS: u32 = 2;
    const STRINGS: u32 = 3;
    const CODE_FLAGS: u64 = 0x6;
    const GLOBAL_FUNCTION: u8 = 0x12;
    // Sections by their places.
    const CODE: u16 = 1;
    const NAMES: u16 = 4;

    let program = program(network, rest);
    let mut names = vec![0];
    let mut name = |text: &str| {
        let place = names.len() as u32;
        names.extend(text.as_bytes());
        names.push(0);
        place
    };
    let (code, license, table, strings) = (name(SECTION), name("license"), name("symtab"), name("strings"));
    // The first symbol is always empty.
    let mut symbols = vec![0; SYMBOL_BYTES as usize];
    symbols.extend(name("rig").to_le_bytes());
    symbols.extend([GLOBAL_FUNCTION, 0]);
    symbols.extend(CODE.to_le_bytes());
    symbols.extend(0_u64.to_le_bytes());
    symbols.extend((program.len() as u64).to_le_bytes());

    // Name, type, flags, alignment, size of an entry, content.
    let sections: [(u32, u32, u64, u64, u64, Vec<u8>); 4] = [
        (code, CONTENT, CODE_FLAGS, 8, 0, program),
        (license, CONTENT, 0, 1, 0, b"GPL\0".to_vec()),
        (table, SYMBOLS, 0, 8, SYMBOL_BYTES, symbols),
        (strings, STRINGS, 0, 1, 0, names),
    ];
    // The first section's header is always empty.
    let mut headers = vec![0; SECTION_BYTES.into()];
    let mut contents = Vec::new();
    for (name, kind, flags, alignment, entry, mut content) in sections {
        let size = content.len() as u64;
        let offset = (HEADER_BYTES + contents.len()) as u64;
        let (link, local) = if kind == SYMBOLS { (u32::from(NAMES), 1_u32) } else { (0, 0) };
        headers.extend([name, kind].map(u32::to_le_bytes).concat());
        headers.extend([flags, 0, offset, size].map(u64::to_le_bytes).concat());
        headers.extend([link, local].map(u32::to_le_bytes).concat());
        headers.extend([alignment, entry].map(u64::to_le_bytes).concat());
        content.resize(content.len().next_multiple_of(8), 0);
        contents.extend(content);
    }

    let mut object = b"\x7fELF\x02\x01\x01".to_vec();
    object.resize(16, 0);
    object.extend([RELOCATABLE, BPF].map(u16::to_le_bytes).concat());
    object.extend(1_u32.to_le_bytes());
    object.extend([0, 0, (HEADER_BYTES + contents.len()) as u64].map(u64::to_le_bytes).concat());
    object.extend(0_u32.to_le_bytes());
    object.extend([HEADER_BYTES as u16, 0, 0, SECTION_BYTES, 5, NAMES].map(u16::to_le_bytes).concat());
    object.extend(contents);
    object.extend(headers);
    object
}
