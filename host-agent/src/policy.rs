//! What a peer's guests may use of this host.
//!
//! A guest brings its configuration, and the toolstack carries it out as root: it opens volumes, runs
//! scripts, reads kernels and joins bridges.  So whoever can send a configuration could read any file of the
//! host and run any program.  Therefore everything that a configuration names must be [allowed](Allow), and
//! what is not known to be harmless is refused.
//!
//! The table covers `libxl_domain_config` of Xen 4.17 to 4.20 (`libxl_types.idl`).  It need not be complete:
//! unknown text and devices are refused, unknown numbers and switches are not.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::text::clean;

/// Where the toolstack looks for a script that has no folder.
const SCRIPTS: &str = "/etc/xen/scripts";

/// What is allowed, as patterns: `*` matches any characters except a slash.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Allow {
    /// Disks, as configurations name them.
    pub volumes: Vec<String>,
    /// Bridges, and other network devices that cards are attached to.
    pub bridges: Vec<String>,
    /// Scripts and programs that run as root.
    pub scripts: Vec<String>,
    /// Kernels, ramdisks, shims and other files that become part of a guest.
    pub files: Vec<String>,
}

/// The meaning of a text in a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing of this host.
    Text,
    Volume,
    Bridge,
    Script,
    File,
}

impl Kind {
    /// The meaning of the text under this key in this section; `None` if it is unknown or never allowed.
    fn of(section: &str, key: &str) -> Option<Self> {
        Some(match (section, key) {
            ("c_info", "type" | "name" | "uuid" | "passthrough" | "pool_name")
            | (
                "b_info",
                "type"
                | "tsc_mode"
                | "timer_mode"
                | "device_model_version"
                | "tee"
                | "altp2m"
                | "cmdline"
                | "stubdomain_cmdline"
                | "blkdev_start",
            )
            | ("type.pvh", "pvshim_cmdline" | "pvshim_extra")
            | ("sched_params", "sched")
            | ("arch_arm", "gic_version" | "vuart" | "sve_vl")
            | ("arm_sci", "type")
            | ("cpuid" | "xenstore_quota", _)
            | ("disks", "vdev" | "backend" | "format" | "specification" | "transport")
            | ("nics", "model" | "mac" | "ip" | "ifname" | "nictype" | "vlan")
            | ("vfbs", "keymap")
            | ("vnc", "listen" | "passwd")
            | ("vkbs", "backend_type" | "unique_id")
            | ("channels", "name" | "connection")
            | ("", "on_poweroff" | "on_reboot" | "on_watchdog" | "on_crash" | "on_soft_reset") => {
                Self::Text
            }
            ("disks", "pdev_path") => Self::Volume,
            ("nics", "bridge" | "gatewaydev") => Self::Bridge,
            ("disks" | "nics", "script") | ("b_info", "bootloader" | "device_model") => {
                Self::Script
            }
            (
                "b_info",
                "kernel" | "ramdisk" | "device_tree" | "stubdomain_kernel" | "stubdomain_ramdisk",
            )
            | ("type.pvh", "pvshim_path")
            | ("connection.socket", "path") => Self::File,
            _ => return None,
        })
    }

    /// The operator's name for the list.
    const fn list(self) -> &'static str {
        match self {
            Self::Text => "",
            Self::Volume => "volumes",
            Self::Bridge => "bridges",
            Self::Script => "scripts",
            Self::File => "files",
        }
    }
}

impl Allow {
    /// Checks that a guest with this configuration may arrive.
    ///
    /// # Errors
    /// What it must not use, and how that can be allowed.
    pub fn admits(&self, config: &Value) -> Result<(), String> {
        self.walk("", "", config)
    }

    /// `section` is the nearest object with a name, `key` the value's own name.
    fn walk(&self, section: &str, key: &str, value: &Value) -> Result<(), String> {
        match value {
            Value::Null => Ok(()),
            Value::Bool(is_set) => no_other_domain(key, *is_set),
            Value::Number(number) => no_other_domain(key, number.as_u64() != Some(0)),
            Value::String(text) => self.text(section, key, text),
            Value::Array(list) if !list.is_empty() => {
                let is_known = match section {
                    "" => matches!(key, "disks" | "nics" | "vfbs" | "vkbs" | "channels"),
                    "c_info" => false,
                    // Parts of the host, and arguments for a program.
                    "b_info" => {
                        !matches!(key, "ioports" | "irqs" | "iomem")
                            && !key.starts_with("extra")
                            && !key.ends_with("_args")
                    }
                    _ => true,
                };
                if !is_known {
                    return Err(refused(section, key, "this is never accepted from a peer"));
                }
                list.iter()
                    .try_for_each(|item| self.walk(section, key, item))
            }
            Value::Array(_) => Ok(()),
            Value::Object(object) => {
                if matches!(key, "xsdata" | "platformdata") && !object.is_empty() {
                    return Err(refused(section, key, "this is never accepted from a peer"));
                }
                // Objects below these contain names of their own, none of which is the host's.
                let inside = match section {
                    "cpuid" | "xenstore_quota" => section,
                    _ => key,
                };
                object
                    .iter()
                    .try_for_each(|(key, value)| self.walk(inside, key, value))
            }
        }
    }

