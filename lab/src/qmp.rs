//! QEMU's control protocol: one JSON object per line, over a socket that both ends were born with.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Longest time that QEMU may take to answer a command.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    socket: UnixStream,
    lines: Receiver<Value>,
    /// Events that came while an answer was awaited.
    events: Vec<Value>,
}

impl Qmp {
    /// Greet QEMU on a fresh socket.
    ///
    /// # Errors
    /// If it ends before it answers.
    pub fn connect(socket: UnixStream) -> Result<Self> {
        let reader = BufReader::new(socket.try_clone()?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in reader.lines() {
                let Ok(line) = line else { return };
                let Ok(value) = serde_json::from_str(&line) else {
                    continue;
                };
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let mut qmp = Self {
            socket,
            lines,
            events: Vec::new(),
        };
        qmp.next(Instant::now() + ANSWER)
            .context("QEMU did not start")?;
        qmp.command("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Run a command and give its answer back.
    ///
    /// # Errors
    /// If QEMU refuses it, or ends.
    pub fn command(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        let mut line = json!({"execute": name, "arguments": arguments}).to_string();
        line.push('\n');
        self.socket
            .write_all(line.as_bytes())
            .with_context(|| format!("QEMU is gone, it cannot do {name}"))?;
        let end = Instant::now() + ANSWER;
        loop {
            let value = self
                .next(end)
                .with_context(|| format!("no answer to {name}"))?;
            if let Some(answer) = value.get("return") {
                return Ok(answer.clone());
            }
            if let Some(error) = value.get("error") {
                bail!(
                    "QEMU refuses {name}: {}",
                    error["desc"].as_str().unwrap_or("no reason given")
                );
            }
            self.events.push(value);
        }
    }

    /// Wait for an event of this name for which `wanted` says yes.
    ///
    /// # Errors
    /// If the limit passes or QEMU ends.
    pub fn event(
        &mut self,
        name: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let fits = |value: &Value| value["event"] == name && wanted(&value["data"]);
        let end = Instant::now() + limit;
        let past = std::mem::take(&mut self.events);
        let mut found = past.into_iter().find(|value| fits(value));
        while found.is_none() {
            let value = self
                .next(end)
                .with_context(|| format!("no {name} from QEMU"))?;
            found = Some(value).filter(fits);
        }
        Ok(found.map(|value| value["data"].clone()).unwrap_or_default())
    }

    fn next(&mut self, end: Instant) -> Result<Value> {
        let left = end.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(value) => Ok(value),
            Err(RecvTimeoutError::Timeout) => bail!("QEMU is silent"),
            Err(RecvTimeoutError::Disconnected) => bail!("QEMU ended"),
        }
    }
}
