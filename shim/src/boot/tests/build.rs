//! Builds guests of many shapes and checks them with an independent reading of the result.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::SizeRange;
use xen_abi::start_info::{SIF_MOD_START_PFN, StartInfo};
use xen_abi::{Mfn, PAGE_SIZE, Pfn, Port, elfnote};
use zerocopy::FromBytes;

use super::synthetic::{Load, elf, linux_notes, number};
use super::walker::{census, walk};
use crate::boot::{
    BuildError, FrameList, GuestFrames, HostPages, Kernel, LayoutError, Start, build,
};
use crate::mem::{FakeFrames, Frames};

const BASE: u64 = 0xffff_ffff_8000_0000;
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
    given: Vec<Mfn>,
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

fn bytes(len: impl Into<SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), len)
}

/// Segments that follow each other without gap or with one, aligned to pages or not, in the file or
/// in memory, as linkers and boot loaders make them.
fn loads() -> impl Strategy<Value = Vec<Load>> {
    let load = (
        0u64..9000,
        bytes(1..20000),
        0u64..9000,
        any::<bool>(),
        0usize..4096,
    );
    vec(load, 1..5).prop_map(|loads| {
        let mut next = 0x1000;
        let place = |(gap, bytes, bss, congruent, skew): (u64, Vec<u8>, u64, bool, usize)| {
            let paddr = next + gap;
            let mem_size = bytes.len() as u64 + bss;
            next = paddr + mem_size;
            Load {
                paddr,
                bytes,
                mem_size,
                file_skew: if congruent {
                    (paddr % PAGE) as usize
                } else {
                    skew
                },
            }
        };
        loads.into_iter().map(place).collect()
    })
}

fn cases() -> impl Strategy<Value = Case> {
    let wishes = (any::<bool>(), any::<bool>(), any::<bool>());
    let ramdisk = prop_oneof![Just(Vec::new()), bytes(1..30000)];
    (loads(), wishes, ramdisk, 1200u64..3000, any::<u64>()).prop_map(
        |(loads, (init_p2m, mod_start_pfn, hypercalls), ramdisk, free, seed)| {
            let entry = BASE + loads[0].paddr;
            let mut notes = linux_notes(entry);
            if init_p2m {
                notes.extend(number(elfnote::INIT_P2M, 1 << 39));
            }
            if mod_start_pfn {
                notes.extend(number(elfnote::MOD_START_PFN, 1));
            }
            if hypercalls {
                notes.extend(number(elfnote::HYPERCALL_PAGE, (entry | 0xfff) - 0xfff));
            }
            Case {
                image: elf(&loads, &notes, &[]),
                ramdisk,
                free,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_guest_finds_its_memory_as_the_abi_says(case in cases()) {
        let built = run(&case).expect("there is enough memory");
        built.check(&case.image, &case.ramdisk);
    }

    #[test]
    fn too_little_memory_is_said_and_not_survived(case in cases(), free in 0u64..1000) {
        match run(&Case { free, ..case.clone() }) {
            Err(BuildError::Layout(LayoutError::TooLittleMemory { needed, available })) => {
                assert!(needed > available);
            }
            Err(BuildError::OutOfFrames) => {}
            Err(error) => panic!("{error}"),
            Ok(built) => built.check(&case.image, &case.ramdisk),
        }
    }
}

fn simple(notes: &[u8]) -> Case {
    let load = Load {
        paddr: 0x10_0000,
        bytes: vec![0x90; 0x3000],
        mem_size: 0x5000,
        file_skew: 0,
    };
    Case {
        image: elf(&[load], notes, &[]),
        ramdisk: vec![1; 5000],
        free: 2000,
        seed: 0,
    }
}

#[test]
fn an_aligned_image_is_used_where_it_lies() {
    let case = simple(&linux_notes(BASE + 0x10_0000));
    let built = run(&case).expect("there is enough memory");
    built.check(&case.image, &case.ramdisk);
    // The segment is at the image's second page, and the first run of frames is in order.
    let mapped = walk(&built.frames, built.start.l4, BASE + 0x10_0000).expect("mapped");
    assert_eq!(mapped.frame, built.given[1]);
}

#[test]
fn a_kernel_without_a_base_is_mapped_from_zero() {
    let case = simple(&super::synthetic::note(elfnote::GUEST_OS, b"XTF\0"));
    // Its entry point is the ELF header's, 0x1000, which is not in the segment.
    assert!(Kernel::parse(&case.image).is_err());
    let notes = number(elfnote::ENTRY, 0x10_0010);
    let case = simple(&notes);
    let built = run(&case).expect("there is enough memory");
    assert_eq!(built.kernel.virt_base, 0);
    assert_eq!(built.start.entry, 0x10_0010);
    built.check(&case.image, &case.ramdisk);
}

#[test]
fn a_list_that_would_get_in_the_way_goes_into_the_kernels_mapping() {
    for va in [
        BASE + (1 << 24),
        BASE,
        0xffff_8000_0000_0000,
        0x1234,
        1 << 47,
    ] {
        let notes = [linux_notes(BASE + 0x10_0000), number(elfnote::INIT_P2M, va)].concat();
        let case = simple(&notes);
        let built = run(&case).expect("there is enough memory");
        built.check(&case.image, &case.ramdisk);
        assert!(!built.start.layout.has_own_p2m_mapping());
    }
}

#[test]
fn a_base_in_the_hypervisors_part_is_refused() {
    for base in [
        0xffff_8000_0000_0000,
        0xffff_87ff_ff00_0000,
        0x7fff_fff0_0000,
        0xffff_ffff_ffe0_0000,
    ] {
        let notes = [
            number(elfnote::VIRT_BASE, base),
            number(elfnote::ENTRY, base + 0x10_0000),
        ]
        .concat();
        let refused = run(&simple(&notes)).map(|_| ());
        assert_eq!(
            refused,
            Err(BuildError::Layout(LayoutError::BadAddress { base })),
            "{base:#x}"
        );
    }
}

#[test]
fn a_long_command_line_is_refused() {
    let case = simple(&linux_notes(BASE + 0x10_0000));
    let kernel = Kernel::parse(&case.image).expect("good");
    let frames = FakeFrames::new(0);
    let host = HostPages {
        shared_info: Mfn(0),
        store: Mfn(0),
        store_port: Port(0),
        console: Mfn(0),
        console_port: Port(0),
    };
    let refused = build(
        &frames,
        &kernel,
        GuestFrames::default(),
        &host,
        &[b'a'; 1024],
        |_, _| {},
    );
    assert_eq!(refused.err(), Some(BuildError::CommandLineTooLong(1024)));
}
