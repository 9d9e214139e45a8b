//! Makes a cut happen at its moment, and puts all in order again.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use unmoved_lab::channel::Task;
use unmoved_lab::{Host, Lab};

use super::table::{Cut, Moment};
use crate::agents;

/// Longest time of a migration, on a loaded machine.
const MOVE: Duration = Duration::from_secs(600);
/// Kills the daemon as soon as there is a line to read: nothing is started for it then.
const KILL: &str = "pid=$(pgrep -x unmovedd); read -r line; kill -KILL \"$pid\"";
/// Where each state is written just before it is in force.
const AUDIT: &str = "/var/lib/unmoved/audit.log";

/// A cut that is going to happen.
pub(super) struct Armed {
    cut: Cut,
    moment: Moment,
    /// The hosts: source, destination.
    hosts: [usize; 2],
    audit: Task,
    killer: Option<Task>,
}

impl Armed {
    /// Gets ready, so that nothing is left to do at the moment itself.
    pub(super) fn new(lab: &Lab, cut: Cut, moment: Moment, hosts: [usize; 2]) -> Result<Self> {
        let audit = lab
            .host(hosts[0])
            .start(&["tail", "-n", "0", "-F", AUDIT])?;
        let kill = |at: usize| lab.host(at).start(&["sh", "-c", KILL]);
        let killer = match cut {
            Cut::SourceAgent => Some(kill(hosts[0])?),
            Cut::DestinationAgent => Some(kill(hosts[1])?),
            _ => None,
        };
        Ok(Self {
            cut,
            moment,
            hosts,
            audit,
            killer,
        })
    }

    /// Waits for the moment, lets it happen, waits, and puts all in order; gives the host that was
    /// switched off.
    pub(super) fn happen(self, lab: &mut Lab, job: &str) -> Result<Option<usize>> {
        if let Some(state) = self.moment.state {
            let pattern = format!("{job}.*\"(state\":\"{state}|what\":\"ended)\"");
            self.audit.stdout.wait_for(&pattern, MOVE)?;
        }
        // Any moment will do, so there is nothing to wait for.
        thread::sleep(self.moment.later);
        let [source, destination] = self.hosts;
        let at = match self.cut {
            Cut::SourceAgent | Cut::SourceHost => source,
            Cut::DestinationAgent | Cut::DestinationHost | Cut::Lan => destination,
        };
        let off = match self.cut {
            Cut::SourceAgent | Cut::DestinationAgent => {
                if let Some(killer) = &self.killer {
                    killer.write(b"now\n")?;
                }
                thread::sleep(self.moment.down);
                self.restart_agent(lab.host(at))?;
                None
            }
            Cut::SourceHost | Cut::DestinationHost => {
                lab.hosts[at].kill();
                thread::sleep(self.moment.down);
                lab.switch_on(at)?;
                let host = lab.host(at);
                agents::install_on(lab, host)?;
                agents::keep_state(host, false)?;
                agents::run_daemon(host)?;
                Some(at)
            }
            Cut::Lan => {
                lab.hosts[at].set_link(false)?;
                thread::sleep(self.moment.down);
                lab.hosts[at].set_link(true)?;
                None
            }
        };
        if off != Some(source) {
            self.audit.signal(15)?;
        }
        Ok(off)
    }

    fn restart_agent(&self, host: &Host) -> Result<()> {
        if let Some(killer) = &self.killer {
            killer.end_input()?;
        }
        agents::run_daemon(host)
    }
}
