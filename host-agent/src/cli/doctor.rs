//! `unmoved doctor` without a daemon: looks for what keeps one from starting, or from being reached.

use std::path::Path;

use serde_json::{Value, json};

use crate::XenHost;
use crate::config::{self, Config};
use crate::job::Host;

/// The answer that a daemon would give, as far as it can be found out without one.
pub(super) fn without_daemon(socket: &Path, why: &anyhow::Error) -> Value {
    let why = format!("{why:#}; its log is `journalctl -u unmovedd`");
    let mut checks = vec![check("unmovedd", Some(why))];
    match Config::load(Path::new(config::PATH)) {
        Ok(config) => {
            let elsewhere = || {
                format!(
                    "the configuration has the daemon listen at {}",
                    config.socket.display()
                )
            };
            checks.push(check(
                "configuration",
                (config.socket != socket).then(elsewhere),
            ));
            let identity = config.identity();
            checks.push(check(
                "certificates",
                identity.err().map(|error| error.to_string()),
            ));
        }
        Err(error) => checks.push(check("configuration", Some(error.to_string()))),
    }
    // Opening Xen changes nothing.
    match XenHost::open(0) {
        Ok(host) => {
            checks.push(check("Xen", None));
            let problems = host.problems().into_iter();
            checks.extend(problems.map(|problem| check("toolstack", Some(problem))));
        }
        Err(error) => checks.push(check("Xen", Some(error.to_string()))),
    }
    Value::Array(checks)
}

fn check(what: &str, problem: Option<String>) -> Value {
    json!({ "check": what, "ok": problem.is_none(), "problem": problem })
}
