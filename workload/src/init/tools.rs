//! Small orders that need no state: xenstore, files, power, sysrq.

use std::fs::File;
use std::path::Path;

use serde_json::{Value, json};

use crate::fingerprint::files;
use crate::orders::{Order, OrderError};
use crate::sys::system::{Power, power};
use crate::xenbus::{Refusal, Store};

/// `xenstore read|list|write|remove|permissions PATH [VALUE]`, `xenstore fill PATH BYTES`.
///
/// # Errors
/// As the store answers, or if there is none.
pub fn xenstore(order: &Order) -> Result<Value, OrderError> {
    let mut store = Store::open().map_err(|error| OrderError(error.to_string()))?;
    let path = order.word(1);
    let text = |bytes: Vec<u8>| Value::from(String::from_utf8_lossy(&bytes).into_owned());
    let found = match order.word(0) {
        "read" => store.read(path).map(text),
        "list" => store.directory(path).map(Value::from),
        "permissions" => store.permissions(path).map(Value::from),
        "write" => {
            let value = order.words.get(2..).unwrap_or_default().join(" ");
            store.write(path, value.as_bytes()).map(|()| value.into())
        }
        "remove" => store.remove(path).map(|()| Value::Null),
        "fill" => Ok(fill(&mut store, path, order.word(2).parse().unwrap_or(0))),
        other => Err(Refusal::Named(format!(
            "no such thing as xenstore {other:?}"
        ))),
    };
    found
        .map(|value| json!({ "path": path, "found": value }))
        .map_err(|refusal| OrderError(format!("xenstore {path}: {refusal}")))
}

/// Writes nodes of `bytes` bytes below `path` until one is refused; returns how many there are.
fn fill(store: &mut Store<File>, path: &str, bytes: usize) -> Value {
    let value = vec![b'v'; bytes];
    let paths = (0..2000).map(|number| format!("{path}/n{number}"));
    let written = paths.take_while(|node| store.write(node, &value).is_ok());
    written.count().into()
}

/// `file read|write PATH [TEXT]`: for what the kernel offers as files (sysctl, `/sys/power/state`).
///
/// # Errors
/// As opening, reading or writing.
pub fn file(order: &Order) -> Result<Value, OrderError> {
    let path = order.word(1);
    match order.word(0) {
        "read" => {
            let bytes = files::read(Path::new(path));
            Ok(json!({ "path": path, "found": String::from_utf8_lossy(&bytes) }))
        }
        "write" => {
            let text = order.words.get(2..).unwrap_or_default().join(" ");
            std::fs::write(path, text)
                .map(|()| Value::Null)
                .map_err(|error| OrderError(format!("file {path}: {error}")))
        }
        other => Err(OrderError(format!(
            "file: {other:?} is not one of its words"
        ))),
    }
}

/// Ends the machine.
///
/// # Errors
/// If the kernel refuses; otherwise it does not return.
pub fn end(how: Power) -> Result<Value, OrderError> {
    Err(OrderError(format!("the kernel refuses: {}", power(how))))
}

/// `sysrq KEY`: what the magic key would do, such as `c` for a panic.
///
/// # Errors
/// If the kernel refuses.
pub fn sysrq(key: &str) -> Result<Value, OrderError> {
    if key.len() != 1 {
        return Err(OrderError("sysrq: give one key".into()));
    }
    // Otherwise the kernel may ignore most of the keys.
    let _ = std::fs::write("/proc/sys/kernel/sysrq", "1");
    std::fs::write("/proc/sysrq-trigger", key)
        .map(|()| Value::Null)
        .map_err(|error| OrderError(format!("sysrq: {error}")))
}
