//! The HTTP flood: requests far past their limit over few connections that stay open, whatever is answered.
//!
//! A connection asks again when it has its answer, so a server slower than the rate slows the attack too, and one
//! that shuts the attacker out ends it: what is left are attempts to connect. A connection that was closed, or is
//! told nothing, is made again, but seldom enough that this stays a flood of requests.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::crowd::{Crowd, Manners};
use super::rig::Rig;
use crate::load::Reuse;
use crate::load::response::Reader;
use crate::scenario::Exchange;

const CONNECTIONS: usize = 50;
const OPEN_EVERY: Duration = Duration::from_millis(10);
/// A connection that is told nothing for so long is given up.
const PATIENCE: Duration = Duration::from_millis(500);
/// Requests that one turn sends.
const BATCH: usize = 16;

pub struct RequestFlood {
    rig: Rc<Rig>,
    crowd: Crowd<Asker>,
    request: Vec<u8>,
    /// Connections that may ask.
    idle: VecDeque<usize>,
    opens_at: Instant,
}

struct Asker {
    reader: Reader,
    stands: bool,
    /// When it last began to connect or sent a request.
    asked: Instant,
}

impl RequestFlood {
    pub fn new(rig: Rc<Rig>, now: Instant) -> io::Result<RequestFlood> {
        let request = Exchange::Small.request(Reuse::Keepalive);
        let crowd = Crowd::new(rig.attacker.target, Manners::Rude)?;
        Ok(RequestFlood { rig, crowd, request, idle: VecDeque::new(), opens_at: now })
    }

    /// Sends up to `due` requests and reads answers; says how many it sent.
    pub fn advance(&mut self, due: usize, now: Instant) -> io::Result<usize> {
        if now >= self.opens_at {
            self.opens_at = now + OPEN_EVERY;
            self.give_up_one(now);
            if self.crowd.len() < CONNECTIONS {
                let asker = Asker { reader: Reader::default(), stands: false, asked: now };
                self.rig.as_attacker(|| self.crowd.connect(asker))??;
            }
        }
        for ready in self.crowd.ready()? {
            if ready.writable && self.crowd.state(ready.token).is_some_and(|asker| !asker.stands) {
                self.crowd.only_read(ready.token)?;
                self.crowd.state(ready.token).expect("it was just there").stands = true;
                self.idle.push_back(ready.token);
            }
            if ready.readable {
                self.read(ready.token);
            }
        }
        let mut sent = 0;
        while sent < due.min(BATCH) {
            let Some(token) = self.idle.pop_front() else { break };
            match self.crowd.send(token, &self.request) {
                true => sent += 1,
                false => self.crowd.close(token),
            }
            if let Some(asker) = self.crowd.state(token) {
                asker.asked = now;
            }
        }
        Ok(sent)
    }

    fn give_up_one(&mut self, now: Instant) {
        let mut waiting = (0..CONNECTIONS).filter(|token| !self.idle.contains(token));
        let is_ignored = |asker: &mut Asker| now - asker.asked > PATIENCE;
        if let Some(token) = waiting.find(|token| self.crowd.state(*token).is_some_and(is_ignored)) {
            self.crowd.close(token);
        }
    }

    fn read(&mut self, token: usize) {
        let Some((asker, mut bytes)) = self.crowd.receive(token) else { return self.leave(token) };
        let fed = asker.reader.feed(&mut bytes);
        match fed {
            Ok(None) => {}
            Ok(Some(answer)) if !answer.close => self.idle.push_back(token),
            Ok(Some(_)) | Err(_) => self.leave(token),
        }
    }

    fn leave(&mut self, token: usize) {
        self.idle.retain(|other| *other != token);
        self.crowd.close(token);
    }
}
