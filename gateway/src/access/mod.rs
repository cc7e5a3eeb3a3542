//! The access log: a line for each request, written off the request's path.
//!
//! A worker formats into its own [`Desk`] and hands whole blocks to the one thread that writes (`writer`).
//! Whoever would have to wait drops the line and counts it. What a request did is the caller's to know.

mod clock;
mod escape;
mod line;
mod writer;

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clock::Clock;
pub use line::{Asked, Cached, Head, Line};
use writer::Writer;

use crate::config::{AccessLog, LogFormat};
use crate::metrics::{Outcome, Registry};

/// What a worker gathers before it hands over; a second's worth where that is less.
const BLOCK_BYTES: usize = 64 << 10;

/// Heads that a worker keeps for requests to come, and the largest of them.
const MOST_HEADS: usize = 64;
const LARGEST_HEAD_BYTES: usize = 4096;

/// The log as it is configured.
pub struct Access {
    config: AccessLog,
    writer: Arc<Writer>,
}

impl Access {
    /// Opens what `config` says; what `before` has open already is gone on with.
    pub fn open(config: &AccessLog, before: Option<&Arc<Self>>) -> io::Result<Arc<Self>> {
        let writer = match before {
            Some(before) if before.config == *config => return Ok(before.clone()),
            Some(before) if before.config.to == config.to => before.writer.clone(),
            Some(_) | None => Writer::start(&config.to)?,
        };
        Ok(Arc::new(Self { config: config.clone(), writer }))
    }

    /// Lines written since it was opened, and lines that could not be.
    pub fn lines(&self) -> [u64; 2] {
        self.writer.lines()
    }

    /// Opens the file again: it may have been renamed.
    pub fn reopen(&self) {
        self.writer.reopen();
    }

    /// Waits until everything handed over is written, but not for longer than `patience`.
    pub fn finish(&self, patience: Duration) {
        self.writer.finish(patience);
    }
}

/// One worker's side of the log.
pub struct Desk {
    access: Arc<Access>,
    registry: Arc<Registry>,
    worker: usize,
    block: RefCell<Vec<u8>>,
    /// In the block.
    lines: Cell<u64>,
    /// Requests that went well since the last of them that was written.
    passed: Cell<u32>,
    clock: RefCell<Clock>,
    /// Of requests that are over, for those to come.
    heads: RefCell<Vec<Head>>,
}

impl Desk {
    pub fn new(access: Arc<Access>, registry: Arc<Registry>, worker: usize) -> Self {
        Self {
            block: RefCell::new(Vec::with_capacity(BLOCK_BYTES)),
            clock: RefCell::new(Clock::new(Instant::now())),
            lines: Cell::new(0),
            passed: Cell::new(0),
            heads: RefCell::default(),
            access,
            registry,
            worker,
        }
    }

    pub fn is_of(&self, access: &Arc<Access>) -> bool {
        Arc::ptr_eq(&self.access, access)
    }

    /// Puts down what a request asks.
    pub fn head(&self, asked: &Asked<'_>) -> Head {
        let mut head = self.heads.borrow_mut().pop().unwrap_or_default();
        match self.access.config.format {
            LogFormat::Json => head.json(asked),
            LogFormat::Combined => head.combined(asked),
        }
        head
    }

    /// Keeps the room of a head that nobody needs any more.
    pub fn recycle(&self, mut head: Head) {
        let mut heads = self.heads.borrow_mut();
        if heads.len() < MOST_HEADS && head.bytes.capacity() <= LARGEST_HEAD_BYTES {
            head.bytes.clear();
            heads.push(head);
        }
    }

    /// Writes about a request that is over, unless the sample leaves it out.
    pub fn log(&self, line: &Line<'_>) {
        let sample = self.access.config.sample;
        let sampled = sample > 1 && !is_failure(line);
        if sampled && self.passed.get() + 1 < sample {
            return self.passed.set(self.passed.get() + 1);
        }
        self.passed.set(0);
        let block = &mut *self.block.borrow_mut();
        if block.len() >= BLOCK_BYTES && !self.hand_over(block) {
            return self.count_dropped(1);
        }
        let clock = &mut *self.clock.borrow_mut();
        match self.access.config.format {
            LogFormat::Json => line.json(clock, sampled.then_some(sample), block),
            LogFormat::Combined => line.combined(clock, block),
        }
        self.lines.set(self.lines.get() + 1);
    }

    /// Called once a second: what lies here is written, and the clock may have been set.
    pub fn flush(&self) {
        self.clock.borrow_mut().adjust(Instant::now());
        let block = &mut *self.block.borrow_mut();
        if !block.is_empty() {
            self.hand_over(block);
        }
    }

    fn hand_over(&self, block: &mut Vec<u8>) -> bool {
        let taken = self.access.writer.take(block, self.lines.get());
        if taken {
            self.lines.set(0);
        }
        taken
    }

    fn count_dropped(&self, lines: u64) {
        self.registry.workers[self.worker].log_dropped.add(lines);
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.flush();
        self.count_dropped(self.lines.get());
    }
}

/// What somebody will look for, however many others there are. Refusals are no failures: whoever is refused can make
/// as many as he likes.
fn is_failure(line: &Line<'_>) -> bool {
    line.status.is_server_error() || line.outcome == Outcome::ClientAbort
}
