//! The only module that talks to CRIU.
//!
//! Each phase is one `criu swrk` child that gets one request over a SEQPACKET socket (`criu(8)`, RPC). The types
//! come from the `rust-criu` crate; its own client has no time limit, drops error texts and lacks most options
//! that pods need, so the exchange itself is here.
//!
//! Pods are frozen by their cgroup before a dump and stay frozen after it: CRIU never decides their fate.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use protobuf::Message;
use rust_criu::rust_criu_protobuf::rpc::{
    Criu_cg_mode, Criu_network_lock_method, Criu_opts, Criu_req, Criu_req_type, Criu_resp,
};

use crate::awake::Awake;
use crate::clocks::Teller;
use crate::guard::{self, Saved, Watch};
use crate::mappings::Words;
use crate::memory;
use crate::sys;

/// CRIU's name of the hook that comes when all images are there, and before any process of the tree.
pub const ALL_THERE: &str = "pre-restore";
/// The same for the hook at which nothing has been done to the tree that is to be dumped.
const READY_TO_DUMP: &str = "pre-dump";
/// A restore may begin long before the images are there; whoever lets it wait ends it.
const WAIT_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// `CLONE_NEWNET`, the value that CRIU's `empty_ns` wants.
const CLONE_NEWNET: u32 = 0x4000_0000;
/// Tells CRIU who keeps the namespaces that were made before it (`criu-ready-namespaces.patch`).
const NAMESPACES_AHEAD: &str = "CRIU_NAMESPACES_AHEAD";
/// What CRIU does, for messages.
const RESTORE: &str = "restore";
/// A reply is a few hundred bytes; error texts add a little.
const REPLY_MAX: usize = 64 * 1024;

/// Why CRIU did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be started.
    #[error("cannot start CRIU at {path}: {source}")]
    Spawn {
        /// Where it was looked for.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The images folder could not be used.
    #[error("cannot use the image folder {path}: {source}")]
    Images {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The conversation broke: CRIU died or said nonsense.
    #[error("CRIU ended in mid-{action}: {reason}")]
    Broken {
        /// `dump`, `restore` ...
        action: &'static str,
        /// What was seen.
        reason: String,
    },
    /// It did not answer in time and was killed.
    #[error("CRIU did not finish the {action} within {} s", .limit.as_secs())]
    Timeout {
        /// `dump`, `restore` ...
        action: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// It said no.
    #[error("CRIU could not {action}: {reason}")]
    Failed {
        /// `dump`, `restore` ...
        action: &'static str,
        /// The first errors of its log.
        reason: String,
    },
    /// A hook of ours said no, so the restore was given up.
    #[error("restore given up at {hook}: {reason}")]
    Hook {
        /// CRIU's name of the hook.
        hook: String,
        /// Our reason.
        reason: String,
    },
}

/// What to dump, and where to.
#[derive(Clone, Debug)]
pub struct Dump<'a> {
    /// Root of the process tree, as this process sees it.
    pub pid: i32,
    /// Folder for the image files.
    pub images: &'a Path,
    /// The cgroup (v2 folder) by which the tree is frozen already.
    pub freeze_cgroup: &'a Path,
    /// `mnt[PATH]:KEY` for each mount that the target provides itself.
    pub external: Vec<String>,
    /// Largest deleted-but-open file that is carried along, in bytes.
    pub ghost_limit: u32,
    /// Paths in the tree's view that are watched with inotify (see [`crate::process::watched_paths`]).
    pub watched: Vec<String>,
}

/// What to restore, and where from.
#[derive(Clone, Debug)]
pub struct Restore<'a> {
    /// Folder with the image files.
    pub images: &'a Path,
    /// A mount point that becomes the tree's root.
    pub root: &'a Path,
    /// `mnt[KEY]:PATH` for each mount provided from here.
    pub external: Vec<String>,
    /// The `cgroup.procs` files of the cgroups in which the tree shall live. CRIU is started there, in a cgroup namespace
    /// that begins there, since it is told to leave cgroups alone and children inherit both.
    pub cgroup_procs: Vec<PathBuf>,
    /// CRIU's own network namespace, if not ours. The tree's takes over from it how large its tables are.
    pub network: Option<&'a File>,
    /// Who keeps the namespaces that the tree's root is born into: user (with id maps), network, UTS and IPC; and a mount namespace that
    /// is nearly empty, of which those of the tree are made. A CRIU without that patch makes all of them by itself.
    pub namespaces: Pid,
}

