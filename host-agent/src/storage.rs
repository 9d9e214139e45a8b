//! Whether a path leads to the same storage at both ends of a move.
//!
//! Two hosts can have a volume of the same name each.  A guest that is moved from one to the other goes on
//! over other data, and destroys it.  So each end says what it knows of the storage behind a disk, and a
//! disk is taken for shared only if that is the same, and is something that no other storage has:
//!
//! | storage | is told by |
//! |---|---|
//! | SCSI, iSCSI, Fibre Channel | the WWID of the unit (`naa.` but its local kind, `eui.`, `uuid.`) |
//! | NVMe | the WWID of the namespace |
//! | virtio block device | the serial number that its virtual machine gives it |
//! | multipath device | the WWID that all its paths share |
//! | logical volume | LVM's UUIDs of group and volume, and what the physical volumes are told by |
//! | partition | its place, and what the whole is told by |
//! | Ceph RBD | cluster, pool, image and snapshot |
//! | file on NFS, CephFS, Gluster | where the file system is mounted from, and the inode |
//! | file on OCFS2, GFS2 | what the device below is told by, and the inode |
//!
//! Nothing is written to find out: a guest is at work on the disk.  Nothing is read either: a fresh copy
//! of a volume has the same content.  Of anything else (DRBD, local file systems, loop devices, disks with
//! a script) only the operator knows, and has to say so.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Deepest stack of devices that is searched.
const DEEPEST: usize = 16;

/// What one host knows of the storage behind a disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Storage {
    /// The disk's name in the domain's configuration.
    pub disk: String,
    /// What distinguishes it from all other storage, if anything does.
    pub identity: Option<String>,
    /// Its size, if that is known.
    pub bytes: Option<u64>,
    /// The operator at the source vouches that both hosts share it.
    #[serde(default)]
    pub is_vouched: bool,
}

impl Storage {
    /// What this host knows of the storage behind a disk.
    #[must_use]
    pub fn of(disk: &str) -> Self {
        let (identity, bytes) = look(Path::new("/"), Path::new(disk)).unwrap_or_default();
        Self {
            disk: disk.to_owned(),
            identity,
            bytes,
            is_vouched: false,
        }
    }

    /// Checks that this storage, at the source, is the same as `here`.
    ///
    /// # Errors
    /// Why it is not, or why that is unknown.
    pub fn is_shared_with(&self, here: &Self) -> Result<(), String> {
        if self.is_vouched {
            return Ok(());
        }
        let disk = &self.disk;
        let (Some(there), Some(own)) = (&self.identity, &here.identity) else {
            return Err(format!(
                "cannot prove that the disk {disk} is the same storage on both hosts: if it is, use \
                 --shared-storage={disk}, or add it to shared_storage of the peer in the source's \
                 unmoved.toml"
            ));
        };
        if there == own && self.bytes == here.bytes {
            return Ok(());
        }
        let size =
            |bytes: Option<u64>| bytes.map_or("unknown size".into(), |n| format!("{n} bytes"));
        Err(format!(
            "the disk {disk} is not the same storage on both hosts: the source has {there} ({}), the \
             destination {own} ({}). The guest would continue on other data",
            size(self.bytes),
            size(here.bytes)
        ))
    }
}

/// Identity and size of the storage behind a path; `None` if unknown.  `root` is the folder of `/proc` and
/// `/sys`.
fn look(root: &Path, path: &Path) -> Option<(Option<String>, Option<u64>)> {
    if !path.is_absolute() {
        return None;
    }
    let meta = fs::metadata(path).ok()?;
    if meta.file_type().is_block_device() {
        let device = device(root, meta.rdev());
        return Some((identity(&device, DEEPEST), size(&device)));
    }
    if meta.is_file() {
        let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
        return Some((
            file(root, &mounts, meta.dev(), meta.ino()),
            Some(meta.len()),
        ));
    }
    None
}

/// A block device's folder in sysfs.
fn device(root: &Path, number: u64) -> PathBuf {
    root.join("sys/dev/block").join(numbers(number))
}

/// A device number in the kernel's form.
fn numbers(number: u64) -> String {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    format!("{major}:{minor}")
}

/// The content of a file in sysfs, unless it is empty.
fn say(folder: &Path, file: &str) -> Option<String> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty() && text.len() <= 256).then(|| text.to_owned())
}

/// Size in bytes; the kernel counts sectors of 512 bytes for every device.
fn size(device: &Path) -> Option<u64> {
    say(device, "size")?.parse::<u64>().ok()?.checked_mul(512)
}

