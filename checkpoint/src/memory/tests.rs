//! A process that writes its memory in all sorts of ways while it is copied.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::libc;

use super::*;

const PAGES: usize = 8192;

/// The victim: does what each line of its input says.
#[test]
#[ignore = "a helper process of the other tests"]
fn victim() {
    let mapping = |pages: usize| {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, at an address of the kernel's choice.
        let new = unsafe { libc::mmap(std::ptr::null_mut(), pages * PAGE as usize, access, kind, -1, 0) };
        assert_ne!(new, libc::MAP_FAILED);
        new.cast::<u8>()
    };
    let write = |memory: *mut u8, pages: Range<usize>, salt: u8| {
        for page in pages {
            // SAFETY: within the mapping, which nobody else uses.
            unsafe { memory.add(page * PAGE as usize + page % 4000).write_volatile(salt.wrapping_add(page as u8) | 1) };
        }
    };
    // A thread that waits in a call which the kernel goes on with by itself: cut short, the process ends.
    std::thread::spawn(|| {
        let time = libc::timespec { tv_sec: 3600, tv_nsec: 0 };
        // SAFETY: it reads the time, and writes none.
        unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
        std::process::abort();
    });
    let mut memory = mapping(PAGES);
    write(memory, 0..PAGES, 0);
    println!("READY");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["write", from, to, salt] => {
                write(memory, from.parse().unwrap()..to.parse().unwrap(), salt.parse().unwrap());
            }
            ["read"] => {
                // The kernel writes for it.
                let mut zeros = std::fs::File::open("/dev/urandom").unwrap();
                // SAFETY: pages of its own.
                let buffer =
                    unsafe { std::slice::from_raw_parts_mut(memory.add(100 * PAGE as usize), 3 * PAGE as usize) };
                std::io::Read::read_exact(&mut zeros, buffer).unwrap();
            }
            ["forget"] => {
                // SAFETY: pages of its own, whose content it gives up.
                let result = unsafe {
                    libc::madvise(memory.add(200 * PAGE as usize).cast(), 50 * PAGE as usize, libc::MADV_DONTNEED)
                };
                assert_eq!(result, 0);
            }
            ["move"] => {
                // To where other memory was that has been copied already, and back to work.
                let other = mapping(PAGES);
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                let bytes = PAGES * PAGE as usize;
                // SAFETY: both are mappings of its own of this size; the old addresses are not used again.
                memory = unsafe { libc::mremap(memory.cast(), bytes, bytes, flags, other) }.cast();
                write(memory, 0..10, 77);
            }
            ["shrink", pages] => {
                let pages: usize = pages.parse().unwrap();
                // SAFETY: pages of its own, which it does not use again.
                let result =
                    unsafe { libc::munmap(memory.add(pages * PAGE as usize).cast(), (PAGES - pages) * PAGE as usize) };
                assert_eq!(result, 0);
                write(memory, 0..pages, 3);
            }
            ["resize", times] => {
                let sizes = [PAGES, PAGES + 100, PAGES + 2000];
                for n in 0..times.parse().unwrap() {
                    let [from, to] = [n, n + 1].map(|n: usize| sizes[n % sizes.len()] * PAGE as usize);
                    // SAFETY: a mapping of its own of this size; the old address is not used again.
                    let moved = unsafe { libc::mremap(memory.cast(), from, to, libc::MREMAP_MAYMOVE) };
                    assert_ne!(moved, libc::MAP_FAILED, "{}", io::Error::last_os_error());
                    memory = moved.cast();
                    write(memory, 0..10, n as u8);
                }
            }
            ["protect", times] => {
                // Divided, and one again, and moved as a whole.
                let bytes = PAGES * PAGE as usize;
                for n in 0..times.parse().unwrap() {
                    for access in [libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE] {
                        // SAFETY: pages of its own, which are not written to meanwhile.
                        let result =
                            unsafe { libc::mprotect(memory.add(100 * PAGE as usize).cast(), PAGE as usize, access) };
                        assert_eq!(result, 0);
                    }
                    // SAFETY: a mapping of its own of this size; the old address is not used again.
                    let moved =
                        unsafe { libc::mremap(memory.cast(), bytes, bytes + PAGE as usize, libc::MREMAP_MAYMOVE) };
                    assert_ne!(moved, libc::MAP_FAILED, "{}", io::Error::last_os_error());
                    // SAFETY: as above.
                    memory = unsafe { libc::mremap(moved, bytes + PAGE as usize, bytes, libc::MREMAP_MAYMOVE) }.cast();
                    write(memory, 0..10, n as u8);
                }
            }
            ["swap", times] => {
                // A large mapping comes, and goes, where `memory` can grow no further than to a small one.
                let bytes = PAGES * PAGE as usize;
                let place = mapping(3 * PAGES);
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                let moved = |from: *mut u8, length: usize, to: *mut u8| {
                    // SAFETY: mappings of its own; what lies at the new place has nothing in it, and old addresses are not used again.
                    let moved = unsafe { libc::mremap(from.cast(), length, length, flags, to) };
                    assert_ne!(moved, libc::MAP_FAILED, "{}", io::Error::last_os_error());
                };
                // SAFETY: within `place`, or right behind what lies there.
                let [hole, small] = [PAGES, 2 * PAGES].map(|page| unsafe { place.add(page * PAGE as usize) });
                moved(memory, bytes, place);
                memory = place;
                let (large, aside) = (mapping(2 * PAGES), mapping(2 * PAGES));
                moved(large, 2 * bytes, aside);
                for _ in 0..times.parse().unwrap() {
                    moved(aside, 2 * bytes, hole);
                    moved(hole, 2 * bytes, aside);
                    let (access, kind) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
                    // SAFETY: nothing is there since the large one has gone.
                    let new = unsafe { libc::mmap(small.cast(), PAGE as usize, access, kind, -1, 0) };
                    assert_ne!(new, libc::MAP_FAILED);
                }
            }
            ["fork"] => {
                // SAFETY: the child makes one call, which is safe after a fork.
                let child = unsafe { libc::fork() };
                if child == 0 {
                    // SAFETY: as above.
                    unsafe { libc::_exit(0) };
                }
                write(memory, 0..20, 99);
                // SAFETY: no status is asked for.
                unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            }
            _ => panic!("{line}"),
        }
        println!("DONE");
    }
}

