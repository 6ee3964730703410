//! Opens, checks and reads an image. Nothing in the file is believed before its checksum was seen.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

use super::BUFFER;
use super::error::Error;
use super::header::{HEADER, Header};
use super::manifest::{Compression, Kind, Manifest, ManifestError, Part};
use crate::memory::PAGES_ELSEWHERE;

/// Largest zstd window that a part may ask for: 2^24 bytes of memory; our own writer's levels need 2^19 to 2^21.
const WINDOW: u32 = 24;

/// An image whose header and manifest are sound.
#[derive(Clone, Debug)]
pub struct Image {
    path: Arc<Path>,
    file: Arc<File>,
    manifest: Manifest,
}

impl Image {
    /// Opens the image at `path` and checks everything except the parts' content.
    pub fn open(path: &Path) -> Result<Self, Error> {
        // Not to hang on a named pipe.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(Error::io("open", path))?;
        Self::from_file(file, path)
    }

    /// The same for an open file; `path` is for messages only.
    pub fn from_file(file: File, path: &Path) -> Result<Self, Error> {
        let read = || Error::io("read", path);
        let facts = file.metadata().map_err(read())?;
        if !facts.is_file() {
            return Err(Error::Foreign { path: path.to_owned() });
        }
        let length = facts.len();
        let mut start = vec![0; length.min(HEADER as u64) as usize];
        file.read_exact_at(&mut start, 0).map_err(read())?;
        let header = Header::decode(&start, length, path)?;

        let damaged = |source| Error::DamagedManifest { path: path.to_owned(), source };
        let mut bytes = vec![0; header.manifest_length as usize];
        file.read_exact_at(&mut bytes, header.manifest_offset()).map_err(read())?;
        if xxh3_128(&bytes) != header.manifest_checksum {
            return Err(damaged(ManifestError::Checksum));
        }
        let manifest = Manifest::decode(&bytes, header.format, header.manifest_offset()).map_err(damaged)?;
        Ok(Self { path: path.into(), file: Arc::new(file), manifest })
    }

    /// What the image says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads every part to its end, so that none can fail later for what is in the file. Comes before anything on the
    /// host is touched.
    pub fn verify(&self) -> Result<(), Error> {
        self.read_to_the_ends(|_| true)
    }

    /// The content of a part. It never gives more than the declared size, and instead of the last bytes an error if
    /// anything was wrong.
    pub fn read_part(&self, name: &str) -> Result<PartReader, Error> {
        let part = self.manifest.part(name);
        self.reader(part.ok_or_else(|| Error::NoPart { path: self.path.to_path_buf(), part: name.to_owned() })?)
    }

    /// Writes every part of `kind` into the folder `dir` as a new file of the part's name; returns the bytes written.
    /// Fails if such a file exists; what it made until an error stays there, in the caller's folder.
    ///
    /// The files have mode 0644, since CRIU opens some of them as the root of the pod's user namespace, which is somebody
    /// else on the host. Their folder must be closed to others.
    pub fn extract_dir(&self, kind: &Kind, dir: &Path) -> Result<u64, Error> {
        self.manifest.parts.iter().filter(|part| part.kind == *kind).map(|part| self.extract(part, dir)).sum()
    }

    fn extract(&self, part: &Part, dir: &Path) -> Result<u64, Error> {
        let path = dir.join(&part.name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
        let mut file = file.map_err(Error::io("create", &path))?;
        self.reader(part)?.copy_to(&mut file).map_err(Error::io("write", &path))
    }

    /// Puts links into the folder `dir` by which CRIU finds the parts of `kind` in this file (`criu-elsewhere.patch`), and extracts
    /// those that are compressed. Of what is linked nothing was checked: that is for [`Self::check`], before it is relied upon.
    pub fn link_dir(&self, kind: &Kind, dir: &Path) -> Result<Vec<String>, Error> {
        let file = std::path::absolute(&self.path).map_err(Error::io("find", &self.path))?;
        let mut linked = Vec::new();
        for part in self.manifest.parts.iter().filter(|part| part.kind == *kind) {
            if part.compression == Compression::None {
                let path = dir.join(&part.name);
                let target = format!("{PAGES_ELSEWHERE}{}@{}", part.offset, file.display());
                symlink(target, &path).map_err(Error::io("create", &path))?;
                linked.push(part.name.clone());
            } else {
                self.extract(part, dir)?;
            }
        }
        Ok(linked)
    }

    /// [Verifies](Self::verify) these parts alone.
    pub fn check(&self, parts: &[String]) -> Result<(), Error> {
        self.read_to_the_ends(|part| parts.contains(&part.name))
    }

    fn read_to_the_ends(&self, wanted: impl Fn(&Part) -> bool) -> Result<(), Error> {
        let mut buffer = vec![0; BUFFER];
        for part in self.manifest.parts.iter().filter(|part| wanted(part)) {
            pump(&mut self.reader(part)?, &mut io::sink(), &mut buffer).map_err(Error::io("read", &self.path))?;
        }
        Ok(())
    }

    fn reader(&self, part: &Part) -> Result<PartReader, Error> {
        let stored = Stored {
            path: Arc::clone(&self.path),
            file: Arc::clone(&self.file),
            at: part.offset,
            left: part.stored_size,
            hash: Xxh3Default::new(),
        };
        let source = match part.compression {
            Compression::None => Source::Plain(stored),
            Compression::Zstd => Source::Zstd(decoder(stored).map_err(Error::io("decompress", &self.path))?),
        };
        Ok(PartReader {
            path: Arc::clone(&self.path),
            source,
            left: part.size,
            checksum: part.checksum,
            name: part.name.clone(),
            sound: false,
        })
    }
}

/// Reads one part; independent of the [`Image`] and of other readers.
pub struct PartReader {
    path: Arc<Path>,
    name: String,
    source: Source,
    /// Bytes of content still to come.
    left: u64,
    checksum: u128,
    sound: bool,
}

impl PartReader {
    /// Copies what is left of the part to `to`, in large pieces; returns the bytes copied.
    pub fn copy_to(&mut self, to: &mut dyn Write) -> io::Result<u64> {
        let size = self.left.clamp(1, BUFFER as u64) as usize;
        pump(self, to, &mut vec![0; size])
    }

