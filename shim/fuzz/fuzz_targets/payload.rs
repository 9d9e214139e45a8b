//! A kernel file with any bytes is unpacked, parsed and built, or refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use unmoved_shim::boot::payload::Payload;
use unmoved_shim::boot::{FrameList, FrameRun, GuestFrames, HostPages, Kernel, build};
use unmoved_shim::mem::Frames;
use unmoved_shim::testing::FakeFrames;
use xen_abi::{Mfn, PAGE_SIZE, Port};

/// Frames of the fuzzed machine, those of the image not counted.
const FREE: u64 = 1100;

/// Larger images are not unpacked: they would only be slow.
const MAX_IMAGE: usize = 1 << 20;

fuzz_target!(|file: &[u8]| {
    match Payload::recognise(file) {
        Ok(Payload::Elf(elf)) => start(elf),
        Ok(Payload::Packed(packed)) if packed.unpacked_len() <= MAX_IMAGE => {
            let mut out = vec![0; packed.unpacked_len()];
            if let Ok(image) = packed.unpack(&mut out) {
                start(image);
            }
        }
        Ok(Payload::Packed(_)) | Err(_) => {}
    }
});

fn start(image: &[u8]) {
    let Ok(kernel) = Kernel::parse(image) else {
        return;
    };
    let pages = image.len().div_ceil(PAGE_SIZE) as u64;
    let frames = FakeFrames::new(3 + pages + FREE);
    let run = |first, count| {
        let mut list = FrameList::new();
        list.push_run(FrameRun {
            first: Mfn(first),
            count,
        });
        list
    };
    for (mfn, bytes) in (3..).map(Mfn).zip(image.chunks(PAGE_SIZE)) {
        frames.write(mfn, 0, bytes);
    }
    let memory = GuestFrames {
        image: run(3, pages),
        free: run(3 + pages, FREE),
        ..GuestFrames::default()
    };
    let host = HostPages {
        shared_info: Mfn(0),
        store: Mfn(1),
        store_port: Port(1),
        console: Mfn(2),
        console_port: Port(2),
    };
    let mut assigned = 0;
    let built = build(&frames, &kernel, memory, &host, b"", |_, _| assigned += 1);
    if let Ok(start) = built {
        assert_eq!(start.nr_pages, assigned);
    }
}
