//! Guests on a lab host, created by the stock toolstack and seen through their consoles.

mod plan;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use unmoved_workload::report::parse_line;

use crate::channel::Task;
use crate::host::Host;
use crate::log::Log;

pub use plan::{GuestPlan, System, Tsc};

/// A guest on a host, seen through its console.
#[derive(Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// All that its console said on this host, from the guest's creation or arrival on.
    pub console: Log,
    follow: Task,
    /// How many times longer than QEMU its host may take.
    patience: u32,
}

/// How often a guest is looked at that may stand still.
const LOOK: Duration = Duration::from_secs(10);
/// So many looks one after the other at which it had done nothing are too many.
const STILL: u32 = 3;
/// Less processor time than this from one look to the next is nothing: timers alone take as much.  Xen
/// counts by the clock, so it is the same on a machine that has little time for the host.
const NOTHING: f64 = 1.0;

/// Whether a guest gets on.
#[derive(Debug, Default)]
struct Pace {
    last: Option<f64>,
    still: u32,
}

impl Pace {
    /// Takes the seconds that it has used by now, if the toolstack tells; between two domains it does not.
    fn stands_still(&mut self, used: Option<f64>) -> bool {
        let is_idle = match (self.last, used) {
            (Some(last), Some(used)) => (0.0..NOTHING).contains(&(used - last)),
            _ => false,
        };
        self.last = used;
        self.still = if is_idle { self.still + 1 } else { 0 };
        self.still >= STILL
    }
}

/// The last column of the last line that `xl list NAME` prints.
fn seconds_used(list: &str) -> Option<f64> {
    let line = list.lines().nth(1)?;
    line.split_whitespace().last()?.parse().ok()
}

/// Reads files from their beginning and as they grow; arguments: their names.  They are made if need be, since
/// one that is not there is looked for once a second, and what is measured by it would be wrong by that.
const FOLLOW: &str = "touch \"$@\" && exec tail -q -n +1 -F \"$@\"";
/// Puts a line into the console of a guest; arguments: its name, the line.
const TYPE_LINE: &str =
    "printf '%s\\n' \"$2\" >\"$(xenstore-read \"/local/domain/$(xl domid \"$1\")/console/tty\")\"";

