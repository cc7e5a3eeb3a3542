//! The tables of `gateway top`: which figures stand in which column, and their order. Pure; `view` draws them.

use std::cmp::Ordering;
use std::time::Duration;

use super::model::{Figures, Traffic};
use super::sample::{LOOKUPS, drops};

/// What can be looked at, in the order of its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pane {
    Overview,
    Routes,
    Upstreams,
    Cache,
    Kernel,
    Sources,
}

impl Pane {
    pub const ALL: [Self; 6] =
        [Self::Overview, Self::Routes, Self::Upstreams, Self::Cache, Self::Kernel, Self::Sources];

    pub fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Routes => "Routes",
            Self::Upstreams => "Upstreams",
            Self::Cache => "Cache",
            Self::Kernel => "Kernel",
            Self::Sources => "Sources",
        }
    }
}

/// One table.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    /// The first names the row.
    pub columns: &'static [&'static str],
    pub rows: Vec<Row>,
    /// Said where there are no rows.
    pub empty: &'static str,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub values: Vec<Value>,
    pub mood: Mood,
}

/// How a row is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Well,
    Ailing,
    Bad,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    PerSecond(f64),
    Count(u64),
    Time(Option<Duration>),
    Share(Option<f64>),
    Score(Option<f64>),
    Bytes(f64),
}

impl Value {
    fn number(&self) -> Option<f64> {
        match self {
            Self::Text(_) => None,
            Self::PerSecond(number) | Self::Bytes(number) => Some(*number),
            Self::Count(count) => Some(*count as f64),
            Self::Time(time) => time.map(|time| time.as_secs_f64()),
            Self::Share(share) | Self::Score(share) => *share,
        }
    }

    /// As one looks for it: much first, then what is absent, text by the alphabet.
    fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(one), Self::Text(other)) => one.cmp(other),
            (one, other) => {
                let number = |value: &Self| value.number().unwrap_or(f64::NEG_INFINITY);
                number(other).total_cmp(&number(one))
            }
        }
    }
}

/// By which column a table is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub column: usize,
    pub reversed: bool,
}

/// Most requests, packets or refusals first.
impl Default for Order {
    fn default() -> Self {
        Self { column: 1, reversed: false }
    }
}

impl Listing {
    pub fn of(pane: Pane, figures: &Figures) -> Self {
        match pane {
            Pane::Overview | Pane::Routes => routes(figures),
            Pane::Upstreams => upstreams(figures),
            Pane::Cache => cache(figures),
            Pane::Kernel => kernel(figures),
            Pane::Sources => sources(figures),
        }
    }

    pub fn sort(&mut self, order: Order) {
        let column = order.column.min(self.columns.len() - 1);
        self.rows.sort_by(|one, other| {
            let ordering = one.values[column].order(&other.values[column]);
            if order.reversed { ordering.reverse() } else { ordering }
        });
    }
}

fn routes(figures: &Figures) -> Listing {
    let row = |(label, of): (&String, &Traffic)| {
        let now = &figures.now.routes[label];
        let values = vec![
            Value::Text(label.clone()),
            Value::PerSecond(of.requests),
            Value::PerSecond(of.errors),
            Value::PerSecond(of.refused),
            Value::Time(of.p50),
            Value::Time(of.p99),
            Value::Count(now.active),
            Value::Count(now.queued),
        ];
        Row { values, mood: if of.errors > 0.0 { Mood::Bad } else { Mood::Well } }
    };
    Listing {
        columns: &["route", "req/s", "5xx/s", "429/s", "p50", "p99", "active", "queued"],
        rows: figures.routes.iter().map(row).collect(),
        empty: "no routes",
    }
}

