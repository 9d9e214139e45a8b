//! The hostile kernel's verdicts: runs it, and tells its own end from the shim's.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use unmoved_lab::{Guest, GuestPlan, Host, Log, System, programs};

use crate::within::Way;

/// Longest silence of a run that is well: the kernel says something every few seconds.
const SILENCE: Duration = Duration::from_secs(180);
/// Longest time until the last words of a guest that has ended are read.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Saves the guest to nowhere, and lets it go on: the shim has to stop it for that, whatever it does.
const SAVE: [&str; 5] = ["xl", "save", "-c", "hostile", "/dev/null"];
/// What a shim says when it fails, as opposed to its guest.
const SHIM_FAULT: [&str; 3] = [
    "unmoved E panic",
    "unmoved E fault in the shim",
    "triple fault",
];
/// What it says when it ends its guest for the guest's own fault.
const GUEST_FAULT: &str = "unmoved E guest crashed: ";

/// What it says when the guest shuts down as crashed.
const GUEST_END: &str = "unmoved I shutdown, reason 3";

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    /// Of the random attacks.
    pub seed: u64,
    /// How many random attacks.
    pub count: u64,
    /// Whether to make the fixed attacks as well.
    pub fixed: bool,
    /// Whether ring 3 has page tables of its own, whatever the processor is.
    pub split: bool,
}

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Name and answer of every fixed attack.
    pub answers: Vec<(String, String)>,
    /// The lines that say what was wrong.
    pub wrong: Vec<String>,
    /// How many random attacks were made.
    pub made: u64,
    /// The last line of figures.
    pub figures: String,
    /// Why the kernel died before its end, if it did so by its own fault.
    pub own_fault: Option<String>,
}

/// Run the kernel once.
///
/// # Errors
/// If the lab fails, or the guest ends by anything but its own doing.
pub fn run(host: &Host, system: System, attack: Attack) -> Result<Outcome> {
    run_moved(host, system, attack, &[])
}

/// Run the kernel, and move it in each of these ways while it makes its random attacks, until it has gone
/// on with them after the last.
///
/// # Errors
/// As of [`run`], and if it is not moved.  One that ends by its own fault before that is no error.
pub fn run_moved(host: &Host, system: System, attack: Attack, ways: &[Way]) -> Result<Outcome> {
    let mark = host.serial().mark();
    let outcome = attack_and_move(host, system, attack, ways).or_else(|error| {
        let said = String::from_utf8_lossy(&host.serial().bytes()[mark..]).into_owned();
        // What fails with a guest that has ended itself, fails for that reason.
        match (shim_fault(&said), own_fault(&said)) {
            (None, Some(fault)) => Ok(read("", Some(fault))),
            _ => Err(error),
        }
    });
    host.run(&["xl", "destroy", "hostile"])?;
    outcome
}

/// Its own fault, or its own wish: it shuts itself down as crashed when it finds itself broken.
fn own_fault(said: &str) -> Option<String> {
    find(said, GUEST_FAULT).or_else(|| find(said, GUEST_END))
}

fn shim_fault(said: &str) -> Option<String> {
    SHIM_FAULT.iter().find_map(|fault| find(said, fault))
}

fn attack_and_move(host: &Host, system: System, attack: Attack, ways: &[Way]) -> Result<Outcome> {
    let mut plan = GuestPlan::new("hostile", system, programs::hostile()?);
    plan.arguments = format!(
        "hostile.seed={} hostile.count={} hostile.fixed={}",
        attack.seed,
        attack.count,
        u8::from(attack.fixed)
    );
    if attack.split {
        plan.lines
            .push("pvshim_extra = \"unmoved.xpti=on\"".to_owned());
    }
    let mark = host.serial().mark();
    // The console's file of an earlier run would be taken for this one's.
    host.sh("rm -f /var/log/xen/console/guest-hostile*.log")?;
    let mut guest = plan.create(host)?;
    let mut said = String::new();
    for way in ways {
        wait_for_progress(&guest, host, mark)?;
        let before = guest.console.clone();
        guest = way.go(guest, host)?;
        said += &before.text();
        // What is cut off there is no line of its own.
        said.push('\n');
    }
    let end = match ways.is_empty() {
        true => wait(&guest.console, host, mark)?,
        // It has been moved, and goes on: that is what was to be seen.
        false => wait_for_progress(&guest, host, mark).map(|()| None)?,
    };
    said += &guest.console.text();
    Ok(read(&said, end))
}