impl Guest {
    /// Read the console of the guest called `name`, which may not exist yet, on `host`.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn attach(name: &str, host: &Host) -> Result<Self> {
        Self::follow(name, &[name], host)
    }

    /// Read the console of a guest that arrives (or will arrive) by migration.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn attach_incoming(name: &str, host: &Host) -> Result<Self> {
        // xenconsoled names the file when the domain appears, and it appears under the first of these names
        // if the stock toolstack makes it by itself, under the other with an agent.
        let [stock, agent] =
            ["--incoming", "--arrived--incoming"].map(|end| format!("{name}{end}"));
        Self::follow(name, &[&stock, &agent], host)
    }

    fn follow(name: &str, files: &[&str], host: &Host) -> Result<Self> {
        let path = |file: &&str| format!("/var/log/xen/console/guest-{file}.log");
        let files: Vec<String> = files.iter().map(path).collect();
        let mut command = vec!["sh", "-c", FOLLOW, "follow"];
        command.extend(files.iter().map(String::as_str));
        let follow = host.start(&command)?;
        Ok(Self {
            name: name.to_owned(),
            console: follow.stdout.clone(),
            follow,
            patience: host.patience(),
        })
    }

    /// Wait until the console says something that matches `pattern`.  This limit, as every one here, is for a
    /// host in QEMU; one that is slower gets more.
    ///
    /// # Errors
    /// If it does not within the limit.
    pub fn wait_for(&self, pattern: &str, limit: Duration) -> Result<String> {
        let _span = self
            .follow
            .begin(format!("{}: until /{pattern}/", self.name));
        self.console
            .wait_for(pattern, limit * self.patience)
            .with_context(|| format!("console of guest {}", self.name))
    }

    /// Wait for a report of the guest's workload that came after `mark` (of [`Log::mark`]) and for
    /// which `wanted` says yes.
    ///
    /// # Errors
    /// If none comes within the limit, or the workload refuses what its command line asks for.
    pub fn report(
        &self,
        mark: usize,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let limit = limit * self.patience;
        let end = Instant::now() + limit;
        let (mut mark, mut text) = (mark, Vec::new());
        let mut last = String::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(new) = self.console.more(mark, left) else {
                bail!(
                    "guest {} did not report what was waited for within {} s; it ended with: {last}{}",
                    self.name,
                    limit.as_secs(),
                    String::from_utf8_lossy(&text)
                );
            };
            mark += new.len();
            text.extend_from_slice(&new);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                last = String::from_utf8_lossy(&line).into_owned();
                // A report torn by a kernel message is waited for in vain: the limit says so.
                let Some(Ok(report)) = parse_line(&last) else {
                    continue;
                };
                ensure!(
                    !is_refused_boot_order(&report),
                    "guest {}: {} at boot: {}",
                    self.name,
                    report["order"],
                    report["why"]
                );
                if wanted(&report) {
                    return Ok(report);
                }
            }
        }
    }

    /// Wait until the guest's workload says that it is up.
    ///
    /// # Errors
    /// If it does not within the limit.
    pub fn ready(&self, limit: Duration) -> Result<Value> {
        let _span = self.follow.begin(format!("{}: until ready", self.name));
        self.report(0, limit, |report| report["ev"] == "ready")
    }

    /// As [`Guest::report`], but gives up on a guest that stands still for half a minute before it, as Xen's
    /// own shim does under emulation now and then.  Of use while it boots, when it is never idle.
    ///
    /// # Errors
    /// As [`Guest::report`], or if it stands still, or the host is gone.
    pub fn report_unless_still(
        &self,
        host: &Host,
        mark: usize,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let end = Instant::now() + limit;
        let mut pace = Pace::default();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.report(mark, left.min(LOOK), &wanted) {
                Err(error) if left <= LOOK => return Err(error),
                Err(_) => {}
                found => return found,
            }
            let list = host.run(&["xl", "list", &self.name])?.stdout;
            ensure!(
                !pace.stands_still(seconds_used(&list)),
                "guest {} stands still",
                self.name
            );
        }
    }

    /// Wait for a sign of life that is yet to come.
    ///
    /// # Errors
    /// If none comes within the limit.
    pub fn alive(&self, limit: Duration) -> Result<Value> {
        let _span = self.follow.begin(format!("{}: until alive", self.name));
        self.report(self.console.mark(), limit, |report| report["ev"] == "alive")
    }

    /// Type a line on the guest's console.
    ///
    /// # Errors
    /// If the guest has no console, or the host is gone.
    pub fn type_line(&self, host: &Host, line: &str) -> Result<()> {
        host.ok(&["sh", "-c", TYPE_LINE, "sh", &self.name, line])
            .map(drop)
    }

    /// Give the workload an order on its console and wait for the result: the report that carries the
    /// order's own name, or null if it has none.
    ///
    /// # Errors
    /// If the guest does not carry it out within the limit.
    pub fn order(&self, host: &Host, line: &str, limit: Duration) -> Result<Value> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let tag = format!("lab{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let _span = self.follow.begin(format!("{}: {line}", self.name));
        let mark = self.console.mark();
        let line = format!("#{tag} {line}");
        self.type_line(host, &line)?;
        let done = self.report(mark, limit, |report| {
            report["re"] == *tag && report["ev"] == "done"
        })?;
        ensure!(
            done["ok"] == true,
            "guest {}: `{line}`: {}",
            self.name,
            done["why"]
        );
        let order = done["order"].clone();
        let result = self.report(mark, Duration::ZERO, |report| {
            report["re"] == *tag && report["ev"] == order
        });
        Ok(result.unwrap_or_default())
    }
}

/// Orders on the kernel's command line carry no tag, so nobody waits for what becomes of them.
fn is_refused_boot_order(report: &Value) -> bool {
    report["ev"] == "done" && report["ok"] == false && report.get("re").is_none()
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The host may be gone, and `tail` with it.
        let _ = self.follow.signal(15);
    }
}

#[cfg(test)]
mod tests {
    use super::{Pace, seconds_used};

    #[test]
    fn what_does_nothing_for_three_looks_stands_still() {
        let mut pace = Pace::default();
        let looks =
            [4.0, 9.0, 9.3, 9.9, 14.0, 14.1, 14.2].map(|used| pace.stands_still(Some(used)));
        assert_eq!(looks, [false; 7]);
        // It is another domain now, or none for a moment.
        assert!(!pace.stands_still(None) && !pace.stands_still(Some(0.1)));
        let looks = [0.2, 0.3, 0.4].map(|used| pace.stands_still(Some(used)));
        assert_eq!(looks, [false, false, true]);
    }

    #[test]
    fn the_toolstack_s_list_is_read() {
        let list =
            "Name  ID   Mem VCPUs\tState\tTime(s)\nguest  3   256     1     -b----      12.5\n";
        assert_eq!(seconds_used(list), Some(12.5));
        assert_eq!(seconds_used(""), None);
    }
}
