//! One fetch under way and those who read it.
//!
//! The fetch writes through a [`Feed`]: a head, pieces of a body, an end, or a failure. Each
//! [`Reader`] goes at its own pace. A body that may be kept is held whole, up to the bytes an entry may
//! have. Beyond that a piece is let go when every reader has it; the feed waits for the fastest reader,
//! and for a short while for one that is as many bytes behind that; then it is cut off.
//!
//! When the first fetch fails, the reader whose request it was takes the failure, and one of the others
//! leads once more; the failure of that is everybody's.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::coalesce::Flights;
use super::entry::{Entry, Pieces};
use super::fanout::Fanout;
use super::key::Key;
use super::policy::Terms;
use super::select::{Selecting, Selector};

/// How far a feed runs ahead of its fastest reader once the body is not to be kept.
const AHEAD_BYTES: usize = 256 * 1024;
/// Readers of one flight; more are refused.
pub const MAX_READERS: usize = 16_384;

/// The head of a response that is being fetched, as it goes downstream.
pub struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// What others get, where that differs: some fields are for the first client alone.
    pub others: Option<HeaderMap>,
    /// Of the body, where it is stated.
    pub length: Option<u64>,
    pub terms: Terms,
    pub selecting: Selecting,
    pub received: Instant,
    pub date: SystemTime,
    pub sharing: Sharing,
    /// It is being stored.
    pub stored: bool,
}

impl Head {
    pub fn for_others(&self) -> &HeaderMap {
        self.others.as_ref().unwrap_or(&self.headers)
    }
}

/// Who may have a response besides the one whose request fetched it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    Everybody,
    /// It says that the upstream fails. Of the first fetch, the others do not get to see it; of the
    /// second they take it, if they may.
    Failure {
        allowed: bool,
    },
    Nobody,
}

/// Why a fetch brought no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No connection to the upstream.
    Unreachable,
    /// The upstream gave no valid response.
    Invalid,
    Timeout,
    /// The upstream answered, with a status that says it fails.
    Status,
    /// No endpoint may be asked for so long.
    Unavailable(Duration),
    /// Every endpoint is drained.
    Drained,
    /// Too many wait for a connection to the upstream.
    Full,
    /// Its worker ended.
    Abandoned,
    /// The upstream had no place for it.
    Shed,
    /// The gateway had no descriptor for it.
    Descriptors,
}

/// What a reader is given.
#[derive(Clone)]
pub enum Answer {
    /// The response as it comes, from this reader's [`Reader::poll_piece`].
    Head(Arc<Head>),
    /// One that is stored, of which the upstream said that it still holds.
    Validated {
        entry: Arc<Entry>,
        sharing: Sharing,
        /// With its new terms.
        stored: bool,
    },
    /// It is not for this reader: ask alone.
    Alone,
    /// It is for requests with other values of these: ask again, under a key that has them.
    OtherVariant(Arc<[Selector]>),
    Failed(Cause),
}

pub struct Flight {
    state: Mutex<State>,
    flights: Arc<Flights>,
    /// `None`: nobody can join.
    pub(super) key: Option<Key>,
    /// Bytes a body may have that is to be kept.
    max_bytes: usize,
}

struct State {
    /// What the upstream said before its answer, and the leader has not been given yet.
    interim: Vec<u8>,
    answer: Option<Answer>,
    pieces: VecDeque<Held>,
    /// Index of the first piece held.
    first: usize,
    /// Readers that have every piece there is.
    at_end: usize,
    held_bytes: usize,
    /// Of them, those that the fastest reader has not taken yet.
    ahead_bytes: usize,
    /// Index of the piece that the fastest reader takes next.
    furthest: usize,
    total_bytes: usize,
    /// The whole body is held.
    keep: bool,
    end: Option<End>,
    readers: usize,
    /// One of the readers is the one whose request was sent.
    leader: bool,
    /// The fetch under way is the second one.
    second: bool,
    /// The first fetch has failed, and nobody has taken the lead yet.
    vacant: bool,
    /// Where the leader of the first fetch reads on.
    parted: Option<Arc<Flight>>,
    /// By worker: somebody waits there for news.
    waiting: Vec<bool>,
    feed: Option<Waker>,
}

struct Held {
    bytes: Bytes,
    /// Readers that take this one next.
    readers: usize,
}

