//! Start-of-day values: what the kernel was told when it began.
//!
//! Kernel messages are taken once, early, for they are pushed out of the log later.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Fingerprint, files};

/// Messages that repeat what the hypervisor told at the start.  Measured values (clock rates,
/// times) are not among them.
const TELLING: [&str; 22] = [
    "BIOS-",
    "Booting kernel on",
    "Booting paravirtualized kernel on",
    "Command line:",
    "DMI",
    "e820:",
    "Grant table",
    "Hypervisor detected",
    "Initmem setup",
    "Kernel/User page tables",
    "Memory: ",
    "NX ",
    "RAMDISK:",
    "Released ",
    "smpboot: Allowing",
    "Xen version",
    "Xen:",
    "xen:",
    "x86/PAT:",
    "xen_netfront:",
    "blkfront:",
    "last_pfn",
];

/// Reads the kernel's log from its beginning; messages without their time stamps.
#[must_use]
pub fn kernel_messages() -> Vec<String> {
    let Ok(mut log) = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
    else {
        return Vec::new();
    };
    let mut messages = Vec::new();
    let mut record = vec![0; 8192];
    // One record a read; EAGAIN at the end, EPIPE when records were overtaken.
    for _ in 0..100_000 {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(length) => messages.extend(message(&String::from_utf8_lossy(&record[..length]))),
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => break,
        }
    }
    messages
}

/// The text of a kernel log record `level,number,time,flags;text`.
fn message(record: &str) -> Option<String> {
    let (_, text) = record.split_once(';')?;
    Some(text.lines().next()?.to_owned())
}

/// The messages worth comparing, in order.
#[must_use]
pub fn telling(messages: &[String]) -> Vec<&String> {
    messages
        .iter()
        .filter(|message| TELLING.iter().any(|start| message.starts_with(start)))
        .collect()
}

/// Adds the start-of-day values; `messages` are the kernel's, as they were early.
pub fn collect(print: &mut Fingerprint, messages: &[String]) {
    for (index, message) in telling(messages).into_iter().enumerate() {
        print.set(&format!("boot/message/{index:03}"), message);
    }
    for (key, path) in [
        ("boot/cmdline", "/proc/cmdline"),
        ("boot/version", "/proc/version"),
        ("boot/iomem", "/proc/iomem"),
        ("boot/ioports", "/proc/ioports"),
        ("boot/cell", "/proc/device-tree/model"),
    ] {
        files::file(print, key, Path::new(path));
    }
    files::tree(print, "boot/memmap", Path::new("/sys/firmware/memmap"));
    if let Some(total) = crate::init::facts::mem_total_kib() {
        print.set("boot/mem-total-kib", total.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::{message, telling};

    #[test]
    fn only_told_values_are_taken() {
        let records = [
            "6,0,0,-;Linux version 6.1.0",
            "6,1,0,-;Command line: console=hvc0",
            "6,2,0,-;tsc: Detected 2000.123 MHz processor\n SUBSYSTEM=x",
            "6,3,0,-;Xen: [mem 0x0000000000000000-0x000000000009ffff] usable",
            "no record",
        ];
        let messages: Vec<String> = records
            .iter()
            .filter_map(|record| message(record))
            .collect();
        assert_eq!(messages.len(), 4);
        let found = telling(&messages);
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("Command line"));
    }
}
