//! `unmoved doctor` where no daemon answers: what would keep one from running here.

use std::path::Path;

use serde_json::{Value, json};

use crate::XenHost;
use crate::config::{self, Config};
use crate::transport::tls::Identity;

/// What a daemon's answer would look like, with what can be seen without one.
pub(super) fn without_daemon(why: &anyhow::Error) -> Value {
    let mut checks = vec![check("unmovedd", Some(format!("{why:#}")))];
    let loaded = Config::load(Path::new(config::PATH));
    let problem = loaded.as_ref().err().map(ToString::to_string);
    checks.push(check("configuration", problem));
    if let Ok(Config { tls, .. }) = loaded {
        let identity = Identity::load(&tls.authority, &tls.certificate, &tls.key);
        let problem = identity.err().map(|error| error.to_string());
        checks.push(check("certificates", problem));
    }
    // Nothing is changed by opening it.
    let problem = XenHost::open(0).err().map(|error| error.to_string());
    checks.push(check("Xen", problem));
    Value::Array(checks)
}

fn check(what: &str, problem: Option<String>) -> Value {
    json!({ "check": what, "ok": problem.is_none(), "problem": problem })
}