#[derive(Clone)]
enum End {
    Complete(Option<Box<HeaderMap>>),
    Broken,
}

/// The writing end, and the flight's life: dropped before an end, it leaves a failure behind.
pub struct Feed {
    flight: Arc<Flight>,
}

/// One request's reading end.
pub struct Reader {
    flight: Arc<Flight>,
    fanout: Rc<Fanout>,
    next: usize,
    leads: bool,
    told_trailers: bool,
    registered: Option<u64>,
}

/// What a reader that waits for an answer is given.
pub enum Turn {
    Answer(Answer),
    /// Heads of interim responses to its own request; the answer is still to come.
    Interim(Vec<u8>),
    /// Its own request is to be sent: the feed is for what comes of it.
    Lead(Feed),
}

/// Why nobody can read along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// The beginning is not held any more.
    TooLate,
    /// There are as many readers as there may be.
    Full,
}

/// Whether the next piece may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Free,
    /// Not before the fastest reader has taken one.
    Fastest,
    /// Not before those who are far behind it have, unless they are cut off.
    Laggards,
}

/// A piece of a body, as a reader gets it.
pub enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// The upstream failed, or this reader was too slow.
    Broken,
}

impl Flight {
    pub fn new(flights: Arc<Flights>, key: Option<Key>, max_bytes: usize) -> Arc<Self> {
        let state = State {
            interim: Vec::new(),
            answer: None,
            pieces: VecDeque::new(),
            first: 0,
            at_end: 0,
            held_bytes: 0,
            ahead_bytes: 0,
            furthest: 0,
            total_bytes: 0,
            keep: true,
            end: None,
            readers: 0,
            leader: false,
            second: false,
            vacant: false,
            parted: None,
            waiting: vec![false; flights.workers()],
            feed: None,
        };
        Arc::new(Self { state: Mutex::new(state), flights, key, max_bytes })
    }

    /// The first reader, and the feed its request is to fill.
    pub fn begin(self: &Arc<Self>, fanout: &Rc<Fanout>) -> (Feed, Reader) {
        let mut state = self.lock();
        (state.readers, state.at_end, state.leader) = (1, 1, true);
        (Feed { flight: self.clone() }, self.reader(fanout, true))
    }

    /// One more reader.
    pub fn follow(self: &Arc<Self>, fanout: &Rc<Fanout>) -> Result<Reader, NoRoom> {
        let mut state = self.lock();
        if state.first > 0 {
            return Err(NoRoom::TooLate);
        }
        if state.readers >= MAX_READERS {
            return Err(NoRoom::Full);
        }
        state.readers += 1;
        *state.readers_at(0) += 1;
        Ok(self.reader(fanout, false))
    }

    pub fn readers(&self) -> usize {
        self.lock().readers
    }

    fn reader(self: &Arc<Self>, fanout: &Rc<Fanout>, leads: bool) -> Reader {
        let (flight, fanout) = (self.clone(), fanout.clone());
        Reader { flight, fanout, next: 0, leads, told_trailers: false, registered: None }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells every worker that somebody waits on.
    fn tell(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let nobody = vec![false; state.waiting.len()];
        let waiting = std::mem::replace(&mut state.waiting, nobody);
        drop(state);
        for (worker, _) in waiting.iter().enumerate().filter(|(_, waits)| **waits) {
            self.flights.inbox(worker).tell(self.clone());
        }
    }
}

impl Feed {
    /// Heads of interim responses (RFC 9110 §15.2). They are for the one whose request was sent, if he is still there.
    pub fn interim(&self, heads: &[u8]) {
        let mut state = self.flight.lock();
        if state.leader {
            state.interim.extend_from_slice(heads);
            self.flight.tell(state);
        }
    }

    /// The answer for everybody; with a head, pieces and an end follow. `keep`: the body is to be held whole.
    pub fn answer(&self, answer: Answer, keep: bool) {
        let mut state = self.flight.lock();
        state.keep = keep;
        if !matches!(answer, Answer::Head(_)) {
            state.end = Some(End::Complete(None));
        }
        state.answer = Some(answer);
        self.flight.tell(state);
    }

