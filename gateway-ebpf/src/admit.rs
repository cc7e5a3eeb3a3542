//! The judgement of a TCP segment, in its order: not ours → allow → deny → penalty → budget or cookie → shed →
//! pass.
//!
//! `packet` asks it about each segment. It knows neither headers nor hooks. Only connection requests are
//! limited; segments of connections are looked at while somebody is blocked, cookies are out, or a ceiling
//! is set.

use gateway_common::policy::{
    Charged, HAS_ALLOW, HAS_CEILING, HAS_DENY, Holder, MAY_SEND_COOKIES, Policy, Port, STRICT_FRAGMENTS,
    Source,
};
use gateway_common::pressure::{BLOCKING, COOKIES, MAY_ARM, PENALTIES, SHEDDING};
use gateway_common::standing::{BLOCKED, Class, SLOWED_BY};
use gateway_common::{Address, Family, Verdict};

use crate::maps::{self, Charge, Exempt};
use crate::packet::{Frame, Judge, Kind, Segment};

/// What one frame is judged by.
pub struct Court<'a, F> {
    pub frame: &'a F,
    pub slot: u32,
    pub policy: &'a Policy,
}

impl<F: Frame> Judge for Court<'_, F> {
    #[inline(always)]
    fn looks_closer(&self) -> bool {
        maps::attention() & (BLOCKING | COOKIES) != 0 || F::ANSWERS && self.policy.has(HAS_CEILING)
    }

    #[inline(always)]
    fn listens(&self, port: u16) -> Option<Port> {
        maps::port(self.slot, port)
    }

    #[inline(always)]
    fn judge(&self, segment: &Segment) -> Verdict {
        let Self { frame, slot, policy } = *self;
        let verdict = admit(frame, slot, policy, segment);
        let answers = F::ANSWERS && verdict == Verdict::CookieSent && !policy.monitors(verdict);
        if answers { answer(frame, policy, segment) } else { verdict }
    }
}

/// Turns a request into its answer; one that cannot be answered is beyond its budget.
#[inline(always)]
fn answer(frame: &impl Frame, policy: &Policy, request: &Segment) -> Verdict {
    let [ipv4, ipv6] = policy.segment_bytes;
    let segment_bytes = if request.family == Family::Ipv6 { ipv6 } else { ipv4 };
    if frame.answer(request, segment_bytes) { Verdict::CookieSent } else { Verdict::OverBudget }
}

/// Says what becomes of `segment` under the policy of `slot`.
#[inline(always)]
fn admit<F: Frame>(frame: &F, slot: u32, policy: &Policy, segment: &Segment) -> Verdict {
    let Some(listener) = maps::listener(slot, policy, segment) else { return Verdict::NotOurs };
    let lists = maps::lists(slot, policy, segment);
    let source = Source::new(slot, segment.family, segment.source);
    let exempt = if lists & HAS_ALLOW != 0 { maps::exempts(source) } else { Exempt::Not };
    if exempt == Exempt::Allowed {
        return exempted(segment.kind);
    }
    // No connection that exists is broken by a deny.
    let opens = matches!(segment.kind, Kind::Request | Kind::Fragment);
    if opens && lists & HAS_DENY != 0 && maps::denies(source) {
        return Verdict::Denied;
    }
    if exempt == Exempt::Trusted {
        return exempted(segment.kind);
    }
    if segment.kind == Kind::Fragment {
        return if policy.has(STRICT_FRAGMENTS) { Verdict::Fragment } else { Verdict::Malformed };
    }
    let cut = |mask| match segment.family {
        Family::Ipv6 => segment.source.masked(mask),
        Family::Ipv4 | Family::Other => segment.source,
    };
    let (now, attention) = (maps::now(), maps::attention());
    let mut slowed = None;
    if attention & PENALTIES != 0
        && let Some(penalty) = maps::penalty(cut(&policy.client_mask), now)
    {
        if penalty.level() == BLOCKED {
            penalty.hit();
            return Verdict::Penalised;
        }
        slowed = Some(penalty);
    }
    let address = cut(&policy.source_mask);
    if F::ANSWERS && policy.has(HAS_CEILING) {
        let holder = Holder::new(address, policy.epoch, Charged::Packets);
        match maps::charge(&policy.ceiling, Some(&policy.new_sources), &holder, now) {
            Charge::Granted | Charge::New => {}
            Charge::Refused => return Verdict::OverCeiling,
            Charge::Contended => return Verdict::Contended,
        }
    }
    match segment.kind {
        Kind::Request => {}
        Kind::Ack if F::ANSWERS && attention & COOKIES != 0 && maps::may_answer(now) => {
            return returned(frame, policy, segment, address, now);
        }
        Kind::Ack | Kind::Other | Kind::Fragment => return Verdict::NotOurs,
    }
    let budget = if slowed.is_some() { policy.budget.slowed(SLOWED_BY) } else { policy.budget };
    let holder = Holder::new(address, policy.epoch, Charged::Requests);
    let charge = maps::charge(&budget, Some(&policy.new_sources), &holder, now);
    let could_answer =
        F::ANSWERS && maps::with_cookies() && attention & MAY_ARM != 0 && policy.has(MAY_SEND_COOKIES);
    let wants_cookie = match charge {
        Charge::Granted => false,
        Charge::Contended => return Verdict::Contended,
        Charge::New => true,
        Charge::Refused => {
            if let Some(penalty) = slowed {
                penalty.hit();
                return Verdict::Penalised;
            }
            // The source is a claim: whoever forges that of a client we know must not lock it out. One that has had too
            // many connections of its own is none.
            let own = Holder::new(address, policy.epoch, Charged::Connections);
            if !could_answer
                || maps::class(&cut(&policy.client_mask), now) == Class::Unknown
                || maps::is_overdrawn(&own, now)
            {
                return Verdict::OverBudget;
            }
            true
        }
    };
    if attention & SHEDDING != 0 && maps::sheds(&policy.shed_key, &cut(&policy.client_mask), now) {
        return Verdict::Shed;
    }
    if !wants_cookie {
        Verdict::Pass
    } else if !could_answer || attention & COOKIES == 0 || !maps::may_answer(now) {
        // Userspace arms cookies when it sees these.
        Verdict::Flooded
    } else if maps::is_seed_due(listener, now) {
        Verdict::Seed
    } else {
        Verdict::CookieSent
    }
}

/// A segment that nothing but its being ours can be said about.
#[inline(always)]
fn exempted(kind: Kind) -> Verdict {
    match kind {
        Kind::Request => Verdict::Allowed,
        Kind::Ack | Kind::Other => Verdict::NotOurs,
        Kind::Fragment => Verdict::Malformed,
    }
}

/// A segment that may be the answer to a cookie: if it is, its source is no claim any more, and is charged.
#[inline(always)]
fn returned<F: Frame>(frame: &F, policy: &Policy, segment: &Segment, address: Address, now: u64) -> Verdict {
    if frame.is_of_connection(segment) || !frame.has_cookie(segment) {
        return Verdict::NotOurs;
    }
    let holder = Holder::new(address, policy.epoch, Charged::Connections);
    match maps::charge(&policy.budget, None, &holder, now) {
        Charge::Granted | Charge::New => {
            maps::remember(Holder::new(address, policy.epoch, Charged::Requests), now);
            Verdict::CookieAccepted
        }
        // What it sends next brings the cookie again, so it waits rather than fails.
        Charge::Refused => Verdict::OverBudget,
        Charge::Contended => Verdict::Contended,
    }
}
