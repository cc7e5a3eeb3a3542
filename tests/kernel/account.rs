//! What `explain` foretells of a source is what its next connection request meets.

use std::net::IpAddr;

use gateway::config::{Ceiling, Kernel, KernelMode};
use gateway::datapath::{Entry, Standings, sys};
use gateway_common::Verdict;
use gateway_common::pressure::{BLOCKING, PENALTIES};
use gateway_common::standing::{BLOCKED, Class, Penalty, SLOWED};
use gateway_tests::kernel::packet::Packet;
use gateway_tests::kernel::policy::{budget, networks};

use crate::load;

/// Far beyond the end of the test.
fn later() -> u64 {
    sys::monotonic_ns() + 3_600_000_000_000
}

fn know(standings: &mut Standings, source: IpAddr) {
    standings.know(source.into(), Class::Known, later()).unwrap();
}

fn penalise(standings: &mut Standings, source: IpAddr, level: u32) {
    let penalty =
        Penalty { until_ns: later(), since_ns: 1, hits: 0, rule: 1, level, refused: 60, ignored: 50 };
    standings.penalise(source.into(), penalty, PENALTIES | BLOCKING).unwrap();
}

/// A source, what is said of it, how many requests it has sent, and the verdict on the next.
type Row<'a> = (&'a str, &'a dyn Fn(&mut Standings, IpAddr), usize, Verdict);

fn check(entry: Entry, policy: &Kernel, rows: &[Row<'_>]) {
    let mut datapath = load(policy);
    let program = datapath.program(entry).unwrap();
    let mut standings = datapath.standings().unwrap();
    standings.can_arm(Some(later())).unwrap();
    for (source, say, sent, verdict) in rows {
        let source: IpAddr = source.parse().unwrap();
        let frame = Packet::syn(source, "198.18.0.1".parse().unwrap(), 80).bytes();
        say(&mut standings, source);
        (0..*sent).for_each(|_| drop(program.run(&frame, 1).unwrap()));
        let told = datapath.account(source).unwrap();
        let before = datapath.counters().unwrap();
        program.run(&frame, 1).unwrap();
        let after = datapath.counters().unwrap();
        let met = Verdict::ALL.into_iter().find(|met| after.packets(*met) > before.packets(*met));
        assert_eq!((told.verdict, met), (*verdict, Some(*verdict)), "{source} at {entry:?}: {told:?}");
    }
}

#[test]
fn what_is_foretold_is_what_is_met() {
    use Verdict::{Allowed, CookieSent, Denied, Flooded, OverBudget, OverCeiling, Pass, Penalised, Shed};
    let (nothing, slow) = (
        |_: &mut Standings, _: IpAddr| {},
        |standings: &mut Standings, source: IpAddr| {
            penalise(standings, source, SLOWED);
        },
    );
    let armed = |standings: &mut Standings, source: IpAddr| {
        standings.arm(Some(later()), 0).unwrap();
        know(standings, source);
    };
    let policy = Kernel {
        allow: networks(&["192.0.2.1/32"]),
        deny: networks(&["192.0.2.1/32", "192.0.2.2/32"]),
        trusted: networks(&["192.0.2.3/32"]),
        ..budget(1, 3)
    };
    let rows: [Row<'_>; 10] = [
        ("192.0.2.1", &nothing, 9, Allowed),
        ("192.0.2.2", &nothing, 1, Denied),
        ("192.0.2.3", &nothing, 9, Allowed),
        ("192.0.2.4", &nothing, 2, Pass),
        ("192.0.2.4", &nothing, 1, OverBudget),
        ("192.0.2.5", &slow, 0, Pass),
        ("192.0.2.5", &slow, 0, Penalised),
        ("192.0.2.6", &|standings, source| penalise(standings, source, BLOCKED), 0, Penalised),
        ("192.0.2.7", &know, 3, Flooded),
        // The first is a seed.
        ("192.0.2.8", &armed, 4, CookieSent),
    ];
    check(Entry::Xdp, &policy, &rows);
    let shed = |standings: &mut Standings, _: IpAddr| standings.shed([u16::MAX, 0, 0], 0, later()).unwrap();
    check(Entry::Xdp, &policy, &[("192.0.2.4", &shed, 0, Shed), ("192.0.2.7", &know, 0, Pass)]);

    // Only XDP answers, and has a ceiling.
    let ceiling = Some(Ceiling { per_second: 1, burst: 2 });
    let rows: [Row<'_>; 2] = [("192.0.2.4", &nothing, 2, OverCeiling), ("192.0.2.6", &slow, 2, OverCeiling)];
    check(Entry::Xdp, &Kernel { ceiling, ..policy.clone() }, &rows);
    let rows: [Row<'_>; 2] = [("192.0.2.4", &nothing, 2, Pass), ("192.0.2.7", &know, 3, OverBudget)];
    check(Entry::Tc, &Kernel { ceiling, mode: KernelMode::Tc, ..policy }, &rows);
}
