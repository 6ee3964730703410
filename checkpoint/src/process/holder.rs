//! The process that the tests look at: it takes hold of everything odd that the kernel gives, and waits.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

pub(super) const FEATURES: &[&str] = &[
    "memfd_secret",
    "io_uring",
    "userfaultfd",
    "mptcp",
    "tcp",
    "unix",
    "droppable",
    "ghost",
    "mapped_ghost",
    "unlinked",
    "packet_pipe",
    "shared_mapping",
    "lock",
    "lease",
    "memfd",
    "eventfd",
    "epoll",
    "perf",
    "bpf",
    "mqueue",
    "pidfd",
    "pty",
    "high_fd",
    "namespace",
    "device",
];

/// Environment variable with the directory for its files.
pub(super) const DIRECTORY: &str = "HOLDER_DIRECTORY";

/// Not a test: started by the tests as a process of its own. Says what it lacks, then READY, and ends with its standard input.
#[test]
#[ignore = "a helper process of other tests"]
fn hold_everything() {
    let dir = std::env::var_os(DIRECTORY).expect("only the tests beside this one start it");
    let dir = Path::new(&dir);
    let mut held = Vec::new();
    for feature in FEATURES {
        match take(feature, dir) {
            Ok(fds) => held.extend(fds),
            Err(e) => println!("\nLACKS {feature} {e:?}"),
        }
    }
    println!("\nREADY");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn take(feature: &str, dir: &Path) -> Result<Vec<OwnedFd>, Errno> {
    let fd = match feature {
        "memfd_secret" => {
            let fd = call(libc::SYS_memfd_secret, [0; 5])?;
            nix::unistd::ftruncate(&fd, 4096)?;
            map(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, Some((&fd, 0)))?;
            fd
        }
        "io_uring" => {
            let mut parameters = [0u64; 15];
            let fd = call(libc::SYS_io_uring_setup, [4, parameters.as_mut_ptr() as i64, 0, 0, 0])?;
            map(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE, Some((&fd, 0)))?;
            fd
        }
        "userfaultfd" => call(libc::SYS_userfaultfd, [i64::from(libc::O_CLOEXEC | 1), 0, 0, 0, 0])?,
        "mptcp" => call(libc::SYS_socket, [2, 1, 262, 0, 0])?,
        "tcp" => std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(),
        "unix" => {
            let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
            return Ok(vec![a.into(), b.into()]);
        }
        "droppable" => {
            const MAP_DROPPABLE: i32 = 8;
            map(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_ANONYMOUS | MAP_DROPPABLE, None)?;
            return Ok(Vec::new());
        }
        "ghost" => {
            let mut file = file(&dir.join("ghost-open"));
            file.write_all(&[7; 1 << 16]).unwrap();
            // Delayed allocation would leave the file without blocks for a while.
            file.sync_all().unwrap();
            std::fs::remove_file(dir.join("ghost-open")).unwrap();
            file.into()
        }
        "mapped_ghost" => {
            let mapped = file(&dir.join("ghost-mapped"));
            mapped.set_len(4096).unwrap();
            map(4096, libc::PROT_READ, libc::MAP_PRIVATE, Some((&mapped.into(), 0)))?;
            std::fs::remove_file(dir.join("ghost-mapped")).unwrap();
            return Ok(Vec::new());
        }
        "unlinked" => {
            // The second one is really called so.
            let names = ["unlinked", "kept (deleted)"].map(|n| dir.join(n));
            let held = names.clone().map(|n| file(&n).into());
            std::fs::hard_link(&names[0], dir.join("another link")).unwrap();
            std::fs::remove_file(&names[0]).unwrap();
            return Ok(held.into());
        }
        "packet_pipe" => {
            let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_DIRECT)?;
            return Ok(vec![read, write]);
        }
        "shared_mapping" => {
            let mapped = file(&dir.join("a shared mapping"));
            mapped.set_len(4096).unwrap();
            map(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, Some((&mapped.into(), 0)))?;
            return Ok(Vec::new());
        }
        "lock" => {
            let file = file(&dir.join("locked"));
            // SAFETY: flock takes a descriptor and an operation, no memory.
            Errno::result(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) })?;
            file.into()
        }
        "lease" => {
            file(&dir.join("leased")).rewind().unwrap();
            let file = File::open(dir.join("leased")).unwrap();
            // SAFETY: F_SETLEASE takes an integer.
            Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) })?;
            file.into()
        }
        "memfd" => call(libc::SYS_memfd_create, [c"cache".as_ptr() as i64, 0, 0, 0, 0])?,
        "eventfd" => call(libc::SYS_eventfd2, [0; 5])?,
        "epoll" => call(libc::SYS_epoll_create1, [0; 5])?,
        "perf" => {
            // perf_event_attr: type PERF_TYPE_SOFTWARE, size 64, config PERF_COUNT_SW_CPU_CLOCK.
            let mut attributes = [0u32; 16];
            (attributes[0], attributes[1]) = (1, 64);
            call(libc::SYS_perf_event_open, [attributes.as_ptr() as i64, 0, -1, -1, 0])?
        }
        "bpf" => {
            // BPF_MAP_CREATE of an array: key 4 bytes, value 4 bytes, 1 entry.
            let attributes = [2u32, 4, 4, 1, 0, 0, 0, 0];
            call(libc::SYS_bpf, [0, attributes.as_ptr() as i64, 32, 0, 0])?
        }
        "mqueue" => {
            let name = std::ffi::CString::new(format!("podd-test-{}", std::process::id())).unwrap();
            let create = i64::from(libc::O_CREAT | libc::O_RDWR);
            let fd = call(libc::SYS_mq_open, [name.as_ptr() as i64, create, 0o600, 0, 0])?;
            call_plain(libc::SYS_mq_unlink, [name.as_ptr() as i64, 0, 0, 0, 0])?;
            fd
        }
        "pidfd" => call(libc::SYS_pidfd_open, [i64::from(std::process::id()), 0, 0, 0, 0])?,
        "pty" => {
            let pty = nix::pty::openpty(None, None)?;
            return Ok(vec![pty.master, pty.slave]);
        }
        "high_fd" => {
            let null = File::open("/dev/null").unwrap();
            call_plain(libc::SYS_dup3, [i64::from(null.as_raw_fd()), 900, 0, 0, 0])?;
            // SAFETY: 900 was just made and has no other owner.
            unsafe { OwnedFd::from_raw_fd(900) }
        }
        "namespace" => File::open("/proc/self/ns/uts").unwrap().into(),
        "device" => File::open("/dev/kmsg").map_err(|e| Errno::from_raw(e.raw_os_error().unwrap()))?.into(),
        other => panic!("unknown feature {other}"),
    };
    Ok(vec![fd])
}

fn file(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// A system call that returns a new descriptor.
fn call(number: libc::c_long, arguments: [i64; 5]) -> Result<OwnedFd, Errno> {
    let fd = call_plain(number, arguments)?;
    // SAFETY: the call succeeded, so this is a new descriptor without another owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn call_plain(number: libc::c_long, [a, b, c, d, e]: [i64; 5]) -> Result<i64, Errno> {
    // SAFETY: pointers among the arguments are to live buffers of the size that the call expects.
    Errno::result(unsafe { libc::syscall(number, a, b, c, d, e) })
}

/// Maps pages and never lets go of them.
fn map(bytes: usize, protection: i32, flags: i32, file: Option<(&OwnedFd, i64)>) -> Result<(), Errno> {
    let (fd, offset) = file.map_or((-1, 0), |(fd, offset)| (fd.as_raw_fd(), offset));
    // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory in use.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, offset) };
    if address == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}
