//! Whose an answer of the real store is: one namespace for everything that the points submit.

use super::{DeviceClass, DeviceId};
use crate::host::Tag;

/// Makes a tag that routes a reply of the real xenstored back to `device`; `detail` (32 bits) is
/// the device's own.
pub const fn device_tag(device: DeviceId, detail: u32) -> Tag {
    TagOwner::Device(device, detail).tag()
}

/// Who has submitted something, with what it has put into the tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagOwner {
    /// A device.
    Device(DeviceId, u32),
    /// The list of devices.
    Bus(u32),
    /// The first contents of the guest's store.
    Seed,
    /// The exchange between the guest's store and the real one.
    Mirror {
        /// What the submission is about.
        what: u8,
        /// Tells one attachment from another.
        epoch: u32,
    },
}

/// What the three bits on top of a tag say.  0 is nobody's, and with all of them set tags are those of the
/// connection to the store itself.
mod owner {
    pub const VBD: u64 = 1;
    pub const VIF: u64 = 2;
    pub const BUS: u64 = 3;
    pub const SEED: u64 = 4;
    pub const MIRROR: u64 = 5;
}

impl TagOwner {
    /// Makes the tag.
    pub const fn tag(self) -> Tag {
        let (owner, middle, detail) = match self {
            Self::Device(device, detail) => {
                let class = match device.class {
                    DeviceClass::Vbd => owner::VBD,
                    DeviceClass::Vif => owner::VIF,
                };
                (class, device.index & DeviceId::MAX_INDEX, detail)
            }
            Self::Bus(detail) => (owner::BUS, 0, detail),
            Self::Seed => (owner::SEED, 0, 0),
            Self::Mirror { what, epoch } => (owner::MIRROR, what as u32, epoch),
        };
        Tag(owner << 61 | (middle as u64) << 32 | detail as u64)
    }

    /// Takes a tag apart; `None` when none of the points has made it.
    pub const fn of(tag: Tag) -> Option<Self> {
        let middle = (tag.0 >> 32) as u32 & DeviceId::MAX_INDEX;
        let detail = tag.0 as u32;
        let class = match tag.0 >> 61 {
            owner::VBD => DeviceClass::Vbd,
            owner::VIF => DeviceClass::Vif,
            owner::BUS => return Some(Self::Bus(detail)),
            owner::SEED => return Some(Self::Seed),
            owner::MIRROR => {
                return Some(Self::Mirror {
                    what: middle as u8,
                    epoch: detail,
                });
            }
            _ => return None,
        };
        let id = DeviceId {
            class,
            index: middle,
        };
        Some(Self::Device(id, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::TagOwner;
    use crate::host::Tag;
    use crate::points::{DeviceClass, DeviceId};

    #[test]
    fn a_tag_names_its_owner_and_nobody_else() {
        let mut owners = vec![TagOwner::Seed];
        for detail in [0, 0xdead_beef, u32::MAX] {
            owners.push(TagOwner::Bus(detail));
            for class in [DeviceClass::Vbd, DeviceClass::Vif] {
                for index in [0, 51712, DeviceId::MAX_INDEX] {
                    owners.push(TagOwner::Device(DeviceId { class, index }, detail));
                }
            }
            for what in [0, 4, u8::MAX] {
                let epoch = detail;
                owners.push(TagOwner::Mirror { what, epoch });
            }
        }
        for owner in owners {
            assert_eq!(TagOwner::of(owner.tag()), Some(owner));
        }
        // Nobody's, and the connection's own.
        for tag in [0, 5, u64::MAX, u64::MAX - 1] {
            assert_eq!(TagOwner::of(Tag(tag)), None);
        }
    }
}
