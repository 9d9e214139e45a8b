//! A move, from the host's request until the guest runs again: the only place that knows the order.
//!
//! | phase | what is done | where |
//! |---|---|---|
//! | (asked) | the request is read in `control/shutdown` and acknowledged | `points/suspend.rs`, `guest/turn.rs` |
//! | park | the vCPU is in the shim, by the event that brought the request | `carry_out_suspend` |
//! | drain | devices take nothing more; what is in flight is waited for | `drain`, `Points::quiesce` |
//! | suspend | the domain stops; a new one finds its host's events | `Host::shutdown`, `arrive` |
//! | | the guest's clocks go on from there | `show_new_time` |
//! | reattach | rings, grants and the list of devices are built anew | `Points::reattach` |
//! | connect | every device's handshake with its new backend | `connect`, `Points::attached` |
//! | resume | what waited is published, due timers fire, every port is raised once | `go_on`, `Points::resume` |
//!
//! What goes wrong, and what the faults of [`Options::faults`](crate::options::Options::faults) make go wrong.  The
//! limit is `unmoved.drain`.
//!
//! | phase | `fail` | `stall` | besides |
//! |---|---|---|---|
//! | (asked) | | | withdrawn before it was acknowledged: nothing |
//! | park | refused | refused after the limit | |
//! | drain | refused | refused at the limit | storage that does not answer, as `stall` |
//! | suspend | refused | goes on after the limit | stale: refused; taken back by the toolstack: undone |
//! | reattach | goes on after the limit | goes on after the limit | |
//! | connect | parks the guest | goes on after the limit | a backend that does not come, as `fail` |
//! | resume | goes on after the limit | goes on after the limit | |
//!
//! *Refused* and *undone* is the same: the devices take requests again, and the guest goes on as if nothing had been;
//! the host reads of a refusal why (`refusal`).  Of a guest that is parked it reads what is missing (`waits-for`).
//!
//! The guest is never asked: whatever it does, the host's event brings its vCPU into the shim, and there it stays
//! until the move is over.  Once the domain was suspended nothing of the old host is left but what is in memory, and
//! the guest does not run before every device has its new backend.  There is no way back from there, so a device that
//! does not connect is waited for without limit.

use alloc::format;
use alloc::string::{String, ToString};

use log::{debug, info, warn};
use xen_abi::sched::ShutdownReason;
use xen_abi::shared_info::time_info;

use crate::cpu::Machine;
use crate::guest::{Guest, Leftovers};
use crate::host::{Arrival, Host};
use crate::options::{Blackout, Fault, Phase, Way};
use crate::points::suspend::STALE_NS;
use crate::points::{Points, Progress};

/// How often the host's store is told that a device is still missing, nanoseconds.
const REMINDER_NS: u64 = 5_000_000_000;

/// What the shim reports to the host about its life, below `data/unmoved/`.
mod key {
    pub const STATE: &str = "state";
    pub const MOVES: &str = "moves";
    pub const REFUSAL: &str = "refusal";
    pub const WAITS_FOR: &str = "waits-for";
    pub const IN_FLIGHT: &str = "in-flight";
    pub const BLACKOUT: &str = "blackout";
    pub const TOTAL: &str = "blackout-us";
    pub const USAGE: &str = "usage";
    pub const VERSION: &str = "version";
}

/// Both clocks of a host at one moment, nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Moment {
    /// System time, which counts from the start of the host.
    system: u64,
    /// Wall time, which hosts agree on as well as their clocks do.
    wall: u64,
}

impl Moment {
    fn now(host: &impl Host) -> Self {
        let system = host.now_ns();
        let wall = system.wrapping_add(host.wall_clock_at_zero_ns());
        Self { system, wall }
    }
}

/// How long the phases took, microseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Spent([u64; Phase::ALL.len()]);

impl Spent {
    fn note(&mut self, phase: Phase, nanoseconds: u64) {
        self.0[phase as usize] = nanoseconds / 1000;
    }

    fn total(self) -> u64 {
        self.0.iter().sum()
    }
}

