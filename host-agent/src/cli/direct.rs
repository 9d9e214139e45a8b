//! `unmoved direct …`: migrations with an agent at one end only, and without the daemon.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::job::{Compression, Control, JobOptions, OnTimeout, Standalone, Statistics};
use crate::{XenHost, stock};

/// What is at the other end.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Save a running domain to a file that `xl restore` reads
    Save(Save),
    /// Restore a domain from a file that `xl save` or this command wrote
    Restore(Restore),
    /// Move a running domain to a host that has only Xen's tools
    Send(Send),
    /// Receive a domain on standard input: `xl migrate -s '' DOMAIN 'ssh HOST unmoved direct receive'`
    Receive(Arrival),
    /// Resume a domain that a killed save or send left suspended, the daemon's saves included
    Resume(Resume),
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    /// Domain name or ID
    domain: String,
    /// You vouch that no other copy runs or ever will; needed after a send to another host
    #[arg(long)]
    vouch: bool,
}

#[derive(Debug, Args)]
pub(super) struct Save {
    /// Domain name or ID
    domain: String,
    /// File to write
    file: PathBuf,
    /// Keep the domain running afterwards
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    live: Live,
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// File to read
    file: PathBuf,
    #[command(flatten)]
    arrival: Arrival,
}

#[derive(Debug, Args)]
pub(super) struct Send {
    /// Domain name or ID
    domain: String,
    /// Shell command that reaches the receiver, such as 'ssh HOST xl migrate-receive'
    via: String,
    #[command(flatten)]
    live: Live,
}

/// How a running domain is copied.
#[derive(Debug, Args)]
struct Live {
    /// Target blackout, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300)]
    max_downtime: u64,
    /// Limit on the time to copy while the guest runs, in seconds
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
    /// When --timeout is reached, suspend the guest and copy the rest instead of aborting
    #[arg(long, requires = "timeout")]
    stop_on_timeout: bool,
}

/// How a domain is received.
#[derive(Debug, Args)]
pub(super) struct Arrival {
    /// Give the domain another name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Leave the domain paused
    #[arg(long)]
    paused: bool,
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, which also tells where the domain is.
    pub(super) fn run(self, json: bool) -> Result<()> {
        let control = Arc::new(Control::new(match &self {
            Self::Save(Save { live, .. }) | Self::Send(Send { live, .. }) => live.options(),
            Self::Restore(Restore { arrival, .. }) | Self::Receive(arrival) => arrival.options(),
            Self::Resume(resume) => return resume.run(json),
        }));
        abort_on_signals(&control)?;
        let host = XenHost::open(0)?;
        let copied = match self {
            Self::Save(save) => {
                stock::save(&host, &save.domain, &save.file, save.keep, &control).map(Some)
            }
            Self::Send(send) => stock::send(&host, &send.domain, &send.via, &control).map(Some),
            Self::Restore(restore) => {
                stock::restore(&host, &restore.file, &control, |_| ()).map(|()| None)
            }
            Self::Receive(_) => {
                stock::receive(&host, io::stdin().lock(), io::stdout().lock(), &control)
                    .map(|()| None)
            }
            Self::Resume(_) => Ok(None),
        }?;
        let Statistics { time_elapsed, .. } = control.statistics();
        if json {
            let report = json!({
                "total_ms": time_elapsed,
                "rounds": copied.map(|copied| copied.rounds),
                "pages": copied.map(|copied| copied.pages),
                "suspend_ms": copied.map(|copied| copied.suspend_ms),
            });
            // Standard output may be the connection to a sender.
            eprintln!("{report}");
        }
        Ok(())
    }
}

impl Resume {
    fn run(&self, json: bool) -> Result<()> {
        let operation = XenHost::open(0)?.resume(&self.domain, self.vouch)?;
        let (what, warning) = match operation {
            // The file is older than the guest's disks from now on.
            Standalone::Save => (
                "save",
                Some("do not restore the file that the killed save wrote"),
            ),
            Standalone::Send => ("send", None),
        };
        if json {
            let more = json!({ "domain": self.domain, "interrupted": what, "warning": warning });
            println!("{more}");
            return Ok(());
        }
        println!("{} resumed", self.domain);
        if let Some(warning) = warning {
            println!("{warning}");
        }
        Ok(())
    }
}

/// Undoes what was begun on Ctrl-C, SIGTERM or a lost terminal.  Otherwise the guest could stay suspended,
/// with nobody to resume it.
fn abort_on_signals(control: &Arc<Control>) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot handle signals")?;
    let control = control.clone();
    let wait = move || {
        for _ in signals.forever() {
            if control.abort() {
                eprintln!("aborting, and undoing what was started");
            } else {
                eprintln!("it is too late to abort");
            }
        }
    };
    let thread = thread::Builder::new().name("signals".to_owned());
    thread.spawn(wait).context("cannot start a thread")?;
    Ok(())
}

impl Live {
    fn options(&self) -> JobOptions {
        JobOptions {
            max_downtime_ms: self.max_downtime,
            timeout_ms: self.timeout.map(|seconds| seconds.saturating_mul(1000)),
            on_timeout: if self.stop_on_timeout {
                OnTimeout::StopAndCopy
            } else {
                OnTimeout::Abort
            },
            compress: Compression::None,
            ..JobOptions::default()
        }
    }
}

impl Arrival {
    fn options(&self) -> JobOptions {
        JobOptions {
            destination_name: self.name.clone(),
            leave_paused: self.paused,
            ..JobOptions::default()
        }
    }
}
