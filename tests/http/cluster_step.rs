//! The script that a store runs for shared limits, on a real Redis, against exact arithmetic. The clock is the test's:
//! the one line that asks the server for its time is replaced, the rest is what the gateway sends.

use gateway_tests::redis::{Redis, Session};

use super::cluster::Random;

const SCRIPT: &str = include_str!("../../gateway/src/limit/cluster/step.lua");
const SERVERS_CLOCK: &str = "redis.call('TIME')";
const TESTS_CLOCK: &str = "{ ARGV[#ARGV - 1], ARGV[#ARGV] }";
const SECOND_US: u64 = 1_000_000;

/// A rule as the script gets it.
#[derive(Clone, Copy, Debug)]
struct Rule {
    limit: u64,
    period_us: u64,
    tick_us: u64,
    cost_ns: u64,
    tolerance_ns: u64,
}

/// One key, counted with fractions.
#[derive(Clone, Copy, Debug, Default)]
struct Model {
    window: u64,
    current: u64,
    previous: u64,
    /// When the bucket will be full again.
    full_at_ns: u128,
}

/// The script's word: granted, left, part, pause, end of the window, its number.
type Word = [u64; 6];

impl Rule {
    fn per(period_s: u64, limit: u64, burst: Option<u64>) -> Self {
        let period_us = period_s * SECOND_US;
        let cost_ns = (period_us * 1_000).div_ceil(limit);
        let tick_us = u64::try_from((u128::from(limit) * u128::from(period_us)).div_ceil(1 << 52))
            .expect("at most a day");
        let bucket = burst.map_or((0, 0), |burst| (cost_ns, cost_ns * burst));
        Self { limit, period_us, tick_us, cost_ns: bucket.0, tolerance_ns: bucket.1 }
    }

    fn arguments(&self, want: u64, enforced: bool) -> Vec<String> {
        let numbers = [
            want,
            enforced.into(),
            self.limit,
            self.period_us,
            self.tick_us,
            self.cost_ns,
            self.tolerance_ns,
        ];
        numbers.map(|number| number.to_string()).to_vec()
    }
}

impl Model {
    /// How many are left of window and bucket.
    fn left(&mut self, rule: &Rule, now_us: u64) -> u64 {
        let window = now_us / rule.period_us;
        (self.previous, self.current) = match window - self.window {
            0 => (self.previous, self.current),
            1 => (self.current, 0),
            _ => (0, 0),
        };
        self.window = window;
        let period = u128::from(rule.period_us);
        let to_come = period - u128::from(now_us % rule.period_us);
        let spent = u128::from(self.current) + (u128::from(self.previous) * to_come).div_ceil(period);
        let left = u128::from(rule.limit).saturating_sub(spent);
        let debt = self.full_at_ns.saturating_sub(u128::from(now_us) * 1_000);
        let held = match rule.tolerance_ns {
            0 => u128::MAX,
            tolerance => u128::from(tolerance).saturating_sub(debt) / u128::from(rule.cost_ns),
        };
        u64::try_from(left.min(held)).expect("no more than the limit")
    }

    fn take(&mut self, rule: &Rule, count: u64, now_us: u64) {
        self.current += count;
        let from = self.full_at_ns.max(u128::from(now_us) * 1_000);
        self.full_at_ns = from + u128::from(count * rule.cost_ns);
    }
}

struct Store {
    session: Session,
    script: String,
}

impl Store {
    fn new(redis: &Redis) -> Self {
        assert_eq!(SCRIPT.matches(SERVERS_CLOCK).count(), 1, "the clock is asked once");
        Self { session: redis.connect(), script: SCRIPT.replace(SERVERS_CLOCK, TESTS_CLOCK) }
    }

    /// One step over keys and rules at a time.
    fn step(&mut self, asks: &[(&str, Rule, u64, bool)], now_us: u64) -> Vec<Word> {
        let mut command = vec!["EVAL".to_owned(), self.script.clone(), asks.len().to_string()];
        command.extend(asks.iter().map(|(key, ..)| (*key).to_owned()));
        command.extend(asks.iter().flat_map(|(_, rule, want, enforced)| rule.arguments(*want, *enforced)));
        command.extend([now_us / SECOND_US, now_us % SECOND_US].map(|number| number.to_string()));
        let words: Vec<_> = command.iter().map(String::as_str).collect();
        let reply = self.session.ask(&words);
        let number = |line: &str| line.parse().unwrap_or_else(|_| panic!("{reply}"));
        let numbers: Vec<u64> = reply.lines().map(number).collect();
        assert_eq!(numbers.len(), asks.len() * 6, "{reply}");
        numbers.chunks_exact(6).map(|word| word.try_into().expect("six")).collect()
    }
}

const START_US: u64 = 1_795_000_000 * SECOND_US + 123_456;

