//! Which clock a snapshot was taken by.
//!
//! The emulator passes the machine's own time stamp counter through, and Xen measures its rate at boot;
//! a snapshot restored where the counter runs at another rate would have a wrong clock for ever.

/// A word that is the same on machines whose time stamp counters run equally fast: the CPU's model.
#[must_use]
pub fn machine_key() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let fields = ["model name", "cpu family", "model", "stepping"];
    text.lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(':'))
        .filter(|(field, _)| fields.contains(&field.trim()))
        .map(|(_, value)| value.trim())
        .collect::<Vec<_>>()
        .join("/")
}
