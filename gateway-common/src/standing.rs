//! What userspace has found out about sources, for the kernel half to judge by: penalties and known sources.

/// A source that ignored its refusals, or went on opening connections that were refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Penalty {
    /// Over from here on, in monotonic nanoseconds.
    pub until_ns: u64,
    pub since_ns: u64,
    /// Packets it cost the source; the kernel half counts them.
    pub hits: u64,
    /// The number of the rule whose refusals were ignored, or [`OF_CONNECTIONS`].
    pub rule: u32,
    /// [`SLOWED`] or [`BLOCKED`].
    pub level: u32,
    /// Refusals that led to it, of the last ten seconds.
    pub refused: u32,
    /// Those of them that it ignored; of connections, none.
    pub ignored: u32,
}

/// No rule's number: the bound on the connections of a source refused them.
pub const OF_CONNECTIONS: u32 = u32::MAX;

/// Level 1: a [`SLOWED_BY`]th of the budget.
pub const SLOWED: u32 = 1;
/// Level 2: every TCP packet to our listeners is dropped.
pub const BLOCKED: u32 = 2;
pub const SLOWED_BY: u64 = 10;

/// A source that has been served.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Forgotten from here on, in monotonic nanoseconds.
    pub until_ns: u64,
    /// A [`Class`].
    pub class: u32,
    pub reserved: u32,
}

/// How well a source is known; the better, the later it is shed.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    Unknown = 0,
    /// It completed a request in the last hour.
    Known = 1,
    /// It completed a hundred in a day, and less than one in a hundred was refused.
    Proven = 2,
}

impl Class {
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Known, Self::Proven];

    /// The class's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Known => "known",
            Self::Proven => "proven",
        }
    }
}

const _: () = assert!(size_of::<Penalty>() == 3 * 8 + 4 * 4);
const _: () = assert!(size_of::<Known>() == 8 + 4 + 4);
