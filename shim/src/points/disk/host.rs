//! The half that faces the host: a frontend for whatever backend there is, built anew after each
//! migration.

mod backend;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use xen_abi::Mfn;
use xen_abi::blkif::{PROTOCOL, SLOT_SIZE};
use xen_abi::xenbus::XenbusState;

use super::features::Offer;
use super::guest::FRONT_KEYS;
use crate::host::{Access, HostPort, HostRef};
use crate::points::device::Stage;
use crate::points::ring::FrontRing;
use crate::points::xenbus::{HostLink, Nodes};
use crate::points::{Cx, DeviceId};

/// log2 of the frames of our ring: 8 frames hold 256 requests, which is all that may be in flight.
const MAX_RING_ORDER: u32 = 3;

/// The collections that are asked for.
mod what {
    /// What is needed to make a ring.
    pub const RING: u8 = 0;
    /// What describes the disk.
    pub const DETAILS: u8 = 1;
    /// Whether its size has changed.
    pub const SIZE: u8 = 2;
}

/// A frame that is ours again once the backend lets go of it.
#[derive(Debug)]
pub(super) struct Loose {
    grant: HostRef,
    frame: Option<Mfn>,
}

/// The connection to the host's backend.
#[derive(Debug)]
pub(super) struct HostHalf {
    pub link: HostLink,
    pub stage: Stage,
    pub ring: Option<FrontRing<SLOT_SIZE>>,
    ring_grants: Vec<HostRef>,
    pub port: Option<HostPort>,
    /// What it offers, while connected.
    pub offer: Option<Offer>,
    pub loose: Vec<Loose>,
}

impl HostHalf {
    pub fn new(device: DeviceId) -> Self {
        Self {
            link: HostLink::new(device),
            stage: Stage::Waiting,
            ring: None,
            ring_grants: Vec::new(),
            port: None,
            offer: None,
            loose: Vec::new(),
        }
    }

    /// Begins to connect.
    pub fn start(&mut self, cx: &mut Cx<'_>, frontend: &str) {
        self.stage = Stage::Waiting;
        self.link.start(cx.host_store, frontend, FRONT_KEYS);
    }

    /// The host is another one: everything that tied us to the old one is void, and its frames
    /// are ours.
    pub fn forget(&mut self, cx: &mut Cx<'_>) {
        self.ring_grants.clear();
        self.port = None;
        self.offer = None;
        let ring = self.ring.take().map(FrontRing::into_frames);
        let loose = self.loose.drain(..).filter_map(|loose| loose.frame);
        ring.into_iter()
            .flatten()
            .chain(loose)
            .for_each(|frame| cx.pool.give_back(frame));
    }

    /// Ends the connection from our side, once.
    pub fn close(&mut self, cx: &mut Cx<'_>) {
        if self.stage != Stage::Closed {
            self.stage = Stage::Closed;
            self.drop_ring(cx);
            self.link.set_state(cx.host_store, XenbusState::CLOSED);
        }
        self.end_loose(cx);
    }

    /// Gives up ring and port; the backend may keep the frames for a while.
    pub fn drop_ring(&mut self, cx: &mut Cx<'_>) {
        if let Some(port) = self.port.take() {
            cx.xen.close(port);
        }
        self.offer = None;
        let frames = self.ring.take().map(FrontRing::into_frames);
        let grants = self.ring_grants.drain(..);
        self.loose.extend(
            grants
                .zip(frames.into_iter().flatten())
                .map(|(grant, frame)| Loose {
                    grant,
                    frame: Some(frame),
                }),
        );
        self.end_loose(cx);
    }

    /// Ends grants, keeping in mind those that the backend still uses.
    pub fn end_loose(&mut self, cx: &mut Cx<'_>) {
        self.loose.retain(|loose| {
            let ended = cx.host_grants.end(loose.grant);
            if let (true, Some(frame)) = (ended, loose.frame) {
                cx.pool.give_back(frame);
            }
            !ended
        });
    }

    /// Takes back a grant that the backend was never told of.
    pub fn end_unused(&mut self, cx: &mut Cx<'_>, grant: HostRef) {
        if !cx.host_grants.end(grant) {
            self.loose.push(Loose { grant, frame: None });
        }
    }

    /// Makes a ring as large as the backend takes and memory allows, and offers it.
    fn offer_ring(&mut self, cx: &mut Cx<'_>, nodes: &Nodes) -> Result<(), String> {
        let theirs = nodes.number("max-ring-page-order").unwrap_or(0u32);
        let order = (0..=theirs.min(MAX_RING_ORDER))
            .rev()
            .find(|&order| self.make_ring(cx, order))
            .ok_or("there is no memory for a ring")?;
        let port = match cx.xen.alloc_unbound(self.link.backend_id()) {
            Ok(port) => port,
            Err(error) => {
                self.drop_ring(cx);
                return Err(format!("there is no port for it: {error}"));
            }
        };
        self.port = Some(port);
        let link = &self.link;
        let store = &mut *cx.host_store;
        if order == 0 {
            // Backends look for this name only when no order is given.
            link.write(store, "ring-ref", &self.ring_grants[0].0.to_string());
            link.remove(store, "ring-page-order");
        } else {
            for (index, grant) in self.ring_grants.iter().enumerate() {
                link.write(store, &format!("ring-ref{index}"), &grant.0.to_string());
            }
            link.write(store, "ring-page-order", &order.to_string());
        }
        link.write(store, "event-channel", &port.0.0.to_string());
        link.write(store, "protocol", PROTOCOL);
        link.write(store, "feature-persistent", "0");
        link.set_state(store, XenbusState::INITIALISED);
        Ok(())
    }

    fn make_ring(&mut self, cx: &mut Cx<'_>, order: u32) -> bool {
        let mut frames = Vec::new();
        for _ in 0..1u32 << order {
            let Some(frame) = cx.pool.take() else { break };
            let backend = self.link.backend_id();
            match cx.host_grants.grant(backend, frame, Access::ReadWrite) {
                Some(grant) => self.ring_grants.push(grant),
                None => {
                    cx.pool.give_back(frame);
                    break;
                }
            }
            frames.push(frame);
        }
        if frames.len() == 1 << order {
            self.ring = Some(FrontRing::new(cx.frames, frames));
            return true;
        }
        let grants = core::mem::take(&mut self.ring_grants);
        for (grant, frame) in grants.into_iter().zip(frames) {
            self.loose.push(Loose {
                grant,
                frame: Some(frame),
            });
        }
        self.end_loose(cx);
        false
    }
}