/// A moment of a restore at which CRIU waits for us.
#[derive(Clone, Copy, Debug)]
pub struct Hook<'a> {
    /// CRIU's name: `setup-namespaces`, `post-restore`, `pre-resume` ...
    pub name: &'a str,
    /// The tree's root, once known.
    pub root_pid: Option<i32>,
    /// CRIU itself.
    pub criu_pid: i32,
}

/// A CRIU that is ready to dump: it has started, and found out what the kernel can do. That takes longer than many a dump, and
/// the tree may run meanwhile. Dropped, it ends.
pub struct Dumper {
    worker: Worker,
    images: PathBuf,
    freeze_cgroup: PathBuf,
    words: Words,
}

impl Dumper {
    /// Starts one.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn start(criu: &Path, what: &Dump<'_>, limit: Duration) -> Result<Self, Error> {
        let images = open_dir(what.images)?;
        let mut opts = common_options(&images, "dump.log");
        opts.set_pid(what.pid);
        opts.set_leave_running(true);
        opts.set_freeze_cgroup(what.freeze_cgroup.to_string_lossy().into_owned());
        opts.set_ghost_limit(what.ghost_limit);
        opts.set_link_remap(true);
        opts.set_timeout(u32::try_from(limit.as_secs()).unwrap_or(u32::MAX));
        opts.external.clone_from(&what.external);
        opts.irmap_scan_paths.clone_from(&what.watched);
        // The latest round of what was copied ahead.
        if let Ok(round) = std::fs::read_link(what.images.join(memory::PARENT)) {
            opts.set_parent_img(round.to_string_lossy().into_owned());
            opts.set_track_mem(true);
        }
        let worker = Worker::spawn(criu, "dump", limit)?;
        let mut dumper = Self {
            worker,
            images: what.images.to_owned(),
            freeze_cgroup: what.freeze_cgroup.to_owned(),
            words: Words::default(),
        };
        dumper.worker.send(Criu_req_type::DUMP, Some(opts))?;
        // While CRIU gets ready.
        dumper.words = Words::learn(pids(what.freeze_cgroup));
        let reply = dumper.worker.receive()?;
        match reply.type_() {
            Criu_req_type::NOTIFY if reply.notify.script() == READY_TO_DUMP => Ok(dumper),
            Criu_req_type::NOTIFY => Err(dumper.worker.broken(format!("it is at {:?}", reply.notify.script()))),
            _ => Err(dumper.judge(&reply).err().unwrap_or_else(|| dumper.worker.broken("it dumped at once".into()))),
        }
    }

    /// Dumps the tree, which stands still by now; it is still there, and frozen, afterwards.
    ///
    /// # Errors
    /// Any [`Error`]; the tree is unchanged, also by a CRIU that was killed in the middle (see [`crate::guard`]).
    pub fn dump(self) -> Result<(), Error> {
        let _awake = Awake::keep();
        let cgroup = self.freeze_cgroup.clone();
        let saved = Saved::of(&cgroup);
        let noted = self.words.note(&self.images, pids(&cgroup));
        let _noted = noted.inspect_err(|error| tracing::debug!(%error, "mappings are counted"));
        let dumped = self.dump_guarded(&saved);
        if dumped.is_err()
            && let Err(e) = saved.put_back()
        {
            tracing::error!(cgroup = %cgroup.display(), error = %e, "processes may not be what they were before the dump");
        }
        dumped
    }

    fn dump_guarded(mut self, saved: &Saved) -> Result<(), Error> {
        self.worker.watch = saved.watch(Pid::from_raw(self.worker.pid()));
        self.worker.deadline = Instant::now() + self.worker.limit;
        loop {
            self.worker.acknowledge(true)?;
            let reply = self.worker.receive()?;
            if reply.type_() != Criu_req_type::NOTIFY {
                let judged = self.judge(&reply);
                match judged.is_ok() {
                    true => self.worker.finish_later(),
                    false => self.worker.finish(),
                }
                return judged;
            }
        }
    }

    fn judge(&self, reply: &Criu_resp) -> Result<(), Error> {
        judge(reply, "dump", &self.images.join("dump.log"))
    }
}

