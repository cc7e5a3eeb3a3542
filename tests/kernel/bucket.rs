//! Two CPUs charging one bucket at once: together they are granted what one would be.

use std::thread;
use std::time::Instant;

use gateway::datapath::{Entry, Program};
use gateway_common::Verdict;
use gateway_tests::kernel::packet::Packet;
use gateway_tests::kernel::policy::budget;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::load;

const BURST: u32 = 200_000;
const TRIES: u32 = 600_000;

/// Sends `TRIES` requests of the one source from one CPU.
fn charge(program: &Program, frame: &[u8], cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).unwrap();
    program.run(frame, TRIES).unwrap();
}

#[test]
fn two_cpus_on_one_source_never_over_admit() {
    let frame = Packet::syn("192.0.2.7".parse().unwrap(), "198.18.0.1".parse().unwrap(), 80).bytes();
    // One a second is earned back: over the seconds of this test, next to nothing.
    let mut datapath = load(&budget(1, BURST));
    let program = datapath.program(Entry::Xdp).unwrap();
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| charge(&program, &frame, 0));
        scope.spawn(|| charge(&program, &frame, 1));
    });
    let earned = start.elapsed().as_secs() + 1;
    let counters = datapath.counters().unwrap();
    let (granted, refused) = (counters.packets(Verdict::Pass), counters.packets(Verdict::OverBudget));
    // Only the first charge of all is an exchange.
    assert_eq!(counters.packets(Verdict::Contended), 0);
    assert_eq!(granted + refused, 2 * u64::from(TRIES));
    assert!(granted <= u64::from(BURST) + earned, "{granted} granted of {BURST}");
    assert!(granted >= u64::from(BURST), "only {granted} granted of {BURST}: refused without need");
}
