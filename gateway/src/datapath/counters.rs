//! Counters: what became of the packets, by verdict and family, summed over CPUs.

use aya::Ebpf;
use aya::maps::PerCpuArray;
use gateway_common::counters::{CELLS, cell};
use gateway_common::maps::COUNTERS;
use gateway_common::{Count, Family, Verdict};

use super::error::Error;
use super::policy::map;

/// One reading of all cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    cells: [Count; CELLS],
}

impl Counters {
    pub fn get(&self, verdict: Verdict, family: Family) -> Count {
        self.cells[cell(verdict, family) as usize]
    }

    /// Packets of one verdict, of every family.
    pub fn packets(&self, verdict: Verdict) -> u64 {
        Family::ALL.into_iter().map(|family| self.get(verdict, family).packets).sum()
    }

    /// Every cell with its labels, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = (Verdict, Family, Count)> + '_ {
        let labels = Verdict::ALL.into_iter().flat_map(|verdict| Family::ALL.map(|family| (verdict, family)));
        labels.map(|(verdict, family)| (verdict, family, self.get(verdict, family)))
    }
}

pub fn read(bpf: &Ebpf) -> Result<Counters, Error> {
    let map = PerCpuArray::<_, Count>::try_from(map(bpf, COUNTERS)?).map_err(Error::map(COUNTERS))?;
    let mut cells = [Count::default(); CELLS];
    for (index, total) in (0..).zip(&mut cells) {
        let of_cpus = map.get(&index, 0).map_err(Error::map(COUNTERS))?;
        for count in of_cpus.iter() {
            total.packets = total.packets.wrapping_add(count.packets);
            total.bytes = total.bytes.wrapping_add(count.bytes);
        }
    }
    Ok(Counters { cells })
}
