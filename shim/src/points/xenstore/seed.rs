//! The first contents of the guest's store, under names that never change.
//!
//! The nodes, their order and their permissions are those that the stock toolstack gives a PV
//! domain; nothing else of the real store is shown.  Values come from the real store of the first
//! boot, except names of the real domain, which are replaced, and memory sizes, which are shown
//! less the shim's share.  What a tool sets only on some versions or hosts (the console's terminal,
//! features) is fixed, so that two hosts give the same guest the same store.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use xen_abi::{DomId, Mfn, Port};

use super::VirtualStore;
use super::path;
use super::perms::Perms;

/// What to read of the real store, relative to the domain's directory, each with what is below.
pub const ROOTS: [&str; 5] = ["vm", "name", "memory", "cpu", "data"];

/// Where the shim keeps its reports to the host; not the guest's to see or to write outwards.
pub const REPORTS: &str = "data/unmoved";

/// What the real store does not say.
#[derive(Clone, Copy, Debug)]
pub struct SeedParams {
    /// KiB of the domain's memory that are the shim's.
    pub hidden_kib: u64,
    /// The guest's xenstore port and page.
    pub store: (Port, Mfn),
    /// The guest's console port and page.
    pub console: (Port, Mfn),
}

/// Nodes with fixed values that the guest may only read (`false`) or owns (`true`), in the order
/// in which the toolstack makes them.
const FIXED: [(&str, &str, bool); 17] = [
    ("cpu", "", false),
    ("memory", "", false),
    ("device", "", false),
    ("device/suspend/event-channel", "", true),
    ("control", "", false),
    ("control/shutdown", "", true),
    ("control/feature-poweroff", "", true),
    ("control/feature-reboot", "", true),
    ("control/feature-suspend", "", true),
    ("control/sysrq", "", true),
    ("data", "", true),
    ("drivers", "", true),
    ("feature", "", true),
    ("attr", "", true),
    ("error", "", true),
    (
        "control/platform-feature-multiprocessor-suspend",
        "1",
        false,
    ),
    ("control/platform-feature-xs_reset_watches", "1", false),
];

/// Returns how many KiB of the domain's memory the guest is not shown, as it may have `guest_kib` at
/// most.
pub fn hidden_kib(real: &[(String, Vec<u8>)], guest_kib: u64) -> u64 {
    let all = real
        .iter()
        .find(|(path, _)| path == "memory/static-max")
        .and_then(|(_, value)| core::str::from_utf8(value).ok()?.trim().parse().ok());
    // The guest has what it has, whatever the host says.
    all.unwrap_or(guest_kib).saturating_sub(guest_kib)
}

/// Fills `store` from `real`: paths relative to the real domain's directory, and values.
pub fn seed(store: &mut VirtualStore, real: &[(String, Vec<u8>)], params: &SeedParams) {
    let guest = store.guest_domid();
    let dir = store.guest_dir();
    let read_only = Perms::new(DomId(0), Some(guest));
    let own = Perms::new(guest, None);
    let value = |wanted: &str| {
        let found = real.iter().find(|(path, _)| path == wanted);
        found.map(|(_, value)| value.as_slice())
    };
    store.put(&dir, b"", &read_only);

    let vm = value("vm").and_then(vm_path);
    if let Some(vm) = vm {
        store.put(vm, b"", &read_only);
        store.write_as_host(&format!("{dir}/vm"), vm.as_bytes());
    }
    if let Some(name) = value("name") {
        store.write_as_host(&format!("{dir}/name"), name);
    }
    for (path, value, guest_s) in FIXED {
        let perms = if guest_s { &own } else { &read_only };
        store.put(&format!("{dir}/{path}"), value.as_bytes(), perms);
    }
    if let Some(vm) = vm {
        store.write_as_host(&format!("{vm}/uuid"), path::leaf(vm).as_bytes());
        store.write_as_host(&format!("{vm}/name"), value("name").unwrap_or_default());
        // What the toolstack says of every PV guest.
        store.write_as_host(&format!("{vm}/image/ostype"), b"linux");
    }

    let mut put = |path: &str, value: &[u8]| store.write_as_host(&format!("{dir}/{path}"), value);
    for path in ["memory/static-max", "memory/target"] {
        match value(path).and_then(|value| less_hidden(value, params.hidden_kib)) {
            Some(shown) => put(path, shown.as_bytes()),
            None => log::warn!("xenstore: the host says no {path}"),
        }
    }
    if let Some(kib) = value("memory/videoram") {
        put("memory/videoram", kib);
    }
    put("domid", guest.0.to_string().as_bytes());
    put("store/port", params.store.0.0.to_string().as_bytes());
    put("store/ring-ref", params.store.1.0.to_string().as_bytes());
    let online = cpus(real)
        .iter()
        .filter(|(_, value)| *value == b"online")
        .count();
    if online > 1 {
        log::warn!("the host gives the guest {online} CPUs (vcpus=); it has one, so far");
    }
    for (path, value) in cpus(real) {
        put(path, value);
    }
    let console = [
        (
            "backend",
            format!("/local/domain/0/backend/console/{}/0", guest.0),
        ),
        ("backend-id", String::from("0")),
        ("limit", String::from("1048576")),
        ("type", String::from("xenconsoled")),
        ("output", String::from("pty")),
        ("tty", String::new()),
        ("port", params.console.0.0.to_string()),
        ("ring-ref", params.console.1.0.to_string()),
    ];
    for (leaf, value) in console {
        put(&format!("console/{leaf}"), value.as_bytes());
    }
    for (path, value) in real {
        if path.starts_with("data/") && !path::is_within(path, REPORTS) {
            put(path, value);
        }
    }
}