impl<M: Machine, H: Host> Guest<M, H> {
    /// Carries out a suspend request that was read at the host's time `asked_at`: all phases of the table above.  vCPU
    /// `v` stays in the shim meanwhile; on return the guest may run, here or on a new host.
    pub(crate) fn carry_out_suspend(&mut self, v: usize, asked_at: u64) {
        let begun = Moment::now(&self.host);
        let mut spent = Spent::default();
        debug!("suspend: vcpu {v} is parked");
        self.fault = self.fault.or_else(|| self.faults.pop_front());
        // One vCPU, and it is here: parking takes no time.
        if let Some(way) = self.fault(Phase::Park) {
            if way == Way::Stall {
                self.stall();
            }
            return self.refuse(v, "park", "a fault was asked for");
        }
        let parked = Moment::now(&self.host);
        spent.note(Phase::Park, parked.system.saturating_sub(begun.system));
        if let Err(why) = self.drain() {
            return self.refuse(v, "drain", &why);
        }
        // What is left to say goes to the old host now: after the suspend its rings lead nowhere.
        // The host is to have the last output and reports before the domain stops.
        self.with_points(Points::flush);
        let before = Moment::now(&self.host);
        spent.note(Phase::Drain, before.system.saturating_sub(parked.system));
        let guest_before = self.time.to_guest(before.system);
        match self.fault(Phase::Suspend) {
            Some(Way::Fail) => return self.refuse(v, "suspend", "a fault was asked for"),
            Some(Way::Stall) => self.stall(),
            None => {}
        }
        // The domain may have been paused since, for as long as it pleased somebody.
        let age = self.host.now_ns().saturating_sub(asked_at);
        if age > STALE_NS {
            let seconds = age / 1_000_000_000;
            let why = format!("the request is {seconds} s old: the host does not wait any more");
            return self.refuse(v, "suspend", &why);
        }
        if self.host.shutdown(ShutdownReason::SUSPEND) != 0 {
            self.moves.cancelled += 1;
            info!("suspend: cancelled, the guest goes on");
            self.go_on(v, false);
            return self.with_points(Points::flush);
        }
        // Before anything else on this host: its clock, rings and ports are reached only through
        // that.
        let arrival = self.arrive();
        self.m.host_changed();
        let after = Moment::now(&self.host);
        // A host whose clock is behind does not make the guest's go back: it stands still.
        let away = after.wall.saturating_sub(before.wall);
        spent.note(Phase::Suspend, away);
        let counted = match self.blackout {
            Blackout::Shown => away,
            Blackout::Hidden => 0,
        };
        // Before the devices are attached and before the vCPU sees time again: `now` must never mix
        // the clock of one host with the difference to another.
        self.time
            .rebase(after.system, guest_before.saturating_add(counted));
        self.show_new_time();
        if self.fault(Phase::Reattach).is_some() {
            self.stall();
        }
        self.with_points(|points, env| points.reattach(env, arrival));
        let reattached = Moment::now(&self.host);
        spent.note(
            Phase::Reattach,
            reattached.system.saturating_sub(after.system),
        );
        self.connect();
        let attached = Moment::now(&self.host);
        spent.note(
            Phase::Connect,
            attached.system.saturating_sub(reattached.system),
        );
        if self.fault(Phase::Resume).is_some() {
            self.stall();
        }
        self.moves.done += 1;
        self.leftovers = Leftovers::after_a_move(&self.ledger);
        self.go_on(v, true);
        let resumed = Moment::now(&self.host);
        spent.note(
            Phase::Resume,
            resumed.system.saturating_sub(attached.system),
        );
        info!(
            "moved {} time(s), {arrival:?}; away for {} us: {:?}",
            self.moves.done,
            spent.total(),
            spent.0
        );
        self.report_spent(spent);
        self.with_points(Points::flush);
    }

    /// Waits until nothing is in flight, or the time for it is over.
    fn drain(&mut self) -> Result<(), String> {
        let limit = self.host.now_ns().saturating_add(self.drain_ns);
        let fault = self.fault(Phase::Drain);
        if fault == Some(Way::Fail) {
            return Err("a fault was asked for".to_string());
        }
        let mut is_told = false;
        loop {
            let progress = self.with_points(Points::quiesce);
            if progress == Progress::Done && fault.is_none() {
                return Ok(());
            }
            if !core::mem::replace(&mut is_told, true) {
                self.report(key::STATE, "draining");
                self.with_points(Points::flush);
            }
            if self.host.now_ns() >= limit {
                let left = self.points.in_flight();
                return Err(format!(
                    "{left} requests are still in flight after {} s",
                    self.drain_ns / 1_000_000_000
                ));
            }
            self.wait_parked(limit);
        }
    }

    /// Connects to the host that the domain is on now.
    fn arrive(&mut self) -> Arrival {
        let mut is_said = false;
        loop {
            match self.host.reconnect() {
                Ok(arrival) => return arrival,
                // Without its events there is nothing to go on with, and nobody to tell.
                Err(errno) if !is_said => {
                    warn!("the new host refuses its events: {errno}; trying on");
                    is_said = true;
                }
                Err(_) => {}
            }
            self.host.yield_now();
        }
    }