    /// After the last byte of content: nothing more is stored, and the checksum matches.
    fn end(&mut self) -> io::Result<()> {
        if let Source::Zstd(decoder) = &mut self.source {
            match decoder.read(&mut [0]) {
                Ok(0) => {}
                Ok(_) => return Err(self.damaged("it is longer than the manifest says")),
                Err(error) => return Err(self.explain(error)),
            }
        }
        let stored = match &self.source {
            Source::Plain(stored) => stored,
            Source::Zstd(decoder) => decoder.get_ref().get_ref(),
        };
        if stored.left != 0 || stored.hash.digest128() != self.checksum {
            return Err(self.damaged("its checksum does not match"));
        }
        self.sound = true;
        Ok(())
    }

    fn damaged(&self, reason: &str) -> io::Error {
        let (path, part) = (self.path.to_path_buf(), self.name.clone());
        Error::DamagedPart { path, part, reason: reason.to_owned() }.into()
    }

    /// Errors of the file are already ours; others come from the decompressor, and blame the content.
    fn explain(&self, error: io::Error) -> io::Error {
        match error.downcast::<Error>() {
            Ok(ours) => ours.into(),
            Err(error) => self.damaged(&error.to_string()),
        }
    }
}

impl Read for PartReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.sound {
            return Ok(0);
        }
        let room = self.left.min(buffer.len() as u64) as usize;
        let count = match &mut self.source {
            // At the end nothing is read, and only the checks below are left.
            _ if room == 0 => Ok(0),
            Source::Plain(stored) => stored.read(&mut buffer[..room]),
            Source::Zstd(decoder) => decoder.read(&mut buffer[..room]),
        };
        let count = count.map_err(|error| self.explain(error))?;
        self.left -= count as u64;
        if count == 0 && room > 0 {
            return Err(self.damaged("it is shorter than the manifest says"));
        }
        if self.left == 0 {
            self.end()?;
        }
        Ok(count)
    }
}

enum Source {
    Plain(Stored),
    Zstd(zstd::Decoder<'static, BufReader<Stored>>),
}

fn decoder(from: Stored) -> io::Result<zstd::Decoder<'static, BufReader<Stored>>> {
    let mut decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(BUFFER, from))?;
    decoder.window_log_max(WINDOW)?;
    Ok(decoder)
}

/// The stored bytes of one part, hashed as they are read.
struct Stored {
    path: Arc<Path>,
    file: Arc<File>,
    at: u64,
    left: u64,
    hash: Xxh3Default,
}

impl Read for Stored {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.left.min(buffer.len() as u64) as usize;
        let count = loop {
            match self.file.read_at(&mut buffer[..room], self.at) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other.map_err(Error::io("read", &self.path))?,
            }
        };
        if count == 0 && room > 0 {
            let gone = io::Error::new(ErrorKind::UnexpectedEof, "it was cut while it was read");
            return Err(Error::io("read", &self.path)(gone).into());
        }
        self.hash.update(&buffer[..count]);
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// `io::copy` with our buffer; errors of `from`, a part, are told from those of `to` by their type.
fn pump(from: &mut PartReader, to: &mut dyn Write, buffer: &mut [u8]) -> io::Result<u64> {
    let mut total = 0;
    loop {
        match from.read(buffer)? {
            0 => return Ok(total),
            count => {
                to.write_all(&buffer[..count])?;
                total += count as u64;
            }
        }
    }
}
