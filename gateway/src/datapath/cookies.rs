//! When SYN cookies are sent, and the child process that has the host's stack take them.
//!
//! The stack takes a cookie only while an overflow of its own is on record. With `tcp_syncookies` 2 it answers
//! every request with one, so that a single request a second, let through as a seed, keeps that record. The same
//! costs every service of the host window scaling, so the value stands only while cookies are armed, in the hands
//! of a child: it puts the old one back when it has not been asked for the new one for a second, and at the end of
//! its input, which a SIGKILL of the gateway brings too.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use super::sys;

/// The verb by which the gateway starts itself as that child.
pub const VERB: &str = "syncookies";

const SYSCTL: &str = "/proc/sys/net/ipv4/tcp_syncookies";
const ALWAYS: &str = "2";
const ARM: &str = "arm";
const DISARM: &str = "disarm";
/// The answers; any other is a fault, in words.
const DONE: &str = "done";
const CHANGED: &str = "changed";

const SECOND_NS: u64 = 1_000_000_000;
/// Armed at once, disarmed when for so long nobody was worth a cookie.
const CALM_NS: u64 = 10 * SECOND_NS;
/// The child answers in microseconds. What it has not answered by then is read at the next turn: whoever waited would
/// tell the kernel half nothing meanwhile.
const AT_ONCE: Duration = Duration::from_millis(5);
/// A child that has missed so many turns may not answer at all; on a busy core it may be late for one.
const MISSED: u32 = 4;
/// A gateway that has not said `arm` for so long stands still.
const SILENCE: Duration = Duration::from_secs(1);

/// Whether cookies are armed. Pure.
#[derive(Default)]
pub struct Arming {
    wanted: u64,
    wanted_at_ns: Option<u64>,
}

impl Arming {
    /// Counts from here.
    pub fn begin(&mut self, wanted: u64) {
        self.wanted = wanted;
    }

    /// `wanted`: how many requests ever were worth a cookie. Whether cookies are to be armed now.
    pub fn judge(&mut self, wanted: u64, now_ns: u64) -> bool {
        if wanted != self.wanted {
            self.wanted = wanted;
            self.wanted_at_ns = Some(now_ns);
        }
        self.wanted_at_ns.is_some_and(|at| now_ns < at + CALM_NS)
    }
}

/// The child, from its parent's side. It ends with the parent, or when this is dropped.
pub struct Stack {
    /// `None`: somebody waits for its end.
    child: Option<Child>,
    talk: BufReader<UnixStream>,
    /// What there is of its next answer.
    said: String,
    /// The order that it has not answered, at so many turns since.
    asked: Option<bool>,
    missed: u32,
    /// What it has done last.
    taking: bool,
    /// Somebody else has changed the setting.
    changed: bool,
}

impl Stack {
    /// Starts this program once more; before privileges are given up, for the child keeps what it needs of them.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(AT_ONCE))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(VERB).stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own: the terminal's signals are for the gateway.
        let child = command.process_group(0).spawn()?;
        Ok(Self {
            child: Some(child),
            talk: BufReader::new(ours),
            said: String::new(),
            asked: None,
            missed: 0,
            taking: false,
            changed: false,
        })
    }

    /// Has the host's stack take cookies, or no more, and says whether it does, as far as is known. To be said time and
    /// again while it is to: the setting ends without.
    ///
    /// # Errors
    /// The child has ended, or cannot do it.
    pub fn turn(&mut self, on: bool) -> io::Result<bool> {
        self.hear()?;
        self.missed = if self.asked.is_some() { self.missed + 1 } else { 0 };
        if self.asked.is_none() && (on || self.taking || self.changed) {
            writeln!(self.talk.get_mut(), "{}", if on { ARM } else { DISARM })?;
            self.asked = Some(on);
            self.hear()?;
        }
        Ok(self.taking)
    }

    /// Whether it can have the stack take cookies: it answers, and nobody else wants it otherwise.
    pub fn is_at_hand(&self) -> bool {
        self.missed < MISSED && !self.changed
    }

    fn hear(&mut self) -> io::Result<()> {
        let Some(asked) = self.asked else { return Ok(()) };
        match self.talk.read_line(&mut self.said) {
            Ok(0) => return Err(io::ErrorKind::BrokenPipe.into()),
            Ok(_) => {}
            Err(error) if is_silence(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        self.asked = None;
        let answer = std::mem::take(&mut self.said);
        match answer.trim() {
            DONE => (self.taking, self.changed) = (asked, false),
            CHANGED => (self.taking, self.changed) = (false, true),
            fault => return Err(io::Error::other(fault.to_owned())),
        }
        Ok(())
    }
}

/// A child that has ended would stay a zombie for as long as the gateway runs. It is waited for by a thread: it ends with
/// its input, which closes after this, and one that is stopped takes its time.
impl Drop for Stack {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let reap = std::thread::Builder::new().name("reaper".to_owned()).spawn(move || child.wait());
        if let Err(error) = reap {
            tracing::warn!(%error, "the child that switched SYN cookies stays a zombie");
        }
    }
}

