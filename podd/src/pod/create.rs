//! Making a pod: its layers, its id range, its writable layer with the init in it. Nothing runs yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use rand::Rng;

use super::spec::PodSpec;
use super::state::{PodRecord, PodState, Process};
use crate::api::{ApiError, Progress};
use crate::error::{Attempt, Result};
use crate::layers::ImageConfig;
use crate::supervisor::{Claim, Daemon, Doing};
use crate::sys::namespaces::ID_COUNT;
use crate::sys::network;

/// Ids that systemd sets aside for containers (systemd.io, "Users, Groups, UIDs and GIDs").
const ID_RANGE: std::ops::Range<u32> = 0x0008_0000..0x6fff_0000;

/// Where programs are looked for unless the image or the user says otherwise.
const PATH: (&str, &str) = ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");

/// Creates a pod. Blocks while layers are imported.
///
/// # Errors
/// The name or an address is taken, the source cannot be read, or there is nothing to run. Nothing is left then.
pub fn create(daemon: &Daemon, mut spec: PodSpec, progress: &mut dyn FnMut(Progress)) -> Result<Claim> {
    check_free(daemon, &spec)?;
    let image = daemon
        .layers
        .import(&spec.source, &mut |done, total| {
            progress(Progress { phase: "layers".into(), done, total, expected: None })
        })
        .map_err(|e| {
            let error = ApiError::failed(e.to_string());
            match e.cure() {
                Some(cure) => error.cure(cure),
                None => error,
            }
        })?;
    let process = process(&spec, &image.config)?;
    spec.stop_signal = spec.stop_signal.or(image.config.stop_signal);
    // Again, now that nobody else is about to take a name, an address or ids: the import may have taken long.
    let _turn = turn();
    check_free(daemon, &spec)?;
    let id = format!("{:016x}", rand::rng().random::<u64>());
    let record = PodRecord {
        id_base: free_id_base(daemon),
        layers: image.layers.iter().map(ToString::to_string).collect(),
        process,
        epoch: 1,
        created: Timestamp::now(),
        started: None,
        restarts: 0,
        restarts_in_a_row: 0,
        relies_on: None,
        wakes: false,
        failed_on: BTreeSet::new(),
        slept: None,
        last_checkpoint: None,
        state: PodState::Created,
        spec,
        id,
    };
    let folder = daemon.config.pod_state(&record.id);
    let made = make_writable_layer(&folder, record.id_base).attempt("make the pod's writable layer");
    let stored = made.and_then(|()| daemon.store.put_pod(&record).map_err(ApiError::from));
    if let Err(e) = stored {
        let _ = fs::remove_dir_all(&folder);
        return Err(e);
    }
    daemon.insert(record.clone());
    daemon.claim(&record.id, Doing::Create)
}

/// Held between looking whether something is free and recording that it is taken.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses a name or address that another pod of this host has, or the host itself.
///
/// # Errors
/// Who has it.
pub fn check_free(daemon: &Daemon, spec: &PodSpec) -> Result<()> {
    let wanted = spec.network.iter().flat_map(|n| &n.addresses).map(|a| bare(a)).collect::<Vec<_>>();
    for other in daemon.pods().iter().map(|p| p.record()) {
        if other.spec.name == spec.name {
            return Err(ApiError::conflict(format!("a pod named {:?} exists already", spec.name))
                .cure(format!("choose another name, or remove it with `podctl rm {}`", spec.name)));
        }
        let theirs = other.spec.network.iter().flat_map(|n| &n.addresses).map(|a| bare(a));
        if let Some(address) = theirs.into_iter().find(|a| wanted.contains(a)) {
            return Err(ApiError::conflict(format!("the address {address} belongs to the pod {}", other.spec.name))
                .cure("choose another address"));
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let own = network::addresses_in_use().attempt("read the host's addresses")?;
    match wanted.iter().find(|a| a.parse().is_ok_and(|a: std::net::IpAddr| own.contains(&a))) {
        Some(address) => {
            Err(ApiError::conflict(format!("the address {address} belongs to this host"))
                .cure("choose another address"))
        }
        None => Ok(()),
    }
}

fn bare(cidr: &str) -> &str {
    cidr.split('/').next().unwrap_or(cidr)
}

/// A range of ids that no pod of this host has. Taken at random, so that pods of different hosts rarely meet.
fn free_id_base(daemon: &Daemon) -> u32 {
    let taken: Vec<u32> = daemon.pods().iter().map(|p| p.record().id_base).collect();
    loop {
        let base = rand::rng().random_range(ID_RANGE) / ID_COUNT * ID_COUNT;
        if base >= ID_RANGE.start && !taken.contains(&base) {
            return base;
        }
    }
}

/// What will run: the user's words, else the image's.
fn process(spec: &PodSpec, image: &ImageConfig) -> Result<Process> {
    let command: Vec<String> = if spec.command.is_empty() {
        image.entrypoint.iter().chain(&image.cmd).cloned().collect()
    } else if image.entrypoint.is_empty() {
        spec.command.clone()
    } else {
        image.entrypoint.iter().chain(&spec.command).cloned().collect()
    };
    if command.is_empty() {
        return Err(ApiError::usage(
            "there is nothing to run: neither a command was given nor does the image name one",
        )
        .cure("add `-- CMD ARGS...`"));
    }
    let mut env = BTreeMap::from([(PATH.0.to_owned(), PATH.1.to_owned())]);
    env.extend(image.env.clone());
    env.extend(spec.env.clone());
    let named = |user: Option<&String>| user.filter(|u| !u.is_empty()).cloned();
    Ok(Process {
        command,
        env: env.into_iter().collect(),
        user: named(spec.user.as_ref()).or(named(image.user.as_ref())).unwrap_or_else(|| "0:0".into()),
        workdir: named(spec.workdir.as_ref()).or(named(image.workdir.as_ref())).unwrap_or_else(|| "/".into()),
    })
}

/// Makes the overlay's upper and work folders, owned by the pod's root, with the pod's init in it.
fn make_writable_layer(folder: &Path, id_base: u32) -> io::Result<()> {
    make_folder(folder)?;
    let owned = |path: &Path, mode: u32| {
        fs::DirBuilder::new().recursive(true).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        chown(path, Some(id_base), Some(id_base))
    };
    owned(&folder.join("upper"), 0o755)?;
    owned(&folder.join("upper/.podd"), 0o700)?;
    let init = folder.join("upper/.podd/init");
    fs::write(&init, super::init::INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o500))?;
    chown(&init, Some(id_base), Some(id_base))
}

/// Makes a pod's durable folder with empty `upper` and `work`.
///
/// # Errors
/// I/O errors.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    fs::create_dir_all(folder.join("upper"))?;
    fs::create_dir_all(folder.join("work"))
}
