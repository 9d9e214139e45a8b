//! A guest built on a fake machine, and an independent reading of what it would find.

use std::collections::BTreeMap;

use xen_abi::start_info::{SIF_MOD_START_PFN, StartInfo};
use xen_abi::{Mfn, PAGE_SIZE, Pfn, Port};
use zerocopy::FromBytes;

use super::walker::{census, walk};
use crate::boot::{BuildError, FrameList, GuestFrames, HostPages, Kernel, Start, build};
use crate::mem::Frames;
use crate::testing::FakeFrames;

const PAGE: u64 = PAGE_SIZE as u64;

/// A guest to be built.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) image: Vec<u8>,
    pub(super) ramdisk: Vec<u8>,
    /// Frames besides those of the two files.
    pub(super) free: u64,
    /// In which order frames are dealt out.
    pub(super) seed: u64,
}

/// A machine with a built guest.
pub(super) struct Built {
    pub(super) frames: FakeFrames,
    pub(super) kernel: Kernel,
    pub(super) start: Start,
    m2p: BTreeMap<Mfn, Pfn>,
    /// All frames of the guest but those of the rings; the image's first, then the ramdisk's.
    pub(super) given: Vec<Mfn>,
    host: HostPages,
}

/// Deals `case` onto a machine of scattered frames full of junk, and builds it.
pub(super) fn run(case: &Case) -> Result<Built, BuildError> {
    let pages = |bytes: &[u8]| bytes.len().div_ceil(PAGE_SIZE) as u64;
    let total = pages(&case.image) + pages(&case.ramdisk) + case.free;
    // Every second frame of a machine, in an order that depends on the seed: runs of one to eight.
    let mut numbers: Vec<u64> = (0..total).map(|n| 100 + n + n / 8 * 3).collect();
    if !case.seed.is_multiple_of(4) {
        numbers.sort_by_key(|n| (n / 11).wrapping_mul(case.seed | 1) >> 7);
    }
    let frames = FakeFrames::default();
    let host = HostPages {
        shared_info: Mfn(1),
        store: Mfn(2),
        store_port: Port(1),
        console: Mfn(3),
        console_port: Port(2),
    };
    for frame in [Mfn(2), Mfn(3)]
        .into_iter()
        .chain(numbers.iter().copied().map(Mfn))
    {
        frames.add(frame);
        frames.write(frame, 0, &[0x77; PAGE_SIZE]);
    }
    let given: Vec<Mfn> = numbers.iter().copied().map(Mfn).collect();
    let mut rest = given.iter().copied();
    let mut place = |bytes: &[u8]| -> FrameList {
        let placed = bytes
            .chunks(PAGE_SIZE)
            .zip(rest.by_ref().take(pages(bytes) as usize));
        placed
            .map(|(bytes, frame)| {
                frames.write(frame, 0, bytes);
                frame
            })
            .collect()
    };
    let memory = GuestFrames {
        image: place(&case.image),
        ramdisk: place(&case.ramdisk),
        ramdisk_len: case.ramdisk.len() as u64,
        free: given
            .iter()
            .copied()
            .skip((total - case.free) as usize)
            .collect(),
    };
    let kernel = Kernel::parse(&case.image).expect("the test's kernel is good");
    let mut m2p = BTreeMap::new();
    let start = build(
        &frames,
        &kernel,
        memory,
        &host,
        b"console=hvc0",
        |mfn, pfn| {
            assert_eq!(m2p.insert(mfn, pfn), None, "{mfn:?} was given twice");
        },
    )?;
    Ok(Built {
        frames,
        kernel,
        start,
        m2p,
        given,
        host,
    })
}

impl Built {
    fn start_info(&self) -> StartInfo {
        let mut bytes = [0; size_of::<StartInfo>()];
        self.read(self.start.start_info, &mut bytes);
        StartInfo::read_from_bytes(&bytes).expect("the sizes agree")
    }

    /// Reads as the guest would.
    pub(super) fn read(&self, va: u64, buf: &mut [u8]) {
        for (index, byte) in buf.iter_mut().enumerate() {
            let va = va + index as u64;
            let mapped = walk(&self.frames, self.start.l4, va).expect("mapped");
            *byte = self.frames.load8(mapped.frame, (va % PAGE) as usize);
        }
    }

