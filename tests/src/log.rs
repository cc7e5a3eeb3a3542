//! What a gateway says on its standard error, line by line, as something to wait for.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex};

use crate::PATIENCE;

#[derive(Clone)]
pub struct Log(Arc<(Mutex<Lines>, Condvar)>);

#[derive(Default)]
struct Lines {
    all: Vec<String>,
    /// Those before this one have been waited for.
    seen: usize,
    ended: bool,
}

impl Log {
    /// Reads `output` to its end on a thread of its own.
    pub fn of(output: impl Read + Send + 'static) -> Self {
        let log = Self(Arc::default());
        let this = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                this.change(|lines| lines.all.push(line));
            }
            this.change(|lines| lines.ended = true);
        });
        log
    }

    /// The next line that holds `needle`; those before it are passed over for good.
    #[track_caller]
    pub fn wait_for(&self, needle: &str) -> String {
        let lines = self.0.0.lock().expect("no panic while held");
        let found = |lines: &Lines| lines.all[lines.seen..].iter().position(|line| line.contains(needle));
        let (mut lines, _) = self
            .0
            .1
            .wait_timeout_while(lines, PATIENCE, |lines| found(lines).is_none() && !lines.ended)
            .expect("no panic while held");
        let at = found(&lines);
        let Some(at) = at else {
            let all = lines.all.join("\n");
            drop(lines);
            panic!("no line with {needle:?} in:\n{all}");
        };
        lines.seen += at + 1;
        lines.all[lines.seen - 1].clone()
    }

    /// What has been said up to now.
    pub fn so_far(&self) -> Vec<String> {
        self.0.0.lock().expect("no panic while held").all.clone()
    }

    /// Everything, after the program has closed its output.
    #[track_caller]
    pub fn to_end(&self) -> Vec<String> {
        let lines = self.0.0.lock().expect("no panic while held");
        let (lines, _) =
            self.0.1.wait_timeout_while(lines, PATIENCE, |lines| !lines.ended).expect("no panic while held");
        assert!(lines.ended, "it goes on running: {:#?}", lines.all);
        lines.all.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Lines)) {
        change(&mut self.0.0.lock().expect("no panic while held"));
        self.0.1.notify_all();
    }
}
