//! The judgement of a TCP segment, in its order: not ours → allow → deny → penalty → budget or cookie → shed →
//! pass.
//!
//! `packet` asks it about each segment. It knows neither headers nor hooks. Only connection requests are
//! limited; segments of connections are looked at while somebody is blocked, cookies are out, or a ceiling
//! is set.

use gateway_common::addr::Mask;
use gateway_common::limit::Budget;
use gateway_common::policy::{
    Charged, HAS_ALLOW, HAS_CEILING, HAS_DENY, Holder, MAY_SEND_COOKIES, Policy, Port, STRICT_FRAGMENTS,
    Source,
};
use gateway_common::pressure::{BLOCKING, COOKIES, PENALTIES, SHEDDING};
use gateway_common::standing::{BLOCKED, Class, SLOWED_BY};
use gateway_common::{Address, Family, Verdict};

use crate::maps::{self, Charge, Exempt, InForce};
use crate::packet::{Answer, Frame, Judge, Kind, Segment};

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
    // Whoever was not served lately has left no connection here that matters to it, and a flood's forged sources are not
    // looked for among the sockets.
    let may_have_socket = maps::class(&cut(request, &policy.client_mask), maps::now()) != Class::Unknown;
    match frame.answer(request, segment_bytes, may_have_socket) {
        Answer::Sent => Verdict::CookieSent,
        Answer::Impossible => Verdict::OverBudget,
        // What is left of the port's last connection would not take what comes back, but takes a request. It is charged
        // like a connection of the source's own, for whoever has none guesses at ports.
        Answer::Unwanted => {
            let own = Holder::new(holder(policy, request), policy.epoch, Charged::Connections);
            match maps::charge(&policy.budget, None, &own, maps::now()) {
                Charge::Granted | Charge::New => Verdict::Flooded,
                Charge::Refused => Verdict::OverBudget,
                Charge::Contended => Verdict::Contended,
            }
        }
    }
}

/// Whose budget a segment is charged to.
#[inline(always)]
fn holder(policy: &Policy, segment: &Segment) -> Address {
    cut(segment, &policy.source_mask)
}

#[inline(always)]
fn cut(segment: &Segment, mask: &Mask) -> Address {
    match segment.family {
        Family::Ipv6 => segment.source.masked(mask),
        Family::Ipv4 | Family::Other => segment.source,
    }
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
    let (now, attention) = (maps::now(), maps::attention());
    let mut slowed = None;
    if attention & PENALTIES != 0
        && let Some(penalty) = maps::penalty(cut(segment, &policy.client_mask), now)
    {
        if penalty.level() == BLOCKED {
            penalty.hit();
            return Verdict::Penalised;
        }
        slowed = Some(penalty);
    }
    let address = holder(policy, segment);
    if F::ANSWERS && policy.has(HAS_CEILING) {
        let holder = Holder::new(address, policy.epoch, Charged::Packets);
        match maps::charge(&policy.ceiling, Some(&policy.new_sources), &holder, now) {
            Charge::Granted | Charge::New => {}
            Charge::Refused => return Verdict::OverCeiling,
            Charge::Contended => return Verdict::Contended,
        }
    }
    let budget = if slowed.is_some() { policy.budget.slowed(SLOWED_BY) } else { policy.budget };
    // Of connections that are no claim: they have answered.
    let own = || Holder::new(address, policy.epoch, Charged::Connections);
    match segment.kind {
        Kind::Request => {}
        Kind::Ack if F::ANSWERS && attention & COOKIES != 0 && maps::takes_answers(now) => {
            if frame.is_of_connection(segment) {
                return Verdict::NotOurs;
            }
            if !frame.has_cookie(segment) {
                // The rest of what came with a cookie that was refused: the stack would reset it.
                return if maps::is_overdrawn(&own(), now) { Verdict::OverBudget } else { Verdict::NotOurs };
            }
            if lists & HAS_DENY != 0 && maps::denies(source) {
                return Verdict::Denied;
            }
            return returned(&budget, slowed, policy, &own(), now);
        }
        Kind::Ack | Kind::Other | Kind::Fragment => return Verdict::NotOurs,
    }
    let holder = Holder::new(address, policy.epoch, Charged::Requests);
    let charge = maps::charge(&budget, Some(&policy.new_sources), &holder, now);
    let could_answer = || F::ANSWERS && policy.has(MAY_SEND_COOKIES) && maps::can_arm(now);
    let wants_cookie = match charge {
        Charge::Granted => false,
        Charge::Contended => return Verdict::Contended,
        Charge::New => true,
        Charge::Refused if slowed.is_some() => return refused(slowed),
        Charge::Refused => {
            // The source is a claim: whoever forges that of a client we know must not lock it out. One that has had too
            // many connections of its own is none.
            if !could_answer()
                || maps::class(&cut(segment, &policy.client_mask), now) == Class::Unknown
                || maps::is_overdrawn(&own(), now)
            {
                return Verdict::OverBudget;
            }
            true
        }
    };
    if attention & SHEDDING != 0 && maps::sheds(&policy.shed_key, &cut(segment, &policy.client_mask), now) {
        return Verdict::Shed;
    }
    if !wants_cookie {
        Verdict::Pass
    } else if !could_answer() || !maps::may_answer(now) {
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

/// The answer to a cookie: its source is no claim any more, and is charged.
#[inline(always)]
fn returned(budget: &Budget, slowed: Option<InForce>, policy: &Policy, own: &Holder, now: u64) -> Verdict {
    match maps::charge(budget, None, own, now) {
        Charge::Granted | Charge::New => {
            maps::remember(Holder::new(own.address, policy.epoch, Charged::Requests), now);
            Verdict::CookieAccepted
        }
        // What it sends next brings the cookie again, so it waits rather than fails.
        Charge::Refused => refused(slowed),
        Charge::Contended => Verdict::Contended,
    }
}

/// Of a source that has used up its budget: it has a penalty to thank for that where there is one.
#[inline(always)]
fn refused(slowed: Option<InForce>) -> Verdict {
    let Some(penalty) = slowed else { return Verdict::OverBudget };
    penalty.hit();
    Verdict::Penalised
}
