//! A live domain as a source: its memory read while it runs, then what is left with the guest suspended,
//! then its state.
//!
//! | file | is |
//! |---|---|
//! | `live` | the source: its steps, in the order in which a job takes them |
//! | `precheck` | whether a domain can be migrated at all |
//! | `guest` | a domain's memory and which of it was written, through Xen |
//! | `reading` | what is under way with one: round after round |
//! | `bitmap` | a set of frames |
//! | `rounds` | the frames that there are, and one round over some of them |
//! | `policy` | whether another round pays: pure |
//! | `estimate` | how a guest behaves, for predictions |
//! | `suspend` | asks a domain to suspend itself, and takes that back |
//! | `records` | what is not memory |
//! | `source_marker` | says of a domain that it is a source, for whoever looks after a crash |
//! | `undo` | what an agent did to a domain, and so may undo |
//! | `resume` | resumes a guest that a killed save or send left suspended |
//!
//! All of it is for domains of type `pvh`: shims, whatever runs inside them.  Their frames are the guest's
//! machine frames, so nothing is rewritten, and no emulator has a state of its own.

mod bitmap;
mod estimate;
pub(crate) mod guest;
mod live;
pub(crate) mod policy;
mod precheck;
mod reading;
mod records;
mod resume;
mod rounds;
pub(crate) mod source_marker;
mod suspend;
mod undo;

use crate::job::Presence;
use crate::xen::state::DomainFlags;

pub(crate) use self::guest::{Bitmap, Memory, XenGuest};
pub(crate) use self::live::LiveSource;
pub(crate) use self::rounds::{SPECIAL, present};

/// What the toolstack puts behind the name of a domain that is coming.
pub(crate) const INCOMING: &str = "--incoming";
/// What stands behind the name of a copy that is whole and not handed over.  It is not to be unpaused by
/// somebody who sees a paused domain of a name that he knows: the guest would run twice.
pub(crate) const ARRIVED: &str = "--arrived";

/// If a domain of this name is one that the toolstack makes from a stream.
pub(crate) fn is_coming(name: &str) -> bool {
    name.ends_with(INCOMING)
}

/// Every name that a domain may have on its way to `name`, and that.
pub(crate) fn names_of(name: &str) -> [String; 4] {
    [
        name.to_owned(),
        format!("{name}{INCOMING}"),
        format!("{name}{ARRIVED}"),
        format!("{name}{ARRIVED}{INCOMING}"),
    ]
}

/// Where a domain with these flags stands.
pub(crate) fn presence(domain: DomainFlags) -> Presence {
    if domain.contains(DomainFlags::DYING) {
        Presence::Partial
    } else if domain.intersects(DomainFlags::SHUTDOWN | DomainFlags::PAUSED) {
        Presence::Paused
    } else {
        Presence::Running
    }
}
