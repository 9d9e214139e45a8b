//! What other tools put around a stream, told by its first bytes.
//!
//! A header that is known is passed over: libvirt's (`libxl_conf.h`: 64 bytes, then the domain as XML) and
//! xend's (`XendCheckpoint.py`: a signature, a length in network order, then the domain as an
//! S-expression).  Anything else that is known is named, with what makes a stream of it.

use std::io::Read;

use crate::error::Defect;
use crate::input::Input;
use crate::record::Fields;
use crate::xl::MAX_CONFIG;

const LIBVIRT: &[u8; 16] = b"libvirt-xml\n \0 \r";
const XEND: &[u8; 16] = b"LinuxGuestRecord";
/// Longest magic.
pub(crate) const MAGIC_MOST: usize = 16;

/// A header of another tool before a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Container {
    /// Whose it is: libvirt or xend.
    pub name: &'static str,
    /// Its bytes, with the domain's description.
    pub length: u64,
    /// A legacy stream follows.
    pub is_legacy: bool,
}

/// Magic, what it is of, and what is to be done.
const FOREIGN: [(&[u8], &str, &str); 14] = [
    (b"\xfd7zXZ\0", "packed by xz", "unpack it: xz -dc FILE >NEW"),
    (
        b"\x28\xb5\x2f\xfd",
        "packed by zstd",
        "unpack it: zstd -dc FILE >NEW",
    ),
    (
        b"\x04\x22\x4d\x18",
        "packed by lz4",
        "unpack it: lz4 -dc FILE >NEW",
    ),
    (
        b"\x89LZO\0\r\n\x1a\n",
        "packed by lzop",
        "unpack it: lzop -dc FILE >NEW",
    ),
    (
        b"LibvirtQemudSave",
        "a guest of QEMU's that libvirt saved, not of Xen's",
        "virsh restore FILE, on a host with QEMU",
    ),
    (
        b"LibvirtQemudPart",
        "a guest of QEMU's that libvirt has not saved to its end",
        "nothing can be made of it here",
    ),
    (
        b"QEVM",
        "a state of QEMU's machine, not a stream of Xen's",
        "QEMU reads it: -incoming",
    ),
    (
        b"XenSavedDomv2-\n",
        "a guest that XenServer's xenopsd saved",
        "xe vm-resume, on a host with XenServer or XCP-ng",
    ),
    (
        b"XenSavedDomain\n",
        "a guest that XenServer's xenopsd saved",
        "xe vm-resume, on a host with XenServer or XCP-ng",
    ),
    (
        b"\x7fELF",
        "an ELF file, as `xl dump-core` writes, not a saved guest",
        "crash reads it",
    ),
    (
        b"QFI\xfb",
        "a disk image of QEMU's, not a saved guest",
        "qemu-img info FILE tells more",
    ),
    (
        b"Remus",
        "of Remus as xend had it",
        "nothing can be made of it here",
    ),
    (
        b"<domain ",
        "a domain as XML, not a saved guest",
        "virsh create FILE",
    ),
    (
        b"(domain ",
        "a domain as xend wrote it, not a saved guest",
        "nothing can be made of it here",
    ),
];

impl Container {
    /// Looks what comes next, and passes over a header that is known.
    ///
    /// # Errors
    /// If it is of a tool whose files are not streams, with the name of it; or a header is damaged.
    pub(crate) fn pass<R: Read>(input: &mut Input<R>) -> Result<Option<Self>, Defect> {
        let start = input.offset();
        let first = input.peek(MAGIC_MOST)?;
        if first == LIBVIRT {
            let header: [u8; 64] = input.array()?;
            let mut fields = Fields(&header[LIBVIRT.len()..]);
            let (version, length) = (fields.u32(), fields.u32());
            let is_legacy = match version {
                1 => true,
                2 => false,
                other => return Err(Defect::Version(other)),
            };
            skip(input, length)?;
            return Ok(Some(Self {
                name: "libvirt",
                length: input.offset() - start,
                is_legacy,
            }));
        }
        if first == XEND {
            let _signature: [u8; 16] = input.array()?;
            let length = u32::from_be_bytes(input.array()?);
            skip(input, length)?;
            return Ok(Some(Self {
                name: "xend",
                length: input.offset() - start,
                is_legacy: true,
            }));
        }
        match foreign(first) {
            Some((what, way)) => Err(Defect::Foreign { what, way }),
            None => Ok(None),
        }
    }
}

/// The domain's description.
fn skip<R: Read>(input: &mut Input<R>, length: u32) -> Result<(), Defect> {
    if !(1..=MAX_CONFIG).contains(&length) {
        return Err(Defect::length(length, format!("from 1 to {MAX_CONFIG}")));
    }
    input.skip(length.into())
}

/// As [`foreign`], where xl's own header is expected and no other will do.
pub(crate) fn of_another(first: &[u8]) -> Option<(&'static str, &'static str)> {
    let way =
        "its description of the domain is not xl's; `unmoved stream convert` makes a stream of it";
    if first == LIBVIRT {
        return Some(("a guest that libvirt saved", "virsh restore FILE"));
    }
    if first == XEND {
        return Some(("a guest that xend saved", way));
    }
    foreign(first)
}

