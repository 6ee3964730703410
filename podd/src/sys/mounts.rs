//! Mounts: a pod's root from layers, and the view that its processes get.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Keeps mounts that are made later in this process to itself, while unmounts of the host still arrive.
///
/// # Errors
/// Not root.
pub fn private_mount_namespace() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    propagation("/", MsFlags::MS_SLAVE)
}

/// Sets the propagation of `path` and all below it.
///
/// # Errors
/// `mount(2)`'s.
pub fn propagation(path: &str, kind: MsFlags) -> io::Result<()> {
    Ok(mount(None::<&str>, path, None::<&str>, kind | MsFlags::MS_REC, None::<&str>)?)
}

/// Shows `source` at `target` with its ids shifted by a user namespace (`mount_setattr(2)`, `MOUNT_ATTR_IDMAP`).
///
/// # Errors
/// The file system cannot do it (ext4, xfs, btrfs since 5.12-5.15; tmpfs since 6.3).
pub fn id_mapped_bind(source: &Path, target: &Path, user_namespace: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let tree = open_tree(rustix::fs::CWD, source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    set_attributes(&tree, libc::MOUNT_ATTR_IDMAP | read_only, Some(user_namespace))?;
    Ok(move_mount(&tree, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Mounts an overlay with options relative to the working directory, so that no host path shows in the pod's
/// `/proc/self/mountinfo`.
///
/// # Errors
/// `mount(2)`'s.
pub fn overlay(lower: &[String], upper: &str, work: &str, target: &str) -> io::Result<()> {
    // Highest first. The features that would bind the writable layer to this host's inodes stay off: it travels.
    let lower: Vec<&str> = lower.iter().rev().map(String::as_str).collect();
    let options = format!(
        "lowerdir={},upperdir={upper},workdir={work},index=off,metacopy=off,redirect_dir=off,xino=off",
        lower.join(":")
    );
    Ok(mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?)
}

/// Binds `source` at `target`.
///
/// # Errors
/// `mount(2)`'s.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    Ok(mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
}

/// Shows a host path at an open target: without devices, and read-only if asked. It appears only when it is so: there
/// is no moment at which it could be written to. What is mounted below it is left out, since CRIU could not dump it.
///
/// # Errors
/// `open_tree(2)`'s and `mount_setattr(2)`'s.
pub fn show(source: &Path, target: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, source, flags)?;
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    set_attributes(&tree, libc::MOUNT_ATTR_NODEV | read_only, None)?;
    let both_open = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(&tree, "", target, "", both_open)?)
}

/// Sets attributes of a mount that is not attached yet.
fn set_attributes(tree: &OwnedFd, set: u64, ids: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let userns_fd = ids.map_or(Ok(0), |fd| u64::try_from(fd.as_raw_fd())).map_err(io::Error::other)?;
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd };
    // SAFETY: tree is an open descriptor, the path is an empty C string, and the structure lives through the call
    // with its true size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Mounts a file system.
///
/// # Errors
/// `mount(2)`'s.
pub fn file_system(kind: &str, target: &Path, flags: MsFlags, options: &str) -> io::Result<()> {
    device(Path::new(kind), kind, target, flags, options)
}

/// Mounts the file system of a device.
///
/// # Errors
/// `mount(2)`'s.
pub fn device(device: &Path, kind: &str, target: &Path, flags: MsFlags, options: &str) -> io::Result<()> {
    mount(Some(device), target, Some(kind), flags, Some(options)).map_err(|e| {
        io::Error::new(io::Error::from(e).kind(), format!("cannot mount {kind} at {}: {e}", target.display()))
    })
}

/// Removes a mount, now or when its last user goes.
///
/// # Errors
/// `umount(2)`'s.
pub fn unmount(target: &Path) -> io::Result<()> {
    Ok(umount2(target, MntFlags::MNT_DETACH)?)
}

/// Makes `root` this process's `/` and forgets the old one.
///
/// # Errors
/// `pivot_root(2)`'s: `root` is not a mount point.
pub fn pivot(root: &Path) -> io::Result<()> {
    nix::unistd::chdir(root)?;
    // The old root lands on top of the new one and is taken off at once (pivot_root(2), "pivot_root(".", ".")").
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(nix::unistd::chdir("/")?)
}

/// Opens a path inside a root as its own processes would see it: links cannot lead out.
///
/// # Errors
/// It does not exist.
pub fn open_inside(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?)
}

