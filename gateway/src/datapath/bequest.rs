//! What a gateway leaves its successor of the kernel half, as descriptors: links, the maps that hold what was
//! learned, and the lock on the folder of `kernel.persist`.
//!
//! `Datapath::bequest` makes one, `Datapath::start` takes one. The links move to the successor's program
//! between two packets, so nothing passes unjudged.

use std::os::fd::{AsFd, OwnedFd};

use aya::Ebpf;
use aya::maps::{Map, MapData};
use gateway_common::maps::{BUCKET, KNOWN, PENALTY, POLICY, SELECTOR, STATE};
use serde::{Deserialize, Serialize};

use super::attach::{self, Attachment, Link, Pinned};
use super::error::Error;
use super::pins::{CONTRACT, Pins};
use super::standings::shared;
use crate::config::KernelMode;

/// The maps that are worth copying; lists and listeners are written anew from the configuration.
const MAPS: [&str; 6] = [SELECTOR, POLICY, STATE, PENALTY, KNOWN, BUCKET];

/// What a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Piece {
    Link(Attachment),
    Map(String),
    Lock,
}

#[derive(Debug, Default)]
pub struct Bequest {
    contract: String,
    pieces: Vec<(Piece, OwnedFd)>,
}

impl Bequest {
    pub fn new(contract: String) -> Self {
        Self { contract, pieces: Vec::new() }
    }

    pub(super) fn of(bpf: &Ebpf, links: &[Link], pins: Option<&Pins>) -> Result<Self, Error> {
        let mut bequest = Self::new(CONTRACT.to_owned());
        for link in links {
            let descriptor = link.descriptor().try_clone_to_owned().map_err(Error::Thread)?;
            bequest.push(Piece::Link(link.attachment().clone()), descriptor);
        }
        for name in MAPS {
            let map = shared(bpf, name)?.fd().as_fd().try_clone_to_owned().map_err(Error::Thread)?;
            bequest.push(Piece::Map(name.to_owned()), map);
        }
        if let Some(pins) = pins {
            bequest.push(Piece::Lock, pins.lock().map_err(Error::Thread)?);
        }
        Ok(bequest)
    }

    pub fn push(&mut self, piece: Piece, descriptor: OwnedFd) {
        self.pieces.push((piece, descriptor));
    }

    pub fn pieces(&self) -> impl Iterator<Item = (&Piece, &OwnedFd)> {
        self.pieces.iter().map(|(piece, descriptor)| (piece, descriptor))
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// What the bytes in the maps mean.
    pub fn contract(&self) -> &str {
        &self.contract
    }

    /// Whether this build's maps mean the same.
    pub(super) fn is_of_this_contract(&self) -> bool {
        self.contract == CONTRACT
    }

    pub(super) fn lock(&mut self) -> Option<OwnedFd> {
        self.take(|piece| *piece == Piece::Lock).map(|(_, descriptor)| descriptor)
    }

    /// The link that this interface and mode can go on with.
    pub(super) fn link(&mut self, interface: &str, mode: KernelMode) -> Result<Option<Pinned>, Error> {
        let of_interface = |piece: &Piece| match piece {
            Piece::Link(attachment) => attachment.interface == interface,
            Piece::Map(_) | Piece::Lock => false,
        };
        match self.take(of_interface) {
            Some((Piece::Link(attachment), descriptor)) => attach::adopt(attachment, descriptor, mode),
            _ => Ok(None),
        }
    }

    pub(super) fn map(&self, name: &'static str) -> Result<Map, Error> {
        let found = self.pieces().find(|(piece, _)| matches!(piece, Piece::Map(of) if of == name));
        let absent =
            || Error::Map { map: name, reason: "the gateway before has not handed it over".to_owned() };
        let (_, descriptor) = found.ok_or_else(absent)?;
        let descriptor = descriptor.try_clone().map_err(Error::Thread)?;
        MapData::from_fd(descriptor).and_then(Map::from_map_data).map_err(Error::map(name))
    }

    fn take(&mut self, is_it: impl Fn(&Piece) -> bool) -> Option<(Piece, OwnedFd)> {
        let place = self.pieces.iter().position(|(piece, _)| is_it(piece))?;
        Some(self.pieces.swap_remove(place))
    }
}
