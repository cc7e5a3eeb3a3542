//! An explanation as lines.

use std::fmt::Write as _;

use super::time;
use crate::control::Explanation;
use crate::control::explain::{Connections, Requests};

pub fn lines(explanation: &Explanation, now: u64) -> String {
    let mut text = format!("{}\n", explanation.source);
    match &explanation.kernel {
        Some(kernel) => connections(kernel, now, &mut text),
        None => text.push_str("connections: pass; the kernel half does not run\n"),
    }
    requests(&explanation.proxy, &mut text);
    text
}

fn connections(kernel: &Connections, now: u64, text: &mut String) {
    let what = match (kernel.dropped, kernel.monitored) {
        (true, _) => "dropped",
        (false, true) => "counted, and let pass for kernel.monitor",
        (false, false) => "pass",
    };
    let mut rows = vec![("rule", Some(kernel.rule.clone()))];
    rows.push(("since", kernel.since.map(|since| time::show(since, now))));
    rows.push(("until", kernel.until.map(|until| time::show(until, now))));
    rows.push(("reason", kernel.reason.as_ref().map(|reason| format!("{reason:?}"))));
    let last = kernel.last_refused.map(|last| format!(", the last {}", time::show(last, now)));
    rows.push(("refused", Some(format!("{} packets{}", kernel.refused, last.unwrap_or_default()))));
    rows.push(("class", Some(kernel.class.clone())));
    rows.push(("level", kernel.level.map(|level| level.to_string())));
    rows.push(("left", Some(format!("{} connections at once", kernel.left))));
    rows.push(("change", Some(kernel.change.clone())));
    write(text, &format!("connections: {what} ({})", kernel.verdict), &rows);
}

fn requests(proxy: &Requests, text: &mut String) {
    let what = match (proxy.trusted_proxy, proxy.refused) {
        (true, _) => "believed about its clients, who are limited instead",
        (false, true) => "refused with 429 by a rule below",
        (false, false) => "served",
    };
    let mut rows = vec![("client", Some(proxy.client.to_string()))];
    rows.push(("class", Some(proxy.class.clone())));
    for rule in &proxy.rules {
        let state = match rule.wait_seconds {
            Some(wait) => format!("nothing left, again in {wait} s"),
            None => format!("{} left", rule.left),
        };
        let shadow = if rule.shadow { ", counts only" } else { "" };
        rows.push(("rule", Some(format!("{} {}: {state} of {}{shadow}", rule.route, rule.rule, rule.limit))));
    }
    rows.push((
        "lately",
        proxy.last_ten_seconds.as_ref().map(|recent| {
            format!(
                "{} requests in 10 s, {} refused, {} of these ignored an earlier refusal",
                recent.requests, recent.refused, recent.ignored
            )
        }),
    ));
    rows.push(("change", proxy.change.clone()));
    write(text, &format!("requests: {what}"), &rows);
}

fn write(text: &mut String, title: &str, rows: &[(&str, Option<String>)]) {
    writeln!(text, "{title}").expect("a string takes everything");
    for (name, value) in rows {
        if let Some(value) = value {
            writeln!(text, "  {name:<8}{value}").expect("a string takes everything");
        }
    }
}
