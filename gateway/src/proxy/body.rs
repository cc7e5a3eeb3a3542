//! The bodies of both directions: what goes upstream, what goes downstream.
//!
//! Bytes pass through as they come; nothing is collected. An upstream body moves its own connection
//! while it is read, and gives it back at its end.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::client::Client;
use super::exchange::Exchange;
use crate::metrics::Outcome;
use crate::upstream;

pub type Lease = upstream::Lease<RequestBody>;
pub type Pool = upstream::Pool<RequestBody>;

/// A request's body on its way upstream.
pub enum RequestBody {
    Empty,
    Incoming { body: Incoming, client: Rc<Client> },
}

impl RequestBody {
    /// Wraps what the client sends, so that its end is noticed.
    pub fn new(body: Incoming, client: &Rc<Client>) -> Self {
        if body.is_end_stream() {
            client.request_ended();
            return Self::Empty;
        }
        Self::Incoming { body, client: client.clone() }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Incoming { body, client } => {
                let polled = Pin::new(&mut *body).poll_frame(cx);
                client.starved.set(polled.is_pending());
                let frame = ready!(polled);
                let ended = frame.as_ref().is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers));
                if ended || body.is_end_stream() {
                    client.request_ended();
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Incoming { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Incoming { body, .. } => body.size_hint(),
        }
    }
}

/// A response's body on its way downstream, with the account of its exchange.
pub struct Body {
    source: Source,
    exchange: Exchange,
}

enum Source {
    /// Made here.
    Full(Option<Bytes>),
    Upstream {
        body: Incoming,
        lease: Option<Lease>,
    },
}

impl Body {
    pub fn full(bytes: Bytes, exchange: Exchange) -> Self {
        let bytes = (!bytes.is_empty()).then_some(bytes);
        Self { source: Source::Full(bytes), exchange }
    }

    /// Passes `body` on. An empty one gives its connection back at once.
    pub fn upstream(body: Incoming, lease: Lease, exchange: Exchange) -> Self {
        let mut this = Self { source: Source::Upstream { body, lease: Some(lease) }, exchange };
        if this.is_end_stream() {
            this.end();
        }
        this
    }

    fn end(&mut self) {
        if let Source::Upstream { lease, .. } = &mut self.source
            && let Some(lease) = lease.take()
        {
            lease.release(self.exchange.client().timer.now());
        }
        self.exchange.complete();
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Full(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Upstream { body, lease } => {
                let mute = &this.exchange.client().mute;
                ready!(mute.poll(|cx| {
                    let polled = Pin::new(&mut *body).poll_frame(cx);
                    match lease {
                        Some(lease) if polled.is_pending() => lease.poll_driver(cx),
                        _ => return polled,
                    }
                    Pin::new(&mut *body).poll_frame(cx)
                }))
            }
        };
        match &frame {
            Some(Err(_)) => this.exchange.fail(Outcome::UpstreamFailed),
            Some(Ok(_)) if !this.is_end_stream() => {}
            Some(Ok(_)) | None => this.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Full(bytes) => bytes.is_none(),
            Source::Upstream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Upstream { body, .. } => body.size_hint(),
        }
    }
}
