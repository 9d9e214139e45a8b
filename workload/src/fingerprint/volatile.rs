//! What is left out of the fingerprint because it changes by itself, without any migration.
//!
//! Rules are kept few and narrow: a rule too wide hides what the fingerprint is for.

/// Xenstore nodes that hold measurements of the guest itself or belong to the test: relative to
/// the guest's own directory.
const STORE: [&str; 2] = [
    // Written by the workload and by tests.
    "data/test",
    // The shim's reports about its own life, which are for the host.
    "data/unmoved",
];

/// File names below `/sys` and `/proc` that hold counters or moments.
const FILES: [&str; 14] = [
    "stat",
    "statistics",
    "inflight",
    "uevent",
    "carrier_changes",
    "carrier_up_count",
    "carrier_down_count",
    "power",
    "trace",
    "io_stat",
    "diskseq",
    // Counted up by the kernel as devices are made and bound.
    "ifindex",
    "iflink",
    "events_poll_msecs",
];

/// Whether a xenstore path (relative to the guest's directory, or below `/vm`) is left out.
#[must_use]
pub fn in_store(path: &str) -> bool {
    // When the domain was made, which two boots do not share.
    let is_moment = path.starts_with("/vm/") && path.ends_with("/start_time");
    is_moment
        || STORE.iter().any(|rule| {
            path.strip_prefix(rule)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
}

/// Whether a file or directory of this name is left out of a walk.
#[must_use]
pub fn in_files(name: &str) -> bool {
    FILES.contains(&name)
}

/// Lines of `/proc/cpuinfo` that are measured, not told: frequency, speed, and the number that
/// depends on the processor one happens to run on.
#[must_use]
pub fn in_cpuinfo(field: &str) -> bool {
    matches!(field, "cpu MHz" | "bogomips" | "apicid" | "initial apicid")
}

#[cfg(test)]
mod tests {
    use super::{in_cpuinfo, in_files, in_store};

    #[test]
    fn rules_are_narrow() {
        assert!(in_store("data/unmoved/state") && in_store("data/test"));
        assert!(!in_store("data/unmovedx") && !in_store("data") && !in_store("domid"));
        assert!(in_store("/vm/0a-1b/start_time") && !in_store("vm/start_time"));
        assert!(in_files("statistics") && !in_files("size"));
        assert!(in_cpuinfo("cpu MHz") && !in_cpuinfo("model name"));
    }
}
