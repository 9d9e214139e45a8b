//! Commands that ask the daemon on this host.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::socket::{Socket, ask_once, asked, connect};
use super::{doctor, show, watch};
use crate::daemon::local::Ask;
use crate::job::{Compression, JobOptions, OnTimeout};
use crate::text::clean;

/// What to ask.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Migrate a guest to another host and show the progress
    Migrate(Migrate),
    /// Check whether a guest can migrate, and predict the result; changes nothing
    Check(Guest),
    /// List the guests of this host
    List,
    /// Show jobs: running, waiting and recently ended
    Status {
        /// The job, or the start of its ID
        job: Option<String>,
        /// Follow the job until it ends; without a job, follow all jobs until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Abort a job; the guest keeps running on its source
    Abort {
        /// The job, or the start of its ID
        job: String,
    },
    /// Decide where a suspended guest runs
    Recover {
        /// The job, or the start of its ID
        job: String,
        /// Where the guest runs; you vouch that the other copy does not run, where the agents cannot check it
        #[arg(long, value_enum, required_unless_present = "discard")]
        run: Option<Side>,
        /// End the job here: the destination discards its copy, the source gives up a guest that is gone
        #[arg(long, conflicts_with = "run")]
        discard: bool,
        /// With --discard: you vouch that the guest runs or can run elsewhere, or that nothing of it is left
        #[arg(long, requires = "discard")]
        vouch: bool,
    },
    /// Save a guest to a file that `xl restore` can also read
    Save {
        /// Domain name or ID
        domain: String,
        /// File to write
        file: PathBuf,
        /// Keep the guest running afterwards
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        follow: Follow,
    },
    /// Restore a guest from a file that `xl save` or `unmoved save` wrote
    Restore {
        /// File to read
        file: PathBuf,
        /// Leave the guest paused
        #[arg(long)]
        paused: bool,
        #[command(flatten)]
        follow: Follow,
    },
    /// Show this agent's capabilities, as XML in libvirt's form
    Capabilities,
    /// Show the other hosts, and whether they answer
    Hosts,
    /// Check this host for problems
    Doctor,
}

/// Where a guest is to run.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Side {
    /// On this host; you vouch that the copy on the other host does not run
    Here,
    /// On the other host; if this is the destination, it discards its copy
    There,
}

#[derive(Debug, Args)]
pub(super) struct Migrate {
    #[command(flatten)]
    guest: Guest,
    #[command(flatten)]
    follow: Follow,
}

/// Whether the command follows the job until it ends.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Follow {
    /// Start the job and return; `unmoved status` shows its progress
    #[arg(long)]
    detach: bool,
}

/// Which guest, where to, and how.
#[derive(Debug, Args)]
pub(super) struct Guest {
    /// Domain name or ID
    domain: String,
    /// The destination's name in the configuration
    host: String,
    /// Give the guest another name at the destination
    #[arg(long, value_name = "NAME")]
    dname: Option<String>,
    /// Target blackout in ms; a guest that dirties memory too fast exceeds it, unless --timeout is set
    #[arg(long, value_name = "MS", default_value_t = 300)]
    max_downtime: u64,
    /// Limit on the blackout before the hand-over: the migration is aborted if it takes longer, and the guest
    /// resumes here
    #[arg(long, value_name = "SECONDS", default_value_t = JobOptions::MAX_BLACKOUT_MS / 1000,
          value_parser = clap::value_parser!(u64).range(1..))]
    max_blackout: u64,
    /// Limit on the time to copy while the guest runs
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// What to do when --timeout or --max-rounds is reached
    #[arg(long, value_enum, default_value = "abort", requires = "timeout")]
    on_timeout: Late,
    /// Limit on the rounds while the guest runs
    #[arg(long, value_name = "N", default_value_t = 30)]
    max_rounds: u32,
    /// Limit on bytes per second; k, M or G may follow
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    bandwidth: Option<u64>,
    /// Number of connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
    /// auto (whatever is faster), none, zstd or zstd:LEVEL
    #[arg(long, value_name = "HOW", default_value = "auto")]
    compress: Compression,
    /// Leave the guest paused at the destination
    #[arg(long)]
    paused: bool,
    /// Treat this disk as shared by both hosts, where the agents cannot check it; may be repeated
    #[arg(long, value_name = "DISK")]
    shared_storage: Vec<String>,
    /// Compare memory and state at both ends during the blackout, and keep the guest here if they differ
    #[arg(long, overrides_with = "no_verify")]
    verify: bool,
    /// Do not verify, even if the configuration says so
    #[arg(long, overrides_with = "verify")]
    no_verify: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Late {
    Abort,
    StopAndCopy,
}

