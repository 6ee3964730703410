//! What all machines share: a minimal Debian of the host's own release with podd inside, as a read-only disk image.
//!
//! Of the host's own release, since podd and CRIU are the host's binaries and need its libraries. busybox and a few lines of ours
//! start podd in seconds under emulation; systemd is there for those who [ask](super::Lab::under_systemd). Made without loop devices.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache::Cache;
use super::{Failure, kernels, tools};
use crate::lab::{binary, root};

/// Pods in machines take their root file systems from `/srv/rootfs/NAME`.
const ROOTFS: [&str; 6] = ["busybox", "redis", "nginx", "node", "postgres", "shell"];
/// Beside the minimal system: what podd and tests use, and what kernel packages need.
const PACKAGES: [&str; 10] = [
    "busybox-static",
    "e2fsprogs",
    "grub-pc-bin",
    "grub2-common",
    "iproute2",
    "kexec-tools",
    "kmod",
    "less",
    "procps",
    "systemd-sysv",
];
/// Size of a machine's root disk. Sparse.
const DISK: &str = "6G";
/// Makes a root tree: arguments are its folder, the packages, and the newest linux-base.
const MAKE_ROOT: &str = include_str!("../../machine/make-root");

/// Files that turn a minimal Debian into a machine.
const FILES: [(&str, u32, &str); 8] = [
    ("etc/inittab", 0o644, include_str!("../../machine/inittab")),
    ("usr/local/lib/vm/boot", 0o755, include_str!("../../machine/boot")),
    ("usr/local/lib/vm/podd", 0o755, include_str!("../../machine/podd")),
    ("usr/local/lib/vm/agent", 0o755, include_str!("../../machine/agent")),
    ("usr/local/lib/vm/halt", 0o755, include_str!("../../machine/halt")),
    ("etc/kernel/postinst.d/podd-vm-initrd", 0o755, include_str!("../../machine/initrd-hook")),
    ("usr/share/podd-vm-initrd/bin/run-parts", 0o755, include_str!("../../machine/run-parts")),
    ("usr/share/podd-vm-initrd/init", 0o755, include_str!("../../machine/initrd-init")),
];

/// The program in machines that runs commands.
pub const AGENT: &str = "vm-agent";

/// A directory with a minimal Debian, without podd and without a kernel.
#[derive(Debug)]
pub struct Tree {
    /// Where it is.
    pub dir: PathBuf,
    /// What its content determines.
    pub name: String,
}

/// Has a minimal Debian.
///
/// # Errors
/// It cannot be made.
pub fn tree(cache: &Cache) -> Result<Tree, Failure> {
    let _lock = cache.lock("root")?;
    let packages = packages(cache)?;
    let linux_base = kernels::fetch_base(cache)?;
    let mut name = tools::Name::default().text(MAKE_ROOT).text(&packages.join(",")).text(&linux_base.to_string_lossy());
    // The release files name every package of every suite by hash: with the recipe they determine the result.
    let lists = fs::read_dir("/var/lib/apt/lists").map_err(Failure::io("read", Path::new("/var/lib/apt/lists")))?;
    let mut releases: Vec<PathBuf> = lists.filter_map(|e| e.ok().map(|e| e.path())).collect();
    releases.retain(|path| path.to_string_lossy().ends_with("Release"));
    releases.sort();
    for release in &releases {
        name = name.file(release)?;
    }
    for (path, _, content) in FILES.iter().filter(|(path, ..)| !path.starts_with("usr/local")) {
        name = name.text(path).text(content);
    }
    let name = name.finish();
    let done = cache.path(&format!("root-{name}"));
    if !done.is_dir() {
        cache.tidy("root-");
        let scratch = cache.scratch()?;
        let new = scratch.path().join("root");
        for (path, mode, content) in FILES.iter().filter(|(path, ..)| !path.starts_with("usr/local")) {
            install_text(&scratch.path().join("initrd").join(path), *mode, content)?;
        }
        tools::run(
            Command::new("sh")
                .args(["-c", MAKE_ROOT, "make-root"])
                .arg(&new)
                .arg(packages.join(","))
                .arg(&linux_base)
                .arg(scratch.path().join("initrd")),
        )?;
        cache.keep(scratch, &done)?;
    }
    cache.touch(&done);
    Ok(Tree { dir: done.join("root"), name })
}

