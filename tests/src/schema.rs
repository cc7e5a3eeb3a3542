//! Documents against JSON Schemas of an OpenAPI document: as much of the language as stands there.
//!
//! Stricter than the language in one thing: a member that a schema does not name is a fault, so that nothing is answered
//! which is not described.

use serde_json::{Map, Value};

/// What is wrong with `value`, and where; empty where nothing is.
pub fn faults(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    Check { document }.check(schema, value, "$", &mut faults);
    faults
}

struct Check<'a> {
    /// Where references lead.
    document: &'a Value,
}

impl Check<'_> {
    fn check(&self, schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
        let schema = match schema {
            Value::Object(schema) => schema,
            Value::Bool(true) => return,
            other => panic!("{at}: no schema: {other}"),
        };
        for (keyword, rule) in schema {
            let holds = match keyword.as_str() {
                "$ref" => {
                    let place = rule.as_str().and_then(|place| place.strip_prefix('#'));
                    let target = place.and_then(|place| self.document.pointer(place));
                    self.check(target.unwrap_or_else(|| panic!("{rule} leads nowhere")), value, at, faults);
                    true
                }
                "type" => match rule {
                    Value::Array(kinds) => kinds.iter().any(|kind| is_of(value, kind)),
                    kind => is_of(value, kind),
                },
                "const" => value == rule,
                "enum" => list(rule).contains(value),
                "anyOf" => list(rule).iter().any(|schema| faults_of(self, schema, value).is_empty()),
                "oneOf" => {
                    let fits = |schema: &&Value| faults_of(self, schema, value).is_empty();
                    list(rule).iter().filter(fits).count() == 1
                }
                "minimum" => value.as_f64().zip(rule.as_f64()).is_none_or(|(value, least)| value >= least),
                "maximum" => value.as_f64().zip(rule.as_f64()).is_none_or(|(value, most)| value <= most),
                "items" => {
                    for (index, element) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(rule, element, &format!("{at}[{index}]"), faults);
                    }
                    true
                }
                "required" => value.as_object().is_none_or(|object| {
                    list(rule).iter().all(|name| name.as_str().is_some_and(|name| object.contains_key(name)))
                }),
                "properties" | "additionalProperties" => {
                    if let (Some(object), true) =
                        (value.as_object(), keyword == "properties" || !schema.contains_key("properties"))
                    {
                        self.members(schema, object, at, faults);
                    }
                    true
                }
                "title" | "description" | "format" | "default" => true,
                other => panic!("{at}: the keyword {other:?} is not known here"),
            };
            if !holds {
                faults.push(format!("{at}: {value} is not as {keyword:?} has it: {rule}"));
            }
        }
    }

    fn members(
        &self,
        schema: &Map<String, Value>,
        object: &Map<String, Value>,
        at: &str,
        faults: &mut Vec<String>,
    ) {
        for (name, member) in object {
            let own = schema.get("properties").and_then(|known| known.get(name));
            match own.or(schema.get("additionalProperties").filter(|rest| **rest != Value::Bool(false))) {
                Some(schema) => self.check(schema, member, &format!("{at}.{name}"), faults),
                None => faults.push(format!("{at}: {name:?} is not described")),
            }
        }
    }
}

fn faults_of(check: &Check<'_>, schema: &Value, value: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    check.check(schema, value, "$", &mut faults);
    faults
}

fn list(rule: &Value) -> &[Value] {
    rule.as_array().unwrap_or_else(|| panic!("no list: {rule}"))
}

fn is_of(value: &Value, kind: &Value) -> bool {
    match kind.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => panic!("no type: {kind}"),
    }
}
