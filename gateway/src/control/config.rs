//! The configuration in force.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::serve::Control;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Effective {
    /// Configurations put in force since the start.
    pub generation: u64,
    /// As a file that says the same, by the schema that `gateway schema` prints.
    pub config: Value,
}

impl Control {
    pub(super) fn config(&self) -> Effective {
        let snapshot = self.state.current.load();
        let mut config = snapshot.files.as_deref().map_or(Value::Null, |files| files.effective());
        // The command line has its say too.
        config["kernel"]["interfaces"] = json!(snapshot.config.kernel.interfaces);
        Effective { generation: snapshot.generation, config }
    }
}
