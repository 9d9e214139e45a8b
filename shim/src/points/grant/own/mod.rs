//! Map and unmap of grants that the guest made to itself: all that is left of these operations in a
//! world without other guests.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use xen_abi::grant::{EntryFlags, MapGrantRef, UnmapGrantRef, map_flags, status};
use xen_abi::{DomId, Mfn};

use super::{FrameHolds, GuestGrantTable};
use crate::heap;
use crate::mem::Frames;

/// Mappings that a guest may have at a time; Xen's own default is far larger, but nobody maps its
/// own grants in earnest.
const MAX_MAPPINGS: usize = 1024;

/// The page tables' part in mapping a grant for the CPU.
pub trait OwnMapper: FrameHolds {
    /// Makes the entry at (`flags` has `CONTAINS_PTE`), or the one that maps, `host_addr` map
    /// `frame`, on whose behalf a hold was taken; otherwise one of [`status`].
    fn map(&mut self, frame: Mfn, host_addr: u64, flags: u32) -> Result<(), i16>;
    /// Undoes a [`map`](Self::map) with the same arguments.
    fn unmap(&mut self, frame: Mfn, host_addr: u64, flags: u32) -> Result<(), i16>;
}

/// What the guest has mapped of its own grants.
#[derive(Debug, Default)]
pub(super) struct OwnMappings {
    /// By handle.
    mappings: Vec<Option<Mapping>>,
    /// By reference.
    pins: BTreeMap<u32, Pins>,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    reference: u32,
    /// What is left of the flags that it was made with.
    flags: u32,
}

#[derive(Clone, Copy, Debug)]
struct Pins {
    frame: Mfn,
    readers: u32,
    writers: u32,
}

impl OwnMappings {
    pub(super) fn is_pinned(&self, reference: u32) -> bool {
        self.pins.contains_key(&reference)
    }
}

const MAP_KINDS: u32 = map_flags::DEVICE_MAP | map_flags::HOST_MAP;

impl GuestGrantTable {
    /// `GNTTABOP_map_grant_ref`.
    pub fn map_grant_ref(
        &mut self,
        mem: &dyn Frames,
        mapper: &mut dyn OwnMapper,
        mut args: MapGrantRef,
    ) -> MapGrantRef {
        args.status = match self.try_map(mem, mapper, &args) {
            Ok((handle, frame)) => {
                args.handle = handle;
                args.dev_bus_addr = frame.addr();
                status::OKAY
            }
            Err(code) => code,
        };
        args
    }

    fn try_map(
        &mut self,
        mem: &dyn Frames,
        mapper: &mut dyn OwnMapper,
        args: &MapGrantRef,
    ) -> Result<(u32, Mfn), i16> {
        if args.flags & MAP_KINDS == 0 {
            return Err(status::BAD_GNTREF);
        }
        let write = args.flags & map_flags::READONLY == 0;
        // Unlike elsewhere, DOMID_SELF is no name for a domain here.
        match DomId(args.dom) {
            dom if dom == self.guest => {}
            // The backends' domain exists, but all it has is one frame of empty entries.
            dom if dom == self.backend && args.reference < 512 => {
                return Err(status::GENERAL_ERROR);
            }
            dom if dom == self.backend => return Err(status::BAD_GNTREF),
            _ => return Err(status::BAD_DOMAIN),
        }
        // Before anything is taken: from here on each refusal undoes what was done before it.
        let free = self.own.mappings.iter().position(Option::is_none);
        let handle = free.unwrap_or(self.own.mappings.len());
        if handle >= MAX_MAPPINGS || !heap::has_room() {
            return Err(status::NO_SPACE);
        }
        let frame = self.pin(mem, args.reference, write)?;

        // A hold beside the reference of the entry: the guest can change the entry by itself, and
        // the mapping still counts.
        if !mapper.hold(frame, write) {
            self.unpin(mem, args.reference, write);
            return Err(status::BAD_PAGE);
        }
        if args.flags & map_flags::HOST_MAP != 0
            && let Err(code) = mapper.map(frame, args.host_addr, args.flags)
        {
            mapper.release(frame, write);
            self.unpin(mem, args.reference, write);
            return Err(code);
        }
        let mapping = Some(Mapping {
            reference: args.reference,
            flags: args.flags,
        });
        match free {
            Some(slot) => self.own.mappings[slot] = mapping,
            None => self.own.mappings.push(mapping),
        }
        Ok((handle as u32, frame))
    }

    /// `GNTTABOP_unmap_grant_ref`.
    pub fn unmap_grant_ref(
        &mut self,
        mem: &dyn Frames,
        mapper: &mut dyn OwnMapper,
        mut args: UnmapGrantRef,
    ) -> UnmapGrantRef {
        args.status = match self.try_unmap(mem, mapper, &args) {
            Ok(()) => status::OKAY,
            Err(code) => code,
        };
        args
    }