/// The read-only disk image of all machines.
///
/// # Errors
/// It cannot be made; or podd, podctl or CRIU are not there yet.
pub fn image(cache: &Cache, tree: &Tree) -> Result<PathBuf, Failure> {
    let rootfs: Vec<PathBuf> = ROOTFS.into_iter().map(rootfs).collect::<Result<_, _>>()?;
    let programs = programs()?;
    let _lock = cache.lock("base")?;
    let mut name = tools::Name::default().text(&tree.name).text(DISK);
    for (path, _, content) in FILES {
        name = name.text(path).text(content);
    }
    for path in &rootfs {
        name = name.text(&path.to_string_lossy());
    }
    for (_, program) in &programs {
        name = name.file(program)?;
    }
    let done = cache.path(&format!("base-{}.img", name.finish()));
    if !done.is_file() {
        cache.tidy("base-");
        let scratch = cache.scratch()?;
        let stage = scratch.path().join("stage");
        // Links instead of copies: nothing below writes into a file that came from the tree.
        tools::run(Command::new("cp").arg("-al").arg(&tree.dir).arg(&stage))?;
        for (path, mode, content) in FILES.iter().filter(|(path, ..)| !path.starts_with("usr/share")) {
            install_text(&stage.join(path), *mode, content)?;
        }
        for (path, program) in &programs {
            install(&stage.join(path), 0o755, program)?;
        }
        fs::create_dir_all(stage.join("srv/rootfs")).map_err(Failure::io("make", &stage))?;
        for (name, path) in ROOTFS.into_iter().zip(&rootfs) {
            tools::run(Command::new("cp").arg("-a").arg(path).arg(stage.join("srv/rootfs").join(name)))?;
        }
        let disk = scratch.path().join("disk");
        make_disk(&disk, DISK, &stage)?;
        fs::set_permissions(&disk, fs::Permissions::from_mode(0o444)).map_err(Failure::io("change", &disk))?;
        fs::rename(&disk, &done).map_err(Failure::io("make", &done))?;
    }
    cache.touch(&done);
    Ok(done)
}

/// Makes a sparse disk with an ext4 of a directory's content.
///
/// # Errors
/// mke2fs fails.
pub fn make_disk(disk: &Path, size: &str, content: &Path) -> Result<(), Failure> {
    // Tables are made at once: a machine would do it in the background, into its overlay.
    tools::run(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-i", "16384", "-m", "0", "-J", "size=16"])
            .args(["-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", "-d"])
            .arg(content)
            .arg(disk)
            .arg(size),
    )?;
    Ok(())
}

/// Packages of the tree. Looking for the owners of libraries takes long, so the answer is kept.
fn packages(cache: &Cache) -> Result<Vec<String>, Failure> {
    // The agent needs no more than podd does, and changes with every build of the tests.
    let programs: Vec<(&str, PathBuf)> = programs()?.into_iter().filter(|(path, _)| !path.ends_with(AGENT)).collect();
    let mut name = tools::Name::default();
    for (_, file) in &programs {
        name = name.file(file)?;
    }
    let known = cache.path(&format!("libraries-{}", name.finish()));
    if let Ok(list) = fs::read_to_string(&known) {
        return Ok(list.lines().map(str::to_owned).collect());
    }
    // Their libraries, by the packages that own them on this host.
    let mut owners = Command::new("dpkg-query");
    owners.arg("-S");
    for line in tools::run(Command::new("ldd").args(programs.iter().map(|(_, file)| file)))?.lines() {
        let file = line.split_whitespace().find(|word| word.starts_with('/') && !word.ends_with(':'));
        if let Some(name) = file.and_then(|file| Path::new(file).file_name()) {
            owners.arg(format!("*/{}", name.to_string_lossy()));
        }
    }
    let owners = tools::run(&mut owners)?;
    let owners =
        owners.lines().filter(|line| !line.starts_with("diversion ")).filter_map(|line| line.split(':').next());
    let all: BTreeSet<&str> = PACKAGES.into_iter().chain(owners).collect();
    let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
    cache.tidy("libraries-");
    cache.write(&known, all.join("\n").as_bytes())?;
    cache.touch(&known);
    Ok(all)
}

/// The project's programs, as `(path in the machine, file on this host)`.
fn programs() -> Result<[(&'static str, PathBuf); 4], Failure> {
    let criu = std::env::var_os("PODD_CRIU").map_or_else(|| "/usr/local/libexec/podd/criu".into(), PathBuf::from);
    let criu = criu.canonicalize().unwrap_or(criu);
    let programs = [
        ("usr/local/sbin/podd", binary("podd")),
        ("usr/local/bin/podctl", binary("podctl")),
        ("usr/local/libexec/podd/criu", criu),
        ("usr/local/lib/vm/vm-agent", super::program(AGENT)),
    ];
    match programs.iter().find(|(_, file)| !file.is_file()) {
        None => Ok(programs),
        Some((_, file)) => Err(Failure::Missing {
            what: format!("there is no {}", file.display()),
            cure: "scripts/setup makes it (PODD_BIN names another place for podd and podctl)".to_owned(),
        }),
    }
}

fn rootfs(name: &str) -> Result<PathBuf, Failure> {
    tools::run(Command::new(root().join("scripts/rootfs")).arg(name)).map(|out| PathBuf::from(out.trim()))
}

fn install_text(to: &Path, mode: u32, content: &str) -> Result<(), Failure> {
    make_way(to)?;
    fs::write(to, content).map_err(Failure::io("write", to))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).map_err(Failure::io("change", to))
}

/// Without debugging information, which is most of their size.
fn install(to: &Path, mode: u32, from: &Path) -> Result<(), Failure> {
    make_way(to)?;
    let mut strip = Command::new("strip");
    strip.args(["--strip-debug", "-o"]).arg(to).arg(from);
    if tools::run(&mut strip).is_err() {
        fs::copy(from, to).map_err(Failure::io("copy", from))?;
    }
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).map_err(Failure::io("change", to))
}

fn make_way(to: &Path) -> Result<(), Failure> {
    let dir = to.parent().expect("a file is in a folder");
    fs::create_dir_all(dir).map_err(Failure::io("make", dir))?;
    // It may be a link to the tree's own file.
    match fs::remove_file(to) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::io("replace", to)(e)),
        _ => Ok(()),
    }
}
