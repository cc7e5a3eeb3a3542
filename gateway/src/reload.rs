//! Notices that a file of the configuration may have changed.
//!
//! Folders are watched, not files: editors and `mv` replace it, and a Kubernetes ConfigMap
//! swaps a symbolic link beside it. Changes are debounced; what is done about one is the server's business.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Quiet time after the last event before a change is reported.
const DEBOUNCE: Duration = Duration::from_millis(100);

pub struct Watch {
    events: mpsc::UnboundedReceiver<()>,
    /// A change has begun and not been reported.
    pending: bool,
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
        Ok(Self { events, pending: false, folders: folders.clone(), watcher })
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
        if !self.pending && self.events.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        self.pending = true;
        while let Ok(Some(())) = tokio::time::timeout(DEBOUNCE, self.events.recv()).await {}
        self.pending = false;
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
        while !watch.pending {
            let _ = timeout(Duration::from_millis(1), watch.changed()).await;
        }
        timeout(Duration::from_secs(60), watch.changed()).await.expect("it is reported all the same");
        assert!(timeout(DEBOUNCE, watch.changed()).await.is_err(), "once");
    }
}
