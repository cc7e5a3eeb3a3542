//! The gateway's end of the control socket: bound before privileges are given up, served beside the
//! metrics port. It also sees entries off when their time is over.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use rustix::fs::Mode;
use rustix::process::umask;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, mpsc};

use super::{Answer, HAND_OVER, Listed, MAX_REASON_BYTES, MAX_REQUEST_BYTES, PATIENCE, Request, explain};
use crate::datapath;
use crate::kernel::{ChangeError, Kernel};
use crate::lists::{Entry, List};
use crate::snapshot::Current;

/// A bound socket; its file goes when this is dropped, where that is still allowed.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// The file is another gateway's.
    is_left: bool,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "control.socket {}: a running gateway answers there: stop it, or give this one another path",
        .0.display()
    )]
    Taken(PathBuf),
    #[error("control.socket {}: there is something else than a socket: move it away", .0.display())]
    Occupied(PathBuf),
    #[error("control.socket {}: {source}; its folder has to be there, and writable", .path.display())]
    Bind { path: PathBuf, source: io::Error },
}

/// What requests are answered from.
pub struct Control {
    pub kernel: Kernel,
    pub current: Arc<Current>,
    /// Lists have changed, and with them which entry ends next.
    changed: Notify,
    /// Where those are heard who ask to follow this gateway.
    successors: mpsc::UnboundedSender<UnixStream>,
    /// One of them has read the lists and is about to take over.
    is_followed: AtomicBool,
}

const BACK_OFF: Duration = Duration::from_millis(100);
/// Between two looks at the clock, which somebody may set.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// A policy that could not be put in force is tried again after this.
const RETRY: Duration = Duration::from_secs(10);

