//! `gateway top`: a running gateway's figures in a terminal, drawn anew at an interval.
//!
//! Keys, looks at the gateway and signals come to one place as events; what they mean is decided in `keys` and
//! `model`, what it looks like in `view`. The terminal is as it was before, however this ends.

mod exposition;
mod keys;
mod listing;
mod model;
mod sample;
mod view;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::crossterm::event::{self, Event};
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{NOT_REACHED, REFUSED, socket, time};
use crate::config::{self, Config};
use crate::control::{self, Request, Status, TopSources};
use keys::Chosen;
use listing::{Listing, Pane};
use model::Figures;
use sample::{Sample, Source};
use view::Shown;

#[derive(Args)]
pub struct Top {
    /// Between two looks at the gateway, such as 1s or 5s.
    #[arg(long, value_name = "TIME", value_parser = time::parse, default_value = "1s")]
    interval: u64,
}

/// What happens.
enum Heard {
    Key(event::KeyEvent),
    /// The terminal has another size.
    Resized,
    /// What a look at the gateway has shown, or why nothing.
    Seen(Instant, Result<Box<Sample>, String>),
    /// Who is refused much, for the pane of that that has just come up.
    Sources(Result<Vec<Source>, String>),
    /// Nobody will press a key any more.
    Deaf,
}

impl Top {
    pub fn run(self, config: &Config) -> ExitCode {
        if !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
            eprintln!("gateway: top draws on a terminal, which this is not: try `gateway status --json`");
            return config::UNREADABLE.into();
        }
        let first = socket(config)
            .and_then(|socket| Ok((socket.to_owned(), Instant::now(), look(socket, Pane::Overview)?)));
        let (socket, at, sample) = match first {
            Ok(first) => first,
            Err(error) => {
                eprintln!("gateway: {error}");
                return NOT_REACHED.into();
            }
        };
        let mut screen = Screen::default();
        screen.hear(Heard::Seen(at, Ok(Box::new(sample))));
        match show(screen, &socket, Duration::from_secs(self.interval)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("gateway: the terminal cannot be drawn on: {error}");
                REFUSED.into()
            }
        }
    }
}

/// Draws until it is told to end, by a key or by a signal.
fn show(mut screen: Screen, socket: &Path, interval: Duration) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (mut terminate, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (sender, mut heard) = mpsc::unbounded_channel();
        let (turn, panes) = channel();
        let _restored = Restored;
        let mut terminal = ratatui::try_init()?;
        listen(sender.clone());
        watch(socket, interval, sender, panes);
        loop {
            terminal.draw(|frame| view::draw(frame, &screen.chosen, &screen.shown))?;
            let pane = screen.chosen.pane;
            let goes_on = tokio::select! {
                heard = heard.recv() => heard.is_some_and(|heard| screen.hear(heard)),
                _ = terminate.recv() => false,
                _ = hangup.recv() => false,
                _ = interrupt.recv() => false,
            };
            if !goes_on {
                return Ok(());
            }
            if screen.chosen.pane != pane {
                // Nobody is there any more only when this ends.
                let _ = turn.send(screen.chosen.pane);
            }
        }
    })
}

/// The terminal is as it was, from when this is dropped; a panic does the same by its hook.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        // It may be gone.
        let _ = ratatui::try_restore();
    }
}

/// Hears the terminal, in a thread that ends with the process.
fn listen(heard: mpsc::UnboundedSender<Heard>) {
    thread::spawn(move || {
        loop {
            let sent = match event::read() {
                Ok(Event::Key(key)) => heard.send(Heard::Key(key)),
                Ok(Event::Resize(..)) => heard.send(Heard::Resized),
                Ok(_) => Ok(()),
                Err(_) => return drop(heard.send(Heard::Deaf)),
            };
            if sent.is_err() {
                return;
            }
        }
    });
}

/// Looks at the gateway, in a thread of its own: an answer may be long in coming, and keys are not to wait for it.
/// `panes`: each that comes up, for which what it lacks is asked for at once.
fn watch(socket: &Path, interval: Duration, heard: mpsc::UnboundedSender<Heard>, panes: Receiver<Pane>) {
    let socket = socket.to_owned();
    thread::spawn(move || {
        let (mut pane, mut due) = (Pane::Overview, Instant::now() + interval);
        loop {
            let sent = match panes.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Pane::Sources) => {
                    pane = Pane::Sources;
                    heard.send(Heard::Sources(sources(&socket)))
                }
                Ok(other) => {
                    pane = other;
                    Ok(())
                }
                Err(RecvTimeoutError::Timeout) => {
                    let seen = look(&socket, pane).map(Box::new);
                    due = Instant::now() + interval;
                    heard.send(Heard::Seen(Instant::now(), seen))
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if sent.is_err() {
                return;
            }
        }
    });
}

