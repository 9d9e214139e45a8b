//! Reads a stream of any layer, record by record, and checks all of it on the way.
//!
//! Whoever reads has verified: framing, lengths, fields and order of each record are checked before
//! the record is handed out, and what nobody asks for is skipped.  At most one batch of pages is held.

mod event;
mod record;

use std::io::Read;

use xen_abi::PAGE_SIZE;

pub use event::{Event, Kind, Pages, Record};

use crate::container::{self, Container};
use crate::error::{Defect, Error, Part};
use crate::input::Input;
use crate::libxc::{self, DomainHeader, DomainType, ImageHeader, MAX_BATCH, PageEntry};
use crate::libxl;
use crate::record::RecordHeader;
use crate::xl::{Mandatory, SaveHeader};

/// The longest body that is held in memory: a full batch of pages.
pub const MAX_HELD: usize = 8 + MAX_BATCH * (8 + PAGE_SIZE);

/// What the outermost layer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// Found out from the first bytes.
    #[default]
    Detect,
    /// A libxc stream.
    Libxc,
    /// A libxl stream.
    Libxl,
    /// A file that `xl save` wrote, or what `xl migrate` sends.
    Xl,
}

/// What to do with reserved bits and padding that are not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reserved {
    /// Refuse them, as a verifier does.
    #[default]
    Refuse,
    /// Ignore them, as the specification tells receivers to.
    Ignore,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Start,
    XlHeader,
    LibxlHeader,
    LibxlRecord,
    /// libxc goes on, unless COLO's primary has something to say.
    AfterCheckpoint,
    ImageHeader,
    LibxcRecord,
    Nothing,
    Failed,
}

/// The record that was handed out last and is not read to its end yet.
#[derive(Clone, Copy, Debug)]
struct Open {
    part: Part,
    start: u64,
    header: RecordHeader,
    /// Bytes of the body that have not been taken from the input.
    left: u64,
    /// Bytes of the body at the start of `held`: all of it, or none.
    held: usize,
    /// Entries of a page record that have been handed out.
    entries_done: usize,
}

/// The reader.
#[derive(Debug)]
pub struct Reader<R> {
    input: Input<R>,
    strict: bool,
    next: Next,
    in_libxl: bool,
    domain: DomainType,
    libxc: Option<libxc::Order>,
    libxl: libxl::Order,
    libxc_records: u64,
    libxl_records: u64,
    open: Option<Open>,
    /// Entries of the open page record, if they are few enough.
    entries: Vec<PageEntry>,
    held: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Begins at the start of a stream.
    pub fn new(input: Input<R>, format: Format, reserved: Reserved) -> Self {
        Self {
            input,
            strict: reserved == Reserved::Refuse,
            next: match format {
                Format::Detect => Next::Start,
                Format::Libxc => Next::ImageHeader,
                Format::Libxl => Next::LibxlHeader,
                Format::Xl => Next::XlHeader,
            },
            in_libxl: false,
            domain: DomainType::Hvm,
            libxc: None,
            libxl: libxl::Order::default(),
            libxc_records: 0,
            libxl_records: 0,
            open: None,
            entries: Vec::new(),
            held: Vec::new(),
        }
    }

    /// What another tool has put before the stream, if that was to be found out and nothing was read yet.
    ///
    /// # Errors
    /// If it is no stream, but a file of that tool, or a legacy one.
    pub fn container(&mut self) -> Result<Option<Container>, Error> {
        if self.next != Next::Start {
            return Ok(None);
        }
        let found = self.detect();
        self.next = found.as_ref().map_or(Next::Failed, |(next, _)| *next);
        found.map(|(_, container)| container)
    }

