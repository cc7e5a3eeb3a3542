//! What is said on standard error, and how much of it: `GATEWAY_LOG` at the start, whoever may say so afterwards.
//!
//! One for the process, as what it filters is.

use std::io::{self, IsTerminal, Stderr};
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::Formatter;
use tracing_subscriber::fmt::format::{DefaultFields, Format};
use tracing_subscriber::reload::Handle;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
const DEFAULT: &str = "info";

/// What was asked for, which is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "{:?} is no log level: there are {}, and lists such as \"info,hyper=debug\"",
    .0,
    LEVELS.join(", ")
)]
pub struct Unknown(String);

type Filter = Handle<EnvFilter, Formatter<DefaultFields, Format, fn() -> Stderr>>;
static FILTER: OnceLock<Filter> = OnceLock::new();

/// Says from here on what `GATEWAY_LOG` asks for. `main` calls it, once.
pub fn start() -> Result<(), Unknown> {
    let asked = std::env::var("GATEWAY_LOG").ok().filter(|text| !text.is_empty());
    let subscriber = tracing_subscriber::fmt()
        .with_writer(io::stderr as fn() -> Stderr)
        .with_env_filter(filter(asked.as_deref().unwrap_or(DEFAULT))?)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_filter_reloading();
    FILTER.get_or_init(|| subscriber.reload_handle());
    subscriber.init();
    Ok(())
}

/// What is said now.
pub fn level() -> String {
    let level = FILTER.get().and_then(|filter| filter.with_current(ToString::to_string).ok());
    level.expect("`main` starts it before anybody can ask, and its subscriber never goes")
}

/// Says `text` from here on, a level or a list of targets and levels, until the process ends.
pub fn set(text: &str) -> Result<(), Unknown> {
    let (next, before) = (filter(text)?, level());
    let changed = FILTER.get().and_then(|filter| filter.reload(next).ok());
    changed.expect("its subscriber never goes");
    tracing::info!(level = level(), before, "log level changed");
    Ok(())
}

/// The library takes a word that it does not know for a target, of which it then says everything.
fn filter(text: &str) -> Result<EnvFilter, Unknown> {
    let unknown = || Unknown(text.to_owned());
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let level_of =
        |part: &str| part.rsplit_once('=').map_or_else(|| part.to_owned(), |(_, level)| level.to_owned());
    match text.split(',').all(|part| is_level(&level_of(part.trim()))) {
        true => EnvFilter::try_new(text).map_err(|_| unknown()),
        false => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_lists_of_them() {
        for (text, shown) in [
            ("debug", Some("debug")),
            ("WARN", Some("warn")),
            ("off", Some("off")),
            ("info,hyper=trace", Some("hyper=trace,info")),
            ("debgu", None),
            ("", None),
            ("info,", None),
            ("gateway", None),
            ("gateway=loud", None),
            ("debug=", None),
        ] {
            assert_eq!(filter(text).ok().map(|filter| filter.to_string()).as_deref(), shown, "{text}");
        }
    }
}
