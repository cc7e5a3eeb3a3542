//! Flights without a network: who leads, who follows, who is cut off.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Wake, Waker};
use std::time::Duration;

use super::*;
use crate::cache::coalesce::Part;
use crate::cache::policy::{Control, Rules};

struct Rig {
    flights: Arc<Flights>,
    fanouts: Vec<Rc<Fanout>>,
    now: Instant,
}

fn rig(workers: usize) -> Rig {
    let flights = Flights::new(workers);
    let fanouts = (0..workers).map(|worker| Fanout::new(worker, flights.inbox(worker).clone())).collect();
    Rig { flights, fanouts, now: Instant::now() }
}

fn key(text: &str) -> Key {
    Key { hash: 7, bytes: text.as_bytes().to_vec() }
}

const MAX_BYTES: usize = 1 << 20;

impl Rig {
    fn join(&self, text: &str, worker: usize) -> Part {
        self.flights.join(key(text), &self.fanouts[worker], MAX_BYTES, self.now, || false)
    }

    #[track_caller]
    fn lead(&self, text: &str) -> (Feed, Reader) {
        match self.join(text, 0) {
            Part::Lead(feed, reader) => (feed, reader),
            Part::Follow(_) | Part::Alone | Part::TooLate | Part::Full => panic!("it does not lead"),
        }
    }

    #[track_caller]
    fn follow(&self, text: &str, worker: usize) -> Reader {
        match self.join(text, worker) {
            Part::Follow(reader) => reader,
            Part::Lead(..) | Part::Alone | Part::TooLate | Part::Full => panic!("it does not follow"),
        }
    }
}

fn head(sharing: Sharing) -> Answer {
    let headers = HeaderMap::new();
    let date = SystemTime::now();
    let terms =
        Terms::of(StatusCode::OK, &headers, &Control::of(&headers), &Rules::default(), date, Duration::ZERO);
    Answer::Head(Arc::new(Head {
        status: StatusCode::OK,
        headers,
        others: None,
        length: None,
        terms,
        selecting: Selecting::default(),
        received: Instant::now(),
        date,
        sharing,
        stored: true,
    }))
}

/// What a reader is told, in a word.
fn turn(reader: &mut Reader) -> &'static str {
    let mut cx = Context::from_waker(Waker::noop());
    match reader.poll_turn(&mut cx, &HeaderMap::new()) {
        Poll::Pending => "waits",
        Poll::Ready(Turn::Lead(feed)) => {
            // Kept alive: dropping it would be a failure of its own.
            std::mem::forget(feed);
            "leads"
        }
        Poll::Ready(Turn::Interim(_)) => "interim",
        Poll::Ready(Turn::Answer(Answer::Head(_))) => "head",
        Poll::Ready(Turn::Answer(Answer::Validated { .. })) => "validated",
        Poll::Ready(Turn::Answer(Answer::Alone)) => "alone",
        Poll::Ready(Turn::Answer(Answer::OtherVariant(_))) => "varies",
        Poll::Ready(Turn::Answer(Answer::Failed(_))) => "failed",
    }
}

fn bytes(reader: &mut Reader) -> String {
    let mut cx = Context::from_waker(Waker::noop());
    let mut all = String::new();
    loop {
        match reader.poll_piece(&mut cx) {
            Poll::Ready(Piece::Data(bytes)) => all.push_str(std::str::from_utf8(&bytes).unwrap()),
            Poll::Ready(Piece::Trailers(_)) => all.push('+'),
            Poll::Ready(Piece::End) => return all + ".",
            Poll::Ready(Piece::Broken) => return all + "!",
            Poll::Pending => return all,
        }
    }
}

