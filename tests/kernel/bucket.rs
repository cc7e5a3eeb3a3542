//! Two CPUs charging one bucket at once: together they are granted what one would be.

use std::thread;
use std::time::{Duration, Instant};

use gateway::datapath::{Entry, Program};
use gateway_common::Verdict;
use gateway_tests::kernel::packet::Packet;
use gateway_tests::kernel::policy::budget;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::load;

const BURST: u32 = 200_000;
const TRIES: u32 = 600_000;

/// Sends so many requests of the one source from one CPU: in one go, since each go waits for the kernel.
fn charge(program: &Program, frame: &[u8], cpu: usize, tries: u32) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).unwrap();
    program.run(frame, tries).unwrap();
}

#[test]
fn two_cpus_on_one_source_never_over_admit() {
    let frame = Packet::syn("192.0.2.7".parse().unwrap(), "198.18.0.1".parse().unwrap(), 80).bytes();
    // One a second is earned back: over the seconds of this test, next to nothing.
    let mut datapath = load(&budget(1, BURST));
    let program = datapath.program(Entry::Xdp).unwrap();
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| charge(&program, &frame, 0, TRIES));
        scope.spawn(|| charge(&program, &frame, 1, TRIES));
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

/// A hundred thousand a second: two seconds until it is full.
const RATE: u32 = 100_000;
const MANY_TRIES: u32 = 4_000_000;

/// No more and no less than the time that passed has earned, while two CPUs want more.
#[test]
fn two_cpus_on_one_source_are_granted_what_is_earned_meanwhile() {
    /// The kernel's clock stands still between two ticks, of 10 ms at most.
    const GRAIN: Duration = Duration::from_millis(10);
    let frame = Packet::syn("192.0.2.7".parse().unwrap(), "198.18.0.1".parse().unwrap(), 80).bytes();
    let mut datapath = load(&budget(RATE, BURST));
    let program = datapath.program(Entry::Xdp).unwrap();
    let before_first = Instant::now();
    program.run(&frame, 1).unwrap();
    let first = Instant::now();
    program.run(&frame, BURST).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| charge(&program, &frame, 0, MANY_TRIES));
        scope.spawn(|| charge(&program, &frame, 1, MANY_TRIES));
    });
    let last = Instant::now();
    // What is left.
    program.run(&frame, BURST).unwrap();
    let after_last = Instant::now();

    let counters = datapath.counters().unwrap();
    assert_eq!(counters.packets(Verdict::Contended), 0);
    let granted = |time: Duration| u64::from(BURST) + (time.as_secs_f64() * f64::from(RATE)) as u64;
    let least = granted((last - first).saturating_sub(GRAIN));
    let most = granted(after_last - before_first + GRAIN) + 1;
    let passed = counters.packets(Verdict::Pass);
    assert!((least..=most).contains(&passed), "{passed} granted, not {least} to {most}");
}
