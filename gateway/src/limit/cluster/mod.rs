//! Limits that several gateways share: a worker's side of the store that counts for all of them.
//!
//! The proxy asks [`Store::ask`] before the local decision. Where leases have the answer it is there at once; else a
//! step of the store is waited for, no longer than the configuration says. While the store is away nothing is
//! waited for, and each rule goes by its `on_failure`. `step` is what the store does, `lease` what is held of it,
//! `link` the connection and its recovery, `alarm` the bound on waiting, `outage` what the process says of it all.

mod alarm;
mod lease;
mod link;
mod outage;
mod step;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use super::quota::{Left, Part, Refused};
use super::{Keys, Limits, Rules};
use crate::config;
use crate::metrics::{self, Loss, Registry};
use crate::timer::Wheel;
use alarm::Alarm;
use lease::{Leases, Stand};
use link::Link;
pub use link::examine;
pub use outage::Outage;
pub use step::Terms;
use step::{By, Claim, Word};

/// Answers in a row that came too late: one alone may be this machine's fault.
const LATE: u32 = 3;

/// One worker's side of the store. Everything in it is touched by that worker's thread alone.
pub struct Store {
    worker: usize,
    config: config::Store,
    limits: Arc<Limits>,
    cells: Arc<[metrics::Store]>,
    wheel: Rc<Wheel>,
    alarm: Alarm,
    link: RefCell<Option<Link>>,
    /// What was under way when the store was lost has nothing to say any more.
    epoch: Cell<u64>,
    late: Cell<u32>,
    leases: RefCell<Leases>,
    /// Of the request at hand.
    names: RefCell<Names>,
    /// Tells `link::tend` that the store was lost.
    lost: Notify,
    ended: Cell<bool>,
}

/// What is known of a request before the local decision.
#[derive(Debug)]
pub enum Asked {
    /// Nobody had to be asked.
    Skipped,
    /// The store is away, or did not answer in time.
    Away,
    Said(Said),
}

/// The store's judgement of a request: indices into the route's rules, and what each has left or why it refuses.
#[derive(Debug, Default)]
pub struct Said(Vec<(usize, Result<Left, Refused>)>);

/// The answer, or what is to be waited for.
pub enum Asking<'a> {
    Known(Asked),
    Wait(Waiting<'a>),
}

/// A request that has to wait for the store.
pub struct Waiting<'a> {
    store: Rc<Store>,
    rules: &'a Rules,
    names: Names,
}

/// What a request's rules are called in the store.
#[derive(Clone, Default)]
struct Names {
    bytes: Vec<u8>,
    /// The rule, and where its name stands.
    of_rules: Vec<(usize, Range<usize>)>,
}

/// A claim that outlives the request it was made for.
struct Owned {
    terms: Arc<Terms>,
    name: Box<[u8]>,
    want: u32,
    enforced: bool,
}