/// What all panes show, and what `pane` shows besides: the kernel half's map is read for that.
fn look(socket: &Path, pane: Pane) -> Result<Sample, String> {
    let status: Status = document(socket, "/v1/status")?;
    let exposition = String::from_utf8(get(socket, "/metrics")?).map_err(|error| error.to_string())?;
    let sample = Sample::new(status.version, status.pid, &exposition);
    let sources = (pane == Pane::Sources).then(|| sources(socket)).transpose()?;
    Ok(Sample { sources, ..sample })
}

fn sources(socket: &Path) -> Result<Vec<Source>, String> {
    document::<TopSources>(socket, "/v1/sources").map(Source::all)
}

fn document<T: DeserializeOwned>(socket: &Path, target: &'static str) -> Result<T, String> {
    serde_json::from_slice(&get(socket, target)?)
        .map_err(|error| format!("what answers is no gateway of this version: {error}"))
}

fn get(socket: &Path, target: &'static str) -> Result<Vec<u8>, String> {
    control::fetch(socket, &Request::get(target)).unwrap_or_else(|error| Err(error.to_string()))
}

/// What is shown, and what it comes from.
#[derive(Default)]
struct Screen {
    chosen: Chosen,
    shown: Shown,
    before: Option<(Instant, Sample)>,
}

impl Screen {
    /// `false`: it is to end.
    fn hear(&mut self, heard: Heard) -> bool {
        match heard {
            Heard::Key(key) => {
                let listing = self.shown.figures.as_ref().map(|of| Listing::of(self.chosen.pane, of));
                let (columns, rows) = listing.map_or((1, 0), |of| (of.columns.len(), of.rows.len()));
                return self.chosen.press(key, columns, rows);
            }
            Heard::Resized => {}
            Heard::Seen(_, Err(error)) => self.shown.trouble = Some(error),
            Heard::Seen(at, Ok(sample)) => self.see(at, *sample),
            Heard::Sources(Err(error)) => self.shown.trouble = Some(error),
            Heard::Sources(Ok(sources)) => {
                self.shown.figures.iter_mut().for_each(|of| of.now.sources = Some(sources.clone()));
            }
            Heard::Deaf => return false,
        }
        true
    }

    fn see(&mut self, at: Instant, sample: Sample) {
        let before = self.before.replace((at, sample.clone()));
        if self.chosen.paused {
            return;
        }
        let elapsed = before.as_ref().map(|(before, _)| at - *before).unwrap_or_default();
        let figures = Figures::between(before.as_ref().map(|(_, sample)| sample), sample, elapsed);
        self.shown.remember(figures.traffic.requests);
        self.shown.figures = Some(figures);
        self.shown.trouble = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event::KeyCode::Char;

    #[test]
    fn figures_stand_still_while_it_is_paused_and_stay_while_nobody_answers() {
        let mut screen = Screen::default();
        let start = Instant::now();
        let see = |screen: &mut Screen, second: u64, requests: u64| {
            let exposition = format!("gateway_requests_total{{route=\"/\",status=\"200\"}} {requests}");
            let sample = Sample::new(String::new(), 1, &exposition);
            screen.hear(Heard::Seen(start + Duration::from_secs(second), Ok(Box::new(sample))));
            screen.shown.figures.as_ref().expect("it has seen some").traffic.requests
        };
        see(&mut screen, 0, 100);
        assert_eq!(see(&mut screen, 1, 110), 10.0);
        screen.hear(Heard::Seen(start, Err("no gateway".to_owned())));
        assert_eq!(screen.shown.trouble.as_deref(), Some("no gateway"));
        assert_eq!(screen.shown.figures.as_ref().unwrap().traffic.requests, 10.0);
        assert!(screen.hear(Heard::Key(Char('p').into())));
        assert_eq!(see(&mut screen, 2, 150), 10.0);
        assert!(screen.hear(Heard::Key(Char('p').into())));
        assert_eq!(see(&mut screen, 4, 160), 5.0, "over the time since the last look");
        assert_eq!(screen.shown.trouble, None);
        assert_eq!(screen.shown.history.len(), 3);
        assert!(!screen.hear(Heard::Deaf) && !screen.hear(Heard::Key(Char('q').into())));
    }
}
