//! What the agent asks Xen about a domain, or does with one: a method for each hypercall.

mod grants;
mod state;
mod weight;

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use xen_abi::{hypercall, memory, version};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::abi::{self, BODY, DomctlHeader, Interface, SysctlHeader, domctl, shadow};
use super::state::DomainFlags;
use crate::job::{Error, PAGE_SIZE, Result};
use crate::xen::sys::{Argument, Buffer, Mapping, Privcmd};

/// Most frames whose types Xen returns in one hypercall.
pub(crate) const TYPES_AT_ONCE: usize = 1024;
/// Bytes of a page.
pub(crate) const PAGE: u64 = PAGE_SIZE as u64;

/// Access to Xen for one thread at a time; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Xen {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    privcmd: Privcmd,
    interface: Interface,
    /// Major and minor release.
    release: (u32, u32),
    extra: String,
    /// Buffers for arguments; the hypercalls of several threads take turns.
    arguments: Mutex<Buffer>,
}

/// A domain, as Xen sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Domain<'a> {
    xen: &'a Xen,
    domid: u16,
}

/// A domain's TSC settings (`XEN_DOMCTL_gettscinfo`).
pub(crate) use super::abi::TscInfo;

impl Xen {
    /// Opens the devices and reads the release.
    ///
    /// # Errors
    /// [`Error::Refused`] if this is not a control domain, or its release of Xen is not supported.
    pub(crate) fn open() -> Result<Self> {
        let privcmd = Privcmd::open().map_err(|error| {
            Error::Refused(format!(
                "cannot open /dev/xen/privcmd and /dev/xen/hypercall ({error}): run the agent as root in the \
                 control domain of a Xen host"
            ))
        })?;
        let failed = |error| Error::Xen(format!("cannot get Xen's version: {error}"));
        let mut arguments = privcmd.buffer(PAGE_SIZE).map_err(failed)?;
        let ask = |op, buffer: &mut Buffer| {
            let arguments = [Argument::Value(op), Argument::Structure(buffer, &mut [])];
            privcmd.call(hypercall::XEN_VERSION, arguments)
        };
        let number = ask(version::op::VERSION, &mut arguments).map_err(failed)?;
        ask(version::op::EXTRAVERSION, &mut arguments).map_err(failed)?;
        let mut extra = [0; 16];
        arguments.read(0, &mut extra);
        let end = extra.iter().position(|byte| *byte == 0);
        let extra = String::from_utf8_lossy(&extra[..end.unwrap_or(extra.len())]).into_owned();
        let release = ((number >> 16) as u32, (number & 0xffff) as u32);
        let interface = Interface::of(release.0, release.1)?;
        Ok(Self {
            shared: Arc::new(Shared {
                privcmd,
                interface,
                release,
                extra,
                arguments: Mutex::new(arguments),
            }),
        })
    }

    /// Major and minor release.
    pub(crate) fn release(&self) -> (u32, u32) {
        self.shared.release
    }

    /// The whole version, as `4.17.5`.
    pub(crate) fn version(&self) -> String {
        let (major, minor) = self.shared.release;
        format!("{major}.{minor}{}", self.shared.extra)
    }

