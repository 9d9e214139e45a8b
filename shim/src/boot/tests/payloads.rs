//! Kernel files of all kinds are recognised and unpacked, or refused by name.

use super::synthetic::bzimage;
use crate::boot::payload::{Format, Packed, Payload, PayloadError};

/// `"\x7fELF" + 300 * "unmoved "`, compressed by the tools that the kernel build uses.
mod sample {
    include!("samples.rs");
}

fn image() -> Vec<u8> {
    [b"\x7fELF".as_slice(), &b"unmoved ".repeat(300)].concat()
}

fn packed(file: &[u8]) -> Packed<'_> {
    match Payload::recognise(file) {
        Ok(Payload::Packed(packed)) => packed,
        other => panic!("{other:?}"),
    }
}

/// Appends what the kernel build does.
fn with_length(data: &[u8]) -> Vec<u8> {
    [data, &(image().len() as u32).to_le_bytes()].concat()
}

/// One payload of each supported format, as it is in a bzImage.
pub(super) fn samples() -> [Vec<u8>; 4] {
    [
        sample::GZIP.to_vec(),
        with_length(sample::XZ),
        with_length(sample::ZSTD),
        with_length(sample::LZ4),
    ]
}

#[test]
fn every_supported_compression_unpacks() {
    let formats = [Format::Gzip, Format::Xz, Format::Zstd, Format::Lz4];
    for (format, payload) in formats.into_iter().zip(samples()) {
        let file = bzimage(&payload);
        let packed = packed(&file);
        assert_eq!(
            (packed.format(), packed.unpacked_len()),
            (format, image().len())
        );
        let mut out = vec![0xaa; image().len() + 10];
        assert_eq!(
            packed.unpack(&mut out).map(|out| out.to_vec()),
            Ok(image()),
            "{format}"
        );
        assert!(out[image().len()..].iter().all(|&byte| byte == 0xaa));
        let small = packed.unpack(&mut out[..100]).map(|_| ());
        assert_eq!(small, Err(PayloadError::BufferTooSmall));
        assert!(
            packed.heap_needed() < 64 << 20,
            "{format}: {}",
            packed.heap_needed()
        );
    }
}

#[test]
fn a_length_that_lies_is_noticed() {
    for data in [sample::XZ, sample::ZSTD, sample::LZ4] {
        for claimed in [image().len() - 1, image().len() + 1] {
            let payload = [data, &(claimed as u32).to_le_bytes()].concat();
            let file = bzimage(&payload);
            let mut out = vec![0; claimed];
            assert!(packed(&file).unpack(&mut out).is_err());
        }
        for claimed in [0, u32::MAX] {
            let file = bzimage(&[data, &claimed.to_le_bytes()].concat());
            let refused = Payload::recognise(&file).map(|_| ());
            assert_eq!(refused, Err(PayloadError::BadLength(claimed as usize)));
        }
    }
}

#[test]
fn a_flipped_bit_in_checked_formats_is_noticed() {
    for data in [sample::GZIP.to_vec(), with_length(sample::XZ)] {
        let mut file = bzimage(&data);
        let at = file.len() - 77 - data.len() / 2;
        file[at] ^= 0x10;
        let packed = packed(&file);
        assert!(packed.unpack(&mut vec![0; packed.unpacked_len()]).is_err());
    }
}

#[test]
fn an_image_needs_no_unpacking() {
    let image = image();
    assert!(matches!(Payload::recognise(&image), Ok(Payload::Elf(elf)) if elf == image));
    let file = bzimage(&image);
    assert!(matches!(Payload::recognise(&file), Ok(Payload::Elf(elf)) if elf == image));
    assert_eq!(packed(sample::GZIP).unpacked_len(), image.len());
}

#[test]
fn other_files_are_refused_by_name() {
    let refused = |file: &[u8]| Payload::recognise(file).map(|_| ()).unwrap_err();
    assert_eq!(refused(b""), PayloadError::NotAKernel);
    assert_eq!(refused(&[0; 5000]), PayloadError::NotAKernel);
    let with = |start: &[u8]| refused(&bzimage(&[start, &[0; 60]].concat()));
    assert_eq!(with(b"BZh91AY"), PayloadError::Unsupported(Format::Bzip2));
    assert_eq!(
        with(&[0x5d, 0, 0, 0, 4]),
        PayloadError::Unsupported(Format::Lzma)
    );
    assert_eq!(
        with(b"\x89LZO\0\r\n"),
        PayloadError::Unsupported(Format::Lzo)
    );
    assert_eq!(with(b"hello"), PayloadError::Unknown(*b"hell"));
    assert!(
        PayloadError::Unsupported(Format::Bzip2)
            .to_string()
            .contains("bzip2")
    );

    let good = bzimage(&with_length(sample::XZ));
    let mut old = good.clone();
    old[0x206..0x208].copy_from_slice(&[7, 2]);
    assert_eq!(refused(&old), PayloadError::TooOld { protocol: 0x207 });
    assert_eq!(refused(&good[..good.len() - 78]), PayloadError::Truncated);
    let mut far = good.clone();
    far[0x248..0x250].fill(0xff);
    assert_eq!(refused(&far), PayloadError::Truncated);
    assert_eq!(refused(&bzimage(&[])), PayloadError::Truncated);
}
