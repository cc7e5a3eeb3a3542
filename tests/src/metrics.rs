//! One scrape of `/metrics`, as numbers to ask for.

use std::fmt;

pub struct Metrics {
    text: String,
}

impl Metrics {
    pub fn new(text: String) -> Self {
        Self { text }
    }

    /// The sum of the samples of `name` that carry all of `labels`; `None` without any.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let values = self.text.lines().filter_map(|line| {
            let (sample, value) = line.rsplit_once(' ')?;
            let (of, labels) = sample.split_once('{').unwrap_or((sample, ""));
            let matches = of == name && wanted.iter().all(|label| labels.contains(label.as_str()));
            matches.then(|| value.parse::<f64>().expect("samples are numbers"))
        });
        values.reduce(|sum, value| sum + value)
    }

    /// Requests counted under a status and an outcome.
    pub fn requests(&self, status: u16, outcome: &str) -> f64 {
        let labels = [("status", status.to_string()), ("outcome", outcome.to_owned())];
        let labels = [(labels[0].0, labels[0].1.as_str()), (labels[1].0, labels[1].1.as_str())];
        self.get("gateway_requests_total", &labels).unwrap_or(0.0)
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
