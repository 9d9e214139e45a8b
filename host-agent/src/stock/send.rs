//! The sender of `xl migrate`: an agent that sends to a host with only Xen's own tools.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use super::receive::PATIENCE;
use crate::job::{Batch, Control, Copied, Error, Host, Phase, Result, Sink, Source, Standalone};
use crate::receive::canonical::Canonical;
use crate::receive::feed::{Feed, GiveUp};
use crate::receive::handshake::{Answers, BANNER, GO, READY, REPORT};

/// Migrates a running domain through the shell command `via`, which must behave like `xl migrate-receive`
/// (`ssh HOST xl migrate-receive`).
///
/// # Errors
/// What went wrong.  The domain keeps running here, unless the receiver had permission to start its copy and
/// did not report: then the domain stays suspended here, and the error says so.
pub fn send(host: &dyn Host, domain: &str, via: &str, control: &Control) -> Result<Copied> {
    let mut source = host.standalone_source(domain, Standalone::Send)?;
    let prepared = source.prepare(control.options(), control)?;
    let mut child = Command::new("sh")
        .args(["-c", via])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Error::io(format!("cannot run `{via}`")))?;
    let sent = transfer(&mut *source, &mut child, &prepared.needs.config, control);
    let (answers, out, copied) = match sent {
        Ok(sent) => sent,
        Err(error) => return Err(super::back(&mut *source, error)),
    };
    hand_over(&mut *source, answers, &out, control)?;
    drop(out);
    // It has reported that the domain runs; its exit status changes nothing.
    let _ = child.wait();
    control.enter(Phase::Ended, "moved");
    Ok(copied)
}

type Out = Canonical<Box<dyn Write + Send>>;

fn transfer(
    source: &mut dyn Source,
    child: &mut Child,
    config: &[u8],
    control: &Control,
) -> Result<(Answers, Early, Copied)> {
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Error::Xen("the command has no pipes".to_owned()));
    };
    let mut answers = Answers::listen(stdout)?;
    answers.expect(BANNER, PATIENCE, || control.check())?;
    // A receiver that does not read must not block the guest: an abort ends the writing.
    let feed = Feed::new(stdin, GiveUp::with(control.stop()));
    let out: Box<dyn Write + Send> = Box::new(feed.map_err(Error::io("the command's input"))?);
    let out = Early(Canonical::begin(out, config)?);
    source.copy_live(&out, control)?;
    let copied = source.copy_rest(&out, control)?;
    out.0.end()?;
    control.enter(Phase::Building, "the receiver is building the domain");
    answers.expect(READY, PATIENCE, || control.check())?;
    control.rule_out_abort()?;
    Ok((answers, out, copied))
}

fn hand_over(
    source: &mut dyn Source,
    mut answers: Answers,
    out: &Early,
    control: &Control,
) -> Result<()> {
    control.enter(Phase::HandedOver, "the receiver may start the domain");
    let mut told = || {
        out.0.say(GO)?;
        answers.expect(REPORT, PATIENCE, || Ok(()))?;
        answers.status(PATIENCE)
    };
    let status = told().map_err(unknown)?;
    if status == 0 {
        return source.destroy();
    }
    answers.expect(GO, PATIENCE, || Ok(())).map_err(unknown)?;
    source.resume_here()?;
    Err(Error::Peer(format!(
        "the receiver could not start the domain (status {status}); it resumes here"
    )))
}

/// Nothing is known about the other copy any more.
fn unknown(error: Error) -> Error {
    Error::Peer(format!(
        "{error}; the receiver had permission to start the domain, so it may run there, and it stays \
         suspended here. Look there first; if it does not run there and never will, resume this copy with \
         `unmoved direct resume`"
    ))
}

/// The canonical stream with the state in it twice: useful to an agent that receives it, harmless to others.
struct Early(Out);

impl Sink for Early {
    fn bytes(&self, bytes: &[u8]) -> Result<()> {
        self.0.bytes(bytes)
    }

    fn pages(&self, batch: &mut Batch) -> Result<()> {
        self.0.pages(batch)
    }

    fn barrier(&self) -> Result<()> {
        self.0.barrier()
    }

    fn builds_early(&self) -> bool {
        true
    }
}
