//! How the gateway is, at a glance.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::serve::Control;
use crate::admin::Health;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    pub health: Health,
    pub config: Config,
    /// `null`: it does not drain.
    pub drain: Option<Drain>,
    pub listeners: Listeners,
    pub workers: usize,
    /// Client connections, the idle included.
    pub connections_open: u64,
    /// Requests under way.
    pub requests_active: u64,
    pub routes: usize,
    pub upstreams: usize,
    pub kernel: Kernel,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Config {
    /// Configurations put in force since the start.
    pub generation: u64,
    pub reloads_succeeded: u64,
    pub reloads_failed: u64,
    /// Why the file on disk is not what is in force; `null`: it is.
    pub last_reload_error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Drain {
    pub elapsed_seconds: f64,
    /// Until what is still open is cut off.
    pub left_seconds: f64,
}

/// Addresses with their ports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Listeners {
    pub proxy: String,
    pub metrics: String,
    /// `null`: the admin API is at its socket alone.
    pub admin: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Kernel {
    /// Whether the kernel half judges packets.
    pub running: bool,
    pub interfaces: Vec<Interface>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Interface {
    pub name: String,
    /// Not while it is away, or somebody else holds its hook.
    pub attached: bool,
}

pub fn read(control: &Control) -> Status {
    let Control { kernel, state, places, .. } = control;
    let snapshot = state.current.load();
    let reloads = &state.registry.reloads;
    let interfaces = kernel.interfaces().into_iter().map(|(name, attached)| Interface { name, attached });
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: state.started.elapsed().as_secs(),
        health: state.health(),
        config: Config {
            generation: snapshot.generation,
            reloads_succeeded: reloads.succeeded.get(),
            reloads_failed: reloads.failed.get(),
            last_reload_error: state.reload_error(),
        },
        drain: state.drain().map(|drain| Drain {
            elapsed_seconds: drain.elapsed.as_secs_f64(),
            left_seconds: drain.left.as_secs_f64(),
        }),
        listeners: Listeners {
            proxy: places.proxy.to_string(),
            metrics: places.metrics.to_string(),
            admin: places.admin.map(|admin| admin.to_string()),
        },
        workers: state.registry.workers.len(),
        connections_open: state.open(),
        requests_active: state.active(),
        routes: snapshot.routes.len(),
        upstreams: snapshot.endpoints.len(),
        kernel: Kernel { running: kernel.is_running(), interfaces: interfaces.collect() },
    }
}
