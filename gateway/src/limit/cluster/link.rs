//! One worker's connection to the store: made, watched, lost and made again.
//!
//! [`tend`] runs for as long as its store is wanted. A server is taken when it runs the script, writes included, within
//! the time that a request would wait; so one that is loading, full, a replica or slow is not. Attempts are spread
//! at random, for all gateways lose a store at the same moment. [`examine`] looks on behalf of `gateway doctor`.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, RedisConnectionInfo, RedisError, Value};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::AbortHandle;

use super::Store;
use super::step::{self, Claim, SCRIPT, Terms, Word};
use crate::config::{self, StoreServer};
use crate::metrics::Loss;

/// For an attempt.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between attempts: doubled each time, halved or raised by half at random.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Who stayed that long is worth as quick an attempt as the first.
const SETTLED: Duration = Duration::from_secs(10);
/// Between two looks at a store that nobody may be asking.
const WATCH: Duration = Duration::from_secs(1);
/// Steps that may stand in line for the connection.
const LINE: usize = 1_024;
/// What the script is tried on.
const PROBE: &[u8] = b"gateway:limit:probe";

/// A connection that has taken a step.
pub struct Link {
    pub server: String,
    connection: MultiplexedConnection,
    /// Of the script.
    hash: Rc<str>,
    driver: AbortHandle,
}

/// Why there is none, and in whose words.
pub type Missing = (Loss, String);

impl Link {
    pub fn handle(&self) -> (MultiplexedConnection, Rc<str>) {
        (self.connection.clone(), self.hash.clone())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It would go on until everything asked for has been answered.
        self.driver.abort();
    }
}

/// Keeps `store` connected, until it ends.
pub async fn tend(store: &Rc<Store>) {
    let mut pause = SHORTEST_PAUSE;
    while !store.ended.get() {
        match find(store).await {
            // The configuration may have changed meanwhile.
            Ok(_) if store.ended.get() => return,
            Ok(link) => {
                store.find(link);
                let since = Instant::now();
                watch(store).await;
                if since.elapsed() > SETTLED {
                    pause = SHORTEST_PAUSE;
                }
            }
            Err(_) if store.ended.get() => return,
            Err((server, (loss, why))) => store.miss(loss, &server, &why),
        }
        tokio::select! {
            () = store.wheel.sleep(jittered(pause)) => {}
            () = store.lost.notified() => {}
        }
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Takes a step now and then, until the store is lost or has ended.
async fn watch(store: &Store) {
    let terms = Terms::probe();
    loop {
        tokio::select! {
            () = store.lost.notified() => return,
            () = store.wheel.sleep(WATCH) => {}
        }
        store.count_leases();
        store.within_bound(store.step(&[probe(&terms)])).await;
    }
}

/// The first of the servers that serves.
async fn find(store: &Rc<Store>) -> Result<Link, (String, Missing)> {
    let mut first = None;
    for server in &store.config.servers {
        let weak = Rc::downgrade(store);
        // Where this worker lets go of the link, its driver is aborted: the other side has.
        let ended = move || {
            if let Some(store) = weak.upgrade() {
                store.lose(Loss::Gone, "the connection was closed");
            }
        };
        match open(&store.config, server, || store.wheel.sleep(PATIENCE), ended).await {
            Ok((link, took)) if took <= store.config.wait => return Ok(link),
            Ok((link, took)) => {
                first.get_or_insert((link.server.clone(), (Loss::Slow, format!("an answer took {took:?}"))));
            }
            Err(missing) => {
                first.get_or_insert((server.to_string(), missing));
            }
        }
    }
    Err(first.expect("the configuration names a server"))
}

/// How long each of the servers takes for a step, or why it takes none. For a process of its own that only looks.
///
/// # Errors
/// There are no descriptors left.
pub fn examine(config: &config::Store) -> io::Result<Vec<(&StoreServer, Result<Duration, Missing>)>> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    let look = async |server| {
        let opened = open(config, server, || tokio::time::sleep(PATIENCE), || ()).await;
        opened.map(|(_, took)| took)
    };
    Ok(config.servers.iter().map(|server| (server, runtime.block_on(look(server)))).collect())
}

/// Connects, and says how long a step takes. `patience` ends an attempt; `ended` is called when the other side closes
/// the connection.
async fn open<P: Future<Output = ()>>(
    config: &config::Store,
    server: &StoreServer,
    patience: impl Fn() -> P,
    ended: impl FnOnce() + 'static,
) -> Result<(Link, Duration), Missing> {
    let credentials = credentials(config, server)?;
    let gone = |error: io::Error| (Loss::Gone, error.to_string());
    let stream = tokio::select! {
        stream = TcpStream::connect((server.host.as_str(), server.port)) => stream.map_err(gone)?,
        () = patience() => return Err((Loss::Gone, format!("no connection within {PATIENCE:?}"))),
    };
    stream.set_nodelay(true).map_err(gone)?;
    tokio::select! {
        link = greet(stream, &credentials, server.to_string(), ended) => link,
        () = patience() => Err((Loss::Slow, format!("no answer within {PATIENCE:?}"))),
    }
}

/// Shows who we are, makes the script known and tries it.
async fn greet(
    stream: TcpStream,
    credentials: &RedisConnectionInfo,
    server: String,
    ended: impl FnOnce() + 'static,
) -> Result<(Link, Duration), Missing> {
    // Its timers would be tokio's, which a worker does without.
    let settings = AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(LINE);
    let (mut connection, driver) =
        MultiplexedConnection::new_with_config(credentials, stream, settings).await.map_err(missing)?;
    let driver = tokio::task::spawn_local(async move {
        driver.await;
        ended();
    });
    let driver = driver.abort_handle();
    let mut link = Link { server, connection: connection.clone(), hash: "".into(), driver };
    let load = Cmd::new().arg("SCRIPT").arg("LOAD").arg(SCRIPT).to_owned();
    link.hash = load.query_async::<String>(&mut connection).await.map_err(missing)?.into();
    let (terms, mut took) = (Terms::probe(), Duration::ZERO);
    // The first finds caches cold.
    for _ in 0..2 {
        let started = Instant::now();
        let command = step::command(step::By::Hash(&link.hash), &[probe(&terms)]);
        words(connection.send_packed_command(&command).await, 1)?;
        took = started.elapsed();
    }
    Ok((link, took))
}

fn probe(terms: &Terms) -> Claim<'_> {
    Claim { terms, name: PROBE, want: 1, enforced: false }
}

