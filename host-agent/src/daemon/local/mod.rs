//! Serves the command on this host, over a UNIX socket.
//!
//! The kernel tells which user is at the other end (`SO_PEERCRED`): root and the users in the configuration
//! are served.  A request and its answer are one frame of JSON each ([`crate::transport::frame`]).  Only a
//! client that follows jobs gets a series of answers (`watch`).

mod watch;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Daemon, Direction, spawn, unaccepted};
use crate::capabilities::Capabilities;
use crate::job::{Control, Error, JobOptions, Result};
use crate::transport::frame::{read_message, write_message};

/// Longest request.
const REQUEST_MOST: usize = 64 << 10;
/// Longest silence of a client in the middle of a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request of the command.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum Ask {
    /// Migrate a guest.
    Migrate {
        /// Domain name or ID.
        domain: String,
        /// The peer's name.
        host: String,
        /// The options.
        options: JobOptions,
    },
    /// Only check.
    Check {
        /// Domain name or ID.
        domain: String,
        /// The peer's name.
        host: String,
        /// The options.
        options: JobOptions,
    },
    /// Save a guest to a file.
    Save {
        /// Domain name or ID.
        domain: String,
        /// Absolute path.
        file: PathBuf,
        /// Keep the guest running.
        keep_running: bool,
    },
    /// Restore a guest from a file.
    Restore {
        /// Absolute path.
        file: PathBuf,
        /// Leave it paused.
        leave_paused: bool,
    },
    /// List the guests here.
    List,
    /// Show one job, or all.
    Status {
        /// The start of its ID.
        job: Option<String>,
    },
    /// Follow one job until it ends, or all jobs until the client goes away.
    Watch {
        /// The start of its ID.
        job: Option<String>,
    },
    /// Abort a job.
    Abort {
        /// The start of its ID.
        job: String,
    },
    /// Decide a held job.
    Recover {
        /// The start of its ID.
        job: String,
        /// Run the guest here; otherwise hand it over.
        run_here: bool,
        /// Neither: end the job here.
        #[serde(default)]
        discard: bool,
        /// The operator vouches for what the other end does not tell.
        #[serde(default)]
        vouch: bool,
    },
    /// Show this agent's capabilities.
    Capabilities,
    /// Show the peers, and whether they answer.
    Hosts,
    /// Check this host for problems.
    Doctor,
}

/// What the daemon answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// The answer.
    Answer(Value),
    /// Why the request failed.
    Error(String),
}

/// Listens, and serves until the program ends.
///
/// # Errors
/// If the socket cannot be created.
pub fn serve(daemon: &Arc<Daemon>) -> Result<()> {
    let path = &daemon.config().socket;
    let what = || format!("cannot listen at {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io(what()))?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(Error::Refused(format!(
            "another unmovedd listens at {}",
            path.display()
        )));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io(what())(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(Error::io(what()))?;
    // Permission depends on the user, not on the socket's mode.
    let mode = fs::Permissions::from_mode(0o666);
    fs::set_permissions(path, mode).map_err(Error::io(what()))?;
    let daemon = daemon.clone();
    spawn("local", move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream.inspect_err(unaccepted) else {
                continue;
            };
            let serving = daemon.clone();
            let served = spawn("client", move || {
                if let Err(error) = client(&serving, stream) {
                    log::debug!("a client: {error}");
                }
            });
            if let Err(error) = served {
                log::error!("{error}");
            }
        }
    })?;
    Ok(())
}

fn client(daemon: &Arc<Daemon>, mut stream: UnixStream) -> io::Result<()> {
    let uid = rustix::net::sockopt::socket_peercred(&stream)?.uid.as_raw();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let who = format!("uid {uid}");
    if uid != 0 && !daemon.config().allow_uids.contains(&uid) {
        daemon
            .refusals_here
            .tell(&daemon.audit, &who, "no permission");
        let why = format!("user {uid} has no permission (allow_uids in the configuration)");
        return write_message(&mut stream, &Told::Error(why));
    }
    let ask: Ask = read_message(&mut stream, REQUEST_MOST)?;
    if uid != 0 && matches!(ask, Ask::Save { .. } | Ask::Restore { .. }) {
        // Any file could be written, and a saved configuration names scripts that root runs.
        let why = "only root may save and restore";
        daemon.refusals_here.tell(&daemon.audit, &who, why);
        return write_message(&mut stream, &Told::Error(why.to_owned()));
    }
    if let Ask::Watch { job } = &ask {
        let Some(job) = job else {
            return watch::all(daemon, &mut stream);
        };
        return match daemon.job(job) {
            Ok(job) => watch::one(&job, &mut stream),
            Err(error) => write_message(&mut stream, &Told::Error(error.to_string())),
        };
    }
    let told = match answer(daemon, &who, ask) {
        Ok(value) => Told::Answer(value),
        Err(error) => Told::Error(error.to_string()),
    };
    write_message(&mut stream, &told)
}

