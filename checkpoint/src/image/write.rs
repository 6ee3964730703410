//! Writes an image in one pass, under another name until it is whole.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::num::NonZero;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

use super::BUFFER;
use super::error::Error;
use super::header::{FORMAT, HEADER, Header, unfinished};
use super::manifest::{Compression, Kind, Manifest, ManifestError, Meta, Part, check_digest, check_name, limits};

/// zstd's fastest ordinary level: memory pages gain little from more, and the pod may be frozen meanwhile.
const LEVEL: i32 = 1;

/// Threads that write one part, at most.
const MOST_THREADS: usize = 4;

/// Fills a buffer with a part's content, from this offset on.
pub type ReadAt<'a> = dyn Fn(u64, &mut [u8]) -> io::Result<()> + Sync + 'a;

/// Writes an image to `PATH.partial`; dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    partial: PathBuf,
    file: Arc<File>,
    compression: Compression,
    names: HashSet<String>,
    parts: Vec<Part>,
    /// Where the next part begins.
    offset: u64,
    /// The part that was begun and not yet finished.
    open: Option<String>,
    finished: bool,
}

impl Writer {
    /// Begins an image that will appear at `path`, whole, in place of what is there now. A partial file that a dead
    /// writer left is replaced; while another writer lives, this fails with [`Error::Busy`].
    pub fn create(path: &Path, compression: Compression) -> Result<Self, Error> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = claim(&partial, path)?;
        let writer = Self {
            path: path.to_owned(),
            partial,
            file: Arc::new(file),
            compression,
            names: HashSet::new(),
            parts: Vec::new(),
            offset: HEADER as u64,
            open: None,
            finished: false,
        };
        (&*writer.file).write_all(&unfinished()).map_err(Error::io("write", &writer.partial))?;
        Ok(writer)
    }

    /// Adds a part with all that `from` has; returns the bytes read.
    pub fn part(&mut self, name: &str, kind: Kind, from: &mut dyn Read) -> Result<u64, Error> {
        let path = self.path.clone();
        let mut part = self.part_writer(name, kind)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return part.finish(),
                Ok(count) => part.write_all(&buffer[..count]).map_err(Error::io("write image", &path))?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read what belongs into image", &path)(error)),
            }
        }
    }

    /// Adds a part of so many bytes, of which `read` gives those from any offset on; written by several threads, unless the image is
    /// compressed.
    pub fn part_of(&mut self, name: &str, kind: Kind, size: u64, read: &ReadAt<'_>) -> Result<u64, Error> {
        let (path, base) = (self.path.clone(), self.offset);
        let read = |at, content: &mut [u8]| {
            read(at, content).map_err(|e| Error::io("read what belongs into image", &path)(e).into())
        };
        let mut part = self.part_writer(name, kind)?;
        let written = match &mut part.sink {
            Sink::Plain(to) => to.get_mut().write_by_several(base, size, &read).map(|()| part.size = size),
            Sink::Zstd(_) => {
                let mut buffer = vec![0; BUFFER];
                (0..size).step_by(BUFFER).try_for_each(|at| {
                    let content = &mut buffer[..(size - at).min(BUFFER as u64) as usize];
                    read(at, content)?;
                    part.write_all(content)
                })
            }
        };
        written.map_err(Error::io("write image", &path))?;
        part.finish()
    }

    /// Begins a part whose content is written bit by bit. It must be finished before the next one begins.
    pub fn part_writer(&mut self, name: &str, kind: Kind) -> Result<PartWriter<'_>, Error> {
        self.usable()?;
        let refused = |source| Error::Refused { path: self.path.clone(), source };
        check_name(name).map_err(refused)?;
        if let Kind::Layer(digest) = &kind {
            check_digest(digest).map_err(refused)?;
        }
        if self.parts.len() == limits::PARTS {
            return Err(refused(ManifestError::Limit { field: "number of parts", limit: limits::PARTS }));
        }
        if !self.names.insert(name.to_owned()) {
            return Err(refused(ManifestError::Twice(name.to_owned())));
        }
        let sink = Sink::new(self.compression, Arc::clone(&self.file)).map_err(Error::io("write image", &self.path))?;
        self.open = Some(name.to_owned());
        Ok(PartWriter { writer: self, sink, kind, size: 0 })
    }

    /// Completes the image: manifest, header, everything on disk, then its name. Only now does `path` change.
    pub fn finish(mut self, meta: Meta) -> Result<Manifest, Error> {
        self.usable()?;
        let manifest = Manifest { format: FORMAT, meta, parts: std::mem::take(&mut self.parts) };
        let bytes =
            manifest.encode(self.offset).map_err(|source| Error::Refused { path: self.path.clone(), source })?;
        let header = Header {
            format: FORMAT,
            length: self.offset + bytes.len() as u64,
            manifest_length: bytes.len() as u64,
            manifest_checksum: xxh3_128(&bytes),
        };
        (&*self.file).write_all(&bytes).map_err(Error::io("write", &self.partial))?;
        self.file.write_all_at(&header.encode(), 0).map_err(Error::io("write", &self.partial))?;
        self.file.sync_all().map_err(Error::io("sync", &self.partial))?;
        fs::rename(&self.partial, &self.path).map_err(Error::io("rename the partial file to", &self.path))?;
        self.finished = true;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", folder))?;
        Ok(manifest)
    }

    fn usable(&self) -> Result<(), Error> {
        match &self.open {
            None => Ok(()),
            Some(part) => Err(Error::HalfPart { path: self.path.clone(), part: part.clone() }),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // It may be gone already, and there is nobody left to tell.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// A part in the making. Dropped unfinished, it makes the whole image unusable.
pub struct PartWriter<'a> {
    writer: &'a mut Writer,
    sink: Sink,
    kind: Kind,
    size: u64,
}

impl PartWriter<'_> {
    /// Completes the part; returns the bytes of its content.
    pub fn finish(self) -> Result<u64, Error> {
        let Self { writer, sink, kind, size } = self;
        let stored = sink.finish().map_err(Error::io("write image", &writer.path))?;
        let part = Part {
            name: writer.open.take().unwrap_or_default(),
            kind,
            size,
            stored_size: stored.count,
            offset: writer.offset,
            checksum: stored.hash.digest128(),
            compression: writer.compression,
        };
        writer.offset += part.stored_size;
        writer.parts.push(part);
        Ok(size)
    }
}