fn credentials(config: &config::Store, server: &StoreServer) -> Result<RedisConnectionInfo, Missing> {
    // Its name for itself would be one more command to permit.
    let mut info = RedisConnectionInfo::default().set_db(i64::from(server.database)).set_skip_set_lib_name();
    if let Some(file) = &config.password_file {
        let password = config::secret(file).map_err(|error| (Loss::Password, error.to_string()))?;
        info = info.set_password(password);
    }
    Ok(match &server.user {
        Some(user) => info.set_username(user),
        None => info,
    })
}

/// What the store says of `count` keys.
pub fn words(reply: Result<Value, RedisError>, count: usize) -> Result<Vec<Word>, Missing> {
    let value = reply.and_then(Value::extract_error).map_err(missing)?;
    step::read(&value, count)
        .ok_or_else(|| (Loss::Refused, "it answered in a way that no script of ours does".to_owned()))
}

/// Whether the store does not know the script: it was restarted, flushed, or another has taken its place.
pub fn is_unknown_script(reply: &Result<Value, RedisError>) -> bool {
    match reply {
        Ok(Value::ServerError(error)) => error.code() == "NOSCRIPT",
        Ok(_) => false,
        Err(error) => error.code() == Some("NOSCRIPT"),
    }
}

fn missing(error: RedisError) -> Missing {
    let loss = match error.code() {
        Some("LOADING") => Loss::Loading,
        Some("READONLY" | "MASTERDOWN") => Loss::ReadOnly,
        Some("OOM") => Loss::Full,
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => Loss::Password,
        Some(_) => Loss::Refused,
        None if error.kind() == ErrorKind::AuthenticationFailed => Loss::Password,
        None if error.is_timeout() => Loss::Slow,
        None if error.is_io_error() => Loss::Gone,
        None => Loss::Refused,
    };
    (loss, error.to_string())
}

/// From half of `pause` to half more.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) % 1_000;
    pause.mul_f64(0.5 + random as f64 / 1_000.0)
}
