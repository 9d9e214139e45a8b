//! Builds a PV domain: memory, P2M list, page tables and start info for a kernel's first vCPU.

use core::fmt;

use xen_abi::start_info::{MAGIC_X86_64, MAX_CMD_LINE, SIF_MOD_START_PFN, StartInfo};
use xen_abi::{Mfn, PAGE_SIZE, Pfn, Port};
use zerocopy::{FromZeros, IntoBytes};

use super::elf::Kernel;
use super::frames::{FrameList, Pool};
use super::hypercall_page::fill_hypercall_page;
use super::layout::{Contents, Layout, LayoutError};
use super::load::load;
use super::memory::{Memory, OutOfFrames};
use super::tables::Mapping;
use crate::mem::Frames;

const PAGE: u64 = PAGE_SIZE as u64;

/// Why a guest could not be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// The kernel does not fit the memory or the address space.
    Layout(LayoutError),
    /// The command line does not fit start info.
    CommandLineTooLong(usize),
    /// A file's length and its list of frames disagree.
    WrongFrames(&'static str),
    /// So much of the kernel has to be copied that there were not enough frames besides its image.
    OutOfFrames,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout(error) => error.fmt(f),
            Self::CommandLineTooLong(len) => write!(
                f,
                "the kernel's command line has {len} bytes, {} fit",
                MAX_CMD_LINE - 1
            ),
            Self::WrongFrames(what) => write!(f, "the {what} does not fill its frames"),
            Self::OutOfFrames => f.write_str("too little memory to load the kernel"),
        }
    }
}

impl From<LayoutError> for BuildError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(error)
    }
}

impl From<OutOfFrames> for BuildError {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfFrames
    }
}

/// The frames that become the guest's; no frame may be named twice.
///
/// What the guest's free memory holds is not cleared: no secret may be in there.
#[derive(Clone, Debug, Default)]
pub struct GuestFrames {
    /// Those that hold the kernel's ELF image, which starts at the first byte of the first.
    pub image: FrameList,
    /// Those that hold the ramdisk, likewise; empty if there is none.
    pub ramdisk: FrameList,
    /// Length of the ramdisk in bytes.
    pub ramdisk_len: u64,
    /// All others.
    pub free: FrameList,
}

/// Pages that the shim keeps but the guest uses, and their event channels.
#[derive(Clone, Copy, Debug)]
pub struct HostPages {
    /// The shared info page; known to the guest by machine address only.
    pub shared_info: Mfn,
    /// The xenstore ring.
    pub store: Mfn,
    /// Event channel of the xenstore ring.
    pub store_port: Port,
    /// The console ring.
    pub console: Mfn,
    /// Event channel of the console ring.
    pub console_port: Port,
}

/// How to start the guest's first vCPU.
///
/// `rip`, `rsp` and `rsi` are the next three; all other registers are zero, the flat selectors are
/// loaded and the guest is in kernel mode.
#[derive(Clone, Debug)]
pub struct Start {
    /// Virtual address of the first instruction.
    pub entry: u64,
    /// Virtual address of the end of the boot stack.
    pub stack: u64,
    /// Virtual address of start info.
    pub start_info: u64,
    /// The top-level page table, not yet validated.
    pub l4: Mfn,
    /// Pages of the guest: all its frames, and the two rings.
    pub nr_pages: u64,
    /// What is where.
    pub layout: Layout,
}

