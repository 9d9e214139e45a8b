//! Migrations that are cut: an agent killed, a host switched off, the LAN cut, at some moment.
//!
//! A guest is moved to and fro.  In each run something happens to it on the way; then everything is put
//! in order again, the agents settle the job between themselves, and what became of the guest is looked
//! at.  All the while nobody may ever see it run twice.

mod act;
mod copies;
mod table;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use unmoved_lab::images::KernelFiles;
use unmoved_lab::{Guest, GuestPlan, Host, Lab};

use self::act::Armed;
use crate::{agents, direct::UNMOVED, load::Load, unnoticed};

pub use table::{Cut, End, Moment, Run};

/// Longest time from creation to a running user space, on a loaded machine.
const BOOT: Duration = Duration::from_secs(600);
/// Longest time of anything that takes a moment.
const MOMENT: Duration = Duration::from_secs(300);
/// Longest time of a job that nobody disturbs any more: a connection that is silent for ever is given up
/// after a minute or so, and builders have a limit of their own.
const SETTLE: u32 = 400;
/// Waits until each job is over, or waits for an operator.  Arguments: the command, seconds.
const SETTLED: &str = "end=$(($(date +%s) + $2))
    while \"$1\" status | grep -vE '  (done|failed: .*|HELD: .*)$'; do
        test $(date +%s) -lt $end || exit 1
        sleep 0.3
    done >/dev/null";

/// Words on its command line, of which the last of a kind counts: enough to notice a second copy, or a
/// write that came too late, and not more.
const CALM: &str = " unmoved.disk=dev=/dev/xvda,area=16M,depth=2,max=16k,pause=10000 \
                    unmoved.clock=period=20000 unmoved.heartbeat=1";

/// The guest that is moved, and where it is.
#[derive(Debug)]
pub struct Cuts {
    plan: GuestPlan,
    guest: Guest,
    at: usize,
}

impl Cuts {
    /// Starts agents whose journals outlive their hosts, and the guest on the first host.
    ///
    /// # Errors
    /// If any of that does not start.
    pub fn begin(lab: &Lab, kernel: &KernelFiles) -> Result<Self> {
        agents::install(lab)?;
        for host in &lab.hosts {
            agents::keep_state(host, true)?;
            agents::run_daemon(host)?;
        }
        let mut plan = unnoticed::plan(kernel, Load::Steady)?;
        plan.arguments += CALM;
        let guest = create(&plan, lab.host(0))?;
        Ok(Self { plan, guest, at: 0 })
    }

    /// One migration that is cut, and what became of it.
    ///
    /// # Errors
    /// If the guest ran twice, is lost, or a job does not come to an end.
    pub fn run(&mut self, lab: &mut Lab, cut: Cut, moment: Moment) -> Result<Run> {
        let (from, to) = (self.at, 1 - self.at);
        lab.host(to)
            .sh("rm -f /var/log/xen/console/guest-web1*.log")?;
        let arrived = Guest::attach_incoming(&self.plan.name, lab.host(to))?;
        let armed = Armed::new(lab, cut, moment, [from, to])?;
        let job = agents::begin(&self.plan.name, lab.host(from), lab.host(to), &[])?;
        let off = armed.happen(lab, &job)?;
        let begun = Instant::now();
        let is_decided = self.settle(lab, off)?;
        let settled = begun.elapsed();
        let said = [said(lab.host(from), &job)?, said(lab.host(to), &job)?];
        let is_done = said.iter().any(|said| said == "done");
        let end = match copies::running(lab, &self.plan.name)?[..] {
            [at] if at == from => End::Stayed,
            [_] => End::Moved,
            // Before the hand-over it can only die with the source, and after it only with the destination.
            [] if off == Some(from) && !is_done => End::DiedWithItsHost,
            [] if off == Some(to) && (is_decided || is_done) => End::DiedWithItsHost,
            [] => bail!("the guest is lost: {said:?}"),
            _ => bail!("the guest runs twice: {said:?}"),
        };
        self.alone(lab, end)?;
        copies::lived_once(&self.guest, &arrived, end)?;
        self.go_on(lab, end, arrived, off)?;
        Ok(Run {
            cut,
            moment,
            end,
            is_decided,
            settled,
            said,
        })
    }