impl Store {
    /// Begins to look for the store; to be called on the worker's own runtime.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn start(
        worker: usize,
        config: config::Store,
        limits: Arc<Limits>,
        registry: &Registry,
        wheel: Rc<Wheel>,
    ) -> io::Result<Rc<Self>> {
        let (alarm, rings) = Alarm::new(config.wait)?;
        let store = Rc::new(Self {
            worker,
            config,
            limits,
            cells: registry.store.clone(),
            wheel,
            alarm,
            link: RefCell::default(),
            epoch: Cell::new(0),
            late: Cell::new(0),
            leases: RefCell::default(),
            names: RefCell::default(),
            lost: Notify::new(),
            ended: Cell::new(false),
        });
        let tended = store.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = link::tend(&tended) => {}
                () = tended.alarm.run(rings) => {}
            }
        });
        Ok(store)
    }

    /// Lets go of the store, for another to take its place; who still asks is told that it is away.
    pub fn end(&self) {
        self.ended.set(true);
        self.epoch.set(self.epoch.get() + 1);
        self.link.borrow_mut().take();
        self.leases.borrow_mut().clear();
        self.limits.outage.forget(self.worker);
        self.cells[self.worker].forget();
        self.lost.notify_one();
    }

    pub fn is_of(&self, config: &config::Store) -> bool {
        self.config == *config
    }

    /// What the store says of a request with `keys`.
    pub fn ask<'a>(self: &Rc<Self>, rules: &'a Rules, keys: &Keys, now_ns: u64) -> Asking<'a> {
        if self.link.borrow().is_none() {
            return Asking::Known(Asked::Away);
        }
        let mut names = self.names.borrow_mut();
        names.read(rules, keys);
        match self.from_leases(rules, &names, now_ns) {
            Some(said) => Asking::Known(Asked::Said(said)),
            None => Asking::Wait(Waiting { store: self.clone(), rules, names: names.clone() }),
        }
    }

    /// Decides where leases and earlier refusals suffice: takes one of each rule, or none.
    fn from_leases(self: &Rc<Self>, rules: &Rules, names: &Names, now_ns: u64) -> Option<Said> {
        let mut leases = self.leases.borrow_mut();
        let (mut unknown, mut refused) = (false, false);
        for (rule, name) in names.iter() {
            match leases.stand(name, now_ns) {
                Stand::Held => {}
                Stand::Over(_) => refused |= !rules.rule(rule).shadow,
                Stand::Asking | Stand::Unknown => unknown = true,
            }
        }
        if unknown && !refused {
            return None;
        }
        let mut said = Said::default();
        for (index, name) in names.iter() {
            let (rule, terms) = (rules.rule(index), rules.terms(index));
            match leases.stand(name, now_ns) {
                Stand::Over(over) => said.0.push((index, Err(over))),
                Stand::Held if !refused => {
                    let taken = leases.take(name, terms.lease, now_ns);
                    if let Some(want) = taken.top_up.and_then(|want| leases.ask(name, want, now_ns)) {
                        let (terms, name) = (terms.clone(), name.into());
                        self.send(vec![Owned { terms, name, want, enforced: !rule.shadow }], now_ns);
                    }
                    let left = rule.told(Part::Window, taken.left, taken.ends_in_us);
                    said.0.push((index, Ok(left)));
                }
                Stand::Held | Stand::Asking | Stand::Unknown => {}
            }
        }
        Some(said)
    }

    /// Asks for all rules that leases say nothing of, each for as much as its lease allows. The answer goes into the
    /// leases, whether or not the request is still there. `None`: there is no room to remember them.
    fn send_for(self: &Rc<Self>, rules: &Rules, names: &Names, now_ns: u64) -> Option<()> {
        let mut claims = Vec::new();
        let mut leases = self.leases.borrow_mut();
        for (index, name) in names.iter() {
            if leases.stand(name, now_ns) != Stand::Unknown {
                continue;
            }
            let terms = rules.terms(index).clone();
            match leases.ask(name, terms.lease, now_ns) {
                Some(want) => {
                    let enforced = !rules.rule(index).shadow;
                    claims.push(Owned { terms, name: name.into(), want, enforced });
                }
                None => {
                    // Those that were noted would wait for ever.
                    claims.iter().for_each(|claim| leases.answer(&claim.name, None, now_ns));
                    return None;
                }
            }
        }
        drop(leases);
        self.send(claims, now_ns);
        Some(())
    }

    fn send(self: &Rc<Self>, claims: Vec<Owned>, now_ns: u64) {
        let (store, epoch) = (self.clone(), self.epoch.get());
        tokio::task::spawn_local(async move {
            let words = store.step(&claims.iter().map(Owned::claim).collect::<Vec<_>>()).await;
            if store.epoch.get() != epoch {
                return;
            }
            let mut leases = store.leases.borrow_mut();
            for (n, claim) in claims.iter().enumerate() {
                leases.answer(&claim.name, words.as_ref().map(|words| &words[n]), now_ns);
            }
        });
    }

    /// One step over `claims`; `None`: the store has given no answer, and is away.
    async fn step(&self, claims: &[Claim<'_>]) -> Option<Vec<Word>> {
        let (mut connection, hash) = self.link.borrow().as_ref().map(Link::handle)?;
        let (epoch, started, cells) = (self.epoch.get(), Instant::now(), &self.cells[self.worker]);
        let mut reply = connection.send_packed_command(&step::command(By::Hash(&hash), claims)).await;
        if link::is_unknown_script(&reply) {
            // The store was restarted or flushed; this makes it known again.
            reply = connection.send_packed_command(&step::command(By::Text, claims)).await;
        }
        let took = started.elapsed();
        cells.record(took);
        if took <= self.config.wait {
            self.late.set(0);
        }
        match link::words(reply, claims.len()) {
            Ok(words) => Some(words),
            Err((loss, why)) => {
                if self.epoch.get() == epoch {
                    self.lose(loss, &why);
                }
                None
            }
        }
    }

    /// What `work` gives within the time that a request may wait; else `None`, which is counted. Where both are over
    /// at once, as after this thread had to pause, the answer counts: what passes it on gets a turn first.
    async fn within_bound<T>(&self, work: impl Future<Output = Option<T>>) -> Option<T> {
        let bound = self.alarm.wait();
        let over = async {
            // An error is how it rings.
            let _ = bound.await;
            tokio::task::yield_now().await;
        };
        tokio::select! {
            biased;
            done = work => done,
            () = over => {
                self.note_late();
                None
            }
        }
    }

    /// Counts an answer that did not come in time.
    fn note_late(&self) {
        self.cells[self.worker].late.add(1);
        self.late.set(self.late.get() + 1);
        if self.late.get() >= LATE {
            self.lose(
                Loss::Slow,
                &format!("{LATE} answers in a row took longer than {:?}", self.config.wait),
            );
        }
    }

    fn find(&self, link: Link) {
        self.late.set(0);
        self.cells[self.worker].find();
        self.limits.outage.end(self.worker, &link.server);
        *self.link.borrow_mut() = Some(link);
    }

    /// Goes on without the store, at once; whoever waits for it is woken.
    fn lose(&self, loss: Loss, why: &str) {
        let Some(link) = self.link.borrow_mut().take() else { return };
        self.epoch.set(self.epoch.get() + 1);
        self.leases.borrow_mut().clear();
        self.miss(loss, &link.server, why);
        self.lost.notify_one();
    }

    fn miss(&self, loss: Loss, server: &str, why: &str) {
        self.cells[self.worker].lose(loss);
        self.limits.outage.begin(self.worker, server, loss, why);
    }

    /// Forgets leases that have ended, and says how many requests are leased.
    fn count_leases(&self) {
        let held = self.leases.borrow_mut().sweep(self.now_ns());
        self.cells[self.worker].leased.set(held);
    }

    fn now_ns(&self) -> u64 {
        self.limits.at(Instant::now())
    }
}

