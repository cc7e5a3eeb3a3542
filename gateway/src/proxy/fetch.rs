//! A request to the upstream that no client owns: it fills the cache and feeds whoever waits.
//!
//! A task of the worker on which its request came. It ends with the response, with the deadline, or
//! when nobody is left who wants it and it is not to be kept either.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use http::header::{
    CONTENT_LENGTH, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, response};

use super::body::{Lease, Request, RequestBody};
use super::cached::Ask;
use super::client::Client;
use super::error::Failure;
use super::forward::{Failed, Way};
use super::headers::{Announced, Upward};
use super::{Local, Proxy, headers, shed};
use crate::cache::entry::{self, Entry, Pieces};
use crate::cache::flight::{Answer, Cause, Feed, Head, Room, Sharing};
use crate::cache::key::Key;
use crate::cache::policy::{self, Asker, Control, Terms, Wish};
use crate::cache::select::{self, Selecting};
use crate::cache::store::Found;
use crate::cache::{Cache, Route, memory};
use crate::metrics::{self, Lookups};
use crate::overload;
use crate::timer::Tick;

pub struct Fetch {
    proxy: Rc<Proxy>,
    local: Rc<Local>,
    /// Index into the snapshot's routes.
    route: usize,
    client: Rc<Client>,
    /// The request's head as it goes upstream, and the fields it came with.
    head: Vec<u8>,
    own_host: bool,
    balance_key: u64,
    request: HeaderMap,
    is_head: bool,
    /// Never refused for overload.
    exempt: bool,
    key: Key,
    /// What the store asks for, to know what was forgotten since.
    begun: u64,
    asker: Asker,
    wish: Wish,
    /// To be validated.
    stale: Option<Arc<Entry>>,
    deadline: Tick,
}

impl Fetch {
    /// `method`: GET or HEAD, the request's own unless it is refreshed what that was answered with.
    pub fn new(
        ask: &Ask<'_>,
        method: &Method,
        key: &Key,
        asker: Asker,
        wish: Wish,
        stale: Option<Arc<Entry>>,
    ) -> Self {
        let route = ask.route();
        let own_host = !route.config.preserve_host || ask.seen.host.is_none();
        let host = own_host.then_some(&ask.local.snapshot.clusters[route.cluster].authority);
        let (client, trusted, request_id, trace) = (ask.client, ask.trusted, ask.request_id, ask.trace);
        let to = Upward { client, trusted, host, request_id, trace, body: Announced::Nothing };
        let is_head = *method == Method::HEAD;
        let stored = stale.as_deref().filter(|_| !is_head);
        let head = if ask.seen.caching || stored.is_some() {
            let mut parts = ask.parts.clone();
            parts.method = method.clone();
            make_conditional(&mut parts.headers, stored);
            headers::write_upstream(&parts, ask.seen, &to)
        } else {
            headers::write_upstream(ask.parts, ask.seen, &to)
        };
        Self {
            proxy: ask.proxy.clone(),
            local: ask.local.clone(),
            route: ask.route,
            client: client.clone(),
            head,
            own_host,
            balance_key: ask.balance_key,
            request: ask.parts.headers.clone(),
            is_head,
            exempt: shed::is_exempt(&ask.local.snapshot, ask.parts.uri.path()),
            key: key.clone(),
            begun: ask.shared().store.begin(),
            asker,
            wish,
            stale,
            deadline: ask.client.timer.now().plus(route.config.timeout),
        }
    }

    pub fn start(self, feed: Feed) {
        tokio::task::spawn_local(self.run(feed));
    }

    async fn run(mut self, feed: Feed) {
        let task = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let timeouts = &self.local.snapshot.config.timeouts;
        // The client may be gone long before this ends; only its address was needed.
        self.client = Client::new(self.client.peer, &self.proxy.wheel, timeouts.header_read, &task);
        self.client.takes_interim.set(true);
        let request = Request::new(std::mem::take(&mut self.head), RequestBody::Empty, false, self.is_head);
        let sending = {
            let (local, client, deadline) = (&self.local, &*self.client, self.deadline);
            let (route, key, own_host) =
                (&local.snapshot.routes[self.route], self.balance_key, self.own_host);
            let way = Way { local, client, route, deadline, key, own_host, idempotent: true };
            let exempt = || self.exempt;
            let mut sending = pin!(shed::send(&way, self.route, exempt, Instant::now(), request));
            poll_fn(|cx| {
                let polled = sending.as_mut().poll(cx);
                let interim = std::mem::take(&mut *client.first.borrow_mut());
                if !interim.is_empty() {
                    feed.interim(&interim);
                }
                polled
            })
            .await
        };
        match sending {
            Ok((response, lease, sent)) => self.relay(feed, response, lease, sent).await,
            Err(Failed { failure, retried }) => {
                tracing::debug!(?failure, "fetch failed");
                // Whoever has something stale for this case needs no second try, and a group has had its
                // own where this one was.
                let again = !retried && !self.stale_will_do(Instant::now());
                feed.fail(cause(&failure), again);
            }
        }
        if let Some(stale) = &self.stale {
            stale.end_refresh();
        }
    }

