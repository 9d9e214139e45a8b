//! The migration points assembled, and how events find theirs.
//!
//! | file | does |
//! |---|---|
//! | `stores_and_grants` | holds both sides' stores and grant tables, which all devices share |
//! | `exchange` | moves messages between the guest's store, the real one and the devices |
//! | `grant_op` | `grant_table_op`, with the guest's argument lists |
//! | `devices` | makes devices |
//! | `usage` | reports to the host what devices take of it |
//! | `start` | connects to the host before the guest runs |
//!
//! Nothing here waits, but for `start` and the end of the guest's last words.

mod devices;
mod exchange;
mod grant_op;
mod start;
mod stores_and_grants;
#[cfg(test)]
mod tests;
mod usage;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use xen_abi::{DomId, Errno, GuestVa, Mfn, Port};

use self::devices::Factory;
use self::exchange::GuestStoreStage;
pub use self::start::StartError;
use self::stores_and_grants::StoresAndGrants;
use self::usage::Usage;
use super::bus::Bus;
use super::console::Console;
use super::evtchn::Peer;
#[cfg(test)]
use super::xenstore::VirtualStore;
use super::xenstore::mirror::Mirror;
use super::xenstore::path;
use super::{Environment, Progress};
use crate::cpu::Machine;
use crate::host::grants::TableFrames;
use crate::host::{Arrival, Host, HostEvent, HostPort, Ring};
use crate::mem::FramePool;

/// How long devices wait for what gives no event.
const RETRY_NS: u64 = 4_000_000;
/// For how long the last words of a guest wait for room in the host's console.
const LAST_WORDS_NS: u64 = 1_000_000_000;

/// What the points are made of.
pub struct Parts {
    /// What the guest believes its own domain id to be.
    pub domid: DomId,
    /// What the guest believes the backends' domain id to be.
    pub backend: DomId,
    /// Where frames for rings and tables come from.
    pub pool: Box<dyn FramePool>,
    /// Maps frames of the host's grant table.
    pub grant_frames: Box<dyn TableFrames>,
    /// The guest's xenstore port and page.
    pub store: (Port, Mfn),
    /// The guest's console port and page.
    pub console: (Port, Mfn),
    /// The pages that the guest may have at most.
    pub guest_pages: u64,
}

/// The migration points that events reach: console, store, grants and devices of one guest.
pub struct Points {
    console: Console,
    console_port: HostPort,
    bus: Bus,
    shared: StoresAndGrants,
    stage: GuestStoreStage,
    /// The guest's xenstore port.
    store_port: Port,
    mirror: Mirror,
    usage: Usage,
    /// When devices are asked again that wait for something without an event, in host time.
    retry_at: Option<u64>,
    /// When devices begin again that found no room in the host's store, in host time.
    begin_again_at: Option<u64>,
    /// There is more to exchange than was done in one turn.
    has_more: bool,
    /// Why this host can not be connected to at all.
    lost: Option<String>,
}

impl Points {
    /// Puts them together; `start` is next.
    ///
    /// # Errors
    /// What the host answered when it was asked for its rings, or `ENOMEM`.
    pub fn new<H: Host>(parts: Parts, host: &H) -> Result<Self, Errno> {
        let (console_page, console_port) = host.ring(Ring::Console)?;
        let (port, page) = parts.console;
        Ok(Self {
            console: Console::new(page, port, console_page),
            console_port,
            bus: Bus::new(Box::new(Factory)),
            stage: GuestStoreStage::new(&parts),
            store_port: parts.store.0,
            mirror: Mirror::new(path::domain_dir(parts.domid)),
            shared: StoresAndGrants::new(parts, host.ring(Ring::Store)?),
            usage: Usage::default(),
            retry_at: None,
            begin_again_at: None,
            has_more: false,
            lost: None,
        })
    }

    /// Whether the guest's store has its first contents.
    fn is_seeded(&self) -> bool {
        matches!(self.stage, GuestStoreStage::Running)
    }

    /// Returns the host time at which [`tick`](Self::tick) is to be called at the latest.
    pub fn deadline(&self) -> Option<u64> {
        if self.has_more {
            return Some(0);
        }
        [self.retry_at, self.begin_again_at, self.usage.due()]
            .into_iter()
            .flatten()
            .min()
    }

