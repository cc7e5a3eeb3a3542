//! What many routes cost: `cargo run --release -p gateway-tests --bin route-ns`.
//!
//! Loading a file of them, building what is live from it, and finding one. Which one is asked for matters more than how
//! many there are: a processor's cache does not hold them all.

use std::hint::black_box;
use std::time::{Duration, Instant};

use gateway::config;
use gateway::metrics::Registry;
use gateway::snapshot::Snapshot;
use gateway::upstream::resolve::Names;

const LOOK_UPS: usize = 5_000_000;
const COUNTS: [usize; 4] = [10, 100, 1_000, 10_000];

fn main() {
    println!("| routes | load, ms | build, ms | the same one, ns | each in its turn, ns | none, ns |");
    println!("|--:|--:|--:|--:|--:|--:|");
    for count in COUNTS {
        let file = tempfile::NamedTempFile::new().expect("room for a file");
        std::fs::write(&file, configuration(count)).expect("room for a configuration");
        let (config, load) = best(|| config::load(file.path()).expect("a configuration of ours"));
        let registry = Registry::new(2);
        let (snapshot, build) = best(|| Snapshot::build(config.clone(), &Names::default(), None, &registry));
        let paths: Vec<String> =
            (0..count).map(|n| format!("{}/items/7", path(scattered(n, count)))).collect();
        let find = |path: &str| snapshot.table.find("api.example:8080", path);
        let same = each(|_| find(&paths[count / 2]));
        let turns = each(|n| find(&paths[n % count]));
        let none = each(|_| find("/nowhere/items/7"));
        assert!(find(&paths[0]).is_some() && find("/nowhere").is_none());
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        println!("| {count} | {:.2} | {:.2} | {same:.1} | {turns:.1} | {none:.1} |", ms(load), ms(build));
    }
}

fn configuration(count: usize) -> String {
    let route = |n| {
        format!(
            r#"{{ "path": "{}", "backend": "http://127.0.0.1:3001", "methods": ["GET"], "rate_limit_per_minute": 60 }}"#,
            path(n)
        )
    };
    let routes: Vec<String> = (0..count).map(route).collect();
    format!(r#"{{ "rate_limit": {{}}, "routes": [{}] }}"#, routes.join(",\n"))
}

fn path(n: usize) -> String {
    format!("/api/v{}/service-{n}", n % 3)
}

/// The `n`th of `count` in an order that no prefetcher guesses; the factor has no divisor in common with any of `COUNTS`.
fn scattered(n: usize, count: usize) -> usize {
    n * 7_919 % count
}

/// The shortest of five.
fn best<T>(mut work: impl FnMut() -> T) -> (T, Duration) {
    let timed = (0..5).map(|_| {
        let started = Instant::now();
        let made = work();
        (made, started.elapsed())
    });
    timed.min_by_key(|(_, took)| *took).expect("five")
}

/// Nanoseconds of a look-up.
fn each(mut find: impl FnMut(usize) -> Option<usize>) -> f64 {
    let started = Instant::now();
    for n in 0..LOOK_UPS {
        black_box(find(black_box(n)));
    }
    started.elapsed().as_nanos() as f64 / LOOK_UPS as f64
}
