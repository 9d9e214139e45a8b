//! The receiver of `xl migrate`: an agent in the role of `xl migrate-receive`.

use std::io::{Read, Write};
use std::time::Duration;

use unmoved_stream::{Format, Input, Reader, Reserved};

use super::feed::{feed, needs};
use crate::job::{Control, Destination, Error, Host, Phase, Result};
use crate::receive::handshake::{BANNER, GO, READY, REPORT};

/// Status for a domain that cannot be started; the sender only distinguishes it from 0.
const FAILED: u8 = 3;

/// Receives a domain over `input` and `output`.
///
/// # Errors
/// What went wrong.  The sender has its domain back then, unless the connection broke: then the sender
/// reports that, and there is no copy here.
pub fn receive(
    host: &dyn Host,
    input: impl Read,
    mut output: impl Write,
    control: &Control,
) -> Result<()> {
    say(&mut output, BANNER)?;
    let mut reader = Reader::new(Input::new(input), Format::Xl, Reserved::Ignore);
    let options = control.options();
    let needs = needs(&mut reader, options.destination_name.as_deref())?;
    let mut destination = host.destination()?;
    destination.reserve(&format!("receive-{}", std::process::id()), &needs)?;
    let build = || {
        let sink = destination.receive(control)?;
        control.enter(Phase::Live, format!("receiving {}", needs.destination_name));
        feed(&mut reader, &*sink, control)?;
        control.enter(Phase::Building, "building the domain");
        destination.finish(None)?;
        say(&mut output, READY)?;
        // The sender stops its copy for good before it says this; nothing may happen without it.
        let mut words = [0; GO.len()];
        let (input, ahead) = reader.into_input().into_parts();
        ahead
            .as_slice()
            .chain(input)
            .read_exact(&mut words)
            .map_err(Error::io("waiting for permission to start the domain"))?;
        if words != GO {
            return Err(Error::Peer(
                "the sender did not give permission to start the domain".to_owned(),
            ));
        }
        control.rule_out_abort()
    };
    if let Err(error) = build() {
        destination.discard()?;
        return Err(error);
    }
    let started = destination.unpause(options.leave_paused);
    report(&mut *destination, &mut output, started)?;
    control.enter(Phase::Ended, "received");
    Ok(())
}

fn report(
    destination: &mut dyn Destination,
    output: &mut impl Write,
    started: Result<()>,
) -> Result<()> {
    match started {
        // A report that is lost changes nothing: the domain runs.
        Ok(()) => say(output, &[REPORT, &[0]].concat()),
        Err(error) => {
            say(output, &[REPORT, &[FAILED]].concat())?;
            destination.discard()?;
            say(output, GO)?;
            Err(error)
        }
    }
}

fn say(output: &mut impl Write, words: &[u8]) -> Result<()> {
    output
        .write_all(words)
        .and_then(|()| output.flush())
        .map_err(Error::io("cannot answer the sender"))
}

/// Longest wait for the sender at each step.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);
