//! An allow or deny list as lines, the configuration's networks first.

use std::fmt::Write as _;

use super::time;
use crate::control::Listed;

pub fn lines(entries: &[Listed], now: u64) -> String {
    if entries.is_empty() {
        return "the list is empty\n".to_owned();
    }
    let mut text = String::new();
    for Listed { network, entry, packets } in entries {
        let packets = packets.map(|packets| format!("  {packets} packets")).unwrap_or_default();
        let written = match entry {
            None => writeln!(text, "{network}  in the configuration{packets}"),
            Some(entry) => {
                let until = match entry.until {
                    Some(until) => format!("until {}", time::show(until, now)),
                    None => "for good".to_owned(),
                };
                let reason = entry.reason.as_ref().map(|reason| format!("  {reason:?}")).unwrap_or_default();
                let trial = if entry.trial { "  on trial" } else { "" };
                let since = time::show(entry.since, now);
                writeln!(text, "{network}  since {since}  {until}{trial}{packets}{reason}")
            }
        };
        written.expect("a string takes everything");
    }
    text
}
