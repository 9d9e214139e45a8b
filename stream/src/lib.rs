//! Xen's migration streams: read, written, verified and converted without a Xen.
//!
//! A stream has up to three layers.  [`xl`] puts a header with the domain's configuration before
//! a [`libxl`] stream, which has a [`libxc`] stream inside, which has the guest's memory and registers.
//! All readers and writers work on a stream as it passes: they hold at most one batch of pages.
//!
//! # Reading
//!
//! [`Reader::next_event`] hands out headers and records of all layers in the order of the stream.
//! Whatever it hands out has been checked, and what is not asked for is skipped (jumped over in files).
//!
//! ```no_run
//! use unmoved_stream::{Event, Format, Input, Kind, Reader, Reserved, libxc};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # fn restore(pfn: u64, page: Option<&[u8; 4096]>) {}
//! let input = Input::file(std::fs::File::open("guest.save")?);
//! let mut reader = Reader::new(input, Format::Detect, Reserved::Ignore);
//! while let Some(event) = reader.next_event()? {
//!     let Event::Record(mut record) = event else { continue };
//!     match record.kind() {
//!         Kind::Libxc(libxc::Content::PageData { .. }) => {
//!             while let Some(pages) = record.pages()? {
//!                 for (entry, contents) in pages.iter() {
//!                     restore(entry.pfn(), contents);
//!                 }
//!             }
//!         }
//!         // Small records are held as a whole, any can be passed on as it is.
//!         Kind::Libxc(libxc::Content::HvmContext) => drop(record.bytes()?.to_vec()),
//!         _ => record.forward(&mut std::io::stdout())?,
//!     }
//! }
//! reader.expect_end()?; // on a file; a peer may have more to say
//! # Ok(())
//! # }
//! ```
//!
//! # Writing
//!
//! [`libxc::Writer`] has a method for each record and refuses orders that no receiver would take;
//! [`libxc::Writer::page_data`] writes pages from where they are.  [`libxl::Writer`] wraps it,
//! [`xl::SaveHeader::encode`] comes first.  A pre-copy loop writes `page_data` batches of up to
//! [`libxc::MAX_BATCH`] frames as often as it likes, then the tail, then `end`.
//!
//! # Errors
//!
//! An [`Error`] names offset, layer and record.  Nothing that comes from outside makes a panic, and no
//! length is believed before it is bounded.

#![forbid(unsafe_code)]

mod container;
mod error;
mod input;
mod inspect;
pub mod legacy;
pub mod libxc;
pub mod libxl;
pub mod reader;
mod record;
#[cfg(feature = "testing")]
pub mod testing;
mod verify;
pub mod xl;

pub use container::Container;
pub use error::{Defect, Error, Part};
pub use input::Input;
pub use inspect::{Entry, Run, entries, inspect};
pub use reader::{Event, Format, Kind, MAX_HELD, Pages, Reader, Record, Reserved};
pub use record::{MAX_LENGTH, OPTIONAL, RecordHeader};
pub use verify::{Report, verify};