    /// A domain, which may not exist.
    pub(crate) fn domain(&self, domid: u16) -> Domain<'_> {
        Domain { xen: self, domid }
    }

    /// The host's memory and CPUs.
    pub(crate) fn physinfo(&self) -> io::Result<abi::PhysInfo> {
        let mut info = abi::PhysInfo::new_zeroed();
        let header = SysctlHeader {
            cmd: abi::sysctl::PHYSINFO,
            interface_version: self.shared.interface.sysctl(),
        };
        self.structure(hypercall::SYSCTL, &header, &mut info, &mut [])?;
        Ok(info)
    }

    /// A buffer for a hypercall.
    pub(crate) fn buffer(&self, bytes: usize) -> io::Result<Buffer> {
        self.shared.privcmd.buffer(bytes)
    }

    /// Makes a hypercall with a header and a structure behind it, which Xen may change.  `nested` gives the
    /// positions of buffer addresses in the structure.
    fn structure<H, T>(
        &self,
        op: u64,
        header: &H,
        body: &mut T,
        nested: &mut [(usize, &mut Buffer)],
    ) -> io::Result<u64>
    where
        H: IntoBytes + Immutable,
        T: IntoBytes + FromBytes + Immutable + KnownLayout,
    {
        let mut buffer = self.shared.arguments.lock();
        let start = size_of::<H>();
        buffer.write(0, header.as_bytes());
        buffer.write(start, &[0; BODY]);
        buffer.write(start, body.as_bytes());
        for (offset, _) in nested.iter_mut() {
            *offset += start;
        }
        let argument = Argument::Structure(&mut buffer, nested);
        let reply = self
            .shared
            .privcmd
            .call(op, [argument, Argument::Value(0)])?;
        buffer.read(start, body.as_mut_bytes());
        Ok(reply)
    }

    fn memory_op<T: IntoBytes + Immutable>(&self, op: u64, argument: &T) -> io::Result<u64> {
        let mut buffer = self.shared.arguments.lock();
        buffer.write(0, argument.as_bytes());
        let arguments = [
            Argument::Value(op),
            Argument::Structure(&mut buffer, &mut []),
        ];
        self.shared.privcmd.call(hypercall::MEMORY_OP, arguments)
    }
}

