//! A host whose clock stands still until somebody waits, and whose next suspend ends as it is told.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::resume_unwind;
use std::rc::Rc;

use xen_abi::sched::ShutdownReason;
use xen_abi::{DomId, Errno, Mfn, Port};

use super::dom0::Dom0;
use super::heap::SmallHeap;
use crate::host::{Arrival, Host, HostEvent, HostPort, Ring, Xen};
use crate::mem::Frames;
use crate::points::time::{HostTime, Time};
use crate::testing::FakeFrames;

/// The time stamp counter, 1 GHz, shared between a machine and its host.
#[derive(Clone, Debug, Default)]
pub struct Clock(Rc<Cell<u64>>);

impl Clock {
    /// Makes one that shows `tsc`.
    pub fn new(tsc: u64) -> Self {
        Self(Rc::new(Cell::new(tsc)))
    }

    /// Reads it.
    pub fn tsc(&self) -> u64 {
        self.0.get()
    }

    /// Lets nanoseconds pass.
    pub fn pass(&self, nanoseconds: u64) {
        self.0.set(self.0.get() + nanoseconds);
    }
}

/// What is thrown when the domain ends, so that a test gets control again; no panic, so nothing is
/// printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended(pub ShutdownReason);

/// How a suspend ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journey {
    /// The toolstack took it back.
    Cancelled,
    /// The domain goes on in another one.
    Moved {
        /// Where.
        arrival: Arrival,
        /// How long the host has been up at that moment, nanoseconds.
        uptime: u64,
        /// What its wall clock shows, nanoseconds since 1970.
        wall: u64,
    },
}

/// The host.
pub struct FakeHost {
    /// The clock that it shares with the machine.
    pub clock: Clock,
    /// All memory.
    pub frames: Rc<FakeFrames>,
    time: HostTime,
    wall_at_zero: u64,
    /// Events that were announced and not taken.
    pub events: VecDeque<HostEvent>,
    /// Events to come, by host time.
    pub schedule: BTreeMap<u64, HostEvent>,
    /// The deadline that was asked for.
    pub armed: Option<u64>,
    /// How often one was asked for.
    pub arms: usize,
    /// How the next suspends end.
    pub journeys: VecDeque<Journey>,
    /// How often a reconnection is refused before it succeeds.
    pub refusals: usize,
    /// How often the time slice was given away.
    pub yields: usize,
    /// How often somebody waited.
    pub waits: usize,
    /// Whether waiting for what never comes ends the domain, as somebody would in the end; in a test
    /// it is a mistake.
    pub ends_idle: bool,
    /// How many more frames can be populated.
    pub spare: usize,
    /// Whether frames are not taken back.
    pub keeps_frames: bool,
    /// How many frames the domain has that nothing leads to.
    pub lost: usize,
    /// Whether nothing is written into frames.
    pub is_mute: bool,
    /// The ports that are open.
    pub ports: BTreeSet<u32>,
    /// Its control domain.
    pub dom0: Dom0,
    arrival: Arrival,
    next_port: u32,
}

impl FakeHost {
    /// The page that leads to xenstored.
    pub const STORE_RING: Mfn = Dom0::STORE_RING;
    /// The page that leads to the console daemon.
    pub const CONSOLE_RING: Mfn = Dom0::CONSOLE_RING;

    /// Memory that the toolstack gave the domain, KiB: the guest's and the shim's.
    pub const MEMORY_KIB: u64 = 8192;

    /// Makes a host that has been up for `uptime` when its wall clock shows `wall` nanoseconds.
    pub fn new(clock: Clock, frames: Rc<FakeFrames>, uptime: u64, wall: u64) -> Self {
        let mut host = Self {
            clock,
            dom0: Dom0::new(frames.clone(), Self::MEMORY_KIB),
            frames,
            time: HostTime::default(),
            wall_at_zero: 0,
            events: VecDeque::new(),
            schedule: BTreeMap::new(),
            armed: None,
            arms: 0,
            journeys: VecDeque::new(),
            refusals: 0,
            yields: 0,
            waits: 0,
            ends_idle: false,
            spare: usize::MAX,
            keeps_frames: false,
            lost: 0,
            is_mute: false,
            ports: BTreeSet::new(),
            arrival: Arrival::SameDomain,
            next_port: 3,
        };
        host.start(uptime, wall);
        host
    }

    /// Becomes a host that has been up for `uptime` at this moment.
    fn start(&mut self, uptime: u64, wall: u64) {
        self.time = HostTime {
            // Like Xen's, even, and different from whatever was published before.
            version: self.time.version + 2,
            tsc_timestamp: self.clock.tsc(),
            system_time: uptime,
            tsc_to_system_mul: 1 << 31,
            tsc_shift: 1,
            flags: 1,
        };
        self.wall_at_zero = wall.wrapping_sub(uptime);
    }

    /// Returns what the host's wall clock shows.
    pub fn wall(&self) -> u64 {
        self.wall_at_zero.wrapping_add(self.now_ns())
    }

    /// Returns the host's time at which the guest's is `guest_ns`.
    pub fn time_at(&self, guest_ns: u64, time: &Time) -> u64 {
        guest_ns.wrapping_sub(time.delta)
    }

