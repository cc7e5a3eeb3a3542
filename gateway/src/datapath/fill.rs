//! How full the maps are, and whose requests were refused most: read by batches, without stopping anybody.

use aya::maps::MapData;
use aya::maps::lpm_trie::Key;
use aya::{Ebpf, Pod};
use gateway_common::maps::{
    ALLOW, BUCKET, DENY, KNOWN, LISTENERS, MAX_KNOWN, MAX_LISTENERS, MAX_NETWORKS, MAX_PENALTIES,
    MAX_SOURCES, PENALTY,
};
use gateway_common::policy::{Bucket, Charged, Holder, Listener, Rule, Source};
use gateway_common::standing::{Known, Penalty};
use gateway_common::{Address, Family};

use super::error::Error;
use super::standings::shared;
use super::sys;

/// Entries of one system call.
const BATCH: usize = 4_096;

/// Maps whose entries come and go.
pub const MAPS: usize = 6;

/// Entries of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    pub map: &'static str,
    pub entries: u64,
    pub most: u64,
}

/// A source that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loud {
    /// An IPv4 address, or an IPv6 one cut to the policy's prefix.
    pub source: Address,
    /// Connection requests since it got its bucket.
    pub refused: u64,
    /// The last of them, in monotonic nanoseconds.
    pub refused_at_ns: u64,
}

pub fn read(bpf: &Ebpf) -> Result<[Fill; MAPS], Error> {
    let listener = Listener { slot: 0, address: nobody(), port: 0, protocol: 0 };
    let rule = Rule { index: 0, flags: 0, until_ns: 0, watched_until_ns: 0, hits: 0 };
    let network = Key::new(0, Source::new(0, Family::Ipv4, nobody()));
    let fill = |map, entries, most: usize| Fill { map, entries, most: most as u64 };
    Ok([
        fill(LISTENERS, count(bpf, LISTENERS, listener, 0_u32)?, MAX_LISTENERS),
        fill(ALLOW, count(bpf, ALLOW, network, rule)?, MAX_NETWORKS),
        fill(DENY, count(bpf, DENY, network, rule)?, MAX_NETWORKS),
        fill(PENALTY, count(bpf, PENALTY, nobody(), no_penalty())?, MAX_PENALTIES),
        fill(KNOWN, count(bpf, KNOWN, nobody(), unknown())?, MAX_KNOWN),
        fill(BUCKET, count(bpf, BUCKET, holder(), Bucket::default())?, MAX_SOURCES),
    ])
}

/// The `most` sources whose connection requests were refused most often under the budget of this epoch, the loudest first.
pub fn loudest(bpf: &Ebpf, epoch: u32, most: usize) -> Result<Vec<Loud>, Error> {
    let mut loud: Vec<Loud> = Vec::new();
    each(shared(bpf, BUCKET)?, BUCKET, (holder(), Bucket::default()), |holders, buckets| {
        let is_of_requests =
            |holder: &Holder| *holder == Holder::new(holder.address, epoch, Charged::Requests);
        let refused = holders.iter().zip(buckets).filter(|(_, bucket)| bucket.refused > 0);
        loud.extend(refused.filter(|(holder, _)| is_of_requests(holder)).map(|(holder, bucket)| Loud {
            source: holder.address,
            refused: bucket.refused,
            refused_at_ns: bucket.refused_at_ns,
        }));
        loud.sort_unstable_by_key(|loud| std::cmp::Reverse(loud.refused));
        loud.truncate(most);
    })?;
    Ok(loud)
}

pub(super) fn nobody() -> Address {
    Address::from_words([0; 4])
}

pub(super) fn holder() -> Holder {
    Holder::new(nobody(), 0, Charged::Requests)
}

pub(super) fn no_penalty() -> Penalty {
    Penalty { until_ns: 0, since_ns: 0, hits: 0, rule: 0, level: 0, refused: 0, ignored: 0 }
}

pub(super) fn unknown() -> Known {
    Known { until_ns: 0, class: 0, reserved: 0 }
}

fn count<K: Pod, V: Pod>(bpf: &Ebpf, name: &'static str, key: K, value: V) -> Result<u64, Error> {
    let mut entries = 0;
    each(shared(bpf, name)?, name, (key, value), |keys, _| entries += keys.len() as u64)?;
    Ok(entries)
}

/// Hands all entries of `map` to `read`, some at a time. `room`: what the room for them is filled with.
pub(super) fn each<K: Pod, V: Pod>(
    map: &MapData,
    name: &'static str,
    (key, value): (K, V),
    read: impl FnMut(&[K], &[V]),
) -> Result<(), Error> {
    let (mut keys, mut values) = (vec![key; BATCH], vec![value; BATCH]);
    let failed = |error: std::io::Error| Error::Map { map: name, reason: error.to_string() };
    sys::map_read(map, &mut keys, &mut values, read).map_err(failed)
}
