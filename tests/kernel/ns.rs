//! `cargo run --release -p gateway-tests --bin kernel-ns`: nanoseconds per verdict, beside the bare cost of
//! an XDP program that answers without looking; with an argument, those rows whose names have it in them. As root;
//! touches no interface.
//!
//! Each row is the least of many short runs of BPF_PROG_TEST_RUN over one packet, which stays in the cache, and what
//! that is over the bare program's in between: what else the machine does makes all of them slower, and none faster.
//! The last rows are of the packets of 4,096 sources in turn.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gateway::config::Kernel;
use gateway::datapath::{Datapath, Entry, sys};
use gateway_common::pressure::{BLOCKING, PENALTIES};
use gateway_common::standing::{BLOCKED, Class, Mark, Penalty};
use gateway_common::{Address, Verdict};
use gateway_tests::kernel::bpf::{Constant, XDP_DROP, XDP_PASS};
use gateway_tests::kernel::packet::{ACK, Extension, Packet, UDP};
use gateway_tests::kernel::policy;
use gateway_tests::kernel::turning::Turning;
use ipnet::IpNet;
use rustix::thread::{CpuSet, sched_setaffinity};

const RUNS: u32 = 200;
const REPEAT: u32 = 20_000;
/// Turns through all sources.
const TURNS: u32 = 20;
/// Sources that the rotating rows go through; those of a block.
const SOURCES: u16 = 4_096;

/// Networks of a long list.
const MANY: u32 = 10_000;

/// What a row needs: a name, a policy, a packet and the verdict that it must meet.
type Row = (&'static str, Kernel, Packet, Verdict);
/// Puts to use what a policy does not say.
type Prepare = fn(&Datapath) -> Result<()>;
/// Measures the packets of many sources.
type Rotate = fn(&Kernel, Prepare, &[SocketAddr], &Packet, Verdict, &Constant) -> Result<(Duration, i128)>;

fn main() -> Result<()> {
    let mut one = CpuSet::new();
    one.set(0);
    sched_setaffinity(None, &one).context("cannot pin to CPU 0")?;

    let listeners: Vec<SocketAddr> = vec!["198.18.0.1:80".parse()?, "[2001:db8::1]:80".parse()?];
    let bare = Constant::load(XDP_PASS).context("cannot load a program (root?)")?;
    println!("| {:<60} | {:>5} | {:>9} | {:>5} |", "verdict", "XDP", "over bare", "TC");
    println!("|{:-<62}|{:->6}:|{:->10}:|{:->6}:|", "", "", "", "");
    for (name, program) in [("bare XDP_PASS", &bare), ("bare XDP_DROP", &Constant::load(XDP_DROP)?)] {
        let time = least(&(0..RUNS).map(|_| repeat(program, &v4().bytes())).collect::<Result<Vec<_>>>()?);
        println!("| {name:<60} | {:>5} | {:>9} | {:>5} |", time.as_nanos(), "", "");
    }
    let part = std::env::args().nth(1).unwrap_or_default();
    let wanted = |row: &(Row, Prepare)| row.0.0.contains(&part);
    let nothing: Prepare = |_| Ok(());
    let plain = rows().into_iter().map(|row| (row, nothing));
    let prepared = [
        (loud(), cookies_may_be_armed as Prepare),
        (all_in_use(), others_penalised),
        (all_full(), many_penalised),
    ];
    for ((name, policy, packet, verdict), prepare) in plain.chain(prepared).filter(wanted) {
        let measure =
            |entry| measure(&policy, prepare, &listeners, entry, &packet, verdict, &bare).context(name);
        let ((xdp, over), (tc, _)) = (measure(Entry::Xdp)?, measure(Entry::Tc)?);
        let name = format!("{}: {name}", verdict.row().name);
        println!("| {name:<60} | {:>5} | {over:>+9} | {:>5} |", xdp.as_nanos(), tc.as_nanos());
    }
    let of_many = [
        (elsewhere(), nothing),
        (few_denied(), nothing),
        (many_denied(), nothing),
        (admitted(), nothing),
        (all_in_use(), others_penalised),
        (all_full(), many_penalised),
    ];
    let each = |row| (row, [("in turn", in_turn as Rotate), ("one call each", one_call_each)].as_slice());
    // A packet that has become its own answer cannot be judged again.
    let once = |row| (row, [("one call each", one_call_each as Rotate)].as_slice());
    let of_many = of_many.into_iter().map(each).chain([once((answered(), cookies_armed as Prepare))]);
    for (((name, policy, packet, verdict), prepare), ways) in of_many.filter(|(row, _)| wanted(row)) {
        for (how, rotate) in ways {
            let (each, over) = rotate(&policy, prepare, &listeners, &packet, verdict, &bare).context(name)?;
            let name = format!("{}: {name}, 4,096 sources, {how}", verdict.row().name);
            println!("| {name:<60} | {:>5} | {over:>+9} | {:>5} |", each.as_nanos(), "");
        }
    }
    Ok(())
}

fn v4() -> Packet {
    Packet::syn(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), 80)
}

