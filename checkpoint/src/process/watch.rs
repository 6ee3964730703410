//! What the pod's processes watch with inotify(7), by name.
//!
//! A watch knows an inode, not a path. CRIU opens the inode's file handle to learn where it is, and an overlay, the pod's
//! root, has no handles that can be opened (its `nfs_export` would bind the writable layer to this host's inodes). What
//! remains is to look for the inode where CRIU is told to (`--irmap-scan-path`), while the pod stands still. So the
//! search is made here, before that, and CRIU is told the answer.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Paths that are watched in the file system that `root` is in, as the pod sees them: files first, then the deepest
/// folders, since CRIU looks through each folder on this list before it comes to the next entry. What has no name any
/// more is left out.
pub fn watched_paths(pids: &[i32], root: &Path) -> Vec<PathBuf> {
    let Ok(top) = root.metadata() else {
        return Vec::new();
    };
    let all = pids.iter().flat_map(|pid| inodes_watched_by(*pid));
    let mut wanted: BTreeSet<u64> = all.filter(|(device, _)| *device == top.dev()).map(|(_, inode)| inode).collect();
    let mut found = Vec::new();
    if wanted.remove(&top.ino()) {
        found.push((true, PathBuf::from("/")));
    }
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        if wanted.is_empty() {
            break;
        }
        // Folders that vanish meanwhile are watched no more.
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(metadata) = path.symlink_metadata() else {
                continue;
            };
            if metadata.dev() != top.dev() {
                continue;
            }
            if wanted.remove(&metadata.ino())
                && let Ok(inside) = path.strip_prefix(root)
            {
                found.push((metadata.is_dir(), Path::new("/").join(inside)));
            }
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort_by_key(|(folder, path)| (*folder, std::cmp::Reverse(path.components().count())));
    found.into_iter().map(|(_, path)| path).collect()
}

/// Device and inode of each watch of a process.
fn inodes_watched_by(pid: i32) -> Vec<(u64, u64)> {
    anonymous(pid, "anon_inode:inotify")
        .flat_map(|(_, info)| info.lines().filter_map(parse).collect::<Vec<_>>())
        .collect()
}

/// Descriptors of a process that the kernel names so, with what it says of them (/proc/PID/fdinfo).
pub(super) fn anonymous(pid: i32, name: &'static str) -> impl Iterator<Item = (i32, String)> {
    descriptors(pid).filter(move |(_, link)| link.as_os_str() == name).filter_map(move |(number, _)| {
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
        Some((number, info))
    })
}

/// Descriptors of a process, and what they lead to; those that are closed meanwhile are left out.
pub(super) fn descriptors(pid: i32) -> impl Iterator<Item = (i32, PathBuf)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let link = std::fs::read_link(entry.path()).ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, link))
    })
}

/// `inotify wd:3 ino:9e7e sdev:800013 mask:800afce ...`, all hexadecimal; the device as the kernel has it inside
/// (Documentation/filesystems/proc.rst): 12 bits of major, 20 bits of minor number.
fn parse(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.strip_prefix("inotify ")?.split(' ');
    let mut field = |name: &str| {
        let value = fields.find_map(|f| f.strip_prefix(name))?;
        u64::from_str_radix(value, 16).ok()
    };
    let inode = field("ino:")?;
    let device = u32::try_from(field("sdev:")?).ok()?;
    let device = rustix::fs::makedev(device >> 20, device & 0xf_ffff);
    Some((device, inode))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn watches_are_found_by_name() {
        use rustix::fs::inotify;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        std::fs::create_dir(dir.path().join("a/unwatched")).unwrap();
        std::fs::write(dir.path().join("a/file"), "").unwrap();
        std::fs::write(dir.path().join("gone"), "").unwrap();
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        for path in ["a/b/c", "a", "a/file", "gone", "."] {
            let flags = inotify::WatchFlags::MODIFY;
            inotify::add_watch(&watch, dir.path().join(path), flags).unwrap();
        }
        let open = std::fs::File::open(dir.path().join("gone")).unwrap();
        std::fs::remove_file(dir.path().join("gone")).unwrap();
        let own = std::process::id().cast_signed();
        let paths = watched_paths(&[own], dir.path());
        assert_eq!(paths, ["/a/file", "/a/b/c", "/a", "/"].map(PathBuf::from));
        drop(open);
    }

    #[test]
    fn lines_that_are_no_watch_are_left_out() {
        let line = "inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d";
        assert_eq!(parse(line), Some((rustix::fs::makedev(8, 0x13), 0x9e7e)));
        for line in ["pos:\t0", "inotify wd:3", "inotify wd:3 ino:x sdev:1", ""] {
            assert_eq!(parse(line), None);
        }
    }
}
