//! Programs of the host, and its disks.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use xxhash_rust::xxh3::Xxh3;

use super::Failure;

/// Runs a program to its end, without input; its standard output.
///
/// # Errors
/// It cannot be started, or exits with another code than 0: the end of what it said.
pub fn run(command: &mut Command) -> Result<String, Failure> {
    let line = describe(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Failure::Io { doing: format!("run `{line}`"), source })?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(out);
    }
    let said = tail(&format!("{out}{}", String::from_utf8_lossy(&output.stderr)), 6);
    Err(Failure::Tool { command: line, said: format!("{} ({})", said.trim(), output.status) })
}

/// Demands the programs and the device that machines run with.
///
/// # Errors
/// One is missing.
pub fn need_programs() -> Result<(), Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (program, package) in [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("qemu-img", "qemu-utils"),
        ("debugfs", "e2fsprogs"),
        ("mmdebstrap", "mmdebstrap"),
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
    ] {
        if !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
            return Err(Failure::Missing {
                what: format!("there is no {program} on this host"),
                cure: format!("apt-get install {package} (scripts/vm does it)"),
            });
        }
    }
    let tun = Path::new("/dev/net/tun");
    if !tun.exists() && (run(Command::new("modprobe").arg("tun")).is_err() || !tun.exists()) {
        return Err(Failure::Missing {
            what: "/dev/net/tun is missing, and with it tap devices for machines".to_owned(),
            cure: "load the kernel module tun (modprobe tun), or give this container the device".to_owned(),
        });
    }
    Ok(())
}

/// Program and arguments, shortened.
fn describe(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let line: String = words.join(std::ffi::OsStr::new(" ")).to_string_lossy().into_owned();
    short(&line)
}

/// The beginning of a command line, for messages: some contain whole scripts.
#[must_use]
pub fn short(line: &str) -> String {
    line.lines().next().unwrap_or_default().chars().take(160).collect()
}

/// The last lines of a text.
#[must_use]
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Demands free space in a directory, MiB; `variable` is what moves it elsewhere.
///
/// # Errors
/// There is less.
pub fn need_space(dir: &Path, need_mib: u64, variable: &'static str) -> Result<(), Failure> {
    let stat = nix::sys::statvfs::statvfs(dir).map_err(|e| Failure::io("look at", dir)(e.into()))?;
    let free_mib = (stat.blocks_available() * stat.fragment_size()) >> 20;
    if free_mib < need_mib {
        return Err(Failure::NoSpace { dir: dir.to_owned(), free_mib, need_mib, variable });
    }
    Ok(())
}

/// A short name for content: its XXH3 in 16 hex digits. Nobody has an interest in collisions here, and SHA-256 of podd
/// would take longer than making a machine.
#[derive(Default)]
pub struct Name(Xxh3);

impl Name {
    /// Adds a text.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.0.update(&text.len().to_le_bytes());
        self.0.update(text.as_bytes());
        self
    }

    /// Adds a file's content.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn file(mut self, path: &Path) -> Result<Self, Failure> {
        let mut file = File::open(path).map_err(Failure::io("open", path))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(Failure::io("read", path))? {
                0 => return Ok(self),
                n => self.0.update(&buffer[..n]),
            }
        }
    }

    /// The name.
    #[must_use]
    pub fn finish(self) -> String {
        format!("{:016x}", self.0.digest())
    }
}
