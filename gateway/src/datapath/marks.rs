//! The set of sources that may have a penalty: the kernel half looks no others up.
//!
//! Sources share marks, so a mark goes with the last penalty of those that share it. Nothing is kept here: a gateway and
//! its successor may write the same map.

use aya::Ebpf;
use aya::maps::{Array, MapData};
use gateway_common::Address;
use gateway_common::maps::MARKS;
use gateway_common::standing::Mark;
use rustc_hash::FxHashMap;

use super::error::Error;
use super::standings::own;

pub struct Marks(Array<MapData, u64>);

impl Marks {
    pub fn open(bpf: &Ebpf) -> Result<Self, Error> {
        Ok(Self(own(bpf, MARKS)?.try_into().map_err(Error::map(MARKS))?))
    }

    /// Before the source's penalty is written. Whether its mark is new: nobody else shares it.
    pub fn add(&mut self, source: &Address) -> Result<bool, Error> {
        let mark = Mark::of(source);
        let word = self.0.get(&mark.word(), 0).map_err(Error::map(MARKS))?;
        let is_new = word & mark.bit() == 0;
        if is_new {
            self.0.set(mark.word(), word | mark.bit(), 0).map_err(Error::map(MARKS))?;
        }
        Ok(is_new)
    }

    /// After the penalties of the sources `over` were taken out; `others`: all who have one still, as far as this
    /// gateway knows.
    pub fn remove(&mut self, over: &[Address], others: &[Address]) -> Result<(), Error> {
        let (over, others) = (bits(over), bits(others));
        for (word, over) in over {
            let gone = over & !others.get(&word).copied().unwrap_or_default();
            let marks = self.0.get(&word, 0).map_err(Error::map(MARKS))?;
            if marks & gone != 0 {
                self.0.set(word, marks & !gone, 0).map_err(Error::map(MARKS))?;
            }
        }
        Ok(())
    }
}

/// The marks of these sources, by word.
fn bits(sources: &[Address]) -> FxHashMap<u32, u64> {
    let mut bits = FxHashMap::default();
    for mark in sources.iter().map(Mark::of) {
        *bits.entry(mark.word()).or_default() |= mark.bit();
    }
    bits
}