#[test]
fn everybody_reads_at_a_pace_of_their_own() {
    let rig = rig(2);
    let (feed, mut leader) = rig.lead("x");
    let mut follower = rig.follow("x", 1);
    assert_eq!((turn(&mut leader), turn(&mut follower)), ("waits", "waits"));
    feed.answer(head(Sharing::Everybody), true);
    assert!(feed.push(Bytes::from("ab")));
    assert_eq!((turn(&mut leader), bytes(&mut leader)), ("head", "ab".to_owned()));
    feed.push(Bytes::from("cd"));
    let mut late = rig.follow("x", 0);
    assert_eq!((turn(&mut late), bytes(&mut late)), ("head", "abcd".to_owned()));
    assert_eq!((turn(&mut follower), bytes(&mut follower)), ("head", "abcd".to_owned()));
    assert_eq!(rig.flights.waiters(), 3);
    assert_eq!(feed.pieces().map(|pieces| pieces.len()), Some(4));
    feed.close();
    assert!(matches!(rig.join("x", 0), Part::Lead(..)), "it is closed");
    feed.end(Some(HeaderMap::new()));
    assert_eq!((bytes(&mut leader), bytes(&mut late)), ("cd+.".to_owned(), "+.".to_owned()));
}

#[test]
fn what_is_not_for_everybody_is_the_leader_s() {
    let rig = rig(1);
    let (feed, mut leader) = rig.lead("x");
    let mut follower = rig.follow("x", 0);
    feed.answer(head(Sharing::Nobody), false);
    assert_eq!((turn(&mut leader), turn(&mut follower)), ("head", "alone"));
    rig.flights.mark_unshared(7, rig.now);
    drop(feed);
    assert!(matches!(rig.join("x", 0), Part::Alone), "for a while nobody waits for this key");
    let later = rig.now + crate::cache::coalesce::UNSHARED_FOR;
    let joined = rig.flights.join(key("x"), &rig.fanouts[0], MAX_BYTES, later, || false);
    assert!(matches!(joined, Part::Lead(..)));
    drop(joined);
    rig.flights.unmark(7);
    assert!(matches!(rig.join("x", 0), Part::Lead(..)));
}

#[test]
fn interim_responses_are_for_who_leads() {
    let rig = rig(2);
    let (mut feed, mut leader) = rig.lead("x");
    let mut follower = rig.follow("x", 1);
    feed.interim(b"1");
    feed.interim(b"2");
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Turn::Interim(heads)) = leader.poll_turn(&mut cx, &HeaderMap::new()) else {
        panic!("they come before the answer");
    };
    assert_eq!(heads, b"12");
    assert_eq!((turn(&mut leader), turn(&mut follower)), ("waits", "waits"));
    feed.interim(b"3");
    feed.part();
    feed.answer(head(Sharing::Failure { allowed: true }), true);
    assert_eq!((turn(&mut leader), turn(&mut follower)), ("head", "leads"));
    let (feed, leader) = rig.lead("y");
    let mut follower = rig.follow("y", 0);
    drop(leader);
    feed.interim(b"1");
    assert_eq!(turn(&mut follower), "waits");
}

#[test]
fn a_failure_elects_one_and_a_second_one_is_everybody_s() {
    let rig = rig(2);
    let (feed, mut leader) = rig.lead("x");
    let mut followers = [rig.follow("x", 0), rig.follow("x", 1), rig.follow("x", 1)];
    feed.fail(Cause::Unreachable, true);
    assert_eq!(turn(&mut leader), "failed");
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Turn::Lead(feed)) = followers[1].poll_turn(&mut cx, &HeaderMap::new()) else {
        panic!("the first to look leads");
    };
    assert_eq!(followers.each_mut().map(turn), ["waits", "waits", "waits"]);
    let mut newcomer = rig.follow("x", 0);
    feed.fail(Cause::Unreachable, true);
    assert_eq!(followers.each_mut().map(turn), ["failed", "failed", "failed"]);
    assert_eq!(turn(&mut newcomer), "failed");
    assert!(matches!(rig.join("x", 0), Part::Lead(..)), "and then it begins anew");
}

#[test]
fn a_worker_that_ends_leaves_its_fetch_to_others() {
    let rig = rig(2);
    let (feed, leader) = rig.lead("x");
    let mut follower = rig.follow("x", 1);
    drop((feed, leader));
    assert_eq!(turn(&mut follower), "leads");
}

#[test]
fn a_leader_without_followers_fails_at_once() {
    let rig = rig(1);
    let (feed, mut leader) = rig.lead("x");
    feed.fail(Cause::Timeout, true);
    assert_eq!(turn(&mut leader), "failed");
}

