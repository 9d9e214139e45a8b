//! What all devices share: the stores and grant tables of both sides.

use alloc::boxed::Box;

use xen_abi::{DomId, Errno, Mfn};

use super::Parts;
use crate::cpu::Machine;
use crate::host::grants::{HostGrantTable, TableFrames};
use crate::host::store::StoreConnection;
use crate::host::{Arrival, Host, HostPort};
use crate::mem::{FramePool, Frames};
use crate::mm::{Ledger, Owner};
use crate::points::evtchn::PortsView;
use crate::points::grant::{DEFAULT_MAX_FRAMES, GuestGrantTable, Holds};
use crate::points::xenstore::{Limits, VirtualStore};
use crate::points::{Cx, Environment};

/// Stores and grant tables.
pub struct StoresAndGrants {
    pub domid: DomId,
    pub backend: DomId,
    pub pool: Box<dyn FramePool>,
    /// The guest's store.
    pub store: VirtualStore,
    /// The guest's grant table.
    pub grants: GuestGrantTable,
    /// The connection to the real store.
    pub real: StoreConnection,
    pub real_port: HostPort,
    /// The real grant table.
    pub host_grants: HostGrantTable,
    grant_frames: Box<dyn TableFrames>,
}

impl StoresAndGrants {
    /// Makes both sides; `ring` leads to the real store.
    pub fn new(parts: Parts, (page, real_port): (Mfn, HostPort)) -> Self {
        let Parts { domid, backend, .. } = parts;
        Self {
            domid,
            backend,
            pool: parts.pool,
            store: VirtualStore::new(domid, Limits::default()),
            grants: GuestGrantTable::new(domid, backend, DEFAULT_MAX_FRAMES),
            real: StoreConnection::new(page),
            real_port,
            host_grants: HostGrantTable::new(),
            grant_frames: parts.grant_frames,
        }
    }

    /// Forgets the host that is gone, or what was agreed with it.
    pub fn reattach(
        &mut self,
        frames: &dyn Frames,
        (page, port): (Mfn, HostPort),
        arrival: Arrival,
    ) {
        self.real.reconnect(page);
        self.real_port = port;
        match arrival {
            Arrival::NewDomain => self.host_grants.reset(),
            Arrival::SameDomain => self.host_grants.abandon(frames),
        }
    }

    /// Gives the guest's grant table the frame that each domain has from the start.
    pub fn create_guest_table<M: Machine, H: Host>(
        &mut self,
        env: &mut Environment<'_, M, H>,
    ) -> Result<(), Errno> {
        let mut pool = SharedPool {
            pool: &mut *self.pool,
            ledger: env.ledger,
        };
        match self.grants.create(&mut pool) {
            true => Ok(()),
            false => Err(Errno::ENOMEM),
        }
    }

    /// Runs `act` with everything that a device may use.
    pub fn with_cx<M: Machine, H: Host, R>(
        &mut self,
        env: &mut Environment<'_, M, H>,
        act: impl FnOnce(&mut Cx<'_>) -> R,
    ) -> R {
        let mut ports = PortsView {
            channels: env.channels,
            frames: env.m,
            vcpus: env.vcpus,
        };
        let mut host_grants = self.host_grants.via(env.m, &mut *self.grant_frames);
        let mut holds = Holds {
            ledger: env.ledger,
            tlb: env.m,
        };
        let mut grants = self.grants.via(&mut holds);
        let mut cx = Cx {
            frames: env.m,
            pool: &mut *self.pool,
            xen: env.host,
            host_grants: &mut host_grants,
            host_store: &mut self.real,
            store: &mut self.store,
            ports: &mut ports,
            grants: &mut grants,
            guest_domid: self.domid,
            backend_domid: self.backend,
        };
        act(&mut cx)
    }
}

/// Frames of the pool that the guest may map.
pub struct SharedPool<'a> {
    pub pool: &'a mut dyn FramePool,
    pub ledger: &'a mut Ledger,
}

impl FramePool for SharedPool<'_> {
    fn available(&self) -> usize {
        self.pool.available()
    }
    fn take(&mut self) -> Option<Mfn> {
        let frame = self.pool.take()?;
        let shared = self.ledger.change_owner(frame, Owner::Shim, Owner::Shared);
        // A frame that can not be shared is in the ledger's books as something else. It goes back
        // to nobody.
        match shared {
            Ok(()) => Some(frame),
            Err(errno) => {
                log::error!(
                    "frame {:#x} of the pool can not be shared: {errno}",
                    frame.0
                );
                None
            }
        }
    }

    fn give_back(&mut self, frame: Mfn) {
        match self.ledger.change_owner(frame, Owner::Shared, Owner::Shim) {
            Ok(()) => self.pool.give_back(frame),
            // The guest still maps it: better lost than used for something else.
            Err(errno) => log::error!("frame {:#x} stays shared: {errno}", frame.0),
        }
    }
}
