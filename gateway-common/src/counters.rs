//! Counters: one cell per verdict and family, on each CPU its own. The kernel half adds at its one
//! exit; the userspace half sums over CPUs.

use crate::{Family, Verdict};

/// Cells of the counter map.
pub const CELLS: usize = Verdict::ALL.len() * Family::ALL.len();

/// Packets and bytes that met one verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// The cell of a verdict and a family.
#[inline(always)]
pub const fn cell(verdict: Verdict, family: Family) -> u32 {
    verdict as u32 * Family::ALL.len() as u32 + family as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_fill_the_map_without_a_gap() {
        let cells = Verdict::ALL.iter().flat_map(|verdict| Family::ALL.map(|family| cell(*verdict, family)));
        assert!(cells.eq(0..CELLS as u32));
    }
}
