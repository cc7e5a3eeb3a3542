//! Pressure as tables: what readings lead to, round by round, and who gives way.

use super::*;

const DELAY: Duration = Duration::from_millis(50);
const ROUND: Duration = Duration::from_millis(100);
const EASE: Readings = Readings { delay: Duration::ZERO, memory: 0.3, descriptors: 0.1 };

fn rules() -> Overload {
    Overload {
        enabled: true,
        min_concurrency: 64,
        queue: 0,
        queue_timeout: Duration::ZERO,
        max_delay: DELAY,
        exempt_paths: Vec::new(),
        max_memory_bytes: None,
    }
}

fn short_of(cause: Cause, load: f64) -> Readings {
    match cause {
        Cause::Delay => Readings { delay: DELAY.mul_f64(load), ..EASE },
        Cause::Memory => Readings { memory: MEMORY.0 * load, ..EASE },
        Cause::Descriptors => Readings { descriptors: DESCRIPTORS.0 * load, ..EASE },
        Cause::Limit | Cause::Queue => unreachable!("not the gateway's own"),
    }
}

#[test]
fn each_reading_has_a_bound_of_its_own() {
    for cause in [Cause::Delay, Cause::Memory, Cause::Descriptors] {
        let verdict = Pressure::default().round(&short_of(cause, 0.99), 1_000, &rules(), Instant::now());
        assert_eq!(verdict.total, UNLIMITED, "{cause:?}");
        let verdict = Pressure::default().round(&short_of(cause, 1.01), 1_000, &rules(), Instant::now());
        assert_eq!((verdict.total, verdict.state.cause), (800, cause));
        assert_eq!(verdict.state.permille, 1010);
    }
}

/// Nor does the kernel half shed for it, which goes by `lasting`; and when it is enabled, refusals have their time.
#[test]
fn disabled_it_refuses_nothing() {
    let (mut pressure, start) = (Pressure::default(), Instant::now());
    let short = short_of(Cause::Memory, 2.0);
    let [off, on] = [false, true].map(|enabled| Overload { enabled, ..rules() });
    for (round, rules, want) in [
        (0, &off, (UNLIMITED, false, false)),
        (20, &off, (UNLIMITED, false, false)),
        (21, &on, (800, true, false)),
        (30, &on, (640, true, false)),
        (31, &on, (512, true, true)),
        (32, &off, (UNLIMITED, false, false)),
    ] {
        let Verdict { total, state } = pressure.round(&short, 1_000, rules, start + ROUND * round);
        assert_eq!((total, state.shedding, state.lasting), want, "{round}");
        assert_eq!((state.permille, state.cause), (2_000, Cause::Memory), "it is shown");
    }
}

#[test]
fn at_ease_there_is_no_distress() {
    let verdict = Pressure::default().round(&EASE, 1_000, &rules(), Instant::now());
    assert_eq!((verdict.total, verdict.state.lasting), (UNLIMITED, false));
    assert!(verdict.state.permille < 500);
}

#[test]
fn it_falls_to_the_floor_holds_and_comes_back() {
    let (mut pressure, start) = (Pressure::default(), Instant::now());
    let mut rounds = 0;
    let mut round = |readings: &Readings, active| {
        rounds += 1;
        pressure.round(readings, active, &rules(), start + ROUND * rounds)
    };
    let short = short_of(Cause::Memory, 1.1);
    let mut active = 1_000;
    let mut last = round(&short, active);
    assert!(!last.state.lasting, "refusals have had no time to help");
    for _ in 0..20 {
        active = active.min(last.total);
        let next = round(&short, active);
        assert!(next.total <= last.total && next.total >= 64);
        last = next;
    }
    assert_eq!(last.total, 64);
    assert!(last.state.lasting);
    // Below the bound, above the lower one.
    let between = Readings { memory: 0.8, ..EASE };
    for _ in 0..50 {
        let verdict = round(&between, 64);
        assert_eq!((verdict.total, verdict.state.lasting), (64, false));
    }
    // Enough again: more and more, and then no bound at all.
    let mut total = 64;
    for _ in 0..60 {
        let verdict = round(&EASE, total.min(1_000));
        assert!(verdict.total > total || verdict.total == UNLIMITED);
        total = verdict.total;
    }
    assert_eq!(total, UNLIMITED);
}

#[test]
fn who_holds_most_gives_way_alone() {
    let (high, normal, low) = (Priority::High, Priority::Normal, Priority::Low);
    for (total, routes, want) in [
        (UNLIMITED, vec![(normal, 5), (low, 7)], vec![UNLIMITED, UNLIMITED]),
        // The slow one has nine tenths.
        (500, vec![(normal, 900), (normal, 60), (normal, 40)], vec![400, 400, 400]),
        (300, vec![(normal, 900), (normal, 900), (normal, 10)], vec![145, 145, 145]),
        // Low goes first, high last.
        (500, vec![(low, 400), (normal, 400), (high, 200)], vec![0, 300, 500]),
        (150, vec![(low, 400), (normal, 400), (high, 200)], vec![0, 0, 150]),
        // Nothing to share, and nobody to share it.
        (0, vec![(normal, 3)], vec![0]),
        (100, vec![], vec![]),
        // A route without requests may have its part.
        (100, vec![(normal, 0), (normal, 200)], vec![100, 100]),
    ] {
        assert_eq!(ceilings(total, &routes), want, "{total} for {routes:?}");
    }
}

/// Whatever is asked for, what is kept fits, and no route that loses something has less than one that loses nothing.
#[test]
fn shares_fit_and_are_fair() {
    let mut state = 1u32;
    let mut random = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    for _ in 0..5_000 {
        let routes: Vec<_> = (0..1 + random(12))
            .map(|_| ([Priority::Low, Priority::Normal, Priority::High][random(3) as usize], random(1_000)))
            .collect();
        let total = random(5_000);
        let ceilings = ceilings(total, &routes);
        let kept = |&(active, ceiling): &(u32, u32)| active.min(ceiling);
        let all: Vec<_> = routes.iter().map(|(_, active)| *active).zip(ceilings.iter().copied()).collect();
        assert!(all.iter().map(kept).sum::<u32>() <= total);
        for ((mine, (active, ceiling)), (theirs, other)) in
            routes.iter().map(|(priority, _)| priority).zip(&all).flat_map(|one| {
                routes.iter().map(|(priority, _)| priority).zip(&all).map(move |other| (one, other))
            })
        {
            if active > ceiling && mine >= theirs {
                assert!(*ceiling >= kept(other), "{mine:?} {ceiling}, {theirs:?} {other:?}");
            }
        }
    }
}

#[test]
fn whoever_is_known_better_is_refused_later() {
    for (ceiling, want) in
        [(0, [0, 0, 0]), (2, [0, 0, 2]), (64, [0, 16, 64]), (UNLIMITED, [0, UNLIMITED / 4, UNLIMITED])]
    {
        assert_eq!(Class::ALL.map(|class| favoured(ceiling, class)), want);
    }
}