/// Wait until random attacks are under way.
fn wait_for_progress(guest: &Guest, host: &Host, mark: usize) -> Result<()> {
    let begun = Instant::now();
    loop {
        let progress = guest.wait_for(r"hostile: \d+ of \d+", Duration::from_secs(2));
        let said = String::from_utf8_lossy(&host.serial().bytes()[mark..]).into_owned();
        ensure!(own_fault(&said).is_none(), "it ended itself");
        match progress {
            Ok(_) => return Ok(()),
            Err(error) => ensure!(begun.elapsed() < host.patient(SILENCE), "{error:#}"),
        }
    }
}

/// Wait for the kernel's last line, or for the shim's word that it crashed.
fn wait(console: &Log, host: &Host, mark: usize) -> Result<Option<String>> {
    let (mut seen, mut heard) = (0, Instant::now());
    loop {
        if console.more(seen, Duration::from_secs(2)).is_some() {
            (seen, heard) = (console.mark(), Instant::now());
        }
        let text = console.text();
        if let Some(line) = find(&text, "hostile: BROKEN") {
            return Ok(Some(line));
        }
        if find(&text, "hostile: done").is_some() {
            return Ok(None);
        }
        let said = String::from_utf8_lossy(&host.serial().bytes()[mark..]).into_owned();
        if let Some(line) = shim_fault(&said) {
            bail!("the shim failed: {line}");
        }
        if let Some(line) = find(&said, GUEST_FAULT) {
            return Ok(Some(line));
        }
        // It may have said why, and nobody has read that yet.
        if let Some(line) = find(&said, GUEST_END)
            && heard.elapsed() > LAST_WORDS
        {
            return Ok(Some(line));
        }
        if heard.elapsed() > host.patient(SILENCE) {
            let last = text.lines().last().unwrap_or("nothing");
            let saved = host.run(&SAVE)?;
            ensure!(
                saved.code == 0,
                "the hostile guest fell silent, and the shim does not stop it: {}; it last said: {last}",
                saved.stderr.trim()
            );
            // It has lost its timer, or jumped into the middle of an instruction and found a loop.
            return Ok(Some(format!(
                "it sleeps, or goes round in circles; it last said: {last}"
            )));
        }
    }
}

fn find(text: &str, what: &str) -> Option<String> {
    let line = text.lines().find(|line| line.contains(what))?;
    Some(line.trim_end().to_owned())
}

fn read(console: &str, own_fault: Option<String>) -> Outcome {
    let mut outcome = Outcome {
        own_fault,
        ..Outcome::default()
    };
    for line in console.lines() {
        let line = line.trim_end();
        if let Some(attack) = line.strip_prefix("attack ") {
            let (what, verdict) = attack.rsplit_once(' ').unwrap_or((attack, ""));
            if verdict != "ok" {
                outcome.wrong.push(line.to_owned());
            }
            if let Some((name, answer)) = what.split_once(": ") {
                outcome.answers.push((name.to_owned(), answer.to_owned()));
            }
        } else if line.starts_with("leak: ") || line.starts_with("oracle: ") {
            outcome.wrong.push(line.to_owned());
        } else if let Some(figures) = line.strip_prefix("hostile: ") {
            let made = figures
                .split_once(" of ")
                .and_then(|(made, _)| made.parse().ok());
            let wrong = figures
                .strip_prefix("done, ")
                .and_then(|rest| rest.strip_suffix(" wrong"));
            if wrong.is_some_and(|wrong| wrong != "0") && outcome.wrong.is_empty() {
                // It said what while its console was read by nobody.
                outcome.wrong.push(line.to_owned());
            }
            if let Some(made) = made {
                outcome.made = made;
                outcome.figures = figures.to_owned();
            }
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn verdicts_are_read() {
        let outcome = read(
            "hostile: 64238 pages, seed 1\r\nattack map.x.rw: EINVAL ok\r\nattack map.y.ro: 0x0 WRONG\r\n\
             hostile: 20000 of 30000, 5 calls, 1 refused\r\n",
            None,
        );
        assert_eq!(outcome.answers.len(), 2);
        assert_eq!(outcome.wrong, ["attack map.y.ro: 0x0 WRONG"]);
        assert_eq!(outcome.made, 20_000);
    }
}
