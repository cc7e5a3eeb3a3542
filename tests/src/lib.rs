//! What a test of the gateway is made of: a gateway, a client, an upstream, the messages between them.
//!
//! Used by the test targets of this package only. Everything runs on real sockets of the loopback and
//! on blocking threads; every wait has an end ([`PATIENCE`]) and that end is a failure.

pub mod api;
pub mod binary;
pub mod client;
pub mod crowd;
pub mod faulty;
pub mod gateway;
pub mod kernel;
pub mod lint;
pub mod log;
pub mod message;
pub mod metrics;
pub mod name_server;
pub mod redis;
pub mod schema;
pub mod terminal;
pub mod upstream;

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

pub use api::Api;
pub use client::Client;
pub use crowd::{Crowd, Fate};
pub use faulty::{Fault, Restartable};
pub use gateway::{Exit, Gateway, Told};
pub use message::Message;
pub use name_server::{NameServer, Says};
pub use terminal::Terminal;
pub use upstream::{Conn, Upstream};

/// How long anything that is waited for may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A point that one side waits at until the other opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().expect("nobody panics while holding it") = true;
        self.0.1.notify_all();
    }

    #[track_caller]
    pub fn wait(&self) {
        let open = self.0.0.lock().expect("nobody panics while holding it");
        let (open, _) = self
            .0
            .1
            .wait_timeout_while(open, PATIENCE, |open| !*open)
            .expect("nobody panics while holding it");
        assert!(*open, "the gate stayed closed");
    }
}