    fn relay_console<M: Machine, H: Host>(&mut self, env: &mut Environment<'_, M, H>) {
        let moved = self.console.relay(env.m);
        if moved.notify_host {
            env.host.notify(self.console_port);
        }
        if moved.raise_guest {
            let port = self.console.port();
            env.channels.raise(env.m, env.vcpus, port);
        }
    }

    /// Lets the bus do something, and then exchanges what it has left in the stores.
    fn on_bus<M: Machine, H: Host, R>(
        &mut self,
        env: &mut Environment<'_, M, H>,
        act: impl FnOnce(&mut Bus, &mut super::Cx<'_>) -> R,
    ) -> R {
        let bus = &mut self.bus;
        let result = self.shared.with_cx(env, |cx| act(bus, cx));
        self.exchange_if_needed(env);
        self.note_deadlines(env);
        result
    }

    /// Notes what devices wait for, and whether there are others than before.
    fn note_deadlines<M: Machine, H: Host>(&mut self, env: &Environment<'_, M, H>) {
        let wants_retry = self.retry_at.is_none() && self.bus.wants_retry();
        if wants_retry || self.usage.is_outdated(self.bus.len()) {
            let now = env.host.now_ns();
            if wants_retry {
                self.retry_at = Some(now.saturating_add(RETRY_NS));
            }
            self.usage.note(self.bus.len(), now);
        }
    }
}

impl Points {
    /// The store that the guest sees.
    #[cfg(test)]
    pub(crate) fn guest_store(&self) -> &VirtualStore {
        &self.shared.store
    }

    /// The host raised an event.
    pub fn host_event<M: Machine, H: Host>(
        &mut self,
        env: &mut Environment<'_, M, H>,
        event: HostEvent,
    ) {
        match event {
            HostEvent::Timer => {}
            HostEvent::Console => self.relay_console(env),
            HostEvent::Store => {
                self.exchange(env);
                self.note_deadlines(env);
            }
            HostEvent::Port(port) => self.on_bus(env, |bus, cx| bus.host_kick(cx, port)),
        }
    }

    /// The guest notified a peer through one of its ports.
    pub fn guest_notify<M: Machine, H: Host>(
        &mut self,
        env: &mut Environment<'_, M, H>,
        peer: Peer,
        port: Port,
    ) {
        match peer {
            Peer::Console => self.relay_console(env),
            Peer::Store => {
                self.exchange(env);
                self.note_deadlines(env);
            }
            Peer::Device(id) => self.on_bus(env, |bus, cx| bus.guest_kick(cx, id, port)),
            Peer::Own(_) => {}
        }
    }

    /// Some time has passed.
    pub fn tick<M: Machine, H: Host>(&mut self, env: &mut Environment<'_, M, H>) {
        if self.has_more {
            self.exchange(env);
        }
        let Some(due) = self.deadline() else {
            return;
        };
        let now = env.host.now_ns();
        if now < due {
            return;
        }
        if self.retry_at.take_if(|at| *at <= now).is_some() {
            self.on_bus(env, Bus::retry);
        }
        if self.begin_again_at.take_if(|at| *at <= now).is_some() {
            self.on_bus(env, Bus::begin_again);
        }
        self.report_usage(env, now);
        self.exchange_if_needed(env);
    }

    /// Sends out what can be sent now.
    pub fn flush<M: Machine, H: Host>(&mut self, env: &mut Environment<'_, M, H>) {
        self.exchange(env);
        self.relay_console(env);
    }

    /// The domain is about to end: sends out what it has left to say, and waits a moment for a
    /// host that has no room for it.
    pub fn end<M: Machine, H: Host>(&mut self, env: &mut Environment<'_, M, H>) {
        self.flush(env);
        let limit = env.host.now_ns().saturating_add(LAST_WORDS_NS);
        while self.console.has_output(env.m) && env.host.now_ns() < limit {
            env.host.wait(Some(limit));
            // Whatever else happens is of no interest any more.
            while env.host.take_event().is_some() {}
            self.relay_console(env);
        }
    }

