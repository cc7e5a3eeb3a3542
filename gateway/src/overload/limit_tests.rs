//! The limit against simulated upstreams: a clock of its own, thousands of requests in each simulated second.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

/// A server of requests, first come, first served. Time is in microseconds.
struct Upstream {
    /// When each of its servers is free.
    free: BinaryHeap<Reverse<u64>>,
}

/// Where requests come from and what they ask for.
struct Route {
    limit: Limit,
    /// Requests a second at a time in seconds.
    rate: fn(f64) -> f64,
    /// Microseconds of service, by time in seconds and a random number in [0, 1).
    service: fn(f64, f64) -> f64,
    /// Microseconds after which whoever asked leaves.
    patience: u64,
    waiting: u32,
    window: Vec<Duration>,
    answered_in_window: u32,
    opened: u64,
    due: u64,
    refused_in_window: bool,
    count: Count,
}

#[derive(Clone, Debug, Default)]
struct Count {
    answered: u64,
    refused: u64,
    waits: Vec<u64>,
}

impl Count {
    fn p99_ms(&mut self) -> f64 {
        self.waits.sort_unstable();
        self.waits[self.waits.len() * 99 / 100] as f64 / 1e3
    }
}

/// xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.next()).ln()
    }
}

impl Route {
    fn new(rate: fn(f64) -> f64, service: fn(f64, f64) -> f64) -> Self {
        Self::with(Priority::Normal, rate, service)
    }

    fn with(priority: Priority, rate: fn(f64) -> f64, service: fn(f64, f64) -> f64) -> Self {
        Self {
            limit: Limit::new(64, priority),
            rate,
            service,
            waiting: 0,
            window: Vec::new(),
            patience: u64::MAX,
            answered_in_window: 0,
            opened: 0,
            due: 100_000,
            refused_in_window: false,
            count: Count::default(),
        }
    }

    fn answered(&mut self, now: u64, sent: u64, epoch: Instant) {
        self.waiting -= 1;
        let wait = Duration::from_micros(now - sent);
        if now - sent < self.patience {
            self.count.answered += 1;
            self.count.waits.push(now - sent);
            self.answered_in_window += 1;
        } else if wait < LEAST_ABANDONED {
            return;
        }
        if wait < LONG_POLL || self.limit.current() < UNLIMITED {
            self.window.push(wait);
        }
        if now < self.due || self.window.len() < LEAST_SAMPLES as usize {
            return;
        }
        let mean = self.window.iter().sum::<Duration>() / self.window.len() as u32;
        let window = Window {
            shortest: *self.window.iter().min().expect("it has samples"),
            mean,
            late: Duration::ZERO,
            rate: f64::from(std::mem::take(&mut self.answered_in_window)) * 1e6 / (now - self.opened) as f64,
            waiting: self.waiting,
            refused: std::mem::take(&mut self.refused_in_window),
        };
        self.limit.close(&window, epoch + Duration::from_micros(now));
        self.window.clear();
        self.opened = now;
        self.due = now + self.limit.window_length().as_micros() as u64;
    }
}

/// Runs `routes` over an upstream with `servers`, from one second to another; counts begin at `from`.
fn simulate(servers: usize, routes: &mut [Route], from: u64, to: u64) -> Vec<Count> {
    let (epoch, mut random) = (Instant::now(), Random(0x9e37_79b9));
    let mut upstream = Upstream { free: (0..servers).map(|_| Reverse(0)).collect() };
    // Time, route, and of an answer when its request was sent.
    let mut events: BinaryHeap<Reverse<(u64, usize, Option<u64>)>> =
        (0..routes.len()).map(|route| Reverse((0, route, None))).collect();
    let mut counting = false;
    while let Some(Reverse((now, number, sent))) = events.pop() {
        if now >= to * 1_000_000 {
            break;
        }
        if !counting && now >= from * 1_000_000 {
            counting = true;
            routes.iter_mut().for_each(|route| route.count = Count::default());
        }
        let route = &mut routes[number];
        if let Some(sent) = sent {
            route.answered(now, sent, epoch);
            continue;
        }
        let seconds = now as f64 / 1e6;
        let next = now + 1 + random.exponential(1e6 / (route.rate)(seconds)) as u64;
        events.push(Reverse((next, number, None)));
        if route.waiting >= route.limit.current() {
            route.count.refused += 1;
            route.refused_in_window = true;
            if now > route.opened + LONGEST_WINDOW.as_micros() as u64 {
                route.limit.lift();
                route.window.clear();
                route.opened = now;
            }
            continue;
        }
        route.waiting += 1;
        let Reverse(free) = upstream.free.pop().expect("it has servers");
        let done = now.max(free) + 1 + (route.service)(seconds, random.next()) as u64;
        upstream.free.push(Reverse(done));
        // The upstream works for those who have left, too.
        events.push(Reverse((done.min(now.saturating_add(route.patience)), number, Some(now))));
    }
    routes.iter().map(|route| route.count.clone()).collect()
}

