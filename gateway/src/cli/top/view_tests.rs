//! Frames as they are drawn, against `golden/`; after a change that is meant, `UPDATE_GOLDEN=1` writes them anew.

use std::fs;
use std::path::Path;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::KeyCode;

use super::*;
use crate::cli::top::sample::{
    Cache, Health, Kernel, Packets, Route, Sample, Source, UNBOUNDED_US, Upstream,
};
use crate::control::{LoudSource, PushingSource, SuspectSource, TopSources};
use crate::metrics::LATENCY_BOUNDS_US;

/// A gateway after `seconds` of steady traffic on three routes, one of whose upstreams fails.
fn busy(seconds: u64) -> Sample {
    // Each took as long as the one before or longer.
    let route = |requests: u64, errors: u64, latency: &[u64]| {
        let mut below = 0;
        let up_to = LATENCY_BOUNDS_US.iter().zip(latency).map(|(bound, count)| {
            below += count * seconds;
            (*bound, below)
        });
        let mut latency: std::collections::BTreeMap<u64, u64> = up_to.collect();
        latency.insert(UNBOUNDED_US, requests * seconds);
        let (active, requests, errors) = (requests / 100, requests * seconds, errors * seconds);
        Route { requests, errors, latency, active, ..Route::default() }
    };
    let users = Route {
        refused: 40 * seconds,
        lookups: [600, 20, 5, 75, 300, 10].map(|count| count * seconds),
        ..route(1234, 0, &[1000, 200, 30, 4])
    };
    let upstream = |rate: u64, failures: u64, breaker: &str, score: f64| Upstream {
        sent: rate * seconds,
        failures: failures * seconds,
        retries: failures * seconds / 2,
        active: rate / 100,
        connections: 8,
        health: Some(Health { breaker: breaker.to_owned(), score, unhealthy: false, ejected: false }),
    };
    let packets = |rate: u64| Packets { packets: rate * seconds, bytes: rate * 60 * seconds };
    let named = |name: &str| name.to_owned();
    Sample {
        version: "0.1.0".to_owned(),
        uptime: Duration::from_secs(seconds),
        generation: 4,
        workers: 2,
        connections: 64,
        most_connections: 3900,
        distress: 0.03,
        memory: 0.12,
        descriptors: 0.004,
        routes: [
            (named("/users"), users),
            (named("/orders"), route(80, 20, &[0, 0, 20, 20, 20, 0, 0, 0, 0, 0, 0, 20])),
            (named("/idle"), Route::default()),
        ]
        .into(),
        upstreams: [
            (named("10.0.0.1:8080"), upstream(1040, 0, "closed", 1.0)),
            (named("10.0.0.2:8080"), upstream(80, 20, "half_open", 0.62)),
            (named("10.0.0.3:8080"), upstream(0, 0, "open", 0.07)),
        ]
        .into(),
        cache: Cache { bytes: 12_345_678, keys: 1021, evictions: 3 * seconds },
        kernel: Some(Kernel {
            verdicts: [
                (named("pass"), packets(5200)),
                (named("over_budget"), packets(70_000)),
                (named("penalised"), packets(12)),
                (named("denied"), packets(0)),
            ]
            .into(),
            penalised: 1,
        }),
        sources: Some(Source::all(TopSources {
            connections: Some(vec![LoudSource {
                source: "198.51.100.7".parse().expect("an address"),
                refused: 70_000 * seconds,
                refused_at: 0,
            }]),
            requests: vec![SuspectSource {
                source: "2001:db8::".parse().expect("an address"),
                rule: None,
                requests: 420,
                refused: 400,
                ignored: 120,
            }],
            pushing: vec![PushingSource {
                source: "192.0.2.99".parse().expect("an address"),
                connections: 1_000,
                used: 3,
                refused: 210,
            }],
        })),
        ..Sample::default()
    }
}

fn shown() -> Shown {
    let figures = Figures::between(Some(&busy(7_300)), busy(7_302), Duration::from_secs(2));
    Shown { figures: Some(figures), history: (0..300).map(|x| 1000 + (x % 50) * 20).collect(), trouble: None }
}