impl Waiting<'_> {
    /// The store's answer, as long as the configuration allows to wait for it.
    pub async fn answer(self) -> Asked {
        let said = if self.rules.are_leased() {
            self.store.within_bound(self.by_lease()).await
        } else {
            self.store.within_bound(self.by_itself()).await
        };
        said.map_or(Asked::Away, Asked::Said)
    }

    /// Waits for leases, own or others', until they have the answer. `None`: the store is away.
    async fn by_lease(&self) -> Option<Said> {
        let store = &self.store;
        while store.link.borrow().is_some() {
            let now_ns = store.now_ns();
            if let Some(said) = store.from_leases(self.rules, &self.names, now_ns) {
                return Some(said);
            }
            let stand = |name| store.leases.borrow().stand(name, now_ns);
            if !self.names.iter().any(|(_, name)| stand(name) == Stand::Asking)
                && store.send_for(self.rules, &self.names, now_ns).is_none()
            {
                return self.by_itself().await;
            }
            let asking = self.names.iter().find(|(_, name)| stand(name) == Stand::Asking);
            let (_, name) = asking.expect("it was asked for just now, or before");
            let woken = store.leases.borrow_mut().wait(name);
            // An error is how it wakes.
            let _ = woken.await;
        }
        None
    }

    /// A step for this request alone, of which nothing is kept but refusals.
    async fn by_itself(&self) -> Option<Said> {
        let (store, rules, names) = (&self.store, self.rules, &self.names);
        let (asked_ns, epoch) = (store.now_ns(), store.epoch.get());
        let claims = names.of_rules.iter().map(|(index, range)| Claim {
            terms: rules.terms(*index),
            name: &names.bytes[range.clone()],
            want: 1,
            enforced: !rules.rule(*index).shadow,
        });
        let words = store.step(&claims.collect::<Vec<_>>()).await?;
        let mut said = Said::default();
        for ((index, name), word) in names.iter().zip(&words) {
            let rule = rules.rule(index);
            if word.granted > 0 || word.left > 0 {
                said.0.push((index, Ok(rule.told(word.part, word.left, word.pause_us))));
            } else {
                said.0.push((index, Err(Refused { part: word.part, wait_ns: word.pause_us * 1_000 })));
                if store.epoch.get() == epoch {
                    store.leases.borrow_mut().refuse(name, word, asked_ns);
                }
            }
        }
        Some(said)
    }
}

impl Names {
    fn read(&mut self, rules: &Rules, keys: &Keys) {
        self.bytes.clear();
        self.of_rules.clear();
        for (index, rule) in rules.iter().enumerate() {
            if let Some(terms) = &rule.cluster {
                let start = self.bytes.len();
                terms.name(keys.get(rule.key).0, &mut self.bytes);
                self.of_rules.push((index, start..self.bytes.len()));
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.of_rules.iter().map(|(index, range)| (*index, &self.bytes[range.clone()]))
    }
}

impl Said {
    /// What is said of the rule at `index`; `None`: it is a local one.
    pub fn of(&self, index: usize) -> Option<Result<Left, Refused>> {
        self.0.iter().find(|(of, _)| *of == index).map(|(_, said)| *said)
    }

    /// The rules that refuse, those that only watch included.
    pub fn refusals(&self) -> impl Iterator<Item = (usize, Refused)> {
        self.0.iter().filter_map(|(index, said)| Some((*index, said.err()?)))
    }
}

impl Owned {
    fn claim(&self) -> Claim<'_> {
        Claim { terms: &self.terms, name: &self.name, want: self.want, enforced: self.enforced }
    }
}
