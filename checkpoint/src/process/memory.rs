//! What a process has mapped.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use procfs::ProcResult;
use procfs::process::Process;
use serde::{Deserialize, Serialize};

use super::descriptor::Scan;

/// Memory of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFacts {
    /// Its proportional share of resident and swapped pages, in bytes, without huge pages of hugetlbfs.
    pub resident: u64,
    /// Mappings.
    pub mappings: u64,
    /// Has a mapping that the kernel may drop (MAP_DROPPABLE; getrandom in the vDSO uses one).
    pub droppable: bool,
    /// Has a mapping of memfd_secret(2).
    pub secret: bool,
    /// Mapped devices and rings, such as `anon_inode:[io_uring]` or `/dev/nvidia0`.
    pub devices: BTreeSet<String>,
    /// Bytes in huge pages of hugetlbfs by page size in bytes.
    pub huge: BTreeMap<u64, u64>,
}

/// How many names of odd mappings are kept for a process.
const MAX_NAMES: usize = 32;

/// Parses smaps(5) as it comes: a process may have 65,530 mappings of a kilobyte of text each.
pub(super) fn read(process: &Process, scan: &mut Scan) -> ProcResult<MemoryFacts> {
    let mut facts = MemoryFacts::default();
    let mut name = Vec::new();
    let mut page = 0;
    for line in BufReader::with_capacity(1 << 16, open(process.pid(), "smaps")?).split(b'\n') {
        let line = line?;
        let Some((key, value)) = field(&line) else {
            let Some(mapping) = Mapping::parse(&line) else {
                continue;
            };
            facts.mappings += 1;
            facts.secret |= mapping.name == b"/secretmem (deleted)";
            if mapping.is_ring() && facts.devices.len() < MAX_NAMES {
                facts.devices.insert(String::from_utf8_lossy(mapping.name).into_owned());
            }
            if mapping.is_deleted_file() {
                scan.mapped_ghost(process.pid(), mapping.range, mapping.name);
            }
            name = mapping.name.to_vec();
            continue;
        };
        match key {
            b"Pss" | b"SwapPss" => facts.resident += bytes(value),
            b"KernelPageSize" => page = bytes(value),
            b"Private_Hugetlb" | b"Shared_Hugetlb" if bytes(value) > 0 => {
                *facts.huge.entry(page).or_default() += bytes(value)
            }
            b"VmFlags" => {
                let has = |flag: &[u8]| value.split(|b| *b == b' ').any(|f| f == flag);
                facts.droppable |= has(b"dp");
                // The kernel's own special mappings, [vvar] and others, are in brackets.
                if (has(b"io") || has(b"pf")) && !name.starts_with(b"[") && facts.devices.len() < MAX_NAMES {
                    facts.devices.insert(String::from_utf8_lossy(&name).into_owned());
                }
            }
            _ => {}
        }
    }
    Ok(facts)
}

/// Files that these processes have mapped shared and writable, named as in their own mount namespace.
///
/// Their contents change without write(2) and, while a page stays writable, without a new modification time. A copy that goes by
/// times must take them whole: the union of the lists at each copying round and in the freeze (a file written through a mapping
/// and unmapped between two rounds is only in the earlier list).
///
/// Reads /proc/PID/maps only (about a millisecond for 1,000 mappings), works on frozen processes, and leaves out those that end.
pub fn shared_writable_files(pids: &[i32]) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for &pid in pids {
        let Ok(maps) = open(pid, "maps") else {
            continue;
        };
        for line in BufReader::with_capacity(1 << 16, maps).split(b'\n').map_while(Result::ok) {
            let Some(mapping) = Mapping::parse(&line) else {
                continue;
            };
            if mapping.shared_writable() && mapping.name.starts_with(b"/") && !mapping.name.ends_with(DELETED) {
                files.insert(PathBuf::from(OsStr::from_bytes(&unescape(mapping.name))));
            }
        }
    }
    files
}

