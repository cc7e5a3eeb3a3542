//! What asks for a reload: a file of the configuration that may have changed, and whoever wants to hear what came
//! of it.
//!
//! Folders are watched, not files: editors and `mv` replace it, and a Kubernetes ConfigMap
//! swaps a symbolic link beside it. Changes are debounced; what is done about one is the server's business.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// Quiet time after the last event before a change is reported.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// After the first event it is reported all the same: something else may be written in the folder all the time.
const LONGEST: Duration = Duration::from_secs(1);

/// Who may wait for a reload; further ones wait to ask.
const MOST_ASKING: usize = 16;

/// The generation that is in force now, or why the one before it stays.
pub type Outcome = Result<u64, String>;

/// Asks for a reload; for the control socket.
#[derive(Clone)]
pub struct Asks(mpsc::Sender<oneshot::Sender<Outcome>>);

/// The server's end.
pub struct Requests(mpsc::Receiver<oneshot::Sender<Outcome>>);

pub fn requests() -> (Asks, Requests) {
    let (sender, receiver) = mpsc::channel(MOST_ASKING);
    (Asks(sender), Requests(receiver))
}

impl Asks {
    /// Has the configuration read again, and waits for what comes of it.
    pub async fn reload(&self) -> Outcome {
        let ends = "the gateway is on its way out, and takes no other configuration";
        let (answer, outcome) = oneshot::channel();
        self.0.send(answer).await.map_err(|_| ends)?;
        outcome.await.map_err(|_| ends)?
    }
}

impl Requests {
    /// All who ask by now: what is read after they asked answers them together. Who stops waiting loses nobody.
    pub async fn next(&mut self) -> Vec<oneshot::Sender<Outcome>> {
        let mut asking = Vec::new();
        match self.0.recv_many(&mut asking, MOST_ASKING).await {
            0 => std::future::pending().await,
            _ => asking,
        }
    }
}

pub struct Watch {
    events: mpsc::UnboundedReceiver<()>,
    /// A change has begun and not been reported: when it is at the latest.
    pending: Option<Instant>,
    folders: BTreeSet<PathBuf>,
    /// Stops watching when dropped.
    watcher: RecommendedWatcher,
}

impl Watch {
    pub fn new(folders: &BTreeSet<PathBuf>) -> notify::Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the file is an event too, and it is we who read it.
            if event.is_ok_and(|event| !event.kind.is_access() || is_end_of_write(&event)) {
                // The receiver is gone only when the process ends.
                let _ = sender.send(());
            }
        })?;
        folders.iter().try_for_each(|folder| watcher.watch(folder, RecursiveMode::NonRecursive))?;
        Ok(Self { events, pending: None, folders: folders.clone(), watcher })
    }

    /// Watches these from now on; whether any is new. What a folder that cannot be watched holds, comes with a SIGHUP.
    pub fn follow(&mut self, folders: &BTreeSet<PathBuf>) -> bool {
        let more = !folders.is_subset(&self.folders);
        for gone in self.folders.difference(folders) {
            // It may be gone indeed.
            let _ = self.watcher.unwatch(gone);
        }
        for new in folders.difference(&self.folders) {
            if let Err(error) = self.watcher.watch(new, RecursiveMode::NonRecursive) {
                tracing::warn!(%error, folder = %new.display(), "cannot watch a folder of the configuration");
            }
        }
        self.folders.clone_from(folders);
        more
    }

    /// Waits for a change in the directory, and for it to settle. Who stops waiting loses no change.
    pub async fn changed(&mut self) {
        if self.pending.is_none() && self.events.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        let longest = *self.pending.get_or_insert_with(|| Instant::now() + LONGEST);
        while Instant::now() < longest {
            let quiet = longest.min(Instant::now() + DEBOUNCE);
            if timeout_at(quiet, self.events.recv()).await.is_err() {
                break;
            }
        }
        self.pending = None;
    }
}

fn is_end_of_write(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_change_outlives_who_stopped_waiting_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("gateway.json");
        let mut watch = Watch::new(&BTreeSet::from([directory.path().to_owned()])).unwrap();
        std::fs::write(&file, "{}").unwrap();
        // The first event is taken, and what follows it is waited for.
        while watch.pending.is_none() {
            let _ = timeout(Duration::from_millis(1), watch.changed()).await;
        }
        timeout(Duration::from_secs(60), watch.changed()).await.expect("it is reported all the same");
        assert!(timeout(DEBOUNCE, watch.changed()).await.is_err(), "once");
    }

    /// As when the access log is beside the configuration.
    #[tokio::test]
    async fn a_folder_that_is_never_quiet_hides_no_change() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(&BTreeSet::from([directory.path().to_owned()])).unwrap();
        let file = directory.path().join("access.log");
        let busy = async {
            let mut often = tokio::time::interval(DEBOUNCE / 4);
            loop {
                often.tick().await;
                std::fs::write(&file, "x").unwrap();
            }
        };
        tokio::select! {
            () = busy => unreachable!("it writes on"),
            changed = timeout(Duration::from_secs(60), watch.changed()) => changed.expect("it is reported"),
        }
    }

    #[tokio::test]
    async fn all_who_ask_at_once_have_one_answer() {
        let (asks, mut requests) = requests();
        let asking = |asks: Asks| tokio::spawn(async move { asks.reload().await });
        let waiting: Vec<_> = (0..3).map(|_| asking(asks.clone())).collect();
        tokio::task::yield_now().await;
        let answers = requests.next().await;
        assert_eq!(answers.len(), 3);
        answers.into_iter().for_each(|answer| answer.send(Ok(7)).unwrap());
        for one in waiting {
            assert_eq!(one.await.unwrap(), Ok(7));
        }
        drop(requests);
        assert!(asks.reload().await.unwrap_err().contains("on its way out"));
    }
}