/// Restores a tree as a child of this process; returns its root's PID.
///
/// `on_hook` is called at each of CRIU's hooks; an error from it ends the restore, and the tree is killed.
///
/// # Errors
/// Any [`Error`]; CRIU has then killed what it had made, except after [`Error::Broken`] and [`Error::Timeout`]:
/// the caller kills the cgroup in every case.
pub fn restore(
    criu: &Path,
    what: &Restore<'_>,
    limit: Duration,
    on_hook: &mut dyn FnMut(Hook<'_>) -> Result<(), String>,
) -> Result<i32, Error> {
    let images = open_dir(what.images)?;
    let unusable = |source| Error::Images { path: what.images.to_owned(), source };
    let (mut _teller, mut _awake) = (Teller::default(), None);
    let mut opts = common_options(&images, "restore.log");
    opts.set_root(what.root.to_string_lossy().into_owned());
    opts.set_rst_sibling(true);
    opts.external.clone_from(&what.external);
    let waits = memory::is_prepared(what.images);
    let first_limit = if waits { WAIT_LIMIT } else { limit };
    let mut worker = Worker::spawn_in(criu, RESTORE, first_limit, Some(what))?;
    worker.send(Criu_req_type::RESTORE, Some(opts))?;
    loop {
        let reply = worker.receive()?;
        if reply.type_() != Criu_req_type::NOTIFY {
            let judged = judge(&reply, RESTORE, &what.images.join("restore.log"));
            match judged.is_ok() {
                true => worker.finish_later(),
                false => worker.finish(),
            }
            return judged.map(|()| reply.restore.pid());
        }
        let hook = Hook { name: reply.notify.script(), root_pid: reply.notify.pid, criu_pid: worker.pid() };
        if let Err(reason) = on_hook(hook) {
            let hook = hook.name.to_owned();
            worker.acknowledge(false)?;
            let _ = worker.receive();
            worker.finish();
            return Err(Error::Hook { hook, reason });
        }
        if reply.notify.script() == ALL_THERE {
            (worker.limit, worker.deadline) = (limit, Instant::now() + limit);
            _awake = Some(Awake::keep());
            // Before CRIU makes the namespaces; and a thread of ours, that a hook might not expect.
            _teller = Teller::start(what.images).map_err(unusable)?;
        }
        worker.acknowledge(true)?;
    }
}

/// CRIU's version, such as `4.2.1`.
///
/// # Errors
/// [`Error`] if it cannot be run.
pub fn version(criu: &Path) -> Result<String, Error> {
    let mut worker = Worker::spawn(criu, "version query", Duration::from_secs(10))?;
    let reply = worker.ask(Criu_req_type::VERSION, None)?;
    worker.finish();
    let v = &reply.version;
    Ok(match v.sublevel {
        Some(sub) => format!("{}.{}.{sub}", v.major_number(), v.minor_number()),
        None => format!("{}.{}", v.major_number(), v.minor_number()),
    })
}

/// The processes of a cgroup.
fn pids(cgroup: &Path) -> impl Iterator<Item = i32> {
    guard::pids(cgroup).into_iter().map(Pid::as_raw)
}

/// What dump and restore have in common.
fn common_options(images: &File, log: &str) -> Criu_opts {
    let mut opts = Criu_opts::new();
    // CRIU opens /proc/<the peer's pid>/fd/<this number>: the descriptor need not be inherited.
    opts.set_images_dir_fd(images.as_raw_fd());
    opts.set_log_file(log.to_owned());
    opts.set_log_level(std::env::var("PODD_CRIU_LOG_LEVEL").ok().and_then(|l| l.parse().ok()).unwrap_or(1));
    opts.set_tcp_established(true);
    opts.set_ext_unix_sk(false);
    opts.set_file_locks(true);
    opts.set_manage_cgroups(true);
    opts.set_manage_cgroups_mode(Criu_cg_mode::IGNORE);
    // podd cuts and joins the pod's link itself; rules that CRIU leaves behind after a crash would mute the pod.
    opts.set_network_lock(Criu_network_lock_method::SKIP);
    // An external network namespace cannot be entered by the pod's user namespace, so CRIU leaves it empty and
    // podd fills it in the setup-namespaces hook.
    opts.set_empty_ns(CLONE_NEWNET);
    opts.set_notify_scripts(true);
    opts
}

fn open_dir(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::Images { path: path.to_owned(), source })
}

