//! Saves to a file and restores from one, as `xl save` and `xl restore` do.

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use unmoved_stream::{Format, Input, Reader, Reserved};

use super::feed::{feed, needs, unreadable};
use crate::job::{Control, Copied, Error, Host, PAGE_SIZE, Phase, Result, Source, Standalone};
use crate::receive::canonical::Canonical;

/// Number of restores that this process has begun.
static RESTORES: AtomicU64 = AtomicU64::new(0);
/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;

/// Saves a running domain to a new file, and then destroys it, or resumes it if `keep` is set.  The guest
/// runs while most of its memory is written.
///
/// # Errors
/// What went wrong; the domain keeps running then, and there is no file.
pub fn save(
    host: &dyn Host,
    domain: &str,
    path: &Path,
    keep: bool,
    control: &Control,
) -> Result<Copied> {
    let mut source = host.standalone_source(domain, Standalone::Save)?;
    let prepared = source.prepare(control.options(), control)?;
    // Never over another file, which may be all that is left of a domain.  Only its owner may read it,
    // because it holds a guest's memory.
    let mut options = File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(Error::io(format!(
        "cannot create the file {}",
        path.display()
    )))?;
    let saved = write(&mut *source, path, file, &prepared.needs.config, control);
    let saved = saved.and_then(|copied| {
        control.rule_out_abort()?;
        Ok(copied)
    });
    match saved {
        Ok(copied) if keep => {
            source.resume_here()?;
            Ok(copied)
        }
        Ok(copied) => {
            source.destroy()?;
            control.enter(Phase::Ended, "saved");
            Ok(copied)
        }
        Err(error) => {
            if let Err(error) = fs::remove_file(path) {
                log::warn!(
                    "cannot remove the incomplete file {}: {error}",
                    path.display()
                );
            }
            Err(super::back(&mut *source, error))
        }
    }
}

fn write(
    source: &mut dyn Source,
    path: &Path,
    file: File,
    config: &[u8],
    control: &Control,
) -> Result<Copied> {
    let failed = || Error::io(format!("cannot write {}", path.display()));
    let out = BufWriter::with_capacity(BUFFER, file);
    let out = Canonical::begin(out, config)?;
    source.copy_live(&out, control)?;
    let copied = source.copy_rest(&out, control)?;
    out.end()?;
    if let Some(out) = out.close() {
        let file = out
            .into_inner()
            .map_err(|error| failed()(error.into_error()))?;
        // The domain is destroyed only after the file and its name are on the disk.
        file.sync_all().map_err(failed())?;
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        let folder = File::open(folder.unwrap_or(Path::new(".")));
        folder
            .and_then(|folder| folder.sync_all())
            .map_err(failed())?;
    }
    Ok(copied)
}

/// Builds a domain from a file, under its own or another name, and unpauses it unless the options say
/// otherwise.  Reports its name as soon as that is known.
///
/// # Errors
/// What went wrong; there is no domain then.
pub fn restore(
    host: &dyn Host,
    path: &Path,
    control: &Control,
    named: impl FnOnce(&str),
) -> Result<()> {
    let failed = || Error::io(format!("cannot read {}", path.display()));
    let file = File::open(path).map_err(failed())?;
    let length = file.metadata().map_err(failed())?.len();
    let mut reader = Reader::new(Input::file(file), Format::Xl, Reserved::Ignore);
    let options = control.options();
    let needs = needs(&mut reader, options.destination_name.as_deref())?;
    named(&needs.destination_name);
    // Nearly all of the file is memory.
    control.update(|figures| {
        (figures.memory_total, figures.memory_remaining) = (length, length);
        figures.memory_page_size = PAGE_SIZE as u64;
    });
    let mut destination = host.destination()?;
    // The daemon may restore several at a time.
    let number = RESTORES.fetch_add(1, Ordering::Relaxed);
    let job = format!("restore-{}-{number}", std::process::id());
    destination.reserve(&job, &needs)?;
    let mut build = || {
        let sink = destination.receive(control)?;
        control.enter(Phase::Live, format!("restoring {}", needs.destination_name));
        feed(&mut reader, &*sink, control)?;
        reader.expect_end().map_err(unreadable)?;
        control.enter(Phase::Building, "building the domain");
        destination.finish(None)?;
        control.rule_out_abort()
    };
    let built = build();
    let ended = built.and_then(|()| destination.unpause(options.leave_paused));
    if let Err(error) = ended {
        destination.discard()?;
        // After an abort, other errors follow from it.
        return Err(control.check().err().unwrap_or(error));
    }
    control.enter(Phase::Ended, "restored");
    Ok(())
}
