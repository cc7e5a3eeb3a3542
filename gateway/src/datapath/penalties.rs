//! How a source that ignores its refusals, of requests or of connections, is dealt with: more and more firmly, and ever less once it is quiet.
//!
//! `sources` asks it about each suspect; the heartbeat writes what it says, and asks it what is over. Pure: it knows
//! neither maps nor clocks.

use std::net::IpAddr;

use gateway_common::maps::MAX_PENALTIES;
use gateway_common::pressure::{BLOCKING, PENALTIES};
use gateway_common::standing::{BLOCKED, Penalty, SLOWED};
use rustc_hash::FxHashMap;

use crate::config::Escalation;

const SECOND_NS: u64 = 1_000_000_000;
/// What a step costs the source, and for how long. The first is level 1, the others are level 2.
const STEPS: [(u32, u64); 7] = [
    (SLOWED, 10),
    (BLOCKED, 30),
    (BLOCKED, 60),
    (BLOCKED, 120),
    (BLOCKED, 240),
    (BLOCKED, 480),
    (BLOCKED, 600),
];
/// So long after a penalty its source is one step down.
const QUIET_NS: u64 = 60 * SECOND_NS;
/// A penalty that is younger has not been noticed yet, and leads to no harder one.
const NOTICED_NS: u64 = SECOND_NS;

#[derive(Default)]
pub struct Sentences {
    by_source: FxHashMap<IpAddr, Sentence>,
}

/// A source's last penalty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// Into `STEPS`.
    step: usize,
    pub since_ns: u64,
    pub until_ns: u64,
    /// Its entry has been taken out of the map.
    lifted: bool,
}

impl Sentence {
    pub fn level(&self) -> u32 {
        STEPS[self.step].0
    }

    /// Whether the source's packets are dropped.
    pub fn blocks(&self) -> bool {
        self.level() == BLOCKED
    }

    /// The step that the next penalty has; `None`: the source is as good as new.
    fn next(&self, now_ns: u64) -> Option<usize> {
        let quiet = usize::try_from(now_ns.saturating_sub(self.until_ns) / QUIET_NS).unwrap_or(usize::MAX);
        (self.step + 1).checked_sub(quiet).filter(|step| *step > 0).map(|step| step.min(STEPS.len() - 1))
    }
}

impl Sentences {
    /// Goes on with a penalty that somebody else has passed.
    pub fn take_up(&mut self, source: IpAddr, penalty: &Penalty) {
        let Penalty { since_ns, until_ns, level, .. } = *penalty;
        let seconds = until_ns.saturating_sub(since_ns) / SECOND_NS;
        let like = |step: &(u32, u64)| *step == (level, seconds);
        let step = STEPS.iter().position(like).unwrap_or(0);
        self.by_source.insert(source, Sentence { step, since_ns, until_ns, lifted: false });
    }

    /// What a suspect has earned; `None`: nothing that it has not already.
    pub fn pass(&mut self, source: IpAddr, escalation: Escalation, now_ns: u64) -> Option<Sentence> {
        let before = self.by_source.get(&source);
        let step = match escalation {
            Escalation::Off => return None,
            Escalation::Slow => 0,
            Escalation::Drop => before.and_then(|before| before.next(now_ns)).unwrap_or(0),
        };
        if let Some(before) = before {
            let is_young = now_ns < before.since_ns + NOTICED_NS;
            let is_no_harder = now_ns < before.until_ns && step <= before.step;
            if is_young || is_no_harder && STEPS[step].0 == BLOCKED {
                return None;
            }
        } else if self.by_source.len() >= MAX_PENALTIES {
            self.forget(now_ns);
            if self.by_source.len() >= MAX_PENALTIES {
                return None;
            }
        }
        let until_ns = now_ns + STEPS[step].1 * SECOND_NS;
        let sentence = Sentence { step, since_ns: now_ns, until_ns, lifted: false };
        self.by_source.insert(source, sentence);
        Some(sentence)
    }

    /// Ends by then what is harder than `escalation` has it.
    pub fn bound(&mut self, escalation: Escalation, end_ns: u64) {
        let most = match escalation {
            Escalation::Off => 0,
            Escalation::Slow => SLOWED,
            Escalation::Drop => return,
        };
        for sentence in self.by_source.values_mut().filter(|sentence| sentence.level() > most) {
            sentence.until_ns = sentence.until_ns.min(end_ns);
        }
    }

