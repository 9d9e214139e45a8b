//! Commands of the host's toolstack, `xl`.
//!
//! The toolstack knows names and configurations, and how to take a domain apart.  So `xl` is asked for the
//! former and does the latter, which keeps its own records right.

use std::io::{self, Read};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::job::{Error, Result};

/// Longest time for a command.  Hotplug scripts, which some commands run, have shorter limits of their own.
const LIMIT: Duration = Duration::from_secs(600);
/// Longest time from a command's exit to the end of its output.
const LEFT: Duration = Duration::from_secs(10);

/// Runs `xl` with these arguments; returns its standard output.
///
/// # Errors
/// If it cannot be run, does not exit, or fails: then the first error that it printed.
pub(crate) fn xl(words: &[&str]) -> Result<String> {
    let child = Command::new("xl")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(cannot_run)?;
    let output = output(child, LIMIT)
        .map_err(|error| Error::Xen(format!("`xl {}` failed: {error}", words.join(" "))))?;
    outcome(words, &output)
}

/// Collects the output of a process; kills it if it does not exit in time.
fn output(mut child: Child, limit: Duration) -> io::Result<Output> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (out, err) = (reader(out), reader(err));
    let until = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("killed after {} s", limit.as_secs()),
            ));
        }
        // No call waits for the exit of a child with a time limit.
        thread::sleep(Duration::from_millis(10));
    };
    Ok(Output {
        status,
        stdout: read(&out)?,
        stderr: read(&err)?,
    })
}

/// Reads a pipe to its end, in a thread of its own.
fn reader(from: Option<impl Read + Send + 'static>) -> Receiver<io::Result<Vec<u8>>> {
    let (to, reader) = channel();
    // If nobody waits for the output any more, the failure has been reported.
    thread::spawn(move || drop(to.send(all(from))));
    reader
}

/// What was read when the process had exited.  A script that it started may still hold the pipe.
fn read(reader: &Receiver<io::Result<Vec<u8>>>) -> io::Result<Vec<u8>> {
    reader.recv_timeout(LEFT).unwrap_or_else(|error| {
        log::warn!("cannot read xl's output to its end: {error}");
        Ok(Vec::new())
    })
}

fn all(from: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        from.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Why `xl` did not start at all.
pub(crate) fn cannot_run(error: io::Error) -> Error {
    Error::Refused(format!("cannot run xl, Xen's toolstack: {error}"))
}

fn outcome(words: &[&str], output: &Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::Xen(format!(
        "`xl {}` failed: {}",
        words.join(" "),
        complaint(&said)
    )))
}

/// The first line of the toolstack's errors; later lines follow from it.
pub(crate) fn complaint(said: &str) -> &str {
    said.lines()
        .find(|line| line.contains("error") || line.contains("fail") || line.contains("rror:"))
        .or_else(|| said.lines().rfind(|line| !line.trim().is_empty()))
        .map_or("no reason given", str::trim)
}

/// The configuration of a running domain as the toolstack stores it.
///
/// # Errors
/// If `xl` fails, or its output cannot be parsed.
pub(crate) fn configuration(domid: u16) -> Result<Value> {
    let text = xl(&["list", "-l", &domid.to_string()])?;
    only_configuration(&text)
        .ok_or_else(|| Error::Xen(format!("`xl list -l {domid}` gave no configuration")))
}

fn only_configuration(text: &str) -> Option<Value> {
    let list: Vec<Value> = serde_json::from_str(text).ok()?;
    let [mut entry] = <[Value; 1]>::try_from(list).ok()?;
    Some(entry["config"].take()).filter(Value::is_object)
}

/// Destroys a domain and everything that the toolstack created for it.
///
/// # Errors
/// If `xl` fails.
pub(crate) fn destroy(domid: u16) -> Result<()> {
    xl(&["destroy", &domid.to_string()]).map(drop)
}

/// Renames a domain.
///
/// # Errors
/// If `xl` fails, for example because another domain has the name.
pub(crate) fn rename(domid: u16, name: &str) -> Result<()> {
    xl(&["rename", &domid.to_string(), name]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::{complaint, only_configuration, output};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    #[test]
    fn a_process_is_waited_for_and_killed_when_its_time_is_over() {
        let run = |script: &str, limit| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            output(command.spawn().unwrap(), limit)
        };
        let ended = run(
            "echo said; echo complained >&2; exit 3",
            Duration::from_secs(60),
        )
        .unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(
            (&ended.stdout[..], &ended.stderr[..]),
            (&b"said\n"[..], &b"complained\n"[..])
        );
        let late = run("exec sleep 1000", Duration::from_millis(50)).unwrap_err();
        assert!(late.to_string().contains("killed"), "{late}");
    }

    #[test]
    fn the_first_complaint_is_what_counts() {
        let said = "Parsing config\nlibxl: error: no such device\nlibxl: error: cannot create\n";
        assert_eq!(complaint(said), "libxl: error: no such device");
        assert_eq!(complaint("first\nlast\n\n"), "last");
        assert_eq!(complaint(""), "no reason given");
    }

    #[test]
    fn the_configuration_of_one_domain_is_taken_out_of_the_list() {
        let text = r#"[{"domid": 3, "config": {"c_info": {"name": "g"}}}]"#;
        assert_eq!(only_configuration(text).unwrap()["c_info"]["name"], "g");
        for text in [
            "",
            "[]",
            "{}",
            r#"[{"domid":3}]"#,
            r#"[{"config":{}},{"config":{}}]"#,
        ] {
            assert!(only_configuration(text).is_none(), "{text}");
        }
    }
}
