//! The shim's own options, given by `pvshim_extra` in the guest's configuration.
//!
//! An option never decides about more than this one guest, and a mistake in one never keeps the
//! guest from starting: what can not be understood is named in the log and left out.

use alloc::string::String;
use alloc::vec::Vec;

use log::LevelFilter;

use crate::points::time::SECOND;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `unmoved.log=LEVEL`: how much is said on port 0xE9.
    pub log: LevelFilter,
    /// `unmoved.drain=SECONDS`: how long requests in flight are waited for before a suspend is
    /// refused, nanoseconds.
    pub drain_ns: u64,
    /// `unmoved.blackout=shown|hidden`: whether the guest's clocks count the time of a move.
    pub blackout: Blackout,
    /// `unmoved.xpti=auto|on|off`: whether ring 3 runs on page tables without the shim's memory;
    /// `None` where the processor decides.
    pub xpti: Option<bool>,
    /// `unmoved.fault=PHASE:WAY,…`: what goes wrong on purpose in the next moves, one each, for tests.
    pub faults: Vec<Fault>,
}

/// What the guest's clocks do about the time in which it did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blackout {
    /// They count it, so that the guest's wall clock is the host's afterwards.
    Shown,
    /// They stand still, so that the guest sees no gap.
    Hidden,
}

/// A fault to inject into a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub phase: Phase,
    /// How.
    pub way: Way,
}

/// The phases of a move, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Stopping the vCPUs.
    Park,
    /// Waiting for requests in flight.
    Drain,
    /// The hypercall, and all that the toolstack does meanwhile.
    Suspend,
    /// Building everything that faces the host anew.
    Reattach,
    /// The devices' handshakes with their new backends.
    Connect,
    /// Letting the guest go on.
    Resume,
}

/// How a phase goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It fails.
    Fail,
    /// It takes until the limit that it has, if it has one.
    Stall,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [
        Self::Park,
        Self::Drain,
        Self::Suspend,
        Self::Reattach,
        Self::Connect,
        Self::Resume,
    ];

    /// Returns the name, as in options and in reports to the host.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Park => "park",
            Self::Drain => "drain",
            Self::Suspend => "suspend",
            Self::Reattach => "reattach",
            Self::Connect => "connect",
            Self::Resume => "resume",
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log: LevelFilter::Info,
            drain_ns: 10 * SECOND,
            blackout: Blackout::Shown,
            xpti: None,
            faults: Vec::new(),
        }
    }
}

/// Longest drain that can be asked for, seconds: half of what a toolstack waits for a suspend.
const MAX_DRAIN: u64 = 30;

impl Options {
    /// Reads a command line.  Returns what was understood, and a sentence about each word that
    /// was not.
    pub fn parse(line: &[u8]) -> (Self, Vec<String>) {
        let mut options = Self::default();
        let mut complaints = Vec::new();
        let Ok(line) = core::str::from_utf8(line) else {
            complaints.push(String::from("options are not UTF-8 and ignored"));
            return (options, complaints);
        };
        for word in line.split_ascii_whitespace() {
            if let Err(complaint) = options.word(word) {
                complaints.push(complaint);
            }
        }
        (options, complaints)
    }

    fn word(&mut self, word: &str) -> Result<(), String> {
        let wrong = |expected: &str| Err(alloc::format!("option {word}: expected {expected}"));
        match word.split_once('=') {
            Some(("unmoved.log", level)) => match level.parse() {
                Ok(level) => self.log = level,
                Err(_) => return wrong("off, error, warn, info, debug or trace"),
            },
            Some(("unmoved.drain", seconds)) => match seconds.parse::<u64>() {
                Ok(seconds) if seconds <= MAX_DRAIN => self.drain_ns = seconds * SECOND,
                _ => return wrong("seconds, at most 30"),
            },
            Some(("unmoved.blackout", how)) => match how {
                "shown" => self.blackout = Blackout::Shown,
                "hidden" => self.blackout = Blackout::Hidden,
                _ => return wrong("shown or hidden"),
            },
            Some(("unmoved.xpti", how)) => match how {
                "auto" => self.xpti = None,
                "on" => self.xpti = Some(true),
                "off" => self.xpti = Some(false),
                _ => return wrong("auto, on or off"),
            },
            Some(("unmoved.fault", faults)) => match faults.split(',').map(parse_fault).collect() {
                Some(faults) => self.faults = faults,
                None => {
                    return wrong(
                        "park, drain, suspend, reattach, connect or resume, a colon, and fail or stall",
                    );
                }
            },
            // What the toolstack passes to any pv-shim.
            _ if word == "pv-shim" || word == "console=xen,pv" => {}
            _ => return Err(alloc::format!("unknown option {word}")),
        }
        Ok(())
    }
}

fn parse_fault(fault: &str) -> Option<Fault> {
    let (phase, way) = fault.split_once(':')?;
    let phase = Phase::ALL.into_iter().find(|p| p.name() == phase)?;
    let way = match way {
        "fail" => Way::Fail,
        "stall" => Way::Stall,
        _ => return None,
    };
    Some(Fault { phase, way })
}

#[cfg(test)]
mod tests {
    use super::{Blackout, Fault, Options, Phase, Way};

    #[test]
    fn everything_can_be_said() {
        let line =
            b"pv-shim console=xen,pv unmoved.log=debug unmoved.drain=3 unmoved.blackout=hidden \
                     unmoved.xpti=on unmoved.fault=drain:stall,resume:fail";
        let (options, complaints) = Options::parse(line);
        assert!(complaints.is_empty(), "{complaints:?}");
        assert_eq!(options.log, log::LevelFilter::Debug);
        assert_eq!(options.drain_ns, 3_000_000_000);
        assert_eq!(options.blackout, Blackout::Hidden);
        assert_eq!(options.xpti, Some(true));
        let [drain, resume] = [(Phase::Drain, Way::Stall), (Phase::Resume, Way::Fail)]
            .map(|(phase, way)| Fault { phase, way });
        assert_eq!(options.faults, [drain, resume]);
    }

    #[test]
    fn what_is_not_understood_is_named_and_left_out() {
        let (options, complaints) = Options::parse(
            b"unmoved.drain=31 colour=red unmoved.fault=park:fail,drain unmoved.log=loud unmoved.xpti=maybe",
        );
        assert_eq!(options, Options::default());
        assert_eq!(complaints.len(), 5);
        assert!(complaints[0].contains("unmoved.drain=31"));
        assert_eq!(complaints[1], "unknown option colour=red");
        assert_eq!(Options::parse(&[0xff]).1.len(), 1);
    }
}
