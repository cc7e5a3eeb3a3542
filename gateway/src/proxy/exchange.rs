//! The account of one request: when it began, how it ended. Recorded once, whatever happens.

use std::rc::Rc;
use std::time::Instant;

use http::StatusCode;

use super::Local;
use super::client::{Client, Phase};
use crate::metrics::Outcome;

/// Lives from the request's head to the end of its response's body. Dropped before either is
/// known, it is the client who left.
pub struct Exchange {
    client: Rc<Client>,
    local: Rc<Local>,
    /// `None`: the request belongs to no route.
    route: Option<usize>,
    started: Instant,
    status: StatusCode,
    outcome: Outcome,
}

/// nginx's number for a client that closed before it was answered.
const CLIENT_CLOSED_REQUEST: u16 = 499;

impl Exchange {
    pub fn begin(client: &Rc<Client>, local: &Rc<Local>) -> Self {
        client.request_began();
        Self {
            client: client.clone(),
            local: local.clone(),
            route: None,
            started: Instant::now(),
            status: StatusCode::from_u16(CLIENT_CLOSED_REQUEST).expect("three digits"),
            outcome: Outcome::ClientAbort,
        }
    }

    pub fn client(&self) -> &Rc<Client> {
        &self.client
    }

    pub fn routed(&mut self, route: usize) {
        self.route = Some(route);
    }

    /// The head that goes downstream; the outcome holds unless the body fails.
    pub fn answer(&mut self, status: StatusCode) {
        self.status = status;
    }

    pub fn fail(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// The response has been handed over to its last byte.
    pub fn complete(&mut self) {
        if self.outcome == Outcome::ClientAbort {
            self.outcome = Outcome::Ok;
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        self.local.cells(self.route).record(self.status.as_u16(), self.outcome, took);
        self.client.phase.set(Phase::Idle);
        let timer = &self.client.timer;
        timer.arm(timer.now().plus(self.local.snapshot.config.timeouts.idle));
    }
}