    /// Carries out `grant_table_op` of vCPU `v` for `count` structures at `args`.  Returns where those
    /// are that are left, and how many, when others should have their turn before; `None` when all
    /// is done.
    ///
    /// # Errors
    /// As Xen has them for the call as a whole; what is wrong with one structure is said in it.
    pub fn grant_table_op<M: Machine, H: Host>(
        &mut self,
        env: &mut Environment<'_, M, H>,
        v: usize,
        command: u64,
        args: GuestVa,
        count: u64,
    ) -> Result<Option<(GuestVa, u64)>, Errno> {
        self.shared.grant_table_op(env, v, command, args, count)
    }

    /// Whether the host waits for the domain to stop ([`suspend`](super::suspend)).
    #[inline]
    pub fn is_suspend_due(&self) -> bool {
        self.mirror.suspend.is_due()
    }

    /// Takes that request, if there is one.  Returns the host's time when it was read, nanoseconds.
    pub fn take_suspend(&mut self) -> Option<u64> {
        self.mirror.suspend.take()
    }

    /// Before a suspend: stops taking work; `Done` when the suspend may go on.
    pub fn quiesce<M: Machine, H: Host>(&mut self, env: &mut Environment<'_, M, H>) -> Progress {
        self.relay_console(env);
        self.on_bus(env, Bus::quiesce)
    }

    /// After a suspend, when the host was [reconnected](Host::reconnect) to: begins to build the
    /// host-facing halves anew.
    pub fn reattach<M: Machine, H: Host>(
        &mut self,
        env: &mut Environment<'_, M, H>,
        arrival: Arrival,
    ) {
        let rings = [Ring::Console, Ring::Store].map(|ring| env.host.ring(ring));
        let [Ok((page, port)), Ok(store)] = rings else {
            self.lost = Some(format!("the host hides its daemons: {rings:?}"));
            return;
        };
        self.console.reattach(page);
        self.console_port = port;
        // Before the bus: devices then give frames back without ending a grant.
        self.shared.reattach(env.m, store, arrival);
        self.begin_again_at = None;
        self.reattach_store();
        self.on_bus(env, Bus::reattach);
        self.exchange(env);
    }

    /// How far the reattachment has come.
    ///
    /// # Errors
    /// Why it will not come further by itself.
    pub fn attached(&self) -> Result<Progress, String> {
        if let Some(why) = &self.lost {
            return Err(why.clone());
        }
        if self.shared.real.is_broken() {
            return Err(String::from("xenstore: the host's daemon broke the ring"));
        }
        match self.stage {
            GuestStoreStage::Running => self.bus.attached(),
            GuestStoreStage::Seeding { .. } => Ok(Progress::Waiting),
        }
    }

    /// What is waited for while [`attached`](Self::attached) is still waiting, in words.
    pub fn awaited(&self) -> String {
        match self.stage {
            GuestStoreStage::Running => self.bus.awaited(),
            GuestStoreStage::Seeding { .. } => String::from("xenstore has not answered yet"),
        }
    }

    /// Takes work again.
    pub fn resume<M: Machine, H: Host>(&mut self, env: &mut Environment<'_, M, H>) {
        self.with_mirror(Mirror::release);
        self.on_bus(env, Bus::resume);
        self.usage.restart(env.host.now_ns());
        self.relay_console(env);
        self.exchange(env);
    }

    /// Reports one fact of the shim to the host, below `data/unmoved/`, at the next
    /// [`flush`](Self::flush).
    pub fn report(&mut self, key: &str, value: &str) {
        self.with_mirror(|mirror, stores| mirror.report(stores, key, value.as_bytes()));
    }

    /// How many requests are in flight at the host.
    pub fn in_flight(&self) -> usize {
        self.bus.in_flight()
    }

    /// How much is taken of what a leak would use up, by name, for reports.
    pub fn usage(&self) -> [(&'static str, u64); 2] {
        [
            ("grants", self.shared.host_grants.outstanding() as u64),
            ("free-frames", self.shared.pool.available() as u64),
        ]
    }
}