/// Success, or the log's own words. `cr_errmsg` can be non-empty on success: only `success` counts.
fn judge(reply: &Criu_resp, action: &'static str, log: &Path) -> Result<(), Error> {
    if reply.success() {
        return Ok(());
    }
    let mut reason = first_errors(log);
    if reason.is_empty() {
        reason = reply.cr_errmsg().trim().to_owned();
    }
    if reason.is_empty() {
        reason = format!("no reason given (errno {})", reply.cr_errno());
    }
    Err(Error::Failed { action, reason })
}

/// The first error lines of a CRIU log, without time stamps and source lines; at most 3.
fn first_errors(log: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(log) {
        // The errors that matter come last; a log at a high level can be large.
        let length = file.metadata().map_or(0, |m| m.len());
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(1 << 20)));
        let _ = file.take(1 << 20).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| line.split_once("Error (").and_then(|(_, rest)| rest.split_once("): ")))
        .map(|(_, message)| message.trim())
        .take(3)
        .collect::<Vec<_>>()
        .join("; ")
}

/// One `criu swrk` child and our end of its socket.
struct Worker {
    child: Child,
    /// Readable once it has ended.
    end: OwnedFd,
    socket: OwnedFd,
    action: &'static str,
    deadline: Instant,
    limit: Duration,
    /// The one who waits for it, if it is not this thread.
    watch: Option<Watch>,
    reaped: bool,
}

impl Worker {
    fn spawn(criu: &Path, action: &'static str, limit: Duration) -> Result<Self, Error> {
        Self::spawn_in(criu, action, limit, None)
    }

    fn spawn_in(
        criu: &Path,
        action: &'static str,
        limit: Duration,
        restore: Option<&Restore<'_>>,
    ) -> Result<Self, Error> {
        let spawn_error = |source| Error::Spawn { path: criu.to_owned(), source };
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|e| spawn_error(e.into()))?;
        // The socket is CRIU's standard input: no descriptor has to survive exec, so none can leak.
        let mut command = Command::new(criu);
        command
            // By itself it refuses to restore on a processor without XSAVE (and only there) what was dumped on one that has it,
            // whether anybody uses those registers or not. What a pod needs of a processor is for `compat` to judge.
            .args(["--cpu-cap=none", "swrk", "0"])
            .env_remove("CRIU_CONFIG_FILE")
            .env(memory::TRACK_WRITTEN, memory::Backend::of_kernel().map_or("", memory::Backend::name))
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // CRIU forks to try out what the kernel can do; were it killed meanwhile, such a child would sleep on.
            .process_group(0);
        if let Some(restore) = restore {
            command.env(NAMESPACES_AHEAD, restore.namespaces.to_string());
            let open = |path: &PathBuf| {
                File::options().write(true).open(path).map_err(|source| Error::Images { path: path.clone(), source })
            };
            let cgroups = restore.cgroup_procs.iter().map(open).collect::<Result<Vec<_>, _>>()?;
            let network = restore.network.map(File::try_clone).transpose().map_err(spawn_error)?;
            sys::enter(&mut command, cgroups, network);
        }
        let child = command.spawn().map_err(spawn_error)?;
        let pid = rustix::process::Pid::from_child(&child);
        let end = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .map_err(|e| spawn_error(e.into()))?;
        Ok(Self {
            child,
            end,
            socket: ours,
            action,
            deadline: Instant::now() + limit,
            limit,
            watch: None,
            reaped: false,
        })
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn ask(&mut self, kind: Criu_req_type, opts: Option<Criu_opts>) -> Result<Criu_resp, Error> {
        self.send(kind, opts)?;
        self.receive()
    }

