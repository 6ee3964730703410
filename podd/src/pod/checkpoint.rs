//! Writing a pod into an image file: `checkpoint`, and `suspend`, which keeps the writable layer where it is.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use checkpoint::clocks::Clocks;
use checkpoint::files::{Mode, Sender};
use checkpoint::host::HostFacts;
use checkpoint::image::{Compression, Kind, Meta, Writer};
use checkpoint::memory::{self, Gathered, lazy};
use checkpoint::process::timers;
use checkpoint::{sleep, wire};
use jiff::Timestamp;

use super::freeze::{Dumper, Flight, NextKernel, freeze, hold, milliseconds, thaw};
use super::start::{clear_up, ensure_shim};
use super::state::{PodRecord, PodState};
use super::stop::not_running;
use crate::api::{ApiError, CheckpointReport, LastCheckpoint};
use crate::error::{Attempt, Result};
use crate::supervisor::{Claim, Daemon};
use crate::sys::hold::Hold;

/// Name of the image part with the writable layer.
pub const FILES: &str = "files";

/// What kind of checkpoint.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to; none: the daemon's image folder, see [`place`].
    pub output: Option<PathBuf>,
    /// Let the pod go on.
    pub leave_running: bool,
    /// Compress with zstd.
    pub compress: bool,
    /// Include the writable layer.
    pub whole: bool,
}

/// Freezes a pod and writes its image. Unless it is left running, it is suspended afterwards.
///
/// # Errors
/// A refusal by preflight, or what failed; the pod then runs on and there is no image.
pub async fn checkpoint(daemon: &Daemon, claim: &Claim, options: Options) -> Result<CheckpointReport> {
    let record = claim.record();
    if !matches!(record.state, PodState::Running { .. }) {
        return Err(not_running(daemon, &record));
    }
    claim.quiet().await;
    super::preflight::refuse_unless_go(&super::preflight::here(daemon, &record)?)?;
    let image = match &options.output {
        Some(path) => path.clone(),
        None => place(daemon, &record, options.leave_running),
    };
    if options.output.is_some() && image.exists() {
        return Err(
            ApiError::conflict(format!("{} exists already", image.display())).cure("name another file, or remove it")
        );
    }
    let folder = image.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(
            ApiError::failed(format!("there is no folder {}", folder.display())).cure("make it, or name another file")
        );
    }
    let flight = Flight::new(daemon, &format!("{}-dump", record.id))?;
    ensure_shim(daemon, &record).await?;
    let hold = hold(daemon, &record);
    let dumper = Dumper::start(daemon, &record, flight.path()).await?;
    // One that goes on shall not wait until its memory is in a file.
    if !options.leave_running && daemon.leaves_memory() {
        lazy::expect(flight.path(), flight.path()).attempt("begin a dump")?;
    }
    let frozen = freeze(daemon, &record, hold.as_ref(), NextKernel::Unknown)?;
    let written = match dumper.dump(daemon, &record, &frozen).await {
        Ok(()) => note_time(daemon, &record, flight.path())
            .and_then(|()| write(daemon, &record, hold.as_ref(), &flight, &image, &options)),
        Err(e) => Err(e),
    };
    let bytes = match written {
        Ok(bytes) => bytes,
        Err(e) => {
            thaw(daemon, &record, &hold.as_ref().map(Hold::take).unwrap_or_default())?;
            return Err(e);
        }
    };
    let frozen_ms = milliseconds(frozen.since);
    let is_the_users = options.whole && image != daemon.config.own_image(&record.id);
    let last = is_the_users.then(|| LastCheckpoint {
        image: image.display().to_string(),
        host: daemon.config.host.clone(),
        taken: Timestamp::now(),
    });
    let note = |r: &mut PodRecord| r.last_checkpoint = last.or(r.last_checkpoint.take());
    if options.leave_running {
        if let Err(e) = claim.update(daemon, note) {
            tracing::warn!(pod = record.spec.name, error = %e, "nobody will be told of this checkpoint");
        }
    } else {
        // From this record on, the image is the pod. A crash before it leaves the pod frozen, and recovery thaws it.
        claim.update(daemon, |r| {
            note(r);
            r.state = PodState::Suspended { image: image.clone(), whole: options.whole };
        })?;
        clear_up(daemon, &record).await.attempt("clear up after the pod")?;
    }
    Ok(CheckpointReport { pod: record.spec.name, image: image.display().to_string(), bytes, frozen_ms })
}

/// A pod that sleeps while its host boots wakes up at the right time.
fn note_time(daemon: &Daemon, record: &PodRecord, dump: &Path) -> Result<()> {
    let PodState::Running { init, .. } = record.state else { return Err(not_running(daemon, record)) };
    if !record.wakes {
        return Ok(());
    }
    let clocks = Clocks::of(init.pid).attempt("read the pod's clocks")?;
    sleep::note(dump, clocks, timers(&daemon.cgroup(&record.id).pids())).attempt("note the pod's clocks")
}

