//! The metrics port: what the gateway says of itself. No client address is shown, and nothing can be changed.

mod cache;
pub mod limits;
pub mod metrics;
mod overload;
pub mod patient;
pub mod stats;
mod store;
mod upstreams;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::proto::MetricFamily;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use patient::Patient;

use crate::metrics::Registry;
use crate::snapshot::Current;

/// What the port can see.
pub struct State {
    pub current: Arc<Current>,
    pub registry: Arc<Registry>,
    pub started: Instant,
    drain: OnceLock<Drain>,
    /// The kernel half's own families; empty without it.
    pub kernel: Box<dyn Fn() -> Vec<MetricFamily> + Send + Sync>,
    reload_error: Mutex<Option<String>>,
}

/// The drain, as it began.
struct Drain {
    since: Instant,
    longest: Duration,
}

/// How far it is.
pub struct Progress {
    pub elapsed: Duration,
    /// Until what is still open is cut off.
    pub left: Duration,
}

/// Whether it is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    Ok,
    /// The newest configuration was refused, and the one before serves.
    Degraded,
    Draining,
}

/// Connections at once. None has anything under way but a peer that is slow to ask, or to take its answer: the oldest
/// makes room for one more, so nobody can keep others out by staying.
const MAX_CONNECTIONS: usize = 64;
/// How long a peer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const BACK_OFF: Duration = Duration::from_millis(100);

impl State {
    pub fn new(
        current: Arc<Current>,
        registry: Arc<Registry>,
        kernel: Box<dyn Fn() -> Vec<MetricFamily> + Send + Sync>,
    ) -> Arc<Self> {
        Arc::new(Self {
            current,
            registry,
            started: Instant::now(),
            drain: OnceLock::new(),
            kernel,
            reload_error: Mutex::new(None),
        })
    }

    /// The drain begins, and takes the configured time at most.
    pub fn begin_drain(&self) {
        let longest = self.current.load().config.timeouts.drain;
        // It begins once.
        let _ = self.drain.set(Drain { since: Instant::now(), longest });
    }

    /// `None`: it does not drain.
    pub fn drain(&self) -> Option<Progress> {
        let Drain { since, longest } = self.drain.get()?;
        let elapsed = since.elapsed();
        Some(Progress { elapsed, left: longest.saturating_sub(elapsed) })
    }

    pub fn health(&self) -> Health {
        match (self.drain.get(), self.reload_error()) {
            (Some(_), _) => Health::Draining,
            (None, Some(_)) => Health::Degraded,
            (None, None) => Health::Ok,
        }
    }

    /// Requests under way.
    pub fn active(&self) -> u64 {
        self.registry.under_way()
    }

    /// Client connections open now.
    pub fn open(&self) -> u64 {
        self.registry.workers.iter().map(|cells| cells.open.get()).sum()
    }

    /// Why the file on disk is not what is in force; `None`: it is.
    pub fn reload_error(&self) -> Option<String> {
        self.reload_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_reload_error(&self, error: Option<String>) {
        *self.reload_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// Serves the port until the process ends.
pub async fn serve(state: Arc<State>, listener: TcpListener) {
    let mut open = VecDeque::<AbortHandle>::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(BACK_OFF).await;
            continue;
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MAX_CONNECTIONS {
            open.pop_front().inspect(AbortHandle::abort);
        }
        let state = state.clone();
        let connection = tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                std::future::ready(Ok::<_, Infallible>(respond(&state, &request)))
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            let stream = TokioIo::new(Patient::new(stream, PATIENCE));
            if let Err(error) = builder.serve_connection(stream, service).await {
                tracing::debug!(%error, "metrics connection");
            }
        });
        open.push_back(connection.abort_handle());
    }
}

fn respond<B>(state: &State, request: &Request<B>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET and HEAD only\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    page(state, request.uri().path()).unwrap_or_else(|| {
        let advice = "nothing here; try /metrics, /health, /healthz, /readyz or /stats\n";
        reply(StatusCode::NOT_FOUND, "text/plain", advice)
    })
}

/// What the port has at a path.
pub fn page(state: &State, path: &str) -> Option<Response<Full<Bytes>>> {
    Some(match path {
        "/metrics" => {
            reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics::render(state))
        }
        "/healthz" => reply(StatusCode::OK, "text/plain", "ok\n"),
        "/readyz" if state.drain().is_some() => {
            reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "draining\n")
        }
        "/readyz" => reply(StatusCode::OK, "text/plain", "ready\n"),
        "/health" => json_reply(&stats::health(state)),
        "/stats" => json_reply(&stats::stats(state)),
        _ => return None,
    })
}

fn json_reply(document: &impl Serialize) -> Response<Full<Bytes>> {
    let value = serde_json::to_value(document).expect("it has string keys and numbers only");
    reply(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

/// A whole answer, which nobody is to keep.
pub fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
