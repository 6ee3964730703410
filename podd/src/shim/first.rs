//! The pod's first process, from its birth in new namespaces until it becomes the pod's init.
//!
//! It runs as the pod's root: nothing here can reach beyond what the user namespace allows.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::ShimConfig;
use super::external::{DEVICES, MASKED, READ_ONLY};
use super::root::step;
use crate::sys::{capabilities, mounts, namespaces, seccomp};

/// Path of the pod's init, inside.
pub const INIT: &str = "/.podd/init";

/// Waits for the shim's go, builds the view and becomes the pod's init.
///
/// # Errors
/// With the step that failed; the process must then exit.
pub fn become_init(config: &ShimConfig, root: &Path, go: &OwnedFd) -> io::Result<Infallible> {
    if nix::unistd::read(go, &mut [0; 1])? != 1 {
        return Err(io::Error::other("the shim gave up"));
    }
    namespaces::become_root()?;
    nix::unistd::setsid()?;
    // Only now: the shim has moved us into the pod's cgroup, which becomes this namespace's root.
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    step("make mounts private", mounts::propagation("/", MsFlags::MS_PRIVATE))?;
    // Mounts that come from a more privileged namespace are locked in place (mount_namespaces(7)); a bind of one is
    // not, and can become the root.
    step("take the root", mounts::bind(root, root))?;
    build_view(root)?;
    step("change the root", mounts::pivot(root))?;
    nix::unistd::sethostname(&config.hostname)?;
    limit_resources()?;
    standard_files()?;
    let keep = capabilities::kept(&config.cap_add).map_err(io::Error::other)?;
    if !config.allow_new_privileges {
        nix::sys::prctl::set_no_new_privs()?;
    }
    // While we still have CAP_SYS_ADMIN, so that pods which may gain privileges get the filter too.
    let profile = seccomp::profile(&keep, config.kernel).map_err(io::Error::other)?;
    step("install the seccomp filter", seccomp::install(&profile).map_err(io::Error::other))?;
    step("drop capabilities", capabilities::drop_to(&keep).map_err(io::Error::other))?;
    let c = |text: &str| CString::new(text).map_err(io::Error::other);
    let mut arguments = vec![c(INIT)?];
    for argument in &config.init_args {
        arguments.push(c(argument)?);
    }
    let mut environment = Vec::new();
    for (key, value) in &config.env {
        environment.push(c(&format!("{key}={value}"))?);
    }
    Ok(nix::unistd::execve(&c(INIT)?, &arguments, &environment)?)
}

/// Mounts what a process expects below `root`, a path from the working directory.
fn build_view(root: &Path) -> io::Result<()> {
    let inside = fs::File::open(root)?;
    let target = |path: &str, folder| {
        let fd = step(&format!("make {path}"), mounts::make_target(inside.as_fd(), Path::new(path), folder, None))?;
        Ok::<_, io::Error>((mounts::by_descriptor(&fd), fd))
    };
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mounts::file_system("proc", &target("/proc", true)?.0, quiet, "")?;
    mounts::file_system("sysfs", &target("/sys", true)?.0, quiet | MsFlags::MS_RDONLY, "")?;
    // Not the usual 1777: with a sticky world-writable folder, fs.protected_regular forbids opening the bound
    // devices for writing in a user namespace.
    let no_exec = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mounts::file_system("tmpfs", &target("/dev", true)?.0, no_exec, "mode=755,size=1m")?;
    mounts::file_system("devpts", &target("/dev/pts", true)?.0, no_exec, "newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    mounts::file_system("tmpfs", &target("/dev/shm", true)?.0, quiet, "mode=1777")?;
    for device in DEVICES {
        let path = format!("/dev/{device}");
        let bound = mounts::bind(Path::new(&path), &target(&path, false)?.0);
        step(&format!("show {path}"), bound)?;
    }
    let dev = mounts::open_inside(inside.as_fd(), Path::new("/dev"))?;
    for (name, to) in
        [("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        // By descriptor: a path could lead out through a link in the pod's root, and this is still the host's tree.
        rustix::fs::symlinkat(to, &dev, name)?;
    }
    for path in MASKED {
        step(&format!("mask {path}"), mounts::bind(Path::new("/dev/null"), &target(path, false)?.0))?;
    }
    for path in READ_ONLY {
        let (by_fd, _fd) = target(path, true)?;
        step(&format!("bind {path}"), mounts::bind(&by_fd, &by_fd))?;
        // The new mount lies over the one that the descriptor means, so it is opened again.
        let (over, _fd) = target(path, true)?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | quiet;
        let remounted = nix::mount::mount(None::<&str>, &over, None::<&str>, flags, None::<&str>);
        step(&format!("make {path} read-only"), remounted.map_err(io::Error::from))?;
    }
    Ok(())
}

/// Limits that do not depend on how podd itself was started.
fn limit_resources() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most.min(65_536), most)?;
    let (_, most) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, 0, most)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    Ok(())
}

/// The three standard files become the pod's own `/dev/null`; all other descriptors close at exec. CRIU refuses a
/// process that holds a file of the host.
fn standard_files() -> io::Result<()> {
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    debug_assert!(null.as_raw_fd() > 2);
    crate::sys::process::close_on_exec_from(3)
}
