//! What is shown and how, as keys have chosen it. Pure.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::listing::{Order, Pane};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub pane: Pane,
    orders: [Order; Pane::ALL.len()],
    /// Rows that have been scrolled past.
    pub past: usize,
    pub paused: bool,
}

impl Default for Chosen {
    fn default() -> Self {
        Self { pane: Pane::Overview, orders: Default::default(), past: 0, paused: false }
    }
}

impl Chosen {
    pub fn order(&self) -> Order {
        self.orders[self.pane as usize]
    }

    /// `columns` and `rows` of the table that is shown. `false`: it is to end.
    pub fn press(&mut self, key: KeyEvent, columns: usize, rows: usize) -> bool {
        if key.kind == KeyEventKind::Release {
            return true;
        }
        let order = &mut self.orders[self.pane as usize];
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Tab | KeyCode::Right => self.turn(1),
            KeyCode::BackTab | KeyCode::Left => self.turn(Pane::ALL.len() - 1),
            KeyCode::Char(digit @ '1'..='6') => self.show(Pane::ALL[digit as usize - '1' as usize]),
            KeyCode::Char('s') => order.column = (order.column + 1) % columns.max(1),
            KeyCode::Char('r') => order.reversed = !order.reversed,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Down | KeyCode::Char('j') => self.past = (self.past + 1).min(rows.saturating_sub(1)),
            KeyCode::Up | KeyCode::Char('k') => self.past = self.past.saturating_sub(1),
            _ => {}
        }
        true
    }

    fn turn(&mut self, by: usize) {
        self.show(Pane::ALL[(self.pane as usize + by) % Pane::ALL.len()]);
    }

    fn show(&mut self, pane: Pane) {
        (self.pane, self.past) = (pane, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(keys: &[KeyCode]) -> (Chosen, bool) {
        let mut chosen = Chosen::default();
        let goes_on = keys.iter().all(|&key| chosen.press(key.into(), 4, 3));
        (chosen, goes_on)
    }

    #[test]
    fn keys_choose() {
        use KeyCode::{BackTab, Char, Down, Esc, Tab, Up};
        let chosen = |keys: &[KeyCode]| after(keys).0;
        for (keys, pane) in [
            (&[Tab][..], Pane::Routes),
            (&[BackTab], Pane::Sources),
            (&[Tab; 6], Pane::Overview),
            (&[Char('5')], Pane::Kernel),
            (&[Char('7')], Pane::Overview),
        ] {
            assert_eq!(chosen(keys).pane, pane, "{keys:?}");
        }
        for (keys, past) in [(&[Down, Down][..], 2), (&[Down; 9], 2), (&[Up], 0), (&[Down, Char('2')], 0)] {
            assert_eq!(chosen(keys).past, past, "{keys:?}");
        }
        let by = |column, reversed| Order { column, reversed };
        assert_eq!(chosen(&[Char('s')]).order(), by(2, false));
        assert_eq!(chosen(&[Char('s'); 4]).order(), by(1, false));
        assert_eq!(chosen(&[Char('r')]).order(), by(1, true));
        assert_eq!(chosen(&[Char('s'), Char('2')]).order(), by(1, false), "each table has its own");
        assert_eq!([chosen(&[Char('p')]).paused, chosen(&[Char(' '); 2]).paused], [true, false]);
        assert!(after(&[Char('x')]).1);
        assert!(!after(&[Char('q')]).1 && !after(&[Esc]).1);
        let interrupt = KeyEvent::new(Char('c'), KeyModifiers::CONTROL);
        assert!(!Chosen::default().press(interrupt, 4, 3));
    }
}
