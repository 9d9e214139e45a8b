//! The shim's own log: port 0xE9, which the host keeps in its guest log, a line at a time.

use core::fmt::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};

use super::instructions::out8;

/// The debug port.
pub struct DebugPort;

impl Write for DebugPort {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        s.bytes().for_each(|byte| out8(0xe9, byte));
        Ok(())
    }
}

impl Log for DebugPort {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = record.level().as_str().as_bytes()[0] as char;
        // Writing to the port can not fail.
        let _ = writeln!(Self, "unmoved {level} {}", record.args());
    }

    fn flush(&self) {}
}

/// Starts logging at `level`.
pub fn init(level: LevelFilter) {
    static LOGGER: DebugPort = DebugPort;
    // Fails only when a logger was set before, and then it is this one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}
