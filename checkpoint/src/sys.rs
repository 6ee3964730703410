//! The system calls of this crate for which no other crate has a safe call: all of its `unsafe`.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;

/// Has the command enter these cgroups (their open `cgroup.procs`) before it begins, in a cgroup namespace that begins there, and
/// a network namespace.
pub(crate) fn enter(command: &mut Command, cgroups: Vec<File>, network: Option<File>) {
    let enter = move || -> io::Result<()> {
        if let Some(network) = &network {
            setns(network, CloneFlags::CLONE_NEWNET)?;
        }
        for mut procs in &cgroups {
            procs.write_all(b"0")?;
        }
        Ok(unshare(CloneFlags::CLONE_NEWCGROUP)?)
    };
    // SAFETY: between fork and exec it makes setns(2), write(2) and unshare(2) alone, and allocates nothing.
    unsafe { command.pre_exec(enter) };
}

/// Leaves a tracee in the group-stop that it has reported (`PTRACE_LISTEN`).
pub(crate) fn listen(pid: Pid) -> nix::Result<()> {
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::ptrace(libc::PTRACE_LISTEN, pid.as_raw(), 0, 0) }).map(drop)
}

/// The signals that a stopped tracee blocks, bit n - 1 for signal n.
#[cfg(target_arch = "x86_64")]
pub(crate) fn signal_mask(tid: Pid) -> nix::Result<u64> {
    let mut mask = 0u64;
    // SAFETY: the kernel writes as many bytes as it is told of, which are those of `mask`.
    let result = unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, tid.as_raw(), size_of::<u64>(), &raw mut mask) };
    Errno::result(result).map(|_| mask)
}

/// Sets what a stopped tracee blocks.
#[cfg(target_arch = "x86_64")]
pub(crate) fn set_signal_mask(tid: Pid, mask: u64) -> nix::Result<()> {
    // SAFETY: the kernel reads as many bytes as it is told of, which are those of `mask`.
    let result = unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, tid.as_raw(), size_of::<u64>(), &raw const mask) };
    Errno::result(result).map(drop)
}

/// The x87, SSE, AVX ... registers of a stopped tracee (`NT_X86_XSTATE`).
#[cfg(target_arch = "x86_64")]
pub(crate) fn extended_registers(tid: Pid) -> nix::Result<Vec<u8>> {
    // With AMX some 11 KiB, without it less than 3.
    let mut state = vec![0; 16 << 10];
    let length = xstate(libc::PTRACE_GETREGSET, tid, &mut state)?;
    state.truncate(length);
    state.shrink_to_fit();
    Ok(state)
}

/// Puts such registers back.
#[cfg(target_arch = "x86_64")]
pub(crate) fn set_extended_registers(tid: Pid, state: &[u8]) -> nix::Result<()> {
    xstate(libc::PTRACE_SETREGSET, tid, &mut state.to_vec()).map(drop)
}

#[cfg(target_arch = "x86_64")]
fn xstate(request: libc::c_uint, tid: Pid, state: &mut [u8]) -> nix::Result<usize> {
    const NT_X86_XSTATE: libc::c_long = 0x202;
    let mut part = libc::iovec { iov_base: state.as_mut_ptr().cast(), iov_len: state.len() };
    // SAFETY: `part` describes `state`, and nothing beyond it is read or written.
    let result = unsafe { libc::ptrace(request, tid.as_raw(), NT_X86_XSTATE, &raw mut part) };
    Errno::result(result).map(|_| part.iov_len)
}

mod ioctl {
    // include/uapi/linux/timerfd.h: TFD_IOC_SET_TICKS.
    nix::ioctl_write_ptr!(set_ticks, b'T', 0, u64);
}

