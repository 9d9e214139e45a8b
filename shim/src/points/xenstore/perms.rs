//! Permission lists: who may do what to a node.
//!
//! The first entry names the owner, who may do everything, and what everybody may do who is not
//! named further on; each further entry names one domain.  Domain 0 may always do everything.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use bitflags::bitflags;
use xen_abi::{DomId, Errno};

use super::limits::Limits;

bitflags! {
    /// What a domain may do to a node.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Rights: u8 {
        /// Read the value, the children and the permissions.
        const READ = 1;
        /// Change the value, make children, remove the node.
        const WRITE = 2;
        /// Change the permissions.
        const OWNER = 8;
    }
}

/// One entry.  The id is what a client sent, which need not be any domain's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Perm {
    /// The domain.
    pub id: i32,
    /// Its rights.
    pub rights: Rights,
}

/// A node's list; never empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Perms(Vec<Perm>);

impl Perms {
    /// Makes the list in which `owner` owns the node and `other`, if any, may read it.
    pub fn new(owner: DomId, other: Option<DomId>) -> Self {
        let entry = |domid: DomId, rights| Perm {
            id: i32::from(domid.0),
            rights,
        };
        let mut list = Vec::from([entry(owner, Rights::empty())]);
        list.extend(other.map(|domid| entry(domid, Rights::READ)));
        Self(list)
    }

    /// The owner's id.
    pub fn owner(&self) -> i32 {
        self.0[0].id
    }

    /// Returns the list that a node made below gets: the same, but owned by `owner` if given.
    pub fn inherited(&self, owner: Option<DomId>) -> Self {
        let mut list = self.0.clone();
        if let Some(owner) = owner {
            list[0].id = i32::from(owner.0);
        }
        Self(list)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Always false; here because [`len`](Self::len) is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What `domid` may do.
    pub fn rights(&self, domid: DomId) -> Rights {
        let id = i32::from(domid.0);
        // The owner's own entry is no limit: it says what everybody else may.
        if id == 0 || self.owner() == id {
            return Rights::all();
        }
        self.0[1..]
            .iter()
            .find(|perm| perm.id == id)
            .unwrap_or(&self.0[0])
            .rights
    }

    /// Parses `list`, strings each ending in NUL, sent by `caller`.
    pub fn parse(list: &[u8], caller: DomId, limits: &Limits) -> Result<Self, Errno> {
        let count = list.iter().filter(|byte| **byte == 0).count();
        if count == 0 {
            return Err(Errno::EINVAL);
        }
        if caller.0 != 0 && count > limits.perms {
            return Err(Errno::ENOSPC);
        }
        list.split(|byte| *byte == 0)
            .take(count)
            .map(parse_one)
            .collect::<Option<_>>()
            .map(Self)
            .ok_or(Errno::EINVAL)
    }

    /// The list as a reply carries it: strings each ending in NUL.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut text = String::new();
        for perm in &self.0 {
            let letter = match (
                perm.rights.contains(Rights::READ),
                perm.rights.contains(Rights::WRITE),
            ) {
                (false, false) => 'n',
                (true, false) => 'r',
                (false, true) => 'w',
                (true, true) => 'b',
            };
            // Formatting into a String cannot fail.
            let _ = write!(text, "{letter}{}\0", perm.id);
        }
        text.into_bytes()
    }
}

fn parse_one(text: &[u8]) -> Option<Perm> {
    let (letter, number) = text.split_first()?;
    let rights = match letter {
        b'n' => Rights::empty(),
        b'r' => Rights::READ,
        b'w' => Rights::WRITE,
        b'b' => Rights::READ | Rights::WRITE,
        _ => return None,
    };
    let (value, rest) = strtol(number, None);
    (!number.is_empty() && rest.is_empty()).then_some(Perm {
        id: truncate(value),
        rights,
    })
}

/// What C's `atoi` makes of a string.
pub fn atoi(text: &[u8]) -> i32 {
    truncate(strtol(text, Some(10)).0)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the daemon keeps the low 32 bits of what strtol returned"
)]
fn truncate(value: i64) -> i32 {
    value as i32
}

