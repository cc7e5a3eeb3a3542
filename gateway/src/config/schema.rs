//! The JSON Schema of the configuration, made of what its readers say they would take.
//!
//! `document` hands them values that are not there and writes down their answers here; descriptions are those of
//! docs/configuration.md. So a key, bound or word that a reader knows is in the schema, and nothing else is.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::{document, file, value};

const DOCUMENTATION: &str = include_str!("../../../docs/configuration.md");

/// Answers of readers, each under the key that it is about: `routes[].path`.
#[derive(Default)]
pub(super) struct Outline {
    /// The forms that a value may have.
    shapes: RefCell<HashMap<String, Vec<Value>>>,
    defaults: RefCell<HashMap<String, Value>>,
    required: RefCell<HashSet<String>>,
}

impl Outline {
    pub(super) fn add(&self, key: &str, shape: Value) {
        self.shapes.borrow_mut().entry(key.to_owned()).or_default().push(shape);
    }

    /// One more property of the form that was added last.
    pub(super) fn amend(&self, key: &str, property: &str, value: impl Into<Value>) {
        if let Some(shape) = self.shapes.borrow_mut().get_mut(key).and_then(|shapes| shapes.last_mut()) {
            shape[property] = value.into();
        }
    }

    pub(super) fn default_of(&self, key: &str, default: Value) {
        self.defaults.borrow_mut().insert(key.to_owned(), default);
    }

    pub(super) fn require(&self, key: &str) {
        self.required.borrow_mut().insert(key.to_owned());
    }

    /// The object at `key`, whose `names` have all been answered for.
    pub(super) fn object(&self, key: &str, names: &[&str], path: impl Fn(&str) -> String) {
        let properties: Map<_, _> =
            names.iter().map(|name| ((*name).into(), self.value(&path(name)))).collect();
        let required = self.required.borrow();
        let required: Vec<_> = names.iter().filter(|name| required.contains(&path(name))).collect();
        let shape = json!({
            "type": "object", "properties": properties, "required": required, "additionalProperties": false
        });
        self.add(key, shape);
    }

    fn value(&self, key: &str) -> Value {
        let mut shapes = self.shapes.borrow_mut().remove(key).unwrap_or_default();
        for shape in shapes.iter_mut().filter(|shape| shape["type"] == "array") {
            shape["items"] = self.value(&element(key));
        }
        let mut value = match shapes.len() {
            1 => shapes.remove(0),
            _ => json!({ "anyOf": shapes }),
        };
        if let Some(description) = description(key) {
            value["description"] = description.into();
        }
        if let Some(default) = self.defaults.borrow_mut().remove(key) {
            value["default"] = default;
        }
        value
    }
}

/// Of a whole configuration, or of a part of one: a file that others include.
pub fn schema(part: bool) -> Value {
    let mut schema = document::outline(file::config).value("");
    let keys = schema.as_object_mut().expect("the root is an object");
    // Routes may all stand in other files, and in a part there need be none.
    keys.remove("required");
    if !part {
        keys.insert("anyOf".into(), json!([{ "required": ["routes"] }, { "required": ["include"] }]));
    }
    keys.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    keys.insert("title".into(), "Configuration of the gateway".into());
    let seconds = json!({
        "type": "number", "minimum": value::SHORTEST.as_secs_f64(), "maximum": value::LONGEST.as_secs_f64()
    });
    let definitions = json!({
        "time": {
            "anyOf": [
                seconds,
                { "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" },
                { "$ref": "#/$defs/variable" }
            ],
            "examples": [30, "500ms", "30s", "2m", "1h"]
        },
        "variable": { "type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}" }
    });
    keys.insert("$defs".into(), definitions);
    schema
}

/// The key of a list's elements.
pub(super) fn element(list: &str) -> String {
    format!("{list}[]")
}

/// `expected` tells people what it is, with examples in quotes.
pub(super) fn string(expected: &str) -> Value {
    let examples: Vec<_> = expected.split('"').skip(1).step_by(2).collect();
    json!({ "type": "string", "examples": examples })
}

pub(super) fn time() -> Value {
    json!({ "$ref": "#/$defs/time" })
}

/// One of `words`, or what a variable may make one.
pub(super) fn words<'a>(words: impl Iterator<Item = &'a str>) -> Value {
    json!({ "anyOf": [{ "enum": words.collect::<Vec<_>>() }, { "$ref": "#/$defs/variable" }] })
}

/// What docs/configuration.md says of `key`, without its links.
fn description(key: &str) -> Option<String> {
    // Rules are documented once.
    let key = key.replace("rate_limit.rules[]", "routes[].rate_limits[]");
    let start = format!("| `{key}` |");
    let row = DOCUMENTATION.lines().find(|line| line.starts_with(&start))?;
    let mut meaning = row.split(" | ").nth(3)?.to_owned();
    while let Some(end) = meaning.find("](") {
        let (start, close) = (meaning[..end].rfind('[')?, end + meaning[end..].find(')')?);
        meaning = [&meaning[..start], &meaning[start + 1..end], &meaning[close + 1..]].concat();
    }
    Some(meaning)
}
