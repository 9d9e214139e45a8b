//! The body of a legacy stream: pages, and what was added over the years under negative numbers.

use std::io::{Read, Write};

use crate::error::{Defect, Error};
use crate::legacy::source::Source;
use crate::legacy::{Rest, toolstack};
use crate::libxc::{self, DomainType, HvmParam, MAX_BATCH, PageEntry, TscInfo};

/// The highest vCPU number that a legacy stream may have.
const MAX_VCPU: u32 = 4095;
/// More parameters than this are not converted; there are about a dozen.
const MAX_PARAMS: usize = 256;
/// The entry that senders wrote for frames they could not map.
const NO_FRAME: u64 = 0xf000_0000;

/// What was found in the body.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// vCPUs whose state is in the tail.
    pub(super) vcpus: Vec<u32>,
    pub(super) rest: Rest,
}

/// Declares the numbers of chunks beside their names (`XC_SAVE_ID_*`, without the prefix).
macro_rules! chunks {
    ($($name:ident = $value:expr;)*) => {
        $(const $name: i32 = $value;)*

        /// The name of a chunk, for messages.
        fn name(number: i32) -> &'static str {
            match number {
                $($name => stringify!($name),)*
                1.. => "pages",
                _ => "unknown",
            }
        }
    };
}

chunks! {
    END = 0;
    ENABLE_VERIFY_MODE = -1;
    VCPU_INFO = -2;
    HVM_IDENT_PT = -3;
    HVM_VM86_TSS = -4;
    TMEM = -5;
    TMEM_EXTRA = -6;
    TSC_INFO = -7;
    HVM_CONSOLE_PFN = -8;
    LAST_CHECKPOINT = -9;
    HVM_ACPI_IOPORTS_LOCATION = -10;
    HVM_VIRIDIAN = -11;
    COMPRESSED_DATA = -12;
    ENABLE_COMPRESSION = -13;
    HVM_GENERATION_ID_ADDR = -14;
    HVM_PAGING_RING_PFN = -15;
    HVM_MONITOR_RING_PFN = -16;
    HVM_SHARING_RING_PFN = -17;
    TOOLSTACK = -18;
    HVM_IOREQ_SERVER_PFN = -19;
    HVM_NR_IOREQ_SERVER_PAGES = -20;
}

/// The parameter (`HVM_PARAM_*`) that a chunk tells.
fn hvm_param(number: i32) -> Option<u64> {
    Some(match number {
        HVM_IDENT_PT => 12,
        HVM_VM86_TSS => 15,
        HVM_CONSOLE_PFN => 17,
        HVM_ACPI_IOPORTS_LOCATION => 19,
        HVM_VIRIDIAN => 9,
        HVM_GENERATION_ID_ADDR => 34,
        HVM_PAGING_RING_PFN => 27,
        HVM_MONITOR_RING_PFN => 28,
        HVM_SHARING_RING_PFN => 29,
        HVM_IOREQ_SERVER_PFN => 32,
        HVM_NR_IOREQ_SERVER_PAGES => 33,
        _ => return None,
    })
}

/// Converts all chunks.
pub(super) fn chunks<R: Read, W: Write>(
    source: &mut Source<R>,
    out: &mut libxc::Writer<W>,
    guest: DomainType,
) -> Result<Found, Error> {
    let mut found = Found::default();
    let mut params = Vec::new();
    let mut entries = Vec::with_capacity(MAX_BATCH);
    loop {
        let number = source.part("number of a chunk", |s| Ok(i32::from_le_bytes(s.array()?)))?;
        match number {
            END => break,
            1.. => {
                source.part("pages", |source| {
                    read_entries(source, number.unsigned_abs(), &mut entries)
                })?;
                found.rest.frames += entries.len() as u64;
                pages(source, out, &entries)?;
            }
            TSC_INFO => {
                let info = source.part(name(number), read_tsc)?;
                out.tsc_info(info)?;
            }
            _ => source.part(name(number), |source| {
                other(source, number, guest, &mut found, &mut params)
            })?,
        }
        source.next_chunk();
    }
    out.hvm_params(&params)?;
    Ok(found)
}

fn other<R: Read>(
    source: &mut Source<R>,
    number: i32,
    guest: DomainType,
    found: &mut Found,
    params: &mut Vec<HvmParam>,
) -> Result<(), Defect> {
    if let Some(index) = hvm_param(number) {
        if guest == DomainType::Pv {
            return Err(Defect::Order("this is the stream of a PV guest"));
        }
        if params.len() == MAX_PARAMS {
            return Err(Defect::Unsupported("there are too many parameters"));
        }
        let _padding = source.u32()?;
        let value = source.u64()?;
        params.push(HvmParam { index, value });
        return Ok(());
    }
    match number {
        // Pages are compared from here on, or: this was the last checkpoint.  Nothing to convert.
        ENABLE_VERIFY_MODE | LAST_CHECKPOINT => Ok(()),
        VCPU_INFO => {
            if !found.vcpus.is_empty() {
                return Err(Defect::Order("there has been one"));
            }
            found.vcpus = read_vcpus(source)?;
            Ok(())
        }
        TOOLSTACK => toolstack::read(source, &mut found.rest.xenstore),
        TMEM | TMEM_EXTRA => Err(Defect::Unsupported(
            "the guest used transcendent memory (tmem), which Xen does not have any more",
        )),
        COMPRESSED_DATA | ENABLE_COMPRESSION => Err(Defect::Unsupported(
            "the pages are compressed (Remus), which is not supported",
        )),
        _ => Err(Defect::Value {
            field: "the number of a chunk, which is negative: minus it",
            value: number.unsigned_abs().into(),
        }),
    }
}

