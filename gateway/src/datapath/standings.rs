//! What userspace tells the kernel half about sources and about itself, between two policies: penalties, known
//! sources, and the words of pressure.
//!
//! The heartbeat's thread writes them; what to write is decided in `penalties`, `known`, `cookies` and
//! `pressure`. It has descriptors of its own, so nobody waits for a reload.

use std::os::fd::AsFd;

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use gateway_common::Address;
use gateway_common::maps::{BUCKET, KNOWN, PENALTY, STATE};
use gateway_common::policy::{Bucket, Holder};
use gateway_common::pressure::{
    ARMED, ATTENTION, CAN_ARM, COOKIE_LIVES_NS, COOKIES, SHED, SHEDDING, TAKING, Word,
};
use gateway_common::standing::{Class, Known, Penalty};

use super::error::Error;
use super::marks::Marks;
use super::policy::map;

pub struct Standings {
    penalty: HashMap<MapData, Address, Penalty>,
    known: HashMap<MapData, Address, Known>,
    bucket: HashMap<MapData, Holder, Bucket>,
    state: Array<MapData, u64>,
    marks: Marks,
}

impl Standings {
    pub fn open(bpf: &Ebpf) -> Result<Self, Error> {
        Ok(Self {
            penalty: own(bpf, PENALTY)?.try_into().map_err(Error::map(PENALTY))?,
            known: own(bpf, KNOWN)?.try_into().map_err(Error::map(KNOWN))?,
            bucket: own(bpf, BUCKET)?.try_into().map_err(Error::map(BUCKET))?,
            state: own(bpf, STATE)?.try_into().map_err(Error::map(STATE))?,
            marks: Marks::open(bpf)?,
        })
    }

    /// Penalises a source, cut as the policy's mask for clients cuts it. `attention`: `PENALTIES`, and `BLOCKING`
    /// too where the level needs it; both stay set until [`Self::attend`] clears them. On an error, such as a full map,
    /// nobody is looked up who was not before.
    pub fn penalise(&mut self, source: Address, penalty: Penalty, attention: u64) -> Result<(), Error> {
        let is_new = self.marks.add(&source)?;
        if let Err(error) = self.penalty.insert(source, penalty, 0) {
            if is_new {
                self.marks.remove(&[source], &[])?;
            }
            return Err(Error::map(PENALTY)(error));
        }
        self.attend(self.attention()? | attention)
    }

    /// Has a source looked up whose penalty is in the map already.
    pub fn mark(&mut self, source: &Address) -> Result<(), Error> {
        self.marks.add(source).map(drop)
    }

    /// Ends penalties, whether there are any or not; `others`: all sources that have one still.
    pub fn lift(&mut self, over: &[Address], others: &[Address]) -> Result<(), Error> {
        for source in over {
            gone(self.penalty.remove(source)).map_err(Error::map(PENALTY))?;
        }
        self.marks.remove(over, others)
    }

    /// The penalties as they are, with the packets they have cost.
    pub fn penalties(&self) -> Result<Vec<(Address, Penalty)>, Error> {
        self.penalty.iter().collect::<Result<_, _>>().map_err(Error::map(PENALTY))
    }

    /// Makes a source known, cut as the policy's mask for clients cuts it.
    pub fn know(&mut self, source: Address, class: Class, until_ns: u64) -> Result<(), Error> {
        let known = Known { until_ns, class: class as u32, reserved: 0 };
        self.known.insert(source, known, 0).map_err(Error::map(KNOWN))
    }

    /// Gives a source a full bucket unless it has one: it passes a flood of new sources without a cookie.
    pub fn open_bucket(&mut self, holder: Holder, now_ns: u64) -> Result<(), Error> {
        const NOEXIST: u64 = 1;
        let full = Bucket { full_at_ns: now_ns, ..Bucket::default() };
        match self.bucket.insert(holder, full, NOEXIST) {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(())
            }
            other => other.map_err(Error::map(BUCKET)),
        }
    }

    /// Says that until then cookies are armed once they are due; `None`: they are not.
    pub fn can_arm(&mut self, until_ns: Option<u64>) -> Result<(), Error> {
        self.set(CAN_ARM, word(until_ns))
    }

    /// Lets cookies be sent until then; `None`: no more. Packets of connections are looked at meanwhile, and for as long
    /// afterwards as one that was sent may come back.
    pub fn arm(&mut self, until_ns: Option<u64>, now_ns: u64) -> Result<(), Error> {
        if let Some(until) = until_ns {
            self.set(TAKING, word(Some(until + COOKIE_LIVES_NS)))?;
        }
        self.set(ARMED, word(until_ns))?;
        let taking = self.state.get(&TAKING, 0).map_err(Error::map(STATE))?;
        self.attend(switch(self.attention()?, COOKIES, Word::read(taking, now_ns).is_some()))
    }

    /// Sheds so many of 65,536 sources of each class until then.
    pub fn shed(&mut self, levels: [u16; Class::ALL.len()], epoch: u16, until_ns: u64) -> Result<(), Error> {
        for (place, level) in (SHED..).zip(levels) {
            let word = if level == 0 { 0 } else { Word::new(level, epoch, until_ns).pack() };
            self.set(place, word)?;
        }
        self.attend(switch(self.attention()?, SHEDDING, levels.iter().any(|level| *level > 0)))
    }

    /// What there is to look at.
    pub fn attend(&mut self, attention: u64) -> Result<(), Error> {
        if attention == self.attention()? { Ok(()) } else { self.set(ATTENTION, attention) }
    }

    /// As the map has it: a successor may have written there.
    pub fn attention(&self) -> Result<u64, Error> {
        self.state.get(&ATTENTION, 0).map_err(Error::map(STATE))
    }

    fn set(&mut self, place: u32, word: u64) -> Result<(), Error> {
        self.state.set(place, word, 0).map_err(Error::map(STATE))
    }
}

fn word(until_ns: Option<u64>) -> u64 {
    until_ns.map_or(0, |until| Word::new(0, 0, until).pack())
}

fn switch(flags: u64, flag: u64, on: bool) -> u64 {
    if on { flags | flag } else { flags & !flag }
}

fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// The map under a descriptor of one's own.
pub(super) fn own(bpf: &Ebpf, name: &'static str) -> Result<Map, Error> {
    let descriptor = shared(bpf, name)?.fd().as_fd().try_clone_to_owned();
    let descriptor = descriptor.map_err(|error| Error::Map { map: name, reason: error.to_string() })?;
    MapData::from_fd(descriptor).and_then(Map::from_map_data).map_err(Error::map(name))
}

/// The map, whatever its type.
pub(super) fn shared<'a>(bpf: &'a Ebpf, name: &'static str) -> Result<&'a MapData, Error> {
    data(map(bpf, name)?, name)
}

/// What a map of any type is made of.
pub(super) fn data<'a>(map: &'a Map, name: &'static str) -> Result<&'a MapData, Error> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data) => Ok(data),
        other => Err(Error::Map { map: name, reason: format!("is of another type: {other:?}") }),
    }
}