    /// Shows the new host's time in the guest's frame, and that the guest was stopped.
    fn show_new_time(&mut self) {
        self.forget_armed_timer();
        self.time
            .publish_wall_clock(&self.m, self.shared_info, self.host.wall_clock_at_zero_ns());
        self.time.extra_flags = time_info::FLAG_GUEST_STOPPED;
        (0..self.vcpus.len()).for_each(|v| self.publish_time_now(v));
        // The guest clears the flag when it has seen it; later updates must not set it again.
        self.time.extra_flags = 0;
    }

    /// Waits until every device has its new backend.
    fn connect(&mut self) {
        self.report(key::STATE, "connecting");
        let mut fault = self.fault(Phase::Connect);
        let stalled_until = self.host.now_ns().saturating_add(self.drain_ns);
        let mut reminder = 0;
        loop {
            let attached = self.points.attached();
            fault = fault.filter(|way| *way == Way::Fail || self.host.now_ns() < stalled_until);
            if attached == Ok(Progress::Done) && fault.is_none() {
                break;
            }
            let now = self.host.now_ns();
            if now >= reminder {
                reminder = now.saturating_add(REMINDER_NS);
                let why = match (fault, attached) {
                    (Some(_), _) => "a fault was asked for".to_string(),
                    (None, Err(why)) => why,
                    (None, Ok(_)) => self.points.awaited(),
                };
                self.report(key::WAITS_FOR, &why);
                self.with_points(Points::flush);
            }
            let stall_ends = match fault {
                Some(Way::Stall) => stalled_until,
                Some(Way::Fail) | None => u64::MAX,
            };
            self.wait_parked(reminder.min(stall_ends));
        }
        self.report(key::WAITS_FOR, "");
    }

    /// Waits, with no guest running, for the next event of the host or for a host time.
    fn wait_parked(&mut self, until_ns: u64) {
        let due = self.points.deadline().unwrap_or(u64::MAX).min(until_ns);
        if !self.host.has_events() {
            self.host.wait(Some(due));
        }
        self.host_events();
        // The wait may have ended by the deadline of a point, and that brings no event.
        self.with_points(Points::tick);
    }

    /// Lets the guest go on, in a new domain or as if nothing had been.
    fn go_on(&mut self, v: usize, moved: bool) {
        self.with_points(Points::resume);
        if moved {
            self.channels.raise_all(&self.m, &self.vcpus);
        }
        // Deadlines have passed while no vCPU ran; the new host knows of none.
        (0..self.vcpus.len()).for_each(|v| self.expire(v));
        self.publish_time_now(v);
        self.report_running();
    }

    /// Reports to the host, with the next flush, that the guest runs, and what the shim is and uses.
    pub fn report_running(&mut self) {
        let moves = self.moves.done.to_string();
        self.report(key::VERSION, env!("CARGO_PKG_VERSION"));
        self.report(key::MOVES, &moves);
        let ports = self.channels.open_ports() as u64;
        let own = [("heap-bytes", self.m.heap_in_use()), ("ports", ports)];
        for (name, value) in self.points.usage().into_iter().chain(own) {
            self.report(&format!("{}/{name}", key::USAGE), &value.to_string());
        }
        self.report(key::STATE, "running");
    }

    /// Takes everything back, with a reason that the host can read.
    fn refuse(&mut self, v: usize, phase: &str, why: &str) {
        self.moves.refused += 1;
        warn!("suspend refused in {phase}: {why}");
        self.report(key::REFUSAL, &format!("{phase}: {why}"));
        let in_flight = self.points.in_flight().to_string();
        self.report(key::IN_FLIGHT, &in_flight);
        self.go_on(v, false);
        self.with_points(Points::flush);
    }

    /// Queues something for the host to read, to go out with the next flush: each notification may
    /// cost us the processor, while the host sees why.
    fn report(&mut self, key: &str, value: &str) {
        self.points.report(key, value);
    }

    fn report_spent(&mut self, spent: Spent) {
        for phase in Phase::ALL {
            let value = spent.0[phase as usize].to_string();
            self.report(&format!("{}/{}", key::BLACKOUT, phase.name()), &value);
        }
        self.report(key::TOTAL, &spent.total().to_string());
    }

    /// Takes the fault that was asked for in this phase; each strikes once.
    fn fault(&mut self, phase: Phase) -> Option<Way> {
        let Fault { way, .. } = self.fault.take_if(|fault| fault.phase == phase)?;
        warn!("{} goes wrong on purpose: {way:?}", phase.name());
        Some(way)
    }

    /// Lets the time of a drain pass, parked.
    fn stall(&mut self) {
        let until = self.host.now_ns().saturating_add(self.drain_ns);
        while self.host.now_ns() < until {
            self.wait_parked(until);
        }
    }
}

#[cfg(test)]
mod tests;
