//! All migration points together, and how events find theirs.
//!
//! | file | does |
//! |---|---|
//! | `sides` | holds both sides' stores and grant tables, and lends them to devices |
//! | `exchange` | moves messages between the guest's store, the real one and the devices |
//! | `grant_op` | `grant_table_op`, with the guest's argument lists |
//! | `devices` | makes devices |
//! | `usage` | tells the host what devices take of it |
//! | `start` | connects to the host before the guest runs |
//!
//! Nothing here waits, but for `start` and the end of the guest's last words.

mod devices;
mod exchange;
mod grant_op;
mod sides;
mod start;
#[cfg(test)]
mod tests;
mod usage;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use xen_abi::{DomId, Errno, GuestVa, Mfn, Port};

use self::devices::Factory;
use self::exchange::Stage;
use self::sides::Sides;
pub use self::start::StartError;
use self::usage::Usage;
use super::bus::Bus;
use super::console::Console;
use super::evtchn::Peer;
use super::xenstore::mirror::Mirror;
use super::xenstore::path;
use super::{Outside, Points, Progress};
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

/// The points of one guest.
pub struct AllPoints {
    console: Console,
    console_port: HostPort,
    bus: Bus,
    sides: Sides,
    stage: Stage,
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

impl AllPoints {
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
            stage: Stage::new(&parts),
            store_port: parts.store.0,
            mirror: Mirror::new(path::domain_dir(parts.domid)),
            sides: Sides::new(parts, host.ring(Ring::Store)?),
            usage: Usage::default(),
            retry_at: None,
            begin_again_at: None,
            has_more: false,
            lost: None,
        })
    }

    /// Whether the guest's store has its first contents.
    fn is_seeded(&self) -> bool {
        matches!(self.stage, Stage::Running)
    }

    fn next_deadline(&self) -> Option<u64> {
        if self.has_more {
            return Some(0);
        }
        [self.retry_at, self.begin_again_at, self.usage.due()]
            .into_iter()
            .flatten()
            .min()
    }

    fn relay_console<M: Machine, H: Host>(&mut self, outside: &mut Outside<'_, M, H>) {
        let moved = self.console.relay(outside.m);
        if moved.notify_host {
            outside.host.notify(self.console_port);
        }
        if moved.raise_guest {
            let port = self.console.port();
            outside.channels.raise(outside.m, outside.vcpus, port);
        }
    }

    /// Lets the bus do something, and then exchanges what it has left in the stores.
    fn on_bus<M: Machine, H: Host, R>(
        &mut self,
        outside: &mut Outside<'_, M, H>,
        act: impl FnOnce(&mut Bus, &mut super::Cx<'_>) -> R,
    ) -> R {
        let bus = &mut self.bus;
        let result = self.sides.with_cx(outside, |cx| act(bus, cx));
        self.exchange_if_needed(outside);
        self.note_deadlines(outside);
        result
    }

    /// Takes note of what devices wait for, and whether there are others than before.
    fn note_deadlines<M: Machine, H: Host>(&mut self, outside: &Outside<'_, M, H>) {
        let wants_retry = self.retry_at.is_none() && self.bus.wants_retry();
        if wants_retry || self.usage.is_outdated(self.bus.len()) {
            let now = outside.host.now_ns();
            if wants_retry {
                self.retry_at = Some(now.saturating_add(RETRY_NS));
            }
            self.usage.note(self.bus.len(), now);
        }
    }
}

impl<M: Machine, H: Host> Points<M, H> for AllPoints {
    fn host_event(&mut self, outside: &mut Outside<'_, M, H>, event: HostEvent) {
        match event {
            HostEvent::Timer => {}
            HostEvent::Console => self.relay_console(outside),
            HostEvent::Store => {
                self.exchange(outside);
                self.note_deadlines(outside);
            }
            HostEvent::Port(port) => self.on_bus(outside, |bus, cx| bus.host_kick(cx, port)),
        }
    }

    fn guest_notify(&mut self, outside: &mut Outside<'_, M, H>, peer: Peer, port: Port) {
        match peer {
            Peer::Console => self.relay_console(outside),
            Peer::Store => {
                self.exchange(outside);
                self.note_deadlines(outside);
            }
            Peer::Device(id) => self.on_bus(outside, |bus, cx| bus.guest_kick(cx, id, port)),
            Peer::Own(_) => {}
        }
    }