/// The child's whole life.
pub fn serve() -> io::Result<()> {
    sys::outlive_the_parent()?;
    set_no_new_privs(true)?;
    let net_admin = CapabilitySet::NET_ADMIN;
    let kept =
        CapabilitySets { effective: net_admin, permitted: net_admin, inheritable: CapabilitySet::empty() };
    set_capabilities(None, kept)?;
    obey(io::stdin().as_fd().try_clone_to_owned()?.into(), Path::new(SYSCTL))
}

/// Does as it is told until nobody is there any more; then puts back what was there.
fn obey(gateway: UnixStream, file: &Path) -> io::Result<()> {
    let mut value = Value { file, before: None };
    let heard = converse(gateway, &mut value);
    value.restore().and(heard)
}

fn converse(gateway: UnixStream, value: &mut Value<'_>) -> io::Result<()> {
    let (mut gateway, mut order) = (BufReader::new(gateway), String::new());
    loop {
        gateway.get_ref().set_read_timeout(value.before.as_ref().map(|_| SILENCE))?;
        match gateway.read_line(&mut order) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if is_silence(&error) => {
                value.restore()?;
                continue;
            }
            Err(error) => return Err(error),
        }
        let done = match order.trim_end() {
            ARM => value.set(),
            DISARM => value.restore().map(|()| DONE),
            other => Err(io::Error::other(format!("no such order: {other}"))),
        };
        order.clear();
        let answer = done.map_or_else(|fault| format!("{}: {fault}", value.file.display()), str::to_owned);
        gateway.get_mut().write_all(format!("{answer}\n").as_bytes())?;
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The host's setting, and what it was.
struct Value<'a> {
    file: &'a Path,
    before: Option<String>,
}

