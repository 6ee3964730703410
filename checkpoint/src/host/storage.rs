//! File systems: what is free, and what they can do. Probes act on a directory of their own and remove it.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{StatVfs, XattrFlags};
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen};
use serde::{Deserialize, Serialize};

use super::HostError;

/// The daemon's durable directory: layers, writable layers, kept images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDir {
    /// Where it is.
    pub path: PathBuf,
    /// Such as `ext4`.
    pub fs_type: String,
    /// Bytes that can still be written.
    pub free_bytes: u64,
    /// Files that can still be made; [`u64::MAX`] where the file system sets no limit.
    pub free_inodes: u64,
    /// An overlay can have its upper layer here, or why not.
    pub overlay: Result<(), String>,
    /// Files can have `user.` attributes, or why not.
    pub user_xattr: Result<(), String>,
    /// Idmapped mounts work; none: not tried. Filled in by the caller.
    pub idmapped: Option<bool>,
}

/// Where images in flight are put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpace {
    /// Where it is.
    pub path: PathBuf,
    /// It is memory, not disk.
    pub tmpfs: bool,
    /// Bytes that can still be written.
    pub free_bytes: u64,
}

impl StateDir {
    pub(super) fn read(path: &Path) -> Result<StateDir, HostError> {
        let space = statvfs(path)?;
        let (overlay, user_xattr) = abilities(path)?;
        Ok(StateDir {
            path: path.to_owned(),
            fs_type: fs_type(path)?,
            free_bytes: space.f_bavail * space.f_frsize,
            // btrfs and others without a fixed number of inodes say 0 of 0.
            free_inodes: if space.f_files == 0 { u64::MAX } else { space.f_favail },
            overlay,
            user_xattr,
            idmapped: None,
        })
    }
}

type Abilities = (Result<(), String>, Result<(), String>);

/// File systems that were found able, by device number: facts are read often, and the probe's directories cost a disk tens of
/// milliseconds. What failed is tried again, since a module may have been loaded since.
static ABLE: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

fn abilities(path: &Path) -> Result<Abilities, HostError> {
    let device = std::fs::metadata(path).map_err(|source| HostError::Read { path: path.into(), source })?.dev();
    let mut able = ABLE.lock().unwrap_or_else(PoisonError::into_inner);
    if able.contains(&device) {
        return Ok((Ok(()), Ok(())));
    }
    let probe = path.join(format!(".probe-{}", std::process::id()));
    // One that was killed meanwhile may have had the same number.
    let _ = std::fs::remove_dir_all(&probe);
    let found = match std::fs::create_dir(&probe) {
        Ok(()) => (overlay(&probe), user_xattr(&probe)),
        Err(e) => (Err(e.to_string()), Err(e.to_string())),
    };
    // Left behind only if the file system fails.
    let _ = std::fs::remove_dir_all(&probe);
    if found == (Ok(()), Ok(())) {
        able.insert(device);
    }
    Ok(found)
}

impl ImageSpace {
    pub(super) fn read(path: &Path) -> Result<ImageSpace, HostError> {
        let space = statvfs(path)?;
        Ok(ImageSpace { path: path.to_owned(), tmpfs: is_tmpfs(path)?, free_bytes: space.f_bavail * space.f_frsize })
    }
}

pub(super) fn is_tmpfs(path: &Path) -> Result<bool, HostError> {
    Ok(fs_type(path)? == "tmpfs")
}

fn statvfs(path: &Path) -> Result<StatVfs, HostError> {
    rustix::fs::statvfs(path).map_err(|e| HostError::Read { path: path.into(), source: e.into() })
}

fn fs_type(path: &Path) -> Result<String, HostError> {
    let magic = rustix::fs::statfs(path).map_err(|e| HostError::Read { path: path.into(), source: e.into() })?.f_type;
    // Magic numbers are 32 bits wide, the field is not everywhere.
    let magic = magic as u32;
    let name = match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlay",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        0xca45_1a4e => "bcachefs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        _ => return Ok(format!("{magic:#x}")),
    };
    Ok(name.to_owned())
}

/// Makes an overlay that is never mounted: the kernel checks the upper directory's file system all the same.
fn overlay(probe: &Path) -> Result<(), String> {
    let dirs = ["lower", "upper", "work"].map(|d| probe.join(d));
    let make = || -> io::Result<()> {
        for dir in &dirs {
            std::fs::create_dir(dir)?;
        }
        let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&overlay, "lowerdir", &dirs[0])?;
        fsconfig_set_string(&overlay, "upperdir", &dirs[1])?;
        fsconfig_set_string(&overlay, "workdir", &dirs[2])?;
        // Without it, closing the overlay writes all of the file system's dirty data to disk first.
        fsconfig_set_flag(&overlay, "volatile")?;
        Ok(fsconfig_create(&overlay)?)
    };
    make().map_err(|e| e.to_string())
}

fn user_xattr(probe: &Path) -> Result<(), String> {
    rustix::fs::setxattr(probe, "user.podd", b"probe", XattrFlags::empty()).map_err(|e| io::Error::from(e).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_overlay_works_on_disk_and_not_on_proc() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let state = StateDir::read(dir.path()).unwrap();
        assert_eq!(state.overlay, Ok(()), "on {}", state.fs_type);
        assert_eq!(state.user_xattr, Ok(()), "on {}", state.fs_type);
        assert!(state.free_bytes > 0 && state.free_inodes > 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        let proc = StateDir::read(Path::new("/proc")).unwrap();
        assert!(proc.overlay.is_err() && proc.user_xattr.is_err());
    }

    #[test]
    fn memory_is_told_from_disk() {
        assert!(ImageSpace::read(Path::new("/dev/shm")).unwrap().tmpfs);
        assert!(!ImageSpace::read(Path::new("/proc")).unwrap().tmpfs);
    }
}
