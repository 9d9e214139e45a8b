//! Whatever the bytes are, there is an answer: no panic, no access outside, bounded work.

use proptest::collection::vec;
use proptest::prelude::{any, proptest};
use proptest::sample::Index;
use xen_abi::elfnote;

use super::guest::{Case, run};
use super::synthetic::{Load, bzimage, elf, linux_notes, number};
use crate::boot::payload::Payload;
use crate::boot::{Kernel, Notes};

const BASE: u64 = 0xffff_ffff_8000_0000;

fn kernel() -> Vec<u8> {
    let load = |paddr| Load {
        paddr,
        bytes: vec![0x90; 0x1800],
        mem_size: 0x2000,
        file_skew: 0,
    };
    let notes = [
        linux_notes(BASE + 0x1000),
        number(elfnote::HYPERCALL_PAGE, BASE + 0x1000),
    ]
    .concat();
    elf(
        &[load(0x1000), load(0x3000)],
        &notes,
        &[("__xen_guest", b"VIRT_BASE=0x10")],
    )
}

fn unpack(file: &[u8]) {
    if let Ok(Payload::Packed(packed)) = Payload::recognise(file) {
        let _ = packed.heap_needed();
        let mut out = vec![0; packed.unpacked_len().min(1 << 16)];
        let _ = packed.unpack(&mut out);
    }
}

/// Overwrites bytes at places of `file`.
fn damage(file: &mut Vec<u8>, changes: &[(Index, u8)], cut: Option<Index>) {
    for (at, value) in changes {
        let at = at.index(file.len());
        file[at] = *value;
    }
    if let Some(cut) = cut {
        file.truncate(cut.index(file.len() + 1));
    }
}

proptest! {
    #[test]
    fn random_bytes_are_no_kernel(bytes in vec(any::<u8>(), 0..3000)) {
        let _ = Kernel::parse(&bytes);
        let _ = Notes::default().add_elf(&bytes);
        let _ = Notes::default().add_legacy(&bytes);
        unpack(&bytes);
    }

    #[test]
    fn a_damaged_image_is_parsed_or_refused(
        headers in vec((any::<Index>(), any::<u8>()), 0..6),
        anywhere in vec((any::<Index>(), any::<u8>()), 0..6),
        cut in proptest::option::of(any::<Index>()),
    ) {
        let mut file = kernel();
        let mut start = file[..64 + 3 * 56].to_vec();
        damage(&mut start, &headers, None);
        file[..start.len()].copy_from_slice(&start);
        damage(&mut file, &anywhere, cut);
        if let Ok(kernel) = Kernel::parse(&file) {
            for segment in &kernel.segments {
                assert!(segment.offset + segment.file_size <= file.len() as u64);
                assert!(segment.file_size <= segment.mem_size);
                assert!(segment.target + segment.mem_size <= kernel.end);
            }
            let case = Case {
                image: file,
                ramdisk: vec![1; 5000],
                free: 1100,
                seed: 0,
            };
            if let Ok(built) = run(&case) {
                built.check(&case.image, &case.ramdisk);
            }
        }
    }

    #[test]
    fn a_damaged_bzimage_is_unpacked_or_refused(
        which in 0usize..4,
        header in vec((0x1f0usize..0x250, any::<u8>()), 0..3),
        payload in vec((any::<Index>(), any::<u8>()), 0..6),
        cut in proptest::option::of(any::<Index>()),
    ) {
        let mut data = super::payloads::samples()[which].clone();
        damage(&mut data, &payload, None);
        let mut file = bzimage(&data);
        header.iter().for_each(|&(at, value)| file[at] = value);
        damage(&mut file, &[], cut);
        unpack(&file);
    }
}