/// Sets how often a timer (timerfd_create(2)) has fired since it was last read.
pub(crate) fn set_timer_ticks(timer: &OwnedFd, ticks: u64) -> nix::Result<()> {
    // SAFETY: the kernel reads one u64 (fs/timerfd.c, timerfd_ioctl); another descriptor than a timer's refuses.
    unsafe { ioctl::set_ticks(timer.as_raw_fd(), &raw const ticks) }.map(drop)
}

/// linux/userfaultfd.h and linux/fs.h.
mod memory {
    use nix::libc::__u64;

    #[repr(C)]
    pub struct Api {
        pub api: __u64,
        pub features: __u64,
        pub ioctls: __u64,
    }

    #[repr(C)]
    pub struct Register {
        pub start: __u64,
        pub length: __u64,
        pub mode: __u64,
        pub ioctls: __u64,
    }

    #[repr(C)]
    pub struct WriteProtect {
        pub start: __u64,
        pub length: __u64,
        pub mode: __u64,
    }

    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub struct Region {
        pub start: __u64,
        pub end: __u64,
        pub categories: __u64,
    }

    #[repr(C)]
    pub struct Scan {
        pub size: __u64,
        pub flags: __u64,
        pub start: __u64,
        pub end: __u64,
        pub walk_end: __u64,
        pub vector: __u64,
        pub vector_length: __u64,
        pub max_pages: __u64,
        pub inverted: __u64,
        pub all_of: __u64,
        pub any_of: __u64,
        pub told: __u64,
    }

    nix::ioctl_readwrite!(api, 0xaa, 0x3f, Api);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, Register);
    nix::ioctl_readwrite!(write_protect, 0xaa, 0x06, WriteProtect);
    nix::ioctl_readwrite!(scan, b'f', 16, Scan);

    #[repr(C)]
    pub struct Copy {
        pub to: __u64,
        pub from: __u64,
        pub length: __u64,
        pub mode: __u64,
        pub copied: i64,
    }

    #[repr(C)]
    pub struct Zero {
        pub start: __u64,
        pub length: __u64,
        pub mode: __u64,
        pub zeroed: i64,
    }

    #[repr(C)]
    pub struct Span {
        pub start: __u64,
        pub length: __u64,
    }

    nix::ioctl_read!(wake, 0xaa, 0x02, Span);
    nix::ioctl_readwrite!(copy, 0xaa, 0x03, Copy);
    nix::ioctl_readwrite!(zero, 0xaa, 0x04, Zero);
}

/// Bytes.
const PAGE: u64 = 4096;

/// What a process does that has memory registered with a userfaultfd (userfaultfd(2), "Reading from the userfaultfd").
#[derive(Debug)]
pub(crate) enum MemoryEvent {
    /// A thread waits for what is at this address.
    Fault(u64),
    /// It forked: the child's userfaultfd.
    Forked(OwnedFd),
    /// It moved this range there.
    Moved { from: Range<u64>, to: u64 },
    /// It unmapped this range, or gave its content up.
    Removed(Range<u64>),
}

/// All that has happened since the last time; nothing, if that is so.
pub(crate) fn memory_events(userfaultfd: &OwnedFd) -> io::Result<Vec<MemoryEvent>> {
    const SIZE: usize = 32;
    let mut bytes = [0; 16 * SIZE];
    let length = match nix::unistd::read(userfaultfd, &mut bytes) {
        Err(Errno::EAGAIN) => 0,
        read => read?,
    };
    let message = |message: &[u8]| {
        let word = |n: usize| u64::from_ne_bytes(message[8 * n..][..8].try_into().unwrap_or_default());
        match message[0] {
            0x12 => Some(MemoryEvent::Fault(word(2))),
            0x13 => Some(MemoryEvent::Forked(received((word(1) & 0xffff_ffff) as i32))),
            0x14 => Some(MemoryEvent::Moved { from: word(1)..word(1) + word(3), to: word(2) }),
            0x15 | 0x16 => Some(MemoryEvent::Removed(word(1)..word(2))),
            _ => None,
        }
    };
    Ok(bytes[..length].chunks_exact(SIZE).filter_map(message).collect())
}

