//! Memory that survives a boot: pods that sleep while their host boots are read back from it, and not from its disk.
//!
//! With the boot parameter `memmap=SIZE!START` the kernel leaves a range alone and shows it as a device, `/dev/pmem0`
//! (Documentation/admin-guide/kernel-parameters.txt, drivers/nvdimm/e820.c). A kexec leaves its content as it is, most warm boots
//! do, a power cut does not. So what lies there is but a copy: the image on disk is the pod, and whatever becomes of the copy, no
//! pod is lost.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use checkpoint::image::Image;
use nix::mount::MsFlags;
use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};

use crate::api::{ApiError, Check, ReservedMemory, Verdict};
use crate::config::Config;
use crate::error::{Attempt, Result};
use crate::sys::mounts;
use crate::sys::replace::replace;

/// Read by Debian's `grub-mkconfig`, after `/etc/default/grub`.
const GRUB: &str = "/etc/default/grub.d/podd-memory.cfg";
/// By this label of its file system we know the device again.
const LABEL: &str = "podd-memory";
/// What the kernel calls such ranges in `/proc/iomem`.
const SET_ASIDE: &str = "Persistent Memory (legacy)";
/// Memory comes and goes in sections of this size (x86-64, `SECTION_SIZE_BITS`).
const SECTION: u64 = 128 << 20;
/// Least that is left free, for the file system's own records, in bytes.
const SPARE: u64 = 16 << 20;

/// A range of physical memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Its first.
    pub start: u64,
    /// So many.
    pub bytes: u64,
}

impl Range {
    fn parameter(self) -> String {
        format!("memmap={}M!{}M", self.bytes >> 20, self.start >> 20)
    }

    fn end(self) -> u64 {
        self.start + self.bytes
    }
}

fn record(config: &Config) -> PathBuf {
    config.state.join("reserved-memory.json")
}

/// What the operator wants.
fn wanted(config: &Config) -> Option<Range> {
    serde_json::from_slice(&fs::read(record(config)).ok()?).ok()
}

fn iomem() -> io::Result<String> {
    fs::read_to_string("/proc/iomem")
}

/// Whether the kernel that runs has left this range alone.
fn is_set_aside(range: Range) -> io::Result<bool> {
    Ok(ranges(&iomem()?).contains(&(range, true)))
}

/// Has the boot loader set so many bytes aside, from the next boot on; none: no more. Blocks.
///
/// # Errors
/// This host has too little memory, or GRUB cannot be configured; nothing is changed then.
pub fn reserve(config: &Config, bytes: Option<u64>) -> Result<ReservedMemory> {
    let path = record(config);
    let before = fs::read(&path).ok();
    let choose = |bytes| choose(&ranges(&iomem().attempt("read /proc/iomem")?), wanted(config), bytes);
    let range = bytes.map(choose).transpose()?;
    let text = range.map(|range| serde_json::to_vec(&range)).transpose().attempt("say it")?;
    put(&path, text.as_deref(), 0o600).attempt("note what is to be set aside")?;
    let told = tell_grub(range);
    if told.is_err() {
        put(&path, before.as_deref(), 0o600).attempt("note what was set aside before")?;
    }
    told?;
    view(config)
}

/// Replaces a file; none: removes it.
fn put(path: &Path, content: Option<&[u8]>, mode: u32) -> io::Result<()> {
    match content.map_or_else(|| fs::remove_file(path), |content| replace(path, content, mode)) {
        Err(error) if content.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(()),
        put => put,
    }
}

/// Without GRUB the operator adds the parameter.
fn tell_grub(range: Option<Range>) -> Result<()> {
    if !Path::new("/etc/default/grub").exists() {
        return Ok(());
    }
    let (path, before) = (Path::new(GRUB), fs::read(GRUB).ok());
    let text = range.map(|range| {
        let (who, parameter) = ("# Written by `podctl host reserve-memory`.", range.parameter());
        format!("{who}\nGRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {parameter}\"\n")
    });
    if text.is_some() {
        fs::create_dir_all("/etc/default/grub.d").attempt("make /etc/default/grub.d")?;
    }
    put(path, text.as_deref().map(str::as_bytes), 0o644).attempt(format!("write {GRUB}"))?;
    let made = Command::new("update-grub").output();
    let why = match made {
        Ok(made) if made.status.success() => return Ok(()),
        Ok(made) => String::from_utf8_lossy(&made.stderr).lines().last().unwrap_or("it said nothing").to_owned(),
        Err(error) => error.to_string(),
    };
    put(path, before.as_deref(), 0o644).attempt(format!("put {GRUB} back"))?;
    Err(ApiError::failed(format!("update-grub failed: {why}")).cure("run `update-grub` by hand, and do as it says"))
}

