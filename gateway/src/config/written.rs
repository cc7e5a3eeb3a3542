//! Values as the file writes them, for the effective configuration.
//!
//! A reader that fills in a default says it through this; what stands in the file is shown as it stands there.

use std::time::Duration;

use serde_json::{Value, json};

use super::ListenAddr;

pub(super) trait Written {
    fn written(&self) -> Value;
}

macro_rules! as_it_is {
    ($($plain:ty),*) => {
        $(impl Written for $plain {
            fn written(&self) -> Value {
                json!(self)
            }
        })*
    };
}

as_it_is!(bool, u8, u32, usize, f64, String, &str, Vec<u16>, Value);

impl Written for Duration {
    fn written(&self) -> Value {
        const HOUR: u64 = 3_600;
        match (self.as_secs(), self.subsec_millis()) {
            (seconds @ 1.., 0) if seconds % HOUR == 0 => format!("{}h", seconds / HOUR).into(),
            (seconds, 0) => format!("{seconds}s").into(),
            _ => format!("{}ms", self.as_millis()).into(),
        }
    }
}

impl Written for ListenAddr {
    fn written(&self) -> Value {
        self.to_string().into()
    }
}

/// Adds `value` at `path`, such as `routes[0].cache.ttl`, unless something is there.
pub(super) fn fill(mut target: &mut Value, path: &str, value: Value) {
    let (parents, key) = path.rsplit_once('.').unwrap_or(("", path));
    for step in parents.split(['.', '[']).filter(|step| !step.is_empty()) {
        target = match step.strip_suffix(']') {
            Some(index) => &mut target[index.parse::<usize>().expect("document numbers elements")],
            None => {
                if target[step].is_null() {
                    target[step] = json!({});
                }
                &mut target[step]
            }
        };
    }
    if target[key].is_null() {
        target[key] = value;
    }
}