/// The `vm` node's value if it names a domain's directory, as it always should.
fn vm_path(value: &[u8]) -> Option<&str> {
    let path = core::str::from_utf8(value).ok()?;
    let valid = path::is_valid(value, 64) && path::parent(path) == "/vm";
    if !valid {
        log::warn!("xenstore: the host's vm path is {path:?}");
    }
    valid.then_some(path)
}

/// The real `cpu/<n>/availability` nodes, by number.
fn cpus(real: &[(String, Vec<u8>)]) -> Vec<(&str, &[u8])> {
    let mut found: Vec<_> = real
        .iter()
        .filter_map(|(path, value)| Some((cpu_number(path)?, path.as_str(), value.as_slice())))
        .collect();
    found.sort_unstable();
    found
        .into_iter()
        .map(|(_, path, value)| (path, value))
        .collect()
}

/// The number in a relative `cpu/<n>/availability`.
pub fn cpu_number(path: &str) -> Option<u32> {
    let number = path.strip_prefix("cpu/")?.strip_suffix("/availability")?;
    number.parse().ok()
}

/// A memory size as the guest is shown it: the host's, in KiB, less the shim's share.
pub fn less_hidden(value: &[u8], hidden_kib: u64) -> Option<String> {
    let kib: u64 = core::str::from_utf8(value).ok()?.trim().parse().ok()?;
    // A host that says less than the shim's share is wrong, and the guest must not see a size near
    // 2^64.
    Some(kib.saturating_sub(hidden_kib).to_string())
}

#[cfg(test)]
mod tests {
    use xen_abi::{DomId, Mfn, Port};

    use super::{SeedParams, seed};
    use crate::points::GuestStore as _;
    use crate::points::xenstore::path::join;
    use crate::points::xenstore::{Limits, VirtualStore};

    const PARAMS: SeedParams = SeedParams {
        hidden_kib: 16384,
        store: (Port(1), Mfn(0x200)),
        console: (Port(2), Mfn(0x201)),
    };

    fn dump(store: &VirtualStore, path: &str, out: &mut String) {
        let (mut dir, value) = (String::from(path), store.read(path).expect("exists"));
        if path == "/" {
            dir.clear();
        }
        let perms = store.perms(path).expect("exists");
        let perms = String::from_utf8_lossy(&perms)
            .trim_end_matches('\0')
            .replace('\0', ",");
        out.push_str(&format!(
            "{dir}={} ({perms})\n",
            String::from_utf8_lossy(&value)
        ));
        for leaf in store.list(path) {
            dump(store, &join(path, &leaf), out);
        }
    }

    fn seeded(real: &[(&str, &str)]) -> VirtualStore {
        let real: Vec<_> = real
            .iter()
            .map(|(path, value)| (path.to_string(), value.as_bytes().to_vec()))
            .collect();
        let mut store = VirtualStore::new(DomId(1), Limits::default());
        seed(&mut store, &real, &PARAMS);
        store
    }

    #[test]
    fn the_store_is_the_toolstack_s_under_constant_names() {
        let store = seeded(&[
            ("vm", "/vm/0a-1b"),
            ("name", "g"),
            ("domid", "93"),
            ("memory/static-max", "262144"),
            ("memory/target", "131072"),
            ("cpu/10/availability", "offline"),
            ("cpu/2/availability", "online"),
            ("data/x/y", "z"),
            ("data/unmoved/state", "no"),
            ("store/port", "77"),
            ("libxl/secret", "no"),
            ("device/vbd/51712/backend", "no"),
        ]);
        let mut out = String::new();
        dump(&store, "/", &mut out);
        assert_eq!(out, include_str!("seed.expected"));
        // Most of a guest's quota is its own to use.
        assert_eq!(out.matches(" (n1").count(), 13);
    }

    #[test]
    fn a_host_that_says_little_is_no_reason_to_fail() {
        for vm in [
            "",
            "/vm",
            "/vm/",
            "/vm/a/b",
            "vm/x",
            "/vm/\u{fc}",
            "/local/x",
        ] {
            let store = seeded(&[("vm", vm), ("memory/target", "much")]);
            assert_eq!(store.read("/local/domain/1/vm"), None, "{vm}");
            assert_eq!(store.read("/local/domain/1/memory/target"), None);
            assert_eq!(
                store.read("/local/domain/1/domid").as_deref(),
                Some(&b"1"[..])
            );
        }
    }
}