/// RAM of `/proc/iomem`, and what is set aside of it already.
fn ranges(iomem: &str) -> Vec<(Range, bool)> {
    let range = |line: &str| {
        let (range, name) = line.split_once(" : ")?;
        let is_aside = match name {
            "System RAM" => false,
            SET_ASIDE => true,
            _ => return None,
        };
        let (start, last) = range.split_once('-')?;
        let (start, last) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(last, 16).ok()?);
        Some((Range { start, bytes: last.checked_sub(start)?.checked_add(1)? }, is_aside))
    };
    iomem.lines().filter(|line| !line.starts_with(' ')).filter_map(range).collect()
}

/// The upper end of the largest range. `before`: what was set aside for us until now, which counts as RAM.
fn choose(ranges: &[(Range, bool)], before: Option<Range>, bytes: u64) -> Result<Range> {
    let mut ram: Vec<Range> = Vec::new();
    for (range, _) in ranges.iter().filter(|(range, is_aside)| !is_aside || Some(*range) == before) {
        match ram.last_mut().filter(|last| last.end() == range.start) {
            Some(last) => last.bytes += range.bytes,
            None => ram.push(*range),
        }
    }
    let bytes = bytes.div_ceil(SECTION).saturating_mul(SECTION);
    let all: u64 = ram.iter().map(|range| range.bytes).sum();
    let largest = ram.into_iter().max_by_key(|range| range.bytes);
    let chosen = largest.and_then(|range| {
        let end = range.end() / SECTION * SECTION;
        let start = end.checked_sub(bytes)?;
        (start >= range.start).then_some(Range { start, bytes })
    });
    let refused = |what: String| ApiError::conflict(what).cure("ask for less, or add memory to this host");
    let (wanted, mega) = (bytes >> 20, all >> 20);
    if bytes > all / 2 {
        return Err(refused(format!(
            "{wanted} MiB are more than half of this host's {mega} MiB: its pods would have too little"
        )));
    }
    chosen.ok_or_else(|| refused(format!("no range of this host's {mega} MiB has {wanted} MiB in one piece")))
}

/// How it stands with the memory that is set aside.
///
/// # Errors
/// `/proc` cannot be read.
pub fn view(config: &Config) -> Result<ReservedMemory> {
    let range = wanted(config);
    let folder = config.reserved();
    let is_mounted = mounts::is_mount_point(&folder).attempt("read the table of mounts")?;
    let room = is_mounted.then(|| statvfs(&folder).ok()).flatten();
    let is_there = range.is_some_and(|range| is_set_aside(range).unwrap_or(false));
    let problem = (is_there && !is_mounted).then(|| mount(config).err()).flatten().map(|error| error.to_string());
    Ok(ReservedMemory {
        bytes: range.map_or(0, |range| range.bytes),
        parameter: range.map(Range::parameter),
        loader: range.and_then(|_| Path::new(GRUB).exists().then(|| GRUB.to_owned())),
        is_there,
        free_bytes: room.map(|room| room.blocks_available() * room.fragment_size()),
        problem,
    })
}

/// What the doctor says; none: nothing is to be set aside.
#[must_use]
pub fn check(config: &Config) -> Option<Check> {
    let memory = view(config).ok()?;
    let (parameter, name) = (memory.parameter.clone()?, "reserved-memory".to_owned());
    let fact = memory.in_words();
    let (verdict, cure) = match (&memory.problem, memory.is_there) {
        (None, true) => (Verdict::Ok, None),
        (Some(_), _) => (Verdict::Warn, Some("see `dmesg`; pods come back from the disk meanwhile".to_owned())),
        (None, false) if memory.loader.is_some() => (Verdict::Warn, Some("boot this host once".to_owned())),
        (None, false) => (
            Verdict::Warn,
            Some(format!("have the boot loader add {parameter} to the kernel's command line, and boot")),
        ),
    };
    Some(Check { name, verdict, fact, cure })
}