/// Where an image goes for which the user has named no file: a suspended pod has its own one; a backup of a pod that goes
/// on has a name that no other image has.
fn place(daemon: &Daemon, record: &PodRecord, backup: bool) -> PathBuf {
    if !backup {
        return daemon.config.own_image(&record.id);
    }
    let stem = format!("{}-{}", record.spec.name, Timestamp::now().strftime("%Y%m%dT%H%M%SZ"));
    let names = (1..).map(|n| if n == 1 { format!("{stem}.img") } else { format!("{stem}-{n}.img") });
    let mut free = names.map(|name| daemon.config.images().join(name)).filter(|path| !path.exists());
    free.next().expect("the numbers do not end")
}

/// Writes what was dumped; thaws as soon as nothing more is needed of a pod that is left running.
fn write(
    daemon: &Daemon,
    record: &PodRecord,
    hold: Option<&Hold>,
    flight: &Flight,
    image: &Path,
    options: &Options,
) -> Result<u64> {
    let upper = daemon.config.pod_state(&record.id).join("upper");
    let meta = meta(daemon, record)?;
    let target = image.to_owned();
    let options = options.clone();
    let whole = options.whole;
    let writer = tokio::task::block_in_place(|| {
        let compression = if options.compress { Compression::Zstd } else { Compression::None };
        let mut writer = Writer::create(&target, compression).map_err(|e| ApiError::failed(e.to_string()))?;
        if whole {
            write_files(&mut writer, &upper)?;
        }
        Ok::<_, ApiError>(writer)
    })?;
    if options.leave_running {
        thaw(daemon, record, &hold.map(Hold::take).unwrap_or_default())?;
    }
    tokio::task::block_in_place(|| {
        write_dump(daemon, record, writer, flight.path(), meta)?;
        Ok(image.metadata().attempt("look at the image")?.len())
    })
}

/// Writes a whole image of a pod that was dumped into `dump` and has stood still since. Blocks.
///
/// # Errors
/// What cannot be read or written; there is no image then.
pub fn save(daemon: &Daemon, record: &PodRecord, dump: &Path, image: &Path) -> Result<()> {
    let meta = meta(daemon, record)?;
    let mut writer = Writer::create(image, Compression::None).map_err(|e| ApiError::failed(e.to_string()))?;
    write_files(&mut writer, &daemon.config.pod_state(&record.id).join("upper"))?;
    write_dump(daemon, record, writer, dump, meta)
}

/// CRIU's files, with the memory that the dump has left in the processes, and the end of the image.
fn write_dump(daemon: &Daemon, record: &PodRecord, mut writer: Writer, dump: &Path, meta: Meta) -> Result<()> {
    let mut gathered = memory::gather(dump, &daemon.cgroup(&record.id).pids()).attempt("find the pod's memory")?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dump).attempt("read the dump")? {
        let entry = entry.attempt("read the dump")?;
        if entry.file_type().attempt("read the dump")?.is_file() {
            names.push(entry.file_name());
        }
    }
    names.sort();
    for name in names {
        let Some(name) = name.to_str().filter(|n| !n.ends_with(".log")) else { continue };
        let kind = if name.starts_with("pages-") { Kind::Memory } else { Kind::Criu };
        let written = match gathered.remove(name) {
            Some(Gathered::Map(map)) => writer.part(name, kind, &mut map.as_slice()),
            Some(Gathered::Pages(pages)) => {
                writer.part_of(name, kind, pages.size(), &|at, content| pages.read(at, content))
            }
            None => {
                let mut file = File::open(dump.join(name)).attempt("read the dump")?;
                writer.part(name, kind, &mut file)
            }
        };
        written.map_err(|e| ApiError::failed(e.to_string()))?;
    }
    if let Some(name) = gathered.keys().next() {
        return Err(ApiError::failed(format!("the dump has no {name}")));
    }
    writer.finish(meta).map(drop).map_err(|e| ApiError::failed(e.to_string()))
}

/// The writable layer as a stream of file operations, each in a frame of the wire format.
fn write_files(writer: &mut Writer, upper: &Path) -> Result<()> {
    let failed = |e: checkpoint::image::Error| ApiError::failed(e.to_string());
    let mut part = writer.part_writer(FILES, Kind::Files).map_err(failed)?;
    let mut sender = Sender::new(upper).attempt("read the writable layer")?;
    let passed = sender.pass(Mode::Frozen, &std::collections::BTreeSet::new(), &mut |op| {
        wire::encode_control(&op)
            .map_err(std::io::Error::other)
            .and_then(|frame| part.write_all(&frame))
            .map_err(checkpoint::files::Error::Sink)
    });
    passed.attempt("copy the writable layer into the image")?;
    part.finish().map_err(failed)?;
    Ok(())
}

fn meta(daemon: &Daemon, record: &PodRecord) -> Result<Meta> {
    let facts = HostFacts::read(&daemon.config.state, &daemon.config.flight()).attempt("read the host's facts")?;
    Ok(Meta {
        created: u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0),
        pod: serde_json::to_vec(record).attempt("encode the pod's record")?,
        host: daemon.config.host.clone(),
        kernel_release: facts.kernel.release.clone(),
        kernel_version: facts.kernel.version.clone(),
        cpu_features: facts.cpu.flags,
        criu: checkpoint::criu::version(&daemon.config.criu).unwrap_or_default(),
        layers: record.layers.clone(),
    })
}
