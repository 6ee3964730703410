//! The shim's life: come up, answer, keep the exit code, go.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use checkpoint::criu::{self, Dumper};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::{Mode, Reply, Request, ShimConfig, Status, external, root, start};
use crate::pod::logs::exit_file;
use crate::sys::cgroup::Hierarchies;
use crate::sys::process::{ProcessId, daemonize, exit_of};

/// Runs a shim for the bundle in `bundle`, as `podd shim BUNDLE`.
///
/// # Errors
/// Only what keeps it from answering at all; the pod's own failures become its status.
pub fn main(bundle: &Path) -> io::Result<()> {
    let config: ShimConfig = serde_json::from_slice(&fs::read(bundle.join("shim.json"))?)?;
    let ready = daemonize()?;
    nix::sys::prctl::set_child_subreaper(true)?;
    let _ = nix::sys::prctl::set_name(c"podd-shim");
    // podd's own protection from the OOM killer must not pass to pods.
    let _ = fs::write("/proc/self/oom_score_adj", "0");
    let socket = bundle.join("shim.sock");
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    fs::write(bundle.join("shim.pid"), serde_json::to_vec(&ProcessId::of(nix::unistd::getpid().as_raw())?)?)?;
    ready.tell();
    let mut shim = Shim { init: None, status: Status::Failed { reason: "not started".into() }, config, dumper: None };
    shim.come_up();
    shim.serve(&listener)
}

struct Shim {
    config: ShimConfig,
    status: Status,
    init: Option<(ProcessId, OwnedFd)>,
    /// Ready to dump, for the one at the other end of the connection.
    dumper: Option<(UnixStream, Dumper)>,
}

impl Shim {
    fn come_up(&mut self) {
        let born = match &self.config.mode {
            Mode::Start => start::start(&self.config).and_then(ProcessId::of),
            Mode::Restore { images } => start::restore(&self.config, images).and_then(ProcessId::of),
            Mode::Adopt { init } => Ok(*init),
        };
        let known = born.and_then(|init| Ok((init, init.pidfd()?)));
        match known {
            Ok((init, pidfd)) => {
                self.init = Some((init, pidfd));
                self.set(Status::Alive { init });
            }
            Err(e) => self.set(Status::Failed { reason: e.to_string() }),
        }
    }

    fn serve(&mut self, listener: &UnixListener) -> io::Result<()> {
        loop {
            let init = self.init.as_ref().map(|(_, pidfd)| pidfd.as_fd());
            let dumper = self.dumper.as_ref().map(|(stream, _)| stream.as_fd());
            let [asked, ended, told] = readable([Some(listener.as_fd()), init, dumper])?;
            if ended {
                self.keep_exit();
            }
            if told && let Some((stream, dumper)) = self.dumper.take() {
                let _ = go_on(stream, dumper);
            }
            if asked
                && let Ok((stream, _)) = listener.accept()
                && self.answer(stream).unwrap_or(false)
            {
                return Ok(());
            }
        }
    }

    /// The pod's init ended: its code is kept, and every other child reaped.
    fn keep_exit(&mut self) {
        let Some((init, _)) = self.init.take() else { return };
        let ended = waitpid(Pid::from_raw(init.pid), None).ok().and_then(exit_of);
        // An adopted init is reaped by somebody else.
        let ended = ended.or_else(|| exit_file(&self.config.writable.join("upper"), false).map(|e| (e.code, e.signal)));
        // (Not what other threads trace: a CRIU that gives its memory back reports to one.)
        let own = WaitPidFlag::WNOHANG | WaitPidFlag::__WNOTHREAD;
        while waitpid(None, Some(own)).is_ok_and(|s| s.pid().is_some()) {}
        self.set(match ended {
            Some((code, signal)) => Status::Ended { init, code, signal },
            None => Status::Failed { reason: "nobody saw its exit code".into() },
        });
    }

    /// Answers one request; true: it was the last.
    fn answer(&mut self, stream: UnixStream) -> io::Result<bool> {
        let (reply, last) = match receive(&stream) {
            Ok(Request::Status) => (Reply::Status(self.status.clone()), false),
            Ok(Request::PrepareDump { images, limit_s, ghost_limit, watched }) => {
                match self.dumper(&images, Duration::from_secs(limit_s), ghost_limit, watched) {
                    Ok(dumper) => {
                        self.dumper = Some((stream.try_clone()?, dumper));
                        (Reply::Done, false)
                    }
                    Err(reason) => (Reply::Failed(reason), false),
                }
            }
            Ok(Request::Dump) => (Reply::Failed("nothing is ready to dump".into()), false),
            Ok(Request::Shutdown) if self.init.is_none() => (Reply::Done, true),
            Ok(Request::Shutdown) => (Reply::Failed("the pod has not ended".into()), false),
            Err(e) => (Reply::Failed(format!("the request is not understood: {e}")), false),
        };
        send(&stream, &reply)?;
        Ok(last)
    }

    fn dumper(&self, images: &Path, limit: Duration, ghost_limit: u32, watched: Vec<String>) -> Result<Dumper, String> {
        let Some((init, _)) = &self.init else { return Err("the pod has ended".into()) };
        Hierarchies::detect().map_err(|e| e.to_string()).and_then(|hierarchies| {
            let cgroup = hierarchies.cgroup(&self.config.cgroup);
            let what = criu::Dump {
                pid: init.pid,
                images,
                freeze_cgroup: cgroup.freezer(),
                external: (external::mounts(&self.config.volumes, &root::shown(&self.config)).iter())
                    .map(external::External::for_dump)
                    .collect(),
                ghost_limit,
                watched,
            };
            Dumper::start(&self.config.criu, &what, limit).map_err(|e| e.to_string())
        })
    }

    fn set(&mut self, status: Status) {
        let path = self.config.bundle.join("status.json");
        let partial = self.config.bundle.join("status.json.partial");
        // For a podd that finds this shim dead; while it lives, it is asked.
        let _ = serde_json::to_vec(&status)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&partial, text))
            .and_then(|()| fs::rename(&partial, &path));
        self.status = status;
    }
}

/// Dumps when told to, unless whoever wanted that has gone.
fn go_on(stream: UnixStream, dumper: Dumper) -> io::Result<()> {
    let reply = match receive(&stream)? {
        Request::Dump => dumper.dump().map_or_else(|e| Reply::Failed(e.to_string()), |()| Reply::Done),
        other => Reply::Failed(format!("{other:?} has its own connection")),
    };
    send(&stream, &reply)
}

fn receive(stream: &UnixStream) -> io::Result<Request> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new(io::Read::take(stream, 64 * 1024)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

fn send(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut text = serde_json::to_vec(reply)?;
    text.push(b'\n');
    // A podd that has died meanwhile does not matter: the next one asks again.
    let _ = stream.write_all(&text);
    Ok(())
}

/// Waits until one of them can be read, or has ended.
fn readable<const N: usize>(of: [Option<BorrowedFd<'_>>; N]) -> io::Result<[bool; N]> {
    let mut fds: Vec<_> = of.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    let mut fds = fds.into_iter();
    Ok(of.map(|fd| fd.and_then(|_| fds.next()).and_then(|fd| fd.any()).unwrap_or(false)))
}
