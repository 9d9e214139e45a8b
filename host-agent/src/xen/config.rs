//! Reads what matters for a migration from the toolstack's configuration of a domain (`libxl_domain_config`
//! as JSON).

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use serde_json::{Value, json};
use uuid::Uuid;

use super::domain::PAGE;
use crate::job::{Error, MemoryLimits, Result};

/// Devices that belong to this host's hardware, by their names in a configuration.
const OF_THIS_HOST: [(&str, &str); 4] = [
    ("pcidevs", "a PCI device"),
    ("dtdevs", "a device"),
    ("rdms", "reserved device memory"),
    ("usbdevs", "a USB device"),
];
/// Devices whose backends start with the domain itself.  All others are created only when the guest is
/// suspended.
const PLAIN: [&str; 2] = ["disks", "nics"];

/// A UUID in the usual form.
pub(crate) fn uuid(handle: &[u8; 16]) -> String {
    Uuid::from_bytes(*handle).to_string()
}

/// Whether such a domain can be migrated at all.
///
/// # Errors
/// Why not, as the end of a sentence that begins with its name.
pub(crate) fn can_move(config: &Value) -> std::result::Result<(), String> {
    match config["c_info"]["type"].as_str() {
        Some("pvh") => {}
        Some(other) => {
            return Err(format!(
                "is of type {other}: only a guest in a shim (type=\"pvh\" pvshim=1) can be migrated"
            ));
        }
        None => return Err("has a configuration without a type".to_owned()),
    }
    for (key, what) in OF_THIS_HOST {
        if !list(config, key).is_empty() {
            return Err(format!("has {what} of this host"));
        }
    }
    if !list(&config["b_info"], "vnuma_nodes").is_empty() {
        return Err("has virtual NUMA nodes, which a stream cannot carry".to_owned());
    }
    Ok(())
}

/// Most memory that the domain takes, including what Xen needs for its page tables.  The toolstack reserves
/// the same: a page for each MiB and a MiB for each vCPU.
pub(crate) fn memory_bytes(config: &Value, max_pages: u64, max_vcpu: u32) -> u64 {
    let configured = config["b_info"]["max_memkb"].as_u64().unwrap_or(0) << 10;
    let own = configured.max(max_pages.saturating_mul(PAGE));
    let vcpus = u64::from(max_vcpu.wrapping_add(1));
    own.saturating_add((own >> 20) * PAGE)
        .saturating_add(vcpus << 20)
}

/// The writable disks, by what is behind them.
pub(crate) fn writable_disks(config: &Value) -> Vec<String> {
    let disks = list(config, "disks").iter();
    let writable = disks.filter(|disk| disk["readwrite"].as_i64() != Some(0));
    writable
        .filter_map(|disk| disk["pdev_path"].as_str())
        .map(str::to_owned)
        .collect()
}

/// The configuration as it goes into an `xl` save header.  The domain ID is cleared, because it means nothing
/// elsewhere.
pub(crate) fn to_travel(config: &Value) -> Vec<u8> {
    let mut config = config.clone();
    config["c_info"]["domid"] = json!(0);
    let mut bytes = config.to_string().into_bytes();
    bytes.push(0);
    bytes
}

/// Parses a configuration that has arrived.
///
/// # Errors
/// [`Error::Refused`] if it is not one.
pub(crate) fn arrived(bytes: &[u8]) -> Result<Value> {
    let text = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let config: Value = serde_json::from_slice(text).map_err(|error| {
        Error::Refused(format!("the domain's configuration is not JSON: {error}"))
    })?;
    if config["c_info"]["name"].is_string() {
        return Ok(config);
    }
    Err(Error::Refused(
        "the domain's configuration has no name".to_owned(),
    ))
}

