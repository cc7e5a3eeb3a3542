//! Counts of the last ten seconds, a set of them for each second of the clock. Pure.

/// Seconds that are looked back on.
const SECONDS: u64 = 10;
pub const SECOND_NS: u64 = 1_000_000_000;

#[derive(Clone, Copy, Default)]
pub struct Lately<T> {
    /// Each with its number.
    seconds: [(u64, T); SECONDS as usize],
}

impl<T: Copy + Default> Lately<T> {
    /// The counts of the second that it is.
    pub fn now(&mut self, now_ns: u64) -> &mut T {
        let number = now_ns / SECOND_NS;
        let second = &mut self.seconds[(number % SECONDS) as usize];
        if second.0 != number {
            *second = (number, T::default());
        }
        &mut second.1
    }

    pub fn recent(&self, now_ns: u64) -> impl Iterator<Item = &T> {
        let now = now_ns / SECOND_NS;
        self.seconds.iter().filter(move |(number, _)| number + SECONDS > now).map(|(_, counts)| counts)
    }
}

/// Nine in ten.
pub fn are_refused(refused: u32, asked: u32) -> bool {
    u64::from(refused) * 10 >= u64::from(asked) * 9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_is_there_for_ten() {
        let mut lately = Lately::<u32>::default();
        for second in [100, 100, 103, 109] {
            *lately.now(second * SECOND_NS) += 1;
        }
        for (second, want) in [(109, 4), (110, 2), (112, 2), (113, 1), (119, 0)] {
            assert_eq!(lately.recent(second * SECOND_NS).sum::<u32>(), want, "in second {second}");
        }
    }

    #[test]
    fn nine_in_ten() {
        for (refused, asked, want) in
            [(9, 10, true), (89, 100, false), (0, 0, true), (u32::MAX, u32::MAX, true)]
        {
            assert_eq!(are_refused(refused, asked), want, "{refused} of {asked}");
        }
    }
}
