//! Copies between frames of the guest's own, named by number or by grant.

use xen_abi::grant::{COPY_DEST_GREF, COPY_SOURCE_GREF, CopyOp, CopyPtr, status};
use xen_abi::{DomId, Mfn, PAGE_SIZE};

use super::{FrameHolds, GuestGrantTable};
use crate::mem::Frames;

impl GuestGrantTable {
    /// `GNTTABOP_copy`.
    pub fn copy(&self, mem: &dyn Frames, holds: &mut dyn FrameHolds, mut args: CopyOp) -> CopyOp {
        args.status = match self.try_copy(mem, holds, &args) {
            Ok(()) => status::OKAY,
            Err(code) => code,
        };
        args
    }

    fn try_copy(
        &self,
        mem: &dyn Frames,
        holds: &mut dyn FrameHolds,
        args: &CopyOp,
    ) -> Result<(), i16> {
        let len = usize::from(args.len);
        if len == 0 {
            return Ok(());
        }
        let from_ref = args.flags & COPY_SOURCE_GREF != 0;
        let to_ref = args.flags & COPY_DEST_GREF != 0;
        self.copy_domain(&args.source, from_ref)?;
        self.copy_domain(&args.dest, to_ref)?;

        let from = self.copy_side(mem, holds, &args.source, from_ref, false)?;
        let to = match self.copy_side(mem, holds, &args.dest, to_ref, true) {
            Ok(frame) => frame,
            Err(code) => {
                holds.release(from, false);
                return Err(code);
            }
        };
        let (start, end) = (
            usize::from(args.source.offset),
            usize::from(args.dest.offset),
        );
        // Bounds last, as in Xen: a bad frame or reference is reported before a bad length.
        let result = if start + len > PAGE_SIZE || end + len > PAGE_SIZE {
            Err(status::BAD_COPY_ARG)
        } else {
            // By way of a buffer of ours: both sides may lie in one frame, and overlap.
            let mut bytes = [0; PAGE_SIZE];
            mem.read(from, start, &mut bytes[..len]);
            mem.write(to, end, &bytes[..len]);
            Ok(())
        };
        holds.release(from, false);
        holds.release(to, true);
        result
    }

    fn copy_domain(&self, side: &CopyPtr, by_ref: bool) -> Result<(), i16> {
        match DomId(side.domid) {
            DomId::SELF => Ok(()),
            _ if !by_ref => Err(status::PERMISSION_DENIED),
            dom if dom == self.guest || dom == self.backend => Ok(()),
            _ => Err(status::BAD_DOMAIN),
        }
    }

    /// Finds and holds the frame of one side of a copy.
    fn copy_side(
        &self,
        mem: &dyn Frames,
        holds: &mut dyn FrameHolds,
        side: &CopyPtr,
        by_ref: bool,
        write: bool,
    ) -> Result<Mfn, i16> {
        let frame = if by_ref {
            let reference = side.frame_or_ref as u32;
            if DomId(side.domid) == self.backend {
                return Err(match reference {
                    0..512 => status::GENERAL_ERROR,
                    _ => status::BAD_GNTREF,
                });
            }
            self.own_grant(mem, reference, write, false)?
        } else {
            Mfn(side.frame_or_ref)
        };
        if holds.hold(frame, write) {
            Ok(frame)
        } else if write && holds.hold(frame, false) {
            // The guest's, but a page table.
            holds.release(frame, false);
            Err(status::GENERAL_ERROR)
        } else {
            Err(status::BAD_PAGE)
        }
    }
}
