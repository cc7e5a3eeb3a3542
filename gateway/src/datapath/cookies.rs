//! When SYN cookies are sent, and the child process that has the host's stack take them.
//!
//! The stack takes a cookie only while an overflow of its own is on record. With `tcp_syncookies` 2 it answers
//! every request with one, so that a single request a second, let through as a seed, keeps that record. The same
//! costs every service of the host window scaling, so the value stands only while cookies are armed, in the hands
//! of a child: it puts the old one back at the end of its input, which a SIGKILL of the gateway brings too.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::sys;

/// The verb by which the gateway starts itself as that child.
pub const VERB: &str = "syncookies";

const SYSCTL: &str = "/proc/sys/net/ipv4/tcp_syncookies";
const ALWAYS: &str = "2";
const ARM: &str = "arm";
const DISARM: &str = "disarm";
const DONE: &str = "done";

/// The child answers in microseconds. One that does not in half of what the heartbeat's word holds is done without: who
/// waited for it would tell the kernel half nothing meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);
const SECOND_NS: u64 = 1_000_000_000;
/// Armed at once, disarmed when for so long nobody was worth a cookie.
const CALM_NS: u64 = 10 * SECOND_NS;

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
    _child: Child,
    talk: BufReader<UnixStream>,
}

impl Stack {
    /// Starts this program once more; before privileges are given up, for the child keeps what it needs of them.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        ours.set_write_timeout(Some(PATIENCE))?;
        let theirs = OwnedFd::from(theirs);
        let mut command = Command::new("/proc/self/exe");
        command.arg(VERB).stdin(theirs.try_clone()?).stdout(theirs).stderr(Stdio::null());
        // A group of its own: the terminal's signals are for the gateway.
        let child = command.process_group(0).spawn()?;
        Ok(Self { _child: child, talk: BufReader::new(ours) })
    }

    pub fn arm(&mut self) -> io::Result<()> {
        self.tell(ARM)
    }

    pub fn disarm(&mut self) -> io::Result<()> {
        self.tell(DISARM)
    }

    fn tell(&mut self, word: &str) -> io::Result<()> {
        writeln!(self.talk.get_mut(), "{word}")?;
        let mut answer = String::new();
        self.talk.read_line(&mut answer).map_err(in_words)?;
        match answer.trim() {
            DONE => Ok(()),
            "" => Err(io::ErrorKind::BrokenPipe.into()),
            fault => Err(io::Error::other(fault.to_owned())),
        }
    }
}

/// What a wait that has ended is called is "Resource temporarily unavailable".
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "its child does not answer"),
        _ => error,
    }
}

/// The child's whole life.
pub fn serve() -> io::Result<()> {
    sys::outlive_the_parent()?;
    let net_admin = CapabilitySet::NET_ADMIN;
    let kept =
        CapabilitySets { effective: net_admin, permitted: net_admin, inheritable: CapabilitySet::empty() };
    set_capabilities(None, kept)?;
    obey(io::stdin().lock(), io::stdout(), Path::new(SYSCTL))
}

/// Does as it is told until the input ends, or nobody hears its answers any more; then puts back what was there.
fn obey(orders: impl BufRead, answers: impl Write, file: &Path) -> io::Result<()> {
    let mut value = Value { file, before: None };
    let heard = converse(orders, answers, &mut value);
    value.restore().and(heard)
}

fn converse(orders: impl BufRead, mut answers: impl Write, value: &mut Value<'_>) -> io::Result<()> {
    for order in orders.lines() {
        let done = match order?.as_str() {
            ARM => value.set(),
            DISARM => value.restore(),
            other => Err(io::Error::other(format!("no such order: {other}"))),
        };
        match done {
            Ok(()) => writeln!(answers, "{DONE}")?,
            Err(fault) => writeln!(answers, "{}: {fault}", value.file.display())?,
        }
    }
    Ok(())
}