/// 200 servers of 50 ms: 4,000 requests a second, of which 200 wait at a time.
const SERVERS: usize = 200;
const CAPACITY: f64 = 4_000.0;

fn fifty_ms(_: f64, random: f64) -> f64 {
    40_000.0 + 20_000.0 * random
}

#[test]
fn five_times_the_capacity_leaves_the_goodput_and_a_bounded_wait() {
    let mut routes = [Route::new(|_| 5.0 * CAPACITY, fifty_ms)];
    let mut count = simulate(SERVERS, &mut routes, 5, 25).remove(0);
    let goodput = count.answered as f64 / 20.0;
    assert!(goodput > 0.95 * CAPACITY, "{goodput}");
    assert!(count.p99_ms() < 200.0, "{}", count.p99_ms());
}

/// Clients that leave after a second: without the limit nobody would ever be answered in time again.
#[test]
fn a_queue_longer_than_anybody_s_patience_is_seen_by_those_who_leave() {
    let mut routes = [Route::new(|_| 5.0 * CAPACITY, fifty_ms)];
    routes[0].patience = 1_000_000;
    let mut count = simulate(SERVERS, &mut routes, 20, 40).remove(0);
    assert!(count.answered as f64 / 20.0 > 0.95 * CAPACITY, "{}", count.answered as f64 / 20.0);
    assert!(count.p99_ms() < 200.0, "{}", count.p99_ms());
}

/// Four times the memory of the minimum: what the limit takes for a wait without a queue stays true.
#[test]
fn a_long_overload_does_not_become_the_norm() {
    let mut routes = [Route::new(|_| 1.5 * CAPACITY, fifty_ms)];
    let mut count = simulate(SERVERS, &mut routes, 240, 260).remove(0);
    assert!(count.answered as f64 / 20.0 > 0.95 * CAPACITY);
    assert!(count.p99_ms() < 200.0, "{}", count.p99_ms());
}

#[test]
fn a_queue_of_a_small_upstream_ends_at_the_floor() {
    // One server of 2 ms: 500 a second. 64 of them wait 128 ms.
    let mut routes = [Route::new(|_| 2_500.0, |_, random| 1_000.0 + 2_000.0 * random)];
    let mut count = simulate(1, &mut routes, 5, 25).remove(0);
    assert!(count.answered as f64 / 20.0 > 0.97 * 500.0);
    assert!(count.p99_ms() < 300.0, "{}", count.p99_ms());
    assert!(routes[0].limit.current() < 100, "{}", routes[0].limit.current());
}

#[test]
fn what_the_upstream_can_do_is_not_refused() {
    let loads: [fn(f64) -> f64; 3] = [|_| 0.1 * CAPACITY, |_| 0.5 * CAPACITY, |_| 0.9 * CAPACITY];
    for (number, rate) in loads.into_iter().enumerate() {
        let mut routes = [Route::new(rate, fifty_ms)];
        let count = simulate(SERVERS, &mut routes, 0, 20).remove(0);
        assert_eq!(count.refused, 0, "load {number}");
        assert_eq!(routes[0].limit.current(), UNLIMITED);
    }
}

#[test]
fn after_an_overload_nothing_is_refused() {
    let rate = |seconds| if seconds < 20.0 { 5.0 * CAPACITY } else { 0.7 * CAPACITY };
    let mut routes = [Route::new(rate, fifty_ms)];
    let count = simulate(SERVERS, &mut routes, 40, 60).remove(0);
    assert_eq!(count.refused, 0);
    assert_eq!(routes[0].limit.current(), UNLIMITED);
}

/// Ten servers, then a hundred: the limit follows within seconds.
#[test]
fn capacity_that_is_added_is_used() {
    // As many servers, the service a tenth as long.
    let service = |seconds, random: f64| if seconds < 20.0 { 500_000.0 } else { 50_000.0 } * (0.5 + random);
    let mut routes = [Route::new(|_| 0.9 * CAPACITY, service)];
    let count = simulate(SERVERS, &mut routes, 30, 45).remove(0);
    assert!(count.answered as f64 / 15.0 > 0.85 * CAPACITY, "{}", count.answered as f64 / 15.0);
}

/// Where there is no queue, however slow or mixed the answers are, nobody is refused.
#[test]
fn slow_answers_are_no_queue() {
    type Service = fn(f64, f64) -> f64;
    let mixed: Service = |_, random| if random < 0.9 { 1_000.0 } else { 2_000_000.0 };
    let streams: Service = |_, random| if random < 0.5 { 500.0 } else { 20_000_000.0 * random };
    let long_polls: Service = |_, random| 30_000_000.0 * random;
    let all_time_out: Service = |_, _| 30_000_000.0;
    // Nothing happens for half a minute, then something does, over and over.
    let by_turns: Service = |seconds, random| match (seconds / 30.0) as u64 % 2 {
        0 => 30_000_000.0,
        _ => 1_000_000.0 * random,
    };
    for (name, service) in [
        ("mixed", mixed),
        ("streams", streams),
        ("long polls", long_polls),
        ("all time out", all_time_out),
        ("by turns", by_turns),
    ] {
        let mut routes = [Route::new(|_| 200.0, service)];
        let count = simulate(100_000, &mut routes, 0, 200).remove(0);
        assert_eq!((count.refused, routes[0].limit.current()), (0, UNLIMITED), "{name}");
    }
}

