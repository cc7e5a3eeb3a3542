//! `cargo run --release -p gateway-tests --bin kernel-ns`: nanoseconds per verdict, beside the bare cost of
//! an XDP program that answers without looking. As root; touches no interface.
//!
//! Each row is the median of several runs of BPF_PROG_TEST_RUN over one packet, which stays in the cache.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gateway::config::Kernel;
use gateway::datapath::{Datapath, Entry, Program, sys};
use gateway_common::Verdict;
use gateway_tests::kernel::bpf::{Constant, XDP_DROP, XDP_PASS};
use gateway_tests::kernel::packet::{ACK, Extension, Packet, UDP};
use gateway_tests::kernel::policy;
use rustix::thread::{CpuSet, sched_setaffinity};

const RUNS: usize = 7;
const REPEAT: u32 = 1_000_000;
/// Sources that the rotating row goes through.
const SOURCES: u32 = 4_096;

/// What a row needs: a name, a policy, a packet and the verdict that it must meet.
type Row = (&'static str, Kernel, Packet, Verdict);

fn main() -> Result<()> {
    let mut one = CpuSet::new();
    one.set(0);
    sched_setaffinity(None, &one).context("cannot pin to CPU 0")?;

    let listeners: Vec<SocketAddr> = vec!["198.18.0.1:80".parse()?, "[2001:db8::1]:80".parse()?];
    println!("| {:<44} | {:>5} | {:>5} |", "verdict", "XDP", "TC");
    println!("|{:-<46}|{:->6}:|{:->6}:|", "", "", "");
    for (name, answer) in [("bare XDP_PASS", XDP_PASS), ("bare XDP_DROP", XDP_DROP)] {
        let program = Constant::load(answer).context("cannot load a program (root?)")?;
        let frame = v4().bytes();
        let time = median(|| Ok(sys::test_run(program.as_fd(), &frame, REPEAT)?.2))?;
        println!("| {name:<44} | {:>5} | {:>5} |", time.as_nanos(), "");
    }
    for (name, policy, packet, verdict) in rows() {
        let xdp = measure(&policy, &listeners, Entry::Xdp, &packet, verdict).context(name)?;
        let tc = measure(&policy, &listeners, Entry::Tc, &packet, verdict).context(name)?;
        let name = format!("{}: {name}", verdict.row().name);
        println!("| {name:<44} | {:>5} | {:>5} |", xdp.as_nanos(), tc.as_nanos());
    }
    let mut datapath = Datapath::load(&policy::open(), &listeners)?;
    let program = datapath.program(Entry::Xdp)?;
    let time = median(|| rotate(&program))?;
    println!("| {:<44} | {:>5} | {:>5} |", "pass: 4,096 sources in turn, one run each", time.as_nanos(), "");
    Ok(())
}

fn v4() -> Packet {
    Packet::syn(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), 80)
}

fn v6() -> Packet {
    let (source, destination) = ([0x2001, 0xdb8, 7, 0, 0, 0, 0, 7], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
    Packet::syn(IpAddr::from(source), IpAddr::from(destination), 80)
}

fn rows() -> Vec<Row> {
    use Verdict::{Allowed, Denied, Malformed, NotOurs, OverBudget, Pass};
    // The budget that never runs out, and the one that has run out at once.
    let ample = || policy::budget(u32::MAX, u32::MAX);
    let spent = policy::budget(1, 1);
    let lists = |allow: &[&str], deny: &[&str]| Kernel {
        allow: policy::networks(allow),
        deny: policy::networks(deny),
        ..ample()
    };
    let chain =
        vec![Extension::HopByHop, Extension::Destination, Extension::Routing, Extension::Authentication];
    vec![
        ("no IP", ample(), Packet { ethertype: Some(0x0806), ..v4() }, NotOurs),
        ("no TCP", ample(), Packet { protocol: UDP, ..v4() }, NotOurs),
        ("no SYN", ample(), Packet { flags: ACK, ..v4() }, NotOurs),
        ("SYN to another port", ample(), Packet { port: 81, ..v4() }, NotOurs),
        ("short TCP header", ample(), Packet { tcp_words: 4, ..v4() }, Malformed),
        ("allow hit", lists(&["192.0.2.0/24"], &[]), v4(), Allowed),
        ("deny hit", lists(&[], &["192.0.2.0/24"]), v4(), Denied),
        ("deny hit after allow miss", lists(&["10.0.0.0/8"], &["192.0.2.0/24"]), v4(), Denied),
        ("IPv4", spent.clone(), v4(), OverBudget),
        ("IPv6", spent, v6(), OverBudget),
        ("IPv4", ample(), v4(), Pass),
        ("IPv4, both lists missed", lists(&["10.0.0.0/8"], &["11.0.0.0/8"]), v4(), Pass),
        (
            "IPv4, QinQ and IP options",
            ample(),
            Packet { vlans: vec![0x88a8, 0x8100], option_words: 4, ..v4() },
            Pass,
        ),
        ("IPv6", ample(), v6(), Pass),
        ("IPv6, four extension headers", ample(), Packet { extensions: chain, ..v6() }, Pass),
    ]
}

fn measure(
    policy: &Kernel,
    listeners: &[SocketAddr],
    entry: Entry,
    packet: &Packet,
    verdict: Verdict,
) -> Result<Duration> {
    let mut datapath = Datapath::load(policy, listeners)?;
    let program = datapath.program(entry)?;
    let frame = packet.bytes();
    let time = median(|| Ok(program.run(&frame, REPEAT)?.duration))?;
    let met = datapath.counters()?.packets(verdict);
    // A few of the first may still have had a budget.
    ensure!(met + 100 >= RUNS as u64 * u64::from(REPEAT), "only {met} packets met {}", verdict.row().name);
    Ok(time)
}

/// One packet of each source in turn, so that the bucket entries do not stay in the cache. The kernel times
/// each run, and a single run carries the cost of starting its clock.
fn rotate(program: &Program) -> Result<Duration> {
    let frames: Vec<Vec<u8>> = (0..SOURCES)
        .map(|source| {
            Packet { source: IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + source)), ..v4() }.bytes()
        })
        .collect();
    let mut total = Duration::ZERO;
    for frame in &frames {
        total += program.run(frame, 1)?.duration;
    }
    Ok(total / SOURCES)
}

fn median(mut run: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let mut times = (0..RUNS).map(|_| run()).collect::<Result<Vec<_>>>()?;
    times.sort();
    Ok(times[RUNS / 2])
}
