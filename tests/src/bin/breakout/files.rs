//! Out by way of the file system: roots, descriptors, mounts, devices, kernel files.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::libc;

use crate::raw::{address, call, string};
use crate::{Attempt, Outcome, Target};

/// Argument of the child that loses its root on purpose.
pub const CHROOT_CHILD: &str = "--chroot-child";
/// Enough `..` for any depth.
const UP: &str = "../../../../../../../../../../../../../../../../../../../../../../../../../../../../../../../..";

pub const ATTEMPTS: &[Attempt] = &[
    ("chroot-escape", chroot_escape),
    ("directory-descriptors", directory_descriptors),
    ("proc-root-links", proc_root_links),
    ("symlink-to-host-proc", symlink_to_host_proc),
    ("exe-overwrite", exe_overwrite),
    ("mount-tmpfs", |_| mount(c"tmpfs", Some(c"tmpfs"), 0)),
    ("mount-proc", |_| mount(c"proc", Some(c"proc"), 0)),
    ("mount-cgroup", |_| mount(c"cgroup2", Some(c"cgroup2"), 0)),
    ("mount-bind", |_| mount(c"/", None, libc::MS_BIND)),
    ("remount-sys-writable", |_| remount_writable(c"/sys")),
    ("remount-proc-writable", |_| remount_writable(c"/proc")),
    ("umount-proc", |_| umount(c"/proc")),
    ("umount-masks", |_| umount(c"/proc/kcore")),
    ("pivot-root", |_| Outcome::of(call(libc::SYS_pivot_root, [string(c"/tmp"), string(c"/tmp")]))),
    ("fsopen", |_| Outcome::of(call(libc::SYS_fsopen, [string(c"tmpfs"), 0]))),
    ("open-tree", |_| Outcome::of(call(libc::SYS_open_tree, [libc::AT_FDCWD as usize, string(c"/"), 1]))),
    ("mknod-disk", |_| mknod(libc::S_IFBLK, 8, 0)),
    ("mknod-mem", |_| mknod(libc::S_IFCHR, 1, 1)),
    ("host-devices", host_devices),
    ("kernel-memory", |_| {
        none_readable(&["/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/timer_list", "/proc/sched_debug"])
    }),
    ("kernel-settings", |_| {
        none_writable(&[
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/modprobe",
            "/proc/sys/kernel/sysrq",
            "/proc/sys/kernel/panic",
            "/proc/sys/kernel/ns_last_pid",
            "/proc/sys/kernel/randomize_va_space",
            "/proc/sys/vm/drop_caches",
            "/proc/sys/vm/overcommit_memory",
            "/proc/sys/fs/binfmt_misc/register",
            "/proc/sys/fs/file-max",
            "/proc/irq/default_smp_affinity",
        ])
    }),
    ("sysrq", |_| none_writable(&["/proc/sysrq-trigger"])),
    ("sys-write", |_| {
        none_writable(&[
            "/sys/kernel/uevent_helper",
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "/sys/kernel/mm/ksm/run",
            "/sys/kernel/kexec_crash_size",
            "/sys/kernel/rcu_expedited",
            "/sys/power/state",
            "/sys/module/kernel/parameters/panic",
            "/sys/class/net/lo/mtu",
        ])
    }),
    ("sys-create", sys_create),
    ("cgroup-escape", cgroup_escape),
    ("open-by-handle", open_by_handle),
];

/// The pod's root, as (device, inode).
fn identity(path: impl AsRef<Path>) -> std::io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Where `..` leads to in the end must be the pod's root.
fn leads_to_root(dir: &Path) -> Option<Outcome> {
    let (top, root) = (identity(dir.join(UP)).ok()?, identity("/").ok()?);
    Some(if top == root {
        Outcome::blocked("ends at the pod's root")
    } else {
        Outcome::through("leads to another root")
    })
}

fn chroot_escape(_: &Target) -> Outcome {
    match Command::new("/proc/self/exe").arg(CHROOT_CHILD).output() {
        Ok(output) if output.status.code() == Some(0) => {
            Outcome::blocked(String::from_utf8_lossy(&output.stdout).trim())
        }
        Ok(output) => Outcome::through(format!("{} {}", output.status, String::from_utf8_lossy(&output.stdout).trim())),
        Err(error) => Outcome::through(format!("the attempt could not be made: {error}")),
    }
}

