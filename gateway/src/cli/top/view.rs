//! Figures as a frame of whatever size. Pure: it draws into a buffer, which tests compare with recorded ones.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as Drawn, Sparkline, Table};

use super::keys::Chosen;
use super::listing::{Listing, Mood, Order, Pane, Value};
use super::model::Figures;
use super::sample::{LOOKUPS, drops};

/// What there is to show.
#[derive(Default)]
pub struct Shown {
    pub figures: Option<Figures>,
    /// Requests a second, the newest last.
    pub history: Vec<u64>,
    /// Why figures are no newer, and how old they are.
    pub trouble: Option<String>,
}

/// Looks that are remembered: as many as a wide terminal has columns.
const HISTORY: usize = 512;

impl Shown {
    pub fn remember(&mut self, requests: f64) {
        if self.history.len() == HISTORY {
            self.history.remove(0);
        }
        self.history.push(requests.round() as u64);
    }
}

const KEYS: &str = "q quit  1-6 tab pane  s sort  r reverse  p pause  up/down scroll";
/// Rows of the overview's first chart, and the rows of other tables that it has room for in 24 lines.
const CHART_ROWS: u16 = 3;
const UPSTREAM_ROWS: u16 = 5;
/// What columns have at least: the first one's names are cut last.
const NAME_WIDTH: u16 = 14;
const VALUE_WIDTH: u16 = 7;

pub fn draw(frame: &mut Frame, chosen: &Chosen, shown: &Shown) {
    let [title, traffic, state, tabs, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(foot_line(shown), foot);
    frame.render_widget(tab_line(chosen.pane), tabs);
    let Some(figures) = &shown.figures else {
        frame.render_widget(Line::from(" gateway: waiting for its figures").style(TITLE), title);
        return;
    };
    frame.render_widget(Paragraph::new(title_line(figures, chosen.paused)).style(TITLE), title);
    frame.render_widget(traffic_line(figures), traffic);
    frame.render_widget(state_line(figures), state);
    match chosen.pane {
        Pane::Overview => overview(frame, body, chosen.order(), figures, &shown.history),
        pane => {
            let mut listing = Listing::of(pane, figures);
            listing.sort(chosen.order());
            table(frame, body, &listing, Some(chosen.order()), chosen.past);
        }
    }
}

const TITLE: Style = Style::new().add_modifier(Modifier::REVERSED);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);
const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);

fn title_line(figures: &Figures, paused: bool) -> Line<'static> {
    let now = &figures.now;
    let span = match figures.since_start {
        true => "rates since its start".to_owned(),
        false => format!("rates of {:.1} s", figures.span.as_secs_f64()),
    };
    let paused = if paused { "  PAUSED" } else { "" };
    Line::from(format!(
        " gateway {}  up {}  generation {}  {} workers  {span}{paused}",
        now.version,
        age(now.uptime),
        now.generation,
        now.workers
    ))
}

fn traffic_line(figures: &Figures) -> Line<'static> {
    let of = &figures.traffic;
    let ratio = if of.requests > 0.0 { of.errors / of.requests } else { 0.0 };
    let errors = format!("{}/s ({})", rate(of.errors), share(Some(ratio)));
    pairs(&[
        ("requests", format!("{}/s", rate(of.requests)), Mood::Well),
        ("errors", errors, if of.errors > 0.0 { Mood::Bad } else { Mood::Well }),
        ("refused", format!("{}/s", rate(of.refused)), Mood::Well),
        ("p50", time(of.p50), Mood::Well),
        ("p99", time(of.p99), Mood::Well),
    ])
}

