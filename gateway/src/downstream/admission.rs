//! What room there is for a new connection, and on which terms it gets in.
//!
//! Pure; the crowd asks it at each accept. While memory or descriptors are short, whoever comes has the place of one
//! that is known no better, and a proven source gets in where there is none such: strangers are turned away in its
//! stead. The last places of all are kept for the proven, so that strangers' requests, which are never ended for a
//! newcomer, do not take them.

use gateway_common::standing::Class;

/// Connections above the bound for a moment, while another worker makes room.
pub const SPARE: u64 = 16;
/// Of so many places one is kept for the proven.
const KEPT_OF: u64 = 16;

#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Connections that stay, of all workers.
    pub open: u64,
    /// As many as there may be.
    pub most: u64,
    /// Memory or descriptors are short, however many there are.
    pub short: bool,
    /// Newcomers have no class.
    pub all_alike: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// There is a place.
    Free,
    /// An unused connection has to go, of this class at most. Where there is none:
    ForAnother(Class, Otherwise),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    Refused,
    Admitted,
    /// Admitted if there are other workers, which are asked to make room.
    Asked,
}

impl Room {
    /// Whether there is a place for anybody: the newcomer's class does not matter.
    pub fn is_ample(&self) -> bool {
        !self.short && self.open < self.places(Class::Unknown)
    }

    /// Connections there may be with one of this class.
    pub fn places(&self, class: Class) -> u64 {
        match class {
            Class::Unknown | Class::Known if !self.all_alike => self.most - self.most / KEPT_OF,
            Class::Unknown | Class::Known | Class::Proven => self.most,
        }
    }

    pub fn terms(&self, class: Class) -> Terms {
        let over = self.open.checked_sub(self.places(class));
        let best = match (self.short, over) {
            (false, None) => return Terms::Free,
            (false, Some(_)) => Class::Proven,
            (true, _) => class,
        };
        // Others' connections go whatever their class: nobody has them go who may not displace anybody.
        let otherwise = match over {
            _ if best < Class::Proven => Otherwise::Refused,
            None => Otherwise::Admitted,
            Some(over) if over < self.spare(class) => Otherwise::Asked,
            Some(_) => Otherwise::Refused,
        };
        Terms::ForAnother(best, otherwise)
    }

    /// For a moment strangers have half of what there is, so that the proven have theirs.
    fn spare(&self, class: Class) -> u64 {
        if class == Class::Proven || self.all_alike { SPARE } else { SPARE / 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::Otherwise::{Admitted, Asked, Refused};
    use super::Terms::{ForAnother, Free};
    use super::*;

    const MOST: u64 = 160;

    #[test]
    fn who_gets_in_and_for_whom() {
        use Class::{Known, Proven, Unknown};
        let anybody = |otherwise| ForAnother(Proven, otherwise);
        for (open, short, want) in [
            (0, false, [Free, Free, Free]),
            (149, false, [Free, Free, Free]),
            // The last places are the proven ones'.
            (150, false, [anybody(Asked), anybody(Asked), Free]),
            (157, false, [anybody(Asked), anybody(Asked), Free]),
            (158, false, [anybody(Refused), anybody(Refused), Free]),
            (160, false, [anybody(Refused), anybody(Refused), anybody(Asked)]),
            (175, false, [anybody(Refused), anybody(Refused), anybody(Asked)]),
            (176, false, [anybody(Refused), anybody(Refused), anybody(Refused)]),
            // Short: each has the place of one that is known no better.
            (0, true, [ForAnother(Unknown, Refused), ForAnother(Known, Refused), anybody(Admitted)]),
            (159, true, [ForAnother(Unknown, Refused), ForAnother(Known, Refused), anybody(Admitted)]),
            (160, true, [ForAnother(Unknown, Refused), ForAnother(Known, Refused), anybody(Asked)]),
            (176, true, [ForAnother(Unknown, Refused), ForAnother(Known, Refused), anybody(Refused)]),
        ] {
            let room = Room { open, most: MOST, short, all_alike: false };
            assert_eq!(Class::ALL.map(|class| room.terms(class)), want, "{room:?}");
            assert_eq!(room.is_ample(), want == [Free; 3], "{room:?}");
        }
    }

    #[test]
    fn nothing_is_kept_where_nobody_is_told_apart() {
        for (open, want) in [(159, Free), (160, ForAnother(Class::Proven, Asked))] {
            let room = Room { open, most: MOST, short: false, all_alike: true };
            assert_eq!((room.terms(Class::Unknown), room.is_ample()), (want, want == Free));
        }
        // Nor of few.
        let room = Room { open: 14, most: 15, short: false, all_alike: false };
        assert_eq!(room.terms(Class::Unknown), Free);
    }

    /// Whoever is known better gets in wherever one known less does, at whatever number and state.
    #[test]
    fn no_stranger_gets_in_where_a_proven_one_does_not() {
        let gets_in = |terms| match terms {
            Free | ForAnother(_, Admitted) => 2,
            ForAnother(_, Asked) => 1,
            ForAnother(_, Refused) => 0,
        };
        for (open, short) in (0..=2 * MOST).flat_map(|open| [(open, false), (open, true)]) {
            let room = Room { open, most: MOST, short, all_alike: false };
            let ranks = Class::ALL.map(|class| gets_in(room.terms(class)));
            assert!(ranks.is_sorted(), "{room:?}: {ranks:?}");
        }
    }
}
