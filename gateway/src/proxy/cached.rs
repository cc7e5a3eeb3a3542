//! What the cache has to say to a request, before it goes upstream.
//!
//! A stored response answers at once. Otherwise the request leads a fetch or follows one, and answers
//! from what that brings. Whatever is not for the cache is left to the caller, which forwards it.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use http::header::{CONTENT_LOCATION, IF_MATCH, IF_UNMODIFIED_SINCE, LOCATION, RANGE};
use http::request::Parts;
use http::{HeaderMap, Method, Response, Uri, Version};

use super::body::Source;
use super::client::Client;
use super::error::Failure;
use super::fetch::Fetch;
use super::headers::{Seen, X_FORWARDED_PROTO};
use super::trace::Trace;
use super::{Local, Proxy, answers};
use crate::access::Cached;
use crate::cache::coalesce::Part;
use crate::cache::entry::Entry;
use crate::cache::flight::{Answer, Cause, Feed, Reader, Turn};
use crate::cache::key::{Key, Scheme, Target};
use crate::cache::policy::{self, Asker, Use, Wish};
use crate::cache::select::{Selecting, Selector};
use crate::cache::status::{Forward, Status};
use crate::cache::store::Found;
use crate::cache::{self, Cache};
use crate::metrics::Lookups;
use crate::overload;
use crate::path;
use crate::snapshot;
use crate::timer::Tick;

/// A request on a route with a cache.
pub struct Ask<'a> {
    pub proxy: &'a Rc<Proxy>,
    pub local: &'a Rc<Local>,
    /// Index into the snapshot's routes.
    pub route: usize,
    pub client: &'a Rc<Client>,
    pub parts: &'a Parts,
    pub seen: &'a Seen,
    /// Whom the request is addressed to.
    pub authority: &'a str,
    pub trusted: bool,
    pub request_id: &'a [u8],
    pub trace: &'a Trace,
    pub now: Instant,
    pub deadline: Tick,
    /// For a balancer that goes by a key of the request, hashed.
    pub balance_key: u64,
}

/// What becomes of the request.
pub enum Verdict<'a> {
    Answered(Source),
    Forward(Forward),
    /// A fetch is to answer it, its own or another's: see [`Request::wait`].
    Wait(Request<'a>, Miss),
}

/// A request that nothing stored answers.
pub struct Miss {
    why: Forward,
    /// Stored, but not to be used as it is.
    stale: Option<Arc<Entry>>,
    /// What the answer is known to depend on.
    selectors: Arc<[Selector]>,
}

impl Ask<'_> {
    pub fn route(&self) -> &snapshot::Route {
        &self.local.snapshot.routes[self.route]
    }

    pub fn rules(&self) -> &cache::Route {
        self.route().cache.as_ref().expect("who asks has looked")
    }

    pub fn shared(&self) -> &Cache {
        &self.local.snapshot.cache
    }

    pub fn counts(&self) -> &Lookups {
        &self.local.cells(Some(self.route)).cache
    }

    fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    pub fn is_head(&self) -> bool {
        self.parts.method == Method::HEAD
    }

    /// Forgets what is stored for the request's target, and for those that the response names as
    /// changed with it, on the same host (RFC 9111 §4.4).
    pub fn invalidate(&self, response: &HeaderMap) {
        self.shared().store.invalidate(&self.key());
        for name in [LOCATION, CONTENT_LOCATION] {
            let named = response.get(name).and_then(|value| value.to_str().ok());
            if let Some(key) = named.and_then(|location| self.key_of(location)) {
                self.shared().store.invalidate(&key);
            }
        }
    }

    /// The key of another target of the same host, given as a reference with an absolute path.
    fn key_of(&self, location: &str) -> Option<Key> {
        let authority = self.authority;
        let uri: Uri = location.split('#').next()?.parse().ok()?;
        if uri.authority().is_some_and(|other| !other.as_str().eq_ignore_ascii_case(authority)) {
            return None;
        }
        let path = path::normalise(uri.path()).ok()?;
        let snapshot = &self.local.snapshot;
        let rules = snapshot.routes[snapshot.table.find(authority, &path)?].cache.as_ref()?;
        let target = Target { scheme: self.scheme(), authority, path: &path, query: uri.query() };
        Some(self.shared().keys.key(self.scope(rules), &target, &rules.query, Vec::new()))
    }

    fn key(&self) -> Key {
        let (uri, rules) = (&self.parts.uri, self.rules());
        let target =
            Target { scheme: self.scheme(), authority: self.authority, path: uri.path(), query: uri.query() };
        let room = std::mem::take(&mut *self.local.key.borrow_mut());
        self.shared().keys.key(self.scope(rules), &target, &rules.query, room)
    }

    /// Backends may go by what a trusted proxy says of the site, and proxies pass on much of what clients say.
    fn scope(&self, rules: &cache::Route) -> u64 {
        if self.trusted { rules.scope ^ self.seen.site } else { rules.scope }
    }

    /// Sites answer differently by it, with redirects above all.
    fn scheme(&self) -> Scheme {
        let told = || self.headers().get(X_FORWARDED_PROTO);
        match self.trusted && told().is_some_and(|scheme| scheme.as_bytes().eq_ignore_ascii_case(b"https")) {
            true => Scheme::Https,
            false => Scheme::Http,
        }
    }
}

