//! What the admin API has: one table of methods and paths, which requests are answered by and the OpenAPI document is
//! written from.

use std::fmt::Display;
use std::str::FromStr;

use bytes::Bytes;
use http::{Method, StatusCode};
use schemars::{Schema, SchemaGenerator};
use serde::de::DeserializeOwned;

use super::access::Access;
use super::problem::Problem;
use super::{
    Added, Done, Drained, Effective, Endpoints, Entries, KernelHalf, Level, Purged, Reloaded, Seconds,
    TopSources, explain, figures, status,
};
use crate::admin::stats::{HealthReport, Stats};
use crate::cache::Purge;
use crate::lists::List;
use crate::text::decoded;

/// A row of the table.
pub struct Route {
    pub method: &'static Method,
    /// A segment in braces is a parameter.
    pub path: &'static str,
    pub operation: Operation,
    pub access: Access,
    pub summary: &'static str,
    /// Those of the path first, then those of the query, all required.
    pub parameters: &'static [Parameter],
    /// What is sent along.
    pub body: Option<Document>,
    pub answer: Answer,
}

/// What is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// One of the metrics port's, at the same path.
    Page(&'static str),
    Status,
    Reload,
    Level,
    SetLevel,
    Endpoints,
    /// Or give it requests again.
    Drain(bool),
    Explain,
    List,
    Add,
    Delete,
    Purge,
    Profile,
    Routes,
    Cache,
    Limits,
    Kernel,
    Sources,
    Config,
    OpenApi,
}

/// The schema of a document.
pub type Document = fn(&mut SchemaGenerator) -> Schema;

pub struct Parameter {
    pub name: &'static str,
    pub schema: Document,
    pub what: &'static str,
}