fn upstreams(figures: &Figures) -> Listing {
    let rows = figures.upstreams.iter().map(|(name, of)| {
        let now = &figures.now.upstreams[name];
        let (state, mood) = match &now.health {
            None => ("gone", Mood::Ailing),
            Some(health) if health.unhealthy => ("unhealthy", Mood::Bad),
            Some(health) if health.ejected => ("ejected", Mood::Bad),
            Some(health) => (
                health.breaker.as_str(),
                match health.breaker.as_str() {
                    "closed" => Mood::Well,
                    "open" => Mood::Bad,
                    _ => Mood::Ailing,
                },
            ),
        };
        let values = vec![
            Value::Text(name.clone()),
            Value::PerSecond(of.sent),
            Value::PerSecond(of.failures),
            Value::PerSecond(of.retries),
            Value::Score(now.health.as_ref().map(|health| health.score)),
            Value::Text(state.to_owned()),
            Value::Count(now.active),
            Value::Count(now.connections),
        ];
        Row { values, mood }
    });
    Listing {
        columns: &["upstream", "sent/s", "failed/s", "again/s", "score", "state", "active", "conns"],
        rows: rows.collect(),
        empty: "no upstreams",
    }
}

fn cache(figures: &Figures) -> Listing {
    let asked =
        figures.routes.iter().filter(|(label, _)| figures.now.routes[*label].lookups.iter().any(|&n| n > 0));
    let rows = asked.map(|(label, of)| {
        let lookups = of.lookups.iter().map(|&rate| Value::PerSecond(rate));
        let name = [Value::Text(label.clone()), Value::Share(of.hit_ratio())];
        Row { values: name.into_iter().chain(lookups).collect(), mood: Mood::Well }
    });
    const COLUMNS: [&str; LOOKUPS.len() + 2] = {
        let [a, b, c, d, e, f] = LOOKUPS;
        ["route", "saved", a, b, c, d, e, f]
    };
    Listing { columns: &COLUMNS, rows: rows.collect(), empty: "no route's cache has been asked" }
}

fn kernel(figures: &Figures) -> Listing {
    let rows = figures.verdicts.iter().map(|(name, of)| {
        let now = figures.now.kernel.as_ref().and_then(|kernel| kernel.verdicts.get(name)).copied();
        let now = now.unwrap_or_default();
        let values = vec![
            Value::Text(name.clone()),
            Value::PerSecond(of.packets),
            Value::Bytes(of.bytes),
            Value::Count(now.packets),
        ];
        Row { values, mood: if drops(name) && of.packets > 0.0 { Mood::Ailing } else { Mood::Well } }
    });
    let empty = match figures.now.kernel {
        None => "the kernel half does not run: `gateway doctor` says what it needs",
        Some(_) => "no packets yet",
    };
    Listing { columns: &["verdict", "packets/s", "bytes/s", "packets"], rows: rows.collect(), empty }
}

fn sources(figures: &Figures) -> Listing {
    let rows = figures.now.sources.iter().flatten().map(|of| {
        let values =
            vec![Value::Text(of.address.clone()), Value::Count(of.refused), Value::Text(of.what.clone())];
        Row { values, mood: Mood::Ailing }
    });
    let empty = match figures.now.sources {
        // The answer is on its way.
        None => "......................",
        Some(_) => "nobody is refused much",
    };
    Listing { columns: &["source", "refused", "of what"], rows: rows.collect(), empty }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_ordered_by_any_column() {
        let row = |name: &str, rate, time: Option<u64>| Row {
            values: vec![
                Value::Text(name.to_owned()),
                Value::PerSecond(rate),
                Value::Time(time.map(Duration::from_millis)),
            ],
            mood: Mood::Well,
        };
        let rows = vec![row("b", 1.0, None), row("a", 1.0, Some(5)), row("c", 2.0, Some(7))];
        for (column, reversed, want) in [
            (0, false, "abc"),
            (0, true, "cba"),
            (1, false, "cba"),
            (1, true, "bac"),
            (2, false, "cab"),
            (9, false, "cab"),
        ] {
            let mut listing = Listing { columns: &["name", "rate", "time"], rows: rows.clone(), empty: "" };
            listing.sort(Order { column, reversed });
            let names: String = listing
                .rows
                .iter()
                .map(|row| match &row.values[0] {
                    Value::Text(name) => name.as_str(),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(names, want, "{column} {reversed}");
        }
    }
}
