//! The daemon's ears: the API on a Unix socket, other podds on a TLS port.

mod caller;
mod events;
mod exec;
mod fleet;
mod http;
mod peers;
pub mod plan;
mod runs;
pub mod status;

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::baseline::Baseline;
use checkpoint::host::{Cpu, Kernel};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

pub use self::fleet::{forget as forget_hosts, names as host_names, refuse_if_removed};
pub use self::http::checks as doctor;
use crate::config::Config;
use crate::events::webhook;
use crate::layers::LayerStore;
use crate::patch::run::drive;
use crate::patch::watch::watch;
use crate::patch::{mechanism, told};
use crate::recover::recover;
use crate::reserved;
use crate::store::Sqlite;
use crate::supervisor::Daemon;
use crate::sys::cgroup::Hierarchies;
use crate::sys::process::return_free_memory;
use crate::sys::{limits, mounts, network};

/// Runs the daemon until it is told to end. Pods outlive it.
///
/// # Errors
/// What keeps it from starting.
pub fn main(config: Option<&Path>) -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    let config = Config::load(config)?;
    let (cpu, kernel) = (Cpu::read()?, Kernel::read());
    let baseline = config.baseline.resolve(&cpu, kernel.number.into(), &kernel.arch)?;
    limits::raise_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // Until the last task has ended, not only until the last request.
    let _alone = lock(&config.state)?;
    let served = runtime.block_on(serve(config, (baseline, cpu)));
    // Work that hangs must not keep us from saying why we end: whatever it was, the next podd finishes or undoes it.
    runtime.shutdown_timeout(Duration::from_secs(5));
    served
}

async fn serve(config: Config, baseline: (Baseline, Cpu)) -> Result<(), Box<dyn std::error::Error>> {
    let daemon = Arc::new(prepare(config, baseline)?);
    // Before anybody can ask: what this host says of its moves must be settled (see `recover`).
    recover(&daemon).await?;
    let waking = mechanism::wake_first(&daemon)
        .map_err(|e| format!("cannot set up the bridge {}: {e}", daemon.config.network.bridge))?;
    peers::learn_joined(&daemon);
    let listener = listen(&daemon.config.socket)?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tracing::info!(host = daemon.config.host, socket = %daemon.config.socket.display(), "ready");
    tokio::spawn(look_around(daemon.clone(), waking));
    let peers = tokio::spawn(peers::serve(daemon.clone()));
    tokio::spawn(peers::learn(daemon.clone()));
    drive::go_on(&daemon);
    tokio::spawn(drive::watch_coordinator(daemon.clone()));
    tokio::spawn(told::tell(daemon.clone()));
    tokio::spawn(webhook::deliver(daemon.clone()));
    tokio::spawn(return_memory(daemon.clone()));
    if let Some(address) = daemon.config.metrics {
        let served = status::serve_metrics(daemon.clone(), address);
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%address, %error, "metrics cannot be served");
            }
        });
    }
    let api = http::router(daemon).into_make_service_with_connect_info::<caller::Caller>();
    tokio::select! {
        served = axum::serve(listener, api) => served?,
        _ = terminate.recv() => tracing::info!("told to end; pods run on"),
        _ = tokio::signal::ctrl_c() => tracing::info!("told to end; pods run on"),
    }
    peers.abort();
    Ok(())
}

/// Gives free memory back now and then, but not while anything is done to a pod.
async fn return_memory(daemon: Arc<Daemon>) {
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        if daemon.pods().iter().all(|pod| pod.doing().is_none()) {
            tokio::task::block_in_place(return_free_memory);
        }
    }
}

/// Finds out what else there is to know about this host, once its pods are awake: they need both processor and disk.
async fn look_around(daemon: Arc<Daemon>, waking: Option<JoinHandle<()>>) {
    if let Some(waking) = waking {
        let _ = waking.await;
    }
    let warm = daemon.clone();
    tokio::task::spawn_blocking(move || warm.round_trip());
    if daemon.config.watch {
        watch(daemon).await;
    }
}

/// Time for a podd that was killed to be gone to its last thread.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(10);

/// Sees to it that no other podd has this state folder, as long as the result lives: two would undo each other's work.
fn lock(state: &Path) -> Result<Flock<File>, Box<dyn std::error::Error>> {
    std::fs::create_dir_all(state).map_err(|e| format!("cannot make {}: {e}", state.display()))?;
    let path = state.join("lock");
    let mut file = File::create(&path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
    let begun = Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) if begun.elapsed() < PREDECESSOR_LIMIT => file,
            Err((_, Errno::EWOULDBLOCK)) => return Err(format!("another podd uses {}", state.display()).into()),
            Err((_, e)) => return Err(format!("cannot lock {}: {e}", path.display()).into()),
        };
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Folders, memory for images, the bridge, the store.
fn prepare(config: Config, baseline: (Baseline, Cpu)) -> Result<Daemon, Box<dyn std::error::Error>> {
    // CRIU opens some image files as the root of the pod's user namespace, who is somebody else here: whatever umask we
    // were started with, closed folders protect them, not their modes.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let run = |name| config.run.join(name);
    for folder in [config.state.join("pods"), config.state.join("images"), run("pods"), run("volumes"), config.flight()]
    {
        std::fs::create_dir_all(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
    }
    std::fs::set_permissions(&config.state, std::fs::Permissions::from_mode(0o700))?;
    std::fs::set_permissions(config.run.join("pods"), std::fs::Permissions::from_mode(0o700))?;
    let flight = config.flight();
    if !mounts::is_mount_point(&flight)? {
        // Its own mount: /run is tmpfs too on most hosts, but small.
        mounts::file_system("tmpfs", &flight, nix::mount::MsFlags::MS_NOSUID, "mode=700,size=75%")?;
    }
    // Its uplink joins it later: pods that sleep on this host wake up first.
    network::ensure_bridge(&config.network.bridge, None)
        .map_err(|e| format!("cannot set up the bridge {}: {e}", config.network.bridge))?;
    if let Err(error) = reserved::mount(&config) {
        tracing::warn!(%error, "the memory that survives a boot cannot be used");
    }
    if let Err(e) = network::cradle::ensure(&config.cradle()) {
        tracing::info!(error = %e, "pods share the host's table of connections: moves take some milliseconds more");
    }
    let store = Sqlite::open(&config.state.join("podd.db"))?;
    let layers = LayerStore::open(&config.state.join("layers"))?;
    let hierarchies = Hierarchies::detect()?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(Daemon::new(config, Box::new(store), layers, hierarchies, boot, baseline)?)
}

/// Opens the API's socket; group `podd` may use it, if there is such a group.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("another program serves {}", socket.display())));
    }
    let _ = std::fs::remove_file(socket);
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name("podd") {
        std::os::unix::fs::chown(socket, None, Some(group.gid.as_raw()))?;
    }
    Ok(listener)
}
