//! The table of `router` as an OpenAPI 3.1 document, with the schemas of the types that are sent and answered.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::access::Access;
use super::problem;
use super::router::{Answer, Parameter, ROUTES, Route};

/// Where the schemas stand.
const SCHEMAS: &str = "/components/schemas";

/// Schemas of what is sent leave out what has a default; those of what is answered have all there is.
struct Schemas {
    sent: SchemaGenerator,
    answered: SchemaGenerator,
}

pub fn document() -> Value {
    let settings =
        || SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = SCHEMAS.into());
    let mut schemas = Schemas {
        sent: settings().for_deserialize().into_generator(),
        answered: settings().for_serialize().into_generator(),
    };
    let mut paths = json!({});
    for route in ROUTES {
        paths[route.path][route.method.as_str().to_lowercase()] = schemas.operation(route);
    }
    schemas.answered.subschema_for::<problem::Body>();
    let mut definitions = schemas.sent.take_definitions(true);
    definitions.extend(schemas.answered.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "The gateway's admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "HTTP at the control socket, and at control.admin_addr where that is set. Times are seconds of \
                the Unix clock. What asks for a token takes none at the socket.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": { "token": {
                "type": "http", "scheme": "bearer", "description": "What the file control.token_file holds.",
            } },
        },
    })
}

impl Schemas {
    fn operation(&mut self, route: &Route) -> Value {
        let mut operation = json!({
            "operationId": name(route),
            "summary": route.summary,
            "security": security(route.access),
            "responses": {
                "200": self.answer(&route.answer),
                "default": {
                    "description": "Why not.",
                    "content": { problem::CONTENT: { "schema": { "$ref": format!("#{SCHEMAS}/Problem") } } },
                },
            },
        });
        if !route.parameters.is_empty() {
            let parameters = route.parameters.iter().map(|parameter| self.parameter(route, parameter));
            operation["parameters"] = parameters.collect();
        }
        if let Some(body) = route.body {
            let schema = body(&mut self.sent);
            operation["requestBody"] =
                json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        }
        operation
    }

    fn parameter(&mut self, route: &Route, parameter: &Parameter) -> Value {
        let Parameter { name, schema, what } = parameter;
        let place = if route.path.contains(&format!("{{{name}}}")) { "path" } else { "query" };
        let schema = schema(&mut self.sent);
        json!({ "name": name, "in": place, "required": true, "description": what, "schema": schema })
    }

    fn answer(&mut self, answer: &Answer) -> Value {
        let (kind, schema) = match answer {
            Answer::Json(document) => ("application/json", json!(document(&mut self.answered))),
            Answer::Other(kind) => (*kind, json!({})),
        };
        json!({ "description": "As asked.", "content": { kind: { "schema": schema } } })
    }
}

/// `GET /v1/lists/{list}` → `get_lists_list`.
fn name(route: &Route) -> String {
    let words =
        route.path.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty() && *word != "v1");
    std::iter::once(route.method.as_str().to_lowercase().as_str()).chain(words).collect::<Vec<_>>().join("_")
}

/// What is enough: nothing, or the token. Peers of this host need none for `Local`.
fn security(access: Access) -> Value {
    match access {
        Access::Open => json!([{}]),
        Access::Local => json!([{}, { "token": [] }]),
        Access::Private | Access::Change => json!([{ "token": [] }]),
    }
}
