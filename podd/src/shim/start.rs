//! Bringing a pod to life: its first process, or CRIU's restore.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use checkpoint::criu;
use checkpoint::memory::lazy::Pager;
use checkpoint::process::correct_timers;
use checkpoint::waits::Waits;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};

use super::external;
use super::first::become_init;
use super::root::{self, ROOT, shown, step};
use super::{CLONE_NEWTIME, CRIU_LIMIT, ShimConfig};
use crate::sys::cgroup::{Cgroup, Hierarchies};
use crate::sys::namespaces::{Kept, become_root, write_id_maps};
use crate::sys::process::clone_into;
use crate::sys::{limits, mounts, network};

/// Starts the pod's init in new namespaces; returns its PID once it has become the pod's own program.
///
/// # Errors
/// With the step that failed; the process is gone then.
pub fn start(config: &ShimConfig) -> io::Result<i32> {
    root::place(config)?;
    root::assemble(config)?;
    let cgroup = step("make the cgroup", Hierarchies::detect()?.create(&config.cgroup, &config.limits))?;
    // A freezer left shut by an earlier run would hold the new one.
    cgroup.thaw()?;
    let (go_read, go_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (error_read, error_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (pid_read, pid_write) = pipe2(OFlag::O_CLOEXEC)?;
    // The time namespace must belong to the pod's user namespace (CRIU enters it from there), and it takes effect
    // only for children: so a helper enters the user namespace, and its child, which the shim adopts at birth
    // (CLONE_PARENT), becomes the pod's first process.
    let enter = || {
        let born = unshare(CloneFlags::from_bits_retain(CLONE_NEWTIME)).map_err(io::Error::from).and_then(|()| {
            clone_into((POD_NAMESPACES | CloneFlags::CLONE_PARENT).bits(), || {
                let error = match become_init(config, Path::new(ROOT), &go_read) {
                    Ok(never) => match never {},
                    Err(e) => e,
                };
                let _ = File::from(error_write).write_all(error.to_string().as_bytes());
                1
            })
        });
        match born.and_then(|pid| File::from(pid_write).write_all(&pid.as_raw().to_ne_bytes())) {
            Ok(()) => 0,
            Err(e) => e.raw_os_error().unwrap_or(1),
        }
    };
    let helper = network::cradle::within(&config.cradle, || clone_into(CloneFlags::CLONE_NEWUSER.bits(), enter));
    let helper = step("make the pod's user namespace", helper.and_then(|born| born))?;
    // The closures, dropped by now, took our copies of the write ends with them.
    let mut pid = [0; size_of::<i32>()];
    let told = File::from(pid_read).read_exact(&mut pid);
    let ended = waitpid(helper, None)?;
    step(&format!("make the pod's namespaces ({ended:?})"), told)?;
    let pid = Pid::from_raw(i32::from_ne_bytes(pid));
    let prepared = prepare(config, &cgroup, pid);
    let started = prepared.and_then(|()| File::from(go_write).write_all(&[1])).and_then(|()| {
        // Closed without a word when the child's exec succeeds.
        let mut error = String::new();
        File::from(error_read).read_to_string(&mut error)?;
        if error.is_empty() { Ok(()) } else { Err(io::Error::other(error)) }
    });
    if let Err(e) = started {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = waitpid(pid, None);
        return Err(e);
    }
    Ok(pid.as_raw())
}

const POD_NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWPID
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS);

fn prepare(config: &ShimConfig, cgroup: &Cgroup, pid: Pid) -> io::Result<()> {
    step("map the pod's ids", write_id_maps(pid, config.id_base))?;
    step("enter the cgroup", cgroup.add(pid.as_raw()))?;
    network::make_link(&config.link, pid.as_raw(), config.network.as_ref())
}

/// Makes namespaces and link of a pod that is on its way. It may still run elsewhere; this takes as long as the rest of a small
/// restore. CRIU lets the pod's first process be born into them (`criu-ready-namespaces.patch`), and mounts the pod's file systems
/// in copies of a mount namespace with next to nothing in it.
fn go_ahead(config: &ShimConfig) -> io::Result<Kept> {
    let furnish = || {
        become_root()?;
        mounts::propagation("/", MsFlags::MS_PRIVATE)?;
        mounts::file_system("tmpfs", Path::new(ROOT), MsFlags::empty(), "mode=755,size=1m")?;
        mounts::pivot(Path::new(ROOT))
    };
    let namespaces = (POD_NAMESPACES | CloneFlags::CLONE_NEWUSER) & !CloneFlags::CLONE_NEWPID;
    let kept = network::cradle::within(&config.cradle, || Kept::make(namespaces, config.id_base, furnish));
    let kept = step("make the pod's namespaces", kept.and_then(|made| made))?;
    network::make_link(&config.link, kept.holder().as_raw(), config.network.as_ref())?;
    Ok(kept)
}

/// Has CRIU restore the pod. It is left frozen by its cgroup; CRIU has let go of it, and is gone or about to go: only a thaw is
/// missing, and whatever dies in the meantime, the pod stands still.
///
/// # Errors
/// With CRIU's reason; nothing of the pod is left.
pub fn restore(config: &ShimConfig, images: &Path) -> io::Result<i32> {
    let root = root::place(config)?;
    let ahead = Arc::new(go_ahead(config)?);
    // If all memory is there, it never hears of anybody.
    let pager = step("listen for memory that comes later", Pager::listen(&config.bundle, images))?;
    std::thread::spawn(|| pager.run());
    let hierarchies = Hierarchies::detect()?;
    let cgroup = step("make the cgroup", hierarchies.create(&config.cgroup, &config.limits))?;
    // As above; here it would hold CRIU itself.
    cgroup.thaw()?;
    limits::lift_ceilings();
    let cradle = network::cradle::open(&config.cradle);
    let request = criu::Restore {
        images,
        root: &root,
        external: external::mounts(&config.volumes, &shown(config))
            .iter()
            .map(external::External::for_restore)
            .collect(),
        cgroup_procs: cgroup.procs_files().collect(),
        network: cradle.as_ref(),
        namespaces: ahead.holder(),
    };
    let (mut locking, mut leaving, mut linking) = (None, None, None);
    let mut silence = None;
    let mut on_hook = |hook: criu::Hook<'_>| match (hook.name, hook.root_pid) {
        // Until now the writable layer was still being received, perhaps.
        (criu::ALL_THERE, _) => root::assemble(config).map_err(|e| e.to_string()),
        ("setup-namespaces", Some(pid)) => {
            // The lock not earlier: CRIU makes connections of its own, to see what the kernel can do. Where it cannot be had, half-closed
            // connections within the pod must be made within a second of each other. Then CRIU leaves the cgroup, as the pod has a
            // process there. That takes as long as all processors together need for a moment without readers of the lists, so it
            // goes on beside; and until then no cgroup of the host can be changed.
            let (mute, hierarchies, criu) = (cgroup.clone(), hierarchies.clone(), hook.criu_pid);
            let (lock, locked) = mpsc::channel();
            locking = Some(locked);
            leaving = Some(std::thread::spawn(move || {
                let _ = lock.send(mute.lock_network().ok());
                Cgroup::expel(&hierarchies, criu)
            }));
            // While CRIU mounts the pod's file systems. Nothing in the pod needs its neighbours before that is done.
            let (link, network, known, ahead) =
                (config.link.clone(), config.network.clone(), network::neighbours::noted(images), ahead.clone());
            linking = Some(std::thread::spawn(move || {
                // A CRIU without that patch has made others.
                if !ahead.have_network_of(pid) {
                    network::make_link(&link, pid, network.as_ref())?;
                }
                // Whoever is not known is asked for.
                let _ = network::neighbours::make_known(pid, &known);
                Ok::<_, io::Error>(())
            }));
            Ok(())
        }
        ("post-setup-namespaces", _) => {
            silence = locking.take().and_then(|locked| locked.recv().ok()).flatten();
            match linking.take().map(std::thread::JoinHandle::join) {
                Some(Ok(made)) => made.map_err(|e| e.to_string()),
                None | Some(Err(_)) => Err("the pod's link was not made".into()),
            }
        }
        // All connections are there; those that leave their repair mode now are to be heard.
        ("network-unlock", _) => {
            silence = None;
            Ok(())
        }
        // Every process is restored and held by CRIU at the edge of user space. When CRIU has left the cgroup, the freezer is
        // shut, so that they stand still when CRIU lets go of them. Were they held by CRIU alone, its death would set them free
        // on two hosts at once.
        ("pre-resume", _) => {
            let left = leaving.take().and_then(|thread| thread.join().ok());
            let left = left.unwrap_or_else(|| Cgroup::expel(&hierarchies, hook.criu_pid));
            left.and_then(|()| cgroup.request_freeze()).map_err(|e| e.to_string())
        }
        _ => Ok(()),
    };
    let restored = criu::restore(&config.criu, &request, CRIU_LIMIT, &mut on_hook).map_err(io::Error::other);
    let restored = restored.and_then(|pid| {
        cgroup.freeze(Duration::from_secs(10))?;
        step("correct the pod's timers", correct_timers(&cgroup.pids(), images))?;
        step("note what the pod waits for", Waits::carry(images, &config.bundle))?;
        Ok(pid)
    });
    // Whoever waits for the pod need not wait for this.
    std::thread::spawn(move || drop(ahead));
    if restored.is_err() {
        let _ = cgroup.kill(Duration::from_secs(10));
        let _ = linking.map(std::thread::JoinHandle::join);
        let _ = network::remove_link(&config.link);
    }
    restored
}
