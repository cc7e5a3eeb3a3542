//! The OpenAPI document of the admin API: it describes what there is, all of it, and what is really answered.

use gateway::control::router::ROUTES;
use gateway_tests::gateway::route_to;
use gateway_tests::schema::faults;
use gateway_tests::{Api, Gateway, Upstream};
use serde_json::{Value, json};

fn gateway(upstream: &Upstream) -> Gateway {
    let mut config = route_to(&upstream.url());
    config["routes"][0]["enable_cache"] = json!(true);
    config["routes"][0]["rate_limits"] = json!([
        { "name": "day", "limit": 3, "per": "day", "burst": 2 },
        { "name": "watched", "limit": 1, "per": "day", "shadow": true }
    ]);
    config["circuit_breaker"] = json!({});
    config["kernel"] = json!({ "deny": ["198.51.100.0/24"] });
    Gateway::controlled(config)
}

/// Path, method and what is said of them.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().expect("an object").iter();
    let of_path = |(path, methods): (&String, &Value)| {
        let methods = methods.as_object().expect("an object").clone();
        methods.into_iter().map({
            let path = path.clone();
            move |(method, operation)| (path.clone(), method.to_uppercase(), operation)
        })
    };
    paths.flat_map(of_path).collect()
}

/// What stands for the parameters: something that there is, so that the answer is the real one.
fn target(path: &str, operation: &Value, endpoint: &str) -> String {
    let mut target = path.to_owned();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().expect("it has a name");
        let value = match name {
            "list" => "deny",
            "network" => "203.0.113.0/24",
            "source" => "127.0.0.1",
            "endpoint" => endpoint,
            "seconds" => "1",
            other => panic!("give the parameter {other:?} a value that the gateway of this test has"),
        };
        match parameter["in"].as_str() {
            Some("path") => target = target.replace(&format!("{{{name}}}"), value),
            Some("query") => {
                let mark = if target.contains('?') { '&' } else { '?' };
                target = format!("{target}{mark}{name}={value}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    target
}

#[test]
fn it_describes_what_there_is_and_nothing_else() {
    let upstream = Upstream::ok();
    let gateway = gateway(&upstream);
    let api = Api::of(&gateway);
    let document = api.get("/v1/openapi.json").json();
    assert_eq!(document["openapi"], json!("3.1.0"));
    let mut described: Vec<_> =
        operations(&document).into_iter().map(|(path, method, _)| (path, method)).collect();
    let mut there: Vec<_> =
        ROUTES.iter().map(|route| (route.path.to_owned(), route.method.to_string())).collect();
    described.sort();
    there.sort();
    assert_eq!(described, there);
    let mut names: Vec<_> =
        operations(&document).iter().map(|(.., operation)| operation["operationId"].to_string()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), there.len(), "each has a name of its own");
    // The gateway itself says the same of each path.
    for (path, methods) in document["paths"].as_object().unwrap() {
        let answer = api.ask("TRACE", &path.replace("{list}", "deny"), "");
        assert_eq!(answer.status(), 405, "{path}: {answer}");
        let mut allowed: Vec<_> = answer.field("allow").unwrap().split(", ").map(str::to_lowercase).collect();
        allowed.sort();
        assert_eq!(allowed, methods.as_object().unwrap().keys().cloned().collect::<Vec<_>>(), "{path}");
    }
}

#[test]
fn what_is_answered_is_as_it_says() {
    let upstream = Upstream::ok();
    let gateway = gateway(&upstream);
    for _ in 0..4 {
        gateway.get("/");
    }
    let api = Api::of(&gateway);
    let document = api.get("/v1/openapi.json").json();
    let endpoints = api.get("/v1/endpoints").json();
    let endpoint = endpoints["endpoints"][0]["name"].as_str().unwrap();
    let check = |schema: &Value, value: &Value, what: &str| {
        let faults = faults(&document, schema, value);
        assert!(faults.is_empty(), "{what}: {faults:#?}\n{value:#}");
    };
    // Entries first, so that there is one to show and to take away.
    let mut all = operations(&document);
    all.sort_by_key(|(_, method, _)| {
        ["POST", "PUT", "GET", "DELETE"].iter().position(|known| known == method)
    });
    for (path, method, operation) in all {
        let what = format!("{method} {path}");
        let target = target(&path, &operation, endpoint);
        let answer = match &operation["requestBody"] {
            Value::Null => api.ask(&method, &target, ""),
            body => {
                let sent = match path.as_str() {
                    "/v1/lists/{list}" => {
                        json!({ "network": "203.0.113.0/24", "seconds": 60, "reason": "r" })
                    }
                    "/v1/purge" => json!({ "prefix": "http://a" }),
                    "/v1/log" => json!({ "level": "info" }),
                    other => panic!("give {other} a document"),
                };
                check(&body["content"]["application/json"]["schema"], &sent, &what);
                api.with("Content-Type", "application/json").ask(&method, &target, sent.to_string())
            }
        };
        assert_eq!(answer.status(), 200, "{what}: {answer}");
        let kind = answer.field("content-type").unwrap().split(';').next().unwrap();
        let content = &operation["responses"]["200"]["content"][kind];
        assert!(content.is_object(), "{what}: {kind} is not described");
        if kind == "application/json" && path != "/v1/openapi.json" {
            assert_ne!(content["schema"], json!({}), "{what}: it has a schema");
            check(&content["schema"], &answer.json(), &what);
        }
    }
    let problem = &document["paths"]["/v1/status"]["get"]["responses"]["default"];
    let problem = &problem["content"]["application/problem+json"]["schema"];
    for answer in [api.get("/v1/nowhere"), api.ask("PUT", "/v1/status", ""), api.get("/v1/explain")] {
        check(problem, &answer.json(), &answer.start);
    }
}

/// A checker that finds nothing would hold anything for good.
#[test]
fn the_checker_of_documents_checks() {
    let document = json!({ "s": { "type": "object", "required": ["a"], "properties": {
        "a": { "type": ["integer", "null"], "minimum": 0 },
        "b": { "type": "array", "items": { "enum": ["x", "y"] } },
        "c": { "anyOf": [{ "$ref": "#/s" }, { "type": "null" }] },
        "d": { "type": "object", "additionalProperties": { "type": "boolean" } }
    } } });
    for (value, good) in [
        (json!({ "a": 1 }), true),
        (json!({ "a": null, "b": ["x", "y"], "c": { "a": 2 }, "d": { "k": true } }), true),
        (json!({}), false),
        (json!({ "a": -1 }), false),
        (json!({ "a": 1.5 }), false),
        (json!({ "a": "1" }), false),
        (json!({ "a": 1, "b": ["z"] }), false),
        (json!({ "a": 1, "c": { "a": "2" } }), false),
        (json!({ "a": 1, "d": { "k": 1 } }), false),
        (json!({ "a": 1, "e": 1 }), false),
        (json!([]), false),
    ] {
        assert_eq!(faults(&document, &json!({ "$ref": "#/s" }), &value).is_empty(), good, "{value}");
    }
}
