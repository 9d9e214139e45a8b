//! Step 0: the capabilities of both ends, the guest's behaviour, the speed of the network, and the
//! prediction.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::capabilities::{Capabilities, STREAM};
use crate::config::Peer;
use crate::daemon::Daemon;
use crate::daemon::link::Link;
use crate::job::{Compression, Control, Error, Estimate, JobOptions, Prepared, Result, Source};
use crate::policy;
use crate::predict::{Past, Prediction, compression, predict};
use crate::storage::Storage;

/// What is known before a session begins.
pub(super) struct Met {
    pub(super) link: Link,
    pub(super) prepared: Prepared,
    pub(super) prediction: Prediction,
    pub(super) expected: Expected,
    pub(super) parallel: u8,
    pub(super) compress: Compression,
}

/// The input of a prediction, to compare with the outcome.
pub(super) struct Expected {
    pub(super) past: Past,
    /// When the job began.
    pub(super) at: Duration,
}

/// Does everything up to the first lasting effect: what the peer reserves is given back at once.
pub(in crate::daemon) fn check(
    daemon: &Arc<Daemon>,
    source: &mut dyn Source,
    peer: &Peer,
    control: &Arc<Control>,
) -> Result<(Prepared, Prediction)> {
    let mut met = meet(daemon, source, peer, control)?;
    met.link.check(&met.prepared.needs)?;
    Ok((met.prepared, met.prediction))
}

/// Step 0, at both ends.
pub(super) fn meet(
    daemon: &Arc<Daemon>,
    source: &mut dyn Source,
    peer: &Peer,
    control: &Arc<Control>,
) -> Result<Met> {
    let options = control.options();
    let mut link = Link::connect(&daemon.identity, peer)?;
    let (theirs, there) = link.meet(options)?;
    let both = Capabilities::ours().intersection(&theirs);
    both.suffice()
        .map_err(|why| Error::Refused(format!("{} {why}", peer.name)))?;
    if there.stream_version < STREAM {
        return Err(Error::Refused(format!(
            "the toolstack at {} reads version {} of the libxc stream, but this host sends version {STREAM}",
            peer.name, there.stream_version
        )));
    }
    if options.verifies() && !both.has("verify") {
        return Err(Error::Refused(format!(
            "{} does not support --verify (or `verify` in the configuration); use --no-verify to migrate \
             without it",
            peer.name
        )));
    }
    let most = both.number("parallel").unwrap_or(1).clamp(1, 64);
    let parallel = u64::from(options.parallel.max(1)).min(most);
    let here = daemon.host.facts()?;
    if major_minor(&there.xen_version) < major_minor(&here.xen_version) {
        return Err(Error::Refused(format!(
            "Xen {} at {} is older than this host's Xen {}",
            there.xen_version, peer.name, here.xen_version
        )));
    }
    // Both at the same time, as in a migration: neither waits for the other.
    let (prepared, way) = thread::scope(|scope| {
        let probing = scope.spawn(|| link.probe(control));
        let prepared = source.prepare(options, control);
        let failed = |_| Err(Error::Peer("the probe panicked".to_owned()));
        (prepared, probing.join().unwrap_or_else(failed))
    });
    let (mut prepared, way) = (prepared?, way?);
    prepared.needs.storage = storage(daemon, &prepared.needs.disks, options, peer)?;
    if let Some(name) = &options.destination_name {
        prepared.needs.destination_name.clone_from(name);
    }
    let estimate: &Estimate = &prepared.estimate;
    let compress = if both.has("compression") {
        compression(estimate, way, options)
    } else {
        Compression::None
    };
    let options = JobOptions {
        compress,
        ..options.clone()
    };
    let past = daemon.history.of(&peer.name);
    control.set_past(past);
    let at = control.elapsed();
    let prediction = predict(estimate, way, &options, &past, at);
    check_verifying_fits_blackout(&prediction, control)?;
    Ok(Met {
        expected: Expected { past, at },
        compress,
        link,
        prediction,
        prepared,
        parallel: u8::try_from(parallel).unwrap_or(1),
    })
}

/// Describes the storage behind a guest's disks, and adds what the operator vouches for.
fn storage(
    daemon: &Daemon,
    disks: &[String],
    options: &JobOptions,
    peer: &Peer,
) -> Result<Vec<Storage>> {
    let missing = |disk: &&String| !disks.contains(disk);
    if let Some(disk) = options.shared_storage.iter().find(missing) {
        return Err(Error::Refused(format!(
            "the guest has no writable disk {disk}; it has: {}",
            disks.join(", ")
        )));
    }
    let is_vouched = |disk: &String| {
        let fits = |pattern: &String| policy::fits(pattern, disk);
        options.shared_storage.contains(disk) || peer.shared_storage.iter().any(fits)
    };
    let storage = disks.iter().map(|disk| Storage {
        is_vouched: is_vouched(disk),
        ..daemon.host.storage(disk)
    });
    Ok(storage.collect())
}

/// Checks that verifying alone fits into the blackout limit.
fn check_verifying_fits_blackout(prediction: &Prediction, control: &Control) -> Result<()> {
    let most = control
        .max_blackout()
        .map_or(f64::INFINITY, |most| most.as_secs_f64());
    let seconds = prediction.verifying_ms / 1000.0;
    if seconds < most {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "verifying would stop the guest for about {seconds:.0} s, and --max-blackout allows {most} s: use \
         --no-verify, or a larger --max-blackout"
    )))
}

/// Parses major and minor of a version of Xen.
fn major_minor(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    )
}
