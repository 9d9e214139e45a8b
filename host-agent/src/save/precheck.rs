//! Whether a domain can be migrated, by what Xen knows about it.

use crate::xen::abi::{DomainInfo, EMULATED_LAPIC};
use crate::xen::state::DomainFlags;

/// What a domain must be.
const SHIM: &str = "only a guest in a shim (type=\"pvh\" pvshim=1) can be migrated";

/// # Errors
/// Why it cannot, as the end of a sentence that begins with its name.
pub(super) fn check(info: &DomainInfo) -> Result<(), String> {
    let state = info.state();
    if !state.contains(DomainFlags::HVM_GUEST) {
        return Err(format!("is a plain PV domain: {SHIM}"));
    }
    if info.emulation_flags & !EMULATED_LAPIC != 0 {
        return Err(format!("is an HVM domain (type=\"hvm\"): {SHIM}"));
    }
    if state.contains(DomainFlags::SHUTDOWN) {
        let why = "has shut down or is suspended: if a killed save or send left it suspended, run `unmoved \
         direct resume`";
        return Err(why.to_owned());
    }
    if state.contains(DomainFlags::PAUSED) {
        return Err("is paused, so it cannot suspend".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::check;
    use crate::xen::abi::{DomainInfo, EMULATED_LAPIC};
    use crate::xen::state::DomainFlags as Flags;

    #[test]
    fn only_a_running_pvh_domain_can_be_moved() {
        let domain = |flags: Flags, emulation_flags| DomainInfo {
            flags: flags.bits(),
            emulation_flags,
            ..DomainInfo::new_zeroed()
        };
        let pvh = Flags::HVM_GUEST | Flags::BLOCKED;
        assert_eq!(check(&domain(pvh, EMULATED_LAPIC)), Ok(()));
        for (wrong, why) in [
            (domain(Flags::empty(), 0), "plain PV"),
            (domain(pvh, 0x1ff), "HVM domain"),
            (domain(pvh | Flags::SHUTDOWN, 1), "shut down"),
            (domain(pvh | Flags::PAUSED, 1), "paused"),
        ] {
            let told = check(&wrong).unwrap_err();
            assert!(told.contains(why), "{told}");
        }
    }
}
