//! How many copies of a guest there are, and whether two of them ever ran.
//!
//! The guest numbers the reports of each of its processes, and the number is part of what moves.  So the
//! consoles of two hosts tell afterwards whether there was one life or two: no number is on both, and those
//! of the destination begin where the source's have ended.  What ran twice for less than a heartbeat would
//! still show in the disk's blocks, which the guest checks all the time.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::Value;
use unmoved_lab::{Guest, Lab};
use unmoved_workload::report::parse_line;

use super::table::End;
use crate::agents;

/// First and last number that each process has reported.
type Lives = BTreeMap<u64, (u64, u64)>;

fn lives(console: &str) -> Lives {
    let mut lives = Lives::new();
    let reports = console.lines().filter_map(|line| parse_line(line)?.ok());
    for report in reports {
        if let (Some(process), Some(number)) = (report["pid"].as_u64(), report["n"].as_u64()) {
            let (first, last) = lives.entry(process).or_insert((number, number));
            (*first, *last) = ((*first).min(number), (*last).max(number));
        }
    }
    lives
}

/// Sees that the guest lived once: at the source, then perhaps at the destination.
///
/// # Errors
/// If it did both at a time, or ran at the destination and then at the source again.
pub(super) fn lived_once(at_source: &Guest, arrived: &Guest, end: End) -> Result<()> {
    let before = lives(&at_source.console.text());
    let after = lives(&arrived.console.text());
    ensure!(
        end != End::Stayed || after.is_empty(),
        "the guest ran at the destination ({after:?}), and goes on at the source ({before:?})"
    );
    for (process, (first, _)) in &after {
        if let Some((_, last)) = before.get(process) {
            ensure!(
                last < first,
                "the guest ran twice: process {process} has reported {last} at the source, and {first} at the destination"
            );
        }
    }
    Ok(())
}

/// The hosts on which the guest runs, under whatever name.
pub(super) fn running(lab: &Lab, guest: &str) -> Result<Vec<usize>> {
    of(lab, guest, |state| matches!(state, "running" | "blocked"))
}

/// The hosts that have something of the guest: running, paused or half built.
pub(super) fn all(lab: &Lab, guest: &str) -> Result<Vec<usize>> {
    of(lab, guest, |state| state != "dying")
}

fn of(lab: &Lab, guest: &str, is_meant: impl Fn(&str) -> bool) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    for (at, host) in lab.hosts.iter().enumerate() {
        let list = agents::ask(host, &["list"])?;
        let is_one = |domain: &&Value| {
            let name = domain["name"].as_str().unwrap_or_default();
            let state = domain["state"].as_str().unwrap_or_default();
            name.starts_with(guest) && is_meant(state)
        };
        let domains = list.as_array().into_iter().flatten();
        found.extend(domains.filter(is_one).map(|_| at));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::lives;

    #[test]
    fn reports_are_numbered_by_process() {
        let console = "@unmoved {\"n\":3,\"pid\":1}\nkernel\n@unmoved {\"n\":9,\"pid\":2}\n\
                       x @unmoved {\"n\":5,\"pid\":1}\n@unmoved {\"n\":7,\"pi";
        assert_eq!(lives(console), [(1, (3, 5)), (2, (9, 9))].into());
    }
}
