//! Checking a disk from outside the run that wrote it: after a reboot, or on a host.
//!
//! Without the writer's memory a stale block can not be told from a new one, but a damaged, torn or
//! misplaced one can.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Value, json};

use super::pattern::{self, BLOCK, Fault, Stamp};
use crate::sys::block;

/// The stamp of one block of a disk image.
///
/// # Errors
/// If it can not be read or is no whole stamped block.
pub fn stamp_at(path: &Path, index: u64) -> io::Result<Stamp> {
    let mut block = [0; BLOCK];
    let offset = index
        .checked_mul(BLOCK as u64)
        .ok_or(io::ErrorKind::InvalidInput)?;
    File::open(path)?.read_exact_at(&mut block, offset)?;
    pattern::identify(&block).map_err(|fault| io::Error::other(fault.to_string()))
}

/// Reads all of `path` and sorts its blocks: `good`, `unstamped` (never written by a run),
/// `damaged`, `misplaced`; with the first damaged ones named and the runs seen.
///
/// # Errors
/// If it can not be read.
pub fn check(path: &Path) -> io::Result<Value> {
    const STEP: usize = 64;
    let file = File::open(path)?;
    let blocks = block::size(&file)? / BLOCK as u64;
    let mut buffer = vec![0; STEP * BLOCK];
    let (mut good, mut unstamped, mut damaged, mut misplaced) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut runs: Vec<String> = Vec::new();
    let mut faults: Vec<Value> = Vec::new();
    let mut index = 0;
    while index < blocks {
        let count = (blocks - index).min(STEP as u64);
        let length = usize::try_from(count).unwrap_or(1) * BLOCK;
        file.read_exact_at(&mut buffer[..length], index * BLOCK as u64)?;
        for block in buffer[..length].chunks_exact(BLOCK) {
            let why = match pattern::identify(block) {
                Ok(stamp) if stamp.block == index => {
                    good += 1;
                    let run = format!("{:x}", stamp.run);
                    if runs.len() < 8 && !runs.contains(&run) {
                        runs.push(run);
                    }
                    None
                }
                Ok(stamp) => {
                    misplaced += 1;
                    Some(Fault::Other(stamp))
                }
                Err(Fault::Unstamped) => {
                    unstamped += 1;
                    None
                }
                Err(fault) => {
                    damaged += 1;
                    Some(fault)
                }
            };
            if let Some(fault) = why.filter(|_| faults.len() < 16) {
                faults.push(json!({ "block": index, "why": fault.to_string() }));
            }
            index += 1;
        }
    }
    Ok(json!({
        "blocks": blocks, "good": good, "unstamped": unstamped, "damaged": damaged,
        "misplaced": misplaced, "runs": runs, "faults": faults,
    }))
}