    /// Reads the next header or record; none after the last END.
    ///
    /// What was not read of the record before is skipped.
    ///
    /// # Errors
    /// If the stream is not one that could be restored.  Nothing can be read after an error.
    pub fn next_event(&mut self) -> Result<Option<Event<'_, R>>, Error> {
        let found = self.advance();
        if found.is_err() {
            self.next = Next::Failed;
        }
        Ok(found?.map(|found| match found {
            Found::Save(header) => Event::Save(header),
            Found::Libxl(header) => Event::Libxl(header),
            Found::Libxc(image, domain) => Event::Libxc(image, domain),
            Found::Record(kind) => Event::Record(Record::new(self, kind)),
        }))
    }

    /// Checks that nothing follows the last END but the end of the input; on a [device](Input::device) only
    /// that the END has come.
    ///
    /// # Errors
    /// If something does, or the end has not been reached.
    pub fn expect_end(&mut self) -> Result<(), Error> {
        let offset = self.input.offset();
        let result = match self.next {
            // A device is as long as it is, as `xl restore` knows, too.
            Next::Nothing if self.input.is_device() => Ok(()),
            Next::Nothing => match self.input.peek(1) {
                Ok([]) => Ok(()),
                Ok(_) => Err(Defect::Trailing),
                Err(error) => Err(error.into()),
            },
            _ => Err(Defect::Order("the stream has not been read to its end")),
        };
        result.map_err(|defect| Error::new(offset, Part::End, defect))
    }

    /// Bytes of the stream that have been read or skipped.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.input.offset()
    }

    /// The input: what follows the stream, for instance the answer of a peer, can be read from it.
    pub fn input(&mut self) -> &mut Input<R> {
        &mut self.input
    }

    /// Gives the input back.
    #[must_use]
    pub fn into_input(self) -> Input<R> {
        self.input
    }

    fn advance(&mut self) -> Result<Option<Found>, Error> {
        self.close()?;
        if self.next == Next::Start {
            self.next = self.detect()?.0;
        }
        let found = match self.next {
            Next::Start | Next::Nothing => return Ok(None),
            Next::Failed => {
                let defect = Defect::Order("reading has failed before");
                return Err(Error::new(self.input.offset(), Part::RecordHeader, defect));
            }
            Next::XlHeader => {
                self.header(Part::Container, Self::not_foreign)?;
                self.header(Part::XlHeader, Self::xl_header)?
            }
            Next::LibxlHeader => self.header(Part::LibxlHeader, Self::libxl_header)?,
            Next::ImageHeader => {
                let image = self.header(Part::ImageHeader, |reader| {
                    ImageHeader::decode(&reader.input.array()?, reader.strict)
                })?;
                self.header(Part::DomainHeader, |reader| reader.domain_header(image))?
            }
            Next::AfterCheckpoint => {
                if self.is_checkpoint_state()? {
                    self.libxl_record()?
                } else {
                    self.libxc_record()?
                }
            }
            Next::LibxlRecord => self.libxl_record()?,
            Next::LibxcRecord => self.libxc_record()?,
        };
        Ok(Some(found))
    }

    /// Tells the outermost layer by its first bytes, and passes over what another tool put before it.
    fn detect(&mut self) -> Result<(Next, Option<Container>), Error> {
        let start = self.input.offset();
        let container = Container::pass(&mut self.input)
            .map_err(|defect| Error::new(start, Part::Container, defect))?;
        let start = self.input.offset();
        let mut look = || {
            if container.is_some_and(|container| container.is_legacy) {
                return Err(Defect::Unsupported(
                    "a legacy stream follows, which must be converted first (unmoved stream convert)",
                ));
            }
            if SaveHeader::is_next(&mut self.input)? {
                return Ok(Next::XlHeader);
            }
            let bytes = self.input.peek(8)?;
            let Some(first) = bytes.first_chunk().copied() else {
                let missing = (8 - bytes.len()) as u64;
                return Err(Defect::Truncated { missing });
            };
            match u64::from_be_bytes(first) {
                libxl::IDENT => Ok(Next::LibxlHeader),
                u64::MAX => Ok(Next::ImageHeader),
                found => Err(Defect::Magic {
                    expected: "a stream of version 2 or 3 (a legacy one must be converted first)",
                    found,
                }),
            }
        };
        let next = look().map_err(|defect| Error::new(start, Part::ImageHeader, defect))?;
        Ok((next, container))
    }

    fn header<T>(
        &mut self,
        part: Part,
        read: impl FnOnce(&mut Self) -> Result<T, Defect>,
    ) -> Result<T, Error> {
        let start = self.input.offset();
        read(self).map_err(|defect| Error::new(start, part, defect))
    }

    /// Where xl's header must be, another tool's file is named.
    fn not_foreign(&mut self) -> Result<(), Defect> {
        match container::of_another(self.input.peek(container::MAGIC_MOST)?) {
            Some((what, way)) => Err(Defect::Foreign { what, way }),
            None => Ok(()),
        }
    }

    fn xl_header(&mut self) -> Result<Found, Defect> {
        let header = SaveHeader::read(&mut self.input)?;
        if !header.mandatory.contains(Mandatory::STREAM_V2) {
            return Err(Defect::Unsupported(
                "a legacy stream follows, which must be converted first (unmoved stream convert)",
            ));
        }
        self.next = Next::LibxlHeader;
        Ok(Found::Save(header))
    }

    fn libxl_header(&mut self) -> Result<Found, Defect> {
        let header = libxl::Header::decode(&self.input.array()?, self.strict)?;
        self.in_libxl = true;
        self.next = Next::LibxlRecord;
        Ok(Found::Libxl(header))
    }

    fn domain_header(&mut self, image: ImageHeader) -> Result<Found, Defect> {
        let domain = DomainHeader::decode(&self.input.array()?, self.strict)?;
        self.domain = domain.kind;
        self.libxl.domain(domain.kind);
        self.libxc = Some(libxc::Order::new(image, domain));
        self.next = Next::LibxcRecord;
        Ok(Found::Libxc(image, domain))
    }
}

impl Open {
    fn fail(&self, defect: Defect) -> Error {
        Error::new(self.start, self.part, defect)
    }
}

/// An event without the borrow.
#[derive(Debug)]
enum Found {
    Save(SaveHeader),
    Libxl(libxl::Header),
    Libxc(ImageHeader, DomainHeader),
    Record(Kind),
}