/// The identity of a block device.
fn identity(device: &Path, deepest: usize) -> Option<String> {
    let deepest = deepest.checked_sub(1)?;
    if say(device, "partition").is_some() {
        let (start, length) = (say(device, "start")?, say(device, "size")?);
        // Following a link would lead to its own parent, not the device's.
        let whole = fs::canonicalize(device).ok()?.parent()?.to_owned();
        let whole = identity(&whole, deepest)?;
        return Some(format!("sectors {start}+{length} of {whole}"));
    }
    if let Some(uuid) = say(device, "dm/uuid") {
        return mapped(device, &uuid, deepest);
    }
    if let Some(cluster) = say(device, "device/cluster_fsid") {
        let (pool, image) = (
            say(device, "device/pool_id")?,
            say(device, "device/image_id")?,
        );
        let snapshot = say(device, "device/current_snap").unwrap_or_default();
        return Some(format!("rbd {cluster}/{pool}/{image}@{snapshot}"));
    }
    if let Some(id) = say(device, "wwid").or_else(|| say(device, "device/wwid")) {
        return is_unique(&id).then(|| format!("WWID {id}"));
    }
    // Only for virtio block devices; other devices have it below `device`.
    say(device, "serial").map(|serial| format!("virtio {serial}"))
}

/// Whether the identifier is unique.  Software targets often use the same `t10.` on several machines, and NAA
/// 3 is assigned locally.
fn is_unique(wwid: &str) -> bool {
    ["naa.2", "naa.5", "naa.6", "eui.", "uuid.", "nvme."]
        .iter()
        .any(|kind| wwid.starts_with(kind))
}

/// A device of the device mapper.
fn mapped(device: &Path, uuid: &str, deepest: usize) -> Option<String> {
    let mut below = Vec::new();
    for slave in fs::read_dir(device.join("slaves")).ok()? {
        below.push(identity(&slave.ok()?.path(), deepest)?);
    }
    below.sort();
    below.dedup();
    if uuid.starts_with("mpath-") {
        // Several paths to one unit.
        return below.pop().filter(|_| below.is_empty());
    }
    if uuid.starts_with("LVM-") && !below.is_empty() {
        return Some(format!("{uuid} on {}", below.join(", ")));
    }
    // Any other table may lead anywhere.
    None
}