/// Checks that a configuration has this UUID and these disks, so that what is reserved is what the toolstack
/// will use.
///
/// # Errors
/// What does not agree.
pub(crate) fn agrees(
    config: &Value,
    uuid: &str,
    disks: &[String],
) -> std::result::Result<(), String> {
    if !is_uuid(uuid) {
        return Err(format!("{uuid:?} is not a UUID in the usual form"));
    }
    let own = config["c_info"]["uuid"].as_str().unwrap_or_default();
    if !own.eq_ignore_ascii_case(uuid) {
        return Err(format!(
            "the domain's configuration has the UUID {own:?}, not {uuid}"
        ));
    }
    let missing = |disk: &&String| !disks.contains(disk);
    if let Some(disk) = writable_disks(config).iter().find(missing) {
        return Err(format!(
            "the domain's configuration has a disk that was not announced: {disk}"
        ));
    }
    Ok(())
}

/// Whether this is a UUID in the form of [`uuid()`], because UUIDs are compared as text.
fn is_uuid(text: &str) -> bool {
    Uuid::try_parse(text).is_ok_and(|uuid| uuid.to_string() == text)
}

/// Replaces the name.
pub(crate) fn named(mut config: Value, name: &str) -> Value {
    config["c_info"]["name"] = json!(name);
    config
}

/// What the toolstack lets a domain have beyond its target, KiB (`LIBXL_MAXMEM_CONSTANT`).
const SLACK_KIB: u64 = 1024;

/// Sets the target to all memory that the domain may ever have; returns the limits that go with its real
/// target.
///
/// The toolstack limits a domain that it builds to little more than the target.  But a guest that has not
/// reached its target yet, or whose target changes during the migration, has more, and would not fit.
pub(crate) fn with_room(mut config: Value) -> (Value, Option<MemoryLimits>) {
    let memory = &mut config["b_info"];
    let Some(most) = memory["max_memkb"].as_u64() else {
        return (config, None);
    };
    let target_kib = memory["target_memkb"].as_u64().unwrap_or(most);
    memory["target_memkb"] = json!(most);
    let limits = MemoryLimits {
        target_kib,
        most_pages: target_kib.saturating_add(SLACK_KIB) / (PAGE >> 10),
    };
    (config, Some(limits))
}

/// Whether the domain's devices can be created here while it still runs at its source.
///
/// Creating them opens the disks, but reads and writes nothing until the guest connects.  That holds for
/// block devices, because Xen's backend passes requests on as they are.  It does not hold for files, whose
/// content the kernel may cache from then on, nor for scripts, which may do anything (such as making a
/// replicated disk writable here).
pub(crate) fn can_be_built_early(config: &Value) -> bool {
    let devices = config.as_object().into_iter().flatten();
    let only_plain = devices
        .filter(|(_, value)| value.as_array().is_some_and(|list| !list.is_empty()))
        .all(|(key, _)| PLAIN.contains(&key.as_str()));
    let disks = list(config, "disks").iter().all(|disk| {
        let is = |key: &str, wanted: &[&str]| match &disk[key] {
            Value::Null => true,
            value => value.as_str().is_some_and(|value| wanted.contains(&value)),
        };
        is("backend", &["phy", "unknown"])
            && is("format", &["raw"])
            && disk["script"].is_null()
            && disk["backend_domname"].is_null()
            && disk["pdev_path"].as_str().is_some_and(is_block_device)
    });
    let nics = list(config, "nics").iter();
    only_plain && disks && nics.into_iter().all(|nic| nic["script"].is_null())
}