impl Domain<'_> {
    /// Its number.
    pub(crate) fn domid(&self) -> u16 {
        self.domid
    }

    /// `None` if there is no such domain.
    pub(crate) fn info(&self) -> Result<Option<abi::DomainInfo>> {
        let mut info = abi::DomainInfo::new_zeroed();
        match self.domctl(domctl::GETDOMAININFO, &mut info, &mut []) {
            // Xen before 4.18 returns the next domain if this one does not exist.
            Ok(_) => Ok(Some(info).filter(|info| info.domain == self.domid)),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(self.failed("tell about", &error)),
        }
    }

    /// As [`Domain::info`], for a domain that must exist.
    pub(crate) fn live_info(&self) -> Result<abi::DomainInfo> {
        self.info()?
            .filter(|info| !info.state().contains(DomainFlags::DYING))
            .ok_or_else(|| Error::Xen(format!("domain {} is gone", self.domid)))
    }

    /// The number after the last guest frame.
    pub(crate) fn end_of_frames(&self) -> Result<u64> {
        let last = self
            .xen
            .memory_op(memory::op::MAXIMUM_GPFN, &u64::from(self.domid))
            .map_err(|error| self.failed("get the last frame of", &error))?;
        Ok(last + 1)
    }

    /// Replaces guest frame numbers by the frames' types (in bits 31–28).
    ///
    /// # Panics
    /// If there are more than [`TYPES_AT_ONCE`].
    pub(crate) fn frame_types(&self, words: &mut [u64], buffer: &mut Buffer) -> Result<()> {
        assert!(words.len() <= TYPES_AT_ONCE);
        buffer.write(0, words.as_bytes());
        let mut info = abi::PageFrameInfo {
            num: words.len() as u64,
            array: 0,
        };
        let nested = &mut [(
            std::mem::offset_of!(abi::PageFrameInfo, array),
            &mut *buffer,
        )];
        self.domctl(domctl::GETPAGEFRAMEINFO3, &mut info, nested)
            .map_err(|error| self.failed("get the frame types of", &error))?;
        buffer.read(0, words.as_mut_bytes());
        Ok(())
    }

    /// Switches log-dirty mode on; `false` if it is on already, for anyone.
    pub(crate) fn enable_log_dirty(&self) -> Result<bool> {
        match self.shadow(shadow::ENABLE_LOGDIRTY, 0, 0, None) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(self.failed("switch on log-dirty mode of", &error)),
        }
    }

    /// Switches log-dirty mode off.
    pub(crate) fn disable_log_dirty(&self) -> Result<()> {
        self.shadow(shadow::OFF, 0, 0, None)
            .map(drop)
            .map_err(|error| self.failed("switch off log-dirty mode of", &error))
    }

    /// Reads and clears the dirty bitmap of the frames below `frames`; returns the number of dirty frames.
    /// `last` if the domain does not run any more.
    pub(crate) fn take_dirty(&self, frames: u64, bitmap: &mut Buffer, last: bool) -> Result<u64> {
        let mode = if last { shadow::LOGDIRTY_FINAL } else { 0 };
        let op = self
            .shadow(shadow::CLEAN, mode, frames, Some(bitmap))
            .map_err(|error| self.failed("read the dirty bitmap of", &error))?;
        if op.pages != frames {
            return Err(Error::Xen(format!(
                "Xen reported {} instead of {frames} frames of domain {}",
                op.pages, self.domid
            )));
        }
        Ok(u64::from(op.stats[1]))
    }

    fn shadow(
        &self,
        op: u32,
        mode: u32,
        pages: u64,
        bitmap: Option<&mut Buffer>,
    ) -> io::Result<abi::ShadowOp> {
        let mut body = abi::ShadowOp {
            op,
            mode,
            pages,
            ..abi::ShadowOp::new_zeroed()
        };
        let offset = std::mem::offset_of!(abi::ShadowOp, dirty_bitmap);
        match bitmap {
            Some(bitmap) => {
                if (bitmap.len() as u64) < pages.div_ceil(8) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                self.domctl(domctl::SHADOW_OP, &mut body, &mut [(offset, bitmap)])?
            }
            None => self.domctl(domctl::SHADOW_OP, &mut body, &mut [])?,
        };
        Ok(body)
    }

    /// Maps frames; `errors` tells which of them do not exist.
    pub(crate) fn map(
        &self,
        frames: &[u64],
        errors: &mut Vec<i32>,
        writable: bool,
    ) -> Result<Mapping> {
        let privcmd = &self.xen.shared.privcmd;
        privcmd
            .map_frames(self.domid, frames, errors, writable)
            .map_err(|error| self.failed("give access to frames of", &error))
    }

    /// Gives the domain memory at these frames; returns how many got some.
    pub(crate) fn populate(&self, frames: &[u64]) -> Result<usize> {
        let failed = |error| self.failed("give memory to", &error);
        let mut list = self.xen.buffer(frames.len() * 8).map_err(failed)?;
        list.write(0, frames.as_bytes());
        let reservation = memory::Reservation {
            nr_extents: frames.len() as u64,
            domid: self.domid,
            ..memory::Reservation::default()
        };
        let mut arguments = self.xen.shared.arguments.lock();
        arguments.write(0, reservation.as_bytes());
        let offset = std::mem::offset_of!(memory::Reservation, extent_start);
        let nested = &mut [(offset, &mut list)];
        let op = Argument::Value(memory::op::POPULATE_PHYSMAP);
        let done = self.xen.shared.privcmd.call(
            hypercall::MEMORY_OP,
            [op, Argument::Structure(&mut arguments, nested)],
        );
        Ok(usize::try_from(done.map_err(failed)?).unwrap_or(0))
    }

    fn simple(&self, cmd: u32, what: &str) -> Result<()> {
        self.domctl(cmd, &mut 0_u64, &mut [])
            .map(drop)
            .map_err(|error| self.failed(what, &error))
    }

    fn domctl<T>(
        &self,
        cmd: u32,
        body: &mut T,
        nested: &mut [(usize, &mut Buffer)],
    ) -> io::Result<u64>
    where
        T: IntoBytes + FromBytes + Immutable + KnownLayout,
    {
        let header = DomctlHeader {
            cmd,
            interface_version: self.xen.shared.interface.domctl(),
            domain: self.domid,
            pad: [0; 3],
        };
        self.xen.structure(hypercall::DOMCTL, &header, body, nested)
    }

    fn failed(&self, what: &str, error: &io::Error) -> Error {
        let why = match error.raw_os_error() {
            Some(libc::ESRCH) => "there is no such domain".to_owned(),
            Some(libc::EACCES) => "its toolstack interface has another version".to_owned(),
            Some(libc::EPERM) => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        Error::Xen(format!("Xen cannot {what} domain {}: {why}", self.domid))
    }
}
