//! The stream as Xen's own tools write it: one sequence of bytes, with the headers of `xl` and libxl around
//! it.

use std::io::{self, IoSlice, Write};

use parking_lot::Mutex;
use unmoved_stream::RecordHeader;
use unmoved_stream::libxc::RecordType;
use unmoved_stream::libxl;
use unmoved_stream::xl::SaveHeader;

use crate::job::{Batch, Error, Result, Sink};

/// Writes batches and bytes in the order in which they arrive.
#[derive(Debug)]
pub(crate) struct Canonical<W> {
    /// `None` once the output is closed.
    out: Mutex<Option<W>>,
}

impl<W: Write + Send> Canonical<W> {
    /// Writes everything before the libxc stream.  `config` is the domain's configuration as JSON, with or
    /// without its final NUL.
    ///
    /// # Errors
    /// If it cannot be written, or the configuration is not text.
    pub(crate) fn begin(mut out: W, config: &[u8]) -> Result<Self> {
        let config = config.strip_suffix(&[0]).unwrap_or(config);
        let config = std::str::from_utf8(config)
            .map_err(|_| Error::Refused("the domain's configuration is not text".to_owned()))?;
        let context = RecordHeader {
            kind: libxl::RecordType::LIBXC_CONTEXT.0,
            length: 0,
        };
        let head = [
            SaveHeader::new(config).encode().as_slice(),
            &libxl::Header::default().encode(),
            &context.encode(),
        ]
        .concat();
        out.write_all(&head).map_err(failed)?;
        Ok(Self {
            out: Mutex::new(Some(out)),
        })
    }

    /// Writes everything after the libxc stream.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn end(&self) -> Result<()> {
        let end = RecordHeader {
            kind: libxl::RecordType::END.0,
            length: 0,
        };
        self.with(|out| {
            out.write_all(&end.encode())?;
            out.flush()
        })
    }

    /// Writes words that are not part of a stream.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(crate) fn say(&self, words: &[u8]) -> Result<()> {
        self.with(|out| {
            out.write_all(words)?;
            out.flush()
        })
    }

    /// Closes the output, and returns it.
    pub(crate) fn close(&self) -> Option<W> {
        self.out.lock().take()
    }

    fn with(&self, write: impl FnOnce(&mut W) -> io::Result<()>) -> Result<()> {
        let mut out = self.out.lock();
        let out = out
            .as_mut()
            .ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        write(out).map_err(failed)
    }
}

impl<W: Write + Send> Sink for Canonical<W> {
    fn bytes(&self, bytes: &[u8]) -> Result<()> {
        self.with(|out| out.write_all(bytes))
    }

    fn pages(&self, batch: &mut Batch) -> Result<()> {
        if batch.words.is_empty() {
            return Ok(());
        }
        if !batch.is_sound() {
            return Err(Error::Peer("a batch of pages is inconsistent".to_owned()));
        }
        let words: &[u8] = zerocopy::IntoBytes::as_bytes(batch.words.as_slice());
        let length = 8 + words.len() + batch.data.len();
        let head = RecordHeader {
            kind: RecordType::PAGE_DATA.0,
            // At most 1024 pages and their words.
            length: u32::try_from(length).unwrap_or(u32::MAX),
        };
        let count = batch.words.len() as u64;
        self.with(|out| {
            write_all(
                out,
                &mut [
                    IoSlice::new(&head.encode()),
                    IoSlice::new(&count.to_le_bytes()),
                    IoSlice::new(words),
                    IoSlice::new(&batch.data),
                ],
            )
        })
    }

    fn barrier(&self) -> Result<()> {
        self.with(W::flush)
    }
}

