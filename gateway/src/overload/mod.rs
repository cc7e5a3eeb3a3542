//! The gateway under more than it, or an upstream, can take: what is admitted, what waits, what is refused.

//! A request passes two points. As it begins, pressure on the gateway itself may leave no room for it
//! ([`Gate::begin`](gate::Gate::begin)). Before its upstream, it needs one of the places that the upstream can serve
//! ([`Line::enter`](line::Line::enter)), and may queue for it a moment. Nothing here knows a request.

pub mod distress;
pub mod gate;
pub mod limit;
pub mod line;
pub mod meter;
pub mod pressure;
pub mod room;

/// Why a request is refused that could have been served at another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The upstream has as many as it can serve, and the queue before it is full.
    Limit,
    /// No place before the upstream became free in time.
    Queue,
    /// The gateway is too slow to take in what comes.
    Delay,
    /// The gateway's memory is short.
    Memory,
    /// The gateway's file descriptors are short.
    Descriptors,
}

#[cfg(test)]
mod gate_tests;