/// Builds a guest that runs `kernel` on the frames `memory` and the pages of `host`.
///
/// `set_m2p` is called once for each page of the guest.
///
/// # Errors
/// Any [`BuildError`]; the frames then hold anything.
pub fn build<F: Frames>(
    frames: &F,
    kernel: &Kernel,
    memory: GuestFrames,
    host: &HostPages,
    cmd_line: &[u8],
    set_m2p: impl FnMut(Mfn, Pfn),
) -> Result<Start, BuildError> {
    let GuestFrames {
        image,
        ramdisk,
        ramdisk_len,
        free,
    } = memory;
    if cmd_line.len() >= MAX_CMD_LINE {
        return Err(BuildError::CommandLineTooLong(cmd_line.len()));
    }
    if image.len() != kernel.image_len.div_ceil(PAGE) {
        return Err(BuildError::WrongFrames("kernel"));
    }
    if ramdisk.len() != ramdisk_len.div_ceil(PAGE) {
        return Err(BuildError::WrongFrames("ramdisk"));
    }
    let nr_pages = image.len() + ramdisk.len() + free.len() + 2;
    let layout = Layout::plan(&Contents {
        virt_base: kernel.virt_base,
        kernel_pages: kernel.end.div_ceil(PAGE),
        ramdisk_pages: ramdisk.len(),
        unmapped_ramdisk: kernel.notes.mod_start_pfn,
        init_p2m: kernel.notes.init_p2m,
        nr_pages,
    })?;

    let mut memory = Memory::new(frames, Pool::new(free), nr_pages, set_m2p)?;
    load(&mut memory, kernel, &image)?;
    for (pfn, frame) in layout.ramdisk.clone().zip(ramdisk.iter()) {
        memory.assign(pfn, frame);
    }
    if let (Some(last), true) = (ramdisk.iter().last(), !ramdisk_len.is_multiple_of(PAGE)) {
        let tail = (ramdisk_len % PAGE) as usize;
        frames.write(last, tail, &[0; PAGE_SIZE][tail..]);
    }
    let list = memory.p2m_frames().clone();
    for (pfn, frame) in layout.p2m.clone().zip(list.iter()) {
        memory.assign(pfn, frame);
    }
    memory.assign(layout.store, host.store);
    memory.assign(layout.console, host.console);
    let start_info = memory.zeroed(layout.start_info)?;
    memory.zeroed(layout.stack)?;
    // What is left: page tables, slack, and all that has no purpose yet.
    for pfn in layout.kernel.end..nr_pages {
        if memory.find(pfn).is_none() {
            memory.fresh(pfn)?;
        }
    }
    debug_assert_eq!(memory.left(), 0, "every frame is behind a page");

    if let Some(pfn) = kernel.hypercall_pfn() {
        let mut page = [0; PAGE_SIZE];
        fill_hypercall_page(&mut page);
        frames.write(memory.mfn(pfn), 0, &page);
    }
    let l4 = write_tables(&memory, &layout);
    let info = describe(kernel, &layout, host, nr_pages, ramdisk_len, cmd_line);
    frames.write(start_info, 0, info.as_bytes());
    Ok(Start {
        entry: kernel.entry,
        stack: layout.va(layout.stack + 1),
        start_info: layout.va(layout.start_info),
        l4,
        nr_pages,
        layout,
    })
}

fn write_tables<F: Frames, M: FnMut(Mfn, Pfn)>(memory: &Memory<'_, F, M>, layout: &Layout) -> Mfn {
    let l4 = memory.mfn(layout.tables.start);
    memory.frames.clear(l4);
    let kernel = Mapping {
        va: layout.virt_base,
        pages: 0..layout.mapped,
        tables: layout.tables.start + 1,
    };
    let p2m = Mapping {
        va: layout.p2m_va,
        pages: layout.p2m.clone(),
        tables: layout.p2m_tables.start,
    };
    let is_table = |pfn| layout.tables.contains(&pfn) || layout.p2m_tables.contains(&pfn);
    kernel.write(memory.frames, l4, |pfn| memory.mfn(pfn), is_table);
    if layout.has_own_p2m_mapping() {
        p2m.write(memory.frames, l4, |pfn| memory.mfn(pfn), is_table);
    }
    l4
}

fn describe(
    kernel: &Kernel,
    layout: &Layout,
    host: &HostPages,
    nr_pages: u64,
    ramdisk_len: u64,
    cmd_line: &[u8],
) -> StartInfo {
    let mut info = StartInfo::new_zeroed();
    info.magic[..MAGIC_X86_64.len()].copy_from_slice(MAGIC_X86_64);
    info.nr_pages = nr_pages;
    info.shared_info = host.shared_info.addr();
    info.store_mfn = host.store.0;
    info.store_evtchn = host.store_port.0;
    info.console_mfn = host.console.0;
    info.console_evtchn = host.console_port.0;
    info.pt_base = layout.va(layout.tables.start);
    info.nr_pt_frames = layout.tables.end - layout.tables.start;
    info.mfn_list = layout.p2m_va;
    if layout.has_own_p2m_mapping() {
        info.first_p2m_pfn = layout.p2m.start;
        info.nr_p2m_frames = layout.p2m_tables.end - layout.p2m.start;
    }
    if ramdisk_len != 0 {
        info.mod_len = ramdisk_len;
        if kernel.notes.mod_start_pfn {
            info.flags |= SIF_MOD_START_PFN;
            info.mod_start = layout.ramdisk.start;
        } else {
            info.mod_start = layout.va(layout.ramdisk.start);
        }
    }
    info.cmd_line[..cmd_line.len()].copy_from_slice(cmd_line);
    info
}