    fn try_unmap(
        &mut self,
        mem: &dyn Frames,
        mapper: &mut dyn OwnMapper,
        args: &UnmapGrantRef,
    ) -> Result<(), i16> {
        let slot = args.handle as usize;
        let mapping = *self
            .own
            .mappings
            .get(slot)
            .and_then(Option::as_ref)
            .ok_or(status::BAD_HANDLE)?;
        let pins = *self
            .own
            .pins
            .get(&mapping.reference)
            .expect("a mapping pins its reference");
        let mut flags = mapping.flags;
        if args.dev_bus_addr != 0 && flags & map_flags::DEVICE_MAP != 0 {
            if args.dev_bus_addr != pins.frame.addr() {
                return Err(status::BAD_DEV_ADDR);
            }
            flags &= !map_flags::DEVICE_MAP;
        }
        if args.host_addr != 0 && flags & map_flags::HOST_MAP != 0 {
            // The flags that it was made with: which entry it is depends on them.
            mapper.unmap(pins.frame, args.host_addr, mapping.flags)?;
            flags &= !map_flags::HOST_MAP;
        }
        if flags & MAP_KINDS != 0 {
            self.own.mappings[slot] = Some(Mapping { flags, ..mapping });
            return Ok(());
        }
        let write = mapping.flags & map_flags::READONLY == 0;
        // The hold goes last: no entry of this mapping is left, and the translation is flushed.
        self.own.mappings[slot] = None;
        mapper.release(pins.frame, write);
        self.unpin(mem, mapping.reference, write);
        Ok(())
    }

    /// Checks an entry that the guest would have made for itself.
    pub(super) fn own_grant(
        &self,
        mem: &dyn Frames,
        reference: u32,
        write: bool,
        for_mapping: bool,
    ) -> Result<Mfn, i16> {
        let entry = self.entry(mem, reference).ok_or(status::BAD_GNTREF)?;
        let mut mask = EntryFlags::TYPE_MASK;
        if for_mapping {
            mask |= EntryFlags::SUB_PAGE;
        }
        if entry.flags & mask != EntryFlags::PERMIT_ACCESS
            || entry.domid != self.guest
            || (write && entry.flags.contains(EntryFlags::READONLY))
        {
            return Err(status::GENERAL_ERROR);
        }
        Ok(entry.frame)
    }

    /// Counts one more mapping of an entry, and shows it in the entry.
    fn pin(&mut self, mem: &dyn Frames, reference: u32, write: bool) -> Result<Mfn, i16> {
        let frame = match self.own.pins.get(&reference) {
            // An entry in use means what it meant when it was first mapped.
            Some(pins) if !write || pins.writers > 0 => pins.frame,
            Some(pins) => {
                let entry = self.entry(mem, reference).ok_or(status::BAD_GNTREF)?;
                if entry.flags.contains(EntryFlags::READONLY) {
                    return Err(status::GENERAL_ERROR);
                }
                pins.frame
            }
            None => self.own_grant(mem, reference, write, true)?,
        };
        let pins = self.own.pins.entry(reference).or_insert(Pins {
            frame,
            readers: 0,
            writers: 0,
        });
        if write {
            pins.writers += 1;
        } else {
            pins.readers += 1;
        }
        self.show_pins(mem, reference);
        Ok(frame)
    }

    fn unpin(&mut self, mem: &dyn Frames, reference: u32, write: bool) {
        let pins = self
            .own
            .pins
            .get_mut(&reference)
            .expect("a mapping pins its reference");
        if write {
            pins.writers -= 1;
        } else {
            pins.readers -= 1;
        }
        // While the pins are still there: a count that is 0 by now says which bit is to go.
        self.show_pins(mem, reference);
        self.own
            .pins
            .retain(|_, pins| pins.readers + pins.writers > 0);
    }

    /// Writes the "in use" bits of an entry.
    fn show_pins(&self, mem: &dyn Frames, reference: u32) {
        let (Some((frame, at)), Some(pins)) =
            (self.place(reference), self.own.pins.get(&reference))
        else {
            return;
        };
        let mut wanted = EntryFlags::empty();
        wanted.set(EntryFlags::READING, pins.readers + pins.writers > 0);
        wanted.set(EntryFlags::WRITING, pins.writers > 0);
        let both = (EntryFlags::READING | EntryFlags::WRITING).bits();
        // The guest may write here, too; it harms only itself, so a few attempts are enough.
        for _ in 0..5 {
            let old = mem.load16(frame, at);
            if mem.cas16(frame, at, old, old & !both | wanted.bits()) == old {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