/// Mounts what the kernel has set aside for us; after a power cut there is nothing in it. Blocks; may be done again.
///
/// # Errors
/// The device does not come, or cannot be used.
pub fn mount(config: &Config) -> io::Result<()> {
    let folder = config.reserved();
    let Some(range) = wanted(config) else { return Ok(()) };
    if !is_set_aside(range)? || mounts::is_mount_point(&folder)? {
        return Ok(());
    }
    fs::create_dir_all(&folder)?;
    let device = device(range)?;
    let mount = || {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mounts::device(&device, "ext4", &folder, flags, "dax")?;
        // Images are memory of programs.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
    };
    if is_ours(&device) && mount().is_ok() {
        return Ok(());
    }
    let made =
        Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-b", "4096", "-L", LABEL]).arg(&device).output()?;
    if !made.status.success() {
        return Err(io::Error::other(format!("mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr).trim())));
    }
    mount()
}

/// The device of a range. Where there is no udev, nobody else loads its driver.
fn device(range: Range) -> io::Result<PathBuf> {
    let _ = Command::new("modprobe").args(["-q", "-a", "nd_e820", "nd_pmem"]).status();
    for _ in 0..50 {
        let found = fs::read_dir("/sys/class/block")?.flatten().find(|entry| {
            let start = fs::read_to_string(entry.path().join("device/resource")).unwrap_or_default();
            entry.file_name().to_string_lossy().starts_with("pmem")
                && start.trim().strip_prefix("0x").and_then(|start| u64::from_str_radix(start, 16).ok())
                    == Some(range.start)
        });
        if let Some(entry) = found {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Err(io::Error::other(format!("no pmem device at {:#x} within 5 s", range.start)))
}

/// Looks at the super block (Documentation/filesystems/ext4/super.rst): magic number at 0x38, label at 0x78 of it.
fn is_ours(device: &Path) -> bool {
    let mut block = [0; 256];
    let file = fs::File::open(device);
    let read = file.and_then(|file| std::os::unix::fs::FileExt::read_exact_at(&file, &mut block, 1024));
    read.is_ok() && block[0x38..0x3a] == [0x53, 0xef] && block[0x78..0x88].starts_with(LABEL.as_bytes())
}

/// Copies a pod's image, if there is room for it. Blocks.
///
/// # Errors
/// I/O.
pub fn keep(config: &Config, image: &Path) -> io::Result<()> {
    let (folder, Some(name)) = (config.reserved(), image.file_name()) else { return Ok(()) };
    let room = if mounts::is_mount_point(&folder)? { statvfs(&folder)? } else { return Ok(()) };
    if image.metadata()?.len() + SPARE > room.blocks_available() * room.fragment_size() {
        tracing::info!(image = %image.display(), "the memory that survives a boot has no room for it");
        return Ok(());
    }
    let copy = folder.join(name);
    fs::copy(image, &copy)?;
    fs::File::open(&copy)?.sync_all()
}

/// The copy of an image, if it is one of this very image.
#[must_use]
pub fn copy_of(config: &Config, path: &Path, image: &Image) -> Option<Image> {
    let copy = Image::open(&config.reserved().join(path.file_name()?)).ok()?;
    (copy.manifest() == image.manifest()).then_some(copy)
}

/// Removes the copy of an image that is not wanted any more.
pub fn forget(config: &Config, image: &Path) {
    if let Some(name) = image.file_name() {
        let _ = fs::remove_file(config.reserved().join(name));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const IOMEM: &str = "\
00001000-0009fbff : System RAM
000f0000-000fffff : Reserved
00100000-7ffdcfff : System RAM
  01000000-01ffffff : Kernel code
100000000-27fffffff : System RAM
";
    const GIB: u64 = 1 << 30;

    #[test]
    fn the_upper_end_of_the_largest_range_is_set_aside() {
        let chosen = choose(&ranges(IOMEM), None, 2 * GIB).unwrap();
        assert_eq!(chosen, Range { start: 8 * GIB, bytes: 2 * GIB });
        assert_eq!(chosen.parameter(), "memmap=2048M!8192M");
        let rounded = choose(&ranges(IOMEM), None, 2 * GIB + 1).unwrap();
        assert_eq!(rounded, Range { start: 8 * GIB - SECTION, bytes: 2 * GIB + SECTION });
        let small = "00001000-0009fbff : System RAM\n00100000-3ffdcfff : System RAM\n";
        assert_eq!(
            choose(&ranges(small), None, GIB / 4).unwrap(),
            Range { start: 6 * SECTION - SECTION, bytes: GIB / 4 }
        );
    }

    #[test]
    fn what_is_set_aside_for_us_can_grow_and_nobody_elses_is_touched() {
        let aside = IOMEM.replace("27fffffff", "1ffffffff") + "200000000-27fffffff : Persistent Memory (legacy)\n";
        let before = Range { start: 8 * GIB, bytes: 2 * GIB };
        assert!(ranges(&aside).contains(&(before, true)));
        assert_eq!(choose(&ranges(&aside), Some(before), 3 * GIB).unwrap(), Range { start: 7 * GIB, bytes: 3 * GIB });
        assert_eq!(choose(&ranges(&aside), None, 2 * GIB).unwrap(), Range { start: 6 * GIB, bytes: 2 * GIB });
    }

    #[test]
    fn a_host_keeps_half_of_its_memory() {
        let refused = choose(&ranges(IOMEM), None, 6 * GIB).unwrap_err();
        assert!(refused.message.contains("6144 MiB are more than half of this host's 8191 MiB"), "{refused:?}");
        assert!(choose(&ranges(IOMEM), None, u64::MAX).is_err());
        assert!(choose(&[], None, 1).is_err());
    }
}
