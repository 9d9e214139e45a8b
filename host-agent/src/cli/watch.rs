//! Follows jobs: `unmoved migrate` and `unmoved status --watch`.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};

use super::show;
use super::socket::{Socket, answer, connect, send};
use crate::daemon::JobStatus;
use crate::daemon::local::Ask;
use crate::transport::frame::{MESSAGE_MOST, read_message};

/// Follows a job until it ends.  With JSON, prints only its last status.
pub(super) fn one(socket: &Socket, job: &str, json: bool) -> Result<()> {
    let mut stream = connect(socket)?;
    let ask = Ask::Watch {
        job: Some(job.to_owned()),
    };
    send(&mut stream, &ask);
    let mut progress = (!json).then(show::Progress::new);
    loop {
        let told = read_message(&mut stream, MESSAGE_MOST);
        let status: JobStatus = serde_json::from_value(answer(told)?)?;
        if let Some(progress) = &mut progress {
            progress.update(&status);
        }
        if !status.is_over {
            continue;
        }
        if json {
            println!("{}", serde_json::to_string_pretty(&status)?);
        }
        if let Some(why) = status.statistics.errmsg {
            bail!("{}: {why}", status.domain);
        }
        return Ok(());
    }
}

/// Follows all jobs, with a line for each event.  With JSON, each line is the status of a job that changed,
/// with the new events in `events`.
pub(super) fn all(socket: &Socket, json: bool) -> Result<()> {
    let mut stream = connect(socket)?;
    send(&mut stream, &Ask::Watch { job: None });
    let mut out = io::stdout().lock();
    loop {
        let told = answer(read_message(&mut stream, MESSAGE_MOST))?;
        let text = if json {
            format!("{told}\n")
        } else {
            show::events(&serde_json::from_value(told)?)
        };
        // The reader may close the pipe; that must not panic.
        out.write_all(text.as_bytes()).context("cannot write")?;
    }
}
