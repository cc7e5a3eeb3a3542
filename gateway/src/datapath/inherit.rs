//! What a build with maps of its own takes over from those of the build before: penalties and known sources.
//!
//! `Datapath::start` calls it before a link moves. Allow and deny come from the configuration and from what
//! was said at run time; buckets start full; counters from zero.

use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData};
use aya::{Ebpf, Pod};
use gateway_common::Address;
use gateway_common::maps::{KNOWN, PENALTY, STATE};
use gateway_common::pressure::ATTENTION;
use gateway_common::standing::{Known, Penalty};

use super::error::Error;
use super::policy::map_mut;

/// Copies from the maps pinned in `folder`. What is of another shape there cannot be understood, and is
/// forgotten; that is said.
pub fn inherit(bpf: &mut Ebpf, folder: &Path) {
    let penalties = copy::<Address, Penalty>(bpf, folder, PENALTY).and_then(|count| {
        attend(bpf, folder)?;
        Ok(count)
    });
    let known = copy::<Address, Known>(bpf, folder, KNOWN);
    match (penalties, known) {
        (Ok(penalties), Ok(known)) => {
            tracing::info!(penalties, known, "the kernel half's maps are new, and took these over");
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "the kernel half's maps are new, and could not take over all penalties and known sources");
        }
    }
}

fn copy<K: Pod, V: Pod>(bpf: &mut Ebpf, folder: &Path, name: &'static str) -> Result<usize, Error> {
    let failed = Error::map(name);
    let old = HashMap::<_, K, V>::try_from(pinned(folder, name)?).map_err(&failed)?;
    let mut new = HashMap::<_, K, V>::try_from(map_mut(bpf, name)?).map_err(&failed)?;
    let mut count = 0;
    for entry in old.iter() {
        let (key, value) = entry.map_err(&failed)?;
        new.insert(key, value, 0).map_err(&failed)?;
        count += 1;
    }
    Ok(count)
}

/// Has the kernel half look at penalties from the first packet on.
fn attend(bpf: &mut Ebpf, folder: &Path) -> Result<(), Error> {
    let failed = Error::map(STATE);
    let old = Array::<_, u64>::try_from(pinned(folder, STATE)?).map_err(&failed)?;
    let attention = old.get(&ATTENTION, 0).map_err(&failed)?;
    let mut new = Array::<_, u64>::try_from(map_mut(bpf, STATE)?).map_err(&failed)?;
    new.set(ATTENTION, attention, 0).map_err(&failed)
}

fn pinned(folder: &Path, name: &'static str) -> Result<Map, Error> {
    MapData::from_pin(folder.join(name)).and_then(Map::from_map_data).map_err(Error::map(name))
}
