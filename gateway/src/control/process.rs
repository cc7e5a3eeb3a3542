//! What the process itself is asked to do: read its configuration again, say more or less.

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::serve::Control;
use crate::logging;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reloaded {
    /// Of the configuration that is in force now.
    pub generation: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`, or a list such as `info,hyper=debug`.
    pub level: String,
}

impl Control {
    pub(super) async fn reload(&self) -> Result<Reloaded, Problem> {
        let outcome = self.asks.reload().await;
        outcome
            .map(|generation| Reloaded { generation })
            .map_err(|why| Problem::new(StatusCode::CONFLICT, why))
    }
}

pub fn level() -> Level {
    Level { level: logging::level() }
}

pub fn set_level(next: &Level) -> Result<Level, Problem> {
    logging::set(&next.level).map_err(|error| Problem::unclear(error.to_string()))?;
    Ok(level())
}
