//! Fields of libxl records, checked against their length.

use crate::error::Defect;
use crate::libxl::RecordType;
use crate::record::{Fields, RecordHeader};

/// As many bytes of a body are needed to check it.
pub(crate) const PREFIX: usize = 8;

/// Which device model a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Emulator {
    /// Not known, since the stream was converted.
    Unknown,
    /// The QEMU that Xen forked long ago; Xen 4.21 does not have it any more.
    QemuTraditional,
    /// QEMU.
    QemuUpstream,
}

impl Emulator {
    /// The number in the stream (`emulator_id`).
    #[must_use]
    pub fn id(self) -> u32 {
        match self {
            Self::Unknown => 0,
            Self::QemuTraditional => 1,
            Self::QemuUpstream => 2,
        }
    }

    fn from_id(id: u32) -> Result<Self, Defect> {
        Ok(match id {
            0 => Self::Unknown,
            1 => Self::QemuTraditional,
            2 => Self::QemuUpstream,
            _ => {
                return Err(Defect::Value {
                    field: "the emulator's id",
                    value: id.into(),
                });
            }
        })
    }
}

/// Where one end of a COLO pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CheckpointState {
    /// The primary asks for a new checkpoint.
    New,
    /// The secondary's guest is suspended.
    Suspended,
    /// The secondary is ready.
    Ready,
    /// The secondary's guest runs.
    Resumed,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The end.
    End,
    /// A libxc stream follows.
    LibxcContext,
    /// Pairs of NUL-terminated strings follow the fields.
    XenstoreData {
        /// Whose.
        emulator: Emulator,
        /// Which of the domain's emulators.
        index: u32,
    },
    /// The emulator's blob follows the fields.
    EmulatorContext {
        /// Whose.
        emulator: Emulator,
        /// Which of the domain's emulators.
        index: u32,
    },
    /// Back to libxc.
    CheckpointEnd,
    /// COLO.
    CheckpointState(CheckpointState),
    /// An optional record that is not known here.
    Optional,
}

/// Reads a record's fields from the first bytes of its body and checks its length against them.
pub(crate) fn parse(header: RecordHeader, prefix: &[u8]) -> Result<Content, Defect> {
    let length = header.length;
    let mut fields = Fields(prefix);
    let empty = |content| match length {
        0 => Ok(content),
        _ => Err(Defect::length(length, "0")),
    };
    let at_least = |least: u32| match length {
        _ if length >= least => Ok(()),
        _ => Err(Defect::length(length, format!("at least {least}"))),
    };
    Ok(match RecordType(header.kind) {
        RecordType::END => empty(Content::End)?,
        RecordType::LIBXC_CONTEXT => empty(Content::LibxcContext)?,
        RecordType::EMULATOR_XENSTORE_DATA => {
            at_least(8)?;
            Content::XenstoreData {
                emulator: Emulator::from_id(fields.u32())?,
                index: fields.u32(),
            }
        }
        RecordType::EMULATOR_CONTEXT => {
            at_least(8)?;
            Content::EmulatorContext {
                emulator: Emulator::from_id(fields.u32())?,
                index: fields.u32(),
            }
        }
        RecordType::CHECKPOINT_END => empty(Content::CheckpointEnd)?,
        RecordType::CHECKPOINT_STATE => {
            // Four bytes and padding by the specification, eight by its drawing.
            at_least(4)?;
            Content::CheckpointState(match fields.u32() {
                0 => CheckpointState::New,
                1 => CheckpointState::Suspended,
                2 => CheckpointState::Ready,
                3 => CheckpointState::Resumed,
                other => {
                    return Err(Defect::Value {
                        field: "the checkpoint state",
                        value: other.into(),
                    });
                }
            })
        }
        kind if kind.is_optional() => Content::Optional,
        kind => return Err(Defect::UnknownRecord(kind.0)),
    })
}

/// Checks the strings of EMULATOR_XENSTORE_DATA: key, value, key, value, each with its NUL.
pub(crate) fn check_xenstore(strings: &[u8]) -> Result<(), Defect> {
    let Some((last, text)) = strings.split_last() else {
        return Ok(());
    };
    if *last != 0 {
        return Err(Defect::Text("the last string does not end with a NUL"));
    }
    let mut count = 0u64;
    for string in text.split(|byte| *byte == 0) {
        let is_key = count.is_multiple_of(2);
        if is_key && (string.is_empty() || !string.iter().copied().all(may_be_in_key)) {
            return Err(Defect::Text(
                "a key is empty or has characters that xenstore does not allow",
            ));
        }
        count += 1;
    }
    if !count.is_multiple_of(2) {
        return Err(Defect::Text("the last key has no value"));
    }
    Ok(())
}

fn may_be_in_key(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::{CheckpointState, Content, Emulator, check_xenstore, parse};
    use crate::record::RecordHeader;

    #[test]
    fn literal_bytes() {
        let header = |kind, length| RecordHeader { kind, length };
        let context = parse(header(3, 9), &[2, 0, 0, 0, 1, 0, 0, 0]).unwrap();
        let expected = Content::EmulatorContext {
            emulator: Emulator::QemuUpstream,
            index: 1,
        };
        assert_eq!(context, expected);
        let state = parse(header(5, 4), &[3, 0, 0, 0]).unwrap();
        assert_eq!(state, Content::CheckpointState(CheckpointState::Resumed));
        assert_eq!(
            parse(header(0x8000_0000, 1), &[7]).unwrap(),
            Content::Optional
        );
        let wrong = |kind, length, bytes: &[u8]| {
            parse(header(kind, length), bytes).unwrap_err().to_string()
        };
        assert!(wrong(1, 1, &[0]).contains("must be 0"));
        assert!(wrong(2, 8, &[3, 0, 0, 0, 0, 0, 0, 0]).contains("emulator's id"));
        assert!(wrong(3, 7, &[0; 7]).contains("at least 8"));
        assert!(wrong(5, 8, &[4, 0, 0, 0, 0, 0, 0, 0]).contains("checkpoint state"));
        assert!(wrong(6, 0, &[]).contains("type 0x00000006 is not known"));
    }

    #[test]
    fn strings_come_in_pairs() {
        assert!(check_xenstore(b"").is_ok());
        assert!(check_xenstore(b"physmap/1f0/start_addr\0f0\0physmap/1f0/name\0\0").is_ok());
        let wrong = |text| check_xenstore(text).unwrap_err().to_string();
        assert!(wrong(b"a\0b").contains("NUL"));
        assert!(wrong(b"a\0b\0c\0").contains("no value"));
        assert!(wrong(b"\0").contains("key"));
        assert!(wrong(b"a b\0c\0").contains("xenstore does not allow"));
    }
}
