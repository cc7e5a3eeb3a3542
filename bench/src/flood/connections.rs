//! The connection flood: whole handshakes, a request on each connection, and away at the first sign of an answer.
//!
//! A connection that nobody answers is given up after [`PATIENCE`], so that the attack keeps its rate against a
//! server that drops it.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::crowd::{Crowd, Manners};
use super::rig::Rig;
use crate::load::Reuse;
use crate::scenario::Exchange;

const PATIENCE: Duration = Duration::from_millis(250);
/// Connections that one turn begins: see the SYN flood's batch.
const BATCH: usize = 4;

pub struct ConnectionFlood {
    rig: Rc<Rig>,
    /// Each with its number, for a token comes again.
    crowd: Crowd<u64>,
    request: Vec<u8>,
    number: u64,
    given_up_at: VecDeque<(Instant, usize, u64)>,
}

impl ConnectionFlood {
    pub fn new(rig: Rc<Rig>) -> io::Result<ConnectionFlood> {
        Ok(ConnectionFlood {
            crowd: Crowd::new(rig.attacker.target, Manners::Rude)?,
            rig,
            request: Exchange::Small.request(Reuse::Keepalive),
            number: 0,
            given_up_at: VecDeque::new(),
        })
    }

    /// Begins up to `due` connections and looks after the others; says how many it began.
    pub fn advance(&mut self, due: usize, now: Instant) -> io::Result<usize> {
        for ready in self.crowd.ready()? {
            let token = ready.token;
            if ready.readable || !self.crowd.send(token, &self.request) {
                self.crowd.close(token);
            } else {
                self.crowd.only_read(token)?;
            }
        }
        while let Some((_, token, number)) = self.given_up_at.pop_front_if(|(when, ..)| *when <= now) {
            if self.crowd.state(token).is_some_and(|other| *other == number) {
                self.crowd.close(token);
            }
        }
        let count = due.min(BATCH);
        if count == 0 {
            return Ok(0);
        }
        self.rig.as_attacker(|| {
            for _ in 0..count {
                self.number += 1;
                let token = self.crowd.connect(self.number)?;
                self.given_up_at.push_back((now + PATIENCE, token, self.number));
            }
            Ok(count)
        })?
    }
}
