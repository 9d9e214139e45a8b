//! Small facts about the guest that reports carry.

use std::fs;

use serde_json::{Value, json};

use crate::sys::time::{Clock, now};

/// A number in a `NAME: VALUE kB` table such as `/proc/meminfo`.
#[must_use]
pub fn field_kib(table: &str, name: &str) -> Option<u64> {
    table
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// `MemTotal` of this machine.
#[must_use]
pub fn mem_total_kib() -> Option<u64> {
    field_kib(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

fn line(path: &str) -> Value {
    fs::read_to_string(path).map_or(Value::Null, |text| text.trim().into())
}

/// What the `ready` report says: kernel, hypervisor, memory, time since the kernel began.
#[must_use]
pub fn facts() -> Value {
    json!({
        "kernel": line("/proc/sys/kernel/osrelease"),
        "hypervisor": line("/sys/hypervisor/type"),
        "guest_type": line("/sys/hypervisor/guest_type"),
        "cpus": crate::sys::task::processors(),
        "mem_total_kib": mem_total_kib(),
        "boot_ms": now(Clock::Boottime) / 1_000_000,
        "monotonic_ns": now(Clock::Monotonic),
        "realtime_ns": now(Clock::Realtime),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// The balloon's state as the kernel tells it.
#[must_use]
pub fn balloon() -> Value {
    let base = "/sys/devices/system/xen_memory/xen_memory0";
    let number = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(format!("{base}/{name}")).ok()?;
        text.trim().parse().ok()
    };
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    json!({
        "target_kib": number("target_kb"), "current_kib": number("info/current_kb"),
        "low_kib": number("info/low_kb"), "high_kib": number("info/high_kb"),
        "mem_total_kib": field_kib(&memory, "MemTotal"),
        "mem_free_kib": field_kib(&memory, "MemFree"),
        "mem_available_kib": field_kib(&memory, "MemAvailable"),
    })
}

#[cfg(test)]
mod tests {
    use super::{facts, field_kib};

    #[test]
    fn memory_figures_are_read() {
        let table = "MemTotal:         311204 kB\nMemFree:  7 kB\nMemTotalX: 1 kB\n";
        assert_eq!(field_kib(table, "MemTotal"), Some(311_204));
        assert_eq!(field_kib(table, "MemFree"), Some(7));
        assert_eq!(field_kib("MemTotal: x kB", "MemTotal"), None);
        assert!(facts()["mem_total_kib"].as_u64() > Some(1000));
    }
}
