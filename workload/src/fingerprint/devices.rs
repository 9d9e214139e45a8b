//! Devices, interrupts and processors as the guest's kernel shows them.

use std::fs;
use std::path::Path;

use super::{Fingerprint, files, volatile};
use crate::sys::interface;

/// Attributes of a network device that do not change by themselves.
const NET: [&str; 14] = [
    "address",
    "addr_assign_type",
    "addr_len",
    "broadcast",
    "carrier",
    "dev_id",
    "dev_port",
    "duplex",
    "mtu",
    "operstate",
    "speed",
    "tx_queue_len",
    "type",
    "name_assign_type",
];

/// Attributes of an interrupt that do not change by themselves (`per_cpu_count` does).
const INTERRUPT: [&str; 6] = ["actions", "chip_name", "hwirq", "name", "type", "wakeup"];

fn names(directory: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Adds all of them.
pub fn collect(print: &mut Fingerprint) {
    for name in names("/sys/block") {
        let path = format!("/sys/block/{name}");
        let key = format!("block/{name}");
        for file in [
            "size",
            "ro",
            "removable",
            "range",
            "ext_range",
            "capability",
            "dev",
            "hidden",
        ] {
            files::file(
                print,
                &format!("{key}/{file}"),
                &Path::new(&path).join(file),
            );
        }
        files::tree(
            print,
            &format!("{key}/queue"),
            &Path::new(&path).join("queue"),
        );
    }
    for name in names("/sys/class/net") {
        let path = Path::new("/sys/class/net").join(&name);
        for file in NET {
            files::file(print, &format!("net/{name}/{file}"), &path.join(file));
        }
        let queues = names(&path.join("queues").to_string_lossy()).join(" ");
        print.set(&format!("net/{name}/queues"), queues);
        for (feature, state) in interface::features(&name).unwrap_or_default() {
            print.set(&format!("net/{name}/feature/{feature}"), state);
        }
    }
    for device in names("/sys/bus/xen/devices") {
        let path = Path::new("/sys/bus/xen/devices").join(&device);
        for file in ["nodename", "devtype", "modalias", "state"] {
            files::file(print, &format!("xenbus/{device}/{file}"), &path.join(file));
        }
        let driver = fs::read_link(path.join("driver")).unwrap_or_default();
        let driver = driver.file_name().unwrap_or_default().to_string_lossy();
        print.set(&format!("xenbus/{device}/driver"), driver.as_bytes());
    }
    for number in names("/sys/kernel/irq") {
        let path = Path::new("/sys/kernel/irq").join(&number);
        for file in INTERRUPT {
            files::file(print, &format!("irq/{number}/{file}"), &path.join(file));
        }
    }
    let table = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    for (name, rest) in interrupts(&table) {
        print.set(&format!("interrupts/{name}"), rest);
    }
    processors(print);
    files::tree(print, "memory", Path::new("/sys/devices/system/xen_memory"));
    let sources = Path::new("/sys/devices/system/clocksource/clocksource0");
    for file in ["available_clocksource", "current_clocksource"] {
        files::file(print, &format!("clocksource/{file}"), &sources.join(file));
    }
}

fn processors(print: &mut Fingerprint) {
    for file in ["possible", "present", "online", "offline", "kernel_max"] {
        let path = Path::new("/sys/devices/system/cpu").join(file);
        files::file(print, &format!("cpu/{file}"), &path);
    }
    files::tree(
        print,
        "cpu/vulnerabilities",
        Path::new("/sys/devices/system/cpu/vulnerabilities"),
    );
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    for (index, processor) in info.split("\n\n").enumerate() {
        for line in processor.lines() {
            let Some((field, value)) = line.split_once(':') else {
                continue;
            };
            let field = field.trim();
            if !volatile::in_cpuinfo(field) {
                print.set(&format!("cpu/{index}/{field}"), value.trim());
            }
        }
    }
}

/// The rows of `/proc/interrupts`: number or name, and what follows the counts.
fn interrupts(table: &str) -> Vec<(String, String)> {
    let mut lines = table.lines();
    let columns = lines
        .next()
        .map_or(0, |head| head.split_whitespace().count());
    lines
        .filter_map(|line| {
            let (name, rest) = line.trim().split_once(':')?;
            let words: Vec<&str> = rest.split_whitespace().collect();
            let counts = words
                .iter()
                .take(columns)
                .take_while(|word| word.bytes().all(|byte| byte.is_ascii_digit()))
                .count();
            Some((name.to_owned(), words[counts..].join(" ")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{collect, interrupts};
    use crate::fingerprint::Fingerprint;

    #[test]
    fn interrupt_counts_are_left_out() {
        let table = "           CPU0       CPU1\n \
            24:      10234          0  xen-percpu    -virq      timer0\n \
            33:        512          1  xen-dyn    -event     xenbus\n\
            NMI:          0          0   Non-maskable interrupts\n\
            ERR:          0\n";
        let found = interrupts(table);
        assert_eq!(found[0], ("24".into(), "xen-percpu -virq timer0".into()));
        assert_eq!(found[1], ("33".into(), "xen-dyn -event xenbus".into()));
        assert_eq!(found[2], ("NMI".into(), "Non-maskable interrupts".into()));
        assert_eq!(found[3], ("ERR".into(), String::new()));
        assert!(interrupts("").is_empty());
    }

    #[test]
    fn this_machine_has_devices_and_they_do_not_change() {
        let take = || {
            let mut print = Fingerprint::default();
            collect(&mut print);
            print
        };
        let (one, two) = (take(), take());
        assert!(one.get("net/lo/mtu").is_some());
        // Other tests change nothing that is seen here; what differs would be a missing rule.
        let keys: Vec<_> = crate::fingerprint::diff(&one, &two)
            .into_iter()
            .filter(|found| found.key.starts_with("cpu") || found.key.starts_with("net/lo"))
            .collect();
        assert!(keys.is_empty(), "{keys:?}");
    }
}
