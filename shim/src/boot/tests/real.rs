//! Real kernels, if there are some: set `UNMOVED_TEST_KERNELS` to a directory of kernel files.

use std::path::Path;
use std::time::Instant;

use super::guest::{Case, run};
use crate::boot::Kernel;
use crate::boot::payload::Payload;

/// Directory of kernel files: `vmlinuz`, `vmlinux`, `grub-x86_64-xen.bin` and the like.
const DIRECTORY: &str = "UNMOVED_TEST_KERNELS";

#[test]
fn real_kernels_become_guests() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let entries = std::fs::read_dir(directory).expect("the directory can be read");
    for entry in entries {
        let path = entry.expect("the directory can be read").path();
        if path.is_file() {
            try_kernel(&path);
        }
    }
}

fn try_kernel(path: &Path) {
    let file = std::fs::read(path).expect("the file can be read");
    let began = Instant::now();
    let image = match Payload::recognise(&file).expect("a kernel file") {
        Payload::Elf(elf) => elf.to_vec(),
        Payload::Packed(packed) => {
            let mut out = vec![0; packed.unpacked_len()];
            packed.unpack(&mut out).expect("it unpacks");
            println!(
                "{}: {} {} -> {} bytes in {:?}, up to {} KiB of heap",
                path.display(),
                packed.format(),
                file.len(),
                out.len(),
                began.elapsed(),
                packed.heap_needed() >> 10
            );
            out
        }
    };
    let kernel = match Kernel::parse(&image) {
        Ok(kernel) => kernel,
        Err(error) => {
            println!("{}: refused: {error}", path.display());
            return;
        }
    };
    println!(
        "{}: base {:#x}, entry {:#x}, {:#x} bytes, {:?}",
        path.display(),
        kernel.virt_base,
        kernel.entry,
        kernel.end,
        kernel.notes
    );
    // A guest of 120 MiB, a shim's share less than 128.
    let image_pages = image.len().div_ceil(4096) as u64;
    let ramdisk = vec![0x5a; 9_999_999];
    let case = Case {
        free: (120 << 8) - image_pages - 2442,
        image,
        ramdisk,
        seed: 0,
    };
    let began = Instant::now();
    let built = run(&case).expect("it fits into 120 MiB");
    println!("built in {:?}: {:x?}", began.elapsed(), built.start.layout);
    built.check(&case.image, &case.ramdisk);
}
