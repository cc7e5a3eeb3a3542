//! Verdicts: the one table of what the kernel half can say about a packet.
//!
//! A row gives a verdict's name (metric label, log name, test column and word of `kernel.monitor` at once),
//! its action and its meaning; the discriminant is its place in the counters.

/// What was found out about one packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    NotOurs = 0,
    Allowed = 1,
    Denied = 2,
    OverBudget = 3,
    Malformed = 4,
    Pass = 5,
    Penalised = 6,
    CookieSent = 7,
    CookieAccepted = 8,
    Seed = 9,
    Flooded = 10,
    Shed = 11,
    Fragment = 12,
    LaterFragment = 13,
    OverCeiling = 14,
    Contended = 15,
}

/// What happens to the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    Drop,
    /// It goes back where it came from, as the answer to itself.
    Answer,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub name: &'static str,
    pub action: Action,
    pub meaning: &'static str,
}

impl Verdict {
    pub const ALL: [Self; 16] = [
        Self::NotOurs,
        Self::Allowed,
        Self::Denied,
        Self::OverBudget,
        Self::Malformed,
        Self::Pass,
        Self::Penalised,
        Self::CookieSent,
        Self::CookieAccepted,
        Self::Seed,
        Self::Flooded,
        Self::Shed,
        Self::Fragment,
        Self::LaterFragment,
        Self::OverCeiling,
        Self::Contended,
    ];

    /// The verdict's line of the table.
    #[inline(always)]
    pub const fn row(self) -> Row {
        use Action::{Answer, Drop, Pass};
        let (name, action, meaning) = match self {
            Self::NotOurs => ("not_ours", Pass, "no connection request to one of our listeners"),
            Self::Allowed => ("allowed", Pass, "a connection request from an exempt network"),
            Self::Denied => ("denied", Drop, "a connection request from a denied network"),
            Self::OverBudget => ("over_budget", Drop, "a connection request beyond its source's budget"),
            Self::Malformed => ("malformed", Pass, "cut short or inconsistent; the stack decides"),
            Self::Pass => ("pass", Pass, "a connection request within its source's budget"),
            Self::Penalised => ("penalised", Drop, "from a source that ignored its refusals"),
            Self::CookieSent => ("cookie_sent", Answer, "a connection request answered with a SYN cookie"),
            Self::CookieAccepted => {
                ("cookie_accepted", Pass, "the answer to a SYN cookie, and the right one")
            }
            Self::Seed => ("seed", Pass, "a connection request the stack answers, so that it takes cookies"),
            Self::Flooded => {
                ("flooded", Pass, "beyond a budget, and no cookie could be sent; the stack decides")
            }
            Self::Shed => ("shed", Drop, "a connection request the gateway has no capacity for"),
            Self::Fragment => ("fragment", Drop, "a fragment to us that hides or overwrites TCP flags"),
            Self::LaterFragment => ("later_fragment", Pass, "a fragment behind the TCP header"),
            Self::OverCeiling => ("over_ceiling", Drop, "a packet beyond its source's ceiling"),
            Self::Contended => ("contended", Drop, "its bucket was lost to other CPUs four times in a row"),
        };
        Row { name, action, meaning }
    }

    /// The verdict's bit in a set of verdicts.
    #[inline(always)]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// What the verdict does to its packet. Those in the set `monitored` are only counted.
    #[inline(always)]
    pub const fn action(self, monitored: u32) -> Action {
        if monitored & self.bit() == 0 { self.row().action } else { Action::Pass }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_has_its_own_place_and_name() {
        for (place, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict as usize, place);
            let namesakes = Verdict::ALL.into_iter().filter(|other| other.row().name == verdict.row().name);
            assert_eq!(namesakes.count(), 1, "{verdict:?}");
        }
    }

    #[test]
    fn a_monitor_drops_nothing_of_what_it_watches() {
        for watched in Verdict::ALL {
            assert!(Verdict::ALL.iter().all(|verdict| verdict.action(u32::MAX) == Action::Pass));
            assert_eq!(watched.action(watched.bit()), Action::Pass);
            assert_eq!(watched.action(!watched.bit()), watched.row().action);
        }
        assert!(Verdict::ALL.into_iter().any(|verdict| verdict.action(0) == Action::Drop));
    }
}
