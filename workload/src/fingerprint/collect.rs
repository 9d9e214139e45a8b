//! Taking the fingerprint: all sections, in the guest.

use std::path::Path;

use super::{Fingerprint, boot, cpuid, devices, files, store};
use crate::helper;
use crate::xenbus::Store;

/// Takes the fingerprint of the machine one runs on; `messages` are the kernel's early ones.
#[must_use]
pub fn collect(messages: &[String]) -> Fingerprint {
    let mut print = Fingerprint::default();
    boot::collect(&mut print, messages);
    // A process of its own, for the instruction is deadly where it is not understood.
    let forced = helper::output("cpuid-forced").ok();
    cpuid::collect(&mut print, forced.as_deref());
    devices::collect(&mut print);
    files::tree(&mut print, "hypervisor", Path::new("/sys/hypervisor"));
    for name in ["capabilities", "xsd_port", "xsd_kva", "privcmd", "xenbus"] {
        // The first three are texts; of the others only their presence can be looked at.
        let path = Path::new("/proc/xen").join(name);
        if path.exists() {
            let readable = matches!(name, "capabilities" | "xsd_port" | "xsd_kva");
            let value = if readable {
                files::read(&path)
            } else {
                b"(there)".to_vec()
            };
            print.set(&format!("proc-xen/{name}"), value);
        }
    }
    match Store::open() {
        Ok(mut door) => store::collect(&mut door, &mut print),
        Err(error) => print.set("xenstore", format!("({error})")),
    }
    print
}
