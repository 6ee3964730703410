//! What a dump asks of mappings, without the time that the kernel takes to count their pages.
//!
//! CRIU reads `/proc/PID/smaps` for one line of each mapping: `VmFlags`, two letters for each flag. The rest are sums over all
//! pages, for which the kernel walks the page tables: 15 ms for each GB in small pages, while the pod stands still. A BPF iterator
//! reads the flags themselves in no time; which bit has which letters is the kernel's own affair, and differs. So:
//!
//! 1. [`Words::learn`], while the pod still runs, reads both, smaps and flags: how the kernel spells the flags that occur.
//! 2. [`Words::note`], when it stands still, writes what smaps would say of each process into the folder of images, from
//!    `/proc/PID/maps` and the flags. CRIU looks there first (`scripts/patches/criu-mappings.patch`).
//!
//! Of a process with flags whose words are not known, or if the kernel does not tell, nothing is written, and CRIU asks smaps.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::bpf::{DOUBLE, FRAME, OBJECT, for_each, load, store};
use crate::btf::Btf;
use crate::sys;

/// In the folder of images, while CRIU dumps: a file for each process.
const FOLDER: &str = "mappings";
/// What smaps calls the line.
const FLAGS: &str = "VmFlags: ";
/// A mapping of the kernel's own, which no process has.
const VSYSCALL: &str = "[vsyscall]";

/// Flags of mappings by their addresses.
type Flags = HashMap<u64, u64>;

/// How the kernel spells combinations of flags; none: in more than one way, so that it was looked at amid a change.
#[derive(Debug, Default)]
pub(crate) struct Words(HashMap<u64, Option<String>>);

impl Words {
    /// Looks at processes, which may run.
    pub(crate) fn learn(pids: impl IntoIterator<Item = i32>) -> Self {
        let mut words = Self::default();
        for pid in pids {
            if let Err(error) = words.learn_from(pid) {
                tracing::debug!(pid, %error, "its mappings will be counted");
            }
        }
        words
    }