fn drawn(width: u16, height: u16, keys: &[KeyCode], shown: &Shown) -> String {
    let mut chosen = Chosen::default();
    assert!(keys.iter().all(|&key| chosen.press(key.into(), 8, 3)));
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("it is memory");
    terminal.draw(|frame| draw(frame, &chosen, shown)).expect("it is memory");
    let buffer = terminal.backend().buffer();
    let cells: Vec<&str> = buffer.content().iter().map(ratatui::buffer::Cell::symbol).collect();
    cells.chunks(width.into()).map(|line| format!("{}\n", line.concat().trim_end())).collect()
}

#[test]
fn frames_are_as_recorded() {
    let trouble = Shown { trouble: Some("no answer for 12 s".to_owned()), ..shown() };
    let mut without = busy(3);
    without.kernel = None;
    without.drain_left = Some(Duration::from_secs(9));
    without.stale_config = true;
    let fresh = Shown { figures: Some(Figures::between(None, without, Duration::ZERO)), ..Shown::default() };
    use KeyCode::{Char, Down};
    for (name, width, height, keys, shown) in [
        ("overview", 80, 24, &[][..], &shown()),
        ("overview_wide", 160, 40, &[], &shown()),
        ("overview_small", 50, 12, &[], &shown()),
        ("fresh", 80, 24, &[], &fresh),
        ("waiting", 80, 24, &[], &Shown::default()),
        ("routes", 80, 24, &[Char('2')], &shown()),
        ("routes_by_errors", 80, 24, &[Char('2'), Char('s'), Char('p')], &trouble),
        ("upstreams", 80, 24, &[Char('3'), Char('r')], &shown()),
        ("cache", 80, 24, &[Char('4')], &shown()),
        ("kernel", 80, 24, &[Char('5')], &shown()),
        ("kernel_off", 80, 24, &[Char('5')], &fresh),
        ("sources", 80, 24, &[Char('6')], &shown()),
        ("kernel_scrolled", 80, 24, &[Char('5'), Down], &shown()),
    ] {
        let frame = drawn(width, height, keys, shown);
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/top/golden").join(name).with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &frame).expect("written");
        }
        let recorded = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(frame, recorded, "{name}");
    }
}

#[test]
fn documentation_shows_the_overview() {
    let documentation = include_str!("../../../../docs/operations.md");
    assert!(documentation.contains(include_str!("golden/overview.txt")));
}

#[test]
fn any_size_can_be_drawn() {
    for (width, height) in [(1, 1), (2, 3), (10, 5), (80, 6), (300, 2)] {
        drawn(width, height, &[], &shown());
        drawn(width, height, &[KeyCode::Char('3')], &shown());
    }
}

#[test]
fn values_are_short() {
    for (of, text) in [
        (0.0, "0"),
        (0.04, "0.0"),
        (9.94, "9.9"),
        (9.96, "10"),
        (1234.4, "1234"),
        (123_456.0, "123k"),
        (5e7, "50M"),
    ] {
        assert_eq!(rate(of), text, "{of}");
    }
    for (us, text) in [(125, "0.1 ms"), (9_960, "10 ms"), (999_600, "1.0 s"), (10_000_000, "10.0 s")] {
        assert_eq!(time(Some(Duration::from_micros(us))), text, "{us}");
    }
    for (of, text) in
        [(0.0, "0 B"), (999.0, "999 B"), (1000.0, "1.0 KiB"), (1e6, "977 KiB"), (2e13, "18 TiB")]
    {
        assert_eq!(bytes(of), text, "{of}");
    }
    for (of, text) in [(None, "-"), (Some(0.0), "0 %"), (Some(0.004), "0.4 %"), (Some(1.5), "150 %")] {
        assert_eq!(share(of), text, "{of:?}");
    }
    for (seconds, text) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (200_000, "2 d")] {
        assert_eq!(age(Duration::from_secs(seconds)), text, "{seconds}");
    }
}