pub enum Answer {
    Json(Document),
    /// Of this content type.
    Other(&'static str),
}

const fn document<T: schemars::JsonSchema>() -> Document {
    SchemaGenerator::subschema_for::<T>
}

const GET: Route = Route {
    method: &Method::GET,
    path: "",
    operation: Operation::Status,
    access: Access::Local,
    summary: "",
    parameters: &[],
    body: None,
    answer: Answer::Other(TEXT),
};
const CHANGE: Route = Route { method: &Method::POST, access: Access::Change, ..GET };

const TEXT: &str = "text/plain";
const JSON: &str = "application/json";
const GZIP: &str = "application/gzip";

const LIST: Parameter = Parameter { name: "list", schema: document::<List>(), what: "Which list." };
const NETWORK: Parameter = Parameter {
    name: "network",
    schema: document::<String>(),
    what: "As it stands on the list, such as 203.0.113.0/24.",
};
const ENDPOINT: Parameter = Parameter {
    name: "endpoint",
    schema: document::<String>(),
    what: "As `/v1/endpoints` names it, or an address of it, or its upstream's name for all of that.",
};
const SOURCE: Parameter = Parameter {
    name: "source",
    schema: document::<std::net::IpAddr>(),
    what: "Whose connections and requests.",
};
const SECONDS: Parameter =
    Parameter { name: "seconds", schema: document::<Seconds>(), what: "For how long samples are taken." };

pub static ROUTES: &[Route] = &[
    Route {
        path: "/v1/status",
        operation: Operation::Status,
        summary: "How the gateway is.",
        answer: Answer::Json(document::<status::Status>()),
        ..GET
    },
    Route {
        path: "/v1/reload",
        operation: Operation::Reload,
        summary: "Reads the configuration again and puts it in force, or says in a 409 why the one before it stays.",
        answer: Answer::Json(document::<Reloaded>()),
        ..CHANGE
    },
    Route {
        path: "/v1/log",
        operation: Operation::Level,
        summary: "How much is said on standard error.",
        answer: Answer::Json(document::<Level>()),
        ..GET
    },
    Route {
        method: &Method::PUT,
        path: "/v1/log",
        operation: Operation::SetLevel,
        summary: "Says more or less, until the process ends.",
        body: Some(document::<Level>()),
        answer: Answer::Json(document::<Level>()),
        ..CHANGE
    },
    Route {
        path: "/v1/endpoints",
        operation: Operation::Endpoints,
        summary: "The endpoints of all upstreams, and how each is.",
        answer: Answer::Json(document::<Endpoints>()),
        ..GET
    },
    Route {
        path: "/v1/endpoints/{endpoint}/drain",
        operation: Operation::Drain(true),
        summary: "Gives an endpoint no further requests; those under way finish.",
        parameters: &[ENDPOINT],
        answer: Answer::Json(document::<Drained>()),
        ..CHANGE
    },
    Route {
        path: "/v1/endpoints/{endpoint}/undrain",
        operation: Operation::Drain(false),
        summary: "Gives it requests again, few at first.",
        parameters: &[ENDPOINT],
        answer: Answer::Json(document::<Drained>()),
        ..CHANGE
    },
    Route {
        path: "/v1/explain",
        operation: Operation::Explain,
        access: Access::Private,
        summary: "What would happen to a source now, and why. Nothing is taken or counted by asking.",
        parameters: &[SOURCE],
        answer: Answer::Json(document::<explain::Explanation>()),
        ..GET
    },
    Route {
        path: "/v1/lists/{list}",
        operation: Operation::List,
        access: Access::Private,
        summary: "Networks that the kernel half never refuses, or drops; the configuration's part included.",
        parameters: &[LIST],
        answer: Answer::Json(document::<Entries>()),
        ..GET
    },
    Route {
        path: "/v1/lists/{list}",
        operation: Operation::Add,
        summary: "Puts a network on the list, or changes its end and reason there.",
        parameters: &[LIST],
        body: Some(document::<Added>()),
        answer: Answer::Json(document::<Done>()),
        ..CHANGE
    },
    Route {
        method: &Method::DELETE,
        path: "/v1/lists/{list}",
        operation: Operation::Delete,
        summary: "Takes a network off the list.",
        parameters: &[LIST, NETWORK],
        answer: Answer::Json(document::<Done>()),
        ..CHANGE
    },
    Route {
        path: "/v1/purge",
        operation: Operation::Purge,
        summary: "Forgets stored responses: of one URL, of all that begin with a prefix, or with a tag.",
        body: Some(document::<Purge>()),
        answer: Answer::Json(document::<Purged>()),
        ..CHANGE
    },
    Route {
        path: "/v1/profile",
        operation: Operation::Profile,
        summary: "What the process spends the next seconds of processor time on, for `pprof`; one at a time.",
        parameters: &[SECONDS],
        answer: Answer::Other(GZIP),
        ..CHANGE
    },
    Route {
        path: "/v1/routes",
        operation: Operation::Routes,
        summary: "The routes in force, and what is under way on each.",
        answer: Answer::Json(document::<figures::Routes>()),
        ..GET
    },
    Route {
        path: "/v1/cache",
        operation: Operation::Cache,
        summary: "What the cache holds.",
        answer: Answer::Json(document::<figures::Cache>()),
        ..GET
    },
    Route {
        path: "/v1/limits",
        operation: Operation::Limits,
        summary: "What each rate limit decided, and the table of their keys.",
        answer: Answer::Json(document::<figures::Limits>()),
        ..GET
    },
    Route {
        path: "/v1/kernel",
        operation: Operation::Kernel,
        access: Access::Private,
        summary: "Where the kernel half judges, what it did, how full it is, and whom it has penalised.",
        answer: Answer::Json(document::<KernelHalf>()),
        ..GET
    },
    Route {
        path: "/v1/sources",
        operation: Operation::Sources,
        access: Access::Private,
        summary: "Whose connection requests the kernel half refused most, and who ignores the rate limits' refusals.",
        answer: Answer::Json(document::<TopSources>()),
        ..GET
    },
    Route {
        path: "/v1/config",
        operation: Operation::Config,
        access: Access::Private,
        summary: "The configuration in force, with every default filled in.",
        answer: Answer::Json(document::<Effective>()),
        ..GET
    },
    Route {
        path: "/v1/openapi.json",
        operation: Operation::OpenApi,
        access: Access::Open,
        summary: "This description, as an OpenAPI 3.1 document.",
        answer: Answer::Other(JSON),
        ..GET
    },
    page("/metrics", "Everything that is counted, for Prometheus.", Answer::Other(TEXT)),
    page(
        "/health",
        "Whether it is well, in JSON: `ok`, `degraded` or `draining`.",
        Answer::Json(document::<HealthReport>()),
    ),
    page("/healthz", "Whether the process serves.", Answer::Other(TEXT)),
    page("/readyz", "Whether it takes requests: 503 while it drains.", Answer::Other(TEXT)),
    page("/stats", "Sums by route and upstream, in JSON.", Answer::Json(document::<Stats>())),
];

const fn page(path: &'static str, summary: &'static str, answer: Answer) -> Route {
    Route { path, operation: Operation::Page(path), access: Access::Open, summary, answer, ..GET }
}

/// A request that has found its row.
#[derive(Debug)]
pub struct Call {
    /// Of the path and of the query.
    parameters: Vec<(String, String)>,
    pub body: Bytes,
}

/// Parameters of a path, by name.
type Captured<'a> = Vec<(&'static str, &'a str)>;

/// The row for a request, and what its path says.
pub fn find<'a>(method: &Method, path: &'a str) -> Result<(&'static Route, Captured<'a>), Problem> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let mut allow = Vec::new();
    for route in ROUTES {
        match captured(route.path, path) {
            Some(captured) if route.method == method => return Ok((route, captured)),
            Some(_) => allow.push(route.method),
            None => {}
        }
    }
    Err(match allow.is_empty() {
        true => {
            Problem::new(StatusCode::NOT_FOUND, "there is no such path: docs/admin.md lists those there are")
        }
        false => Problem::method(allow),
    })
}