/// Reads the entries of a batch.
fn read_entries<R: Read>(
    source: &mut Source<R>,
    count: u32,
    entries: &mut Vec<PageEntry>,
) -> Result<(), Defect> {
    if count as usize > MAX_BATCH {
        return Err(Defect::length(count, format!("at most {MAX_BATCH}")));
    }
    entries.clear();
    let mut index = 0;
    source.words(count.into(), |words| {
        for word in words {
            if word != NO_FRAME {
                if word > u32::MAX.into() {
                    return Err(Defect::Reserved {
                        field: "a page entry",
                        value: word,
                    });
                }
                // Type in bits 31 to 28, frame in bits 27 to 0.
                let raw = (word & 0xf000_0000) << 32 | word & 0x0fff_ffff;
                entries.push(PageEntry::decode(raw, index, true)?);
            }
            index += 1;
        }
        Ok(())
    })?;
    match duplicate(entries) {
        Some(entry) => Err(Defect::Duplicate(entry.pfn())),
        None => Ok(()),
    }
}

/// An entry that is there twice, if there is one.
fn duplicate(entries: &[PageEntry]) -> Option<PageEntry> {
    if entries.is_sorted_by_key(|entry| entry.raw()) && entries.windows(2).all(|w| w[0] != w[1]) {
        return None;
    }
    let mut sorted: Vec<u64> = entries.iter().map(|entry| entry.raw()).collect();
    sorted.sort_unstable();
    let twice = sorted.windows(2).find(|w| w[0] == w[1])?[0];
    entries.iter().copied().find(|entry| entry.raw() == twice)
}

/// Passes the contents of a batch through.
fn pages<R: Read, W: Write>(
    source: &mut Source<R>,
    out: &mut libxc::Writer<W>,
    entries: &[PageEntry],
) -> Result<(), Error> {
    // A record of no frames is not allowed.
    if entries.is_empty() {
        return Ok(());
    }
    let mut sink = out.begin_page_data(entries)?;
    source.part("pages", |source| source.copy(sink.left() as u64, &mut sink))?;
    sink.finish()
}

fn read_tsc<R: Read>(source: &mut Source<R>) -> Result<TscInfo, Defect> {
    Ok(TscInfo {
        mode: source.u32()?,
        elapsed_ns: source.u64()?,
        khz: source.u32()?,
        incarnation: source.u32()?,
    })
}

/// Reads the highest vCPU number and a bitmap of those that are there.
fn read_vcpus<R: Read>(source: &mut Source<R>) -> Result<Vec<u32>, Defect> {
    let highest = source.u32()?;
    if highest > MAX_VCPU {
        return Err(Defect::Value {
            field: "the highest vCPU",
            value: highest.into(),
        });
    }
    let mut vcpus = Vec::new();
    for word in 0..=highest / 64 {
        let bits = source.u64()?;
        vcpus.extend(
            (0..64)
                .filter(|bit| bits >> bit & 1 != 0)
                .map(|bit| 64 * word + bit),
        );
    }
    match vcpus.last() {
        Some(last) if *last > highest => Err(Defect::Value {
            field: "a vCPU beyond the highest one",
            value: (*last).into(),
        }),
        _ => Ok(vcpus),
    }
}

#[cfg(test)]
mod tests {
    use super::{duplicate, hvm_param, name, read_vcpus};
    use crate::input::Input;
    use crate::legacy::Width;
    use crate::legacy::source::Source;
    use crate::libxc::{PageEntry, PageType};

    #[test]
    fn parameters_have_the_numbers_of_the_interface() {
        let numbers: Vec<u64> = (-21..=0).rev().filter_map(hvm_param).collect();
        assert_eq!(numbers, [12, 15, 17, 19, 9, 34, 27, 28, 29, 32, 33]);
        assert_eq!(name(-12), "COMPRESSED_DATA");
    }

    #[test]
    fn a_frame_that_is_there_twice_is_found() {
        let entries = |pfns: &[u64]| -> Vec<PageEntry> {
            pfns.iter()
                .map(|pfn| PageEntry::new(*pfn, PageType::NORMAL).unwrap())
                .collect()
        };
        assert_eq!(duplicate(&entries(&[1, 2, 3])), None);
        assert_eq!(duplicate(&entries(&[3, 1, 2])), None);
        assert_eq!(duplicate(&entries(&[3, 1, 3])).unwrap().pfn(), 3);
        assert_eq!(duplicate(&entries(&[1, 1])).unwrap().pfn(), 1);
    }

    #[test]
    fn vcpus_are_those_of_the_bitmap() {
        let read = |highest: u32, words: &[u64]| {
            let mut bytes = highest.to_le_bytes().to_vec();
            words.iter().for_each(|w| bytes.extend(w.to_le_bytes()));
            read_vcpus(&mut Source::new(Input::new(&bytes[..]), Width::Bits64))
        };
        assert_eq!(read(65, &[1 << 63 | 1, 2]).unwrap(), [0, 63, 65]);
        assert!(read(3, &[1 << 4]).is_err());
        assert!(read(4096, &[0; 65]).is_err());
        assert!(read(u32::MAX, &[]).is_err());
    }
}
