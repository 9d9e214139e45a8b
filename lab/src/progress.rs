//! Long steps tell what they do: a line when they begin, a line with the time when they end.
//!
//! Plain lines on standard error, because they end up in CI logs as often as on a terminal.

use std::time::Instant;

/// A step that has begun.
#[derive(Debug)]
pub struct Step {
    what: String,
    begun: Instant,
}

/// Say that a step begins.
#[must_use]
pub fn step(what: impl Into<String>) -> Step {
    let what = what.into();
    eprintln!("  … {what}");
    Step {
        what,
        begun: Instant::now(),
    }
}

impl Step {
    /// Say that it is done, with `result` in a word or two.
    pub fn done(self, result: &str) {
        let seconds = self.begun.elapsed().as_secs_f32();
        let what = self.what;
        eprintln!("  ✓ {what}: {result} ({seconds:.1} s)");
    }
}