/// Answers the request from what is stored, if that can be. `response`: the answer's head, to be filled in.
pub fn look<'a>(ask: &'a Ask<'a>, response: &mut Response<()>) -> Result<Verdict<'a>, Failure> {
    let (rules, headers, query) = (ask.rules(), ask.headers(), ask.parts.uri.query());
    let forward = |why| Ok(Verdict::Forward(why));
    if ask.parts.method != Method::GET && !ask.is_head() {
        return forward(Forward::Method);
    }
    let caching = ask.seen.caching;
    let conditional = |name| caching && headers.contains_key(name);
    if rules.bypasses(headers, query) || conditional(IF_MATCH) || conditional(IF_UNMODIFIED_SINCE) {
        return forward(Forward::Bypass);
    }
    let wish = if caching { Wish::of(headers) } else { Wish::default() };
    if wish.no_store {
        return forward(Forward::Request);
    }
    let asker = rules.asker(headers, query, caching);
    let key = ask.key();
    let request = Request { ask, now: ask.now, key, asker, wish, alone: !rules.may_coalesce(asker) };
    let miss = match request.look(response) {
        Ok(source) => {
            let mut room = request.key.bytes;
            room.clear();
            ask.local.key.replace(room);
            return Ok(Verdict::Answered(source));
        }
        Err(miss) => miss,
    };
    if wish.only_if_cached {
        return Err(Failure::NotCached);
    }
    if caching && headers.contains_key(RANGE) {
        return forward(Forward::Partial);
    }
    Ok(Verdict::Wait(request, miss))
}

/// A request between its look-ups.
pub struct Request<'a> {
    ask: &'a Ask<'a>,
    /// When it looks.
    now: Instant,
    key: Key,
    asker: Asker,
    wish: Wish,
    /// It is not to be one with others.
    alone: bool,
}

enum Fetched {
    Answered(Source),
    Again,
    /// Again, knowing what the answer depends on.
    Varies(Arc<[Selector]>),
}

