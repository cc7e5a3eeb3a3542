//! The kernel half's place in the process: started, given each new policy, counted, or done without.
//!
//! What the host lacks is said once, loudly, and the gateway proxies all the same; what the operator
//! named wrongly (no such interface, a taken hook) is an error.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::proto::{MetricFamily, MetricType};

use crate::admin::metrics::{counter, family};
use crate::config;
use crate::datapath::{Datapath, Error};

/// The kernel half, if it runs; shared with the metrics port.
#[derive(Clone)]
pub struct Kernel {
    datapath: Option<Arc<Mutex<Datapath>>>,
    listener: SocketAddr,
}

impl Kernel {
    /// Attaches to the configured interfaces. `listener`: where the proxy listens.
    pub fn start(config: &config::Kernel, listener: SocketAddr) -> Result<Self, Error> {
        let mut this = Self { datapath: None, listener };
        if config.interfaces.is_empty() {
            return Ok(this);
        }
        match Datapath::start(config, &[listener]) {
            Ok(datapath) => {
                for attachment in datapath.attachments() {
                    tracing::info!(interface = attachment.interface, hook = %attachment.hook, "kernel half attached");
                }
                this.datapath = Some(Arc::new(Mutex::new(datapath)));
            }
            Err(error) if host_lacks(&error) => {
                tracing::warn!("NO KERNEL PROTECTION, proxying without it: {error}");
            }
            Err(error) => return Err(error),
        }
        Ok(this)
    }

    pub fn is_running(&self) -> bool {
        self.datapath.is_some()
    }

    /// Puts a new policy in force; on an error the old one stays.
    pub fn apply(&self, config: &config::Kernel) -> Result<(), Error> {
        self.lock().map_or(Ok(()), |mut datapath| datapath.apply(config, &[self.listener]))
    }

    /// The host's addresses have changed.
    pub fn refresh(&self) {
        if let Some(Err(error)) = self.lock().map(|mut datapath| datapath.refresh()) {
            tracing::error!(%error, "the kernel half keeps judging by the host's former addresses");
        }
    }

    /// Detaches; packets pass unjudged from here on.
    pub fn stop(self) {
        drop(self.datapath);
    }

    /// Packets and bytes by verdict, for the metrics port.
    pub fn metrics(&self) -> Vec<MetricFamily> {
        let attached = u64::from(self.is_running());
        let mut up = prometheus::proto::Metric::default();
        let mut gauge = prometheus::proto::Gauge::default();
        gauge.set_value(attached as f64);
        up.set_gauge(gauge);
        let mut families = vec![family(
            "gateway_kernel_attached",
            "Whether the kernel half judges packets.",
            MetricType::GAUGE,
            vec![up],
        )];
        let Some(Ok(counters)) = self.lock().map(|datapath| datapath.counters()) else { return families };
        let (mut packets, mut bytes) = (Vec::new(), Vec::new());
        for (verdict, of, count) in counters.iter() {
            let labels = [("verdict", verdict.row().name), ("family", of.name())];
            packets.push(counter(&labels, count.packets));
            bytes.push(counter(&labels, count.bytes));
        }
        for (name, help, metrics) in [
            ("gateway_kernel_packets_total", "Packets by verdict of the kernel half.", packets),
            ("gateway_kernel_bytes_total", "Bytes by verdict of the kernel half.", bytes),
        ] {
            families.push(family(name, help, MetricType::COUNTER, metrics));
        }
        families
    }

    fn lock(&self) -> Option<MutexGuard<'_, Datapath>> {
        self.datapath.as_ref().map(|datapath| datapath.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether it is the host or the build that cannot, rather than the configuration that is wrong.
fn host_lacks(error: &Error) -> bool {
    match error {
        Error::NotBuiltIn | Error::Capability { .. } | Error::NoBpf(_) | Error::Refused { .. } => true,
        Error::NoInterface(_)
        | Error::Occupied { .. }
        | Error::Attach { .. }
        | Error::TooMany { .. }
        | Error::Map { .. }
        | Error::Addresses(_) => false,
    }
}
