//! A gateway's status as lines.

use std::fmt::Write as _;

use super::time::span;
use crate::admin::Health;
use crate::control::Status;

pub fn lines(status: &Status) -> String {
    let health = match status.health {
        Health::Ok => "ok",
        Health::Degraded => "degraded",
        Health::Draining => "draining",
    };
    let mut rows = vec![("gateway", format!("{}, process {}", status.version, status.pid))];
    rows.push(("since", format!("{} ago", span(status.uptime_seconds))));
    let listeners = &status.listeners;
    let admin = listeners.admin.as_ref().map(|admin| format!(", admin {admin}")).unwrap_or_default();
    rows.push(("listens", format!("{}, metrics {}{admin}", listeners.proxy, listeners.metrics)));
    let config = &status.config;
    let (succeeded, failed) = (config.reloads_succeeded, config.reloads_failed);
    rows.push((
        "config",
        format!(
            "generation {}, {succeeded} reloads, {failed} refused; {} routes, {} endpoints",
            config.generation, status.routes, status.upstreams
        ),
    ));
    rows.extend(config.last_reload_error.iter().map(|error| ("refused", error.clone())));
    rows.extend(
        status.drain.iter().map(|drain| {
            ("drain", format!("{:.0} s, {:.0} s left", drain.elapsed_seconds, drain.left_seconds))
        }),
    );
    rows.push((
        "serves",
        format!(
            "{} requests, {} connections, {} workers",
            status.requests_active, status.connections_open, status.workers
        ),
    ));
    let interfaces = status.kernel.interfaces.iter().map(|interface| match interface.attached {
        true => interface.name.clone(),
        false => format!("{} (NOT ATTACHED)", interface.name),
    });
    rows.push((
        "kernel",
        match status.kernel.running {
            true => format!("on {}", interfaces.collect::<Vec<_>>().join(", ")),
            false => "does not run".to_owned(),
        },
    ));
    let mut text = format!("{health}\n");
    for (name, value) in rows {
        writeln!(text, "  {name:<8}{value}").expect("a string takes everything");
    }
    text
}