/// An upstream that becomes three times as slow, with room for everybody: a cut shows that it is no queue.
#[test]
fn an_upstream_that_slows_by_itself_is_soon_left_alone() {
    let service =
        |seconds, random: f64| if seconds < 20.0 { 20_000.0 } else { 60_000.0 } * (0.8 + 0.4 * random);
    let mut routes = [Route::new(|_| 5_000.0, service)];
    let count = simulate(100_000, &mut routes, 20, 40).remove(0);
    assert!(count.refused < 5_000, "of 100,000 requests {} were refused", count.refused);
    assert_eq!(routes[0].limit.current(), UNLIMITED);
}

/// Two routes to one upstream, each of which would fill it.
#[test]
fn a_route_of_low_priority_gives_way() {
    let rate = |_| 1.2 * CAPACITY;
    let mut routes =
        [Route::with(Priority::Low, rate, fifty_ms), Route::with(Priority::High, rate, fifty_ms)];
    let counts = simulate(SERVERS, &mut routes, 20, 60);
    let [low, high] = &counts[..] else { unreachable!("two routes") };
    let total = (low.answered + high.answered) as f64 / 40.0;
    assert!(total > 0.95 * CAPACITY, "{total}");
    let share = low.answered as f64 / (low.answered + high.answered) as f64;
    assert!(share < 0.4, "{share}");
}

/// Under a limit, the upstream begins to hold every request for half a minute.
#[test]
fn a_limit_that_can_no_longer_be_measured_is_lifted() {
    let service = |seconds, random| if seconds < 20.0 { fifty_ms(seconds, random) } else { 30_000_000.0 };
    let rate = |seconds| if seconds < 20.0 { 5.0 * CAPACITY } else { 100.0 };
    let mut routes = [Route::new(rate, service)];
    simulate(SERVERS, &mut routes, 0, 20);
    assert!(routes[0].limit.current() < UNLIMITED);
    let mut routes = [Route::new(rate, service)];
    let count = simulate(SERVERS, &mut routes, 32, 50).remove(0);
    assert_eq!((count.refused, routes[0].limit.current()), (0, UNLIMITED));
}

#[test]
fn what_the_gateway_is_late_by_is_no_queue() {
    let (epoch, ms) = (Instant::now(), Duration::from_millis);
    // Waits of a millisecond, and then so long, while the gateway is so late.
    for (shortest, late, is_cut) in [(20, 0, true), (20, 15, false), (27, 20, true), (5_000, 4_990, true)] {
        let mut limit = Limit::new(64, Priority::Normal);
        let mut close = |number: u32, shortest, late| {
            let window =
                Window { shortest, mean: 2 * shortest, late, rate: 10_000.0, waiting: 1_000, refused: false };
            limit.close(&window, epoch + ms(100) * number)
        };
        close(0, ms(1), Duration::ZERO);
        let last = (1..10).map(|number| close(number, ms(shortest), ms(late))).min();
        assert_eq!(last < Some(UNLIMITED), is_cut, "{shortest} ms of which {late} are the gateway's");
    }
}

#[test]
fn no_limit_falls_below_its_floor() {
    let epoch = Instant::now();
    for floor in [1, 2, 64, 1_000] {
        let mut limit = Limit::new(floor, Priority::Low);
        let mut random = Random(7);
        for number in 0..5_000u32 {
            // Anything at all, most of it dreadful.
            let shortest = Duration::from_secs_f64(random.exponential(0.3).min(4.0));
            let mean = shortest * (1 + number % 3);
            let waiting = (random.next() * 20_000.0) as u32;
            let window = Window {
                shortest,
                mean,
                late: shortest.mul_f64(random.next()),
                rate: 2_000.0 * random.next(),
                waiting,
                refused: random.next() < 0.5,
            };
            let now = epoch + Duration::from_millis(100) * number;
            assert!(limit.close(&window, now) >= floor, "window {number}");
        }
        limit.configure(floor + 10, Priority::High);
        assert!(limit.current() >= floor + 10);
    }
}

#[test]
fn a_minimum_is_kept_for_a_minute() {
    let (epoch, ms) = (Instant::now(), Duration::from_millis);
    let mut minimum = RollingMinimum::default();
    let mut see = |seconds, value| minimum.see(ms(value), epoch + Duration::from_secs(seconds));
    assert_eq!(see(0, 10), ms(10));
    assert_eq!(see(5, 30), ms(10));
    assert_eq!(see(49, 20), ms(10));
    assert_eq!(see(60, 40), ms(20), "what is older than a minute is forgotten");
    assert_eq!(see(1_000_000, 50), ms(50));
}
