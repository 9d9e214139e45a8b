//! Builds guests of many shapes.

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::SizeRange;
use xen_abi::{Mfn, PAGE_SIZE, Port, elfnote};

use super::guest::{Case, run};
use super::synthetic::{Load, elf, linux_notes, note, number};
use super::walker::walk;
use crate::boot::{BuildError, GuestFrames, HostPages, Kernel, LayoutError, build};
use crate::testing::FakeFrames;

const BASE: u64 = 0xffff_ffff_8000_0000;
const PAGE: u64 = PAGE_SIZE as u64;

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
    let case = simple(&note(elfnote::GUEST_OS, b"XTF\0"));
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
