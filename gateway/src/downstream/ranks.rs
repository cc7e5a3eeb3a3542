//! Members in the order in which they make room for another: strangers first, the proven last, and of a class first
//! whoever was found in use longest ago.
//!
//! The crowd keeps its connections here. Everybody begins as a stranger: classes are found out when somebody has to go,
//! and cost nothing before. Pure.

use std::collections::BTreeMap;

use gateway_common::standing::Class;

/// Members of a class looked at for one that can go, so that accepting has a bounded cost.
const LOOKED_AT: usize = 128;

pub struct Ranks<T> {
    queues: [BTreeMap<u64, T>; Class::ALL.len()],
    next: u64,
}

/// Where a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    class: Class,
    number: u64,
}

/// What there is to know of a member.
pub trait Member {
    /// It stands there from now on.
    fn stands(&self, place: Place);
    /// Whether it can go. Who has been used since he was last asked says no once more.
    fn can_go(&self) -> bool;
}

impl Place {
    pub const NOWHERE: Self = Self { class: Class::Unknown, number: u64::MAX };
}

impl<T> Default for Ranks<T> {
    fn default() -> Self {
        Self { queues: Default::default(), next: 0 }
    }
}

impl<T> Ranks<T> {
    pub fn remove(&mut self, place: Place) {
        self.queues[place.class as usize].remove(&place.number);
    }
}

impl<T: Member> Ranks<T> {
    pub fn add(&mut self, member: T) {
        self.insert(Class::Unknown, member);
    }

    /// Takes out the first that can go, of `best` class at most; `None`: none was found. `class_of`: how well a member is
    /// known now, `None` where it has gone by itself.
    pub fn give_up(&mut self, best: Class, class_of: impl Fn(&T) -> Option<Class>) -> Option<T> {
        for class in Class::ALL.into_iter().filter(|class| *class <= best) {
            // Each has a second chance.
            for _ in 0..LOOKED_AT.min(2 * self.queues[class as usize].len()) {
                let Some((_, member)) = self.queues[class as usize].pop_first() else { break };
                match class_of(&member) {
                    None => {}
                    // Its turn comes with its like.
                    Some(found) if found > class => self.insert(found, member),
                    Some(_) if member.can_go() => return Some(member),
                    Some(found) => self.insert(found, member),
                }
            }
        }
        None
    }

    fn insert(&mut self, class: Class, member: T) {
        let number = self.next;
        self.next += 1;
        member.stands(Place { class, number });
        self.queues[class as usize].insert(number, member);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    struct One {
        name: char,
        class: Cell<Option<Class>>,
        busy: bool,
        used: Cell<bool>,
        place: Cell<Place>,
    }

    impl Member for Rc<One> {
        fn stands(&self, place: Place) {
            self.place.set(place);
        }

        fn can_go(&self) -> bool {
            !self.busy && !self.used.replace(false)
        }
    }

    /// `u`, `k`, `p`: an idle stranger, a known one, a proven one, each called by his number; upper case: in use; with a
    /// dot: used since it was last looked at; `-`: gone by itself.
    fn crowd(text: &str) -> (Ranks<Rc<One>>, Vec<Rc<One>>) {
        let mut ranks = Ranks::default();
        let members = ('a'..).zip(text.split_whitespace()).map(|(name, word)| {
            let kind = word.chars().next().expect("a word");
            let class = match kind.to_ascii_lowercase() {
                'u' => Some(Class::Unknown),
                'k' => Some(Class::Known),
                'p' => Some(Class::Proven),
                _ => None,
            };
            Rc::new(One {
                name,
                class: Cell::new(class),
                busy: kind.is_uppercase(),
                used: Cell::new(word.ends_with('.')),
                place: Cell::new(Place::NOWHERE),
            })
        });
        let members: Vec<_> = members.collect();
        members.iter().for_each(|member| ranks.add(member.clone()));
        (ranks, members)
    }

    fn give_up(ranks: &mut Ranks<Rc<One>>, best: Class) -> Option<Rc<One>> {
        ranks.give_up(best, |member| member.class.get())
    }

    /// In which order they go until nobody can.
    fn order(ranks: &mut Ranks<Rc<One>>, best: Class) -> String {
        std::iter::from_fn(|| give_up(ranks, best)).map(|member| member.name).collect()
    }

    #[test]
    fn strangers_go_first_and_of_a_class_whoever_was_unused_for_longest() {
        for (members, best, want) in [
            ("", Class::Proven, ""),
            ("u u u", Class::Unknown, "abc"),
            ("p k u", Class::Proven, "cba"),
            ("p k u", Class::Known, "cb"),
            ("p k u", Class::Unknown, "c"),
            ("p p u p u k", Class::Proven, "cefabd"),
            // Who is in use stays, whoever he is.
            ("U p U k", Class::Proven, "db"),
            ("U K P", Class::Proven, ""),
            // A second chance among one's like, and no more.
            ("u. u u.", Class::Proven, "bac"),
            ("p. p u. k.", Class::Proven, "cdba"),
            ("- p - u", Class::Proven, "db"),
        ] {
            let (mut ranks, _members) = crowd(members);
            assert_eq!(order(&mut ranks, best), want, "{members} up to {best:?}");
        }
    }

    #[test]
    fn a_rank_is_found_out_anew_and_a_place_given_back() {
        let (mut ranks, members) = crowd("p p u u");
        assert_eq!(give_up(&mut ranks, Class::Unknown).map(|member| member.name), Some('c'));
        // The first has lost its rank since, the last has gained one.
        members[0].class.set(Some(Class::Known));
        members[3].class.set(Some(Class::Proven));
        ranks.remove(members[1].place.get());
        assert_eq!(order(&mut ranks, Class::Unknown), "");
        assert_eq!(order(&mut ranks, Class::Proven), "ad");
        // Who is gone has no place to give back.
        ranks.remove(members[0].place.get());
        ranks.remove(Place::NOWHERE);
    }

    #[test]
    fn accepting_has_a_bounded_cost_and_a_search_goes_on_where_the_last_one_ended() {
        let text = "p ".repeat(2 * LOOKED_AT) + "u";
        let (mut ranks, members) = crowd(&text);
        assert!(give_up(&mut ranks, Class::Unknown).is_none());
        assert!(give_up(&mut ranks, Class::Unknown).is_none());
        let stranger = give_up(&mut ranks, Class::Unknown).expect("it is found in the end");
        assert!(Rc::ptr_eq(&stranger, members.last().expect("there are some")));
        // One whose class is not known yet does not stand in the way of one that can go.
        let (mut ranks, members) = crowd(&text);
        let first = give_up(&mut ranks, Class::Proven).expect("the first");
        assert!(Rc::ptr_eq(&first, &members[0]));
    }
}