/// The classic: hold a directory open, chroot below it, walk up from the open one. Ends with 0 if that did not help.
pub fn escape_chroot() -> ExitCode {
    let attempt = || -> std::io::Result<bool> {
        let root = identity("/")?;
        let jail = std::env::temp_dir().join(format!("breakout-jail-{}", std::process::id()));
        fs::create_dir_all(&jail)?;
        let outside = File::open("/")?;
        std::os::unix::fs::chroot(&jail)?;
        nix::unistd::fchdir(&outside)?;
        let _ = fs::remove_dir(jail.strip_prefix("/").unwrap_or(&jail));
        nix::unistd::chdir(UP)?;
        std::os::unix::fs::chroot(".")?;
        Ok(identity("/")? == root)
    };
    let (text, code) = match attempt() {
        Ok(true) => ("ends at the pod's root".into(), 0),
        Ok(false) => ("leads to another root".into(), 1),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => ("EPERM".into(), 0),
        Err(error) => (error.to_string(), 1),
    };
    println!("{text}");
    ExitCode::from(code)
}

/// Directories of the host that were left open (as in CVE-2024-21626).
fn directory_descriptors(_: &Target) -> Outcome {
    let links = processes().into_iter().flat_map(|process| {
        let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
        descriptors.chain([process.join("cwd")]).collect::<Vec<_>>()
    });
    Outcome::worst(
        links.filter(|link| link.is_dir()).filter_map(|link| Some((link.display().to_string(), leads_to_root(&link)?))),
    )
}

fn proc_root_links(_: &Target) -> Outcome {
    let roots = processes().into_iter().map(|process| process.join("root"));
    Outcome::worst(roots.filter_map(|root| Some((root.display().to_string(), leads_to_root(&root)?))))
}

fn symlink_to_host_proc(target: &Target) -> Outcome {
    let link = std::env::temp_dir().join(format!("breakout-link-{}", std::process::id()));
    let pid = target.host_pid;
    let outcomes = ["root", "cwd", "environ", "exe", "ns/mnt"].map(|what| {
        let aim = format!("{UP}/proc/{pid}/{what}");
        let outcome = match symlink(&aim, &link) {
            Ok(()) => Outcome::of_io(File::open(&link)),
            Err(error) => Outcome::through(format!("the attempt could not be made: {error}")),
        };
        let _ = fs::remove_file(&link);
        (aim, outcome)
    });
    Outcome::worst(outcomes)
}

/// A program of the host that runs inside the pod could be overwritten through /proc (as in CVE-2019-5736). The pod may
/// write its own files.
fn exe_overwrite(_: &Target) -> Outcome {
    let foreign = processes().into_iter().map(|process| process.join("exe")).filter(|exe| {
        match (fs::read_link(exe), identity(exe)) {
            // A file that is gone cannot be harmed.
            (Ok(path), _) if path.to_string_lossy().ends_with(" (deleted)") => false,
            (Ok(path), Ok(file)) => identity(path).ok() != Some(file),
            _ => false,
        }
    });
    Outcome::worst(foreign.map(|exe| {
        let outcome = Outcome::of_io(OpenOptions::new().write(true).open(&exe));
        (format!("{} -> {}", exe.display(), fs::read_link(&exe).unwrap_or_default().display()), outcome)
    }))
}

/// On a folder of its own, and off again if it should succeed.
fn mount(source: &CStr, kind: Option<&CStr>, flags: u64) -> Outcome {
    let dir = std::env::temp_dir().join(format!("breakout-mount-{}", std::process::id()));
    let made = fs::create_dir_all(&dir).map(|()| CString::new(dir.as_os_str().as_bytes()));
    let Ok(Ok(target)) = made else {
        return Outcome::through("the attempt could not be made: no folder to mount on");
    };
    let result = call(libc::SYS_mount, [string(source), string(&target), kind.map_or(0, string), flags as usize, 0]);
    if result.is_ok() {
        let _ = call(libc::SYS_umount2, [string(&target), libc::MNT_DETACH as usize]);
    }
    let _ = fs::remove_dir(dir);
    Outcome::of(result)
}

fn remount_writable(target: &CStr) -> Outcome {
    let flags = (libc::MS_REMOUNT | libc::MS_BIND) as usize;
    Outcome::of(call(libc::SYS_mount, [string(c"none"), string(target), 0, flags, 0]))
}