    /// Whether the stored response may stand in for an error.
    fn stale_will_do(&self, now: Instant) -> bool {
        self.stale.as_ref().is_some_and(|stale| stale.terms.serves_on_error(stale.age(now), &self.wish))
    }

    async fn relay(&self, mut feed: Feed, response: Response<()>, mut lease: Lease, sent: Instant) {
        let (mut parts, ()) = response.into_parts();
        let received = Received { sent, at: Instant::now(), date: SystemTime::now() };
        headers::toward_anybody(&mut parts.headers, parts.version, &self.proxy.date.borrow());
        parts.headers = entry::compact(&parts.headers);
        // Nothing was asked that a 304 to HEAD could answer.
        if let (StatusCode::NOT_MODIFIED, Some(stale), false) = (parts.status, &self.stale, self.is_head) {
            self.validated(&feed, stale, &parts.headers, &received);
            lease.release(self.client.timer.now());
            return;
        }
        let failing = matches!(parts.status.as_u16(), 500 | 502 | 503 | 504);
        if failing && self.stale_will_do(received.at) {
            return feed.fail(Cause::Status, false);
        }
        if self.is_head {
            self.compare(&parts, &received);
        }
        let (head, keep) = self.judge(&mut feed, parts, failing, &lease, &received);
        let Ok(trailers) = self.pass_on(&feed, &mut lease, keep).await else { return };
        lease.release(self.client.timer.now());
        if head.stored
            && let Some(body) = feed.pieces()
        {
            self.store(&head, body);
        }
        // What is stored is found before this flight is not.
        feed.close();
        feed.end(trailers);
    }

    /// Decides who gets the response and tells them its head; and whether its body is held whole.
    fn judge(
        &self,
        feed: &mut Feed,
        parts: response::Parts,
        failing: bool,
        lease: &Lease,
        received: &Received,
    ) -> (Arc<Head>, bool) {
        let rules = self.rules();
        let control = Control::of(&parts.headers);
        let terms = received.terms(parts.status, &parts.headers, &control, rules);
        let allowed = policy::storable(self.asker, parts.status, &parts.headers, &control, &rules.rules);
        let fresh = terms.given && terms.serves_waiters();
        let failing = failing && !fresh;
        if failing {
            feed.part();
        }
        let sharing = match allowed {
            _ if failing => Sharing::Failure { allowed: allowed.is_ok() },
            Ok(()) if terms.serves_waiters() => Sharing::Everybody,
            Ok(()) | Err(_) => Sharing::Nobody,
        };
        let length = lease.size_hint().exact();
        let fits = length.is_none_or(|length| length <= rules.max_entry_bytes as u64);
        let worth = rules.stores && !self.is_head && terms.worth_keeping(&parts.headers);
        let stored = worth && allowed.is_ok() && fits;
        let keep = (stored || sharing != Sharing::Nobody) && fits;
        let mut others = parts.headers.clone();
        policy::strip(&mut others, &control);
        let selecting = Selecting::new(select::selectors(&rules.selectors, &parts.headers), &self.request);
        // What is too large to be held whole is nobody else's either: it would go at the pace of one.
        let sharing = if fits { sharing } else { Sharing::Nobody };
        self.mark(feed, sharing, &selecting, received.at);
        let joinable = sharing == Sharing::Everybody && terms.initial_age < terms.lifetime;
        if !joinable {
            feed.close();
        }
        let head = Arc::new(Head {
            status: parts.status,
            others: (others.len() != parts.headers.len()).then_some(others),
            headers: parts.headers,
            length,
            terms,
            selecting,
            received: received.at,
            date: received.date,
            sharing,
            stored,
        });
        feed.answer(Answer::Head(head.clone()), keep);
        (head, keep)
    }

