//! Running a further command inside a pod: a session that joins from outside, so it ends before a checkpoint.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use checkpoint::baseline::KernelVersion;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Gid, Pid, Uid};
use serde::{Deserialize, Serialize};

use super::state::{PodRecord, PodState};
use super::stop::not_running;
use crate::api::{ApiError, ExecRequest};
use crate::error::{Attempt, Result};
use crate::supervisor::Daemon;
use crate::sys::process::{ProcessId, clone_into, exit_of};
use crate::sys::{capabilities, seccomp};

// The pod's init looks users up in the same way.
#[allow(dead_code)]
#[path = "../../init/user.rs"]
mod user;

/// Variable that carries an [`Entry`] to `podd enter`.
const ENTRY: &str = "PODD_ENTER";

/// What `podd enter` needs to know.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    init: ProcessId,
    cgroup_procs: Vec<PathBuf>,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    user: String,
    workdir: String,
    /// The oldest kernel to which the pod can go.
    kernel: KernelVersion,
    cap_add: Vec<String>,
    allow_new_privileges: bool,
    terminal: bool,
    /// SIGTERM kills all that the command has started in its session, not only the command.
    whole: bool,
}

/// The command line that runs `request` in a pod, for the server to connect and spawn.
///
/// # Errors
/// The pod does not run, or there is nothing to run.
pub fn command(daemon: &Daemon, record: &PodRecord, request: &ExecRequest) -> Result<tokio::process::Command> {
    enter_command(daemon, record, request, false)
}

/// The same for a command that is killed with all that it has started, by SIGTERM.
///
/// # Errors
/// As [`command`].
pub fn command_killed_whole(
    daemon: &Daemon,
    record: &PodRecord,
    request: &ExecRequest,
) -> Result<tokio::process::Command> {
    enter_command(daemon, record, request, true)
}

fn enter_command(
    daemon: &Daemon,
    record: &PodRecord,
    request: &ExecRequest,
    whole: bool,
) -> Result<tokio::process::Command> {
    let PodState::Running { init, .. } = record.state else { return Err(not_running(daemon, record)) };
    if request.command.is_empty() {
        return Err(ApiError::usage("there is nothing to run").cure("add `-- CMD ARGS...`"));
    }
    let mut env: BTreeMap<String, String> = record.environment().into_iter().collect();
    if request.tty.is_some() {
        env.entry("TERM".into()).or_insert_with(|| "xterm".into());
    }
    env.extend(request.env.clone());
    let entry = Entry {
        init,
        cgroup_procs: daemon.cgroup(&record.id).procs_files().collect(),
        command: request.command.clone(),
        env,
        user: request.user.clone().unwrap_or_else(|| record.process.user.clone()),
        workdir: request.workdir.clone().unwrap_or_else(|| record.process.workdir.clone()),
        kernel: record.oldest_kernel(),
        cap_add: record.spec.cap_add.clone(),
        allow_new_privileges: record.spec.allow_new_privileges,
        terminal: request.tty.is_some(),
        whole,
    };
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command.arg("enter").env_clear().env(ENTRY, serde_json::to_string(&entry).attempt("encode the command")?);
    Ok(command)
}

/// The body of `podd enter`: joins the pod, runs the command as its child, forwards signals, exits with its code.
///
/// # Errors
/// What kept the command from running.
pub fn enter() -> io::Result<()> {
    let text = std::env::var(ENTRY).map_err(|_| io::Error::other("podd itself starts this"))?;
    let entry: Entry = serde_json::from_str(&text)?;
    // What `top` and preflight show of it inside the pod; its program file is /proc/self/exe.
    let _ = nix::sys::prctl::set_name(c"podd-exec");
    let pidfd = entry.init.pidfd()?;
    crate::sys::limits::take_over(entry.init.pid)?;
    for procs in &entry.cgroup_procs {
        std::fs::write(procs, "0")?;
    }
    // All at once (Linux 5.8): one after another, the user namespace would take away the right to enter the rest.
    let all = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::from_bits_retain(crate::shim::CLONE_NEWTIME);
    setns(pidfd, all)?;
    let signals = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None)?;
    let child = clone_into(0, || match run(&entry) {
        Ok(never) => match never {},
        Err(e) => {
            use io::Write;
            let _ = writeln!(io::stderr(), "podd: cannot run {}: {e}", entry.command[0]);
            if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
        }
    })?;
    std::process::exit(follow(child, &signals, entry.whole)?);
}

/// Forwards signals to the command until it ends; its exit code.
fn follow(child: Pid, signals: &SigSet, whole: bool) -> io::Result<i32> {
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => {
                if let Some((code, _)) = exit_of(waitpid(child, Some(WaitPidFlag::WNOHANG))?) {
                    return Ok(code);
                }
            }
            // It leads a session, and so a process group.
            Signal::SIGTERM if whole => {
                let _ = killpg(child, Signal::SIGKILL);
            }
            other => {
                let _ = kill(child, other);
            }
        }
    }
}

/// Becomes the command.
fn run(entry: &Entry) -> io::Result<Infallible> {
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
    nix::unistd::setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?;
    nix::unistd::setsid()?;
    if entry.terminal {
        rustix::process::ioctl_tiocsctty(io::stdin().as_fd())?;
    }
    let user = user::find(&entry.user, Path::new("/etc")).map_err(io::Error::other)?;
    let keep = capabilities::kept(&entry.cap_add).map_err(io::Error::other)?;
    if !entry.allow_new_privileges {
        nix::sys::prctl::set_no_new_privs()?;
    }
    let profile = seccomp::profile(&keep, entry.kernel).map_err(io::Error::other)?;
    seccomp::install(&profile).map_err(io::Error::other)?;
    capabilities::drop_to(&keep).map_err(io::Error::other)?;
    let groups: Vec<Gid> = user.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    nix::unistd::setgroups(&groups)?;
    let gid = Gid::from_raw(user.gid);
    nix::unistd::setresgid(gid, gid, gid)?;
    let uid = Uid::from_raw(user.uid);
    nix::unistd::setresuid(uid, uid, uid)?;
    nix::unistd::chdir(Path::new(&entry.workdir))?;
    // Ends with the session. Set last: a change of user clears it (prctl(2)).
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    crate::sys::process::close_on_exec_from(3)?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    let c = |text: &str| CString::new(text).map_err(io::Error::other);
    let arguments = entry.command.iter().map(|a| c(a)).collect::<io::Result<Vec<_>>>()?;
    let mut env = entry.env.clone();
    if let Some(home) = user.home {
        env.entry("HOME".into()).or_insert(home);
    }
    let environment = env.iter().map(|(k, v)| c(&format!("{k}={v}"))).collect::<io::Result<Vec<_>>>()?;
    let path = env.get("PATH").map_or("/usr/bin:/bin", String::as_str);
    let mut failure = nix::errno::Errno::ENOENT;
    for program in candidates(&entry.command[0], path) {
        let Err(e) = nix::unistd::execve(&c(&program)?, &arguments, &environment);
        if e != nix::errno::Errno::ENOENT {
            failure = e;
        }
    }
    Err(failure.into())
}

/// Where a program may be.
fn candidates(name: &str, path: &str) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    path.split(':').filter(|d| !d.is_empty()).map(|d| format!("{d}/{name}")).collect()
}