/// MNT_EXPIRE only marks the mount.
fn umount(target: &CStr) -> Outcome {
    Outcome::of(call(libc::SYS_umount2, [string(target), libc::MNT_EXPIRE as usize]))
}

fn mknod(kind: libc::mode_t, major: u32, minor: u32) -> Outcome {
    let path = std::env::temp_dir().join(format!("breakout-node-{}", std::process::id()));
    let kind = nix::sys::stat::SFlag::from_bits_truncate(kind);
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    let result = nix::sys::stat::mknod(&path, kind, mode, nix::sys::stat::makedev(major.into(), minor.into()));
    let _ = fs::remove_file(path);
    Outcome::of(result)
}

/// Everything in /dev that is a device must be one of those that every program may use.
fn host_devices(_: &Target) -> Outcome {
    let harmless = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::from("/dev")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = fs::symlink_metadata(entry.path()) else {
                continue;
            };
            let device = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
            match metadata.mode() & libc::S_IFMT {
                libc::S_IFDIR => dirs.push(entry.path()),
                // 136 ... 143: pseudo terminals.
                libc::S_IFCHR if harmless.contains(&device) || (136..144).contains(&device.0) => {}
                libc::S_IFCHR | libc::S_IFBLK => found.push(entry.path().display().to_string()),
                _ => {}
            }
        }
    }
    Outcome::nothing(&found)
}

/// Masked files may be opened, but have nothing in them.
fn none_readable(paths: &[&str]) -> Outcome {
    Outcome::worst(paths.iter().map(|path| {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let outcome = match file.and_then(|mut file| file.read(&mut [0; 64])) {
            Ok(0) => Outcome::blocked("empty"),
            other => Outcome::of_io(other),
        };
        (path.to_string(), outcome)
    }))
}

/// Opening is enough: nothing is written.
fn none_writable(paths: &[&str]) -> Outcome {
    Outcome::worst(paths.iter().map(|path| {
        // A file that is masked by /dev/null takes writes, to no effect.
        let masked = fs::metadata(path).is_ok_and(|metadata| metadata.rdev() == nix::sys::stat::makedev(1, 3));
        let outcome =
            if masked { Outcome::blocked("masked") } else { Outcome::of_io(OpenOptions::new().write(true).open(path)) };
        (path.to_string(), outcome)
    }))
}

fn sys_create(_: &Target) -> Outcome {
    let dir = "/sys/fs/cgroup/breakout";
    let result = fs::create_dir(dir);
    if result.is_ok() {
        let _ = fs::remove_dir(dir);
    }
    Outcome::of_io(result)
}

/// Any control file that can be opened for writing may lift a limit, move a process, or name a release agent.
fn cgroup_escape(_: &Target) -> Outcome {
    let mut dirs = vec![PathBuf::from("/sys/fs/cgroup")];
    dirs.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
    let names = [
        "release_agent",
        "notify_on_release",
        "cgroup.procs",
        "cgroup.subtree_control",
        "cgroup.freeze",
        "tasks",
        "memory.max",
        "memory.limit_in_bytes",
        "devices.allow",
        "pids.max",
    ];
    let files = dirs.iter().flat_map(|dir| names.map(|name| dir.join(name)));
    Outcome::worst(
        files.map(|file| (file.display().to_string(), Outcome::of_io(OpenOptions::new().write(true).open(&file)))),
    )
}

/// Handles name files by inode number, whatever is mounted where (the "Shocker" attack).
fn open_by_handle(_: &Target) -> Outcome {
    let root = match File::open("/") {
        Ok(root) => root,
        Err(error) => return Outcome::through(format!("the attempt could not be made: {error}")),
    };
    // struct file_handle: 8 bytes of handle, type 1 (an inode and its generation), inode 2: a file system's root.
    let handle = [8u32, 1, 2, 0];
    Outcome::of(call(
        libc::SYS_open_by_handle_at,
        [root.as_raw_fd() as usize, address(&handle), libc::O_RDONLY as usize],
    ))
}

/// Folders of all processes in /proc, this one's first.
pub fn processes() -> Vec<PathBuf> {
    let is_process = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<u32>().is_ok())
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path()).filter(is_process);
    [PathBuf::from("/proc/self")].into_iter().chain(all).collect()
}