/// What begins so, and what is to be done with it.
fn foreign(first: &[u8]) -> Option<(&'static str, &'static str)> {
    if is_gzip(first) {
        return Some(("packed by gzip", "unpack it: gzip -dc FILE >NEW"));
    }
    if let [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, ..] = first {
        return Some(("packed by bzip2", "unpack it: bzip2 -dc FILE >NEW"));
    }
    let found = FOREIGN.iter().find(|(magic, ..)| first.starts_with(magic));
    found.map(|(_, what, way)| (*what, *way))
}

/// Its magic is short, and a legacy stream of a guest with 559,903 frames begins with it: what follows
/// there is no flag, level and system that gzip has.
fn is_gzip(first: &[u8]) -> bool {
    let [0x1f, 0x8b, 8, flags, _, _, _, _, level, system, ..] = first else {
        return false;
    };
    *flags < 0x20 && matches!(level, 0 | 2 | 4) && matches!(system, 0..=13 | 0xff)
}

#[cfg(test)]
mod tests {
    use super::{Container, is_gzip, of_another};
    use crate::input::Input;

    fn pass(bytes: &[u8]) -> Result<Option<Container>, String> {
        let mut input = Input::new(bytes);
        let passed = Container::pass(&mut input).map_err(|error| error.to_string())?;
        assert_eq!(input.offset(), passed.map_or(0, |passed| passed.length));
        Ok(passed)
    }

    /// As libvirt's driver writes it before the stream.
    fn libvirt(version: u32, length: u32) -> Vec<u8> {
        let mut bytes = b"libvirt-xml\n \0 \r".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.resize(64, 0);
        bytes.extend(b"<domain/>\0");
        bytes
    }

    #[test]
    fn headers_that_are_known_are_passed_over() {
        let found = pass(&libvirt(2, 10)).unwrap().unwrap();
        assert_eq!(
            (found.name, found.length, found.is_legacy),
            ("libvirt", 74, false)
        );
        assert!(pass(&libvirt(1, 10)).unwrap().unwrap().is_legacy);
        let found = pass(b"LinuxGuestRecord\0\0\0\x0a(domain ())")
            .unwrap()
            .unwrap();
        assert_eq!(
            (found.name, found.length, found.is_legacy),
            ("xend", 30, true)
        );
        assert_eq!(pass(b"Xen saved domain, xl"), Ok(None));
        assert_eq!(pass(b""), Ok(None));
    }

    #[test]
    fn a_header_that_cannot_be_is_refused() {
        assert!(pass(&libvirt(3, 10)).unwrap_err().contains("version 3"));
        assert!(pass(&libvirt(2, 0)).unwrap_err().contains("length"));
        assert!(pass(&libvirt(2, u32::MAX)).unwrap_err().contains("length"));
        assert!(pass(&libvirt(2, 11)).unwrap_err().contains("truncated"));
        assert!(
            pass(&libvirt(2, 10)[..30])
                .unwrap_err()
                .contains("truncated")
        );
        assert!(
            pass(b"LinuxGuestRecord\xff\xff\xff\xff")
                .unwrap_err()
                .contains("length")
        );
    }

    #[test]
    fn files_of_other_tools_are_named_with_what_to_do() {
        for (first, name, way) in [
            (
                &b"\x1f\x8b\x08\0\x97\x39\x0d\x6b\x02\xff\xed"[..],
                "gzip",
                "gzip -dc",
            ),
            (b"\x28\xb5\x2f\xfd\x64", "zstd", "zstd -dc"),
            (b"\xfd7zXZ\0\0\x04", "xz", "xz -dc"),
            (b"BZh91AY&SY", "bzip2", "bzip2 -dc"),
            (b"\x04\x22\x4d\x18\x64", "lz4", "lz4 -dc"),
            (b"\x89LZO\0\r\n\x1a\n", "lzop", "lzop -dc"),
            (b"LibvirtQemudSave\x02", "QEMU", "virsh restore"),
            (b"QEVM\0\0\0\x03", "QEMU", "-incoming"),
            (b"XenSavedDomv2-\n", "xenopsd", "xe vm-resume"),
            (b"\x7fELF\x02\x01", "core", "crash"),
        ] {
            let why = pass(first).unwrap_err();
            assert!(why.contains(name) && why.contains(way), "{why}");
            assert!(of_another(first).is_some());
        }
        assert!(
            of_another(&libvirt(2, 10)[..16])
                .unwrap()
                .1
                .contains("virsh")
        );
        assert!(of_another(b"LinuxGuestRecord").unwrap().0.contains("xend"));
        assert!(of_another(b"Xen saved domain").is_none());
    }

    /// 0x088b1f frames, of a 64-bit and of a 32-bit toolstack, and a PV guest's mark.
    #[test]
    fn a_legacy_stream_is_not_taken_for_gzip() {
        let mark = [0xff; 8];
        assert!(!is_gzip(&[&b"\x1f\x8b\x08\0\0\0\0\0"[..], &mark].concat()));
        assert!(!is_gzip(b"\x1f\x8b\x08\0\xff\xff\xff\xff\x38\x14\0\0vcpu"));
    }
}
