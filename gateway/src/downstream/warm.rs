//! The connections of a worker that keep hyper's buffers (16 KiB each) between two requests.
//!
//! At most [`CAPACITY`]; beyond it the least recently used idle one is asked to park: it keeps its
//! task and socket, and builds a new hyper connection when it becomes readable. Which one is found
//! by a clock hand (second chance), so a request costs one store.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use super::io::{Io, Scratch};

pub const CAPACITY: usize = 256;

pub struct Warm {
    pub scratch: Rc<Scratch>,
    queue: RefCell<VecDeque<Weak<Io>>>,
}

impl Warm {
    pub fn new(scratch: Scratch) -> Self {
        Self { scratch: Rc::new(scratch), queue: RefCell::default() }
    }

    /// Adds a connection that has just built its hyper half.
    pub fn admit(&self, io: &Rc<Io>) {
        io.park.set(false);
        let mut queue = self.queue.borrow_mut();
        queue.push_back(Rc::downgrade(io));
        for _ in 0..queue.len() {
            if queue.len() <= CAPACITY {
                return;
            }
            let Some(next) = queue.pop_front() else { return };
            let Some(io) = next.upgrade() else { continue };
            if io.used.replace(false) || io.client.is_busy() {
                queue.push_back(next);
            } else {
                io.park.set(true);
                io.client.timer.wake();
            }
        }
    }
}
