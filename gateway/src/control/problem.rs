//! Why the admin API does not do what was asked: a problem of RFC 9457, as every refusal of the gateway.

use bytes::Bytes;
use http::header::{ALLOW, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use schemars::JsonSchema;
use serde::Serialize;

use crate::admin::reply;
use crate::datapath;
use crate::kernel::ChangeError;

pub const CONTENT: &str = "application/problem+json";

#[derive(Debug)]
pub struct Problem {
    pub status: StatusCode,
    /// What is wrong, and what to do about it.
    pub detail: String,
    /// Of a 405: what is allowed.
    allow: Vec<&'static Method>,
}

/// As it is answered.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub struct Body {
    /// Always `about:blank`: the status says which kind it is.
    r#type: &'static str,
    title: &'static str,
    status: u16,
    /// What is wrong, and what to do about it.
    detail: String,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), allow: Vec::new() }
    }

    /// What was sent cannot be understood.
    pub fn unclear(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub fn method(allow: Vec<&'static Method>) -> Self {
        let names: Vec<_> = allow.iter().map(|method| method.as_str()).collect();
        let detail = format!("the methods here are {}", names.join(", "));
        Self { allow, ..Self::new(StatusCode::METHOD_NOT_ALLOWED, detail) }
    }

    pub fn response(self) -> Response<Full<Bytes>> {
        let Self { status, detail, allow } = self;
        let title = status.canonical_reason().unwrap_or_default();
        let body = Body { r#type: "about:blank", title, status: status.as_u16(), detail };
        let mut text = serde_json::to_vec_pretty(&body).expect("it has string keys and numbers only");
        text.push(b'\n');
        let mut response = reply(status, CONTENT, text);
        let fields = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            fields.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if !allow.is_empty() {
            let names: Vec<_> = allow.iter().map(|method| method.as_str()).collect();
            fields.insert(ALLOW, HeaderValue::try_from(names.join(", ")).expect("methods are tokens"));
        }
        response
    }
}

impl From<datapath::Error> for Problem {
    fn from(error: datapath::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}
