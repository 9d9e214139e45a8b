//! A guest and its points, event by event, and the control domain of its host.

use xen_abi::sched::ShutdownReason;
use xen_abi::xs_wire::{MsgType, ring};
use xen_abi::{DomId, GuestVa};

use crate::host::{Arrival, Host as _, HostEvent};
use crate::mem::Frames;
use crate::options::Options;
use crate::points::assembled::Points;
use crate::points::xenstore::VirtualStore;
use crate::points::{Environment, GuestStore};
use crate::testing::{Bench, Dom0, FakeHost, FakeMachine, Journey};

/// The real domain's id.
pub(super) const REAL: DomId = DomId(7);

pub(super) struct World {
    pub(super) bench: Bench,
}

impl World {
    /// A guest that is not connected to its host yet.
    pub(super) fn new() -> Self {
        Self {
            bench: Bench::unconnected(Options::default()),
        }
    }

    /// A guest that may start.
    pub(super) fn started() -> Self {
        let mut world = Self::new();
        world
            .with(|points, env| points.begin(env))
            .expect("there is memory");
        world.pump();
        assert!(world.bench.guest.points.is_seeded());
        world
    }

    pub(super) fn with<R>(
        &mut self,
        act: impl FnOnce(&mut Points, &mut Environment<'_, FakeMachine, FakeHost>) -> R,
    ) -> R {
        self.bench.guest.with_points(act)
    }

    /// The host's xenstored; what is changed there shows with the next [`pump`](Self::pump).
    pub(super) fn real(&mut self) -> &mut VirtualStore {
        &mut self.bench.guest.host.dom0.store
    }

    /// Lets the host's daemons and the points speak until neither has anything to say.
    pub(super) fn pump(&mut self) {
        for _ in 0..2000 {
            self.bench.guest.host.in_dom0(Dom0::serve);
            let Some(event) = self.bench.guest.host.take_event() else {
                return;
            };
            self.event(event);
        }
        panic!("they never end");
    }

    pub(super) fn event(&mut self, event: HostEvent) {
        self.with(|points, env| points.host_event(env, event));
    }

    /// What the guest reads of its store.
    pub(super) fn guest(&self, path: &str) -> Option<String> {
        let store = self.bench.guest.points.guest_store();
        String::from_utf8(store.read(&format!("/local/domain/1/{path}"))?).ok()
    }

    /// What the host reads of the domain's directory.
    pub(super) fn host(&self, path: &str) -> Option<String> {
        self.bench.guest.host.dom0.read(path)
    }

    /// The toolstack writes a node.
    pub(super) fn host_writes(&mut self, path: &str, value: &str) {
        self.bench
            .guest
            .host
            .in_dom0(|dom0| dom0.write(path, value));
        self.pump();
    }

    /// The guest sends a request to its own store.
    pub(super) fn guest_asks(&mut self, kind: MsgType, payload: &[u8]) {
        self.bench.ask_store(kind, payload);
        self.pump();
    }

    /// The guest takes the answers that there are.
    pub(super) fn guest_hears(&mut self) -> u32 {
        let m = &self.bench.guest.m;
        let heard = m.load32(Bench::STORE, ring::RSP_PROD);
        m.store32(Bench::STORE, ring::RSP_CONS, heard);
        heard
    }

    /// The domain is suspended, and finds itself in a new one of another host, whose devices are to be plugged.
    pub(super) fn arrive(&mut self) {
        let host = &mut self.bench.guest.host;
        host.journeys.push_back(Journey::Moved {
            arrival: Arrival::NewDomain,
            uptime: host.time().system_time,
            wall: host.wall(),
        });
        assert_eq!(host.shutdown(ShutdownReason::SUSPEND), 0);
        assert_eq!(host.reconnect(), Ok(Arrival::NewDomain));
        self.with(|points, env| points.reattach(env, Arrival::NewDomain));
    }

    pub(super) fn takes_suspend(&mut self) -> Option<u64> {
        self.bench.guest.points.take_suspend()
    }

    pub(super) fn grant_table_op(
        &mut self,
        command: u64,
        args: u64,
        count: u64,
    ) -> Result<u64, xen_abi::Errno> {
        self.with(|points, env| {
            let left = points.grant_table_op(env, 0, command, GuestVa(args), count)?;
            assert_eq!(left, None, "nobody wants a turn");
            Ok(0)
        })
    }
}