fn captured<'a>(pattern: &'static str, path: &'a str) -> Option<Captured<'a>> {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    let mut captured = Vec::new();
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return Some(captured),
            (Some(name), Some(value)) => match name.strip_prefix('{').and_then(|name| name.strip_suffix('}'))
            {
                Some(name) => captured.push((name, value)),
                None if name == value => {}
                None => return None,
            },
            (_, _) => return None,
        }
    }
}

impl Call {
    /// Every parameter of the row has to be there, once, and no other.
    pub fn new(
        route: &Route,
        captured: Captured<'_>,
        query: Option<&str>,
        body: Bytes,
    ) -> Result<Self, Problem> {
        let unclear = |detail: String| Err(Problem::unclear(detail));
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let mut parameters: Vec<(String, String)> = Vec::new();
        for (name, value) in captured.into_iter().chain(pairs) {
            let Ok(value) = String::from_utf8(decoded(value).collect()) else {
                return unclear(format!("the parameter {name:?} is no UTF-8"));
            };
            if !route.parameters.iter().any(|known| known.name == name) {
                return unclear(format!("there is no parameter {name:?} here"));
            }
            if parameters.iter().any(|(known, _)| known == name) {
                return unclear(format!("the parameter {name:?} stands there twice"));
            }
            parameters.push((name.to_owned(), value));
        }
        let is_missing = |name| !parameters.iter().any(|(known, _)| known == name);
        match route.parameters.iter().find(|known| is_missing(known.name)) {
            Some(Parameter { name, what, .. }) => {
                unclear(format!("the parameter {name:?} is missing: {what}"))
            }
            None => Ok(Self { parameters, body }),
        }
    }

    /// One of the row's parameters.
    pub fn parameter<T: FromStr<Err: Display>>(&self, name: &str) -> Result<T, Problem> {
        let value = self.parameters.iter().find(|(known, _)| known == name);
        let (_, value) = value.expect("a row has the parameters that its operation asks for");
        value.parse().map_err(|error| Problem::unclear(format!("{name} {value:?}: {error}")))
    }

    pub fn document<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Problem::unclear(format!("not understood: {error}")))
    }
}