/// The host's setting, and what it was.
struct Value<'a> {
    file: &'a Path,
    before: Option<String>,
}

impl Value<'_> {
    /// Once, for whoever changes it afterwards means it; but one that others had set so may be put back by them.
    fn set(&mut self) -> io::Result<()> {
        if self.before.is_some() {
            return Ok(());
        }
        let found = fs::read_to_string(self.file)?;
        if found.trim() != ALWAYS {
            fs::write(self.file, ALWAYS)?;
            self.before = Some(found);
        }
        Ok(())
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

    /// What the file holds in the end, and what was answered.
    fn after(before: &str, orders: &str, meddle: Option<&str>) -> (String, String) {
        let directory = std::env::temp_dir().join(format!("syncookies-{}-{:p}", std::process::id(), orders));
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("value");
        fs::write(&file, before).unwrap();
        let mut answers = Vec::new();
        let mut value = Value { file: &file, before: None };
        match meddle {
            None => obey(orders.as_bytes(), &mut answers, &file).unwrap(),
            Some(text) => {
                value.set().unwrap();
                fs::write(&file, text).unwrap();
                value.restore().unwrap();
            }
        }
        let left = fs::read_to_string(&file).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        (left, String::from_utf8(answers).unwrap())
    }

    #[test]
    fn the_old_value_comes_back_whatever_the_end() {
        for (before, orders, left, answers) in [
            ("1\n", "", "1\n", ""),
            ("1\n", "arm\ndisarm\n", "1\n", "done\ndone\n"),
            ("1\n", "arm\n", "1\n", "done\n"),
            ("0\n", "arm\ndisarm\narm\narm\n", "0\n", "done\ndone\ndone\ndone\n"),
            // It was so before.
            ("2\n", "arm\ndisarm\n", "2\n", "done\ndone\n"),
        ] {
            assert_eq!(after(before, orders, None), (left.to_owned(), answers.to_owned()), "{orders:?}");
        }
        assert_eq!(after("1\n", "", Some("0\n")).0, "0\n", "somebody else has changed it since");
    }

    /// A gateway that is killed before it has read the answer.
    #[test]
    fn the_old_value_comes_back_where_nobody_hears() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "1\n").unwrap();
        assert!(obey("arm\n".as_bytes(), &mut [][..], file.path()).is_err());
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "1\n");

        let (mut gateway, child) = UnixStream::pair().unwrap();
        gateway.write_all(b"arm\narm\n").unwrap();
        let answers = child.try_clone().unwrap();
        let obeying = std::thread::spawn({
            let path = file.path().to_owned();
            move || obey(BufReader::new(child), answers, &path)
        });
        let mut answer = [0; DONE.len()];
        gateway.read_exact(&mut answer).unwrap();
        drop(gateway);
        assert!(obeying.join().unwrap().is_err(), "the rest of its answers was not read");
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "1\n");
    }

    #[test]
    fn what_another_gateway_puts_back_is_set_again_and_what_somebody_else_sets_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text| fs::write(file.path(), text).unwrap();
        let read = || fs::read_to_string(file.path()).unwrap();
        write(ALWAYS);
        let mut value = Value { file: file.path(), before: None };
        value.set().unwrap();
        write("1\n");
        value.set().unwrap();
        assert_eq!(read(), ALWAYS);
        value.restore().unwrap();
        assert_eq!(read(), "1\n");

        value.set().unwrap();
        write("0\n");
        value.set().unwrap();
        assert_eq!(read(), "0\n");
    }

    #[test]
    fn what_cannot_be_done_is_answered() {
        let mut answers = Vec::new();
        obey("arm\nwalk\n".as_bytes(), &mut answers, Path::new("/proc/nowhere")).unwrap();
        let answers = String::from_utf8(answers).unwrap();
        let lines: Vec<&str> = answers.lines().collect();
        assert!(lines[0].contains("No such file"), "{answers}");
        assert!(lines[1].contains("no such order: walk"), "{answers}");
    }
}