    fn text(&self, section: &str, key: &str, text: &str) -> Result<(), String> {
        // The toolstack's form of switches.
        if matches!(text, "" | "<default>" | "True" | "False") {
            return no_other_domain(key, text == "True");
        }
        let kind = Kind::of(section, key)
            .ok_or_else(|| refused(section, key, "this is not accepted from a peer"))?;
        let allowed = match kind {
            // File names are made of these.
            Kind::Text if matches!(key, "ifname" | "keymap") && text.contains('/') => &[],
            Kind::Text => return Ok(()),
            Kind::Volume => &self.volumes[..],
            Kind::Bridge => &self.bridges,
            Kind::Script => &self.scripts,
            Kind::File => &self.files,
        };
        let full = match kind {
            Kind::Script if !text.contains('/') => format!("{SCRIPTS}/{text}"),
            _ => text.to_owned(),
        };
        if is_straight(&full) && allowed.iter().any(|pattern| fits(pattern, &full)) {
            return Ok(());
        }
        let text = clean(text, 200);
        Err(match kind {
            Kind::Text => refused(section, key, &format!("the value {text:?} is not valid")),
            _ => format!(
                "the destination does not allow {text} ({key}) to guests of its peer: an operator there can \
                 add it to `{}` of [allow] in unmoved.toml",
                kind.list()
            ),
        })
    }
}

fn refused(section: &str, key: &str, why: &str) -> String {
    let (section, key) = (clean(section, 50), clean(key, 50));
    format!("the domain's configuration has {key} in {section:?}: {why}")
}

/// Backends in other domains, rights of a driver domain, labels of another domain.
fn no_other_domain(key: &str, is_set: bool) -> Result<(), String> {
    let never = key == "backend_domid" || key == "driver_domain" || key.ends_with("ssidref");
    if never && is_set {
        return Err(refused("", key, "this is never accepted from a peer"));
    }
    Ok(())
}

/// Whether a path has no `..`, because patterns are compared as text.
fn is_straight(path: &str) -> bool {
    let inner = path.strip_prefix('/').unwrap_or(path);
    !inner
        .split('/')
        .any(|part| matches!(part, "" | "." | "..") || part.contains('\0'))
}

