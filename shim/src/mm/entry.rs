//! What a single page-table entry of the guest may contain, and what becomes of it.
//!
//! Kernel and processes of a PV guest both run in ring 3, so every entry must let ring 3 in; the
//! software bit [`Pte::GUEST_KERNEL`] keeps what the guest meant.  Pages of processes are global so
//! that they survive the switches between the guest's kernel and user tables; kernel pages never
//! are, or a process could reach them after the switch.  Only *present* entries come here: all
//! others are the guest's own data.

use xen_abi::Errno;
use xen_abi::mmu::{Level, Pte};

const TABLE_ALLOWED: u64 = Pte::PRESENT
    | Pte::RW
    | Pte::USER
    | Pte::ACCESSED
    | Pte::DIRTY
    | Pte::AVAIL
    | Pte::AVAIL_HIGH
    | Pte::NX
    | Pte::FRAME;
const L1_ALLOWED: u64 = TABLE_ALLOWED | Pte::GLOBAL;

/// Checks the bits of a present L1 entry and returns it as it has to stand in memory.
///
/// # Errors
/// `EINVAL` for caching attributes and other bits that a guest without devices may not set.
#[inline]
pub const fn adjust_l1(pte: Pte) -> Result<Pte, Errno> {
    if pte.0 & !L1_ALLOWED != 0 {
        return Err(Errno::EINVAL);
    }
    // The guest may write back what it has read, and then USER is set on a kernel page; the
    // software bit tells. A lie about it concerns only the guest's own two modes.
    let kernel = pte.0 & Pte::USER == 0 || pte.0 & Pte::GUEST_KERNEL != 0;
    Ok(if kernel {
        pte.with(Pte::USER | Pte::GUEST_KERNEL).without(Pte::GLOBAL)
    } else {
        pte.with(Pte::GLOBAL)
    })
}

/// Checks the bits of a present entry of a `level` table above L1 and returns it as it has to
/// stand in memory.
///
/// # Errors
/// `EINVAL` as for [`adjust_l1`], and for large pages.
#[inline]
pub const fn adjust_table(level: Level, pte: Pte) -> Result<Pte, Errno> {
    if pte.0 & !TABLE_ALLOWED != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(match level {
        // With split tables the CPU walks a copy of the L4 table, and its accessed bits never reach
        // the guest's own. So the guest sees the bit set from the start (Xen: `adjust_guest_l4e`).
        Level::L4 => pte.with(Pte::USER | Pte::ACCESSED),
        _ => pte.with(Pte::USER),
    })
}

#[cfg(test)]
mod tests {
    use super::{adjust_l1, adjust_table};
    use xen_abi::Errno;
    use xen_abi::mmu::{Level, Pte};

    #[test]
    fn a_kernel_page_lets_ring_3_in_and_is_marked() {
        let pte = adjust_l1(Pte(0x1000 | Pte::PRESENT | Pte::GLOBAL));
        let expected = Pte(0x1000 | Pte::PRESENT | Pte::USER | Pte::GUEST_KERNEL);
        assert_eq!(pte, Ok(expected));
        assert_eq!(
            adjust_l1(expected),
            Ok(expected),
            "stable when written back"
        );
    }

    #[test]
    fn a_process_page_becomes_global() {
        let pte = Pte(0x1000 | Pte::PRESENT | Pte::USER | Pte::NX);
        assert_eq!(adjust_l1(pte), Ok(pte.with(Pte::GLOBAL)));
    }

    #[test]
    fn tables_let_ring_3_in() {
        let pte = Pte(0x1000 | Pte::PRESENT | Pte::RW);
        for level in [Level::L2, Level::L3] {
            assert_eq!(adjust_table(level, pte), Ok(pte.with(Pte::USER)));
        }
        assert_eq!(
            adjust_table(Level::L4, pte),
            Ok(pte.with(Pte::USER | Pte::ACCESSED))
        );
    }

    #[test]
    fn attributes_of_devices_and_large_pages_are_refused() {
        for bit in [Pte::PWT, Pte::PCD, Pte::PSE] {
            assert_eq!(adjust_l1(Pte(Pte::PRESENT | bit)), Err(Errno::EINVAL));
        }
        for bit in [Pte::PWT, Pte::PCD, Pte::PSE, Pte::GLOBAL] {
            for level in [Level::L2, Level::L3, Level::L4] {
                let pte = Pte(Pte::PRESENT | bit);
                assert_eq!(adjust_table(level, pte), Err(Errno::EINVAL));
            }
        }
    }
}