    /// Sees that nothing of the guest is left but what runs: a toolstack whose agent was killed may take
    /// a moment to throw away what it was building.
    fn alone(&self, lab: &Lab, end: End) -> Result<()> {
        let expected = usize::from(end != End::DiedWithItsHost);
        let until = Instant::now() + MOMENT;
        loop {
            let all = copies::all(lab, &self.plan.name)?;
            if all.len() == expected {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "{end:?}, but copies are left: {all:?}"
            );
        }
    }

    /// Waits until no job is under way any more; if one waits for an operator, who looks where the guest
    /// is and decides.  Gives whether that was necessary.
    fn settle(&self, lab: &Lab, off: Option<usize>) -> Result<bool> {
        let limit = SETTLE.to_string();
        let mut is_decided = false;
        loop {
            for host in &lab.hosts {
                let settled = host.start(&["sh", "-c", SETTLED, "sh", UNMOVED, &limit])?;
                let settled = settled.wait(Duration::from_secs(u64::from(SETTLE) + 60))?;
                if settled.code != 0 {
                    bail!("{}: {}", host.name(), host.ok(&[UNMOVED, "status"])?);
                }
                let running = copies::running(lab, &self.plan.name)?;
                ensure!(running.len() <= 1, "the guest runs twice");
            }
            let Some((host, job)) = held(lab)? else {
                return Ok(is_decided);
            };
            ensure!(!is_decided, "job {job} is held again");
            ensure!(
                off.is_some(),
                "job {job} is held, and all that was lost is messages"
            );
            is_decided = true;
            let at = lab.host(host);
            if off == Some(host) {
                // What was here does not run any more; the destination may have all of it.
                at.ok(&[UNMOVED, "recover", &job, "--run", "there"])?;
                continue;
            }
            // The guest may have run at the destination, and written to its disk, before that was switched
            // off: what stands here is older than the disk.
            at.run(&["xl", "destroy", &self.plan.name])?;
            at.ok(&[UNMOVED, "recover", &job, "--discard", "--vouch"])?;
        }
    }

    /// Sees the guest live, and that its disk is right; another one if it has died.
    fn go_on(&mut self, lab: &Lab, end: End, arrived: Guest, off: Option<usize>) -> Result<()> {
        match end {
            End::Stayed => {}
            End::Moved => {
                self.at = 1 - self.at;
                self.guest = arrived;
            }
            End::DiedWithItsHost => {
                self.at = off.context("no host was switched off")?;
                self.guest = create(&self.plan, lab.host(self.at))?;
            }
        }
        let alive = self.guest.alive(MOMENT)?;
        for figure in ["disk_errors", "clock_steps_back"] {
            ensure!(alive[figure] == 0, "{alive}");
        }
        Ok(())
    }
}

fn create(plan: &GuestPlan, host: &Host) -> Result<Guest> {
    host.sh("rm -f /var/log/xen/console/guest-web1*.log")?;
    let guest = plan.create(host)?;
    guest.ready(BOOT)?;
    guest.alive(MOMENT)?;
    Ok(guest)
}

/// A job that waits for an operator at its source, and where.
fn held(lab: &Lab) -> Result<Option<(usize, String)>> {
    for (at, host) in lab.hosts.iter().enumerate() {
        let jobs = agents::ask(host, &["status"])?;
        let mut jobs = jobs.as_array().into_iter().flatten();
        let is_held = |job: &&Value| job["is_held"] == true && job["direction"] == "outgoing";
        if let Some(id) = jobs.find(is_held).and_then(|job| job["id"].as_str()) {
            return Ok(Some((at, id.to_owned())));
        }
    }
    Ok(None)
}

/// How the agent says that the job ended; one that was restarted may not know it any more.
fn said(host: &Host, job: &str) -> Result<String> {
    let jobs = agents::ask(host, &["status"])?;
    let mut jobs = jobs.as_array().into_iter().flatten();
    let Some(job) = jobs.find(|other| other["id"] == job) else {
        return Ok("not known".to_owned());
    };
    let why = job["statistics"]["errmsg"].as_str().map(str::to_owned);
    Ok(why.unwrap_or_else(|| "done".to_owned()))
}
