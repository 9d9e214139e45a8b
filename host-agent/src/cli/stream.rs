//! `unmoved stream …`: works on save files and migration streams, without Xen.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use unmoved_stream::legacy::{self, Options, Target, Width};
use unmoved_stream::libxc::DomainType;
use unmoved_stream::{Format, Input};

use crate::xen::sys::set_pipe_size;

/// The size of the output pipe: what any user may set by default.
const PIPE: libc::c_int = 1 << 20;

/// What to do with a stream.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Verify a stream from its first byte to its last, and summarise it
    Verify(Verify),
    /// List headers and records
    Inspect(Source),
    /// Convert a stream of Xen before 4.6 to the current format
    Convert(Convert),
}

/// The stream to read.
#[derive(Debug, Args)]
pub(super) struct Source {
    /// File to read; - means standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Outermost layer of the stream; detected by default
    #[arg(long, value_enum)]
    format: Option<Layer>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Layer {
    Libxc,
    Libxl,
    Xl,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    source: Source,
    /// Read page contents too, to find unreadable parts of a file
    #[arg(long)]
    read_all: bool,
}

#[derive(Debug, Args)]
pub(super) struct Convert {
    /// File to read; - means standard input
    file: PathBuf,
    /// File to write; - means standard output
    output: PathBuf,
    /// Word size of the sender's toolstack; detected by default
    #[arg(long, value_enum)]
    width: Option<Bits>,
    /// Type of the guest; detected by default
    #[arg(long, value_enum)]
    guest: Option<Guest>,
    /// Format to write; an xl header stays in front of a libxl stream
    #[arg(long, value_enum, default_value = "libxl")]
    to: To,
    /// Leave out the state of an HVM guest's device model
    #[arg(long)]
    skip_device_model: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Bits {
    #[value(name = "32")]
    Bits32,
    #[value(name = "64")]
    Bits64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Guest {
    Pv,
    Hvm,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum To {
    Libxl,
    Libxc,
}

impl Command {
    pub(super) fn run(self, json: bool) -> Result<()> {
        match self {
            Self::Verify(verify) => verify.run(json),
            Self::Inspect(source) => {
                let input = open(&source.file)?;
                let mut out = BufWriter::new(io::stdout().lock());
                let result = if json {
                    // One object per line, because a listing grows with its stream.
                    unmoved_stream::entries(input, source.format(), |entry| {
                        serde_json::to_writer(&mut out, entry)?;
                        out.write_all(b"\n")
                    })
                } else {
                    unmoved_stream::inspect(input, source.format(), &mut out)
                };
                out.flush().context("cannot write the listing")?;
                result.with_context(|| name(&source.file))
            }
            Self::Convert(convert) => convert.run(json),
        }
    }
}

impl Source {
    fn format(&self) -> Format {
        match self.format {
            None => Format::Detect,
            Some(Layer::Libxc) => Format::Libxc,
            Some(Layer::Libxl) => Format::Libxl,
            Some(Layer::Xl) => Format::Xl,
        }
    }
}

impl Verify {
    fn run(self, json: bool) -> Result<()> {
        let mut input = open(&self.source.file)?;
        if self.read_all {
            input = input.without_jumps();
        }
        let report = unmoved_stream::verify(input, self.source.format())
            .with_context(|| name(&self.source.file))?;
        if json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{report}");
        }
        Ok(())
    }
}

impl Convert {
    fn run(self, json: bool) -> Result<()> {
        let input = open(&self.file)?;
        let options = Options {
            width: self.width.map(|width| match width {
                Bits::Bits32 => Width::Bits32,
                Bits::Bits64 => Width::Bits64,
            }),
            guest: self.guest.map(|guest| match guest {
                Guest::Pv => DomainType::Pv,
                Guest::Hvm => DomainType::Hvm,
            }),
            target: match self.to {
                To::Libxl => Target::Libxl,
                To::Libxc => Target::Libxc,
            },
            skip_device_model: self.skip_device_model,
            // A peer at the other end of a pipe may wait for an answer.
            expect_end: self.file.is_file(),
        };
        let read = |out: File| {
            legacy::convert(input, BufWriter::new(out), &options).with_context(|| name(&self.file))
        };
        let converted = match destination(&self.output)? {
            Destination::Open(file) => read(file)?,
            Destination::New(file) => {
                let converted = read(file.reopen()?)?;
                file.persist(&self.output)
                    .with_context(|| format!("cannot write {}", self.output.display()))?;
                converted
            }
        };
        // Standard output may be the stream.
        if json {
            eprintln!("{}", serde_json::to_string_pretty(&converted)?);
        } else {
            eprintln!(
                "{}: {} bytes of a {}-bit toolstack, {}, {} frames",
                name(&self.file),
                converted.bytes,
                converted.width,
                converted.domain,
                converted.frames
            );
        }
        Ok(())
    }
}

/// Where a converted stream goes to.
enum Destination {
    /// A pipe or a device.
    Open(File),
    /// A file that appears when it is complete.  Only its owner can read it, because it holds a guest's
    /// memory.
    New(tempfile::NamedTempFile),
}

fn destination(path: &Path) -> Result<Destination> {
    if path == Path::new("-") {
        let stdout = io::stdout();
        if stdout.is_terminal() {
            bail!("refusing to write a stream to a terminal: name a file");
        }
        let file = File::from(stdout.as_fd().try_clone_to_owned()?);
        // A larger pipe wakes the reader less often.  The call fails if this is not a pipe.
        let _ = set_pipe_size(file.as_fd(), PIPE);
        return Ok(Destination::Open(file));
    }
    let fail = || format!("cannot write {}", path.display());
    if path.metadata().is_ok_and(|meta| !meta.is_file()) {
        let file = File::options().write(true).open(path).with_context(fail)?;
        return Ok(Destination::Open(file));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let file = tempfile::NamedTempFile::new_in(folder).with_context(fail)?;
    Ok(Destination::New(file))
}

fn open(path: &Path) -> Result<Input<File>> {
    let file = if path == Path::new("-") {
        File::from(io::stdin().as_fd().try_clone_to_owned()?)
    } else {
        File::open(path).with_context(|| format!("cannot read {}", path.display()))?
    };
    Ok(Input::file(file))
}

fn name(path: &Path) -> String {
    match path.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => path.display().to_string(),
    }
}
