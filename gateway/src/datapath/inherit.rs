//! What maps take over that replace those of the gateway before: what was learned of sources.
//!
//! `Datapath` calls it before a link moves. Allow and deny come from the configuration and from what
//! was said at run time; counters start from zero. Maps of another contract give penalties and known sources
//! only, if those have kept their shape; buckets then start full.

use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData};
use aya::{Ebpf, Pod};
use gateway_common::maps::{BUCKET, KNOWN, PENALTY, POLICY, SELECTOR, STATE};
use gateway_common::policy::{Bucket, Policy, SLOTS};
use gateway_common::pressure::ATTENTION;

use super::bequest::Bequest;
use super::error::Error;
use super::fill;
use super::marks::Marks;
use super::policy::{array, map_mut};
use super::standings::{data, shared};

/// Copies from the maps pinned in `folder`. What is of another shape there cannot be understood, and is
/// forgotten; that is said.
pub fn inherit(bpf: &mut Ebpf, folder: &Path) {
    said(learned(bpf, &|name| pinned(folder, name)));
}

/// Copies the policies of a running gateway: without those that they were charged by, buckets mean nothing.
pub fn inherit_policy(bpf: &mut Ebpf, bequest: &Bequest) -> Result<(), Error> {
    let old = |name| bequest.map(name);
    if !bequest.is_of_this_contract() {
        return Ok(());
    }
    copy_array::<u32>(bpf, &old, SELECTOR, 1)?;
    copy_array::<Policy>(bpf, &old, POLICY, SLOTS as u32)
}

/// Copies from the maps that a running gateway hands over. What sources spend between this and the move of the
/// links is forgiven them.
pub fn inherit_from(bpf: &mut Ebpf, bequest: &Bequest) {
    let old = |name| bequest.map(name);
    let spent = if bequest.is_of_this_contract() {
        copy(bpf, &old, BUCKET, (fill::holder(), Bucket::default()))
    } else {
        Ok(0)
    };
    if let Err(error) = spent {
        tracing::warn!(%error, "the kernel half's maps are new, and sources start with full budgets");
    }
    said(learned(bpf, &old));
}

type Old<'a> = &'a dyn Fn(&'static str) -> Result<Map, Error>;

/// Penalties and known sources.
fn learned(bpf: &mut Ebpf, old: Old<'_>) -> Result<[usize; 2], Error> {
    let penalties = copy(bpf, old, PENALTY, (fill::nobody(), fill::no_penalty())).and_then(|count| {
        attend(bpf, old)?;
        Ok(count)
    });
    // What one cannot give does not keep the other.
    let known = copy(bpf, old, KNOWN, (fill::nobody(), fill::unknown()));
    Ok([penalties?, known?])
}

fn said(learned: Result<[usize; 2], Error>) {
    match learned {
        Ok([penalties, known]) => {
            tracing::info!(penalties, known, "the kernel half's maps are new, and took these over");
        }
        Err(error) => {
            tracing::warn!(%error, "the kernel half's maps are new, and could not take over all penalties and known sources");
        }
    }
}

/// `room`: what the room for a batch is filled with.
fn copy<K: Pod, V: Pod>(
    bpf: &mut Ebpf,
    old: Old<'_>,
    name: &'static str,
    room: (K, V),
) -> Result<usize, Error> {
    let failed = Error::map(name);
    let old = old(name)?;
    let mut new = HashMap::<_, K, V>::try_from(map_mut(bpf, name)?).map_err(&failed)?;
    let (mut count, mut refused) = (0, Ok(()));
    fill::each(data(&old, name)?, name, room, |keys, values| {
        for (key, value) in keys.iter().zip(values) {
            refused = std::mem::replace(&mut refused, Ok(())).and(new.insert(key, value, 0));
            count += 1;
        }
    })?;
    refused.map_err(&failed)?;
    Ok(count)
}

fn copy_array<V: Pod>(bpf: &mut Ebpf, old: Old<'_>, name: &'static str, entries: u32) -> Result<(), Error> {
    let failed = Error::map(name);
    let old = Array::<_, V>::try_from(old(name)?).map_err(&failed)?;
    let mut new = array::<V>(bpf, name)?;
    (0..entries).try_for_each(|place| new.set(place, old.get(&place, 0)?, 0)).map_err(&failed)
}

/// Has the kernel half look at the penalties that were copied, from the first packet on.
fn attend(bpf: &mut Ebpf, old: Old<'_>) -> Result<(), Error> {
    let mut marks = Marks::open(bpf)?;
    let mut marked = Ok(());
    fill::each(shared(bpf, PENALTY)?, PENALTY, (fill::nobody(), fill::no_penalty()), |sources, _| {
        for source in sources {
            marked = std::mem::replace(&mut marked, Ok(())).and_then(|()| marks.add(source).map(drop));
        }
    })?;
    marked?;
    let failed = Error::map(STATE);
    let old = Array::<_, u64>::try_from(old(STATE)?).map_err(&failed)?;
    let attention = old.get(&ATTENTION, 0).map_err(&failed)?;
    array::<u64>(bpf, STATE)?.set(ATTENTION, attention, 0).map_err(&failed)
}

fn pinned(folder: &Path, name: &'static str) -> Result<Map, Error> {
    MapData::from_pin(folder.join(name)).and_then(Map::from_map_data).map_err(Error::map(name))
}
