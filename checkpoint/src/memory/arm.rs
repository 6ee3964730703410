//! In other processes: a userfaultfd made by them, and their memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::ptr;

use nix::libc;
use nix::unistd::Pid;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::PAGE;
use crate::guard::{Borrowed, as_tracer};
use crate::process::vdso;

/// Does this while a process stands still: some ten microseconds a thread.
pub(super) fn still<T: Send>(pid: Pid, work: impl FnOnce(&Borrowed) -> io::Result<T> + Send) -> io::Result<T> {
    as_tracer(|| work(&Borrowed::of(pid)?))
}

/// A userfaultfd for the memory of another process, which stands still. One of its threads makes it and, once it is ours too, closes it:
/// so no other thread and no child ever sees it.
pub(super) fn userfaultfd_of(pid: Pid, borrowed: &Borrowed) -> io::Result<OwnedFd> {
    let gate = system_call_of_vdso(pid)?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    let fd = borrowed.call(gate, libc::SYS_userfaultfd, [flags as u64, 0])?;
    let taken = take(pid, fd as i32);
    borrowed.call(gate, libc::SYS_close, [fd as u64, 0])?;
    taken
}

/// `UFFD_USER_MODE_ONLY`: needs no privilege. Writes of the kernel are followed as well, as no fault is ever handed to us.
const USER_MODE_ONLY: i32 = 1;

/// A descriptor of another process, also ours.
pub(super) fn take(pid: Pid, fd: i32) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::NotFound)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(pidfd_getfd(process, fd, PidfdGetfdFlags::empty())?)
}

/// Where the vDSO of a process has a `syscall` instruction: code that is there without our writing any.
fn system_call_of_vdso(pid: Pid) -> io::Result<u64> {
    let Range { start, end } = vdso(pid.as_raw()).into_iter().next().ok_or(io::ErrorKind::Unsupported)?;
    let mut code = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut code, start)?;
    let at = code.windows(2).position(|bytes| bytes == [0x0f, 0x05]).ok_or(io::ErrorKind::Unsupported)?;
    Ok(start + at as u64)
}

/// The memory of a process, read by the way that is open also where the process has taken its own right to read away. Not by
/// process_vm_readv(2), which is no faster, and has the kernel make a copy of each page that the process shares since a fork (Linux 5.19),
/// charged to the pod.
pub(super) struct Memory(File);

impl Memory {
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        Ok(Self(File::open(format!("/proc/{pid}/mem"))?))
    }

    /// As much as there is room for.
    pub(super) fn read_exact(&self, address: u64, data: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(data, address)
    }

    /// All of these ranges of whole pages, one after the other. What is not mapped any more is zero: nobody will ask for it.
    pub(super) fn read_or_zeros(&self, ranges: &[Range<u64>]) -> Vec<u8> {
        let mut data = vec![0; ranges.iter().map(|range| (range.end - range.start) as usize).sum()];
        for (address, part) in divided(ranges, &mut data) {
            if self.read_exact(address, part).is_err() {
                for (page, address) in part.chunks_mut(PAGE as usize).zip((address..).step_by(PAGE as usize)) {
                    if self.read_exact(address, page).is_err() {
                        page.fill(0);
                    }
                }
            }
        }
        data
    }
}

/// Whether memory can be read that its process must not read itself. A kernel can be told not to let anybody (`proc_mem.force_override`,
/// Linux 6.12): a page that is protected just when it is copied would be zero on the target.
pub(super) fn reads_what_is_protected() -> bool {
    let length = PAGE as usize;
    // SAFETY: new memory, at an address of the kernel's choice.
    let page = unsafe { mmap_anonymous(ptr::null_mut(), length, ProtFlags::empty(), MapFlags::PRIVATE) };
    let Ok(page) = page else { return false };
    let read = Memory::of(std::process::id().cast_signed()).and_then(|own| own.read_exact(page as u64, &mut [0]));
    // SAFETY: the same memory, which nobody uses.
    let _ = unsafe { munmap(page, length) };
    read.is_ok()
}

/// Where each range begins, and its part of the bytes.
pub(super) fn divided<'a>(
    ranges: &'a [Range<u64>],
    mut data: &'a mut [u8],
) -> impl Iterator<Item = (u64, &'a mut [u8])> {
    ranges.iter().map(move |range| {
        let (part, rest) = std::mem::take(&mut data).split_at_mut((range.end - range.start) as usize);
        data = rest;
        (range.start, part)
    })
}
