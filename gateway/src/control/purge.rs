//! Stored responses forgotten at somebody's wish.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::serve::Control;
use crate::cache::Purge;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Purged {
    /// How many responses went.
    pub purged: usize,
}

impl Control {
    pub(super) fn purge(&self, what: &Purge) -> Result<Purged, Problem> {
        if what.is_empty() {
            return Err(Problem::unclear(
                "it names nothing: \"prefix\": \"http://host\" is everything of a host",
            ));
        }
        let snapshot = self.state.current.load();
        let cached = snapshot.routes.iter().filter_map(|route| route.cache.as_ref());
        let purged = snapshot.cache.purge(what, cached);
        tracing::info!(?what, purged, "purged");
        Ok(Purged { purged })
    }
}