/// Whether a pattern matches this text; `*` is any characters except a slash.
#[must_use]
pub fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut from) = (0, 0);
    // Where to continue if the text after the last star does not match.
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(letter) if *letter == text[from] => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((place, taken)) if text[taken] != b'/' => {
                    star = Some((place, taken + 1));
                    (at, from) = (place + 1, taken + 1);
                }
                _ => return false,
            },
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Allow, fits};

    fn allow() -> Allow {
        let list = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        Allow {
            volumes: list(&["/dev/vg0/*"]),
            bridges: list(&["xenbr0", "lan*"]),
            scripts: list(&["/etc/xen/scripts/vif-route"]),
            files: list(&["/usr/lib/unmoved/*", "/boot/guests/vmlinuz"]),
        }
    }

    /// As `xl list -l` of Xen 4.17 writes one.
    fn config() -> Value {
        json!({
            "c_info": {
                "type": "pvh", "hap": "True", "oos": "<default>", "ssidref": 0, "name": "web1", "domid": 0,
                "uuid": "5e8a3c62-9f01-4b7d-8c24-1d6f0a9b3e57", "run_hotplug_scripts": "True",
                "driver_domain": "False", "passthrough": "disabled", "pool_name": "Pool-0"
            },
            "b_info": {
                "max_vcpus": 1, "avail_vcpus": [0], "vcpu_hard_affinity": [[0, 1]], "numa_placement": "True",
                "tsc_mode": "default", "max_memkb": 262144, "cpuid": [[{"leaf": 1, "ecx": "xxx0"}]],
                "device_model_version": "qemu_xen", "sched_params": {"sched": "credit2", "weight": 256},
                "kernel": "/boot/guests/vmlinuz", "cmdline": "root=/dev/xvda ../..", "acpi": "True",
                "type.pvh": {"pvshim": "True", "pvshim_path": "/usr/lib/unmoved/unmoved-shim"},
                "arch_arm": {}, "arch_x86": {}, "altp2m": "disabled", "ioports": []
            },
            "disks": [{
                "backend_domid": 0, "pdev_path": "/dev/vg0/web1", "vdev": "xvda", "backend": "phy",
                "format": "raw", "readwrite": 1, "discard_enable": "True"
            }],
            "nics": [{"devid": 0, "mac": "00:16:3e:00:00:01", "bridge": "lan7", "nictype": "vif"}],
            "pcidevs": [], "vkbs": [],
            "on_poweroff": "destroy", "on_reboot": "restart", "on_crash": "preserve"
        })
    }

    /// The same with another value at this place.
    fn with(place: &str, value: Value) -> Value {
        let mut config = config();
        let parts: Vec<_> = place.rsplitn(2, '/').collect();
        config.pointer_mut(parts[1]).unwrap()[parts[0]] = value;
        config
    }

    #[test]
    fn a_configuration_of_what_is_allowed_comes_in() {
        allow().admits(&config()).unwrap();
        let short = with("/nics/0/script", json!("vif-route"));
        allow().admits(&short).unwrap();
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let why = Allow::default().admits(&config()).unwrap_err();
        assert!(why.contains("[allow]"), "{why}");
        let text = config().to_string();
        let mut bare: Value = serde_json::from_str(&text).unwrap();
        for key in ["disks", "nics"] {
            bare[key] = json!([]);
        }
        bare["b_info"]["kernel"] = Value::Null;
        bare["b_info"]["type.pvh"] = Value::Null;
        Allow::default().admits(&bare).unwrap();
    }

    #[test]
    fn what_could_take_the_host_is_refused_wherever_it_stands() {
        for (place, value) in [
            ("/disks/0/pdev_path", json!("/dev/sda")),
            ("/disks/0/pdev_path", json!("/dev/vg0/../sda")),
            ("/disks/0/pdev_path", json!("/dev/vg0/a/b")),
            ("/disks/0/pdev_path", json!("/dev/vg0//x")),
            ("/disks/0/script", json!("/tmp/evil")),
            ("/disks/0/script", json!("block-nbd")),
            ("/disks/0/backend_domid", json!(3)),
            ("/disks/0/backend_domname", json!("driver")),
            ("/disks/0/hidden_disk", json!("/dev/vg0/web1")),
            ("/nics/0/bridge", json!("management")),
            ("/nics/0/gatewaydev", json!("eth0")),
            ("/nics/0/script", json!("../../../tmp/evil")),
            ("/nics/0/ifname", json!("../x")),
            ("/nics/0/colo_checkpoint_host", json!("x")),
            ("/b_info/kernel", json!("/etc/shadow")),
            ("/b_info/ramdisk", json!("/etc/shadow")),
            ("/b_info/device_tree", json!("/etc/shadow")),
            ("/b_info/bootloader", json!("/tmp/evil")),
            ("/b_info/bootloader_args", json!(["x"])),
            ("/b_info/device_model", json!("/tmp/evil")),
            ("/b_info/device_model_user", json!("root")),
            ("/b_info/stubdomain_kernel", json!("/etc/shadow")),
            ("/b_info/extra", json!(["-drive", "file=/dev/sda"])),
            ("/b_info/extra_pv", json!(["-x"])),
            ("/b_info/ioports", json!([{"first": 0, "number": 65535}])),
            ("/b_info/iomem", json!([{"start": 0, "number": 1}])),
            ("/b_info/irqs", json!([4])),
            ("/b_info/exec_ssid_label", json!("system_u:system_r:dom0_t")),
            ("/b_info/exec_ssidref", json!(2)),
            ("/b_info/a_key_to_come", json!("/tmp/evil")),
            ("/b_info/type.pvh/pvshim_path", json!("/tmp/evil")),
            (
                "/b_info/type.hvm",
                json!({"system_firmware": "/etc/shadow"}),
            ),
            ("/b_info/type.hvm", json!({"serial_list": ["file:/etc/x"]})),
            ("/c_info/ssidref", json!(2)),
            ("/c_info/ssid_label", json!("system_u:system_r:dom0_t")),
            ("/c_info/driver_domain", json!("True")),
            ("/c_info/xsdata", json!({"x": "y"})),
            ("/c_info/xsdata", json!([["x", "y"]])),
            (
                "/channels",
                json!([{"connection.socket": {"path": "/run/x"}}]),
            ),
            (
                "/vfbs",
                json!([{"sdl": {"xauthority": "/root/.Xauthority"}}]),
            ),
            ("/vfbs", json!([{"keymap": "/etc/shadow"}])),
            ("/p9s", json!([{"path": "/"}])),
            ("/pcidevs", json!([{"bus": 1}])),
            ("/usbdevs", json!([{"ctrl": 0}])),
            ("/pvcallsifs", json!([{"devid": 0}])),
            ("/devices_to_come", json!([{"x": 1}])),
        ] {
            let why = allow().admits(&with(place, value.clone()));
            assert!(why.is_err(), "{place} {value}");
        }
    }

    #[test]
    fn a_star_is_any_letters_but_a_slash() {
        for (pattern, text) in [
            ("/dev/vg0/*", "/dev/vg0/x"),
            ("*", "xenbr0"),
            ("a*b*c", "a12b3bc"),
            ("/a/*/c", "/a/b/c"),
            ("", ""),
            ("x**", "x"),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("/dev/*", "/dev/vg0/x"),
            ("*", "/x"),
            ("a*b", "a1b2"),
            ("a", ""),
            ("", "a"),
            ("ab", "a"),
        ] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
        // Not even the nastiest takes long.
        assert!(!fits(&"*a".repeat(1000), &"a".repeat(999)));
    }
}
