//! The thread that writes the log, and the bounded queue before it.
//!
//! Workers hold its lock for as long as it takes to put a block down. Whoever reads the log may stand still:
//! the queue fills, and workers are told that there is no room.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::config::Destination;
use crate::metrics::Cell;

/// That wait to be written; further ones stay with their workers.
const MOST_BLOCKS: usize = 64;

pub struct Writer {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Lines, by how writing them went.
    written: Cell,
    failed: Cell,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    blocks: VecDeque<Block>,
    /// Written, to be filled again.
    spare: Vec<Vec<u8>>,
    reopen: bool,
    closed: bool,
    ended: bool,
}

struct Block {
    bytes: Vec<u8>,
    lines: u64,
}

impl Writer {
    /// Opens `to` and starts the thread, which ends with the last block after this is dropped.
    pub fn start(to: &Destination) -> io::Result<Arc<Self>> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", name(to)));
        let (file, shared) = (open(to).map_err(named)?, Arc::<Shared>::default());
        let thread = Thread { to: to.clone(), file, shared: shared.clone() };
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || thread.run())?;
        Ok(Arc::new(Self { shared }))
    }

    /// Takes a block and leaves an empty one in its place; false: there is no room.
    pub fn take(&self, block: &mut Vec<u8>, lines: u64) -> bool {
        let mut queue = self.shared.lock();
        if queue.blocks.len() >= MOST_BLOCKS {
            return false;
        }
        let next = queue.spare.pop().unwrap_or_else(|| Vec::with_capacity(block.capacity()));
        queue.blocks.push_back(Block { bytes: std::mem::replace(block, next), lines });
        drop(queue);
        self.shared.changed.notify_all();
        true
    }

    /// Lines written, and lines that could not be.
    pub fn lines(&self) -> [u64; 2] {
        [self.shared.written.get(), self.shared.failed.get()]
    }

    pub fn reopen(&self) {
        self.shared.lock().reopen = true;
        self.shared.changed.notify_all();
    }

    pub fn finish(&self, patience: Duration) {
        self.close();
        let queue = self.shared.lock();
        // Whoever reads the log may stand still.
        drop(self.shared.changed.wait_timeout_while(queue, patience, |queue| !queue.ended));
    }

    fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Thread {
    to: Destination,
    file: File,
    shared: Arc<Shared>,
}

enum Job {
    Write(Block),
    Reopen,
}

impl Thread {
    fn run(mut self) {
        let mut failing = false;
        while let Some(job) = self.next() {
            match job {
                Job::Write(block) => self.write(block, &mut failing),
                Job::Reopen => self.reopen(),
            }
        }
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
    }

    fn next(&self) -> Option<Job> {
        let idle = |queue: &mut Queue| queue.blocks.is_empty() && !queue.reopen && !queue.closed;
        let queue = self.shared.lock();
        let mut queue = self.shared.changed.wait_while(queue, idle).unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut queue.reopen) {
            true => Some(Job::Reopen),
            false => queue.blocks.pop_front().map(Job::Write),
        }
    }

    fn write(&mut self, mut block: Block, failing: &mut bool) {
        let written = self.file.write_all(&block.bytes);
        match &written {
            Ok(()) => self.shared.written.add(block.lines),
            Err(_) => self.shared.failed.add(block.lines),
        }
        if let Err(error) = &written
            && !*failing
        {
            tracing::error!(%error, to = %name(&self.to), "cannot write the access log; lines are lost");
        }
        *failing = written.is_err();
        block.bytes.clear();
        let mut queue = self.shared.lock();
        if queue.spare.len() < MOST_BLOCKS {
            queue.spare.push(block.bytes);
        }
    }

    fn reopen(&mut self) {
        match open(&self.to) {
            Ok(file) => {
                self.file = file;
                tracing::info!(to = %name(&self.to), "access log opened again");
            }
            Err(error) => {
                tracing::error!(%error, to = %name(&self.to), "cannot open the access log again; the file open so far stays");
            }
        }
    }
}

fn open(to: &Destination) -> io::Result<File> {
    match to {
        Destination::Stdout => Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
        Destination::File(path) => {
            let is_fifo = path.metadata().is_ok_and(|found| found.file_type().is_fifo());
            // A pipe for writing alone opens only when somebody reads it.
            OpenOptions::new().append(true).create(true).read(is_fifo).open(path)
        }
    }
}

fn name(to: &Destination) -> std::path::Display<'_> {
    match to {
        Destination::Stdout => Path::new("stdout").display(),
        Destination::File(path) => path.display(),
    }
}
