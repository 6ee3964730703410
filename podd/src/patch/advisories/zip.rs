//! Reads a zip entry after entry, in little memory whatever its size.
//!
//! The crate `zip` holds the whole directory: 45 MB for Debian's 60,000 advisories, and what a hostile one asks for.
//! Its way without a directory cannot read what is written as a stream, whose sizes come after the content. So the
//! directory is walked here. Of the format (PKWARE's APPNOTE.TXT 6.3.10) this knows what advisories need: stored and deflated
//! entries, and more than 65,535 of them.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use flate2::Crc;
use flate2::read::DeflateDecoder;

use super::error::{Error, Result};

/// Most entries. Debian had some 55,000 advisories in 2025.
const MAX_ENTRIES: u64 = 500_000;
/// The directory's end, without its comment.
const END: usize = 22;
/// Longest comment.
const MAX_COMMENT: u64 = 0xffff;

/// Calls `entry` with the name and content of each file; the content is only good once it was read to its end.
pub(super) fn each(file: &File, from: &str, mut entry: impl FnMut(&str, &mut dyn Read) -> Result<()>) -> Result<()> {
    let length = file.metadata().map_err(Error::io("read", from))?.len();
    let (count, start) = directory(file, length).map_err(|e| Error::read(e, from))?;
    if count > MAX_ENTRIES {
        return Err(Error::TooMany { from: from.to_owned(), limit: MAX_ENTRIES });
    }
    let mut directory = BufReader::with_capacity(64 << 10, Part { file, at: start, end: length });
    for _ in 0..count {
        let (name, content) = next(file, &mut directory).map_err(|e| Error::read(e, from))?;
        if !name.ends_with('/') {
            entry(&name, &mut { content })?;
        }
    }
    Ok(())
}

/// How many entries the directory has, and where it begins. It stands at the end: a zip without is but a part of one.
fn directory(file: &File, length: u64) -> io::Result<(u64, u64)> {
    let start = length.saturating_sub(END as u64 + MAX_COMMENT);
    let mut tail = Vec::new();
    Part { file, at: start, end: length }.read_to_end(&mut tail)?;
    let is_end = |at: &usize| {
        tail[*at..].starts_with(b"PK\x05\x06") && at + END + usize::from(u16_at(&tail[*at..], 20)) == tail.len()
    };
    let at = (0..(tail.len() + 1).saturating_sub(END)).rev().find(is_end).ok_or(io::ErrorKind::UnexpectedEof)?;
    let (count, offset) = (u16_at(&tail[at..], 10), u32_at(&tail[at..], 16));
    if count != u16::MAX && offset != u32::MAX {
        return Ok((count.into(), offset.into()));
    }
    let locator = at.checked_sub(20).map(|at| &tail[at..]).filter(|l| l.starts_with(b"PK\x06\x07"));
    let locator = locator.ok_or_else(|| wrong("its directory has no end"))?;
    let mut large = [0; 56];
    file.read_exact_at(&mut large, u64_at(locator, 8))?;
    match large.starts_with(b"PK\x06\x06") {
        true => Ok((u64_at(&large, 32), u64_at(&large, 48))),
        false => Err(wrong("its directory has no end")),
    }
}

fn next<'a>(file: &'a File, directory: &mut impl Read) -> io::Result<(String, Checked<'a>)> {
    let mut head = [0; 46];
    directory.read_exact(&mut head)?;
    if !head.starts_with(b"PK\x01\x02") {
        return Err(wrong("its directory is damaged"));
    }
    let (name, rest) = (u16_at(&head, 28), u64::from(u16_at(&head, 30)) + u64::from(u16_at(&head, 32)));
    let mut bytes = vec![0; name.into()];
    directory.read_exact(&mut bytes)?;
    io::copy(&mut directory.take(rest), &mut io::sink())?;
    let name = String::from_utf8_lossy(&bytes).into_owned();

    let (flags, method, crc) = (u16_at(&head, 8), u16_at(&head, 10), u32_at(&head, 16));
    let (packed, size, offset) = (u32_at(&head, 20), u32_at(&head, 24), u32_at(&head, 42));
    if flags & 1 != 0 || !matches!(method, 0 | 8) || [packed, size, offset].contains(&u32::MAX) {
        return Err(wrong("one of its entries is encrypted, packed in a rare way, or larger than 4 GiB"));
    }
    let mut local = [0; 30];
    file.read_exact_at(&mut local, offset.into())?;
    if !local.starts_with(b"PK\x03\x04") {
        return Err(wrong("its directory does not lead to its entries"));
    }
    let at = u64::from(offset) + 30 + u64::from(u16_at(&local, 26)) + u64::from(u16_at(&local, 28));
    let part = Part { file, at, end: at + u64::from(packed) };
    let content: Box<dyn Read> = if method == 8 { Box::new(DeflateDecoder::new(part)) } else { Box::new(part) };
    Ok((name, Checked { content, seen: Crc::new(), size, crc }))
}

/// A part of a file, read without moving the file's own position.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.end.saturating_sub(self.at)).map_or(buf.len(), |left| left.min(buf.len()));
        let n = self.file.read_at(&mut buf[..room], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// An entry that must have the size and checksum that the directory says.
struct Checked<'a> {
    content: Box<dyn Read + 'a>,
    seen: Crc,
    size: u32,
    crc: u32,
}

impl Read for Checked<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.content.read(buf)?;
        self.seen.update(&buf[..n]);
        match n == 0 && !buf.is_empty() && (self.seen.amount(), self.seen.sum()) != (self.size, self.crc) {
            true => Err(wrong("one of its entries is damaged")),
            false => Ok(n),
        }
    }
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