    /// Forgets all IPv6 sources; those whose entries are in the map.
    pub fn end_ipv6(&mut self) -> Vec<IpAddr> {
        let gone = self.by_source.extract_if(|source, _| source.is_ipv6());
        gone.filter(|(_, sentence)| !sentence.lifted).map(|(source, _)| source).collect()
    }

    /// Sources whose penalty is over; each is named once.
    pub fn over(&mut self, now_ns: u64) -> Vec<IpAddr> {
        let mut over = Vec::new();
        for (source, sentence) in &mut self.by_source {
            if sentence.until_ns <= now_ns && !std::mem::replace(&mut sentence.lifted, true) {
                over.push(*source);
            }
        }
        if !over.is_empty() {
            self.forget(now_ns);
        }
        over
    }

    /// Sources whose entries are in the map.
    pub fn kept(&self) -> impl Iterator<Item = IpAddr> {
        self.by_source.iter().filter(|(_, sentence)| !sentence.lifted).map(|(source, _)| *source)
    }

    /// What the kernel half has to look at.
    pub fn attention(&self, now_ns: u64) -> u64 {
        let in_force = self.by_source.values().filter(|sentence| now_ns < sentence.until_ns);
        in_force.fold(0, |flags, sentence| match sentence.level() {
            BLOCKED => flags | PENALTIES | BLOCKING,
            _ => flags | PENALTIES,
        })
    }

    /// Sources whose connections are to end.
    pub fn blocked(&self, now_ns: u64) -> impl Iterator<Item = IpAddr> {
        let blocked = self
            .by_source
            .iter()
            .filter(move |(_, sentence)| sentence.level() == BLOCKED && now_ns < sentence.until_ns);
        blocked.map(|(source, _)| *source)
    }

    /// Sources by the level of their penalty.
    pub fn by_level(&self, now_ns: u64) -> [u64; 2] {
        let mut counts = [0; 2];
        for sentence in self.by_source.values().filter(|sentence| now_ns < sentence.until_ns) {
            counts[usize::from(sentence.level() == BLOCKED)] += 1;
        }
        counts
    }