fn answer(daemon: &Arc<Daemon>, who: &str, ask: Ask) -> Result<Value> {
    Ok(match ask {
        Ask::Migrate {
            domain,
            host,
            options,
        } => {
            let job = daemon.migrate(who, &domain, &host, options)?;
            json!({ "job": job.id })
        }
        Ask::Check {
            domain,
            host,
            options,
        } => value(&daemon.check(&domain, &host, options)?)?,
        Ask::Save {
            domain,
            file,
            keep_running,
        } => {
            let job = daemon.save(who, &domain, &file, keep_running)?;
            json!({ "job": job.id })
        }
        Ask::Restore { file, leave_paused } => {
            let job = daemon.restore(who, &file, leave_paused)?;
            json!({ "job": job.id })
        }
        Ask::List => value(&daemon.host.domains()?)?,
        Ask::Status { job: None } | Ask::Watch { job: None } => {
            let all: Vec<_> = daemon.jobs().iter().map(|job| job.summary()).collect();
            value(&all)?
        }
        Ask::Status { job: Some(job) } | Ask::Watch { job: Some(job) } => {
            value(&daemon.job(&job)?.status(0))?
        }
        Ask::Abort { job } => {
            let job = daemon.job(&job)?;
            daemon.audit.write(who, "abort", &json!({ "job": job.id }));
            if job.result().is_some() {
                return Err(Error::Refused("the job is over".to_owned()));
            }
            if job.direction == Direction::Incoming {
                return Err(Error::Refused("abort the job at its source".to_owned()));
            }
            if !job.control.abort() {
                return Err(Error::Refused(
                    match job.direction {
                        Direction::Save | Direction::Restore => {
                            "too late: everything has been copied"
                        }
                        _ => "too late: the guest has been handed over",
                    }
                    .to_owned(),
                ));
            }
            json!({ "job": job.id, "aborting": true })
        }
        Ask::Recover {
            job,
            run_here,
            discard,
            vouch,
        } => {
            let job = daemon.job(&job)?;
            let more = match discard {
                true => json!({ "job": job.id, "discard": true, "vouch": vouch }),
                false => json!({ "job": job.id, "run_here": run_here }),
            };
            daemon.audit.write(who, "recover", &more);
            match discard {
                true => daemon.discard(&job, vouch)?,
                false => daemon.decide(&job, run_here)?,
            }
            json!({ "job": job.id })
        }
        Ask::Capabilities => json!({ "xml": Capabilities::ours().to_xml() }),
        Ask::Hosts => hosts(daemon),
        Ask::Doctor => doctor(daemon),
    })
}

fn hosts(daemon: &Daemon) -> Value {
    // This control is never aborted.
    let control = Arc::new(Control::new(JobOptions::default()));
    let peers = daemon.config().peers.iter().map(|peer| {
        let met = super::link::Link::connect(&daemon.identity, peer)
            .and_then(|mut link| Ok((link.meet(control.options())?, link.probe(&control)?)));
        match met {
            Ok(((theirs, facts), way)) => json!({
                "name": peer.name, "address": peer.address, "reachable": true,
                "xen_version": facts.xen_version, "free_memory_bytes": facts.free_memory_bytes,
                "bytes_per_second": way.round(),
                "capabilities": theirs.to_xml(),
                "migration_features": Capabilities::ours().intersection(&theirs).to_xml(),
            }),
            Err(error) => json!({
                "name": peer.name, "address": peer.address, "reachable": false,
                "error": error.to_string(),
            }),
        }
    });
    Value::Array(peers.collect())
}

fn doctor(daemon: &Daemon) -> Value {
    let mut checks = Vec::new();
    let mut check = |what: &str, problem: Option<String>| {
        checks.push(json!({ "check": what, "ok": problem.is_none(), "problem": problem }));
    };
    match daemon.host.facts() {
        Ok(facts) => check(&format!("Xen {}", facts.xen_version), None),
        Err(error) => check("Xen", Some(error.to_string())),
    }
    let problems = daemon.host.problems();
    if problems.is_empty() {
        check("toolstack", None);
    }
    for problem in problems {
        check("toolstack", Some(problem));
    }
    for host in hosts(daemon).as_array().into_iter().flatten() {
        let name = host["name"].as_str().unwrap_or_default();
        let problem = host["error"].as_str().map(str::to_owned);
        check(&format!("peer {name}"), problem);
    }
    for job in daemon.jobs() {
        // Longer, because the other end of it is an operator or a host that does not answer.
        if let Some(reason) = job.hangs() {
            check(&format!("job {}", job.id), Some(reason));
        }
    }
    Value::Array(checks)
}

fn value(of: &impl Serialize) -> Result<Value> {
    serde_json::to_value(of).map_err(|error| Error::Refused(error.to_string()))
}
