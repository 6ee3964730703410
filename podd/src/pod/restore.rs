//! Bringing a pod back from an image: `resume` of one that was suspended here, `restore` of a file.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::compat;
use checkpoint::files::{Op, Receiver};
use checkpoint::host::HostFacts;
use checkpoint::image::{Image, Kind};
use checkpoint::sleep;
use checkpoint::wire;
use jiff::Timestamp;

use super::checkpoint::FILES;
use super::elsewhere::refuse_if_elsewhere;
use super::freeze::{Flight, thaw};
use super::preflight::refuse_unless_go;
use super::start::{clear_up, give_birth, live};
use super::state::{PodRecord, PodState};
use crate::api::{ApiError, LastCheckpoint};
use crate::error::{Attempt, Result};
use crate::reserved;
use crate::shim::Mode;
use crate::supervisor::{Claim, Daemon, Doing};
use crate::sys::cgroup::Brisk;
use crate::sys::process::ProcessId;

/// Continues a suspended pod. Its own image is deleted afterwards, one that the user has named is not.
///
/// # Errors
/// The image is damaged, or CRIU's reason; the pod is still suspended then.
pub async fn resume(daemon: &Arc<Daemon>, claim: &Claim) -> Result<PodRecord> {
    let running = go_on(daemon, claim).await?;
    // None, if the user has named where the pod was to go.
    let image = daemon.config.own_image(&running.id);
    let _ = std::fs::remove_file(&image);
    reserved::forget(&daemon.config, &image);
    Ok(running)
}

/// Brings the pod back from the image that its record names, which stays.
async fn go_on(daemon: &Arc<Daemon>, claim: &Claim) -> Result<PodRecord> {
    let record = claim.record();
    let PodState::Suspended { image: path, .. } = &record.state else {
        return Err(ApiError::conflict(format!(
            "{} is not suspended: it is {}",
            record.spec.name,
            daemon.stands(&record)
        )));
    };
    let image = open(path)?;
    let copy = reserved::copy_of(&daemon.config, path, &image);
    let from_copy = match &copy {
        Some(copy) => awaken(daemon, &record, copy).await.ok(),
        None => None,
    };
    let init = match from_copy {
        Some(init) => {
            tracing::info!(pod = record.spec.name, "its image was read from the memory that survived");
            init
        }
        None => awaken(daemon, &record, &image).await?,
    };
    // Recorded before the thaw: from the first instruction on, the image is out of date.
    let running = live(daemon, claim, init)?;
    thaw(daemon, &running, &[])?;
    Ok(running)
}

/// Restores the pod out of an image; it stands still. Its memory is read where it lies, and checked meanwhile.
async fn awaken(daemon: &Daemon, record: &PodRecord, image: &Image) -> Result<ProcessId> {
    let damaged = |e: checkpoint::image::Error| ApiError::failed(e.to_string());
    let (flight, unchecked) = tokio::task::block_in_place(|| {
        let flight = Flight::new(daemon, &format!("{}-restore", record.id))?;
        image.extract_dir(&Kind::Criu, flight.path()).map_err(damaged)?;
        let unchecked = match daemon.reads_elsewhere() {
            true => image.link_dir(&Kind::Memory, flight.path()),
            false => image.extract_dir(&Kind::Memory, flight.path()).map(|_| Vec::new()),
        };
        let unchecked = unchecked.map_err(damaged)?;
        sleep::wake(flight.path()).attempt("read the pod's clocks")?;
        Ok::<_, ApiError>((flight, unchecked))
    })?;
    let image = image.clone();
    let check = tokio::task::spawn_blocking(move || image.check(&unchecked));
    let _brisk = Brisk::keep(&daemon.hierarchies);
    let born = give_birth(daemon, record, Mode::Restore { images: flight.path().to_owned() }).await;
    if let Err(e) = check.await.attempt("check the image")? {
        clear_up(daemon, record).await.attempt("clear up after the pod")?;
        return Err(damaged(e));
    }
    born
}

