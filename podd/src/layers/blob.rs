//! Parts of an image: found by name, bounded, verified while they are read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::archive::Archive;
use super::{Digest, Error, Progress, Result};

/// Largest JSON part in bytes. Registries cap manifests at 4 MiB.
pub(super) const MAX_JSON: u64 = 4 << 20;

/// Where an image's parts are.
pub(super) enum Blobs {
    Layout(PathBuf),
    Archive(Archive),
}

impl Blobs {
    /// Opens a part by its path in the image.
    pub fn open(&self, name: &str) -> Result<Section> {
        match self {
            Blobs::Layout(dir) => open_file(dir, name),
            Blobs::Archive(archive) => archive.open_member(name),
        }
    }

    /// Opens a blob by its digest.
    pub fn open_digest(&self, digest: &Digest) -> Result<Section> {
        self.open(&blob_name(digest))
    }

    /// For messages.
    pub fn image(&self) -> String {
        match self {
            Blobs::Layout(dir) => dir.display().to_string(),
            Blobs::Archive(archive) => archive.path().display().to_string(),
        }
    }
}

/// The path of a blob in an OCI layout.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The layout is not trusted: a symlink is not followed, a pipe or device not waited for.
fn open_file(dir: &std::path::Path, name: &str) -> Result<Section> {
    let path = dir.join(name);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => {
            return Err(Error::MissingBlob { name: name.to_owned() });
        }
        Err(Errno::LOOP | Errno::NXIO) => {
            return Err(Error::NotRegular { name: name.to_owned() });
        }
        Err(e) => return Err(Error::io("open", &path, e)),
    };
    let stat = rustix::fs::fstat(&file).map_err(|e| Error::io("inspect", &path, e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::NotRegular { name: name.to_owned() });
    }
    Ok(Section { name: name.to_owned(), file: Arc::new(File::from(file)), at: 0, end: stat.st_size as u64 })
}

/// A part of a file, read from its beginning to its end.
#[derive(Clone)]
pub(super) struct Section {
    pub name: String,
    pub file: Arc<File>,
    pub at: u64,
    pub end: u64,
}

impl Section {
    /// Bytes still to be read.
    pub fn len(&self) -> u64 {
        self.end - self.at
    }

    /// Refuses another size than announced.
    pub fn expect_size(self, expected: u64) -> Result<Section> {
        match self.len() {
            found if found == expected => Ok(self),
            found => Err(Error::WrongSize { name: self.name, expected, found }),
        }
    }

    /// Parses a JSON part; `digest` is what it must have, if that is known.
    pub fn json<T: DeserializeOwned>(self, what: &str, digest: Option<&Digest>) -> Result<T> {
        let bytes = self.bytes(what, digest)?;
        parse(what, &bytes)
    }

    /// The whole part.
    pub fn bytes(mut self, what: &str, digest: Option<&Digest>) -> Result<Vec<u8>> {
        let size = self.len();
        if size > MAX_JSON {
            return Err(Error::TooLarge { what: what.to_owned(), size, limit: MAX_JSON });
        }
        let mut bytes = Vec::with_capacity(size as usize);
        let read = self.read_to_end(&mut bytes);
        let name = self.name;
        read.map_err(|e| Error::io("read", std::path::Path::new(&name), e))?;
        if let Some(expected) = digest {
            let found = Digest::from_bytes(Sha256::digest(&bytes).into());
            if found != *expected {
                return Err(Error::WrongDigest { name, expected: expected.to_string(), found: found.to_string() });
            }
        }
        Ok(bytes)
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.len().min(buffer.len() as u64) as usize;
        let n = self.file.read_at(&mut buffer[..want], self.at)?;
        if n == 0 && want > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is cut short"));
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// Parses a JSON part of an image.
pub(super) fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json { what: what.to_owned(), source })
}

/// Hashes what passes through.
pub(super) struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    pub fn new(inner: R) -> Self {
        Hashing { inner, hash: Sha256::new() }
    }

    /// The digest of everything up to the end of the input, which is read to its end for that.
    pub fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(Digest::from_bytes(self.hash.finalize().into()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

/// Reports what passes through.
pub(super) struct Reporting<'a, 'b, R> {
    pub inner: R,
    /// Bytes done, those of earlier parts included.
    pub done: &'a mut u64,
    pub total: u64,
    pub progress: &'a mut Progress<'b>,
}

impl<R: Read> Read for Reporting<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        *self.done += n as u64;
        (self.progress)(*self.done, self.total);
        Ok(n)
    }
}

/// Unpacks gzip and zstd, told by their first bytes: media types and file names are often wrong about it.
pub(super) fn decompress<'a>(input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(256 * 1024, input);
    let start = input.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(flate2::bufread::MultiGzDecoder::new(input)))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Ok(Box::new(zstd::Decoder::with_buffer(input)?))
    } else {
        Ok(Box::new(input))
    }
}