    fn learn_from(&mut self, pid: i32) -> io::Result<()> {
        let before = flags(pid)?;
        if before.values().all(|flags| self.0.contains_key(flags)) {
            return Ok(());
        }
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let after = flags(pid)?;
        let mut at = None;
        for line in smaps.lines() {
            if let Some((start, _)) = mapping(line) {
                at = Some(start);
            } else if let (Some(text), Some(start)) = (line.strip_prefix(FLAGS), at)
                && let (Some(flags), true) = (before.get(&start), before.get(&start) == after.get(&start))
            {
                match self.0.entry(*flags) {
                    Entry::Vacant(new) => drop(new.insert(Some(text.to_owned()))),
                    Entry::Occupied(mut known) if known.get().as_deref() != Some(text) => drop(known.insert(None)),
                    Entry::Occupied(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Writes down the mappings of processes that stand still.
    ///
    /// # Errors
    /// I/O errors; nothing is there then.
    pub(crate) fn note(&self, images: &Path, pids: impl IntoIterator<Item = i32>) -> io::Result<Noted> {
        let noted = Noted(images.join(FOLDER));
        // Somebody may have been killed here.
        let _ = fs::remove_dir_all(&noted.0);
        fs::create_dir_all(&noted.0)?;
        for pid in pids {
            match self.of(pid) {
                Ok(text) => fs::write(noted.0.join(pid.to_string()), text)?,
                Err(error) => tracing::debug!(pid, %error, "its mappings are counted"),
            }
        }
        Ok(noted)
    }

    /// What smaps would say of a process, as far as CRIU asks.
    fn of(&self, pid: i32) -> io::Result<String> {
        let unknown = |line: &str| io::Error::other(format!("the flags of {line:?} are not known"));
        let flags = flags(pid)?;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let mut text = String::with_capacity(2 * maps.len());
        for line in maps.lines() {
            let (start, name) = mapping(line).ok_or_else(|| unknown(line))?;
            let _ = writeln!(text, "{line}");
            let words = flags.get(&start).and_then(|flags| self.0.get(flags)?.as_ref());
            match words {
                Some(words) => drop(writeln!(text, "{FLAGS}{words}")),
                None if name == VSYSCALL => {}
                None => return Err(unknown(line)),
            }
        }
        Ok(text)
    }
}

/// Dropped, the notes are gone: they are of a moment.
#[derive(Debug)]
pub(crate) struct Noted(PathBuf);

impl Drop for Noted {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where a mapping begins, and its name, if this is the first line of one.
fn mapping(line: &str) -> Option<(u64, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    u64::from_str_radix(end, 16).ok()?;
    Some((u64::from_str_radix(start, 16).ok()?, rest.rsplit(' ').next().unwrap_or_default()))
}

/// The flags of a process's mappings.
fn flags(pid: i32) -> io::Result<Flags> {
    let program = program().ok_or(io::ErrorKind::Unsupported)?;
    let lines = BufReader::new(sys::iterate(&sys::bpf_iterator(program, Some(pid))?)?).lines();
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let (mut flags, mut last) = (Flags::new(), None);
    for line in lines {
        let line = line?;
        let Some((start, its)) = line.split_once(' ').and_then(|(a, b)| number(a).zip(number(b))) else { continue };
        // They come in order, and kernels begin anew after the last one (seen with 6.18).
        if last.is_some_and(|last| start <= last) {
            break;
        }
        last = Some(start);
        flags.insert(start, its);
    }
    Ok(flags)
}

/// Prints address and flags of each mapping; none if the kernel has no such iterators, or does not describe its types.
fn program() -> Option<&'static OwnedFd> {
    static PROGRAM: OnceLock<Option<OwnedFd>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            let types = fs::read("/sys/kernel/btf/vmlinux").ok()?;
            let btf = Btf::parse(&types)?;
            let place = |name| btf.offset("vm_area_struct", &[name]).and_then(|at| i16::try_from(at).ok());
            let (start, flags) = (place("vm_start")?, place("vm_flags")?);
            let vma = 16;
            let body = [
                load(DOUBLE, 1, OBJECT, start),
                store(FRAME, -16, 1),
                load(DOUBLE, 1, OBJECT, flags),
                store(FRAME, -8, 1),
            ];
            let code = for_each(vma, &body, "%llx %llx\n", 2);
            let program = sys::bpf_iterator_program(&code, btf.function("bpf_iter_task_vma")?);
            program.inspect_err(|e| tracing::debug!(error = %e, "no BPF iterators of mappings")).ok()
        })
        .as_ref()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read as _, Write as _};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that waits, with all its libraries.
    struct Waiting(Child);

    impl Waiting {
        fn start() -> Self {
            let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            child.stdin.as_mut().unwrap().write_all(b"?").unwrap();
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            Self(child)
        }

        fn pid(&self) -> i32 {
            self.0.id() as i32
        }
    }

    impl Drop for Waiting {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn it_is_what_smaps_says() {
        let process = Waiting::start();
        let images = tempfile::tempdir().unwrap();
        let words = Words::learn([process.pid()]);
        let noted = words.note(images.path(), [process.pid()]).unwrap();
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", process.pid())).unwrap();
        let wanted: Vec<&str> =
            smaps.lines().filter(|line| mapping(line).is_some() || line.starts_with(FLAGS)).collect();
        let file = images.path().join(FOLDER).join(process.pid().to_string());
        let text = fs::read_to_string(&file).unwrap();
        let found: Vec<&str> = text.lines().collect();
        assert!(found.len() > 20, "{text}");
        assert_eq!(found, wanted[..found.len()], "{smaps}");
        // The flags of the kernel's own mapping, which comes last and for which nobody asks.
        assert!(wanted.len() <= found.len() + 1, "{:?}", &wanted[found.len()..]);
        drop(noted);
        assert!(!file.exists());
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let process = Waiting::start();
        let images = tempfile::tempdir().unwrap();
        let noted = Words::default().note(images.path(), [process.pid()]).unwrap();
        assert_eq!(fs::read_dir(images.path().join(FOLDER)).unwrap().count(), 0);
        drop(noted);
        let mut words = Words::learn([process.pid()]);
        words.0.values_mut().take(1).for_each(|words| *words = None);
        let _noted = words.note(images.path(), [process.pid()]).unwrap();
        assert_eq!(fs::read_dir(images.path().join(FOLDER)).unwrap().count(), 0);
    }
}
