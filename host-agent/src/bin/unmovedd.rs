//! The daemon `unmovedd`; everything it does is in [`unmoved::daemon`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use unmoved::XenHost;
use unmoved::config::{self, Config};
use unmoved::daemon::{Daemon, LONGEST, local};

/// The host agent's daemon.
#[derive(Debug, Parser)]
#[command(name = "unmovedd", version)]
struct Arguments {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
    /// Check the configuration and the certificates, then exit
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_timestamp_millis()
        .init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let config = Config::load(&arguments.config)?;
    if arguments.check {
        return Ok(config.identity().map(drop)?);
    }
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot handle signals")?;
    let host =
        XenHost::open(config.copying_weight).context("this host is not a usable control domain")?;
    let host = Arc::new(host);
    let daemon = Daemon::new(config, host.clone())?;
    // Only here: the lock shows that no other daemon runs.
    host.tidy();
    let begun = daemon.start().and_then(|address| {
        local::serve(&daemon)?;
        Ok(address)
    });
    let address = match begun {
        Ok(address) => address,
        Err(error) => {
            // Recovery of suspended guests has begun by now; an error here must not leave them suspended.
            daemon.stop(LONGEST);
            return Err(error.into());
        }
    };
    log::info!("ready; agents connect to {address}");
    // There is no socket unless systemd started the daemon.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    // The daemon may be killed at any moment, but an orderly stop leaves no guest suspended.
    let signal = signals.forever().next();
    log::info!("stopping on signal {}", signal.unwrap_or_default());
    daemon.stop(LONGEST);
    host.tidy();
    Ok(())
}
