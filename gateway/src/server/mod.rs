//! Wires everything together: start, reload (`reload`), drain.
//!
//! Runs on the main thread, beside the workers; nothing here is on a request's path.

mod reload;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::access::Access;
use crate::admin::{self, State};
use crate::config::{self, Config, Files};
use crate::control::{self, Control, Places, Socket};
use crate::datapath::cookies::Stack;
use crate::datapath::{self, AddressChanges};
use crate::downstream::{Affordable, listener};
use crate::guard;
use crate::handover::{self, Estate, Inheritance, Predecessor};
use crate::kernel::Kernel;
use crate::lists::{self, Lists};
use crate::metrics::Registry;
use crate::overload::meter::Meter;
use crate::privileges::{self, Identity};
use crate::reload::{Watch, requests};
use crate::snapshot::{Current, Snapshot};
use crate::upkeep::Upkeep;
use crate::worker::{Drain, Worker};

/// Why the gateway did not start, or stopped otherwise than asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Bind(#[from] listener::BindError),
    #[error(transparent)]
    Kernel(#[from] datapath::Error),
    #[error(transparent)]
    Control(#[from] control::BindError),
    #[error(transparent)]
    Handover(#[from] handover::Error),
    #[error(transparent)]
    Lists(#[from] lists::Error),
    #[error(transparent)]
    Privileges(#[from] privileges::Error),
    #[error("cannot open the access log: {0}; check `access_log.to`")]
    AccessLog(io::Error),
    #[error("cannot start a worker thread: {0}")]
    Thread(io::Error),
    #[error("worker {worker} failed: {source}")]
    Worker { worker: usize, source: io::Error },
    #[error("cannot set up signals and timers: {0}")]
    Runtime(#[from] io::Error),
}

/// Where the configuration comes from: the file, and what the command line says over it.
pub struct Source {
    pub file: PathBuf,
    /// Interfaces besides those of the file.
    pub interfaces: Vec<String>,
    pub no_kernel: bool,
    /// The files' content from just before it was loaded first: what differs from it is a change.
    seen: Vec<u8>,
}

impl Source {
    pub fn new(file: PathBuf, interfaces: Vec<String>, no_kernel: bool) -> Self {
        Self { seen: config::watched(&file).0, file, interfaces, no_kernel }
    }

    pub fn load(&self) -> Result<(Config, Files), config::Error> {
        let (mut config, files) = config::load_with_files(&self.file)?;
        let named = self.interfaces.iter().filter(|name| !config.kernel.interfaces.contains(name)).cloned();
        config.kernel.interfaces.extend(named.collect::<Vec<_>>());
        if self.no_kernel {
            config.kernel.interfaces.clear();
        }
        Ok((config, files))
    }
}

pub struct Server {
    source: Source,
    kernel: Kernel,
    upkeep: Upkeep,
    current: Arc<Current>,
    registry: Arc<Registry>,
    state: Arc<State>,
    drain: watch::Sender<Drain>,
    workers: Vec<thread::JoinHandle<io::Result<()>>>,
    /// Once more, for a successor.
    listeners: Vec<TcpListener>,
    following: Option<Following>,
    metrics: TcpListener,
    admin: Option<TcpListener>,
    socket: Option<Socket>,
    bound: SocketAddr,
}

/// Whom a gateway follows, and what waits for that one to leave.
struct Following {
    predecessor: Predecessor,
    /// How many of its listeners were taken.
    listeners: usize,
    stack: Option<Stack>,
}

/// Between two tries to attach to an interface that has returned and could not be attached to.
const INTERFACE_RETRY: Duration = Duration::from_secs(5);

/// Whoever reads the access log may stand still; the process ends all the same.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// What a signal asks for.
#[derive(PartialEq)]
enum Asked {
    Stop,
    Reload,
    /// Files that are written to may have been renamed.
    Reopen,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
}

impl Server {
    /// Binds everything first, so that a taken port is an error and not half a gateway; then gives up its
    /// privileges, before there is any other thread. `upgrade`: it follows the gateway that runs, with all that
    /// one has.
    pub fn start((config, files): (Config, Files), source: Source, upgrade: bool) -> Result<Self, Error> {
        raise_descriptor_limit();
        let identity = config.user.as_ref().map(Identity::find).transpose()?;
        let count = config.workers.unwrap_or_else(default_workers);
        let control = config.control.as_ref();
        let (inheritance, predecessor) = match upgrade {
            true => {
                let socket = &control.ok_or(handover::Error::NoSocket)?.socket;
                handover::ask(socket).map(|(all, from)| (all, Some(from)))?
            }
            false => (Inheritance::default(), None),
        };
        let admin = control.and_then(|control| control.admin);
        let inheritance = inheritance.at(config.listen, config.metrics, admin);
        let inherited = inheritance.listeners.len().min(count.get());
        let drained = inheritance.drained;
        let listeners = listener::bind(config.listen, count, inheritance.listeners)?;
        let metrics = listener::bind(config.metrics, NonZeroUsize::MIN, inheritance.metrics)?.remove(0);
        let admin = admin.map(|admin| listener::bind(admin, NonZeroUsize::MIN, inheritance.admin));
        let admin = admin.transpose()?.map(|mut only| only.remove(0));
        let bound = listeners[0].local_addr()?;
        let socket = control.map(|control| match inheritance.control {
            Some(listener) => Ok(Socket::inherited(listener, control.socket.clone())),
            None => Socket::bind(&control.socket),
        });
        let socket = socket.transpose()?;
        let state_file = control.map(|control| control.state_file.clone());
        let lists = state_file.as_deref().map_or_else(|| Ok(Lists::default()), Lists::load)?;
        let kernel = Kernel::start(&config.kernel, bound, lists, state_file, inheritance.kernel)?;
        identity.iter().try_for_each(|identity| kernel.give_to(identity))?;
        let stack = kernel.start_stack();
        privileges::give_up(config.user.as_ref().zip(identity.as_ref()))?;
        kernel.follow_log();
        kernel.save()?;
        let affordable = Affordable::with(count.get()).clients;
        if let Some(max) = config.connections.max.filter(|&max| u64::from(max) > affordable) {
            tracing::warn!(
                max,
                affordable,
                "connections.max is more than the limit on open files allows for"
            );
        }
        let registry = Registry::new(count.get());
        let upkeep = Upkeep::new(&config, registry.clone());
        let access = open_log(&config, None).map_err(Error::AccessLog)?;
        let mut snapshot = Snapshot::build(config, upkeep.names(), None, &registry);
        snapshot.access = access;
        snapshot.files = Some(Arc::new(files));
        drained.iter().for_each(|name| drop(snapshot.drain(name, true)));
        let following = match predecessor {
            Some(predecessor) => Some(Following { predecessor, listeners: inherited, stack }),
            None => {
                kernel.keep_told(&snapshot.sources, stack)?;
                None
            }
        };
        let current = Arc::new(ArcSwap::from_pointee(snapshot));
        let state = {
            let kernel = kernel.clone();
            State::new(current.clone(), registry.clone(), Box::new(move || kernel.metrics()))
        };
        let (drain, draining) = watch::channel(Drain::No);
        // Only where a successor can ask for them: they are descriptors.
        let kept = listeners.iter().filter(|_| socket.is_some()).map(TcpListener::try_clone);
        let kept = kept.collect::<io::Result<_>>()?;
        let workers = listeners.into_iter().enumerate().map(|(index, listener)| {
            let (current, registry, drain) = (current.clone(), registry.clone(), draining.clone());
            Worker { index, listener, current, registry, drain }.start()
        });
        let workers = workers.collect::<io::Result<_>>().map_err(Error::Thread)?;
        Ok(Self {
            source,
            kernel,
            upkeep,
            current,
            registry,
            state,
            drain,
            workers,
            listeners: kept,
            following,
            metrics,
            admin,
            socket,
            bound,
        })
    }

    /// Serves until a signal ends it.
    pub fn run(self) -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.control())
    }

    async fn control(mut self) -> Result<(), Error> {
        let mut signals = Signals::new()?;
        let metrics = tokio::net::TcpListener::from_std(self.metrics.try_clone()?)?;
        let admin = tokio::spawn(admin::serve(self.state.clone(), metrics));
        let places = self.places()?;
        let (successors, mut heard) = mpsc::unbounded_channel();
        let (asks, mut asked) = requests();
        let mut succession: Option<JoinHandle<io::Result<usize>>> = None;
        // What it reads is open before anybody is told that the gateway is ready.
        let meter = Meter::of_this_process();
        let guard = tokio::spawn(guard::watch(meter, self.current.clone(), self.registry.clone()));
        let mut watch = Watch::new(&config::watched(&self.source.file).1)
            .inspect_err(|error| {
                tracing::warn!(%error, file = %self.source.file.display(), "cannot watch the configuration; reload with SIGHUP");
            })
            .ok();
        let mut addresses =
            self.kernel.is_running().then(follow_addresses).transpose().unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot follow the host's addresses; reload after changing them");
                None
            });
        self.upkeep.follow(&self.current.load());
        // Until it is followed, the gateway before this one answers at the control socket, and nobody changes what
        // both have.
        let too_late = self.following.take().and_then(|following| self.follow(following).err());
        let control = self.socket.as_ref().filter(|_| too_late.is_none()).map(|socket| {
            let (kernel, state) = (self.kernel.clone(), self.state.clone());
            let control = Control::new(kernel, state, places, asks, successors);
            let mut tasks = vec![
                tokio::spawn(control.clone().see_off()),
                tokio::spawn(control.clone().serve(socket.listener())),
            ];
            let admin = self.admin.as_ref().map(TcpListener::try_clone);
            tasks.extend(admin.map(|admin| tokio::spawn(control.clone().serve_tcp(admin))));
            (control, tasks)
        });
        let mut loaded = self.source.seen.clone();
        if too_late.is_none() {
            let content = look(&self.source.file, &mut watch);
            if content != loaded {
                loaded = content;
                let _ = self.reload();
            }
            // From here on signals, file changes and requests are all taken.
            self.say_ready()?;
        }
        let drain = loop {
            if let Some((_, listeners)) = &too_late {
                break Drain::Followed(*listeners);
            }
            tokio::select! {
                // What is not taken while a successor starts waits until it is known who serves.
                asked = signals.next(succession.is_none()) => match asked {
                    Asked::Stop => break Drain::Alone,
                    Asked::Reload => {
                        loaded = look(&self.source.file, &mut watch);
                        let _ = self.reload();
                    }
                    Asked::Reopen => self.current.load().access.iter().for_each(|access| access.reopen()),
                },
                answers = asked.next(), if succession.is_none() => {
                    loaded = look(&self.source.file, &mut watch);
                    let outcome = self.reload();
                    // Who has left wants to know it no more.
                    answers.into_iter().for_each(|answer| drop(answer.send(outcome.clone())));
                }
                Some(stream) = heard.recv(), if succession.is_none() => {
                    control.iter().for_each(|(control, _)| control.set_followed(true));
                    succession = Some(self.hand_over(stream));
                }
                ready = ended(&mut succession) => match ready {
                    Ok(listeners) => break Drain::Followed(listeners),
                    Err(error) => {
                        succession = None;
                        self.go_on_after(&error);
                        control.iter().for_each(|(control, _)| control.set_followed(false));
                    }
                },
                () = host_changed(&mut addresses), if succession.is_none() => self.kernel.refresh(),
                () = self.upkeep.moved() => self.follow_names(),
                () = tokio::time::sleep(INTERFACE_RETRY), if succession.is_none() && self.kernel.is_incomplete() => {
                    self.kernel.refresh();
                }
                () = changed(&mut watch), if succession.is_none() => {
                    // Other files live in the directory too: only new content is a change.
                    let content = look(&self.source.file, &mut watch);
                    if content != loaded {
                        loaded = content;
                        let _ = self.reload();
                    }
                }
            }
        };
        // Who waits for a reload hears that there is none.
        drop(asked);
        if matches!(drain, Drain::Followed(_)) {
            // They are the other's from now on.
            admin.abort();
            control.iter().flat_map(|(_, tasks)| tasks).for_each(JoinHandle::abort);
            if let Some(socket) = self.socket.take() {
                socket.leave();
            }
            self.kernel.leave();
        }
        let drained = self.drain(drain, &mut signals).await;
        guard.abort();
        admin.abort();
        control.iter().flat_map(|(_, tasks)| tasks).for_each(JoinHandle::abort);
        drained.and(too_late.map_or(Ok(()), |(error, _)| Err(error.into())))
    }

    /// Says that everything runs, and judges once the gateway before this one has left. An error: that one goes on,
    /// and has so many listeners back.
    fn follow(&mut self, following: Following) -> Result<(), (handover::Error, usize)> {
        let Following { predecessor, listeners, stack } = following;
        predecessor.follow(listeners).map_err(|error| (error, listeners))?;
        self.socket.iter_mut().for_each(Socket::own);
        if let Err(error) = self.kernel.take_over(&self.current.load().sources, stack) {
            tracing::error!(%error, "the kernel half judges by what the gateway before this one has left of it");
        }
        Ok(())
    }

    fn places(&self) -> io::Result<Places> {
        let admin = self.admin.as_ref().map(TcpListener::local_addr).transpose()?;
        Ok(Places { proxy: self.bound, metrics: self.metrics.local_addr()?, admin })
    }

    fn say_ready(&self) -> io::Result<()> {
        let snapshot = self.current.load();
        let (listen, Places { proxy: bound, metrics, admin }) = (snapshot.config.listen, self.places()?);
        let (workers, routes) = (self.workers.len(), snapshot.routes.len());
        let admin = admin.map(tracing::field::display);
        tracing::info!(%listen, %bound, %metrics, admin, workers, routes, "ready");
        // Of an upgrade the supervisor knows nothing but this.
        tell_supervisor(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
        Ok(())
    }

    /// The same configuration, for names that lead elsewhere.
    fn follow_names(&mut self) {
        let before = self.current.load_full();
        let names = self.upkeep.names();
        let mut next = Snapshot::build(before.config.clone(), names, Some(&before), &self.registry);
        next.generation = before.generation;
        tracing::info!(endpoints = next.endpoints.len(), "names of upstreams lead elsewhere");
        self.put_in_force(Arc::new(next));
    }

    fn put_in_force(&mut self, next: Arc<Snapshot>) {
        self.current.store(next.clone());
        next.forget_others(&self.registry);
        self.upkeep.follow(&next);
    }

    /// Gives all there is to one that wants to follow; what comes of it is the task's result.
    fn hand_over(&self, stream: UnixStream) -> JoinHandle<io::Result<usize>> {
        tracing::info!("another gateway starts in this one's place");
        let snapshot = self.current.load();
        let config = &snapshot.config;
        let drained = snapshot.endpoints.iter().filter(|endpoint| endpoint.health.word().is_drained());
        let admin_at = config.control.as_ref().and_then(|control| control.admin);
        let begun = self.kernel.bequest().map_err(io::Error::other).and_then(|kernel| {
            let estate = Estate {
                listen: config.listen.to_string(),
                listeners: self.listeners.iter().map(AsFd::as_fd).collect(),
                metrics: (config.metrics.to_string(), self.metrics.as_fd()),
                admin: self.admin.as_ref().zip(admin_at).map(|(admin, at)| (at.to_string(), admin.as_fd())),
                control: self.socket.as_ref().map(AsFd::as_fd),
                kernel,
                drained: drained.map(|endpoint| endpoint.name.clone()).collect(),
            };
            estate.hand_over(stream)
        });
        tokio::task::spawn_blocking(move || begun?.wait())
    }

    /// Nobody follows after all.
    fn go_on_after(&self, error: &io::Error) {
        tracing::warn!(%error, "no other gateway follows; this one goes on");
        if let Err(error) = self.kernel.reclaim() {
            tracing::error!(%error, "the kernel half judges by what that gateway has left of it");
        }
    }

    async fn drain(self, drain: Drain, signals: &mut Signals) -> Result<(), Error> {
        match drain {
            Drain::Followed(_) => tracing::info!("another gateway serves in this one's place; draining"),
            Drain::Alone | Drain::No => {
                tracing::info!("draining; a second signal ends at once");
                tell_supervisor(&[NotifyState::Stopping]);
            }
        }
        self.state.begin_drain();
        // A socket that is still open here would not close with the workers.
        drop(self.listeners);
        let _ = self.drain.send(drain);
        let (workers, kernel) = (self.workers, self.kernel);
        let access = self.current.load().access.clone();
        let mut joined = tokio::task::spawn_blocking(move || {
            for (worker, thread) in workers.into_iter().enumerate() {
                let ended = thread.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
                ended.map_err(|source| Error::Worker { worker, source })?;
            }
            access.iter().for_each(|access| access.finish(LOG_PATIENCE));
            Ok(())
        });
        loop {
            tokio::select! {
                ended = &mut joined => {
                    kernel.stop();
                    return ended.unwrap_or_else(|error| Err(Error::Thread(io::Error::other(error))));
                }
                asked = signals.next(false) => if asked == Asked::Stop {
                    tracing::warn!(connections = self.state.open(), "a second signal; closing what is left");
                    // The threads end with the process; nobody waits for them.
                    std::process::exit(0);
                }
            }
        }
    }
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }

    /// `may_reload`: whether a reload is asked for now; else later.
    async fn next(&mut self, may_reload: bool) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv(), if may_reload => Asked::Reload,
            _ = self.user1.recv() => Asked::Reopen,
        }
    }
}