    fn deadline(&self) -> Option<u64> {
        self.next_deadline()
    }

    fn tick(&mut self, outside: &mut Outside<'_, M, H>) {
        if self.has_more {
            self.exchange(outside);
        }
        let Some(due) = self.next_deadline() else {
            return;
        };
        let now = outside.host.now_ns();
        if now < due {
            return;
        }
        if self.retry_at.take_if(|at| *at <= now).is_some() {
            self.on_bus(outside, Bus::retry);
        }
        if self.begin_again_at.take_if(|at| *at <= now).is_some() {
            self.on_bus(outside, Bus::begin_again);
        }
        self.tell_usage(outside, now);
        self.exchange_if_needed(outside);
    }

    fn flush(&mut self, outside: &mut Outside<'_, M, H>) {
        self.exchange(outside);
        self.relay_console(outside);
    }

    fn end(&mut self, outside: &mut Outside<'_, M, H>) {
        Points::<M, H>::flush(self, outside);
        let limit = outside.host.now_ns().saturating_add(LAST_WORDS_NS);
        while self.console.has_output(outside.m) && outside.host.now_ns() < limit {
            outside.host.wait(Some(limit));
            // Whatever else happens is of no interest any more.
            while outside.host.take_event().is_some() {}
            self.relay_console(outside);
        }
    }

    fn grant_table_op(
        &mut self,
        outside: &mut Outside<'_, M, H>,
        v: usize,
        command: u64,
        args: GuestVa,
        count: u64,
    ) -> Result<Option<(GuestVa, u64)>, Errno> {
        self.sides.grant_table_op(outside, v, command, args, count)
    }

    #[inline]
    fn is_suspend_due(&self) -> bool {
        self.mirror.suspend.is_due()
    }

    fn take_suspend(&mut self) -> Option<u64> {
        self.mirror.suspend.take()
    }

    fn quiesce(&mut self, outside: &mut Outside<'_, M, H>) -> Progress {
        self.relay_console(outside);
        self.on_bus(outside, Bus::quiesce)
    }

    fn reattach(&mut self, outside: &mut Outside<'_, M, H>, arrival: Arrival) {
        let rings = [Ring::Console, Ring::Store].map(|ring| outside.host.ring(ring));
        let [Ok((page, port)), Ok(store)] = rings else {
            self.lost = Some(format!("the host hides its daemons: {rings:?}"));
            return;
        };
        self.console.reattach(page);
        self.console_port = port;
        self.sides.reattach(outside.m, store, arrival);
        self.begin_again_at = None;
        self.reattach_store();
        self.on_bus(outside, Bus::reattach);
        self.exchange(outside);
    }

    fn attached(&mut self, _: &mut Outside<'_, M, H>) -> Result<Progress, String> {
        if let Some(why) = &self.lost {
            return Err(why.clone());
        }
        if self.sides.real.is_broken() {
            return Err(String::from("xenstore: the host's daemon broke the ring"));
        }
        match self.stage {
            Stage::Running => self.bus.attached(),
            Stage::Seeding { .. } => Ok(Progress::Waiting),
        }
    }

    fn awaited(&self) -> String {
        match self.stage {
            Stage::Running => self.bus.awaited(),
            Stage::Seeding { .. } => String::from("xenstore has not answered yet"),
        }
    }

    fn resume(&mut self, outside: &mut Outside<'_, M, H>, _: bool) {
        self.with_mirror(Mirror::release);
        self.on_bus(outside, Bus::resume);
        self.usage.restart(outside.host.now_ns());
        self.relay_console(outside);
        self.exchange(outside);
    }

    fn report(&mut self, _: &mut Outside<'_, M, H>, key: &str, value: &str) {
        self.publish(key, value);
    }

    fn in_flight(&self) -> usize {
        self.bus.in_flight()
    }

    fn usage(&self) -> [(&'static str, u64); 2] {
        [
            ("grants", self.sides.host_grants.outstanding() as u64),
            ("free-frames", self.sides.pool.available() as u64),
        ]
    }
}
