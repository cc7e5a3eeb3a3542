//! A terminal that a program of the command line draws on, and its keyboard.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{read, write};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::PATIENCE;

pub struct Terminal {
    ours: OwnedFd,
    /// The program's end; held, so that what it leaves behind can be looked at.
    theirs: OwnedFd,
    before: Termios,
    drawn: Vec<u8>,
    child: Child,
}

impl Terminal {
    /// Runs `command` on a terminal of so many columns and rows.
    #[track_caller]
    pub fn run(command: &mut Command, columns: u16, rows: u16) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are pseudo terminals");
        grantpt(&ours).expect("it is ours");
        unlockpt(&ours).expect("it is ours");
        let name = ptsname(&ours, Vec::new()).expect("it has a name");
        let theirs =
            open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("its other end is there");
        tcsetwinsize(&theirs, size(columns, rows)).expect("it is a terminal");
        let before = tcgetattr(&theirs).expect("it is a terminal");
        let end = || Stdio::from(theirs.try_clone().expect("there are descriptors"));
        let child = command.env("TERM", "xterm-256color").stdin(end()).stdout(end()).spawn();
        Self { ours, theirs, before, drawn: Vec::new(), child: child.expect("the binary is there") }
    }

    pub fn press(&self, keys: &str) {
        assert_eq!(write(&self.ours, keys.as_bytes()), Ok(keys.len()), "a terminal takes some keys");
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// The program learns of it by a signal, as it would from a terminal of its own session.
    pub fn resize(&self, columns: u16, rows: u16) {
        tcsetwinsize(&self.ours, size(columns, rows)).expect("it is a terminal");
        self.signal(Signal::WINCH);
    }

    /// Waits until what has been drawn since the last call holds: the bytes, and the text of them.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, holds: impl Fn(&[u8], &str) -> bool) {
        let started = Instant::now();
        let mut text = text(&self.drawn);
        while !holds(&self.drawn, &text) {
            let left = PATIENCE.saturating_sub(started.elapsed());
            let left = Timespec::try_from(left).expect("it is short");
            let ready = poll(&mut [PollFd::new(&self.ours, PollFlags::IN)], Some(&left))
                .expect("it can be waited for");
            assert!(ready > 0, "waited in vain: {what}; drawn: {text}");
            let mut piece = [0; 4096];
            let count = read(&self.ours, &mut piece).expect("the other end is open");
            self.drawn.extend(&piece[..count]);
            text = self::text(&self.drawn);
        }
        self.drawn.clear();
    }

    /// The exit code, after the screen before has come back; `None`: a signal ended it.
    #[track_caller]
    pub fn end(mut self) -> Option<i32> {
        self.wait_for("the screen as it was", |bytes, _| {
            contains(bytes, b"\x1b[?1049l") && contains(bytes, b"\x1b[?25h")
        });
        let code = self.child.wait().expect("it is our child").code();
        let after = tcgetattr(&self.theirs).expect("it is a terminal");
        let modes = |of: &Termios| (of.input_modes, of.output_modes, of.control_modes, of.local_modes);
        assert_eq!(modes(&after), modes(&self.before), "it takes lines again");
        code
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Without what moves the cursor and gives colours: `ESC [`, up to a letter.
fn text(bytes: &[u8]) -> String {
    let whole = String::from_utf8_lossy(bytes);
    let mut parts = whole.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).map_or(part.len(), |end| end + 1);
        text + &part[end..]
    })
}