/// Those that a row goes through; that of `v4` is one of them.
fn source(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0xc000_0000 + n))
}

fn v6() -> Packet {
    let (source, destination) = ([0x2001, 0xdb8, 7, 0, 0, 0, 0, 7], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
    Packet::syn(IpAddr::from(source), IpAddr::from(destination), 80)
}

/// The budget that never runs out.
fn ample() -> Kernel {
    policy::budget(u32::MAX, u32::MAX)
}

fn admitted() -> Row {
    ("IPv4", ample(), v4(), Verdict::Pass)
}

/// A long list, of single addresses here and there, and one network that holds all the sources of a row.
fn long_list(network: &str) -> Vec<IpNet> {
    let apart = (0..MANY).map(|n| IpNet::from(IpAddr::V4(Ipv4Addr::from_bits(n.wrapping_mul(0x9e37_79b9)))));
    policy::networks(&[network]).into_iter().chain(apart).collect()
}

fn elsewhere() -> Row {
    ("SYN to another port", ample(), Packet { port: 81, ..v4() }, Verdict::NotOurs)
}

/// A list of one network, that of all the sources of a row.
fn few_denied() -> Row {
    ("deny hit", Kernel { deny: policy::networks(&["192.0.0.0/16"]), ..ample() }, v4(), Verdict::Denied)
}

fn many_denied() -> Row {
    ("deny hit in 10,000", Kernel { deny: long_list("192.0.0.0/16"), ..ample() }, v4(), Verdict::Denied)
}

/// Both lists have a network beside the source, in its block of addresses, so that they are searched.
fn searched() -> Kernel {
    Kernel {
        allow: policy::networks(&["192.0.128.0/24"]),
        deny: policy::networks(&["192.0.129.0/24"]),
        ..ample()
    }
}

/// Whoever is known would get a cookie.
fn loud() -> Row {
    ("IPv4, cookies may be armed", Kernel { cookies: true, ..spent() }, v4(), Verdict::OverBudget)
}

/// The budget that has run out at once.
fn spent() -> Kernel {
    policy::budget(1, 1)
}

fn cookies_may_be_armed(datapath: &Datapath) -> Result<()> {
    Ok(datapath.standings()?.can_arm(Some(blocked().until_ns))?)
}

/// Sources without a bucket, of which there may be one a second.
fn answered() -> Row {
    let nobody_new = Kernel { cookies: true, new_sources_per_second: 1, ..ample() };
    ("IPv4, cookies armed", nobody_new, v4(), Verdict::CookieSent)
}

fn cookies_armed(datapath: &Datapath) -> Result<()> {
    cookies_may_be_armed(datapath)?;
    let now_ns = sys::monotonic_ns();
    Ok(datapath.standings()?.arm(Some(blocked().until_ns), now_ns)?)
}

fn all_in_use() -> Row {
    let lists = searched();
    ("IPv4, every list in use", lists, v4(), Verdict::Pass)
}

fn all_full() -> Row {
    ("IPv4, every list full", searched(), v4(), Verdict::Pass)
}

/// Somebody else is blocked, and the least share of all strangers is shed.
fn others_penalised(datapath: &Datapath) -> Result<()> {
    let (mut standings, penalty) = (datapath.standings()?, blocked());
    standings.penalise(Address::from(IpAddr::from([203, 0, 113, 1])), penalty, PENALTIES | BLOCKING)?;
    standings.shed([1, 0, 0], 0, penalty.until_ns)?;
    Ok(())
}

/// So many others are blocked that nearly every source of a row shares its mark with one of them; all strangers are
/// shed, and the row's sources are known, so that they are not.
fn many_penalised(datapath: &Datapath) -> Result<()> {
    const OTHERS: usize = 65_000;
    let (mut standings, penalty) = (datapath.standings()?, blocked());
    let mut marked = HashSet::new();
    let others = (0x0a00_0000..).map(|n| Address::from(IpAddr::V4(Ipv4Addr::from_bits(n))));
    let place = |source: &Address| (Mark::of(source).word(), Mark::of(source).bit());
    for other in others.filter(|other| marked.insert(place(other))).take(OTHERS) {
        standings.penalise(other, penalty, PENALTIES | BLOCKING)?;
    }
    for n in 0..SOURCES {
        standings.know(source(n.into()).into(), Class::Known, penalty.until_ns)?;
    }
    standings.shed([u16::MAX, 0, 0], 0, penalty.until_ns)?;
    Ok(())
}

fn blocked() -> Penalty {
    const HOUR_NS: u64 = 3_600_000_000_000;
    let since_ns = sys::monotonic_ns();
    let until_ns = since_ns + HOUR_NS;
    Penalty { until_ns, since_ns, hits: 0, rule: 1, level: BLOCKED, refused: 50, ignored: 50 }
}

fn rows() -> Vec<Row> {
    use Verdict::{Allowed, Denied, Malformed, NotOurs, OverBudget, Pass};
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
        elsewhere(),
        ("short TCP header", ample(), Packet { tcp_words: 4, ..v4() }, Malformed),
        ("allow hit", lists(&["192.0.2.0/24"], &[]), v4(), Allowed),
        ("deny hit", lists(&[], &["192.0.2.0/24"]), v4(), Denied),
        many_denied(),
        ("deny hit after allow miss", lists(&["192.0.128.0/24"], &["192.0.2.0/24"]), v4(), Denied),
        ("IPv4", spent(), v4(), OverBudget),
        ("IPv6", spent(), v6(), OverBudget),
        admitted(),
        ("IPv4, missed in 10,000", Kernel { deny: long_list("10.0.0.0/16"), ..ample() }, v4(), Pass),
        ("IPv4, both lists missed", lists(&["10.0.0.0/8"], &["11.0.0.0/8"]), v4(), Pass),
        ("IPv4, both lists searched and missed", searched(), v4(), Pass),
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

/// Over one packet: the time of a run, and what that is over a bare program's in between.
fn measure(
    policy: &Kernel,
    prepare: Prepare,
    listeners: &[SocketAddr],
    entry: Entry,
    packet: &Packet,
    verdict: Verdict,
    bare: &Constant,
) -> Result<(Duration, i128)> {
    let mut datapath = Datapath::load(policy, listeners)?;
    prepare(&datapath)?;
    let program = datapath.program(entry)?;
    let frame = packet.bytes();
    let (mut times, mut bare_times) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        bare_times.push(repeat(bare, &frame)?);
        times.push(program.run(&frame, REPEAT)?.duration);
    }
    let met = datapath.counters()?.packets(verdict);
    // A few of the first may still have had a budget, and of all strangers some may be shed.
    ensure!(met + 100 >= u64::from(RUNS * REPEAT), "only {met} packets met {}", verdict.row().name);
    Ok(over(least(&times), least(&bare_times)))
}

/// The packets of all sources, repeated in turn within a call.
fn in_turn(
    policy: &Kernel,
    prepare: Prepare,
    listeners: &[SocketAddr],
    packet: &Packet,
    verdict: Verdict,
    bare: &Constant,
) -> Result<(Duration, i128)> {
    let mut datapath = Datapath::load(policy, listeners)?;
    prepare(&datapath)?;
    let program = datapath.program(Entry::Xdp)?;
    let turning = |next| Turning::before(next, SOURCES).context("no program gives sources their turns");
    let (turning, bare) = (turning(program.as_fd())?, turning(bare.as_fd())?);
    let frame = packet.bytes();
    let (mut times, mut bare_times) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        bare_times.push(sys::test_run(bare.as_fd(), &frame, REPEAT)?.2);
        times.push(sys::test_run(turning.as_fd(), &frame, REPEAT)?.2);
    }
    let met = datapath.counters()?.packets(verdict);
    ensure!(met + 100 >= u64::from(RUNS * REPEAT), "only {met} packets met {}", verdict.row().name);
    Ok(over(least(&times), least(&bare_times)))
}