/// What C's `strtol` makes of a string: the number, and the part that it did not use.  Without a
/// `base` the number may be hexadecimal (`0x`) or octal (`0`).
fn strtol(text: &[u8], base: Option<u32>) -> (i64, &[u8]) {
    let blank = |byte: &&u8| byte.is_ascii_whitespace() || **byte == 0x0b;
    let mut rest = &text[text.iter().take_while(blank).count()..];
    let negative = rest.first() == Some(&b'-');
    if let Some(b'-' | b'+') = rest.first() {
        rest = &rest[1..];
    }
    let base = base.unwrap_or_else(|| match rest {
        [b'0', b'x' | b'X', digit, ..] if digit.is_ascii_hexdigit() => 16,
        [b'0', ..] => 8,
        _ => 10,
    });
    if base == 16 {
        rest = &rest[2..];
    }
    let digit = |byte: u8| char::from(byte).to_digit(base);
    let digits = rest
        .iter()
        .take_while(|byte| digit(**byte).is_some())
        .count();
    if digits == 0 {
        return (0, text);
    }
    let value = rest[..digits].iter().fold(0i64, |value, byte| {
        let digit = i64::from(digit(*byte).unwrap_or(0));
        let value = value.saturating_mul(i64::from(base));
        if negative {
            value.saturating_sub(digit)
        } else {
            value.saturating_add(digit)
        }
    });
    (value, &rest[digits..])
}

#[cfg(test)]
mod tests {
    use xen_abi::{DomId, Errno};

    use super::{Perms, Rights, atoi};
    use crate::points::xenstore::Limits;

    fn parse(list: &[u8]) -> Result<Perms, Errno> {
        Perms::parse(list, DomId(5), &Limits::default())
    }

    #[test]
    fn the_first_entry_is_owner_and_everybody_else() {
        let perms = parse(b"r5\0n7\0b8\0").expect("well formed");
        assert_eq!(perms.rights(DomId(5)), Rights::all());
        assert_eq!(perms.rights(DomId(0)), Rights::all());
        assert_eq!(perms.rights(DomId(6)), Rights::READ);
        assert_eq!(perms.rights(DomId(7)), Rights::empty());
        assert_eq!(perms.rights(DomId(8)), Rights::READ | Rights::WRITE);
        assert_eq!(perms.to_wire(), b"r5\0n7\0b8\0");
    }

    #[test]
    fn numbers_are_read_as_strtol_does() {
        for (text, wire) in [
            (&b"n0x10\0"[..], &b"n16\0"[..]),
            (b"n010\0", b"n8\0"),
            (b"n +7\0", b"n7\0"),
            (b"n-1\0", b"n-1\0"),
            (b"n4294967301\0", b"n5\0"),
            (b"n99999999999999999999\0", b"n-1\0"),
        ] {
            assert_eq!(parse(text).expect("accepted").to_wire(), wire, "{text:?}");
        }
        for bad in [
            &b"\0"[..],
            b"n\0",
            b"x5\0",
            b"n5x\0",
            b"n0x\0",
            b"nx\0",
            b"r5\0\0",
            b"r5",
        ] {
            assert_eq!(parse(bad), Err(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(atoi(b" 12abc"), 12);
        assert_eq!(atoi(b"0x12"), 0);
        assert_eq!(atoi(b"-3"), -3);
        assert_eq!(atoi(b""), 0);
    }

    #[test]
    fn a_guest_may_send_five_entries() {
        let list = b"r5\0".repeat(6);
        assert!(parse(&list[..15]).is_ok());
        assert_eq!(parse(&list), Err(Errno::ENOSPC));
        assert!(Perms::parse(&list, DomId(0), &Limits::default()).is_ok());
        // The number is checked before the form.
        assert_eq!(parse(&b"?\0".repeat(6)), Err(Errno::ENOSPC));
    }
}