    fn forget(&mut self, now_ns: u64) {
        self.by_source.retain(|_, sentence| !sentence.lifted || sentence.next(now_ns).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = SECOND_NS;

    fn source(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    /// Suspected at these seconds: level and seconds of each penalty.
    fn penalties(escalation: Escalation, at: &[u64]) -> Vec<Option<(u32, u64)>> {
        let mut sentences = Sentences::default();
        let pass = |at: &u64| {
            sentences.over(at * S);
            let sentence = sentences.pass(source(1), escalation, at * S)?;
            Some((sentence.level(), (sentence.until_ns - sentence.since_ns) / S))
        };
        at.iter().map(pass).collect()
    }

    #[test]
    fn off_is_off_and_slow_never_blocks() {
        assert_eq!(penalties(Escalation::Off, &[1, 2, 3]), [None; 3]);
        let slowed = Some((SLOWED, 10));
        assert_eq!(penalties(Escalation::Slow, &[1, 3, 20, 21, 100]), [slowed; 5]);
    }

    #[test]
    fn it_doubles_on_relapse_up_to_ten_minutes() {
        let at = [1, 3, 34, 95, 216, 457, 938, 1_539, 2_140];
        let seconds = [10, 30, 60, 120, 240, 480, 600, 600, 600];
        let want: Vec<_> =
            seconds.iter().map(|seconds| Some((if *seconds == 10 { 1 } else { 2 }, *seconds))).collect();
        assert_eq!(penalties(Escalation::Drop, &at), want);
    }

    #[test]
    fn it_decays_by_a_step_for_each_quiet_minute() {
        let blocked = |seconds| Some((BLOCKED, seconds));
        for (quiet_s, next) in [
            (1, blocked(120)),
            (59, blocked(120)),
            (60, blocked(60)),
            (120, blocked(30)),
            (180, Some((SLOWED, 10))),
            (1_000_000, Some((SLOWED, 10))),
        ] {
            // Slowed, blocked for 30 s and for 60 s, until 94.
            let at = [1, 3, 34, 94 + quiet_s];
            assert_eq!(penalties(Escalation::Drop, &at)[3], next, "after {quiet_s} s");
        }
    }

    #[test]
    fn what_was_not_noticed_yet_is_not_made_harder() {
        let mut sentences = Sentences::default();
        assert_eq!(sentences.pass(source(1), Escalation::Drop, S).map(|one| one.level()), Some(SLOWED));
        assert_eq!(sentences.pass(source(1), Escalation::Drop, 2 * S - 1), None);
        assert_eq!(sentences.pass(source(1), Escalation::Drop, 2 * S).map(|one| one.level()), Some(BLOCKED));
    }

    #[test]
    fn each_is_lifted_once_and_forgotten_when_it_is_as_good_as_new() {
        let mut sentences = Sentences::default();
        sentences.pass(source(1), Escalation::Drop, S);
        sentences.pass(source(2), Escalation::Drop, 2 * S);
        assert_eq!((sentences.by_level(3 * S), sentences.attention(3 * S)), ([2, 0], PENALTIES));
        sentences.pass(source(2), Escalation::Drop, 4 * S);
        assert_eq!((sentences.by_level(5 * S), sentences.attention(5 * S)), ([1, 1], PENALTIES | BLOCKING));
        assert_eq!(sentences.blocked(5 * S).collect::<Vec<_>>(), [source(2)]);
        assert!(sentences.over(10 * S).is_empty());
        assert_eq!(sentences.over(11 * S), [source(1)]);
        assert_eq!(sentences.kept().collect::<Vec<_>>(), [source(2)]);
        assert!(sentences.over(12 * S).is_empty());
        assert_eq!(sentences.over(34 * S), [source(2)]);
        assert_eq!((sentences.by_level(34 * S), sentences.attention(34 * S)), ([0, 0], 0));
        sentences.forget(1_000 * S);
        assert_eq!(sentences.by_source.len(), 0);
    }

    #[test]
    fn a_softer_escalation_ends_what_is_harder() {
        for (escalation, by_level) in
            [(Escalation::Drop, [1, 1]), (Escalation::Slow, [1, 0]), (Escalation::Off, [0, 0])]
        {
            let mut sentences = Sentences::default();
            for (n, at) in [(1, 3 * S), (2, S), (2, 2 * S)] {
                sentences.pass(source(n), Escalation::Drop, at);
            }
            sentences.bound(escalation, 4 * S);
            assert_eq!(sentences.by_level(4 * S), by_level, "{escalation:?}");
            assert_eq!(
                sentences.over(4 * S).len() as u64,
                2 - by_level.iter().sum::<u64>(),
                "{escalation:?}"
            );
        }
    }

    #[test]
    fn those_of_ipv6_end_where_its_sources_are_cut_otherwise() {
        let mut sentences = Sentences::default();
        let six: IpAddr = "2001:db8:0:100::".parse().unwrap();
        for source in [six, source(1)] {
            sentences.pass(source, Escalation::Drop, S);
        }
        assert_eq!(sentences.end_ipv6(), [six]);
        assert_eq!(
            (sentences.by_level(2 * S), sentences.kept().collect::<Vec<_>>()),
            ([1, 0], vec![source(1)])
        );
        // What it had done before is nothing of the source that it is now.
        assert_eq!(sentences.pass(six, Escalation::Drop, 3 * S).map(|one| one.level()), Some(SLOWED));
    }

    #[test]
    fn a_penalty_of_another_gateway_goes_on() {
        let mut sentences = Sentences::default();
        let penalty = |level, since, until| Penalty {
            until_ns: until * S,
            since_ns: since * S,
            hits: 3,
            rule: 7,
            level,
            refused: 60,
            ignored: 50,
        };
        sentences.take_up(source(1), &penalty(BLOCKED, 10, 70));
        sentences.take_up(source(2), &penalty(SLOWED, 10, 20));
        assert_eq!(sentences.by_level(15 * S), [1, 1]);
        assert_eq!(sentences.over(20 * S), [source(2)]);
        assert_eq!(
            sentences.pass(source(1), Escalation::Drop, 71 * S).map(|one| one.until_ns),
            Some(191 * S)
        );
    }

    #[test]
    fn a_full_table_takes_no_more_until_some_are_forgotten() {
        let mut sentences = Sentences::default();
        for n in 0..MAX_PENALTIES as u32 {
            assert!(sentences.pass(source(n), Escalation::Drop, S).is_some());
        }
        let newcomer = source(u32::MAX);
        assert_eq!(sentences.pass(newcomer, Escalation::Drop, 2 * S), None);
        assert_eq!(sentences.over(11 * S).len(), MAX_PENALTIES);
        assert_eq!(sentences.pass(newcomer, Escalation::Drop, 12 * S), None, "they may relapse yet");
        assert!(sentences.pass(newcomer, Escalation::Drop, 71 * S).is_some());
    }
}