/// A descriptor that the kernel has just made for this process.
pub(crate) fn received(fd: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: it is new, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Gives memory its content that is registered and has none; how many bytes of it.
///
/// # Errors
/// EEXIST: it has content. ENOENT: it is not registered. EAGAIN: [events](memory_events) come first. ESRCH: the process is gone.
pub(crate) fn copy_to(userfaultfd: &OwnedFd, to: u64, data: &[u8]) -> nix::Result<usize> {
    let mut copy = memory::Copy { to, from: data.as_ptr() as u64, length: data.len() as u64, mode: 0, copied: 0 };
    // SAFETY: the kernel reads as many bytes as it is told that there are, and the structure that it expects.
    match unsafe { memory::copy(userfaultfd.as_raw_fd(), &raw mut copy) } {
        Err(_) if copy.copied > 0 => Ok(copy.copied as usize),
        copied => copied.map(|_| data.len()),
    }
}

/// Has a page of zeros where there is none.
///
/// # Errors
/// As [`copy_to`].
pub(crate) fn zero(userfaultfd: &OwnedFd, page: u64) -> nix::Result<()> {
    let mut zero = memory::Zero { start: page, length: PAGE, mode: 0, zeroed: 0 };
    // SAFETY: the kernel reads and writes the structure that it expects.
    unsafe { memory::zero(userfaultfd.as_raw_fd(), &raw mut zero) }.map(drop)
}

/// Has whoever waits for a page look once more: what fails to give it content wakes nobody.
pub(crate) fn wake(userfaultfd: &OwnedFd, page: u64) {
    let mut span = memory::Span { start: page, length: PAGE };
    // SAFETY: the kernel reads the structure that it expects.
    let _ = unsafe { memory::wake(userfaultfd.as_raw_fd(), &raw mut span) };
}

/// A userfaultfd of this process.
pub(crate) fn userfaultfd() -> io::Result<OwnedFd> {
    const USER_MODE_ONLY: libc::c_int = 1;
    // SAFETY: the call takes flags alone, and returns a descriptor that is nobody else's.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}

/// Prepares a new userfaultfd for [`track`].
pub(crate) fn start_tracking(userfaultfd: &OwnedFd) -> io::Result<()> {
    const UFFD_API: u64 = 0xaa;
    /// `UFFD_FEATURE_PAGEFAULT_FLAG_WP`, `_WP_UNPOPULATED` (without which PAGEMAP_SCAN refuses private memory), `_WP_ASYNC`.
    const FEATURES: u64 = 1 | 1 << 13 | 1 << 15;
    let mut api = memory::Api { api: UFFD_API, features: FEATURES, ioctls: 0 };
    // SAFETY: the kernel reads and writes the structure that it expects.
    unsafe { memory::api(userfaultfd.as_raw_fd(), &raw mut api) }?;
    Ok(())
}

/// Has the kernel follow writes to mappings of the process that the userfaultfd is of; they are to be whole mappings.
pub(crate) fn track(userfaultfd: &OwnedFd, mapping: &Range<u64>) -> io::Result<()> {
    const MODE_WP: u64 = 1 << 1;
    let (start, length) = (mapping.start, mapping.end - mapping.start);
    let mut register = memory::Register { start, length, mode: MODE_WP, ioctls: 0 };
    // SAFETY: the kernel reads and writes the structure that it expects; the memory itself stays as it is.
    unsafe { memory::register(userfaultfd.as_raw_fd(), &raw mut register) }?;
    Ok(())
}

/// Has all of a [followed](track) mapping count as written: before Linux 6.13, mremap(2) leaves the marks of an earlier registration
/// in place.
pub(crate) fn count_as_written(userfaultfd: &OwnedFd, mapping: &Range<u64>) -> io::Result<()> {
    let (start, length) = (mapping.start, mapping.end - mapping.start);
    let mut unprotect = memory::WriteProtect { start, length, mode: 0 };
    // SAFETY: the kernel reads and writes the structure that it expects; the memory itself stays as it is.
    unsafe { memory::write_protect(userfaultfd.as_raw_fd(), &raw mut unprotect) }?;
    Ok(())
}

/// Adds to `written` which pages in a range have been written since they were asked for last, in order; from now on they count
/// as unwritten. Without `written` nothing changes. In `anonymous` memory no page is a file's; to look at each of them takes longer
/// than all the rest.
///
/// # Errors
/// EPERM: something in the range is not [followed](track). What comes before it has been added.
pub(crate) fn written_pages(
    pagemap: &File,
    range: Range<u64>,
    anonymous: bool,
    mut written: Option<&mut Vec<Range<u64>>>,
) -> io::Result<()> {
    const WRITTEN: u64 = 1 << 1;
    const FILE: u64 = 1 << 2;
    const PRESENT: u64 = 1 << 3;
    const SWAPPED: u64 = 1 << 4;
    const PFNZERO: u64 = 1 << 5;
    /// `PM_SCAN_WP_MATCHING` and `PM_SCAN_CHECK_WPASYNC`.
    const PROTECT: u64 = 1;
    const CHECK: u64 = 1 << 1;
    // As CRIU chooses what to dump (criu/pagemap-cache.c).
    let not = if anonymous { PFNZERO } else { FILE | PFNZERO };
    let mut regions = [memory::Region::default(); 512];
    let mut start = range.start;
    while start < range.end {
        let mut scan = memory::Scan {
            size: size_of::<memory::Scan>() as u64,
            flags: if written.is_some() { PROTECT | CHECK } else { CHECK },
            start,
            end: range.end,
            walk_end: 0,
            vector: regions.as_mut_ptr() as u64,
            vector_length: regions.len() as u64,
            max_pages: 0,
            inverted: not,
            all_of: not | WRITTEN,
            any_of: PRESENT | SWAPPED,
            told: WRITTEN,
        };
        // SAFETY: the kernel writes at most as many regions as it is told that there are, and the structure that it expects.
        let count = unsafe { memory::scan(pagemap.as_raw_fd(), &raw mut scan) }?;
        if let Some(written) = written.as_deref_mut() {
            written.extend(regions.iter().take(count.cast_unsigned() as usize).map(|region| region.start..region.end));
        }
        if scan.walk_end <= start {
            return Err(io::Error::other("PAGEMAP_SCAN does not get on"));
        }
        start = scan.walk_end;
    }
    Ok(())
}

/// linux/bpf.h: the parts of `union bpf_attr` that are used here. None has padding: the kernel reads that, too, and it would be
/// whatever lay there before (of a link to a cgroup, Linux 6.17 takes it for a revision).
mod bpf {
    /// BPF_TRACE_ITER
    pub const TRACE_ITER: u32 = 28;

    #[repr(C)]
    #[derive(Default)]
    pub struct Load {
        pub program_type: u32,
        pub instruction_count: u32,
        pub instructions: u64,
        pub license: u64,
        pub log_version_and_flags: [u64; 3],
        pub name: [u8; 16],
        pub interface: u32,
        pub attach_type: u32,
        pub own_btf: [u32; 9],
        pub attach_btf_id: u32,
        pub attach_program: u64,
    }

    #[repr(C)]
    #[derive(Default)]
    pub struct Link {
        pub program: u32,
        pub target: u32,
        pub attach_type: u32,
        pub flags: u32,
        pub parameters: u64,
        pub parameters_length: u32,
        pub zero: u32,
    }

    #[repr(C)]
    #[derive(Default)]
    pub struct Iterator {
        pub link: u32,
        pub flags: u32,
    }
}

/// Loads a program that an iterator (docs.kernel.org, "BPF Iterators") is to run for each of the kernel's objects.
///
/// # Errors
/// The kernel has no such iterators, or its verifier does not let the program pass.
pub(crate) fn bpf_iterator_program(program: &[u64], function: u32) -> nix::Result<OwnedFd> {
    const BPF_PROG_TYPE_TRACING: u32 = 26;
    let kind = bpf::Load {
        program_type: BPF_PROG_TYPE_TRACING,
        attach_type: bpf::TRACE_ITER,
        attach_btf_id: function,
        ..Default::default()
    };
    bpf_program(kind, program)
}

/// Makes an iterator of a program: each reading of it from [`iterate`] is another run over all objects, or those of one thread.
///
/// # Errors
/// The thread is gone. (Kernels before 6.1 go through all of them.)
pub(crate) fn bpf_iterator(program: &OwnedFd, thread: Option<i32>) -> nix::Result<OwnedFd> {
    let mut link = bpf::Link { attach_type: bpf::TRACE_ITER, ..Default::default() };
    // `union bpf_iter_link_info`, of which this is `task.tid`.
    let parameters = [thread.unwrap_or_default().cast_unsigned(), 0, 0, 0];
    if thread.is_some() {
        (link.parameters, link.parameters_length) = (parameters.as_ptr() as u64, size_of_val(&parameters) as u32);
    }
    bpf_link(program, &link)
}

/// Has a program look at each packet that sockets of a cgroup receive, and at each that they send, as long as both descriptors are
/// open: 1 lets it pass, 0 drops it.
///
/// # Errors
/// The kernel does not offer it.
pub(crate) fn filter_packets(program: &[u64], cgroup: &File) -> nix::Result<[OwnedFd; 2]> {
    const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
    const BPF_CGROUP_INET_INGRESS: u32 = 0;
    const BPF_CGROUP_INET_EGRESS: u32 = 1;
    let program = bpf_program(bpf::Load { program_type: BPF_PROG_TYPE_CGROUP_SKB, ..Default::default() }, program)?;
    let target = cgroup.as_raw_fd().cast_unsigned();
    let link = |attach_type| bpf_link(&program, &bpf::Link { target, attach_type, ..Default::default() });
    Ok([link(BPF_CGROUP_INET_INGRESS)?, link(BPF_CGROUP_INET_EGRESS)?])
}

/// Loads a program of this kind.
fn bpf_program(kind: bpf::Load, program: &[u64]) -> nix::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    let load = bpf::Load {
        instruction_count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        // Helpers that read the kernel's memory are for such programs alone.
        license: c"Dual BSD/GPL".as_ptr() as u64,
        ..kind
    };
    // SAFETY: the kernel reads as many instructions as it is told that there are, and a string that ends.
    unsafe { bpf_call(BPF_PROG_LOAD, &load) }
}

/// Has a program run; until the descriptor is closed.
fn bpf_link(program: &OwnedFd, link: &bpf::Link) -> nix::Result<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_long = 28;
    let link = bpf::Link { program: program.as_raw_fd().cast_unsigned(), ..*link };
    // SAFETY: it points to nothing, or to parameters of its caller, which are there until this returns.
    unsafe { bpf_call(BPF_LINK_CREATE, &link) }
}

/// One run of an iterator, to be read to its end.
pub(crate) fn iterate(iterator: &OwnedFd) -> nix::Result<File> {
    const BPF_ITER_CREATE: libc::c_long = 33;
    let link = iterator.as_raw_fd().cast_unsigned();
    // SAFETY: it points to nothing.
    unsafe { bpf_call(BPF_ITER_CREATE, &bpf::Iterator { link, flags: 0 }) }.map(File::from)
}

/// bpf(2), as far as it returns descriptors.
///
/// # Safety
/// What `attributes` point to must be there until it returns.
unsafe fn bpf_call<T>(command: libc::c_long, attributes: &T) -> nix::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes of the attributes as it is told of.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    // SAFETY: a new descriptor, that is nobody else's.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
