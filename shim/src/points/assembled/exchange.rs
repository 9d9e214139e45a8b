//! Moves messages between the guest's store, the real one, and the devices, until none is left.

use core::mem;

use xen_abi::{Mfn, Port};

use super::{Parts, Points};
use crate::cpu::Machine;
use crate::host::store::{TreeReader, is_full};
use crate::host::{Host, StoreEvent, Tag};
use crate::points::bus::Bus;
use crate::points::xenstore::mirror::{self, Mirror};
use crate::points::xenstore::seed::{self, SeedParams};
use crate::points::{Cx, Environment, TagOwner};

/// Rounds in one go; a guest that writes without end gets no more than its turn.
const ROUNDS: usize = 16;
/// How long it may take until what makes way has gone.
const WAY_NS: u64 = 50_000_000;
/// After how long devices begin again for which nothing can make way.
const NO_WAY_NS: u64 = 5_000_000_000;
/// Answers of the real store taken in one round.
const ANSWERS: usize = 64;

/// What the guest's store waits for.
pub enum GuestStoreStage {
    /// The first contents are being read.
    Seeding {
        reader: Option<TreeReader>,
        store: (Port, Mfn),
        console: (Port, Mfn),
        guest_kib: u64,
    },
    /// The guest is served.
    Running,
}

impl GuestStoreStage {
    pub fn new(parts: &Parts) -> Self {
        Self::Seeding {
            reader: None,
            store: parts.store,
            console: parts.console,
            guest_kib: parts.guest_pages * 4,
        }
    }
}

impl Points {
    /// Asks the real store for the first contents of the guest's.
    pub(super) fn begin_seeding(&mut self) {
        if let GuestStoreStage::Seeding { reader, .. } = &mut self.stage {
            let tag = TagOwner::Seed.tag();
            *reader = Some(TreeReader::new(&mut self.shared.real, tag, &seed::ROOTS));
        }
    }

    /// Exchanges if there is something to exchange; cheap if not.
    pub(super) fn exchange_if_needed<M: Machine, H: Host>(
        &mut self,
        env: &mut Environment<'_, M, H>,
    ) {
        if self.shared.store.has_output() || self.shared.real.has_output() {
            self.exchange(env);
        }
    }

    /// Takes, answers and sends whatever can be.
    pub(super) fn exchange<M: Machine, H: Host>(&mut self, env: &mut Environment<'_, M, H>) {
        self.has_more = false;
        for _ in 0..ROUNDS {
            let heard = self.hear_host(env);
            let served = self.serve_guest(env);
            // One notification for a whole round: each may cost a switch to the host's domain.
            if self.shared.real.flush(env.m) {
                env.host.notify(self.shared.real_port);
            }
            if !heard && !served {
                return;
            }
        }
        self.has_more = true;
    }

    fn hear_host<M: Machine, H: Host>(&mut self, env: &mut Environment<'_, M, H>) -> bool {
        for count in 0..ANSWERS {
            let Some((tag, event)) = self.shared.real.poll(env.m) else {
                return count > 0;
            };
            self.host_store_event(env, tag, event);
        }
        true
    }

    fn host_store_event<M: Machine, H: Host>(
        &mut self,
        env: &mut Environment<'_, M, H>,
        tag: Tag,
        event: StoreEvent,
    ) {
        match TagOwner::of(tag) {
            Some(TagOwner::Seed) => self.seed_event(env, event),
            Some(TagOwner::Mirror { what, epoch }) => {
                self.mirror.suspend.set_now(env.host.now_ns());
                self.with_mirror(|mirror, stores| mirror.event(stores, what, epoch, event));
            }
            Some(TagOwner::Device(id, detail)) => {
                self.bus_event(env, event, |bus, cx, event| {
                    bus.host_store_event(cx, id, detail, event);
                });
            }
            Some(TagOwner::Bus(detail)) => {
                self.bus_event(env, event, |bus, cx, event| {
                    bus.own_event(cx, detail, event);
                });
            }
            None => log::error!("xenstore: an answer to what nobody has asked"),
        }
    }

    /// Takes what came for the list of devices or for one of them.
    fn bus_event<M: Machine, H: Host>(
        &mut self,
        env: &mut Environment<'_, M, H>,
        event: StoreEvent,
        act: impl FnOnce(&mut Bus, &mut Cx<'_>, StoreEvent),
    ) {
        if let StoreEvent::Reply(Err(error)) = event
            && is_full(error)
        {
            self.make_way(env);
        }
        let bus = &mut self.bus;
        self.shared.with_cx(env, |cx| act(bus, cx, event));
        let devices = bus.len();
        self.with_mirror(|mirror, stores| mirror.leave_room(stores, devices));
    }

    /// The real store has no room for a device's nodes: makes the guest's nodes give way, and lets
    /// the devices that could not connect begin again.
    fn make_way<M: Machine, H: Host>(&mut self, env: &Environment<'_, M, H>) {
        let pause = match self.with_mirror(Mirror::make_way) {
            true => WAY_NS,
            false => NO_WAY_NS,
        };
        self.begin_again_at = Some(env.host.now_ns().saturating_add(pause));
    }

    fn seed_event<M: Machine, H: Host>(
        &mut self,
        env: &mut Environment<'_, M, H>,
        event: StoreEvent,
    ) {
        let GuestStoreStage::Seeding {
            reader: Some(reader),
            ..
        } = &mut self.stage
        else {
            return;
        };
        reader.event(&mut self.shared.real, event);
        if !reader.is_done() {
            return;
        }
        let GuestStoreStage::Seeding {
            reader: Some(reader),
            store,
            console,
            guest_kib,
        } = mem::replace(&mut self.stage, GuestStoreStage::Running)
        else {
            return;
        };
        let real = reader.into_nodes();
        let hidden_kib = seed::hidden_kib(&real, guest_kib);
        let params = SeedParams {
            hidden_kib,
            store,
            console,
        };
        seed::seed(&mut self.shared.store, &real, &params);
        self.shared.store.connect(env.m, store.1);
        // Before the mirror attaches, or the guest would see the host's sizes first.
        self.mirror.hide(hidden_kib);
        self.with_mirror(Mirror::attach);
        // Last: devices publish below directories that were made just now, with their permissions.
        let bus = &mut self.bus;
        self.shared.with_cx(env, |cx| bus.start(cx));
    }

    /// Connects to the real store of a new domain after a move.
    pub(super) fn reattach_store(&mut self) {
        self.with_mirror(Mirror::reattach);
    }

    pub(super) fn with_mirror<R>(
        &mut self,
        act: impl FnOnce(&mut Mirror, &mut mirror::Stores<'_>) -> R,
    ) -> R {
        let mut stores = mirror::Stores {
            guest: &mut self.shared.store,
            host: &mut self.shared.real,
        };
        act(&mut self.mirror, &mut stores)
    }

    fn serve_guest<M: Machine, H: Host>(&mut self, env: &mut Environment<'_, M, H>) -> bool {
        let served = self.shared.store.service(env.m);
        if served.notify {
            let port = self.store_port;
            env.channels.raise(env.m, env.vcpus, port);
        }
        let changes = self.shared.store.take_guest_changes();
        if changes.is_empty() {
            return served.again;
        }
        self.with_mirror(|mirror, stores| mirror.guest_changed(stores, &changes));
        let bus = &mut self.bus;
        self.shared.with_cx(env, |cx| {
            for path in &changes {
                bus.guest_store_changed(cx, path);
            }
        });
        true
    }
}
