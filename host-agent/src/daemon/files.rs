//! Saves and restores.  These jobs are shown, followed and aborted like migrations, but have no session,
//! because there is no other agent.
//!
//! They have no journal either, so stopping the daemon [undoes](Daemon::stop) them first.  A killed save may
//! have left its guest suspended: `doctor` reports it, and `unmoved direct resume` resumes it.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::job::{Direction, Job};
use super::{Daemon, random, spawn};
use crate::job::{Control, JobOptions, Result};
use crate::session::SessionId;
use crate::stock;

impl Daemon {
    /// Starts to save a guest to a new file; returns the job.
    ///
    /// # Errors
    /// If there is no such domain, or another job reads it.
    pub fn save(
        self: &Arc<Self>,
        who: &str,
        domain: &str,
        file: &Path,
        keep_running: bool,
    ) -> Result<Arc<Job>> {
        self.refuse_if_stopping()?;
        let claim = self.claim(self.host.source(domain)?.uuid())?;
        let job = file_job(Direction::Save, domain, file, JobOptions::default())?;
        self.audit.write(
            who,
            "save",
            &json!({ "job": job.id, "domain": domain, "file": file }),
        );
        job.hold(claim);
        let (domain, file) = (domain.to_owned(), file.to_owned());
        self.begin(job, move |daemon, job| {
            stock::save(&*daemon.host, &domain, &file, keep_running, &job.control).map(drop)
        })
    }

    /// Starts to restore a guest from a file; returns the job.
    ///
    /// # Errors
    /// If the job cannot be started.
    pub fn restore(
        self: &Arc<Self>,
        who: &str,
        file: &Path,
        leave_paused: bool,
    ) -> Result<Arc<Job>> {
        let options = JobOptions {
            leave_paused,
            ..JobOptions::default()
        };
        // The guest's name is in the file.
        let job = file_job(Direction::Restore, "?", file, options)?;
        self.audit
            .write(who, "restore", &json!({ "job": job.id, "file": file }));
        let file = file.to_owned();
        self.begin(job, move |daemon, job| {
            stock::restore(&*daemon.host, &file, &job.control, |name| job.rename(name))
        })
    }

    fn begin(
        self: &Arc<Self>,
        job: Arc<Job>,
        work: impl FnOnce(&Self, &Job) -> Result<()> + Send + 'static,
    ) -> Result<Arc<Job>> {
        self.add_new(&job)?;
        let (daemon, running) = (self.clone(), job.clone());
        spawn("file", move || {
            let done = work(&daemon, &running).map_err(|error| error.to_string());
            daemon.over(&running, done);
        })
        .inspect_err(|error| job.end(Err(error.to_string())))?;
        Ok(job)
    }
}

fn file_job(
    direction: Direction,
    domain: &str,
    file: &Path,
    options: JobOptions,
) -> Result<Arc<Job>> {
    Ok(Job::new(
        SessionId::new(random()?).to_string(),
        direction,
        domain.to_owned(),
        file.display().to_string(),
        Arc::new(Control::new(options)),
    ))
}