impl Write for PartWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = match &mut self.sink {
            Sink::Plain(to) => to.write(bytes)?,
            Sink::Zstd(to) => to.write(bytes)?,
        };
        self.size += count as u64;
        Ok(count)
    }

    /// Does nothing: what is written counts only once the part is finished.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Sink {
    Plain(BufWriter<Stored>),
    Zstd(zstd::Encoder<'static, Stored>),
}

impl Sink {
    fn new(compression: Compression, file: Arc<File>) -> io::Result<Self> {
        let stored = Stored { file, hash: Xxh3Default::new(), count: 0 };
        Ok(match compression {
            Compression::None => Self::Plain(BufWriter::with_capacity(BUFFER, stored)),
            Compression::Zstd => Self::Zstd(encoder(stored)?),
        })
    }

    fn finish(self) -> io::Result<Stored> {
        match self {
            Self::Plain(to) => to.into_inner().map_err(io::IntoInnerError::into_error),
            Self::Zstd(to) => to.finish(),
        }
    }
}

fn encoder(to: Stored) -> io::Result<zstd::Encoder<'static, Stored>> {
    let mut encoder = zstd::Encoder::new(to, LEVEL)?;
    // Our own checksum covers the stored bytes; zstd's covers the content, against a fault in the decoder.
    encoder.include_checksum(true)?;
    #[cfg(feature = "zstdmt")]
    encoder.multithread(std::thread::available_parallelism().map_or(1, |cores| cores.get().min(8) as u32))?;
    Ok(encoder)
}

/// The stored bytes of one part, on their way to the file.
struct Stored {
    file: Arc<File>,
    hash: Xxh3Default,
    count: u64,
}

impl Stored {
    /// Writes all of a part that begins at `base` in the file. Content is read and hashed in its order, and written in any.
    fn write_by_several(&mut self, base: u64, size: u64, read: &ReadAt<'_>) -> io::Result<()> {
        let Self { file, hash, count } = self;
        let next = Mutex::new((0, hash));
        let lock = || next.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || -> io::Result<()> {
            let mut buffer = vec![0; size.min(BUFFER as u64) as usize];
            loop {
                let mut next = lock();
                // Nobody goes on after one who failed.
                let at = std::mem::replace(&mut next.0, size);
                let content = &mut buffer[..(size - at).min(BUFFER as u64) as usize];
                if content.is_empty() {
                    return Ok(());
                }
                read(at, content)?;
                next.1.update(content);
                next.0 = at + content.len() as u64;
                drop(next);
                file.write_all_at(content, base + at).inspect_err(|_| lock().0 = size)?;
            }
        };
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let others = processors.min(MOST_THREADS).min(size.div_ceil(BUFFER as u64) as usize).saturating_sub(1);
        std::thread::scope(|scope| {
            // There may be no thread to be had: this one will do.
            let others = (0..others).map(|_| Builder::new().spawn_scoped(scope, work));
            let others: Vec<_> = others.filter_map(Result::ok).collect();
            let own = work();
            let others = others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
            others.fold(own, Result::and)
        })?;
        *count = size;
        (&**file).seek(SeekFrom::Start(base + size)).map(drop)
    }
}

impl Write for Stored {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = (&*self.file).write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes the partial file, always a new one: a file that stands there already may be another's, with other rights.
fn claim(partial: &Path, path: &Path) -> Result<File, Error> {
    let busy = || Error::Busy { path: path.to_owned() };
    let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial);
    let file = match create() {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
            let stale = OpenOptions::new().read(true).custom_flags(flags).open(partial);
            let stale = stale.map_err(Error::io("open", partial))?;
            lock(&stale, partial, busy)?;
            fs::remove_file(partial).map_err(Error::io("remove", partial))?;
            create()
        }
        made => made,
    };
    let file = file.map_err(Error::io("create", partial))?;
    lock(&file, partial, busy)?;
    // Between creation and lock another writer may have taken it for a stale one.
    let (ours, there) = (file.metadata(), fs::symlink_metadata(partial));
    match (ours, there) {
        (Ok(ours), Ok(there)) if (ours.dev(), ours.ino()) == (there.dev(), there.ino()) => Ok(file),
        _ => Err(busy()),
    }
}

fn lock(file: &File, partial: &Path, busy: impl Fn() -> Error) -> Result<(), Error> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(busy()),
        other => other.map_err(|errno| Error::io("lock", partial)(errno.into())),
    }
}
