//! The set of sources that may have a penalty: the kernel half looks no others up.
//!
//! Sources share marks, so a mark goes when the last penalty of its word's sources is gone. Nothing is kept here: a
//! gateway and its successor may write the same map.

use aya::Ebpf;
use aya::maps::{Array, MapData};
use gateway_common::Address;
use gateway_common::maps::MARKS;
use gateway_common::standing::Mark;

use super::error::Error;
use super::standings::own;

pub struct Marks(Array<MapData, u64>);

impl Marks {
    pub fn open(bpf: &Ebpf) -> Result<Self, Error> {
        Ok(Self(own(bpf, MARKS)?.try_into().map_err(Error::map(MARKS))?))
    }

    /// Before the source's penalty is written.
    pub fn add(&mut self, source: &Address) -> Result<(), Error> {
        let mark = Mark::of(source);
        let word = self.0.get(&mark.word(), 0).map_err(Error::map(MARKS))?;
        if word & mark.bit() != 0 {
            return Ok(());
        }
        self.0.set(mark.word(), word | mark.bit(), 0).map_err(Error::map(MARKS))
    }

    /// After the penalties of the sources `over` were taken out; `others`: all who have one still.
    pub fn remove(&mut self, over: &[Address], others: impl Iterator<Item = Address>) -> Result<(), Error> {
        let mut kept = vec![0; Mark::WORDS];
        for mark in others.map(|source| Mark::of(&source)) {
            kept[mark.word() as usize] |= mark.bit();
        }
        for word in over.iter().map(|source| Mark::of(source).word()) {
            self.0.set(word, kept[word as usize], 0).map_err(Error::map(MARKS))?;
        }
        Ok(())
    }
}