    /// Notes whether the next who ask at the same time are made one.
    fn mark(&self, feed: &Feed, sharing: Sharing, selecting: &Selecting, now: Instant) {
        let flights = &self.shared().flights;
        match (sharing, feed.key()) {
            (Sharing::Nobody, Some(key)) => flights.mark_unshared(key.hash, now),
            (Sharing::Everybody, None) => flights.unmark(self.flight_hash(selecting)),
            (Sharing::Everybody | Sharing::Failure { .. }, Some(_)) => {}
            (Sharing::Nobody | Sharing::Failure { .. }, None) => {}
        }
    }

    /// Passes the body on, at the pace of the fastest reader where it is not held whole.
    async fn pass_on(&self, feed: &Feed, lease: &mut Lease, keep: bool) -> Result<Option<HeaderMap>, Broken> {
        let timer = &self.client.timer;
        timer.arm(self.deadline);
        let mut trailers = None;
        let mut keep = keep;
        let mut patience = Patience::default();
        loop {
            // It is the upstream that is waited for, not a reader.
            let mut starved = false;
            let frame = poll_fn(|cx| {
                if timer.now() >= self.deadline {
                    if starved {
                        lease.fail(metrics::Cause::BodyTimeout);
                    }
                    return Poll::Ready(Err(Broken));
                }
                starved = false;
                match feed.room(cx) {
                    Room::Free if patience.rest() => timer.arm(self.deadline),
                    Room::Free => {}
                    Room::Fastest => return Poll::Pending,
                    Room::Laggards => match patience.lose(Instant::now()) {
                        Some(left) => {
                            timer.arm(self.deadline.min(timer.now().plus(left)));
                            return Poll::Pending;
                        }
                        None => {
                            feed.cut_off();
                            timer.arm(self.deadline);
                        }
                    },
                }
                starved = true;
                let frame = ready!(lease.poll_frame(cx));
                Poll::Ready(frame.transpose().map_err(|_| Broken))
            })
            .await;
            let frame = frame.inspect_err(|Broken| {
                feed.close();
                feed.broken();
            })?;
            match frame.map(http_body::Frame::into_data) {
                None => return Ok(trailers),
                // In memory of its own: what the worker reads into is used again.
                Some(Ok(data)) => {
                    if !feed.push(memory::copied(&data)) {
                        return Err(Broken);
                    }
                    if keep && !feed.keeps() {
                        keep = false;
                        feed.close();
                    }
                }
                Some(Err(frame)) => trailers = frame.into_trailers().ok(),
            }
        }
    }

    /// The upstream said that `stale` still holds.
    fn validated(&self, feed: &Feed, stale: &Arc<Entry>, update: &HeaderMap, received: &Received) {
        let (entry, stored) = self.renew(stale, update, received);
        self.counts().revalidated.add(1);
        let for_everybody = stored && entry.terms.serves_waiters();
        let sharing = if for_everybody { Sharing::Everybody } else { Sharing::Nobody };
        self.mark(feed, sharing, &entry.selecting, received.at);
        feed.close();
        feed.answer(Answer::Validated { entry, sharing, stored }, false);
    }

    /// What the answer to a HEAD says of a stored response: that it still holds, or that it does not (RFC 9111 §4.3.5).
    /// An answer that is not for everybody says nothing of what everybody gets.
    fn compare(&self, parts: &response::Parts, received: &Received) {
        let (rules, control) = (self.rules(), Control::of(&parts.headers));
        let allowed = policy::storable(self.asker, parts.status, &parts.headers, &control, &rules.rules);
        if parts.status != StatusCode::OK || allowed.is_err() {
            return;
        }
        let store = &self.shared().store;
        let Found::Entry(stored) = store.find(&self.key, &self.request, received.at) else { return };
        if stored.status == StatusCode::OK {
            match policy::is_same(&stored.headers, &parts.headers) {
                true => drop(self.renew(&stored, &parts.headers, received)),
                false => drop(store.invalidate(&self.key)),
            }
        }
    }

    /// Brings the head of a stored response up to date; whether it may be kept so.
    fn renew(&self, stale: &Entry, update: &HeaderMap, received: &Received) -> (Arc<Entry>, bool) {
        let (rules, store) = (self.rules(), &self.shared().store);
        let mut headers = stale.headers.clone();
        policy::freshen(&mut headers, update);
        let control = Control::of(&headers);
        policy::strip(&mut headers, &control);
        let terms = received.terms(stale.status, &headers, &control, rules);
        let storable =
            |asker| policy::storable(asker, stale.status, &headers, &control, &rules.rules).is_ok();
        let (allowed, for_others) = (storable(self.asker), storable(Asker::default()));
        let selecting = Selecting::new(select::selectors(&rules.selectors, &headers), &self.request);
        let (body, when) = (stale.body.clone(), (received.at, received.date));
        let entry = Arc::new(Entry::new(stale.status, &headers, body, terms, selecting, when, self.spread()));
        if allowed {
            store.insert(&self.key, &self.request, entry.clone(), self.begun, received.at);
        } else if !for_others {
            store.invalidate(&self.key);
        }
        (entry, allowed)
    }