impl Request<'_> {
    /// Leads a fetch or follows one, until one has brought the answer.
    pub async fn wait(mut self, mut miss: Miss, response: &mut Response<()>) -> Result<Source, Failure> {
        loop {
            let varied = match self.fetch(&miss, response).await? {
                Fetched::Answered(source) => return Ok(source),
                Fetched::Again => None,
                Fetched::Varies(selectors) => Some(selectors),
            };
            miss = match self.look(response) {
                Ok(source) => return Ok(source),
                Err(miss) => miss,
            };
            miss.selectors = varied.unwrap_or(miss.selectors);
        }
    }

    /// The stored answer.
    fn look(&self, response: &mut Response<()>) -> Result<Source, Miss> {
        let ask = self.ask;
        let route = ask.rules();
        let miss = |why, stale, selectors| Err(Miss { why, stale, selectors });
        let found = match route.stores {
            true => ask.shared().store.find(&self.key, ask.headers(), self.now),
            false => Found::Nothing,
        };
        let entry = match found {
            Found::Entry(entry) => entry,
            Found::OtherVariant(selectors) => return miss(Forward::VaryMiss, None, selectors),
            Found::Nothing => return miss(Forward::UriMiss, None, route.selectors.clone()),
        };
        let selectors = || entry.selecting.selectors().clone();
        // What was stored for those without credentials answers nobody who has some.
        let keyed = route.rules.authorization_keyed;
        if self.asker.authorization && !keyed && !entry.terms.for_everybody {
            return miss(Forward::Request, None, selectors());
        }
        let (counts, age) = (ask.counts(), entry.age(self.now));
        match policy::usable(&entry.terms, age, &self.wish) {
            Use::Fresh => {
                counts.hits.add(1);
                ask.client.met_cache(Cached::Hit);
                if entry.hit(age) {
                    self.refresh(&entry);
                }
            }
            Use::Stale => {
                counts.stale.add(1);
                ask.client.met_cache(Cached::Stale);
            }
            Use::WhileRevalidate => {
                counts.stale.add(1);
                ask.client.met_cache(Cached::Stale);
                if entry.begin_refresh() {
                    self.refresh(&entry);
                }
            }
            Use::Validate => {
                let fresh = age < entry.terms.lifetime && !entry.terms.always_validate;
                let why = if fresh { Forward::Request } else { Forward::Stale };
                let selectors = selectors();
                return miss(why, Some(entry), selectors);
            }
        }
        Ok(answers::stored(&entry, age, ask, Status::Hit { ttl: entry.ttl(age) }, response))
    }

    /// Fetches anew what is stored, with nobody waiting for it.
    fn refresh(&self, entry: &Arc<Entry>) {
        let flights = &self.ask.shared().flights;
        let selectors = entry.selecting.selectors().clone();
        let flight_key = self.flight_key(&Method::GET, selectors);
        let max_bytes = self.ask.rules().max_entry_bytes;
        let feed = match flights.join(flight_key, &self.ask.local.fanout, max_bytes, self.now, || false) {
            Part::Lead(feed, _) => feed,
            Part::Alone => flights.alone(&self.ask.local.fanout, max_bytes).0,
            Part::Follow(_) | Part::TooLate | Part::Full => return entry.end_refresh(),
        };
        self.start(feed, &Method::GET, Some(entry));
    }

    fn flight_key(&self, method: &Method, selectors: Arc<[Selector]>) -> Key {
        let selecting = Selecting::new(selectors, self.ask.headers());
        let Cache { keys, store, .. } = self.ask.shared();
        keys.of_flight(&self.key, method, &selecting, store.generation(&self.key))
    }

    async fn fetch(&mut self, miss: &Miss, response: &mut Response<()>) -> Result<Fetched, Failure> {
        let ask = self.ask;
        let shared = ask.shared();
        let max_bytes = ask.rules().max_entry_bytes;
        let part = if self.alone {
            Part::Alone
        } else {
            let flight_key = self.flight_key(&ask.parts.method, miss.selectors.clone());
            let answered = || self.is_answered(miss);
            shared.flights.join(flight_key, &ask.local.fanout, max_bytes, Instant::now(), answered)
        };
        let reader = match part {
            Part::Lead(feed, reader) => {
                self.start(feed, &ask.parts.method, miss.stale.as_ref());
                reader
            }
            Part::Alone => {
                let (feed, reader) = shared.flights.alone(&ask.local.fanout, max_bytes);
                self.start(feed, &ask.parts.method, miss.stale.as_ref());
                reader
            }
            Part::Follow(reader) => reader,
            Part::TooLate => {
                self.now = Instant::now();
                return Ok(Fetched::Again);
            }
            Part::Full => return Err(Failure::TooManyWaiting),
        };
        self.read(reader, miss, response).await
    }

    /// Sends the request, for this client and whoever follows.
    fn start(&self, feed: Feed, method: &Method, stale: Option<&Arc<Entry>>) {
        Fetch::new(self.ask, method, &self.key, self.asker, self.wish, stale.cloned()).start(feed);
    }

    /// Whether the store has an answer by now.
    fn is_answered(&self, miss: &Miss) -> bool {
        if !self.ask.rules().stores || self.wish.validate {
            return false;
        }
        match self.ask.shared().store.find(&self.key, self.ask.headers(), self.now) {
            Found::Entry(entry) => {
                let known = miss.stale.as_ref().is_some_and(|stale| Arc::ptr_eq(stale, &entry));
                let usable = policy::usable(&entry.terms, entry.age(Instant::now()), &self.wish);
                !known && usable != Use::Validate
            }
            Found::OtherVariant(_) | Found::Nothing => false,
        }
    }

    /// The answer of a fetch, as far as it is this request's.
    async fn read(
        &mut self,
        mut reader: Reader,
        miss: &Miss,
        response: &mut Response<()>,
    ) -> Result<Fetched, Failure> {
        let ask = self.ask;
        let timer = &ask.client.timer;
        timer.arm(ask.deadline);
        let answer = loop {
            let turn = poll_fn(|cx| match reader.poll_turn(cx, ask.headers()) {
                Poll::Ready(turn) => Poll::Ready(turn),
                Poll::Pending if timer.now() >= ask.deadline => {
                    Poll::Ready(Turn::Answer(Answer::Failed(Cause::Timeout)))
                }
                Poll::Pending => Poll::Pending,
            });
            match turn.await {
                Turn::Answer(answer) => break answer,
                Turn::Interim(heads) if ask.parts.version == Version::HTTP_11 => {
                    ask.client.first.borrow_mut().extend_from_slice(&heads);
                }
                Turn::Interim(_) => {}
                // The fetch it followed has failed, and it is the one to try once more.
                Turn::Lead(feed) => self.start(feed, &ask.parts.method, miss.stale.as_ref()),
            }
        };
        let leads = reader.leads();
        let counts = ask.counts();
        let count = if leads { &counts.misses } else { &counts.collapsed };
        ask.client.met_cache(if leads { Cached::Miss } else { Cached::Collapsed });
        let forwarded =
            |status, stored| Status::Forwarded { why: miss.why, status, stored, collapsed: !leads };
        match answer {
            Answer::Head(head) => {
                count.add(1);
                let status = forwarded(None, head.stored);
                Ok(Fetched::Answered(answers::fetched(&head, reader, ask, status, response)))
            }
            Answer::Validated { entry, stored, .. } => {
                count.add(1);
                let status = forwarded(Some(304), stored);
                let age = entry.age(self.now);
                Ok(Fetched::Answered(answers::stored(&entry, age, ask, status, response)))
            }
            Answer::Alone => {
                self.alone = true;
                Ok(Fetched::Again)
            }
            // Once: a response that depends on something else each time is fetched by each alone.
            Answer::OtherVariant(selectors) if selectors != miss.selectors => Ok(Fetched::Varies(selectors)),
            Answer::OtherVariant(_) => {
                self.alone = true;
                Ok(Fetched::Again)
            }
            Answer::Failed(cause) => {
                let stale = miss.stale.as_ref().map(|stale| (stale, stale.age(Instant::now())));
                if let Some((stale, age)) = stale
                    && stale.terms.serves_on_error(age, &self.wish)
                {
                    counts.stale.add(1);
                    ask.client.met_cache(Cached::Stale);
                    let status = Status::StaleOnError { ttl: stale.ttl(age) };
                    return Ok(Fetched::Answered(answers::stored(stale, age, ask, status, response)));
                }
                count.add(1);
                Err(failure(cause))
            }
        }
    }
}

fn failure(cause: Cause) -> Failure {
    match cause {
        Cause::Unreachable => {
            Failure::Connect("the fetch for several requests found no connection".to_owned())
        }
        Cause::Invalid => {
            Failure::Upstream("the fetch for several requests got no valid response".to_owned())
        }
        Cause::Status => Failure::Upstream("the upstream failed twice, and not for everybody".to_owned()),
        Cause::Abandoned => Failure::Upstream("the worker that fetched has ended".to_owned()),
        Cause::Timeout => Failure::Timeout("response"),
        Cause::Unavailable(wait) => Failure::Unavailable(wait),
        Cause::Drained => Failure::Drained,
        Cause::Full => Failure::UpstreamFull,
        Cause::Shed => Failure::Shed(overload::Cause::Limit),
        Cause::Descriptors => Failure::Shed(overload::Cause::Descriptors),
    }
}