/// Makes sure that a mount target exists inside a root, as a folder or as an empty file; opens it. What is made belongs
/// to `owner` (uid and gid), or to the caller.
///
/// # Errors
/// A parent is not a folder, part of the path is a link, or I/O errors. A link could be followed safely inside the
/// root; but the mount would then have another name than the one under which a dump and its restore speak of it.
pub fn make_target(root: BorrowedFd<'_>, path: &Path, folder: bool, owner: Option<u32>) -> io::Result<OwnedFd> {
    let mut at = open_inside(root, Path::new("."))?;
    let parts: Vec<_> = path
        .components()
        .filter_map(|c| match c {
            std::path::Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let mut so_far = std::path::PathBuf::from("/");
    for (i, part) in parts.iter().enumerate() {
        so_far.push(part);
        let last = i + 1 == parts.len();
        at = match open_without_links(root, &so_far) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if last && !folder {
                    rustix::fs::openat(
                        &at,
                        *part,
                        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC,
                        0o644.into(),
                    )?;
                } else {
                    rustix::fs::mkdirat(&at, *part, 0o755.into())?;
                }
                if let Some(id) = owner {
                    let (uid, gid) = (rustix::fs::Uid::from_raw(id), rustix::fs::Gid::from_raw(id));
                    rustix::fs::chownat(&at, *part, Some(uid), Some(gid), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
                }
                open_without_links(root, &so_far)?
            }
            Err(e) => return Err(e),
        };
    }
    Ok(at)
}

fn open_without_links(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).map_err(|e| match e {
        rustix::io::Errno::LOOP => io::Error::other(format!(
            "{} is a symbolic link in the pod's root: nothing is mounted through links (name the folder itself)",
            path.display()
        )),
        e => e.into(),
    })
}

/// The path by which a mount call reaches an open file, free of races.
#[must_use]
pub fn by_descriptor(fd: &OwnedFd) -> std::path::PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// File system type (`statfs` magic) of a path.
///
/// # Errors
/// It does not exist.
pub fn is_tmpfs(path: &Path) -> io::Result<bool> {
    Ok(nix::sys::statfs::statfs(path)?.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

/// Whether something is mounted exactly at `path` in this namespace.
///
/// # Errors
/// `/proc` cannot be read.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let table = fs::read_to_string("/proc/self/mounts")?;
    Ok(table.lines().any(|line| line.split(' ').nth(1).is_some_and(|p| Path::new(p) == path)))
}

/// A terminal pair inside a pod: the master from its own devpts, and the slave by `TIOCGPTPEER`.
///
/// # Errors
/// The pod has no `/dev/pts`.
pub fn open_terminal(root: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    // As the pod's own processes would find it: a link in there must not lead to a terminal of the host.
    let root = fs::File::open(root)?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let master = rustix::fs::openat2(&root, "dev/pts/ptmx", flags, Mode::empty(), resolve)?;
    let unlock: libc::c_int = 0;
    // SAFETY: master is an open terminal master; TIOCSPTLCK reads one int.
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: master is an open terminal master; TIOCGPTPEER takes open flags and returns a descriptor.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if slave < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok((master, unsafe { OwnedFd::from_raw_fd(slave) }))
}

/// Sets the size of a terminal.
///
/// # Errors
/// It is not one.
pub fn resize_terminal(master: &impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}
