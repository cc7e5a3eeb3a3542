//! What the process spends its processor time on: its stacks at so many instants, in the format of `pprof`.

use std::fmt::Display;
use std::io::{self, Write};
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use pprof::protos::Message;
use pprof::{ProfilerGuard, ProfilerGuardBuilder};
use schemars::JsonSchema;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::problem::Problem;

/// For how long samples are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub struct Seconds(#[schemars(range(min = 1, max = 300))] u64);

/// Samples of each second of processor time; no divisor of what happens a hundred times a second.
const FREQUENCY: i32 = 99;
/// A signal that arrives in these may find them with a lock that unwinding needs.
const NOT_SAMPLED: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// A process has one signal for it.
static TURN: Mutex<()> = Mutex::const_new(());

/// Whoever drops it ends the sampling.
struct Sampling {
    profiler: ProfilerGuard<'static>,
    /// Behind the profiler, so that it is given back after that has ended.
    _turn: MutexGuard<'static, ()>,
}

#[derive(Debug, thiserror::Error)]
pub enum SecondsError {
    #[error("{0}; give whole seconds")]
    NoNumber(#[from] ParseIntError),
    #[error("a profile takes from 1 to {} seconds", Seconds::MOST)]
    OutOfRange,
}

impl Seconds {
    pub const MOST: u64 = 300;
}

impl FromStr for Seconds {
    type Err = SecondsError;

    fn from_str(text: &str) -> Result<Self, SecondsError> {
        let seconds = text.parse()?;
        if (1..=Self::MOST).contains(&seconds) { Ok(Self(seconds)) } else { Err(SecondsError::OutOfRange) }
    }
}

/// Of the next seconds; a caller that stops polling ends it.
pub(super) async fn profile(Seconds(seconds): Seconds) -> Result<Vec<u8>, Problem> {
    let turn = TURN.try_lock().map_err(|_| {
        Problem::new(StatusCode::CONFLICT, "a profile is being taken: ask again when that one is done")
    })?;
    // The first of a process, and every report, read the binary's debug information.
    let sampling = spawn_blocking(|| Sampling::start(turn)).await.map_err(broken)??;
    sleep(Duration::from_secs(seconds)).await;
    spawn_blocking(move || sampling.report()).await.map_err(broken)?
}

impl Sampling {
    fn start(turn: MutexGuard<'static, ()>) -> Result<Self, Problem> {
        let builder = ProfilerGuardBuilder::default().frequency(FREQUENCY).blocklist(&NOT_SAMPLED);
        let profiler = builder.build().map_err(|error| {
            broken(format_args!("{error}; it takes a folder for temporary files, $TMPDIR or /tmp"))
        })?;
        Ok(Self { profiler, _turn: turn })
    }

    fn report(&self) -> Result<Vec<u8>, Problem> {
        let profile = self.profiler.report().build().and_then(|report| report.pprof()).map_err(broken)?;
        zipped(&profile.encode_to_vec()).map_err(broken)
    }
}

fn zipped(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(bytes)?;
    gzip.finish()
}

fn broken(error: impl Display) -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("no profile: {error}"))
}