/// `write_all` for several pieces, with as few system calls as possible.
fn write_all(out: &mut impl Write, mut pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut pieces, 0);
    while !pieces.is_empty() {
        match out.write_vectored(pieces) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => IoSlice::advance_slices(&mut pieces, len),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn failed(error: io::Error) -> Error {
    Error::io("cannot write the stream")(error)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::thread;

    use unmoved_stream::{Event, Format, Input, Kind, Reader, Reserved, libxc};

    use super::Canonical;
    use crate::job::{Batch, Compression, Control, JobOptions, PAGE_SIZE, Sink};
    use crate::transport::{Duplex, Sender, Socket, Watch, receive};

    /// The beginning of a libxc stream.
    fn begun() -> libxc::Writer<Vec<u8>> {
        let image = libxc::ImageHeader { version: 3 };
        let domain = libxc::DomainHeader {
            kind: libxc::DomainType::Hvm,
            xen_major: 4,
            xen_minor: 17,
        };
        let mut writer = libxc::Writer::new(Vec::new(), image, domain).unwrap();
        writer.static_data_end().unwrap();
        writer
    }

    /// Two rounds of some guest, with zero pages, noise and frames without content, and its state.
    ///
    /// The batches are short: the receiver makes several records of a long one that is not compressed.
    fn give(sink: &dyn Sink) {
        let mut writer = begun();
        sink.bytes(&std::mem::take(writer.get_mut())).unwrap();
        // Frames without content, and a record right behind them, many times: nothing may overtake.
        for first in (0..30_000).step_by(1000) {
            for first in (first..first + 1000).step_by(100) {
                let words = (first..first + 100).map(|frame| 0xE000_0000_0000_0000 | frame);
                let mut batch = Batch {
                    words: words.collect(),
                    data: Vec::new(),
                };
                sink.pages(&mut batch).unwrap();
            }
            writer.hvm_context(&first.to_le_bytes()).unwrap();
            sink.bytes(&std::mem::take(writer.get_mut())).unwrap();
        }
        let mut noise = 1_u64;
        for _round in 0..2 {
            for first in (0..3000).step_by(100) {
                let mut batch = Batch::default();
                for frame in first..first + 100 {
                    match frame % 5 {
                        0 => batch.words.push(0xE000_0000_0000_0000 | frame),
                        1 => {
                            batch.words.push(frame);
                            batch.data.extend([0; PAGE_SIZE]);
                        }
                        _ => {
                            batch.words.push(frame);
                            batch.data.extend((0..PAGE_SIZE).map(|_| {
                                noise = noise
                                    .wrapping_mul(6_364_136_223_846_793_005)
                                    .wrapping_add(1);
                                (noise >> (48 + frame % 15)) as u8
                            }));
                        }
                    }
                }
                sink.pages(&mut batch).unwrap();
            }
            sink.barrier().unwrap();
        }
        writer.hvm_context(&[7; 12_345]).unwrap();
        writer.end().unwrap();
        sink.bytes(writer.get_mut()).unwrap();
        sink.barrier().unwrap();
    }

    fn connection(watch: &Arc<Watch>) -> [Box<dyn Duplex>; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let here = listener.accept().unwrap().0;
        [there, here].map(|end| {
            let end: Box<dyn Duplex> = Box::new(Socket::new(end, watch.clone()).unwrap());
            end
        })
    }

    #[test]
    fn what_was_sent_is_rebuilt_byte_for_byte() {
        let written = Canonical::begin(Vec::new(), b"{}").unwrap();
        give(&written);
        written.end().unwrap();
        let written = written.close().unwrap();
        for compress in [Compression::None, Compression::Zstd(1)] {
            let options = JobOptions {
                compress,
                ..JobOptions::default()
            };
            let control = Arc::new(Control::new(options));
            let watch = Watch::of(control.clone());
            let [near, far] = connection(&watch);
            let rebuilt = Canonical::begin(Vec::new(), b"{}").unwrap();
            thread::scope(|scope| {
                let taking = scope.spawn(|| receive(vec![far], &rebuilt, &watch, &|_| ()));
                let sender = Sender::new(vec![near], control.clone()).unwrap();
                give(&sender);
                sender.finish().unwrap();
                taking.join().unwrap().unwrap();
            });
            rebuilt.end().unwrap();
            // Not `assert_eq`: nobody wants to read megabytes.
            assert!(rebuilt.close().unwrap() == written, "{compress}");
        }
    }

    #[test]
    fn the_stream_is_one_that_the_verifier_takes() {
        let out = Canonical::begin(Vec::new(), b"{\"c_info\":{}}\0").unwrap();
        let mut writer = begun();
        out.bytes(&std::mem::take(writer.get_mut())).unwrap();
        out.pages(&mut Batch::default()).unwrap();
        out.pages(&mut Batch {
            words: vec![3, 0xE000_0000_0000_0004, 5],
            data: [vec![1; PAGE_SIZE], vec![2; PAGE_SIZE]].concat(),
        })
        .unwrap();
        writer.hvm_context(b"state").unwrap();
        writer.end().unwrap();
        out.bytes(writer.get_mut()).unwrap();
        out.end().unwrap();

        let bytes = out.close().unwrap();
        let mut reader = Reader::new(Input::new(&bytes[..]), Format::Xl, Reserved::Refuse);
        let mut seen = Vec::new();
        while let Some(event) = reader.next_event().unwrap() {
            let Event::Record(mut record) = event else {
                continue;
            };
            if let Kind::Libxc(libxc::Content::PageData { .. }) = record.kind() {
                while let Some(pages) = record.pages().unwrap() {
                    seen.extend(
                        pages
                            .iter()
                            .map(|(entry, page)| (entry.pfn(), page.map(|page| page[7]))),
                    );
                }
            }
        }
        assert_eq!(seen, [(3, Some(1)), (4, None), (5, Some(2))]);
        assert!(out.bytes(b"more").is_err(), "the output is closed");
    }

    #[test]
    fn a_batch_whose_data_is_not_what_its_words_promise_is_refused() {
        let out = Canonical::begin(Vec::new(), b"{}").unwrap();
        let mut batch = Batch {
            words: vec![3],
            data: vec![0; 5],
        };
        assert!(out.pages(&mut batch).is_err());
    }
}