    /// Announces what the schedule has for now or earlier, and a timer that is due.
    pub fn announce(&mut self) {
        let now = self.now_ns();
        let later = self.schedule.split_off(&(now + 1));
        let due = std::mem::replace(&mut self.schedule, later);
        self.events.extend(due.into_values());
        self.in_dom0(|dom0| dom0.time_is(now));
        if self.armed.is_some_and(|at| at <= now) {
            self.armed = None;
            self.events.push_back(HostEvent::Timer);
        }
    }
}

impl FakeHost {
    /// Lets the control domain do something, and announces what it raises: once each, as ports are pending or not.
    pub fn in_dom0<R>(&mut self, act: impl FnOnce(&mut Dom0) -> R) -> R {
        SmallHeap::outside(|| {
            let result = act(&mut self.dom0);
            for event in self.dom0.raised() {
                if !self.events.contains(&event) {
                    self.events.push_back(event);
                }
            }
            result
        })
    }
}

impl Xen for FakeHost {
    fn alloc_unbound(&mut self, _: DomId) -> Result<HostPort, Errno> {
        self.next_port += 1;
        SmallHeap::outside(|| self.ports.insert(self.next_port));
        Ok(HostPort(Port(self.next_port)))
    }
    fn close(&mut self, port: HostPort) {
        self.ports.remove(&port.0.0);
    }
    fn notify(&mut self, port: HostPort) {
        self.in_dom0(|dom0| dom0.notified(port));
    }
    fn now_ns(&self) -> u64 {
        self.time.at(self.clock.tsc())
    }
}

impl Host for FakeHost {
    fn ring(&self, ring: Ring) -> Result<(Mfn, HostPort), Errno> {
        Ok(match ring {
            Ring::Store => (Self::STORE_RING, HostPort(Port(1))),
            Ring::Console => (Self::CONSOLE_RING, HostPort(Port(2))),
        })
    }
    fn time(&self) -> HostTime {
        self.time
    }
    fn time_version(&self) -> u32 {
        self.time.version
    }
    fn wall_clock_at_zero_ns(&self) -> u64 {
        self.wall_at_zero
    }
    fn arm_timer(&mut self, deadline_ns: u64) {
        self.armed = Some(deadline_ns);
        self.arms += 1;
    }
    fn has_events(&self) -> bool {
        !self.events.is_empty()
    }
    fn take_event(&mut self) -> Option<HostEvent> {
        self.events.pop_front()
    }
    fn wait(&mut self, until_ns: Option<u64>) {
        self.waits += 1;
        if self.ends_idle && self.waits > 1000 {
            resume_unwind(Box::new(Ended(ShutdownReason::POWEROFF)));
        }
        assert!(self.waits < 1_000_000, "waits for ever without waiting");
        if !self.events.is_empty() {
            return;
        }
        let scheduled = self.schedule.keys().next().copied();
        let planned = scheduled.into_iter().chain(self.dom0.next());
        let next = planned.chain(until_ns).min();
        if self.ends_idle && next.is_none() {
            resume_unwind(Box::new(Ended(ShutdownReason::POWEROFF)));
        }
        let next = next.expect("nothing will ever happen");
        self.clock.pass(next.saturating_sub(self.now_ns()));
        self.announce();
    }
    fn yield_now(&mut self) {
        self.yields += 1;
    }
    fn release_frame(&mut self, frame: Mfn) -> Result<(), Errno> {
        if self.keeps_frames || !self.frames.contains(frame) {
            return Err(Errno::ENOMEM);
        }
        self.frames.remove(frame);
        Ok(())
    }
    fn populate_frame(&mut self, frame: Mfn) -> Result<(), Errno> {
        self.spare = self.spare.checked_sub(1).ok_or(Errno::ENOMEM)?;
        // As Xen does: what was there stays the domain's, and nothing leads to it any more.
        self.lost += usize::from(self.frames.contains(frame));
        self.frames.add(frame);
        // What a host gives may hold anything.
        self.frames.fill_unnoticed(frame, 0x77);
        Ok(())
    }
    fn write_frame(&mut self, frame: Mfn) -> Result<(), Errno> {
        if self.is_mute {
            return Err(Errno::EFAULT);
        }
        self.frames.write(frame, 0, b".7-fake\0\0\0\0\0\0\0\0\0");
        self.frames.mark(frame);
        Ok(())
    }
    fn shutdown(&mut self, reason: ShutdownReason) -> u64 {
        if reason != ShutdownReason::SUSPEND {
            resume_unwind(Box::new(Ended(reason)));
        }
        match self.journeys.pop_front().expect("a suspend was expected") {
            Journey::Cancelled => 1,
            Journey::Moved {
                arrival,
                uptime,
                wall,
            } => {
                self.arrival = arrival;
                self.armed = None;
                self.events.clear();
                self.start(uptime, wall);
                if arrival == Arrival::NewDomain {
                    self.in_dom0(Dom0::take_in);
                }
                0
            }
        }
    }
    fn reconnect(&mut self) -> Result<Arrival, Errno> {
        if let Some(left) = self.refusals.checked_sub(1) {
            self.refusals = left;
            return Err(Errno::ENOMEM);
        }
        self.ports.clear();
        Ok(self.arrival)
    }
}