/// The identity of a file; `mounts` is `/proc/self/mountinfo`.
fn file(root: &Path, mounts: &str, dev: u64, inode: u64) -> Option<String> {
    let wanted = numbers(dev);
    for line in mounts.lines() {
        let (mount, system) = line.split_once(" - ")?;
        if mount.split(' ').nth(2) != Some(&wanted) {
            continue;
        }
        let mut words = system.split(' ');
        let (kind, from) = (words.next()?, words.next()?);
        return match kind {
            "nfs" | "nfs4" => Some(format!("nfs {from} inode {inode}")),
            "ceph" | "fuse.glusterfs" => Some(format!("{kind} {from} inode {inode}")),
            "ocfs2" | "gfs2" => {
                let below = identity(&device(root, dev), DEEPEST)?;
                Some(format!("{kind} inode {inode} on {below}"))
            }
            _ => None,
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::{DEEPEST, Storage, device, file, identity, look, size};

    /// A `/sys` with these files.
    fn sys(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join("sys").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn of(root: &Path, name: &str) -> Option<String> {
        identity(&root.join("sys/block").join(name), DEEPEST)
    }

    /// Below a logical volume.
    fn slave(root: &Path, of: &str, name: &str) {
        let slaves = root.join("sys/block").join(of).join("slaves");
        fs::create_dir_all(&slaves).unwrap();
        symlink(root.join("sys/block").join(name), slaves.join(name)).unwrap();
    }

    #[test]
    fn units_are_told_by_what_is_unique_only() {
        let root = sys(&[
            ("block/sda/device/wwid", "naa.600140512345678\n"),
            ("block/sda/size", "2048\n"),
            ("block/sdb/device/wwid", "t10.IET     00010001\n"),
            ("block/sdc/device/wwid", "naa.300140512345678\n"),
            ("block/nvme0n1/wwid", "eui.0025388b91b1\n"),
            ("block/vda/serial", "shared"),
            ("block/drbd0/size", "2048\n"),
            ("block/rbd0/device/cluster_fsid", "f5\n"),
            ("block/rbd0/device/pool_id", "3\n"),
            ("block/rbd0/device/image_id", "10ab\n"),
            ("block/rbd0/device/current_snap", "-\n"),
        ]);
        let of = |name| of(root.path(), name);
        assert_eq!(of("sda").unwrap(), "WWID naa.600140512345678");
        assert_eq!(size(&root.path().join("sys/block/sda")), Some(1 << 20));
        assert_eq!((of("sdb"), of("sdc"), of("drbd0")), (None, None, None));
        assert_eq!(of("nvme0n1").unwrap(), "WWID eui.0025388b91b1");
        assert_eq!(of("vda").unwrap(), "virtio shared");
        assert_eq!(of("rbd0").unwrap(), "rbd f5/3/10ab@-");
    }

    #[test]
    fn a_volume_is_told_by_what_it_is_on_too() {
        let root = sys(&[
            ("block/sda/device/wwid", "naa.5000a"),
            ("block/sda/sda2/partition", "2"),
            ("block/sda/sda2/start", "64"),
            ("block/sda/sda2/size", "128"),
            ("block/md0/size", "1"),
            ("block/dm-0/dm/uuid", "LVM-groupvolume"),
            ("block/dm-1/dm/uuid", "LVM-groupother"),
            ("block/dm-2/dm/uuid", "mpath-3600"),
            ("block/dm-3/dm/uuid", "CRYPT-LUKS2"),
            ("block/sdb/device/wwid", "naa.6001"),
            ("block/sdc/device/wwid", "naa.6001"),
        ]);
        let dir = root.path();
        let partition = dir.join("sys/block/sda/sda2");
        let slaves = dir.join("sys/block/dm-0/slaves");
        fs::create_dir_all(&slaves).unwrap();
        symlink(partition, slaves.join("sda2")).unwrap();
        for (above, below) in [
            ("dm-1", "md0"),
            ("dm-2", "sdb"),
            ("dm-2", "sdc"),
            ("dm-3", "sdb"),
        ] {
            slave(dir, above, below);
        }
        // A group that was copied with its disk has the same UUIDs on another disk.
        let expected = "LVM-groupvolume on sectors 64+128 of WWID naa.5000a";
        assert_eq!(of(dir, "dm-0").unwrap(), expected);
        assert_eq!(of(dir, "dm-1"), None);
        assert_eq!(of(dir, "dm-2").unwrap(), "WWID naa.6001");
        assert_eq!(of(dir, "dm-3"), None);
        // Two units are not one by two ways.
        slave(dir, "dm-2", "sda");
        assert_eq!(of(dir, "dm-2"), None);
        // Nor does a ring of devices have an end.
        slave(dir, "dm-1", "dm-1");
        assert_eq!(of(dir, "dm-1"), None);
    }

    #[test]
    fn files_are_told_by_their_server_or_by_the_device_below() {
        let root = sys(&[("block/sda/device/wwid", "naa.6001")]);
        let links = root.path().join("sys/dev/block");
        fs::create_dir_all(&links).unwrap();
        symlink(root.path().join("sys/block/sda"), links.join("8:0")).unwrap();
        let mounts = "22 1 0:45 / /a rw - nfs4 filer:/vm rw,vers=4.2\n\
                      23 1 8:0 / /b rw shared:1 - ocfs2 /dev/sda rw\n\
                      24 1 8:1 / /c rw - ext4 /dev/sda1 rw\n";
        let of = |major, minor| file(root.path(), mounts, rustix::fs::makedev(major, minor), 7);
        assert_eq!(of(0, 45).unwrap(), "nfs filer:/vm inode 7");
        assert_eq!(of(8, 0).unwrap(), "ocfs2 inode 7 on WWID naa.6001");
        assert_eq!(of(8, 1), None);
        assert_eq!(of(9, 9), None);
        assert!(device(root.path(), rustix::fs::makedev(8, 0)).ends_with("8:0"));
    }

    #[test]
    fn a_file_of_this_host_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, "12345").unwrap();
        assert_eq!(look(Path::new("/"), &path), Some((None, Some(5))));
        assert_eq!(look(Path::new("/"), Path::new("drbd-resource")), None);
        assert_eq!(Storage::of("/nowhere/at/all").bytes, None);
    }

    #[test]
    fn only_what_is_proven_or_said_is_shared() {
        let storage = |identity: Option<&str>, bytes| Storage {
            disk: "/dev/vg/web1".to_owned(),
            identity: identity.map(str::to_owned),
            bytes: Some(bytes),
            is_vouched: false,
        };
        let (one, other) = (storage(Some("a"), 1), storage(Some("b"), 1));
        one.is_shared_with(&one).unwrap();
        assert!(
            one.is_shared_with(&other)
                .unwrap_err()
                .contains("other data")
        );
        let larger = storage(Some("a"), 2);
        assert!(one.is_shared_with(&larger).unwrap_err().contains("2 bytes"));
        let unknown = storage(None, 1);
        for (there, here) in [(&one, &unknown), (&unknown, &one), (&unknown, &unknown)] {
            let why = there.is_shared_with(here).unwrap_err();
            assert!(why.contains("--shared-storage=/dev/vg/web1"), "{why}");
        }
        let vouched = Storage {
            is_vouched: true,
            ..unknown.clone()
        };
        vouched.is_shared_with(&unknown).unwrap();
        one.is_shared_with(&vouched).unwrap_err();
    }
}
