//! What the host has for the domain and the guest is not shown as it is.
//!
//! Everything else that the host lets the domain read below its directory, or below `/vm/UUID`,
//! comes in under the guest's own names.

/// Names in the domain's directory, each with all below it, and why.
pub const AT_HOME: [(&str, &str); 19] = [
    ("backend", "the guest runs no backends"),
    ("bios-strings", "tells of the container that the shim is"),
    ("console", "port and page of the shim's console"),
    (
        "control",
        "`shutdown` and `sysrq` come in as requests; the rest is the guest's own",
    ),
    (
        "cpu",
        "`cpu/N/availability` comes in for the CPUs that there were at boot",
    ),
    ("data/unmoved", "the shim's reports to the host"),
    (
        "device",
        "devices come in one by one, with constant contents",
    ),
    ("device-model", "tells of the container that the shim is"),
    ("domid", "the real domain's id, which a move changes"),
    ("hvmloader", "tells of the container that the shim is"),
    ("image", "tells of the container that the shim is"),
    ("libxl", "the toolstack's own"),
    (
        "memory",
        "`memory/target` comes in, less the shim's share; the rest as at boot",
    ),
    (
        "name",
        "as at boot: a move gives the domain other names for a while",
    ),
    ("platform", "tells of the container that the shim is"),
    ("rtc", "tells of the container that the shim is"),
    ("store", "port and page of the shim's store"),
    ("suspend", "a move is not the guest's business"),
    ("vm", "the path of `/vm/UUID`, as at boot"),
];

/// Names in `/vm/UUID`, likewise.
pub const BELOW_VM: [(&str, &str); 4] = [
    (
        "image",
        "of a PV guest: `image/ostype` is `linux`, as the toolstack has it for each",
    ),
    ("name", "as at boot"),
    ("rtc", "tells of the container that the shim is"),
    ("uuid", "as at boot"),
];

/// Whether a name is one of `names` or below one.
pub fn is_among(names: &[(&str, &str)], path: &str) -> bool {
    names
        .iter()
        .any(|(name, _)| super::path::is_within(path, name))
}