/// Bytes in the tmpfs mounts of the process, and the POSIX message queues that it could see.
pub(super) fn mounted(process: &Process) -> (u64, Vec<String>) {
    let (mut tmpfs, mut queues) = (BTreeMap::new(), BTreeSet::new());
    // The mounts are those of a living init; if it has ended since, there is nothing to count.
    for mount in process.mountinfo().map(|m| m.0).unwrap_or_default() {
        // A directory inside a tmpfs is a volume of the host's: not the pod's memory.
        if mount.root != "/" {
            continue;
        }
        let seen = inside(process.pid(), &mount.mount_point);
        match mount.fs_type.as_str() {
            "tmpfs" => {
                if let Ok(space) = rustix::fs::statvfs(&seen) {
                    tmpfs.insert(mount.majmin, (space.f_blocks - space.f_bfree) * space.f_frsize);
                }
            }
            "mqueue" => {
                let entries = std::fs::read_dir(&seen).into_iter().flatten().flatten();
                queues.extend(entries.take(MAX_NAMES).map(|e| e.file_name().to_string_lossy().into_owned()));
            }
            _ => {}
        }
    }
    (tmpfs.into_values().sum(), queues.into_iter().collect())
}

fn inside(pid: i32, path: &Path) -> PathBuf {
    Path::new(&format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap_or(path))
}

fn open(pid: i32, file: &str) -> std::io::Result<File> {
    File::open(format!("/proc/{pid}/{file}"))
}

const DELETED: &[u8] = b" (deleted)";

/// A line of maps(5).
struct Mapping<'a> {
    range: &'a [u8],
    permissions: &'a [u8],
    name: &'a [u8],
}

impl Mapping<'_> {
    /// `START-END rwxp OFFSET DEV INODE   NAME`
    fn parse(line: &[u8]) -> Option<Mapping<'_>> {
        let mut rest = line;
        let mut next = || {
            let end = rest.iter().position(|b| *b == b' ').unwrap_or(rest.len());
            let (word, tail) = rest.split_at(end);
            rest = tail.strip_prefix(b" ").unwrap_or(tail);
            (!word.is_empty()).then_some(word)
        };
        let (range, permissions) = (next()?, next()?);
        let (_offset, _device, _inode) = (next()?, next()?, next()?);
        Some(Mapping { range, permissions, name: rest.trim_ascii_start() })
    }

    fn shared_writable(&self) -> bool {
        self.permissions.get(1) == Some(&b'w') && self.permissions.get(3) == Some(&b's')
    }

    /// Memory that a descriptor's driver fills: io_uring, perf.
    fn is_ring(&self) -> bool {
        self.name.starts_with(b"anon_inode:")
    }

    /// The kernel gives deleted names to shared anonymous memory too.
    fn is_deleted_file(&self) -> bool {
        const MEMORY: [&[u8]; 7] = [
            b"/memfd:",
            b"/dev/zero (deleted)",
            b"/SYSV",
            b"/secretmem (deleted)",
            b"/anon_hugepage (deleted)",
            b"/[aio]",
            b"/drm",
        ];
        self.name.starts_with(b"/") && self.name.ends_with(DELETED) && !MEMORY.iter().any(|m| self.name.starts_with(m))
    }
}

/// `Key:   value`; the first line of a mapping has a blank before any colon.
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|b| *b == b':')?;
    let (key, value) = line.split_at(colon);
    (!key.contains(&b' ')).then(|| (key, value[1..].trim_ascii()))
}

/// `123 kB`
fn bytes(value: &[u8]) -> u64 {
    let digits = value.split(|b| *b == b' ').next().unwrap_or_default();
    std::str::from_utf8(digits).ok().and_then(|d| d.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// maps(5) writes a newline in a name as `\012`, and nothing else so.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        match rest.strip_prefix(br"\012") {
            Some(after) => {
                plain.push(b'\n');
                rest = after;
            }
            None => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_of_maps() {
        let line = b"7f00-7f01 rw-s 00000000 fe:00 325843                     /srv/a b (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.range, mapping.name), (&b"7f00-7f01"[..], &b"/srv/a b (deleted)"[..]));
        assert!(mapping.shared_writable() && mapping.is_deleted_file());

        let anonymous = Mapping::parse(b"7f00-7f01 rw-p 00000000 00:00 0 ").unwrap();
        assert!(anonymous.name.is_empty() && !anonymous.shared_writable());
        assert!(!Mapping::parse(b"7f00-7f01 rw-s 00000000 00:01 5   /memfd:x (deleted)").unwrap().is_deleted_file());
        assert!(Mapping::parse(b"garbage").is_none());
        assert_eq!(unescape(br"/a\012b\01"), b"/a\nb\\01");
    }

    #[test]
    fn fields_of_smaps() {
        assert_eq!(field(b"Pss:                 12 kB"), Some((&b"Pss"[..], &b"12 kB"[..])));
        assert_eq!(bytes(b"12 kB"), 12 * 1024);
        assert_eq!(field(b"7f00-7f01 rw-p 00000000 fe:00 1 /a:b"), None);
    }
}