fn state_line(figures: &Figures) -> Line<'static> {
    let now = &figures.now;
    let pressed = |of: f64| match of {
        of if of >= 1.0 => Mood::Bad,
        of if of >= 0.8 => Mood::Ailing,
        _ => Mood::Well,
    };
    let mut states = vec![
        ("active", now.routes.values().map(|route| route.active).sum::<u64>().to_string(), Mood::Well),
        ("connections", format!("{} of {}", now.connections, now.most_connections), Mood::Well),
        ("distress", share(Some(now.distress)), pressed(now.distress)),
        ("memory", share(Some(now.memory)), pressed(now.memory)),
        ("files", share(Some(now.descriptors)), pressed(now.descriptors)),
    ];
    if let Some(left) = now.drain_left {
        states.insert(0, ("draining,", format!("{} left", age(left)), Mood::Bad));
    }
    if now.stale_config {
        states.insert(0, ("configuration", "refused".to_owned(), Mood::Bad));
    }
    pairs(&states)
}

fn pairs(pairs: &[(&str, String, Mood)]) -> Line<'static> {
    let spans = pairs.iter().flat_map(|(name, value, mood)| {
        [
            Span::styled(format!(" {name} "), FAINT),
            Span::styled(format!("{value} "), STRONG.patch(style(*mood))),
        ]
    });
    Line::from_iter(spans)
}

fn tab_line(shown: Pane) -> Line<'static> {
    let tabs = Pane::ALL.iter().map(|&pane| {
        let style = if pane == shown { TITLE } else { FAINT };
        Span::styled(format!(" {} {} ", pane as usize + 1, pane.title()), style)
    });
    Line::from_iter(tabs)
}

fn foot_line(shown: &Shown) -> Line<'static> {
    match &shown.trouble {
        Some(trouble) => Line::styled(format!(" {trouble}"), style(Mood::Bad)),
        None => Line::styled(format!(" {KEYS}"), FAINT),
    }
}

fn overview(frame: &mut Frame, area: Rect, order: Order, figures: &Figures, history: &[u64]) {
    let mut upstreams = Listing::of(Pane::Upstreams, figures);
    upstreams.sort(Order::default());
    let rows = u16::try_from(upstreams.rows.len().max(1)).unwrap_or(u16::MAX).min(UPSTREAM_ROWS) + 1;
    let [chart, _, routes_area, _, upstreams_area, _, cache, kernel] = Layout::vertical([
        Constraint::Length(CHART_ROWS),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
        Constraint::Length(rows),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
    ])
    .areas(area);
    let newest = history.len().saturating_sub(usize::from(chart.width));
    frame.render_widget(Sparkline::default().data(&history[newest..]), chart);
    let mut routes = Listing::of(Pane::Routes, figures);
    routes.sort(order);
    table(frame, routes_area, &routes, Some(order), 0);
    table(frame, upstreams_area, &upstreams, None, 0);
    frame.render_widget(cache_line(figures), cache);
    frame.render_widget(kernel_line(figures), kernel);
}

fn cache_line(figures: &Figures) -> Line<'static> {
    let now = &figures.now.cache;
    let misses = figures.traffic.lookups[LOOKUPS.iter().position(|&name| name == "miss").unwrap_or_default()];
    pairs(&[
        ("cache: saved", share(figures.traffic.hit_ratio()), Mood::Well),
        ("misses", format!("{}/s", rate(misses)), Mood::Well),
        ("stored", bytes(now.bytes as f64), Mood::Well),
        ("URLs", now.keys.to_string(), Mood::Well),
        ("evicted", format!("{}/s", rate(figures.evictions)), Mood::Well),
    ])
}

fn kernel_line(figures: &Figures) -> Line<'static> {
    let Some(kernel) = &figures.now.kernel else {
        return Line::styled(" kernel: does not run", FAINT);
    };
    let sum = |dropped: bool| -> f64 {
        figures.verdicts.iter().filter(|(name, _)| drops(name) == dropped).map(|(_, of)| of.packets).sum()
    };
    let dropped = sum(true);
    pairs(&[
        ("kernel: passed", format!("{}/s", rate(sum(false))), Mood::Well),
        ("dropped", format!("{}/s", rate(dropped)), if dropped > 0.0 { Mood::Ailing } else { Mood::Well }),
        ("penalised", kernel.penalised.to_string(), Mood::Well),
    ])
}

