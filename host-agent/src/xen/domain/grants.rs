//! Finds the frames that other domains may write, by reading a domain's grant table from outside.
//!
//! What a backend writes through a mapped grant is not tracked until it unmaps the grant
//! (`gnttab_mark_dirty`, in `xen/common/grant_table.c`), and it unmaps a ring only when the device is closed.

use xen_abi::grant::{EntryFlags, GetVersion, QuerySize, op, status};
use xen_abi::hypercall;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Domain;
use crate::job::{Error, PAGE_SIZE, Result};
use crate::xen::sys::Argument;

/// `XENMEM_resource_grant_table`, and its part with the entries (`XENMEM_resource_grant_table_id_shared`).
const GRANT_TABLE: u32 = 1;
const SHARED: u32 = 0;

impl Domain<'_> {
    /// The frames that the domain has currently granted for writing.  The domain writes the numbers itself,
    /// so one may not be a frame of its own.
    ///
    /// # Errors
    /// If Xen or the kernel does not give access to the table.
    pub(crate) fn granted_for_writing(&self) -> Result<Vec<u64>> {
        let failed = |error| self.failed("map the grant table of", &error);
        let mut size = QuerySize {
            dom: self.domid,
            ..QuerySize::default()
        };
        self.grant_op(op::QUERY_SIZE, &mut size).map_err(failed)?;
        if size.status != status::OKAY {
            return Err(Error::Xen(format!(
                "cannot get the size of the grant table of domain {}: status {}",
                self.domid, size.status
            )));
        }
        let mut version = GetVersion {
            dom: self.domid,
            ..GetVersion::default()
        };
        self.grant_op(op::GET_VERSION, &mut version)
            .map_err(failed)?;
        let mut granted = Vec::new();
        let mut table = vec![0; PAGE_SIZE];
        // Not beyond the end: Xen would add a frame.
        for index in 0..size.nr_frames {
            let privcmd = &self.xen.shared.privcmd;
            let frame = privcmd
                .map_resource(self.domid, GRANT_TABLE, SHARED, index)
                .map_err(failed)?;
            frame.read(0, &mut table);
            granted.extend(writable(&table, version.version));
        }
        Ok(granted)
    }

    fn grant_op<T>(&self, op: u64, body: &mut T) -> std::io::Result<()>
    where
        T: IntoBytes + FromBytes + Immutable + KnownLayout,
    {
        let mut buffer = self.xen.shared.arguments.lock();
        buffer.write(0, body.as_bytes());
        let arguments = [
            Argument::Value(op),
            Argument::Structure(&mut buffer, &mut []),
            Argument::Value(1),
        ];
        let privcmd = &self.xen.shared.privcmd;
        privcmd.call(hypercall::GRANT_TABLE_OP, arguments)?;
        buffer.read(0, body.as_mut_bytes());
        Ok(())
    }
}

/// The frames that one frame of a grant table of this version grants for writing.
fn writable(table: &[u8], version: u32) -> impl Iterator<Item = u64> {
    // Bytes of an entry; both versions begin with flags and domain.  A frame's number is four bytes in the
    // first, and eight in the second, behind what only a part of a frame needs.
    let (entry, frame) = if version == 2 { (16, 8..16) } else { (8, 4..8) };
    table.chunks_exact(entry).filter_map(move |entry| {
        let flags = EntryFlags::from_bits_retain(u16::from_le_bytes([entry[0], entry[1]]));
        // In version 2, transitive grants count too (both bits of the type).
        let is_given = flags.contains(EntryFlags::PERMIT_ACCESS)
            && !flags.contains(EntryFlags::READONLY)
            && (version == 2 || !flags.contains(EntryFlags::ACCEPT_TRANSFER));
        // Also one that has been revoked and is still in use.
        if !is_given && !flags.contains(EntryFlags::WRITING) {
            return None;
        }
        let bytes = entry[frame.clone()].iter().rev();
        Some(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    })
}

#[cfg(test)]
mod tests {
    use super::writable;

    #[test]
    fn frames_that_others_may_write_are_found() {
        let entry = |flags: u16, frame: u32| {
            let mut entry = flags.to_le_bytes().to_vec();
            entry.extend([0, 0]);
            entry.extend(frame.to_le_bytes());
            entry
        };
        let table = [
            entry(0, 1),
            entry(1, 0x102),
            entry(1 | 4, 3),
            entry(1 | 4 | 8, 4),
            entry(1 | 8 | 16, 5),
            entry(16, 6),
            entry(2, 7),
        ]
        .concat();
        assert_eq!(writable(&table, 1).collect::<Vec<_>>(), [0x102, 5, 6]);
        let entry = |flags: u16, frame: u64| {
            let mut entry = flags.to_le_bytes().to_vec();
            entry.extend([9; 6]);
            entry.extend(frame.to_le_bytes());
            entry
        };
        let table = [entry(0, 1), entry(1, 1 << 40), entry(1 | 4, 3), entry(3, 4)].concat();
        assert_eq!(writable(&table, 2).collect::<Vec<_>>(), [1 << 40, 4]);
    }
}
