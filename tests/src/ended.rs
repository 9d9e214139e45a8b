//! Guests that have ended, and are kept to be looked at (`on_crash = "preserve"`).

use anyhow::{Result, ensure};
use unmoved_lab::Host;

/// Waits until `xl list` shows a domain, by name, as shut down (s) and crashed (c), and prints its line.
const WAIT: &str = "for i in $(seq 300); do \
    line=$(xl list \"$1\" | tail -n 1); case $line in *sc-*) break;; esac; sleep 0.1; \
    done; echo \"$line\"";

/// Wait until a guest has crashed, and destroy what is left of it.
///
/// # Errors
/// If it does not within half a minute.
pub fn crashed(host: &Host, name: &str) -> Result<()> {
    let listed = host.ok(&["sh", "-c", WAIT, "sh", name])?;
    ensure!(listed.contains("sc-"), "{name} did not crash: {listed}");
    host.ok(&["xl", "destroy", name]).map(drop)
}