    fn page(&self, frame: Mfn) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        self.frames.read(frame, 0, &mut page);
        page
    }

    /// Checks everything that holds for every guest.
    pub(super) fn check(&self, image: &[u8], ramdisk: &[u8]) {
        let info = self.start_info();
        let layout = &self.start.layout;
        let base = self.kernel.virt_base;
        assert!(info.magic.starts_with(b"xen-3.0-x86_64\0"));
        assert_eq!(info.nr_pages, self.given.len() as u64 + 2);
        assert_eq!(info.nr_pages, self.start.nr_pages);
        assert_eq!(info.shared_info, PAGE);
        assert_eq!((info.store_mfn, info.store_evtchn), (2, 1));
        assert_eq!((info.console_mfn, info.console_evtchn), (3, 2));
        assert!(info.cmd_line.starts_with(b"console=hvc0\0"));

        // P2M and M2P are each other's inverse, over all frames that were given.
        let mut p2m = vec![0u8; info.nr_pages as usize * 8];
        self.read_pages(info.mfn_list, &mut p2m);
        let p2m: Vec<Mfn> = p2m
            .chunks_exact(8)
            .map(|entry| Mfn(u64::from_le_bytes(entry.try_into().expect("eight bytes"))))
            .collect();
        for (pfn, mfn) in p2m.iter().enumerate() {
            assert_eq!(self.m2p.get(mfn), Some(&Pfn(pfn as u64)));
        }
        let mut expected = self.given.clone();
        expected.extend([self.host.store, self.host.console]);
        expected.sort();
        assert!(
            self.m2p.keys().eq(&expected),
            "each frame is used exactly once"
        );

        // The kernel's mapping is P2M, in order, and page tables are read-only.
        let (tables, pages) = census(&self.frames, self.start.l4);
        for pfn in 0..layout.mapped {
            let mapped = walk(&self.frames, self.start.l4, base + pfn * PAGE).expect("mapped");
            assert_eq!(mapped.frame, p2m[pfn as usize]);
            assert_eq!(
                mapped.writable,
                !tables.contains(&mapped.frame),
                "PFN {pfn:#x}"
            );
        }
        assert!(
            walk(
                &self.frames,
                self.start.l4,
                base.wrapping_add(layout.mapped * PAGE)
            )
            .is_none()
        );
        let writable = pages.iter().filter(|(_, writable)| *writable);
        assert!(writable.clone().all(|(frame, _)| !tables.contains(frame)));

        // The tables are where start info says.
        assert_eq!(p2m[((info.pt_base - base) / PAGE) as usize], self.start.l4);
        let first = (info.pt_base - base) / PAGE;
        let announced = first..first + info.nr_pt_frames;
        let p2m_frames = info.first_p2m_pfn..info.first_p2m_pfn + info.nr_p2m_frames;
        for table in &tables {
            let pfn = self.m2p[table].0;
            assert!(announced.contains(&pfn) || p2m_frames.contains(&pfn));
        }
        let own = (p2m.len() * 8).div_ceil(PAGE_SIZE) as u64;
        if info.nr_p2m_frames == 0 {
            assert_eq!(tables.len() as u64, info.nr_pt_frames);
            assert_eq!(info.first_p2m_pfn, 0);
        } else {
            assert_eq!(
                tables.len() as u64,
                info.nr_pt_frames + info.nr_p2m_frames - own
            );
            assert!(info.first_p2m_pfn >= layout.mapped);
        }
        assert_eq!(
            pages.len() as u64,
            layout.mapped + if info.nr_p2m_frames == 0 { 0 } else { own }
        );

        // 4 MiB boundary, half a MiB of slack.
        let end = base.wrapping_add(layout.mapped * PAGE);
        assert!(end.is_multiple_of(4 << 20));
        assert!(end - self.start.stack >= 512 << 10);
        assert_eq!(self.page(p2m[layout.stack as usize]), [0; PAGE_SIZE]);

        self.check_kernel(image, &p2m);
        self.check_ramdisk(ramdisk, &info, &p2m);
    }

    /// Reads whole pages, which is what makes large lists bearable.
    fn read_pages(&self, va: u64, buf: &mut [u8]) {
        for (index, chunk) in buf.chunks_mut(PAGE_SIZE).enumerate() {
            let va = va + index as u64 * PAGE;
            let mapped = walk(&self.frames, self.start.l4, va).expect("mapped");
            chunk.copy_from_slice(&self.page(mapped.frame)[..chunk.len()]);
        }
    }

    fn check_kernel(&self, image: &[u8], p2m: &[Mfn]) {
        let mut expected = vec![None; self.kernel.end as usize];
        for segment in &self.kernel.segments {
            let (target, offset) = (segment.target as usize, segment.offset as usize);
            for index in 0..segment.mem_size as usize {
                let byte = if index < segment.file_size as usize {
                    image[offset + index]
                } else {
                    0
                };
                expected[target + index] = Some(byte);
            }
        }
        // File bytes win over another segment's zeroes.
        for segment in &self.kernel.segments {
            let (target, offset) = (segment.target as usize, segment.offset as usize);
            for index in 0..segment.file_size as usize {
                expected[target + index] = Some(image[offset + index]);
            }
        }
        if let Some(page) = self.kernel.notes.hypercall_page {
            let at = (page - self.kernel.virt_base) as usize;
            let end = expected.len().min(at + PAGE_SIZE);
            expected[at..end].fill(None);
            assert_eq!(
                self.page(p2m[at / PAGE_SIZE])[..4],
                [0x51, 0x41, 0x53, 0xb8]
            );
        }
        for (pfn, expected) in expected.chunks(PAGE_SIZE).enumerate() {
            let got = self.page(p2m[pfn]);
            for (at, expected) in expected.iter().enumerate() {
                assert!(
                    expected.is_none_or(|byte| byte == got[at]),
                    "page {pfn:#x} differs at {at:#x}"
                );
            }
        }
    }

    fn check_ramdisk(&self, ramdisk: &[u8], info: &StartInfo, p2m: &[Mfn]) {
        assert_eq!(info.mod_len, ramdisk.len() as u64);
        if ramdisk.is_empty() {
            assert_eq!((info.mod_start, info.flags), (0, 0));
            return;
        }
        let first = if info.flags == SIF_MOD_START_PFN {
            assert!(info.mod_start >= self.start.layout.mapped);
            info.mod_start
        } else {
            assert_eq!(info.flags, 0);
            (info.mod_start - self.kernel.virt_base) / PAGE
        };
        for (index, chunk) in ramdisk.chunks(PAGE_SIZE).enumerate() {
            let page = self.page(p2m[first as usize + index]);
            assert_eq!(page[..chunk.len()], *chunk);
            assert!(page[chunk.len()..].iter().all(|&byte| byte == 0));
        }
    }
}