impl Value<'_> {
    /// Once: whoever changes it afterwards means it. One that others had set so may be put back by them.
    fn set(&mut self) -> io::Result<&'static str> {
        let found = fs::read_to_string(self.file)?;
        if found.trim() == ALWAYS {
            return Ok(DONE);
        }
        if self.before.is_some() {
            return Ok(CHANGED);
        }
        fs::write(self.file, ALWAYS)?;
        self.before = Some(found);
        Ok(DONE)
    }

    /// Not where somebody else has changed it since.
    fn restore(&mut self) -> io::Result<()> {
        match self.before.take() {
            Some(before) if fs::read_to_string(self.file)?.trim() == ALWAYS => fs::write(self.file, before),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn armed_at_once_and_disarmed_when_it_has_been_calm() {
        let mut arming = Arming::default();
        for (second, wanted, armed) in [
            (0, 0, false),
            (1, 0, false),
            (2, 1, true),
            (3, 500, true),
            (12, 500, true),
            (13, 500, false),
            (14, 500, false),
            (15, 501, true),
            (24, 501, true),
            (25, 501, false),
        ] {
            assert_eq!(arming.judge(wanted, second * SECOND_NS), armed, "at {second} s");
        }
    }

    /// The answers to orders that are given one after the other; the file as it is then, and in the end.
    fn told(before: &str, orders: &str) -> (String, String, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), before).unwrap();
        let read = || fs::read_to_string(file.path()).unwrap();
        let (gateway, child) = UnixStream::pair().unwrap();
        let obeying = std::thread::spawn({
            let path = file.path().to_owned();
            move || obey(child, &path)
        });
        let (mut gateway, mut answers) = (BufReader::new(gateway), String::new());
        for order in orders.split_whitespace() {
            match order.strip_prefix('=') {
                Some(value) => fs::write(file.path(), value).unwrap(),
                None => {
                    writeln!(gateway.get_mut(), "{order}").unwrap();
                    gateway.read_line(&mut answers).unwrap();
                }
            }
        }
        let then = read();
        drop(gateway);
        obeying.join().unwrap().unwrap();
        (answers.replace('\n', " "), then, read())
    }

    /// `=1` is somebody else who writes that.
    #[test]
    fn the_setting_follows_the_orders_and_the_old_one_comes_back_in_the_end() {
        for (before, orders, answers, then, left) in [
            ("1\n", "", "", "1\n", "1\n"),
            ("1\n", "arm disarm", "done done ", "1\n", "1\n"),
            ("1\n", "arm arm", "done done ", "2", "1\n"),
            ("0\n", "arm disarm arm", "done done done ", "2", "0\n"),
            // It was so before.
            ("2\n", "arm disarm", "done done ", "2\n", "2\n"),
            // A gateway before this one puts its own old value back.
            ("2\n", "arm =1 arm", "done done ", "2", "1"),
            // Somebody else means it.
            ("1\n", "arm =0 arm arm", "done changed changed ", "0", "0"),
            ("1\n", "arm =0 arm =2 arm", "done changed done ", "2", "1\n"),
            ("1\n", "arm =0 disarm arm", "done done done ", "2", "0"),
        ] {
            let found = told(before, orders);
            assert_eq!(found, (answers.to_owned(), then.to_owned(), left.to_owned()), "{before:?} {orders}");
        }
    }

    #[test]
    fn the_old_value_comes_back_when_nobody_asks_for_the_new_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "1\n").unwrap();
        let (mut gateway, child) = UnixStream::pair().unwrap();
        let path = file.path().to_owned();
        let obeying = std::thread::spawn(move || obey(child, &path));
        let read = || fs::read_to_string(file.path()).unwrap();
        let mut answer = [0; DONE.len() + 1];
        for _ in 0..2 {
            gateway.write_all(b"arm\n").unwrap();
            gateway.read_exact(&mut answer).unwrap();
            assert_eq!((&answer, read().as_str()), (b"done\n", ALWAYS));
            let begin = std::time::Instant::now();
            while read() != "1\n" {
                assert!(begin.elapsed() < Duration::from_secs(30), "it stays");
                std::thread::yield_now();
            }
        }
        drop(gateway);
        obeying.join().unwrap().unwrap();
    }

    /// A gateway that is killed before it has read the answer.
    #[test]
    fn the_old_value_comes_back_where_nobody_hears() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "1\n").unwrap();
        let (mut gateway, child) = UnixStream::pair().unwrap();
        gateway.write_all(b"arm\n").unwrap();
        let path = file.path().to_owned();
        let obeying = std::thread::spawn(move || obey(child, &path));
        // The answer is there, and stays unread.
        rustix::event::poll(&mut [rustix::event::PollFd::new(&gateway, rustix::event::PollFlags::IN)], None)
            .unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), ALWAYS);
        drop(gateway);
        assert!(obeying.join().unwrap().is_err());
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "1\n");
    }

    #[test]
    fn what_cannot_be_done_is_answered() {
        let (gateway, child) = UnixStream::pair().unwrap();
        let obeying = std::thread::spawn(move || obey(child, Path::new("/proc/nowhere")));
        let (mut gateway, mut answers) = (BufReader::new(gateway), String::new());
        gateway.get_mut().write_all(b"arm\nwalk\n").unwrap();
        gateway.read_line(&mut answers).unwrap();
        gateway.read_line(&mut answers).unwrap();
        let lines: Vec<&str> = answers.lines().collect();
        assert!(lines[0].contains("No such file"), "{answers}");
        assert!(lines[1].contains("no such order: walk"), "{answers}");
        drop(gateway);
        obeying.join().unwrap().unwrap();
    }
}