/// Restores a suspended pod by name, or a pod from an image file.
///
/// # Errors
/// A damaged or foreign image, a name or address that is taken, missing layers, or the pod is on another host of the fleet;
/// nothing on the host changes then.
pub async fn restore(daemon: &Arc<Daemon>, from: &str) -> Result<PodRecord> {
    if let Ok(pod) = daemon.pod(from) {
        let record = pod.record();
        if !matches!(record.state, PodState::Suspended { .. }) {
            return Err(ApiError::conflict(format!("{from} cannot be restored: it is {}", daemon.stands(&record)))
                .cure("a pod is restored once; `podctl ls` shows what exists"));
        }
        return resume(daemon, &daemon.claim(from, Doing::Resume)?).await;
    }
    if !from.contains('/') {
        return Err(ApiError::not_found(format!("there is no suspended pod named {from:?}"))
            .cure("name a pod of `podctl ls`, or an image file by its path"));
    }
    let path = PathBuf::from(from);
    let image = open(&path)?;
    tokio::task::block_in_place(|| image.verify()).map_err(|e| ApiError::failed(e.to_string()))?;
    let mut record = record_of(&image)?;
    check_fits(daemon, &record, &image)?;
    refuse_if_elsewhere(daemon, &record).await?;
    record.last_checkpoint = Some(LastCheckpoint {
        image: path.display().to_string(),
        host: daemon.config.host.clone(),
        taken: i64::try_from(image.manifest().meta.created / 1_000_000)
            .ok()
            .and_then(|ms| Timestamp::from_millisecond(ms).ok())
            .unwrap_or(Timestamp::UNIX_EPOCH),
    });
    record.state = PodState::Suspended { image: path, whole: true };
    if let Some(relies_on) = &mut record.relies_on {
        relies_on.comes_to(&daemon.cpu);
    }
    let folder = daemon.config.pod_state(&record.id);
    let unpacked = tokio::task::block_in_place(|| read_files(&image, &folder));
    let stored = unpacked.and_then(|()| daemon.store.put_pod(&record).map_err(ApiError::from));
    if let Err(e) = stored {
        let _ = std::fs::remove_dir_all(&folder);
        return Err(e);
    }
    daemon.insert(record.clone());
    let claim = daemon.claim(&record.id, Doing::Restore)?;
    let resumed = go_on(daemon, &claim).await;
    if resumed.is_err() {
        let _ = clear_up(daemon, &record).await;
        daemon.forget(&record.id)?;
        let _ = std::fs::remove_dir_all(&folder);
    }
    resumed
}

fn open(path: &Path) -> Result<Image> {
    Image::open(path).map_err(|e| {
        ApiError::failed(e.to_string()).cure("name a file on podd's host that `podctl checkpoint` has written")
    })
}

fn record_of(image: &Image) -> Result<PodRecord> {
    let text = &image.manifest().meta.pod;
    let record: PodRecord = serde_json::from_slice(text).attempt("read the pod's record in the image")?;
    super::file::validated(&record.spec).map_err(ApiError::from)?;
    let id_is_good = record.id.len() == 16 && record.id.bytes().all(|b| b.is_ascii_hexdigit());
    if id_is_good { Ok(record) } else { Err(ApiError::failed("the image names an impossible pod id")) }
}

/// Refuses what cannot work before anything is changed.
fn check_fits(daemon: &Daemon, record: &PodRecord, image: &Image) -> Result<()> {
    super::create::check_free(daemon, &record.spec)?;
    if daemon.pod(&record.id).is_ok() {
        return Err(ApiError::conflict("this very pod exists here under another name")
            .cure("a pod is restored once; remove the other one first"));
    }
    if !image.manifest().parts.iter().any(|p| p.kind == Kind::Files) {
        return Err(ApiError::failed(
            "this image holds no files: it was made by `podctl suspend` and belongs to its host",
        )
        .cure("use `podctl checkpoint` for an image that can be restored elsewhere"));
    }
    for layer in &record.layers {
        let digest = layer.parse().attempt("read the image's list of layers")?;
        if !daemon.layers.has(&digest) {
            return Err(ApiError::failed(format!("the layer {layer} of this pod is not on this host"))
                .cure("create any pod from the same image or rootfs here first"));
        }
    }
    let facts = HostFacts::read(&daemon.config.state, &daemon.config.flight()).attempt("read the host's facts")?;
    if let Some(relies_on) = &record.relies_on {
        return refuse_unless_go(&compat::check_relied_on(relies_on, &facts));
    }
    // Of a podd that did not note what its pods count on.
    let features = image.manifest().meta.cpu_features.iter();
    let missing: Vec<&str> = features.filter(|f| !facts.cpu.has(f)).map(String::as_str).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" ");
    Err(ApiError::failed(format!("this host's CPU lacks features of the one it was taken on: {missing}"))
        .cure("restore it on a host with the same or a newer CPU"))
}

/// Rebuilds the writable layer. Every operation is confined to the folder by the receiver.
fn read_files(image: &Image, folder: &Path) -> Result<()> {
    super::create::make_folder(folder).attempt("make the pod's folder")?;
    let mut part = image.read_part(FILES).map_err(|e| ApiError::failed(e.to_string()))?;
    let mut receiver = Receiver::new(&folder.join("upper")).attempt("open the writable layer")?;
    let mut header = [0; wire::HEADER];
    loop {
        match part.read(&mut header[..1]).attempt("read the image")? {
            0 => break,
            _ => part.read_exact(&mut header[1..]).attempt("read the image")?,
        }
        let parsed = wire::decode_header(&header).attempt("read the image")?;
        let mut payload = vec![0; parsed.length as usize];
        part.read_exact(&mut payload).attempt("read the image")?;
        let op: Op = wire::decode_control(&parsed, &payload).attempt("read the image")?;
        receiver.apply(op).attempt("write the writable layer")?;
    }
    receiver.finish(true).attempt("write the writable layer")
}