impl Socket {
    /// Binds; a file that a dead gateway has left is replaced. While there is one thread only, since the
    /// file's mode comes from the process's mask.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        match fs::symlink_metadata(path) {
            Ok(file) if !file.file_type().is_socket() => return Err(BindError::Occupied(path.to_owned())),
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(BindError::Taken(path.to_owned())),
            Ok(_) => drop(fs::remove_file(path)),
            Err(_) => {}
        }
        let before = umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let failed = |source| BindError::Bind { path: path.to_owned(), source };
        let listener = bound.map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), is_left: false })
    }

    /// The socket of a gateway that this one is to follow; its file is that gateway's until then.
    pub fn inherited(listener: UnixListener, path: PathBuf) -> Self {
        Self { listener, path, is_left: true }
    }

    /// Its file is this gateway's from here on.
    pub fn own(&mut self) {
        self.is_left = false;
    }

    /// A second hold on it, which leaves its file alone.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Closes it and leaves its file to a successor.
    pub fn leave(mut self) {
        self.is_left = true;
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.is_left {
            // A user without the right to may not; the next start replaces the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Control {
    pub fn new(
        kernel: Kernel,
        current: Arc<Current>,
        successors: mpsc::UnboundedSender<UnixStream>,
    ) -> Arc<Self> {
        Arc::new(Self {
            kernel,
            current,
            changed: Notify::new(),
            successors,
            is_followed: AtomicBool::new(false),
        })
    }

    /// From here on lists stay as they are, or else change again.
    pub fn set_followed(&self, is_followed: bool) {
        self.is_followed.store(is_followed, Relaxed);
    }

    /// Answers at a socket for as long as it is polled.
    pub async fn serve(self: Arc<Self>, listener: io::Result<UnixListener>) {
        let listener = listener.and_then(tokio::net::UnixListener::from_std);
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the control socket cannot be served");
                return;
            }
        };
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(BACK_OFF).await;
                continue;
            };
            let this = self.clone();
            tokio::spawn(async move {
                // Who asks too slowly, or leaves, gets no answer.
                let _ = tokio::time::timeout(PATIENCE, this.converse(stream)).await;
            });
        }
    }

    /// Takes entries out of force at their end.
    pub async fn see_off(self: Arc<Self>) {
        loop {
            let now = now();
            let wait = match self.kernel.lists().next_end() {
                Some(end) if end <= now => {
                    match self.kernel.change(now, |_| ()) {
                        Ok(()) => continue,
                        Err(error) => tracing::error!(%error, "an entry whose time is over stays in force"),
                    }
                    RETRY
                }
                Some(end) => Duration::from_secs(end - now).min(LONGEST_SLEEP),
                None => LONGEST_SLEEP,
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    async fn converse(&self, mut stream: tokio::net::UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.split();
        let mut line = Vec::new();
        BufReader::new(read.take(MAX_REQUEST_BYTES as u64)).read_until(b'\n', &mut line).await?;
        if serde_json::from_slice(&line).is_ok_and(|request: String| request == HAND_OVER) {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            // Nobody hears it while this gateway is on its way out: the other end sees a connection that ends.
            return self.successors.send(stream).map_err(io::Error::other);
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => self.answer(request),
            Err(error) => Answer::Refused(format!("not understood: {error}")),
        };
        let mut text = serde_json::to_vec(&answer).expect("it has string keys and numbers only");
        text.push(b'\n');
        write.write_all(&text).await
    }

    fn answer(&self, request: Request) -> Answer {
        if matches!(request, Request::Add { .. } | Request::Del { .. }) && self.is_followed.load(Relaxed) {
            let reason = "another gateway is taking over, with the lists as they were: ask again in a moment";
            return Answer::Refused(reason.to_owned());
        }
        match request {
            Request::Explain { source } => match explain::explain(&self.kernel, &self.current.load(), source)
            {
                Ok(explanation) => Answer::Explanation(Box::new(explanation)),
                Err(error) => Answer::Refused(error.to_string()),
            },
            Request::Add { list, network, seconds, reason, trial } => {
                self.add(list, network, seconds, reason, trial)
            }
            Request::Del { list, network } => self.del(list, network),
            Request::List { list } => match self.list(list) {
                Ok(entries) => Answer::Entries(entries),
                Err(error) => Answer::Refused(error.to_string()),
            },
        }
    }

    fn add(
        &self,
        list: List,
        network: IpNet,
        seconds: Option<u64>,
        reason: Option<String>,
        trial: bool,
    ) -> Answer {
        if network != network.trunc() {
            return Answer::Refused(format!("{network} has bits set behind its prefix length"));
        }
        if reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON_BYTES) {
            return Answer::Refused(format!("the reason is longer than {MAX_REASON_BYTES} bytes"));
        }
        let now = now();
        let until = seconds.map(|seconds| now.saturating_add(seconds));
        let added = self.kernel.change(now, |lists| {
            lists.add(list, network, Entry { since: now, until, reason: reason.clone(), trial });
        });
        match added {
            Ok(()) => {
                self.changed.notify_one();
                tracing::info!(list = list.name(), %network, until, reason, "added at run time");
                let message = match seconds {
                    Some(seconds) => format!("{} {network} for {seconds} s", list.name()),
                    None => format!("{} {network} for good", list.name()),
                };
                Answer::Done { message, note: self.note(list, network) }
            }
            Err(error) => refused(&error),
        }
    }

    fn del(&self, list: List, network: IpNet) -> Answer {
        let name = list.name();
        match self.kernel.change(now(), |lists| lists.remove(list, network)) {
            Ok(true) => {
                self.changed.notify_one();
                tracing::info!(list = name, %network, "removed at run time");
                let message = format!("{network} is on the {name} list no more");
                let note = self.configured(list).contains(&network).then(|| {
                    format!("kernel.{name} of the configuration has it too: remove it there and reload")
                });
                Answer::Done { message, note }
            }
            Ok(false) if self.configured(list).contains(&network) => Answer::Refused(format!(
                "{network} stands in kernel.{name} of the configuration: remove it there and reload"
            )),
            Ok(false) => Answer::Refused(format!("{network} is not on the {name} list")),
            Err(error) => refused(&error),
        }
    }

    fn list(&self, list: List) -> Result<Vec<Listed>, datapath::Error> {
        let hits = self.kernel.hits(list)?;
        let listed = |network: IpNet, entry| Listed { network, entry, packets: hits.get(&network).copied() };
        let configured = self.configured(list).into_iter().map(|network| listed(network, None));
        let lists = self.kernel.lists();
        let added = lists.get(list).iter().filter(|(_, entry)| !entry.is_over(now()));
        let added = added.map(|(network, entry)| listed(*network, Some(entry.clone())));
        Ok(configured.chain(added).collect())
    }

    fn configured(&self, list: List) -> Vec<IpNet> {
        let snapshot = self.current.load();
        let kernel = &snapshot.config.kernel;
        match list {
            List::Allow => kernel.allow.clone(),
            List::Deny => kernel.deny.clone(),
        }
    }

    /// Why the entry does not do all that one might think.
    fn note(&self, list: List, network: IpNet) -> Option<String> {
        if !self.kernel.is_running() {
            return Some(
                "the kernel half does not run here: the entry is kept, and nothing is dropped".into(),
            );
        }
        let lists = self.kernel.lists();
        let allowed = self.configured(List::Allow).into_iter().chain(lists.get(List::Allow).keys().copied());
        let stronger = match list {
            List::Allow => None,
            List::Deny => allowed.into_iter().find(|allowed| allowed.contains(&network)),
        };
        stronger
            .map(|allowed| format!("{allowed} is on the allow list, which is stronger: nothing is dropped"))
    }
}

fn refused(error: &ChangeError) -> Answer {
    Answer::Refused(error.to_string())
}

/// Seconds of the Unix clock.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