#[test]
fn a_body_that_breaks_off_breaks_for_all() {
    let rig = rig(1);
    let (feed, mut leader) = rig.lead("x");
    let mut follower = rig.follow("x", 0);
    feed.answer(head(Sharing::Everybody), true);
    feed.push(Bytes::from("ab"));
    drop(feed);
    assert_eq!((bytes(&mut leader), bytes(&mut follower)), ("ab!".to_owned(), "ab!".to_owned()));
}

#[test]
fn a_failing_answer_is_the_first_leader_s_and_then_everybody_s() {
    let rig = rig(1);
    let (mut feed, mut leader) = rig.lead("x");
    let mut follower = rig.follow("x", 0);
    feed.part();
    feed.answer(head(Sharing::Failure { allowed: true }), false);
    feed.push(Bytes::from("first"));
    feed.end(None);
    assert_eq!((turn(&mut leader), bytes(&mut leader)), ("head", "first.".to_owned()));
    let mut other = rig.follow("x", 0);
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Turn::Lead(mut feed)) = follower.poll_turn(&mut cx, &HeaderMap::new()) else {
        panic!("it leads now");
    };
    feed.part();
    feed.answer(head(Sharing::Failure { allowed: true }), false);
    assert_eq!((turn(&mut follower), turn(&mut other)), ("head", "head"));
}

#[test]
fn so_many_follow_and_no_more() {
    let rig = rig(1);
    let (_feed, leader) = rig.lead("x");
    let followers: Vec<Reader> = (1..MAX_READERS).map(|_| rig.follow("x", 0)).collect();
    assert!(matches!(rig.join("x", 0), Part::Full));
    drop((leader, followers));
    assert!(matches!(rig.join("x", 0), Part::Follow(_)));
}

#[test]
fn an_answer_that_came_meanwhile_is_looked_for_again() {
    let rig = rig(1);
    let joined = rig.flights.join(key("x"), &rig.fanouts[0], MAX_BYTES, rig.now, || true);
    assert!(matches!(joined, Part::TooLate));
}

/// Past the bytes an entry may have, memory is bounded by the fastest reader and a stretch behind it.
#[test]
fn who_lags_behind_too_far_is_cut_off() {
    let rig = rig(1);
    let (feed, mut fast) = rig.lead("x");
    let mut slow = rig.follow("x", 0);
    feed.answer(head(Sharing::Everybody), true);
    let piece = Bytes::from("y".repeat(64 << 10));
    let cx = Context::from_waker(Waker::noop());
    let mut pushed = 0;
    while feed.room(&cx) == Room::Free {
        assert!(feed.push(piece.clone()));
        pushed += piece.len();
        assert!(pushed < 2 * MAX_BYTES, "nobody reads, and it goes on");
    }
    assert_eq!(feed.room(&cx), Room::Fastest);
    assert!(feed.pieces().is_none());
    assert_eq!(bytes(&mut fast).len(), pushed);
    assert_eq!(feed.room(&cx), Room::Laggards);
    feed.cut_off();
    assert_eq!(feed.room(&cx), Room::Free);
    assert_eq!(bytes(&mut slow), "!");
    drop(slow);
    while pushed < 5 * MAX_BYTES {
        feed.push(piece.clone());
        pushed += piece.len();
        bytes(&mut fast);
        assert!(feed.flight.lock().held_bytes <= MAX_BYTES + piece.len());
    }
    drop(fast);
    assert!(!feed.push(piece), "nobody is left who wants it");
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// News reach a worker once, and its readers from there; a reader polled twice stands there once.
#[test]
fn a_worker_wakes_its_own() {
    let rig = rig(2);
    let (feed, _leader) = rig.lead("x");
    let mut followers: Vec<Reader> = (0..100).map(|_| rig.follow("x", 1)).collect();
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    let mut cx = Context::from_waker(&waker);
    for follower in &mut followers {
        assert!(follower.poll_turn(&mut cx, &HeaderMap::new()).is_pending());
        assert!(follower.poll_turn(&mut cx, &HeaderMap::new()).is_pending());
    }
    feed.answer(head(Sharing::Everybody), true);
    assert_eq!(count.0.load(Relaxed), 0, "not from the feed's thread");
    let mut run = Box::pin(rig.fanouts[1].run());
    assert!(run.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(count.0.load(Relaxed), 100);
}