    fn store(&self, head: &Head, body: Pieces) {
        let mut headers = head.for_others().clone();
        if !headers.contains_key(CONTENT_LENGTH) && head.status != StatusCode::NO_CONTENT {
            headers.remove(TRANSFER_ENCODING);
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        let when = (head.received, head.date);
        let (terms, selecting) = (head.terms.clone(), head.selecting.clone());
        let entry = Entry::new(head.status, &headers, body, terms, selecting, when, self.spread());
        let store = &self.shared().store;
        store.insert(&self.key, &self.request, Arc::new(entry), self.begun, Instant::now());
    }

    /// A fraction of its own for every key.
    fn spread(&self) -> f64 {
        f64::from(self.key.hash as u32) / f64::from(u32::MAX)
    }

    fn flight_hash(&self, selecting: &Selecting) -> u64 {
        let method = if self.is_head { Method::HEAD } else { Method::GET };
        self.shared().keys.of_flight(&self.key, &method, selecting, 0).hash
    }

    fn rules(&self) -> &Route {
        self.local.snapshot.routes[self.route].cache.as_ref().expect("a fetch is of a route with a cache")
    }

    fn shared(&self) -> &Cache {
        &self.local.snapshot.cache
    }

    fn counts(&self) -> &Lookups {
        &self.local.cells(Some(self.route)).cache
    }
}

/// How long readers that lag behind may still hold up the others.
struct Patience {
    left: Duration,
    since: Option<Instant>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { left: Duration::from_secs(1), since: None }
    }
}

impl Patience {
    /// Nobody lags behind now; true if somebody did.
    fn rest(&mut self) -> bool {
        let since = self.since.take();
        self.left = self.left.saturating_sub(since.map_or(Duration::ZERO, |since| since.elapsed()));
        since.is_some()
    }

    /// What is left of it; `None`, once, when it has run out: then it begins anew, with a reader less.
    fn lose(&mut self, now: Instant) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        let left = self.left.checked_sub(now - since).filter(|left| !left.is_zero());
        if left.is_none() {
            *self = Self::default();
        }
        left
    }
}

/// The body did not come to its end, or nobody wants it.
struct Broken;

/// When a response's head came.
struct Received {
    sent: Instant,
    at: Instant,
    date: SystemTime,
}

impl Received {
    fn terms(&self, status: StatusCode, headers: &HeaderMap, control: &Control, route: &Route) -> Terms {
        Terms::of(status, headers, control, &route.rules, self.date, self.at - self.sent)
    }
}

/// Makes a request's fields ask for the whole response, or whether the stored one still holds.
fn make_conditional(headers: &mut HeaderMap, stored: Option<&Entry>) {
    for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE, RANGE, IF_RANGE] {
        headers.remove(name);
    }
    let Some(stored) = stored else { return };
    for (ours, theirs) in [(IF_NONE_MATCH, ETAG), (IF_MODIFIED_SINCE, LAST_MODIFIED)] {
        if let Some(value) = stored.headers.get(theirs) {
            headers.insert(ours, value.clone());
        }
    }
}

fn cause(failure: &Failure) -> Cause {
    match failure {
        Failure::Connect(_) => Cause::Unreachable,
        Failure::Shed(overload::Cause::Descriptors) => Cause::Descriptors,
        Failure::Shed(_) => Cause::Shed,
        Failure::Timeout(_) => Cause::Timeout,
        Failure::Unavailable(wait) => Cause::Unavailable(*wait),
        Failure::Drained => Cause::Drained,
        Failure::UpstreamFull => Cause::Full,
        Failure::BadRequest(_)
        | Failure::HeadTooLarge
        | Failure::UriTooLong
        | Failure::NotImplemented(_)
        | Failure::NoRoute
        | Failure::MethodNotAllowed(_)
        | Failure::Upstream(_)
        | Failure::Limited(_)
        | Failure::Crowded(_)
        | Failure::StoreAway
        | Failure::NotCached
        | Failure::TooManyWaiting => Cause::Invalid,
    }
}
