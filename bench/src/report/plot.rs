//! Plots: one SVG for each scenario, a bar for each contender, its rounds' least and most as a line across its end.
//!
//! Where there are latencies, a second half shows p50, p99 and p99.9 on a logarithmic axis.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::metric::{Metric, Spread};
use crate::side_by_side::Rounds;
use crate::system::{Contender, System};

const WIDTH: u32 = 760;
const ROW_HEIGHT: u32 = 26;
const FRAME_HEIGHT: u32 = 90;
const LABEL_WIDTH: u32 = 170;
const X_LABELS: usize = 7;
const QUANTILES: [Metric; 3] = [Metric::P50Micros, Metric::P99Micros, Metric::P999Micros];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Failed = Box<dyn std::error::Error>;

/// Draws a scenario; `None` when no contender has the figure that it compares.
pub fn render(rounds: &Rounds) -> Option<String> {
    let metric = rounds.scenario.kind.compares();
    let rows: Vec<(Contender, Spread)> = rounds
        .contenders
        .keys()
        .filter_map(|contender| Some((*contender, rounds.spread(*contender, metric)?)))
        .collect();
    if rows.is_empty() {
        return None;
    }
    let has_latency =
        rows.iter().any(|(contender, _)| rounds.spread(*contender, Metric::P99Micros).is_some());
    let panel = rows.len() as u32 * ROW_HEIGHT + FRAME_HEIGHT;
    let mut svg = String::new();
    draw(&mut svg, rounds, metric, &rows, panel, has_latency).expect("a String takes everything");
    Some(svg)
}

fn draw(
    svg: &mut String,
    rounds: &Rounds,
    metric: Metric,
    rows: &[(Contender, Spread)],
    panel: u32,
    has_latency: bool,
) -> Result<(), Failed> {
    let height = if has_latency { panel * 2 } else { panel };
    let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (bars, quantiles) = root.split_vertically(panel);
    draw_bars(&bars, rounds, metric, rows)?;
    if has_latency {
        draw_quantiles(&quantiles, rounds, rows)?;
    }
    root.present()?;
    Ok(())
}

fn draw_bars(
    area: &Area,
    rounds: &Rounds,
    metric: Metric,
    rows: &[(Contender, Spread)],
) -> Result<(), Failed> {
    let most = rows.iter().map(|(_, spread)| spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let title = format!("{}: {}", rounds.scenario.name, metric.label());
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(28)
        .y_label_area_size(LABEL_WIDTH)
        .build_cartesian_2d(0.0..most * 1.1, rows_axis(rows))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .max_light_lines(0)
        .x_labels(X_LABELS)
        .y_labels(rows.len() * 2 + 1)
        .y_label_formatter(&|y| row_label(*y, rounds, rows))
        .draw()?;
    for (at, (contender, Spread { median, min, max })) in rows.iter().enumerate() {
        let y = position(at, rows);
        let bar = [(0.0, y - 0.35), (*median, y + 0.35)];
        chart.draw_series([Rectangle::new(bar, color(*contender).filled())])?;
        chart.draw_series([PathElement::new([(*min, y), (*max, y)], BLACK.stroke_width(2))])?;
    }
    Ok(())
}

fn draw_quantiles(area: &Area, rounds: &Rounds, rows: &[(Contender, Spread)]) -> Result<(), Failed> {
    let medians = |contender: Contender| {
        QUANTILES.map(|quantile| rounds.spread(contender, quantile).map(|spread| spread.median))
    };
    let all = || rows.iter().flat_map(|(contender, _)| medians(*contender)).flatten();
    let (least, most) = (all().fold(f64::MAX, f64::min), all().fold(1.0, f64::max));
    let mut chart = ChartBuilder::on(area)
        .caption("latency µs: p50, p99, p99.9", ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(28)
        .y_label_area_size(LABEL_WIDTH)
        .build_cartesian_2d((least * 0.8..most * 1.25).log_scale(), rows_axis(rows))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .max_light_lines(0)
        .x_labels(X_LABELS)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_labels(rows.len() * 2 + 1)
        .y_label_formatter(&|y| row_label(*y, rounds, rows))
        .draw()?;
    for (at, (contender, _)) in rows.iter().enumerate() {
        let points: Vec<(f64, f64)> =
            medians(*contender).into_iter().flatten().map(|micros| (micros, position(at, rows))).collect();
        chart.draw_series([PathElement::new(points.clone(), color(*contender).stroke_width(2))])?;
        chart
            .draw_series(points.into_iter().map(|point| Circle::new(point, 4, color(*contender).filled())))?;
    }
    Ok(())
}

fn rows_axis(rows: &[(Contender, Spread)]) -> std::ops::Range<f64> {
    0.0..rows.len() as f64
}

/// The middle of a row; the first is at the top.
fn position(at: usize, rows: &[(Contender, Spread)]) -> f64 {
    (rows.len() - at) as f64 - 0.5
}

/// The label of the row whose middle is at `y`; nothing between rows.
fn row_label(y: f64, rounds: &Rounds, rows: &[(Contender, Spread)]) -> String {
    let row = (0..rows.len()).find(|at| (position(*at, rows) - y).abs() < 0.01);
    row.map(|at| rounds.label(rows[at].0)).unwrap_or_default()
}

fn color(contender: Contender) -> RGBColor {
    match contender.system {
        System::Direct => RGBColor(170, 170, 170),
        System::Nginx => RGBColor(0, 150, 57),
        System::Gateway => RGBColor(32, 88, 190),
        System::Haproxy => RGBColor(120, 190, 230),
        System::Envoy => RGBColor(172, 97, 153),
        System::Caddy => RGBColor(230, 160, 60),
        System::Varnish => RGBColor(200, 80, 80),
    }
}