    fn send(&mut self, kind: Criu_req_type, opts: Option<Criu_opts>) -> Result<(), Error> {
        let mut request = Criu_req::new();
        request.set_type(kind);
        request.opts = opts.into();
        self.write(&request)
    }

    fn acknowledge(&mut self, success: bool) -> Result<(), Error> {
        let mut request = Criu_req::new();
        request.set_type(Criu_req_type::NOTIFY);
        request.set_notify_success(success);
        self.write(&request)
    }

    fn write(&mut self, request: &Criu_req) -> Result<(), Error> {
        let bytes = request.write_to_bytes().map_err(|e| self.broken(e.to_string()))?;
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL).map_err(|e| self.broken(e.to_string()))?;
        Ok(())
    }

    fn receive(&mut self) -> Result<Criu_resp, Error> {
        let mut buffer = vec![0; REPLY_MAX];
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            // Its end is watched apart from the socket, which a child of its may hold open.
            let [socket, end] = [&self.socket, &self.end].map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
            let mut fds = [socket, end];
            match poll(&mut fds, wait) {
                Ok(0) => return Err(Error::Timeout { action: self.action, limit: self.limit }),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(self.broken(e.to_string())),
            }
            return match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => Err(self.broken("it died".into())),
                Ok(0) | Err(Errno::ECONNRESET) => Err(self.broken("it closed its socket".into())),
                Ok(n) => Criu_resp::parse_from_bytes(&buffer[..n]).map_err(|e| self.broken(e.to_string())),
                Err(Errno::EINTR) => continue,
                Err(e) => Err(self.broken(e.to_string())),
            };
        }
    }

    fn broken(&self, reason: String) -> Error {
        Error::Broken { action: self.action, reason }
    }

    /// Waits for the child after its last reply: it has nothing left to do but exit.
    fn finish(mut self) {
        self.reap();
    }

    /// The same, in a thread of its own: it has done what it was to do, let go of all processes, and only gives its memory back.
    /// Nobody need stand still for that.
    fn finish_later(self) {
        self.watch.iter().for_each(Watch::disarm);
        // Without one, it is killed where it is, and reaped.
        let _ = std::thread::Builder::new().spawn(move || self.finish());
    }

    fn reap(&mut self) {
        match self.watch.take() {
            Some(watch) => watch.finish(),
            None => drop(self.child.wait()),
        }
        self.reaped = true;
        // A restore's root is born by a sibling of CRIU's, which ends at once. The root itself is in no group of this namespace.
        let group = Pid::from_raw(-self.pid());
        while waitpid(group, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
    }
}

impl Drop for Worker {
    /// Whatever happened, no CRIU is left running or unreaped.
    fn drop(&mut self) {
        // The number of its group is not given to another one before it is reaped.
        if !self.reaped {
            let group = Pid::from_raw(self.pid());
            let _ = killpg(group, Signal::SIGKILL);
            self.reap();
            // What it had forked is ours now, if we are a subreaper. (Of a restore, its caller takes care.)
            while self.action != RESTORE && waitpid(Pid::from_raw(-group.as_raw()), None).is_ok() {}
        }
    }
}
