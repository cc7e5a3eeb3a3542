//! Verdicts: the one table of what the kernel half can say about a packet.
//!
//! A row gives a verdict's name (metric label, log name and test column at once), its action and its
//! meaning; the discriminant is its place in the counters.

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
}

/// What happens to the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    Drop,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub name: &'static str,
    pub action: Action,
    pub meaning: &'static str,
}

impl Verdict {
    pub const ALL: [Self; 6] =
        [Self::NotOurs, Self::Allowed, Self::Denied, Self::OverBudget, Self::Malformed, Self::Pass];

    /// The verdict's line of the table.
    #[inline(always)]
    pub const fn row(self) -> Row {
        use Action::{Drop, Pass};
        let (name, action, meaning) = match self {
            Self::NotOurs => ("not_ours", Pass, "no connection request to one of our listeners"),
            Self::Allowed => ("allowed", Pass, "a connection request from an exempt network"),
            Self::Denied => ("denied", Drop, "a connection request from a denied network"),
            Self::OverBudget => ("over_budget", Drop, "a connection request beyond its source's budget"),
            Self::Malformed => ("malformed", Pass, "cut short or inconsistent; the stack decides"),
            Self::Pass => ("pass", Pass, "a connection request within its source's budget"),
        };
        Row { name, action, meaning }
    }

    /// What the verdict does to its packet; a monitor only counts.
    #[inline(always)]
    pub const fn action(self, monitor: bool) -> Action {
        if monitor { Action::Pass } else { self.row().action }
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
    fn a_monitor_drops_nothing() {
        assert!(Verdict::ALL.into_iter().all(|verdict| verdict.action(true) == Action::Pass));
        assert!(Verdict::ALL.into_iter().any(|verdict| verdict.action(false) == Action::Drop));
    }
}