fn is_block_device(path: &str) -> bool {
    fs::metadata(Path::new(path)).is_ok_and(|meta| meta.file_type().is_block_device())
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        agrees, arrived, can_be_built_early, can_move, memory_bytes, to_travel, with_room,
        writable_disks,
    };
    use crate::job::MemoryLimits;

    #[test]
    fn a_domain_that_comes_has_room_for_all_that_it_may_have() {
        let mut asked = config();
        asked["b_info"]["target_memkb"] = json!(131_072);
        let (built, limits) = with_room(asked);
        assert_eq!(built["b_info"]["target_memkb"], 262_144);
        let expected = MemoryLimits {
            target_kib: 131_072,
            // As Xen says of a domain that `xl mem-set` has given 128 MiB.
            most_pages: 33_024,
        };
        assert_eq!(limits, Some(expected));
        let (built, limits) = with_room(config());
        assert_eq!(built["b_info"]["target_memkb"], 262_144);
        assert_eq!(limits.map(|limits| limits.target_kib), Some(262_144));
        let (built, limits) = with_room(json!({"b_info": {}}));
        assert_eq!((built, limits), (json!({"b_info": {}}), None));
    }

    fn config() -> Value {
        json!({
            "c_info": {"type": "pvh", "name": "g", "domid": 7},
            "b_info": {"max_memkb": 262144, "avail_vcpus": [0]},
            "disks": [
                {"pdev_path": "/dev/x", "readwrite": 1},
                {"pdev_path": "/dev/y", "readwrite": 0},
                {"pdev_path": "/dev/z"},
            ],
        })
    }

    #[test]
    fn a_uuid_has_one_form_only() {
        const UUID: &str = "5e8a3c62-9f01-4b7d-8c24-1d6f0a9b3e57";
        let mut config = config();
        let disks = ["/dev/x", "/dev/z"].map(str::to_owned);
        config["c_info"]["uuid"] = json!(UUID);
        agrees(&config, UUID, &disks).unwrap();
        assert!(agrees(&config, UUID, &disks[..1]).is_err());
        let other = UUID.replace('5', "6");
        for wrong in [&UUID.to_uppercase(), &UUID[1..], &other, ""] {
            config["c_info"]["uuid"] = json!(wrong.to_uppercase());
            let same = agrees(&config, wrong, &disks).is_ok();
            assert_eq!(same, wrong == other, "{wrong}");
        }
        config["c_info"]["uuid"] = json!(UUID);
        assert!(agrees(&config, &other, &disks).is_err());
    }

    #[test]
    fn a_guest_in_a_shim_can_be_moved() {
        can_move(&config()).unwrap();
        let mut other = config();
        other["c_info"]["type"] = json!("hvm");
        assert!(can_move(&other).unwrap_err().contains("type hvm"));
        let mut other = config();
        other["pcidevs"] = json!([{}]);
        assert!(can_move(&other).unwrap_err().contains("a PCI device"));
        let mut other = config();
        other["b_info"]["vnuma_nodes"] = json!([{}]);
        assert!(can_move(&other).unwrap_err().contains("NUMA"));
    }

    #[test]
    fn read_only_disks_need_no_lock() {
        assert_eq!(writable_disks(&config()), ["/dev/x", "/dev/z"]);
    }

    #[test]
    fn a_configuration_travels_without_its_number() {
        let bytes = to_travel(&config());
        assert_eq!(bytes.last(), Some(&0));
        assert_eq!(arrived(&bytes).unwrap()["c_info"]["domid"], 0);
        assert!(arrived(b"{}").is_err());
        assert!(arrived(b"x").is_err());
    }

    #[test]
    fn memory_has_room_for_page_tables() {
        assert_eq!(
            memory_bytes(&config(), 0, 0),
            (256 << 20) + (1 << 20) + (1 << 20)
        );
        assert_eq!(
            memory_bytes(&config(), 1 << 17, 1),
            (512 << 20) + (2 << 20) + (2 << 20)
        );
    }

    #[test]
    fn only_plain_devices_are_made_early() {
        let mut config = config();
        // Not there, so no block devices.
        assert!(!can_be_built_early(&config));
        config["disks"] = json!([]);
        config["nics"] = json!([{"mac": "x"}]);
        assert!(can_be_built_early(&config));
        config["nics"] = json!([{"script": "vif-route"}]);
        assert!(!can_be_built_early(&config));
        config["nics"] = json!([]);
        config["vfbs"] = json!([{}]);
        assert!(!can_be_built_early(&config));
    }
}
