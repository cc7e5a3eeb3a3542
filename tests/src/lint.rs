//! The form of what `/metrics` says: help, names, units, labels, buckets.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// What is wrong with a scrape's families, and how many there are.
pub fn lint(text: &str) -> (usize, Vec<String>) {
    let families = families(text);
    (families.len(), families.iter().flat_map(|(name, family)| faults(name, family)).collect())
}

/// Every label, whose values the configuration, the host or a table of the gateway's bounds. A client chooses none.
const LABELS: [&str; 21] = [
    "route",
    "upstream",
    "rule",
    "worker",
    "interface",
    "map",
    "list",
    "status",
    "outcome",
    "reason",
    "result",
    "cause",
    "state",
    "phase",
    "verdict",
    "level",
    "class",
    "family",
    "on_failure",
    "source",
    "le",
];

/// Parts of a name that are no base unit.
const UNITS: [&str; 10] =
    ["ms", "us", "ns", "milliseconds", "microseconds", "minutes", "hours", "kib", "mib", "percent"];

/// The families of a scrape that no document names.
pub fn undocumented(text: &str) -> Vec<String> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is around it").join("docs");
    let documents =
        fs::read_dir(folder).expect("it is there").map(|entry| entry.expect("it can be read").path());
    let words: BTreeSet<String> = documents
        .flat_map(|path| {
            let text = fs::read_to_string(path).expect("documents are text");
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').map(str::to_owned);
            words.collect::<Vec<_>>()
        })
        .collect();
    families(text).into_keys().filter(|name| !words.contains(name)).collect()
}

struct Sample {
    labels: Vec<(String, String)>,
    /// What its name has behind the family's.
    ending: String,
    value: f64,
}

#[derive(Default)]
struct Family {
    help: String,
    kind: String,
    samples: Vec<Sample>,
}

fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut last = String::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
            last = name.to_owned();
        } else {
            let (sample, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
            let ending =
                name.strip_prefix(&last).unwrap_or_else(|| panic!("{line} does not belong to {last}"));
            let labels = labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty());
            let labels = labels.map(|label| {
                let (name, value) = label.split_once("=\"").unwrap_or_else(|| panic!("{label} in {line}"));
                (name.to_owned(), value.trim_end_matches('"').to_owned())
            });
            let (labels, ending) = (labels.collect(), ending.to_owned());
            let sample = Sample { labels, ending, value: value.parse().expect("a number") };
            families.get_mut(&last).expect("announced").samples.push(sample);
        }
    }
    families
}

/// What is wrong with a family.
fn faults(name: &str, family: &Family) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |holds: bool, fault: &str| {
        if !holds {
            faults.push(format!("{name}: {fault}"));
        }
    };
    let (counter, histogram) = (family.kind == "counter", family.kind == "histogram");
    check(counter || histogram || family.kind == "gauge", "is of no kind");
    check(name.starts_with("gateway_"), "begins with another name");
    check(
        name.bytes().all(|byte| byte.is_ascii_lowercase() || b"_0123456789".contains(&byte)),
        "is no such name",
    );
    check(counter == name.ends_with("_total"), "`_total` is for counters, and for all of them");
    check(!name.split('_').any(|part| UNITS.contains(&part)), "is not in a base unit");
    check(family.help.len() > 8 && family.help.ends_with('.'), "has no sentence of help");
    for sample in &family.samples {
        for (label, _) in &sample.labels {
            check(LABELS.contains(&label.as_str()), &format!("has a label {label} that nobody bounds"));
        }
    }
    if histogram {
        check(name.ends_with("_seconds") || name.ends_with("_bytes"), "is a histogram without a unit");
        let of = |labels: &[(String, String)]| {
            labels.iter().filter(|(name, _)| name != "le").cloned().collect::<Vec<_>>()
        };
        let mut series = BTreeMap::<_, Vec<(f64, f64)>>::new();
        for Sample { labels, value: count, .. } in
            family.samples.iter().filter(|sample| sample.ending == "_bucket")
        {
            let bound = labels.iter().find(|(name, _)| name == "le").expect("a bucket has one");
            series.entry(of(labels)).or_default().push((bound.1.parse().expect("a number"), *count));
        }
        check(!series.is_empty(), "has no buckets");
        for buckets in series.values() {
            check((5..=20).contains(&buckets.len()), "has too few or too many buckets");
            check(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "has buckets out of order");
            check(buckets.last().is_some_and(|last| last.0 == f64::INFINITY), "has no last bucket");
            let finite = &buckets[..buckets.len() - 1];
            check(finite[finite.len() - 1].0 / finite[0].0 >= 1_000.0, "spans less than three powers of ten");
            check(
                finite.windows(2).all(|pair| pair[1].0 / pair[0].0 <= 10.0),
                "has a gap of more than ten times",
            );
        }
    }
    faults
}
