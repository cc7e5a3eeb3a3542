//! The JSON Schema beside the readers that it is made of, and beside the documentation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use boon::{Compiler, SchemaIndex, Schemas};
use gateway::config;
use serde_json::{Value, json};

const DOCUMENTATION: &str = include_str!("../../docs/configuration.md");
const REFERENCE: &str = include_str!("../../config/reference.json");

/// Documented once, in the routes.
const RULES: &str = "rate_limit.rules[].";

struct Schema {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Schema {
    /// One that its own schema, that of 2020-12, accepts.
    fn new(schema: Value) -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.add_resource("gateway.json", schema).expect("a document");
        let index =
            compiler.compile("gateway.json", &mut schemas).unwrap_or_else(|error| panic!("{error:#}"));
        Self { schemas, index }
    }

    fn check(&self, document: &Value) -> Result<(), String> {
        self.schemas.validate(document, self.index).map_err(|error| format!("{error:#}"))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What is JSON of `folder`, by name.
fn documents(folder: &Path) -> BTreeMap<String, Value> {
    let files = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let parsed =
        files.filter(|file| file.extension().is_some_and(|kind| kind == "json")).filter_map(|file| {
            let name = file.file_stem().and_then(|name| name.to_str()).expect("ours are in ASCII").to_owned();
            Some((name, serde_json::from_slice(&fs::read(file).expect("readable")).ok()?))
        });
    parsed.collect()
}

/// Every property of the schema under its key, `routes[].path`.
fn properties(schema: &Value) -> BTreeMap<String, &Value> {
    fn walk<'a>(schema: &'a Value, key: &str, found: &mut BTreeMap<String, &'a Value>) {
        for alternative in schema["anyOf"].as_array().into_iter().flatten() {
            walk(alternative, key, found);
        }
        if schema["items"].is_object() {
            walk(&schema["items"], &format!("{key}[]"), found);
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            walk(property, &key, found);
            found.insert(key, property);
        }
    }
    let mut found = BTreeMap::new();
    walk(schema, "", &mut found);
    found
}

#[test]
fn what_is_shipped_is_valid() {
    let schema = Schema::new(config::schema(false));
    for (name, document) in documents(&root().join("config")) {
        schema.check(&document).unwrap_or_else(|error| panic!("{name}: {error}"));
        let file = root().join("config").join(name).with_extension("json");
        let read = config::examine(&file).unwrap_or_else(|error| panic!("{error}"));
        schema.check(&read.effective).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    let varied = json!({
        "$schema": "gateway.schema.json", "include": ["a.json"], "timeouts": { "connect": "${WAIT}", "idle": 0.5 },
        "kernel": { "mode": "${MODE:-tc}", "monitor": ["shed", "${ALSO}"] }
    });
    schema.check(&varied).unwrap_or_else(|error| panic!("{error}"));
}

/// Of the wrong files it refuses those in which a single value is wrong by itself, format aside.
#[test]
fn what_is_wrong_by_itself_is_refused() {
    const CANNOT_TELL: [&str; 9] = [
        "addresses",
        "belongs_together",
        "environment",
        "names",
        "paths",
        "secrets",
        "twice",
        "urls",
        "warnings",
    ];
    let schema = Schema::new(config::schema(false));
    for (name, document) in documents(&root().join("gateway/tests/golden")) {
        assert_eq!(schema.check(&document).is_ok(), CANNOT_TELL.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn a_part_needs_no_routes() {
    let limits = json!({ "rate_limit": { "default_rate_per_minute": 60 } });
    assert!(Schema::new(config::schema(false)).check(&limits).is_err());
    let part = Schema::new(config::schema(true));
    part.check(&limits).unwrap_or_else(|error| panic!("{error}"));
    assert!(part.check(&json!({ "rate_limits": {} })).is_err());
}

#[test]
fn documentation_and_schema_say_the_same() {
    let schema = config::schema(false);
    let properties = properties(&schema);
    let rows = DOCUMENTATION.lines().filter(|line| line.starts_with("| `"));
    let mut documented = BTreeSet::new();
    for row in rows {
        let cells: Vec<_> = row.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        let (key, kind, default) = (cells[0].trim_matches('`'), cells[1], cells[2]);
        let property = properties.get(key).unwrap_or_else(|| panic!("no {key} in the schema"));
        let default = default.strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
        let default = default.map(|default| match serde_json::from_str(default).expect("JSON") {
            // As keys that are called so write it.
            Value::Number(seconds) if kind == "time" => json!(format!("{seconds}s")),
            default => default,
        });
        assert_eq!(property.get("default"), default.as_ref(), "{key}");
        assert!(property["description"].as_str().is_some_and(|text| !text.is_empty()), "{key}");
        let (bounded, bounds) = match kind.strip_prefix("list of ") {
            Some(elements) => (&property["items"], elements),
            None => (*property, kind),
        };
        if let Some((least, most)) = bounds.split_once(" to ").filter(|_| bounded.get("enum").is_none()) {
            let number = |text: &str| text.parse::<u64>().ok();
            assert_eq!(bounded["minimum"].as_u64(), number(least), "{key}");
            assert!(number(most).is_none_or(|most| bounded["maximum"].as_u64() == Some(most)), "{key}");
        }
        let told = match kind {
            "time" => property["$ref"] == "#/$defs/time",
            "boolean" => property["type"] == "boolean",
            _ if kind.starts_with("list of") => property["type"] == "array",
            _ => true,
        };
        assert!(told, "{key}: {kind}");
        documented.insert(key.to_owned());
    }
    for (key, property) in properties.iter().filter(|(key, _)| *key != "$schema") {
        let once = key.replace(RULES, "routes[].rate_limits[].");
        assert!(documented.contains(&once), "{key} is not documented");
        assert_eq!(property, &properties[&once], "{key}");
    }
}

/// A file of nothing but the schema's own defaults, and what it requires.
#[test]
fn its_defaults_are_a_configuration() {
    fn of(schema: &Value) -> Value {
        let mut value = json!({});
        for (name, property) in schema["properties"].as_object().expect("an object's") {
            let required = schema["required"].as_array().is_some_and(|names| names.contains(&json!(name)));
            if let Some(default) = property.get("default") {
                value[name] = if property["type"] == "object" { of(property) } else { default.clone() };
            } else if required || name == "routes" {
                value[name] = example(property);
            }
        }
        value
    }
    fn example(schema: &Value) -> Value {
        match schema["type"].as_str() {
            Some("array") => json!([of(&schema["items"])]),
            Some("object") => of(schema),
            Some("string") => schema["examples"][0].clone(),
            _ => example(schema["anyOf"].as_array().and_then(|forms| forms.last()).expect("forms")),
        }
    }
    let document = of(&config::schema(false));
    let read =
        config::parse(&document.to_string(), "defaults.json").unwrap_or_else(|error| panic!("{error}"));
    let least = json!({ "routes": [{ "path": document["routes"][0]["path"], "backend": document["routes"][0]["backend"] }] });
    let silent = config::parse(&least.to_string(), "least.json").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(read, silent);
    assert!(properties(&document).is_empty() && document["kernel"]["ipv6_prefix"] == 64, "{document}");
}

/// No word of any language here.
const STRANGER: &str = "\u{1f980}";

/// What they may hold depends on other keys too.
const BOUND_TO_OTHERS: [&str; 12] = [
    "cache.max_bytes",
    "cache.max_entry_bytes",
    "cache.shards",
    "circuit_breaker.max_timeout_seconds",
    "rate_limit",
    "routes[].backend.balancer",
    "routes[].cache.max_entry_bytes",
    "routes[].health_check.interval",
    "routes[].rate_limits[].burst",
    "routes[].rate_limits[].lease",
    "routes[].rate_limits[].limit",
    "routes[].rate_limits[].scope",
];

/// In the place of each value of the reference, values of every kind and around every bound: what the gateway accepts
/// the schema accepts; what it refuses the schema does, unless that takes reading a string or another key.
#[test]
fn schema_and_gateway_judge_alike() {
    let document = config::schema(false);
    let schema = Schema::new(document.clone());
    let reference: Value = serde_json::from_str(REFERENCE).expect("JSON");
    let (mut tried, mut differing) = (0, BTreeSet::new());
    for (key, property) in properties(&document).iter().filter(|(key, _)| !key.starts_with(RULES)) {
        let pointer = format!("/{}", key.replace("[]", "/0").replace('.', "/"));
        for value in candidates(property) {
            let mut changed = reference.clone();
            let Some(place) = changed.pointer_mut(&pointer) else { continue };
            *place = value.clone();
            let (told, read) = (schema.check(&changed), config::parse(&changed.to_string(), "changed.json"));
            match (&told, read) {
                (Ok(()), Ok(_)) | (Err(_), Err(_)) => {}
                (Err(error), Ok(_)) => panic!("{key} = {value} is accepted by the gateway alone: {error}"),
                // What is in a string is the gateway's to read.
                (Ok(()), Err(_)) if value == "1s" || value == STRANGER => {}
                (Ok(()), Err(_)) => drop(differing.insert(key.clone())),
            }
            tried += 1;
        }
    }
    assert!(tried > 2_000, "{tried}");
    assert_eq!(differing, BOUND_TO_OTHERS.map(str::to_owned).into());
}

fn candidates(property: &Value) -> Vec<Value> {
    let mut values = vec![
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(1e18),
        json!("1s"),
        json!(STRANGER),
        json!({ STRANGER: 1 }),
        json!([null]),
        json!([]),
        json!({}),
    ];
    values.extend(property.get("default").cloned());
    values.extend(property["enum"].as_array().into_iter().flatten().cloned());
    for form in property["anyOf"].as_array().into_iter().flatten() {
        values.extend(form["enum"].as_array().into_iter().flatten().cloned());
    }
    for (bound, beyond) in [("minimum", -1), ("maximum", 1)] {
        if let Some(bound) = property[bound].as_i64() {
            values.extend([json!(bound), json!(bound + beyond)]);
        }
    }
    values
}
