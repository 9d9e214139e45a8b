//! What an attack got, and whether that is right.

use core::fmt;

use xen_abi::Errno;

use crate::console::say;
use crate::trap::{End, Regs};

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A hypercall's value.
    Value(u64),
    /// A hypercall's error.
    Errno(Errno),
    /// A trap, by vector.
    Trap(u64),
    /// The code ran to its end.
    Ran,
    /// A named outcome that the attack looked for itself.
    Is(&'static str),
}

impl Answer {
    /// What a hypercall left in rax.
    pub fn of(rax: u64) -> Self {
        match Errno::from_rax(rax) {
            Ok(value) => Self::Value(value),
            Err(errno) => Self::Errno(errno),
        }
    }

    /// How an attempted hypercall ended.
    pub fn of_call(end: End, regs: &Regs) -> Self {
        match end {
            End::Done => Self::of(regs.rax),
            End::Trap(vector, _) => Self::Trap(vector),
        }
    }

    /// How an attempted instruction ended.
    pub fn of_code(end: End) -> Self {
        match end {
            End::Done => Self::Ran,
            End::Trap(vector, _) => Self::Trap(vector),
        }
    }

    /// Whether the attack got nothing.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Errno(_) | Self::Trap(_))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "{value:#x}"),
            Self::Errno(errno) => write!(f, "{errno}"),
            Self::Trap(vector) => write!(f, "trap-{vector}"),
            Self::Ran => f.write_str("ran"),
            Self::Is(what) => f.write_str(what),
        }
    }
}

/// The verdicts so far.
#[derive(Debug, Default)]
pub struct Verdicts {
    right: u64,
    wrong: u64,
}

impl Verdicts {
    /// Tells of an attack.
    pub fn note(&mut self, name: fmt::Arguments<'_>, answer: Answer, right: bool) {
        let word = if right { "ok" } else { "WRONG" };
        say!("attack {name}: {answer} {word}");
        self.count(right);
    }

    /// Tells of an attack that must get nothing.
    pub fn refused(&mut self, name: fmt::Arguments<'_>, answer: Answer) {
        self.note(name, answer, answer.is_refusal());
    }

    /// Tells of an attack that must get one of these.
    pub fn wanted(&mut self, name: fmt::Arguments<'_>, answer: Answer, wanted: &[Answer]) {
        self.note(name, answer, wanted.contains(&answer));
    }

    /// Tells only if it is wrong.
    pub fn quietly(&mut self, name: fmt::Arguments<'_>, right: bool) {
        if !right {
            say!("attack {name}: WRONG");
        }
        self.count(right);
    }

    fn count(&mut self, right: bool) {
        if right {
            self.right += 1;
        } else {
            self.wrong += 1;
        }
    }

    /// How many were wrong.
    pub fn wrong(&self) -> u64 {
        self.wrong
    }
}