struct Victim {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Victim {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "memory::tests::victim", "--ignored", "--nocapture"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut victim = Self { child, input, output };
        victim.hears("READY");
        victim
    }

    fn hears(&mut self, word: &str) {
        let mut line = String::new();
        while !line.trim_end().ends_with(word) {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the victim has ended");
        }
    }

    fn does(&mut self, what: &str) {
        writeln!(self.input, "{what}").unwrap();
        self.hears("DONE");
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the rounds have brought, as a restore would read it.
#[derive(Default)]
struct Copy {
    pages: BTreeMap<u64, Vec<u8>>,
    data: Vec<u8>,
}

impl Copy {
    fn take(&mut self, piece: Piece) {
        if piece.name.contains("pages-") {
            assert_eq!(piece.offset, self.data.len() as u64, "in order");
            self.data.extend(piece.data);
            return;
        }
        let mut data = std::mem::take(&mut self.data);
        for [vaddr, flags, pages] in entries(&piece.data) {
            if flags == 4 {
                let rest = data.split_off((pages * PAGE) as usize);
                let addresses = (vaddr..).step_by(PAGE as usize);
                self.pages.extend(addresses.zip(data.chunks(PAGE as usize).map(<[u8]>::to_vec)));
                data = rest;
            } else {
                assert!(self.pages.contains_key(&vaddr), "an earlier round has {vaddr:#x}");
            }
        }
        assert!(data.is_empty());
    }
}

/// Address, flags and number of pages of each entry of a page map.
fn entries(map: &[u8]) -> Vec<[u64; 3]> {
    let mut rest = &map[8..];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_at(4);
        let (message, after) = after.split_at(u32::from_le_bytes(length.try_into().unwrap()) as usize);
        rest = after;
        let mut fields = BTreeMap::new();
        let mut bytes = message.iter();
        while let Some(key) = bytes.next() {
            let (mut value, mut shift) = (0u64, 0);
            for byte in bytes.by_ref() {
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            fields.insert(key >> 3, value);
        }
        if let Some(pages) = fields.get(&5) {
            entries.push([fields[&1], fields[&4], *pages]);
        }
    }
    entries
}

/// What is unwritten since the last round is as it was copied: the rest is the dump's.
fn check(victim: &Victim, tracker: &Tracker, copy: &Copy) -> u64 {
    let tracked = &tracker.processes[&victim.pid()];
    let memory = File::open(format!("/proc/{}/mem", victim.pid())).unwrap();
    let mut same = 0;
    let mut known = tracked.armed.clone();
    if tracker.backend == Backend::SoftDirty {
        // All that a dump may refer to: its bits have been cleared with all others.
        known.add_all(&tracked.copied);
    }
    for range in known.iter() {
        let mut written = Vec::new();
        if tracker.backend == Backend::SoftDirty {
            let mut found = Found::default();
            soft_dirty::find(&tracked.pagemap, &range, &mut found).unwrap();
            written.extend(found.written.iter());
        } else if sys::written_pages(&tracked.pagemap, range.clone(), false, None).is_err() {
            // Not followed any more: all of it is for the dump.
            continue;
        } else {
            sys::written_pages(&tracked.pagemap, range.clone(), false, Some(&mut written)).unwrap();
        }
        for address in range.step_by(PAGE as usize) {
            let is_written = written.iter().any(|range| range.contains(&address));
            let mut page = [0; PAGE as usize];
            if std::os::unix::fs::FileExt::read_exact_at(&memory, &mut page, address).is_err() {
                // Not mapped any more.
                continue;
            }
            if let Some(copied) = copy.pages.get(&address).filter(|_| !is_written && page != [0; PAGE as usize]) {
                assert!(*copied == page, "{address:#x} is not what was copied");
                same += 1;
            }
        }
    }
    same
}

/// Has a process stand still, or go on.
fn stop(pid: i32, still: bool) -> io::Result<()> {
    use nix::sys::signal::{Signal, kill};
    kill(Pid::from_raw(pid), if still { Signal::SIGSTOP } else { Signal::SIGCONT })?;
    while still && Process::new(pid).and_then(|p| p.stat()).map_err(io::Error::other)?.state != 'T' {
        std::thread::yield_now();
    }
    Ok(())
}

#[test]
fn what_counts_as_unwritten_is_as_it_was_copied() {
    unwritten_is_as_copied(PART);
}

#[test]
fn so_it_is_if_what_was_found_takes_several_rounds() {
    unwritten_is_as_copied(30 * PAGE);
}

fn unwritten_is_as_copied(part: u64) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let number: Vec<u32> = release.split(['.', '-']).take(2).map(|n| n.parse().unwrap()).collect();
    let backend = Backend::of_kernel();
    assert_eq!(backend == Some(Backend::WriteProtection), number >= vec![6, 7], "Linux {release}");
    // (Not both at once: soft-dirty bits take in a process's whole memory.)
    let Some(backend) = backend else {
        eprintln!("before Linux 6.7, and without soft-dirty bits, nothing goes ahead: nothing to look at");
        return;
    };
    let mut victim = Victim::start();
    let images = tempfile::tempdir().unwrap();
    let (mut tracker, mut copy) = (Tracker::new(backend), Copy::default());
    tracker.part = part;
    let pid = victim.pid();
    let round = |tracker: &mut Tracker, copy: &mut Copy| {
        tracker.arm(&[pid]);
        let mut emit = |piece| {
            copy.take(piece);
            Ok(())
        };
        tracker.round(images.path(), &|still| stop(pid, still), &mut emit).unwrap()
    };
    // All that was found.
    let pass = |tracker: &mut Tracker, copy: &mut Copy| {
        let mut pages = 0;
        loop {
            let Round { bytes, left, .. } = round(tracker, copy);
            pages += bytes / PAGE;
            if left == 0 {
                return pages;
            }
        }
    };
    assert!(pass(&mut tracker, &mut copy) >= PAGES as u64);
    assert_eq!(tracker.rounds > 1, part < PART);
    assert_eq!(tracker.waiting(), 0);
    assert!(check(&victim, &tracker, &copy) >= PAGES as u64);
    // Nothing is written between a round and a look.
    for (what, least, most) in [
        ("write 1000 1100 5", 100, 300),
        ("read", 3, 200),
        ("forget", 0, 200),
        ("write 210 220 9", 10, 200),
        ("fork", 20, 500),
        ("move", PAGES as u64 - 50, 2 * PAGES as u64),
        ("write 0 100 3", 100, 300),
    ] {
        victim.does(what);
        let pages = pass(&mut tracker, &mut copy);
        // Soft-dirty bits are those of whole huge pages.
        let most = if backend == Backend::SoftDirty { u64::MAX } else { most };
        assert!((least..=most).contains(&pages), "{what}: {pages} pages");
        assert!(check(&victim, &tracker, &copy) > PAGES as u64 / 2, "{what}");
    }
    // While it writes all the time.
    for salt in 10..40 {
        writeln!(victim.input, "write 0 {PAGES} {salt}").unwrap();
        pass(&mut tracker, &mut copy);
        victim.hears("DONE");
        // What this look takes away, the next command writes again.
        check(&victim, &tracker, &copy);
    }
    // To less than is worth it, as glibc's arenas do.
    const FEW: u64 = 3;
    const { assert!(FEW * PAGE < WORTH_IT_IN_SMALL) };
    for what in [format!("shrink {FEW}"), format!("write 0 {FEW} 5"), format!("write 0 {FEW} 6")] {
        victim.does(&what);
        pass(&mut tracker, &mut copy);
        check(&victim, &tracker, &copy);
    }
    let mut other = Victim::start();
    tracker.arm(&[pid, other.pid()]);
    other.child.kill().unwrap();
    other.child.wait().unwrap();
    tracker.round(images.path(), &|_| Ok(()), &mut |_| Ok(())).unwrap();
    drop(tracker);
    victim.does("write 0 2 1");
    assert!(victim.child.try_wait().unwrap().is_none());
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().map(|fd| fs::read_link(fd.path()).unwrap());
    assert!(fds.into_iter().all(|fd| !fd.to_string_lossy().contains("userfaultfd")), "nothing is left behind");
}

/// Heap, stack, and what libraries have of their own.
#[test]
fn of_a_small_process_nearly_all_goes_ahead() {
    let Some(backend) = Backend::of_kernel() else { return };
    let mut victim = Victim::start();
    victim.does("shrink 40");
    let (images, pid) = (tempfile::tempdir().unwrap(), victim.pid());
    let (mut tracker, mut copy) = (Tracker::new(backend), Copy::default());
    tracker.arm(&[pid]);
    let mut emit = |piece| {
        copy.take(piece);
        Ok(())
    };
    tracker.round(images.path(), &|still| stop(pid, still), &mut emit).unwrap();
    let mut all = Found::default();
    for map in Process::new(pid).unwrap().maps().unwrap() {
        let _ = soft_dirty::find(&tracker.processes[&pid].pagemap, &(map.address.0..map.address.1), &mut all);
    }
    let (ahead, all) = (check(&victim, &tracker, &copy), all.own.bytes() / PAGE);
    assert!(ahead > 40 && ahead * 10 >= all * 9, "{ahead} pages of {all}");
}

/// A mapping that is registered while it grows must stay one mapping.
#[test]
fn a_process_that_resizes_its_memory_does_not_notice() {
    does_not_notice("resize 30000");
}

/// So must one that comes into the room of another one.
#[test]
fn a_process_that_moves_its_memory_does_not_notice() {
    does_not_notice("swap 30000");
}

/// So must one that is divided for a moment.
#[test]
fn a_process_that_protects_its_memory_does_not_notice() {
    does_not_notice("protect 30000");
}

/// It would end if a call failed.
fn does_not_notice(what: &str) {
    let Some(backend) = Backend::of_kernel() else { return };
    let mut victim = Victim::start();
    writeln!(victim.input, "{what}").unwrap();
    let pid = victim.pid();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let follow = std::thread::spawn(move || {
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            Tracker::new(backend).arm(&[pid]);
        }
    });
    victim.hears("DONE");
    drop(stop);
    follow.join().unwrap();
}