/// The log that `config` asks for, the one there is already where that is the same.
fn open_log(config: &Config, before: Option<&Arc<Access>>) -> io::Result<Option<Arc<Access>>> {
    config.access_log.as_ref().map(|log| Access::open(log, before)).transpose()
}

/// As many open connections as the hard limit allows: the soft one is usually set for programs that
/// use `select`.
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, limit = current, "cannot raise the limit on open files");
    }
}

/// Tells when the host gains or loses an address, for listeners on "any" address. The thread that
/// waits for the kernel's word ends with the process.
fn follow_addresses() -> io::Result<mpsc::UnboundedReceiver<()>> {
    let changes = AddressChanges::new()?;
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::Builder::new().name("addresses".to_owned()).spawn(move || {
        loop {
            let waited = poll(&mut [PollFd::new(&changes, PollFlags::IN)], None);
            // A profile's signals come to any thread.
            if waited == Err(Errno::INTR) {
                continue;
            }
            if waited.is_err() || changes.clear().is_err() || sender.send(()).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

async fn host_changed(addresses: &mut Option<mpsc::UnboundedReceiver<()>>) {
    let told = match addresses {
        Some(addresses) => addresses.recv().await,
        None => None,
    };
    if told.is_none() {
        std::future::pending().await
    }
}

/// Tells systemd, or whoever has set NOTIFY_SOCKET.
fn tell_supervisor(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell the supervisor");
    }
}

/// What has come of a succession; nothing while there is none.
async fn ended(succession: &mut Option<JoinHandle<io::Result<usize>>>) -> io::Result<usize> {
    match succession {
        Some(task) => task.await.map_err(io::Error::other)?,
        None => std::future::pending().await,
    }
}

async fn changed(watch: &mut Option<Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// The files' content, to tell a change from an event. Watches their folders before it looks into them.
fn look(file: &Path, watch: &mut Option<Watch>) -> Vec<u8> {
    loop {
        let (content, folders) = config::watched(file);
        if !watch.as_mut().is_some_and(|watch| watch.follow(&folders)) {
            return content;
        }
    }
}

/// What affinity and cgroup quota allow.
fn default_workers() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
