//! The kernel half at one moment, for the admin API.

use std::net::IpAddr;

use gateway_common::standing::Penalty;

use super::fill::Counted;
use super::{Kernel, State};
use crate::datapath::{Counters, Datapath, Error, Figures, Fill, Hook, Loud, MAPS, sys};

pub struct Reading {
    /// The configured interfaces by name; `None`: the kernel half is not on it.
    pub interfaces: Vec<(String, Option<Hook>)>,
    pub counters: Counters,
    pub fill: [Fill; MAPS],
    pub penalties: Vec<(IpAddr, Penalty)>,
    pub heartbeat: Figures,
    /// When that was, on the monotonic clock of packets.
    pub now_ns: u64,
}

impl Kernel {
    /// `None`: the kernel half does not run.
    pub fn read(&self) -> Result<Option<Reading>, Error> {
        let heartbeat = self.sources.get().map(|sources| sources.figures()).unwrap_or_default();
        let mut state = self.lock();
        let State { datapath, counted, .. } = &mut *state;
        datapath.as_ref().map(|datapath| read(datapath, counted, heartbeat)).transpose()
    }

    /// The sources whose connection requests were refused most often, the loudest first; `None`: the kernel half does
    /// not run.
    pub fn loudest(&self, most: usize) -> Result<Option<Vec<Loud>>, Error> {
        self.lock().datapath.as_ref().map(|datapath| datapath.loudest(most)).transpose()
    }

    /// Why the kernel half does not run, where it does not.
    pub fn why_not(&self) -> String {
        let state = self.lock();
        state.lacking.clone().unwrap_or_else(|| "kernel.interfaces names none".to_owned())
    }
}

fn read(datapath: &Datapath, counted: &mut Counted, heartbeat: Figures) -> Result<Reading, Error> {
    let hook_on = |name: &str| {
        let attachment = datapath.attachments().find(|(attachment, _)| attachment.interface == name);
        attachment.map(|(attachment, _)| attachment.hook)
    };
    let now_ns = sys::monotonic_ns();
    let penalties = datapath.standings()?.penalties()?.into_iter();
    let in_force = penalties.filter(|(_, penalty)| penalty.until_ns > now_ns);
    Ok(Reading {
        interfaces: datapath.interfaces().map(|(name, _)| (name.to_owned(), hook_on(name))).collect(),
        counters: datapath.counters()?,
        fill: counted.read(datapath)?,
        penalties: in_force.map(|(source, penalty)| (source.into(), penalty)).collect(),
        heartbeat,
        now_ns,
    })
}