/// Numbers to the right, the first column takes what room is left.
fn table(frame: &mut Frame, area: Rect, listing: &Listing, order: Option<Order>, past: usize) {
    if listing.rows.is_empty() {
        let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
        frame.render_widget(Line::styled(format!(" {}", listing.columns[0]), STRONG), head);
        frame.render_widget(Line::styled(format!(" {}", listing.empty), FAINT), body);
        return;
    }
    let head = listing.columns.iter().enumerate().map(|(column, name)| {
        let mark = match order {
            Some(order) if order.column == column => {
                if order.reversed {
                    "▲"
                } else {
                    "▼"
                }
            }
            _ => "",
        };
        cell(format!("{mark}{name}"), column)
    });
    let rows: Vec<Vec<String>> = listing
        .rows
        .iter()
        .skip(past)
        .take(area.height.into())
        .map(|row| row.values.iter().map(text).collect())
        .collect();
    let widths = listing.columns.iter().enumerate().map(|(column, name)| match column {
        0 => Constraint::Min(NAME_WIDTH),
        _ => {
            let longest = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
            Constraint::Length(
                u16::try_from(longest.max(name.len() + 1)).unwrap_or(u16::MAX).max(VALUE_WIDTH),
            )
        }
    });
    let widths: Vec<_> = widths.collect();
    let rows = rows.into_iter().zip(listing.rows.iter().skip(past)).map(|(texts, row)| {
        let cells = texts.into_iter().enumerate().map(|(column, text)| cell(text, column));
        Drawn::new(cells.collect::<Vec<_>>()).style(style(row.mood))
    });
    let head = Drawn::new(head.collect::<Vec<_>>()).style(STRONG);
    frame.render_widget(Table::new(rows, widths).header(head).column_spacing(1), area);
}

fn cell(text: String, column: usize) -> Cell<'static> {
    match column {
        0 => Cell::new(format!(" {text}")),
        _ => Cell::new(Line::from(text).alignment(Alignment::Right)),
    }
}

fn style(mood: Mood) -> Style {
    match mood {
        Mood::Well => Style::new(),
        Mood::Ailing => Style::new().fg(Color::Yellow),
        Mood::Bad => Style::new().fg(Color::Red),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        Value::PerSecond(number) => rate(*number),
        Value::Count(count) => count.to_string(),
        Value::Time(of) => time(*of),
        Value::Share(of) => share(*of),
        Value::Score(of) => of.map_or_else(|| ABSENT.to_owned(), |of| format!("{of:.2}")),
        Value::Bytes(of) => bytes(*of),
    }
}

const ABSENT: &str = "-";

/// Three digits or so.
fn rate(of: f64) -> String {
    match of {
        0.0 => "0".to_owned(),
        of if of < 9.95 => format!("{of:.1}"),
        of if of < 99_999.5 => format!("{of:.0}"),
        of if of < 9_999_500.0 => format!("{:.0}k", of / 1e3),
        of => format!("{:.0}M", of / 1e6),
    }
}

fn time(of: Option<Duration>) -> String {
    let Some(of) = of else { return ABSENT.to_owned() };
    match of.as_secs_f64() * 1e3 {
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1e3),
    }
}

fn share(of: Option<f64>) -> String {
    match of.map(|of| of * 100.0) {
        None => ABSENT.to_owned(),
        Some(percent) if percent > 0.0 && percent < 9.95 => format!("{percent:.1} %"),
        Some(percent) => format!("{percent:.0} %"),
    }
}

fn bytes(of: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut of = of;
    for unit in units {
        if of < 1000.0 || unit == "TiB" {
            let digits = if of < 9.95 && unit != "B" { 1 } else { 0 };
            return format!("{of:.digits$} {unit}");
        }
        of /= 1024.0;
    }
    unreachable!("the last unit takes all")
}

fn age(of: Duration) -> String {
    match of.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
