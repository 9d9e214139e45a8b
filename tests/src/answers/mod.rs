//! What hypercalls answer to arguments at the edge: under the shim, and on real Xen.
//!
//! The hostile kernel makes the same calls on both (`images/hostile/src/answers.rs`).  A kernel may
//! rely on any answer, so each one that differs needs a [reason](reasons), and a reason that no
//! answer needs any more is a mistake too.

mod reasons;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use unmoved_lab::{GuestPlan, Host, System, programs};

/// Longest time for all calls; a line comes every few milliseconds.
const LIMIT: Duration = Duration::from_secs(180);

/// Answers by sub-operation and shape of argument.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers(BTreeMap<(String, String), String>);

/// One call that is answered in two ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The hypercall and its sub-operation.
    pub call: String,
    /// The shape of the argument.
    pub shape: String,
    /// What Xen answers.
    pub xen: String,
    /// What the shim answers.
    pub shim: String,
    /// Why.
    pub reason: Option<&'static str>,
}

impl Answers {
    /// Asks for all answers in a guest of its own.
    ///
    /// # Errors
    /// If the lab fails, or the kernel does not come to its end.
    pub fn ask(host: &Host, system: System) -> Result<Self> {
        let mut plan = GuestPlan::new("answers", system, programs::hostile()?);
        plan.arguments = "hostile.answers=1".to_owned();
        // The console's file of an earlier run would be taken for this one's.
        host.sh("rm -f /var/log/xen/console/guest-answers*.log")?;
        let guest = plan.create(host)?;
        let end = guest.wait_for("answers: done", LIMIT);
        let said = guest.console.text();
        host.run(&["xl", "destroy", "answers"])?;
        end.with_context(|| {
            let last = said.lines().last().unwrap_or("nothing");
            format!("the kernel did not come to its end; it last said: {last}")
        })?;
        let answers = Self::read(&said);
        ensure!(answers.0.len() > 1000, "only {} answers", answers.0.len());
        Ok(answers)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn read(console: &str) -> Self {
        let mut answers = BTreeMap::new();
        for line in console.lines() {
            let Some((call, said)) = line
                .trim_end()
                .strip_prefix("answers ")
                .and_then(|line| line.split_once(": "))
            else {
                continue;
            };
            for word in said.split(' ') {
                if let Some((shape, answer)) = word.split_once('=') {
                    answers.insert((call.to_owned(), shape.to_owned()), answer.to_owned());
                }
            }
        }
        Self(answers)
    }

    /// What differs from Xen's answers, a call that was made in one of the two only included.
    pub fn differences(&self, xen: &Self) -> Vec<Difference> {
        let keys: BTreeSet<_> = self.0.keys().chain(xen.0.keys()).collect();
        let none = "not made".to_owned();
        keys.into_iter()
            .filter_map(|key| {
                let shim = self.0.get(key).unwrap_or(&none);
                let other = xen.0.get(key).unwrap_or(&none);
                (shim != other).then(|| Difference {
                    call: key.0.clone(),
                    shape: key.1.clone(),
                    xen: other.clone(),
                    shim: shim.clone(),
                    reason: reasons::of(&key.0, &key.1),
                })
            })
            .collect()
    }
}

/// Reasons that explain none of these differences.
pub fn unused_reasons(differences: &[Difference]) -> Vec<String> {
    reasons::unused(differences)
}

/// The table of differences, in Markdown: a row for each call, the shapes that differ in one way
/// taken together.
pub fn table(differences: &[Difference]) -> String {
    let mut rows: BTreeMap<(&str, &str, &str, &str), Vec<&str>> = BTreeMap::new();
    for difference in differences {
        let reason = difference.reason.unwrap_or("**none**");
        rows.entry((&difference.call, &difference.xen, &difference.shim, reason))
            .or_default()
            .push(&difference.shape);
    }
    let mut table = String::from("| call | argument | Xen | shim | why |\n|---|---|---|---|---|\n");
    for ((call, xen, shim, reason), shapes) in rows {
        let shapes = shapes.join(", ");
        // A string takes whatever is written.
        let _ = writeln!(table, "| `{call}` | {shapes} | {xen} | {shim} | {reason} |");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::Answers;

    #[test]
    fn answers_are_read_and_compared() {
        let shim = Answers::read("answers A.1: null=EFAULT zeros=0\r\nhostile: noise\n");
        let xen = Answers::read("answers A.1: null=EINVAL zeros=0 ones=value\n");
        let found: Vec<_> = shim
            .differences(&xen)
            .into_iter()
            .map(|found| (found.shape, found.xen, found.shim))
            .collect();
        let row = |shape: &str, xen: &str, shim: &str| {
            (shape.to_owned(), xen.to_owned(), shim.to_owned())
        };
        assert_eq!(
            found,
            [
                row("null", "EINVAL", "EFAULT"),
                row("ones", "value", "not made")
            ]
        );
    }
}