#[test]
fn what_is_granted_is_what_exact_arithmetic_grants() {
    let redis = Redis::start();
    let mut store = Store::new(&redis);
    for seed in 1..=60 {
        let mut random = Random(seed);
        let period_s = [1, 60, 3_600, 86_400][random.below(4) as usize];
        let most = [3, 50, 5_000][random.below(3) as usize];
        let limit = 1 + random.below(most);
        let burst = (random.below(2) == 0 && limit > 1).then(|| 1 + random.below(limit - 1));
        let rule = Rule::per(period_s, limit, burst);
        let (mut model, mut now_us, key) = (Model::default(), START_US, format!("k{seed}"));
        for _ in 0..80 {
            // Bursts, steps of about a request's worth, and pauses.
            now_us += match random.below(4) {
                0 => random.below(3),
                1 | 2 => random.below(2 * rule.period_us / limit + 2),
                _ => random.below(2 * rule.period_us),
            };
            let want = if burst.is_some() { 1 } else { 1 + random.below(limit) };
            let left = model.left(&rule, now_us);
            let [granted, still, part, pause_us, ends_us, window] =
                store.step(&[(&key, rule, want, true)], now_us)[0];
            let at = format!("seed {seed}, {rule:?}, {now_us}: {model:?}");
            assert_eq!((granted, still), (want.min(left), left - want.min(left)), "{at}");
            assert_eq!((window, ends_us), (model.window, rule.period_us - now_us % rule.period_us), "{at}");
            model.take(&rule, granted, now_us);
            if granted == 0 {
                // Who waits that long is admitted, and not much earlier.
                let mut then = model;
                assert!(then.left(&rule, now_us + pause_us) > 0, "{at}: {pause_us} us");
                assert!(pause_us <= 2 * rule.period_us, "{at}");
                let mut before = model;
                assert_eq!(before.left(&rule, now_us + pause_us.saturating_sub(2)), 0, "{at}: {pause_us} us");
                assert!(part == 0 || burst.is_some(), "{at}");
            }
        }
    }
}

#[test]
fn huge_limits_are_never_exceeded() {
    let redis = Redis::start();
    let mut store = Store::new(&redis);
    for seed in 1..=20 {
        let mut random = Random(seed);
        let rule = Rule::per(86_400, u64::from(u32::MAX) - random.below(1 << 20), None);
        assert!(rule.tick_us > 1);
        let (mut model, mut now_us, key) = (Model::default(), START_US, format!("k{seed}"));
        for _ in 0..40 {
            now_us += random.below(rule.period_us / 2);
            let left = model.left(&rule, now_us);
            let want = 1 + random.below(rule.limit);
            let granted = store.step(&[(&key, rule, want, true)], now_us)[0][0];
            // Two ticks' worth of the window before, at most, are counted too much.
            let (exact, tick) = (want.min(left), rule.limit * rule.tick_us / rule.period_us + 1);
            assert!(
                (exact.saturating_sub(2 * tick)..=exact).contains(&granted),
                "{granted} of {exact}: {rule:?}"
            );
            model.take(&rule, granted, now_us);
        }
    }
}

#[test]
fn all_or_none_and_who_only_watches_holds_nobody_up() {
    let redis = Redis::start();
    let mut store = Store::new(&redis);
    let (narrow, wide) = (Rule::per(60, 2, None), Rule::per(60, 100, Some(50)));
    let granted = |words: Vec<Word>| words.iter().map(|word| word[0]).collect::<Vec<_>>();
    for want in [[1, 1], [1, 1], [0, 0]] {
        assert_eq!(granted(store.step(&[("a", narrow, 1, true), ("b", wide, 1, true)], START_US)), want);
    }
    let left = store.step(&[("b", wide, 1, true)], START_US)[0][1];
    assert_eq!(left, 47, "charged for those that were admitted, and for this one");
    let watched = store.step(&[("a", narrow, 1, false), ("b", wide, 1, true)], START_US);
    assert_eq!(granted(watched), [0, 1]);
    // Leases: what there is of what is wanted.
    assert_eq!(granted(store.step(&[("c", narrow, 10, true), ("d", wide, 1, true)], START_US)), [2, 1]);
}

#[test]
fn a_clock_that_steps_back_gives_nothing_back() {
    let redis = Redis::start();
    let mut store = Store::new(&redis);
    let rule = Rule::per(60, 5, Some(2));
    let volley = |store: &mut Store, now_us| {
        (0..10).map(|_| store.step(&[("a", rule, 1, true)], now_us)[0][0]).sum::<u64>()
    };
    assert_eq!(volley(&mut store, START_US), 2);
    assert_eq!(volley(&mut store, START_US - 3_600 * SECOND_US), 0, "as after a fail-over");
    assert_eq!(volley(&mut store, START_US + 12 * SECOND_US), 1);
}

#[test]
fn a_key_lives_for_two_periods() {
    let redis = Redis::start();
    let mut store = Store::new(&redis);
    store.step(&[("a", Rule::per(60, 5, None), 1, true)], START_US);
    let lives_ms: u64 = redis.ask(&["PTTL", "a"]).parse().expect("milliseconds");
    assert!((60_000..=120_000).contains(&lives_ms), "{lives_ms}");
}
