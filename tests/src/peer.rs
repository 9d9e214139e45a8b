//! The peer program on a host: it talks to a guest over its network, and so sees what the guest sees.

use anyhow::{Context, Result};
use serde_json::Value;
use unmoved_lab::Host;
use unmoved_lab::programs::Program;
use unmoved_workload::fingerprint::{self, Fingerprint};
use unmoved_workload::report::parse_line;

/// The program on a host.
pub const PEER: &str = "/root/unmoved-peer";
/// The guest's address.
pub const ADDRESS: &str = "192.0.2.100";

/// Copy the peer program to a host.
///
/// # Errors
/// If it can not be built or copied.
pub fn install(host: &Host) -> Result<()> {
    host.copy_in(&Program::Peer.build()?, PEER)
}

/// All that the guest can see, taken over its network from `host`, which has its peer program.
///
/// # Errors
/// If the guest can not be reached.
pub fn fingerprint(host: &Host) -> Result<Fingerprint> {
    let to = format!("to={ADDRESS}:7009");
    host.ok(&[PEER, "fingerprint", &to, "file=/root/fingerprint"])?;
    Ok(Fingerprint::from_text(
        &host.ok(&["cat", "/root/fingerprint"])?,
    ))
}

/// What differs between two fingerprints, a sentence each.
#[must_use]
pub fn differences(before: &Fingerprint, after: &Fingerprint) -> Vec<String> {
    fingerprint::diff(before, after)
        .into_iter()
        .map(|one| format!("{}: {:?} became {:?}", one.key, one.before, one.after))
        .collect()
}

/// The last report in what the peer program printed.
#[must_use]
pub fn last_report(output: &str) -> Option<Value> {
    output.lines().rev().find_map(|line| parse_line(line)?.ok())
}

/// A guest's wall clock against that of the host that it is on.
///
/// A kernel that has just booted is some tenths of a second behind already where ticks are lost, with or
/// without the shim: until it takes up Xen's clock it counts time by them.
#[derive(Clone, Copy, Debug)]
pub struct WallError {
    /// How far the guest's is ahead, milliseconds.
    pub ahead_ms: f64,
    /// How wrong that may be: half of the round trip by which it was asked, milliseconds.
    pub uncertainty_ms: f64,
}

impl WallError {
    /// Asks the guest over its network from the host that it is on, which has the peer program.
    ///
    /// # Errors
    /// If the guest can not be reached.
    pub fn measure(host: &Host) -> Result<Self> {
        let output = host.ok(&[PEER, "wall", &format!("to={ADDRESS}:7009")])?;
        let report = last_report(&output).context("no wall clock error")?;
        let milliseconds = |key: &str| {
            let nanoseconds = report[key].as_f64();
            Ok::<f64, anyhow::Error>(
                nanoseconds.with_context(|| format!("no {key}: {report}"))? / 1e6,
            )
        };
        Ok(Self {
            ahead_ms: milliseconds("wall_error_ns")?,
            uncertainty_ms: milliseconds("uncertainty_ns")?,
        })
    }
}
