//! Many workers behind one address, each waiting for as long as its own 429 said: never are they suspects. And one
//! source that waits for nobody: always it is one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;
use crate::limit::refusals::{Consequence, Refusal};

const CLIENT: u32 = 0x0a00_0001;
const START_NS: u64 = 100_000 * SECOND_NS;
const MS: u64 = 1_000_000;

/// How the workers of a source behave.
#[derive(Clone, Copy, Debug)]
struct Workers {
    count: usize,
    /// Among which they take turns; as many as there are workers: each has its own.
    connections: usize,
    /// They set out at most so long after the time that they were told. Those who were served ask again whenever
    /// they like.
    late_ms: u64,
    waits: bool,
}

/// What the source has met in the end.
#[derive(Debug, Default)]
struct Met {
    served: u64,
    refused: u64,
    ended: u64,
    longest_wait_s: u32,
    /// Seconds after the start at which it was a suspect first.
    suspect_s: Option<u64>,
}

fn play(rig: &Rig, workers: Workers, seconds: u64, seed: u64) -> Met {
    let mut random = Random(seed);
    let begin = |worker| Reverse((START_NS + random.below(1_000) * MS, worker));
    let mut due: BinaryHeap<_> = (0..workers.count).map(begin).collect();
    let mut told_until = vec![0; workers.connections];
    let mut met = Met::default();
    while let Some(Reverse((now, worker))) = due.pop()
        && now < START_NS + seconds * SECOND_NS
    {
        let connection = match workers.connections == workers.count {
            true => worker,
            false => random.below(workers.connections as u64) as usize,
        };
        let refusals = &rig.limits.refusals;
        let after_ns = match rig.ask(CLIENT, None, now) {
            Ok(_) => {
                met.served += 1;
                refusals.other(IpAddr::from(CLIENT.to_be_bytes()), false, now);
                if workers.waits { random.below(4_000) * MS } else { 10 * MS }
            }
            Err(denial) => {
                met.refused += 1;
                let (source, again) = (IpAddr::from(CLIENT.to_be_bytes()), now < told_until[connection]);
                let rule = rig.rules.rule(denial.rule).number;
                let (route, wait_s) = (rig.rules.route, denial.wait_s);
                let refusal = Refusal { source, route, rule, wait_s, again };
                let Consequence { wait_s, is_of_flood, suspect, .. } = refusals.refused(refusal, now);
                let wait_ns = u64::from(wait_s) * SECOND_NS;
                // A connection that has ended is followed by one that knows nothing.
                told_until[connection] = if is_of_flood { 0 } else { now + wait_ns };
                met.ended += u64::from(is_of_flood);
                met.longest_wait_s = met.longest_wait_s.max(wait_s);
                if suspect.is_some() {
                    met.suspect_s.get_or_insert((now - START_NS) / SECOND_NS);
                }
                if workers.waits { wait_ns + random.below(workers.late_ms) * MS } else { 10 * MS }
            }
        };
        // A request takes a moment.
        due.push(Reverse((now + after_ns + random.below(20) * MS + 1, worker)));
    }
    met
}

const LIMITS: [&str; 6] = [
    r#""rate_limits": [{"name": "a", "limit": 5, "per": "second"}]"#,
    r#""rate_limits": [{"name": "a", "limit": 50, "per": "second", "burst": 10}]"#,
    r#""rate_limit_per_minute": 24000, "burst_size": 100"#,
    r#""rate_limits": [{"name": "a", "limit": 30, "per": "minute"}]"#,
    r#""rate_limits": [{"name": "a", "limit": 20, "per": "minute", "burst": 1}]"#,
    r#""rate_limits": [{"name": "a", "limit": 5, "per": "minute"}, {"name": "b", "limit": 1, "per": "second"}]"#,
];

#[test]
fn parallel_workers_that_wait_as_told_are_never_suspects() {
    for (limit, seed) in LIMITS.iter().flat_map(|limit| (1..4).map(move |seed| (limit, seed))) {
        for (count, connections) in [(64, 64), (640, 640), (640, 64), (640, 3)] {
            let workers = Workers { count, connections, late_ms: 900, waits: true };
            let met = play(&Rig::new(limit, ""), workers, 60, seed);
            assert_eq!(met.suspect_s, None, "{limit}, {workers:?}, seed {seed}: {met:?}");
            if count == connections {
                assert_eq!(met.ended, 0, "{limit}, {workers:?}, seed {seed}: {met:?}");
            }
        }
    }
}

/// Workers that share connections are told to stay away, or the test above shows nothing.
#[test]
fn who_has_a_connection_for_each_worker_is_told_what_its_limit_says() {
    let longest = |connections| {
        let workers = Workers { count: 640, connections, late_ms: 900, waits: true };
        play(&Rig::new(LIMITS[0], ""), workers, 30, 1).longest_wait_s
    };
    assert_eq!((longest(640), longest(64)), (2, 5));
}

#[test]
fn who_does_not_wait_is_a_suspect_within_seconds() {
    for (limit, most_s) in LIMITS.iter().zip([4, 4, 6, 4, 4, 4]) {
        let workers = Workers { count: 160, connections: 64, late_ms: 1, waits: false };
        let met = play(&Rig::new(limit, ""), workers, 10, 1);
        assert!(met.suspect_s.is_some_and(|second| second <= most_s), "{limit}: {met:?}");
    }
}
