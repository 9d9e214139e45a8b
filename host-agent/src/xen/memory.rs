//! How much memory a new domain can get on this host: what is free, and what the toolstack would take from
//! the control domain.
//!
//! `xl` shrinks the control domain for a new one ("autoballoon"), unless the host's owner has fixed its
//! size: in `xl.conf`, or by `dom0_mem` on Xen's command line.  What is promised to a guest here must be
//! what `xl` will find then, neither more nor less.

use std::fs;
use std::sync::OnceLock;

use super::domain::{PAGE, Xen};
use super::toolstack;
use crate::job::{Error, Result};

/// Where `xl` is configured.
const XL_CONF: &str = "/etc/xen/xl.conf";
/// The toolstack never makes the control domain smaller than this: `LIBXL_MIN_DOM0_MEM`.
const LEAST: u64 = 128 << 20;

/// The host's memory, as far as new domains can have it.
#[derive(Debug)]
pub(crate) struct HostMemory {
    xen: Xen,
    /// Found out once: it changes only with a restart of the host, or when its owner edits the file.
    shrinks: OnceLock<bool>,
}

impl HostMemory {
    /// The memory of this host.
    pub(crate) const fn new(xen: Xen) -> Self {
        Self {
            xen,
            shrinks: OnceLock::new(),
        }
    }

    /// Bytes that new domains can have.
    ///
    /// # Errors
    /// If the hypercall fails.
    pub(crate) fn free_bytes(&self) -> Result<u64> {
        let info = self
            .xen
            .physinfo()
            .map_err(|error| Error::Xen(format!("cannot get Xen's free memory: {error}")))?;
        let free = info.free_pages.saturating_sub(info.outstanding_pages) * PAGE;
        if !*self.shrinks.get_or_init(control_domain_shrinks) {
            return Ok(free);
        }
        let own = self.xen.domain(0).live_info()?.tot_pages * PAGE;
        Ok(free + own.saturating_sub(LEAST))
    }
}

/// Finds out whether `xl` shrinks the control domain, as `xl` does.  If that fails, the size counts as fixed,
/// so that less is reserved.
fn control_domain_shrinks() -> bool {
    match configured(&fs::read_to_string(XL_CONF).unwrap_or_default()) {
        Some(fixed) => fixed,
        None => toolstack::xl(&["info", "xen_commandline"]).is_ok_and(|line| !is_fixed(&line)),
    }
}

/// What `xl.conf` says; `None` if it depends on Xen's command line.
fn configured(text: &str) -> Option<bool> {
    let mut settings = text.lines().rev().filter_map(|line| {
        let line = line.split('#').next()?;
        let (name, value) = line.split_once('=')?;
        (name.trim() == "autoballoon").then(|| value.trim().trim_matches(['"', '\'']))
    });
    match settings.next()? {
        "on" | "1" => Some(true),
        "off" | "0" => Some(false),
        _ => None,
    }
}

/// Whether Xen's command line sets the control domain's size.
fn is_fixed(command_line: &str) -> bool {
    let mut words = command_line.split_whitespace();
    words.any(|word| word.starts_with("dom0_mem="))
}

#[cfg(test)]
mod tests {
    use super::{configured, is_fixed};

    #[test]
    fn the_last_setting_of_xls_file_counts() {
        assert_eq!(configured(""), None);
        assert_eq!(
            configured("#autoballoon=\"off\"\nvif.default.bridge=\"br0\"\n"),
            None
        );
        assert_eq!(configured("autoballoon=\"auto\"\n"), None);
        assert_eq!(configured("autoballoon = 0 # never\n"), Some(false));
        assert_eq!(
            configured("autoballoon='off'\nautoballoon=\"on\"\n"),
            Some(true)
        );
    }

    #[test]
    fn a_size_on_xens_command_line_is_fixed() {
        for fixed in [
            "dom0_mem=640M,max:640M loglvl=all",
            "console=vga dom0_mem=1g",
            "dom0_mem=min:512M,max:2G",
        ] {
            assert!(is_fixed(fixed), "{fixed}");
        }
        for open in ["", "loglvl=all", "xdom0_mem=1g", "dom0_max_vcpus=1"] {
            assert!(!is_fixed(open), "{open}");
        }
    }
}
