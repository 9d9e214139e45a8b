//! Why the shim answers otherwise than Xen.
//!
//! The answers of Xen are those of a distribution's build: hypercalls that are switched on and off
//! when Xen is built (`xen/arch/x86/Kconfig`, `xen/common/Kconfig`) are absent in others.

use super::Difference;

/// A call (`*` at its end stands for anything), shapes (none for all), and the reason.
type Reason = (&'static str, &'static [&'static str], &'static str);

/// For hypercalls that only a control, hardware or device-model domain may use.
const PRIVILEGED: &str =
    "only for control and hardware domains, which no guest is: all of it is absent";
/// For parts of Xen that its builder chooses.
const OPTIONAL: &str = "optional in Xen; absent, as in a build without it";
/// For what concerns guests in hardware containers.
const HVM: &str = "for HVM guests; absent";
/// For what concerns devices of the host.
const NO_HARDWARE: &str = "a guest has no hardware of its host, which could not move with it";
/// For operations without a user among PV kernels.
const UNUSED: &str = "no PV kernel is known to use it; absent, which kernels must expect";

const REASONS: &[Reason] = &[
    ("DOMCTL.*", &[], PRIVILEGED),
    ("SYSCTL.*", &[], PRIVILEGED),
    ("PLATFORM_OP.*", &[], PRIVILEGED),
    ("DM_OP.*", &[], PRIVILEGED),
    ("SCHED_OP.7", &[], PRIVILEGED),
    ("KEXEC_OP.*", &[], OPTIONAL),
    ("HYPFS_OP.*", &[], OPTIONAL),
    ("XENOPROF_OP.*", &[], OPTIONAL),
    ("XENPMU_OP.*", &[], OPTIONAL),
    ("HVM_OP.*", &[], HVM),
    ("PHYSDEV_OP.*", &[], NO_HARDWARE),
    ("EVENT_CHANNEL_OP.2", &[], NO_HARDWARE),
    (
        "MMUEXT_OP.list",
        &[],
        "no other domain's memory can be named, so that none is looked up",
    ),
    (
        "MMU_UPDATE.list",
        &[],
        "no other domain's memory can be named, so that none is looked up",
    ),
    (
        "EVENT_CHANNEL_OP.11",
        &[],
        "two-level event channels only: what a kernel falls back to when it is told so",
    ),
    (
        "EVENT_CHANNEL_OP.13",
        &[],
        "two-level event channels only: they have no priorities",
    ),
    ("EVENT_CHANNEL_OP.14", &[], UNUSED),
    (
        "GRANT_TABLE_OP.4",
        &[],
        "page flipping, gone from kernels since 2008; absent",
    ),
    ("GRANT_TABLE_OP.7", &[], UNUSED),
    (
        "GRANT_TABLE_OP.12",
        &[],
        "caches are coherent on x86; absent",
    ),
    (
        "CONSOLE_IO.0",
        &[],
        "what a kernel says before it has a console is logged at level trace",
    ),
    (
        "MEMORY_OP.5",
        &[],
        "the machine-to-physical table is read where it is mapped; absent",
    ),
    (
        "MEMORY_OP.11",
        &[],
        "frames that lie one behind another are for devices of the host",
    ),
    ("MEMORY_OP.13", &[], "for toolstacks; absent"),
    (
        "MEMORY_OP.14",
        &[],
        "tells the highest frame, as Xen does to a guest whose frames are its own",
    ),
    ("MEMORY_OP.7", &[], HVM),
    ("MEMORY_OP.15", &[], HVM),
    ("MEMORY_OP.23", &[], HVM),
    ("MEMORY_OP.16", &[], PRIVILEGED),
    ("MEMORY_OP.17", &[], PRIVILEGED),
    ("MEMORY_OP.18", &[], PRIVILEGED),
    ("MEMORY_OP.19", &[], PRIVILEGED),
    ("MEMORY_OP.21", &[], PRIVILEGED),
    ("MEMORY_OP.24", &[], PRIVILEGED),
    ("MEMORY_OP.25", &[], PRIVILEGED),
    (
        "MEMORY_OP.26",
        &[],
        "the topology of a host is not constant over moves; absent",
    ),
    ("MEMORY_OP.27", &[], PRIVILEGED),
    ("MEMORY_OP.28", &[], PRIVILEGED),
    (
        "MMU_UPDATE.value-*",
        &[],
        "a mapping that is refused is refused in one way, whoever has the frame",
    ),
    (
        "UPDATE_VA_MAPPING.root",
        &[],
        "a mapping that is refused is refused in one way, whoever has the frame",
    ),
    (
        "VCPU_OP.0",
        &[],
        "a vCPU that is there is refused before its new state is read",
    ),
    (
        "VCPU_OP.5",
        &["ones"],
        "an address that cannot be written is refused at once instead of never being written",
    ),
    (
        "VCPU_OP.13",
        &[],
        "not offered: kernels read the time from the vCPU's information page",
    ),
];

fn explains(reason: &Reason, call: &str, shape: &str) -> bool {
    let (pattern, shapes, _) = reason;
    let call_fits = match pattern.strip_suffix('*') {
        Some(start) => call.starts_with(start),
        None => call == *pattern,
    };
    call_fits && (shapes.is_empty() || shapes.contains(&shape))
}

/// The first reason for an answer that differs.
pub fn of(call: &str, shape: &str) -> Option<&'static str> {
    let found = REASONS.iter().find(|reason| explains(reason, call, shape));
    found.map(|(_, _, why)| *why)
}

/// The reasons that explain none of these.
pub fn unused(differences: &[Difference]) -> Vec<String> {
    let is_used = |reason: &&Reason| {
        differences
            .iter()
            .any(|difference| explains(reason, &difference.call, &difference.shape))
    };
    let unused = REASONS.iter().filter(|reason| !is_used(reason));
    unused
        .map(|(call, _, why)| format!("{call}: {why}"))
        .collect()
}