    /// Hands a piece to the readers; false: nobody wants it any more.
    pub fn push(&self, piece: Bytes) -> bool {
        if piece.is_empty() {
            return true;
        }
        let mut state = self.flight.lock();
        state.total_bytes += piece.len();
        state.held_bytes += piece.len();
        state.ahead_bytes += piece.len();
        state.keep &= state.total_bytes <= self.flight.max_bytes;
        let readers = std::mem::take(&mut state.at_end);
        state.pieces.push_back(Held { bytes: piece, readers });
        state.trim();
        let wanted = state.keep || state.readers > 0;
        self.flight.tell(state);
        wanted
    }

    /// Whether the next piece may come. While it may not, the task is woken when a reader has taken one.
    pub fn room(&self, cx: &Context<'_>) -> Room {
        let mut state = self.flight.lock();
        let room = if state.keep || state.readers == 0 {
            Room::Free
        } else if state.ahead_bytes >= AHEAD_BYTES {
            Room::Fastest
        } else if state.held_bytes - state.ahead_bytes > self.flight.max_bytes {
            Room::Laggards
        } else {
            Room::Free
        };
        if room != Room::Free {
            state.feed = Some(cx.waker().clone());
        }
        room
    }

    /// Cuts off who is too far behind the fastest reader.
    pub fn cut_off(&self) {
        let mut state = self.flight.lock();
        while state.held_bytes - state.ahead_bytes > self.flight.max_bytes && state.first < state.furthest {
            state.let_go();
        }
        state.trim();
        self.flight.tell(state);
    }

    /// Nobody joins from here on.
    pub fn close(&self) {
        self.flight.flights.close(&self.flight);
    }

    /// The flight's key, if others can join it.
    pub fn key(&self) -> Option<&Key> {
        self.flight.key.as_ref()
    }

    /// Leaves those who follow to one of their own, if they have not been left before: what this feed
    /// is given from here on is the leader's alone.
    pub fn part(&mut self) {
        let mut state = self.flight.lock();
        let followers = state.readers - usize::from(state.leader);
        if state.second || followers == 0 || state.answer.is_some() {
            return;
        }
        (state.second, state.vacant) = (true, true);
        let own = Flight::new(self.flight.flights.clone(), None, self.flight.max_bytes);
        if std::mem::take(&mut state.leader) {
            let mut fresh = own.lock();
            (fresh.readers, fresh.at_end, fresh.leader, fresh.second) = (1, 1, true, true);
            drop(fresh);
            state.parted = Some(own.clone());
        }
        self.flight.tell(state);
        self.flight = own;
    }

    /// Whether the whole body is still held.
    pub fn keeps(&self) -> bool {
        self.flight.lock().keep
    }

    /// The body, if it is whole and complete but for its end.
    pub fn pieces(&self) -> Option<Pieces> {
        let state = self.flight.lock();
        let whole = state.keep && state.first == 0;
        whole.then(|| Pieces::new(state.pieces.iter().map(|held| held.bytes.clone())))
    }

    /// The body is complete.
    pub fn end(&self, trailers: Option<HeaderMap>) {
        self.finish(End::Complete(trailers.map(Box::new)));
    }

    /// The body broke off.
    pub fn broken(&self) {
        self.finish(End::Broken);
    }

    /// No response came. `again`: the others may try once more.
    pub fn fail(mut self, cause: Cause, again: bool) {
        if again {
            self.part();
        }
        self.close();
        self.answer(Answer::Failed(cause), false);
    }

    fn finish(&self, end: End) {
        let mut state = self.flight.lock();
        state.end = Some(end);
        self.flight.tell(state);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if self.flight.lock().end.is_some() {
            return;
        }
        self.part();
        // Before its readers are sent away: they must not find this flight again.
        self.close();
        let mut state = self.flight.lock();
        state.answer.get_or_insert(Answer::Failed(Cause::Abandoned));
        state.end = Some(End::Broken);
        self.flight.tell(state);
    }
}

impl State {
    /// The count of those whose next piece has this index.
    fn readers_at(&mut self, index: usize) -> &mut usize {
        match self.pieces.get_mut(index - self.first) {
            Some(held) => &mut held.readers,
            None => &mut self.at_end,
        }
    }

    /// Lets go of what everybody has.
    fn trim(&mut self) {
        while !self.keep
            && self.first < self.furthest
            && self.pieces.front().is_some_and(|held| held.readers == 0)
        {
            self.let_go();
        }
    }