/// Copies would be charged to the pod, which may be at its limit.
#[test]
fn who_is_read_goes_on_sharing_what_it_shares_since_a_fork() {
    const SHARED: usize = 64;
    let memory = vec![1_u8; (SHARED + 1) * PAGE as usize];
    let start = (memory.as_ptr() as u64).next_multiple_of(PAGE);
    let range = start..start + (SHARED as u64) * PAGE;
    // SAFETY: the child only waits to be killed.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: it touches no memory.
            unsafe { libc::pause() };
        }
    }
    let shared = |pid: i32| {
        // "page exclusively mapped" (Documentation/admin-guide/mm/pagemap.rst)
        const EXCLUSIVE: u64 = 1 << 56;
        let mut entries = [0; SHARED * 8];
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entries, start / PAGE * 8).unwrap();
        let entries = entries.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry));
        entries.filter(|entry| entry & EXCLUSIVE == 0).count()
    };
    let before = shared(child);
    let read = arm::Memory::of(child).unwrap().read_or_zeros(std::slice::from_ref(&range));
    let after = shared(child);
    // SAFETY: our own child, not waited for yet.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    assert_eq!(read, memory[(start - memory.as_ptr() as u64) as usize..][..read.len()]);
    assert_eq!((before, after), (SHARED, SHARED), "pages that are shared, before and after");
}
