//! What this program does as a [helper](crate::helper).

use std::io::{self, Write};
use std::time::Duration;

use crate::fingerprint::cpuid;
use crate::helper::MARK;
use crate::sys::userfault;
use crate::{bench, storm, unfriendly};

/// The helper's body: `arguments` are its name and what follows.  The process's exit code.
#[must_use]
pub fn main(arguments: &[String]) -> i32 {
    match act(arguments) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("unmoved-init {MARK} {}: {error}", arguments.join(" "));
            1
        }
    }
}

fn act(arguments: &[String]) -> io::Result<()> {
    let number = |index: usize| -> io::Result<u64> {
        let text = arguments.get(index).map_or("", String::as_str);
        text.parse()
            .map_err(|_| io::Error::other(format!("{text:?} is not a number")))
    };
    let mut out = io::stdout();
    match arguments.first().map_or("", String::as_str) {
        "nothing" => Ok(()),
        "add" => writeln!(out, "{}", number(1)?.wrapping_add(number(2)?)),
        "cpuid-forced" => cpuid::write_lines(cpuid::Way::Forced, &mut out),
        "wait-for-ever" => Err(userfault::wait_for_ever()),
        "spin" => {
            let cpu = usize::try_from(number(1)?).map_err(io::Error::other)?;
            unfriendly::spin(cpu, number(2)?)
        }
        "bench-micro" => writeln!(out, "{}", bench::micro::measure(number(1)?)?),
        "storm" => writeln!(out, "{}", storm::work(Duration::from_secs(number(1)?))),
        other => Err(io::Error::other(format!("no helper is called {other:?}"))),
    }
}
