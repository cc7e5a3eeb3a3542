//! Bytes from one socket to another without a copy in user space (splice(2)).
//!
//! What is moved lies in the kernel's own pages all the way. A pipe is filled only while it is empty, so a socket that
//! has nothing is told from a pipe that is full. Copying needs no descriptors, costs less for little, and is what is
//! left where there are no pipes to be had.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Fewer bytes than this are copied for less than the four system calls and the pipe cost.
pub const LEAST: u64 = 32 * 1024;
/// Of one step, in pages of a pipe.
const MOST: usize = 256 * 1024;

pub struct Pipe {
    into: OwnedFd,
    from: OwnedFd,
    held: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (from, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // As it comes, it holds sixteen pages; who may not have more keeps that.
        let _ = fcntl_setpipe_size(&into, MOST);
        // A sandbox may forbid it: better known before there is something to lose.
        move_some(&from, &into, 0)?;
        Ok(Self { into, from, held: 0 })
    }

    /// Whether all that was taken in has gone out.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes in up to `most` bytes of what `socket` has; 0: there will be none.
    pub fn poll_fill(
        &mut self,
        socket: &TcpStream,
        most: u64,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let most = usize::try_from(most).unwrap_or(MOST).min(MOST);
        loop {
            ready!(socket.poll_read_ready(cx))?;
            match socket.try_io(Interest::READABLE, || move_some(socket, &self.into, most)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                moved => {
                    self.held += moved.as_ref().map_or(0, |moved| *moved);
                    return Poll::Ready(moved);
                }
            }
        }
    }

    /// Gives `socket` as much as it takes.
    pub fn poll_drain(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(socket.poll_write_ready(cx))?;
            match socket.try_io(Interest::WRITABLE, || move_some(&self.from, socket, self.held)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                moved => {
                    self.held -= moved.as_ref().map_or(0, |moved| *moved);
                    return Poll::Ready(moved);
                }
            }
        }
    }
}

fn move_some(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, most, SpliceFlags::NONBLOCK)?)
}

/// A worker's pipes.
#[derive(Default)]
pub struct Pipes {
    /// They hold nothing and wait for a body.
    spare: RefCell<Vec<Pipe>>,
    /// So many more may be made.
    left: Cell<usize>,
}

/// A pipe for one body. It is kept for another unless it holds a rest of this one.
pub struct Lent<'a> {
    pipe: Option<Pipe>,
    of: &'a Pipes,
}

impl Pipes {
    pub fn at_most(many: usize) -> Self {
        Self { spare: RefCell::default(), left: Cell::new(many) }
    }

    /// `None`: all are in use, or the system has none.
    pub fn lend(&self) -> Option<Lent<'_>> {
        let spare = self.spare.borrow_mut().pop();
        let pipe = spare.or_else(|| self.make(Pipe::new))?;
        Some(Lent { pipe: Some(pipe), of: self })
    }

    fn make(&self, pipe: impl FnOnce() -> io::Result<Pipe>) -> Option<Pipe> {
        let left = self.left.get().checked_sub(1)?;
        match pipe() {
            Ok(pipe) => {
                self.left.set(left);
                Some(pipe)
            }
            Err(error) => {
                // What there is none of just now there may be later; what is forbidden is not asked for again.
                let short = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
                if !short.iter().any(|short| Errno::from_io_error(&error) == Some(*short)) {
                    self.left.set(0);
                }
                None
            }
        }
    }
}

impl Deref for Lent<'_> {
    type Target = Pipe;

    fn deref(&self) -> &Pipe {
        self.pipe.as_ref().expect("it is there until it is given back")
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Pipe {
        self.pipe.as_mut().expect("it is there until it is given back")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        match self.pipe.take_if(|pipe| pipe.is_empty()) {
            Some(pipe) => self.of.spare.borrow_mut().push(pipe),
            None => self.of.left.set(self.of.left.get() + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    fn pair() -> (std::net::TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = listener.accept().unwrap().0;
        ours.set_nonblocking(true).unwrap();
        (theirs, TcpStream::from_std(ours).unwrap())
    }

    fn run(test: impl Future) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(test);
    }

    #[test]
    fn bytes_come_out_as_they_went_in_and_no_more_than_asked_for() {
        run(async {
            let pipes = Pipes::at_most(1);
            let (mut from, source) = pair();
            let (mut to, sink) = pair();
            let sent: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
            from.write_all(&sent).unwrap();
            let mut pipe = pipes.lend().unwrap();
            let mut got = Vec::new();
            for most in [1, 9_999, 90_000] {
                let (mut taken, before) = (0, got.len());
                while taken < most {
                    taken += poll_fn(|cx| pipe.poll_fill(&source, (most - taken) as u64, cx)).await.unwrap();
                    while !pipe.is_empty() {
                        poll_fn(|cx| pipe.poll_drain(&sink, cx)).await.unwrap();
                    }
                    got.resize(before + taken, 0);
                }
                to.read_exact(&mut got[before..]).unwrap();
            }
            assert_eq!(got, sent);
            // The end of it is told from nothing being there.
            assert!(poll_fn(|cx| Poll::Ready(pipe.poll_fill(&source, 1, cx).is_pending())).await);
            drop(from);
            assert_eq!(poll_fn(|cx| pipe.poll_fill(&source, 1, cx)).await.unwrap(), 0);
        });
    }

    #[test]
    fn what_is_forbidden_is_not_asked_for_again() {
        for (error, is_asked) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::NOMEM, true),
            (Errno::PERM, false),
            (Errno::NOSYS, false),
        ] {
            let pipes = Pipes::at_most(2);
            assert!(pipes.make(|| Err(error.into())).is_none(), "{error}");
            assert_eq!(pipes.make(Pipe::new).is_some(), is_asked, "{error}");
        }
    }

    #[test]
    fn a_pipe_that_holds_something_is_not_lent_again() {
        run(async {
            let pipes = Pipes::at_most(2);
            let (mut from, source) = pair();
            from.write_all(b"rest").unwrap();
            let mut first = pipes.lend().unwrap();
            let second = pipes.lend().unwrap();
            assert!(pipes.lend().is_none());
            poll_fn(|cx| first.poll_fill(&source, 4, cx)).await.unwrap();
            drop((first, second));
            assert_eq!((pipes.spare.borrow().len(), pipes.left.get()), (1, 1));
            let all = [pipes.lend(), pipes.lend()].map(|pipe| pipe.unwrap().is_empty());
            assert_eq!(all, [true; 2]);
        });
    }
}
