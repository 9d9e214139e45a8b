//! Feeds a stream that Xen's tools wrote to a destination.

use std::io::Read;

use unmoved_stream::{Event, Kind, Reader, libxc, libxl};

use crate::job::{Batch, Control, Error, Needs, PAGE_SIZE, Result, Sink};
use crate::xen::config;

/// Reads up to the domain's configuration; returns what it needs at its destination.
///
/// # Errors
/// If this is not a stream of `xl`, or its domain cannot be received.
pub(super) fn needs<R: Read>(reader: &mut Reader<R>, name: Option<&str>) -> Result<Needs> {
    let Some(Event::Save(header)) = reader.next_event().map_err(unreadable)? else {
        return Err(Error::Refused(
            "the stream does not begin with an xl header, which holds the domain's configuration"
                .to_owned(),
        ));
    };
    let bytes = header.config().unwrap_or_default();
    let config = config::arrived(bytes)?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let own_name = text(&config["c_info"]["name"]);
    let vcpus = config["b_info"]["max_vcpus"].as_u64().unwrap_or(1);
    let vcpus = u32::try_from(vcpus).unwrap_or(1).max(1);
    Ok(Needs {
        destination_name: name.unwrap_or(&own_name).to_owned(),
        name: own_name,
        uuid: text(&config["c_info"]["uuid"]),
        // No domain of this host has this number.
        source_domid: u32::MAX,
        memory_bytes: config::memory_bytes(&config, 0, vcpus - 1),
        vcpus,
        disks: config::writable_disks(&config),
        storage: Vec::new(),
        xen_version: String::new(),
        config: config::to_travel(&config),
    })
}

/// Passes the libxc stream on, and reads to the end of the libxl stream around it.
///
/// # Errors
/// If the stream is invalid, or its domain has an emulator; or the error of the sink or of `control`.
pub(super) fn feed<R: Read>(
    reader: &mut Reader<R>,
    sink: &dyn Sink,
    control: &Control,
) -> Result<()> {
    while let Some(event) = reader.next_event().map_err(unreadable)? {
        control.check()?;
        match event {
            Event::Libxc(image, domain) => {
                sink.bytes(&[image.encode().as_slice(), &domain.encode()].concat())?;
            }
            Event::Record(mut record) => match record.kind() {
                Kind::Libxc(libxc::Content::PageData { .. }) => pages(&mut record, sink, control)?,
                Kind::Libxc(_) => {
                    let mut whole = Vec::new();
                    record.forward(&mut whole).map_err(unreadable)?;
                    sink.bytes(&whole)?;
                }
                Kind::Libxl(
                    libxl::Content::LibxcContext | libxl::Content::Optional | libxl::Content::End,
                ) => {}
                Kind::Libxl(_) => {
                    return Err(Error::Refused(
                        "the domain has an emulator: only a guest in a shim can be received"
                            .to_owned(),
                    ));
                }
            },
            Event::Save(_) | Event::Libxl(_) => {}
        }
    }
    sink.barrier()
}

fn pages<R: Read>(
    record: &mut unmoved_stream::Record<'_, R>,
    sink: &dyn Sink,
    control: &Control,
) -> Result<()> {
    let mut batch = Batch::default();
    while let Some(pages) = record.pages().map_err(unreadable)? {
        for (entry, content) in pages.iter() {
            batch.words.push(entry.raw());
            if let Some(content) = content {
                batch.data.extend_from_slice(content);
            }
            if batch.words.len() == Batch::MOST {
                flush(&mut batch, sink, control)?;
            }
        }
    }
    flush(&mut batch, sink, control)
}

fn flush(batch: &mut Batch, sink: &dyn Sink, control: &Control) -> Result<()> {
    let bytes = batch.data.len() as u64;
    sink.pages(batch)?;
    batch.clear();
    let seconds = control.elapsed().as_secs_f64().max(0.001);
    control.update(|figures| {
        figures.memory_processed += bytes;
        figures.memory_remaining = figures.memory_remaining.saturating_sub(bytes);
        figures.memory_bps = (figures.memory_processed as f64 / seconds) as u64;
        figures.memory_normal += bytes / PAGE_SIZE as u64;
    });
    Ok(())
}

pub(super) fn unreadable(error: unmoved_stream::Error) -> Error {
    Error::Peer(format!("the stream cannot be read: {error}"))
}
