//! The local socket of the daemon: requests and their answers.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::config;
use crate::daemon::local::{Ask, Told};
use crate::transport::frame::{MESSAGE_MOST, read_message, write_message};

/// Where the daemon listens.
#[derive(Debug, Args)]
pub(super) struct Socket {
    /// Socket of the daemon
    #[arg(long, global = true, value_name = "FILE", default_value = config::SOCKET, env = "UNMOVED_SOCKET")]
    pub(super) socket: PathBuf,
}

/// One question and its answer, on a connection of their own.
pub(super) fn ask_once(socket: &Socket, ask: &Ask) -> Result<Value> {
    asked(connect(socket)?, ask)
}

pub(super) fn asked(mut stream: UnixStream, ask: &Ask) -> Result<Value> {
    send(&mut stream, ask);
    answer(read_message(&mut stream, MESSAGE_MOST))
}

/// Sends a request.  A user without permission gets the answer before the request is read, and then the send
/// fails: only the answer counts.
pub(super) fn send(stream: &mut UnixStream, ask: &Ask) {
    if let Err(error) = write_message(stream, ask) {
        log::debug!("the daemon: {error}");
    }
}

pub(super) fn answer(told: io::Result<Told>) -> Result<Value> {
    match told.context("the daemon closed the connection; run `unmoved status` when it is back")? {
        Told::Answer(value) => Ok(value),
        Told::Error(why) => bail!(why),
    }
}

/// Connects to the daemon.
pub(super) fn connect(socket: &Socket) -> Result<UnixStream> {
    let path = &socket.socket;
    UnixStream::connect(path).with_context(|| {
        format!(
            "cannot reach unmovedd at {} (is it running?)",
            path.display()
        )
    })
}