    fn let_go(&mut self) {
        if let Some(held) = self.pieces.pop_front() {
            self.first += 1;
            self.held_bytes -= held.bytes.len();
        }
    }
}

impl Reader {
    /// Whether its request is the one that was sent.
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// The answer, as far as it is this reader's; `request` is looked at where the answer varies.
    pub fn poll_turn(&mut self, cx: &mut Context<'_>, request: &HeaderMap) -> Poll<Turn> {
        let mut state = self.flight.lock();
        if self.leads
            && let Some(own) = state.parted.take()
        {
            state.readers -= 1;
            state.at_end -= 1;
            drop(state);
            self.flight = own;
            return self.poll_turn(cx, request);
        }
        if std::mem::take(&mut state.vacant) {
            (state.leader, self.leads) = (true, true);
            drop(state);
            return Poll::Ready(Turn::Lead(Feed { flight: self.flight.clone() }));
        }
        if self.leads && !state.interim.is_empty() {
            return Poll::Ready(Turn::Interim(std::mem::take(&mut state.interim)));
        }
        let Some(answer) = state.answer.clone() else {
            state.waiting[self.fanout.worker] = true;
            drop(state);
            self.fanout.register(&self.flight, &mut self.registered, cx.waker());
            return Poll::Pending;
        };
        drop(state);
        Poll::Ready(Turn::Answer(if self.leads { answer } else { for_follower(answer, request) }))
    }

    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        let mut state = self.flight.lock();
        if self.next < state.first {
            return Poll::Ready(Piece::Broken);
        }
        let place = self.next - state.first;
        if let Some(held) = state.pieces.get_mut(place) {
            let piece = held.bytes.clone();
            held.readers -= 1;
            self.next += 1;
            *state.readers_at(self.next) += 1;
            if self.next > state.furthest {
                state.furthest = self.next;
                state.ahead_bytes -= piece.len();
            }
            state.trim();
            let feed = state.feed.take();
            drop(state);
            feed.into_iter().for_each(Waker::wake);
            return Poll::Ready(Piece::Data(piece));
        }
        match state.end.clone() {
            Some(End::Complete(None)) => Poll::Ready(Piece::End),
            // Behind the trailers there is nothing but the end.
            Some(End::Complete(Some(trailers))) => {
                let told = std::mem::replace(&mut self.told_trailers, true);
                Poll::Ready(if told { Piece::End } else { Piece::Trailers(*trailers) })
            }
            Some(End::Broken) => Poll::Ready(Piece::Broken),
            None => {
                state.waiting[self.fanout.worker] = true;
                drop(state);
                self.fanout.register(&self.flight, &mut self.registered, cx.waker());
                Poll::Pending
            }
        }
    }
}

fn for_follower(answer: Answer, request: &HeaderMap) -> Answer {
    let (selecting, sharing) = match &answer {
        Answer::Head(head) => (&head.selecting, head.sharing),
        Answer::Validated { entry, sharing, .. } => (&entry.selecting, *sharing),
        Answer::Alone | Answer::OtherVariant(_) | Answer::Failed(_) => return answer,
    };
    match sharing {
        Sharing::Nobody => Answer::Alone,
        Sharing::Failure { allowed: false } => Answer::Failed(Cause::Status),
        Sharing::Everybody | Sharing::Failure { allowed: true } if !selecting.matches(request) => {
            Answer::OtherVariant(selecting.selectors().clone())
        }
        Sharing::Everybody | Sharing::Failure { allowed: true } => answer,
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.flight.lock();
        state.readers -= 1;
        // Who has been cut off is counted nowhere any more.
        if self.next >= state.first {
            *state.readers_at(self.next) -= 1;
            state.trim();
        }
        let parted = if self.leads {
            state.leader = false;
            state.parted.take()
        } else {
            None
        };
        let forsaken = state.vacant && state.readers == 0;
        // A feed that waits for readers must see that there is none.
        let feed = state.feed.take();
        drop(state);
        feed.into_iter().for_each(Waker::wake);
        if let Some(own) = parted {
            let mut state = own.lock();
            (state.readers, state.at_end, state.leader) = (0, 0, false);
        }
        if forsaken {
            self.flight.flights.close(&self.flight);
        }
    }
}

#[cfg(test)]
#[path = "flight_tests.rs"]
mod tests;