impl Guest {
    fn options(&self) -> JobOptions {
        JobOptions {
            destination_name: self.dname.clone(),
            max_downtime_ms: self.max_downtime,
            max_blackout_ms: Some(self.max_blackout.saturating_mul(1000)),
            timeout_ms: self.timeout.map(|seconds| seconds.saturating_mul(1000)),
            on_timeout: match self.on_timeout {
                Late::Abort => OnTimeout::Abort,
                Late::StopAndCopy => OnTimeout::StopAndCopy,
            },
            max_rounds: self.max_rounds,
            bandwidth: self.bandwidth,
            parallel: self.parallel,
            compress: self.compress,
            leave_paused: self.paused,
            shared_storage: self.shared_storage.clone(),
            verify: (self.verify || self.no_verify).then_some(self.verify),
        }
    }
}

impl Command {
    pub(super) fn run(self, socket: &Socket, json: bool) -> Result<()> {
        let ask = match self {
            Self::Migrate(Migrate { guest, follow }) => {
                let ask = Ask::Migrate {
                    options: guest.options(),
                    domain: guest.domain,
                    host: guest.host,
                };
                return follow.job(socket, &ask, json);
            }
            Self::Save {
                domain,
                file,
                keep,
                follow,
            } => {
                let ask = Ask::Save {
                    domain,
                    file: absolute(&file)?,
                    keep_running: keep,
                };
                return follow.job(socket, &ask, json);
            }
            Self::Restore {
                file,
                paused,
                follow,
            } => {
                let ask = Ask::Restore {
                    file: absolute(&file)?,
                    leave_paused: paused,
                };
                return follow.job(socket, &ask, json);
            }
            Self::Status { job, watch: true } => {
                return match job {
                    Some(job) => watch::one(socket, &job, json),
                    None => watch::all(socket, json),
                };
            }
            Self::Check(guest) => Ask::Check {
                options: guest.options(),
                domain: guest.domain,
                host: guest.host,
            },
            Self::List => Ask::List,
            Self::Status { job, .. } => Ask::Status { job },
            Self::Abort { job } => Ask::Abort { job },
            Self::Recover {
                job,
                run,
                discard,
                vouch,
            } => Ask::Recover {
                job,
                run_here: matches!(run, Some(Side::Here)),
                discard,
                vouch,
            },
            Self::Capabilities => Ask::Capabilities,
            Self::Hosts => Ask::Hosts,
            Self::Doctor => Ask::Doctor,
        };
        let answer = match connect(socket) {
            Ok(stream) => asked(stream, &ask)?,
            Err(why) if matches!(ask, Ask::Doctor) => doctor::without_daemon(&socket.socket, &why),
            Err(why) => return Err(why),
        };
        if json {
            println!("{}", serde_json::to_string_pretty(&answer)?);
        } else {
            show::answer(&ask, &fit(answer.clone()));
        }
        let is_wrong = |check: &Value| check["ok"] == false;
        if matches!(ask, Ask::Doctor)
            && answer
                .as_array()
                .is_some_and(|all| all.iter().any(is_wrong))
        {
            bail!("there are problems");
        }
        Ok(())
    }
}

impl Follow {
    /// Starts a job and shows it.
    fn job(self, socket: &Socket, ask: &Ask, json: bool) -> Result<()> {
        let begun = ask_once(socket, ask)?;
        let job = begun["job"]
            .as_str()
            .context("the daemon returned no job")?;
        if !self.detach {
            return watch::one(socket, job, json);
        }
        if json {
            println!("{begun}");
        } else {
            println!("{job}");
        }
        Ok(())
    }
}

/// Makes every text in the answer safe for a terminal, because other hosts and guests' configurations provide
/// parts of it.  Lines of XML stay, because we write them.
fn fit(answer: Value) -> Value {
    match answer {
        Value::String(text) => Value::String(clean(&text, usize::MAX)),
        Value::Array(list) => list.into_iter().map(fit).collect(),
        Value::Object(object) => {
            let fitted = object.into_iter().map(|(key, value)| match &*key {
                "xml" => (key, value),
                _ => (key, fit(value)),
            });
            Value::Object(fitted.collect())
        }
        other => other,
    }
}

/// The daemon has a different working directory.
fn absolute(file: &Path) -> Result<PathBuf> {
    Ok(std::path::absolute(file)?)
}

/// A number of bytes, as `20M`.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(['k', 'K', 'M', 'G']);
    let factor = match &text[digits.len()..] {
        "" => 1,
        "k" | "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return Err("the unit is k, M or G".to_owned()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a number of bytes".to_owned())?;
    number
        .checked_mul(factor)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bandwidth_is_read_with_its_unit() {
        assert_eq!(bytes("1500"), Ok(1500));
        assert_eq!(bytes("20M"), Ok(20 << 20));
        for wrong in [
            "",
            "M",
            "0",
            "1MM",
            "-1",
            "99999999999999999999",
            "99999999999G",
        ] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