/// One packet of each source in turn. The kernel times each call, and a single run carries the cost of starting its
/// clock: the bare program's as well.
fn one_call_each(
    policy: &Kernel,
    prepare: Prepare,
    listeners: &[SocketAddr],
    packet: &Packet,
    verdict: Verdict,
    bare: &Constant,
) -> Result<(Duration, i128)> {
    let mut datapath = Datapath::load(policy, listeners)?;
    prepare(&datapath)?;
    let program = datapath.program(Entry::Xdp)?;
    let frames: Vec<_> =
        (0..SOURCES).map(|n| Packet { source: source(n.into()), ..packet.clone() }.bytes()).collect();
    let (mut times, mut bare_times) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (mut total, mut bare_total) = (Duration::ZERO, Duration::ZERO);
        for frame in &frames {
            bare_total += sys::test_run(bare.as_fd(), frame, 1)?.2;
            total += program.run(frame, 1)?.duration;
        }
        times.push(total / u32::from(SOURCES));
        bare_times.push(bare_total / u32::from(SOURCES));
    }
    let met = datapath.counters()?.packets(verdict);
    ensure!(
        met + 100 >= u64::from(TURNS) * u64::from(SOURCES),
        "only {met} packets met {}",
        verdict.row().name
    );
    Ok(over(least(&times), least(&bare_times)))
}

fn repeat(program: &Constant, frame: &[u8]) -> Result<Duration> {
    Ok(sys::test_run(program.as_fd(), frame, REPEAT)?.2)
}

fn over(time: Duration, bare: Duration) -> (Duration, i128) {
    (time, time.as_nanos().cast_signed() - bare.as_nanos().cast_signed())
}

fn least(times: &[Duration]) -> Duration {
    times.iter().min().copied().unwrap_or_default()
}
