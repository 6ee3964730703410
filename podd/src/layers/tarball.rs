//! Reads a tar stream entry by entry: ustar, GNU long names, PAX records. Knows nothing of files on disk.
//!
//! Why not the `tar` crate: it reads long names and PAX headers of any announced size into memory before its
//! caller can refuse them, and a gigabyte of them packs into a megabyte of gzip. Here everything that is held
//! in memory is bounded ([`MAX_RECORDS`]), and so is the stream as a whole.

use std::io::{self, Read};

use super::unpack::UnpackError;

/// Bytes in a block; everything in a tar is padded to it.
pub(super) const BLOCK: usize = 512;

/// Largest PAX header or long name, in bytes. The kernel's largest attribute is 64 KiB, its longest path 4 KiB.
const MAX_RECORDS: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    Sparse,
    Other(u8),
}

/// One entry, without its content.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// As written in the archive: not yet checked in any way.
    pub path: Vec<u8>,
    /// Target of a link, as written.
    pub link: Vec<u8>,
    pub kind: Kind,
    /// Permission bits, set-id and sticky bits.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Modification time: seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of content.
    pub size: u64,
    /// Where the content begins in the stream.
    pub offset: u64,
    /// Major and minor number.
    pub device: (u64, u64),
    /// Extended attributes, name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The stream. Reading from it reads the content of the entry that [`TarStream::next_entry`] returned last.
pub(super) struct TarStream<R> {
    input: R,
    /// Bytes taken from `input`.
    offset: u64,
    /// Refuse to take more than this.
    max_bytes: u64,
    /// Content and padding of the current entry that are still unread.
    left: u64,
    padding: u64,
}

impl<R: Read> TarStream<R> {
    /// At most `max_bytes` of the stream are read, headers and padding included.
    pub fn new(input: R, max_bytes: u64) -> Self {
        TarStream { input, offset: 0, max_bytes, left: 0, padding: 0 }
    }

    /// Skips what is left of the current entry and reads the next header; none at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut records = Records::default();
        loop {
            self.skip_content()?;
            let Some(block) = self.header()? else {
                return Ok(None);
            };
            let header = Header(&block);
            self.set_content(header.number(124..136).ok_or_else(|| self.damage("size"))?)?;
            match header.kind() {
                b'L' => records.long_path = Some(self.long_name()?),
                b'K' => records.long_link = Some(self.long_name()?),
                b'x' => {
                    let pax = self.records()?;
                    records.parse_pax(&pax).map_err(|what| self.damage(what))?;
                }
                // Global records: git writes a comment there; no image builder gives them a meaning.
                b'g' => {}
                _ => return self.entry(&header, records).map(Some),
            }
        }
    }

    /// Bytes of the stream read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads what follows the archive, as a content hash needs it: padding, usually.
    pub fn drain(&mut self) -> Result<(), UnpackError> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.take(&mut buffer)? {
                0 => return Ok(()),
                _ => continue,
            }
        }
    }

    fn entry(&mut self, header: &Header<'_>, records: Records) -> Result<Entry, UnpackError> {
        let number = |range| header.number(range).and_then(|n| u64::try_from(n).ok());
        if let Some(size) = records.size {
            self.set_content(size)?;
        }
        let path = records.path.or(records.long_path).unwrap_or_else(|| header.path());
        let kind = match header.kind() {
            _ if records.sparse => Kind::Sparse,
            // Before POSIX a directory was a file whose name ends in a slash.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => Kind::Sparse,
            other => Kind::Other(other),
        };
        if !matches!(kind, Kind::File | Kind::Sparse | Kind::Other(_)) {
            // A size on these means nothing; archives exist that repeat the target's size on hard links.
            self.set_content(0)?;
        }
        Ok(Entry {
            path,
            link: records.link.or(records.long_link).unwrap_or_else(|| header.text(157..257).to_vec()),
            kind,
            mode: number(100..108).ok_or_else(|| self.damage("mode"))? as u32 & 0o7777,
            uid: records.uid.or_else(|| number(108..116)).ok_or_else(|| self.damage("user id"))?,
            gid: records.gid.or_else(|| number(116..124)).ok_or_else(|| self.damage("group id"))?,
            mtime: match records.mtime {
                Some(time) => time,
                None => (header.number(136..148).ok_or_else(|| self.damage("time"))?, 0),
            },
            size: self.left,
            offset: self.offset,
            // Only some kinds have device numbers; archives exist with rubbish there for the others.
            device: (number(329..337).unwrap_or(u64::MAX), number(337..345).unwrap_or(u64::MAX)),
            xattrs: records.xattrs,
        })
    }

    /// The next header block; none if the archive ends here.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.take(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(self.damage("a header that is cut short")),
                n => filled += n,
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        if !Header(&block).checksum_holds() {
            return Err(self.damage("header checksum"));
        }
        Ok(Some(block))
    }

    fn long_name(&mut self) -> Result<Vec<u8>, UnpackError> {
        let mut name = self.records()?;
        // GNU tar ends it with one NUL; any other stays and is refused as part of the name.
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn records(&mut self) -> Result<Vec<u8>, UnpackError> {
        if self.left > MAX_RECORDS {
            return Err(self.damage("a long name or PAX header above 1 MiB"));
        }
        let mut content = vec![0; self.left as usize];
        self.read_exact(&mut content).map_err(|e| self.read_error(e))?;
        Ok(content)
    }

    fn set_content(&mut self, size: impl TryInto<u64>) -> Result<(), UnpackError> {
        let size = size.try_into().map_err(|_| self.damage("a negative size"))?;
        if size > self.max_bytes.saturating_sub(self.offset) {
            return Err(UnpackError::TooManyBytes { limit: self.max_bytes });
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn skip_content(&mut self) -> Result<(), UnpackError> {
        let mut skip = self.left + self.padding;
        self.left = 0;
        self.padding = 0;
        let mut buffer = [0; 4096];
        while skip > 0 {
            let want = skip.min(buffer.len() as u64) as usize;
            match self.take(&mut buffer[..want])? {
                0 => return Err(self.damage("content that is cut short")),
                n => skip -= n as u64,
            }
        }
        Ok(())
    }

    fn take(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        let n = loop {
            match self.input.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => break other.map_err(|e| self.read_error(e))?,
            }
        };
        self.offset += n as u64;
        if self.offset > self.max_bytes {
            return Err(UnpackError::TooManyBytes { limit: self.max_bytes });
        }
        Ok(n)
    }

    fn damage(&self, what: &'static str) -> UnpackError {
        UnpackError::Damaged { offset: self.offset, what }
    }

    fn read_error(&self, source: io::Error) -> UnpackError {
        UnpackError::Read { offset: self.offset, source }
    }
}

impl<R: Read + io::Seek> TarStream<io::BufReader<R>> {
    /// Leaves the current entry's content out without reading it. It may end beyond the end of the file.
    pub fn seek_over_content(&mut self) -> Result<(), UnpackError> {
        let skip = self.left + self.padding;
        let skipped = i64::try_from(skip).map_err(|_| self.damage("size"))?;
        self.input.seek_relative(skipped).map_err(|e| self.read_error(e))?;
        self.offset += skip;
        self.left = 0;
        self.padding = 0;
        Ok(())
    }
}

impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(buffer.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        let n = self.input.read(&mut buffer[..want])?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the tar is cut short"));
        }
        self.left -= n as u64;
        self.offset += n as u64;
        Ok(n)
    }
}

/// What PAX and GNU headers say about the entry that follows them.
#[derive(Default)]
struct Records {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    sparse: bool,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Records {
    /// Records are `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record.
    fn parse_pax(&mut self, mut rest: &[u8]) -> Result<(), &'static str> {
        while !rest.is_empty() {
            let space = rest.iter().position(|b| *b == b' ').ok_or("a PAX record without length")?;
            let length = decimal(&rest[..space]).ok_or("a PAX record without length")?;
            let length = usize::try_from(length).map_err(|_| "a PAX record that is too long")?;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err("a PAX record with a wrong length");
            }
            let record = &rest[space + 1..length - 1];
            let equals = record.iter().position(|b| *b == b'=').ok_or("a PAX record without a value")?;
            self.set(&record[..equals], &record[equals + 1..])?;
            rest = &rest[length..];
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value).ok_or("PAX size")?),
            b"uid" => self.uid = Some(decimal(value).ok_or("PAX uid")?),
            b"gid" => self.gid = Some(decimal(value).ok_or("PAX gid")?),
            b"mtime" => self.mtime = Some(seconds(value).ok_or("PAX mtime")?),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// A header block: fields at fixed places (POSIX.1-1988, section "ustar interchange format").
struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    fn kind(&self) -> u8 {
        self.0[156]
    }

    /// A text field up to its first NUL.
    fn text(&self, range: std::ops::Range<usize>) -> &'a [u8] {
        let field = &self.0[range];
        field.split(|b| *b == 0).next().unwrap_or(field)
    }

    fn path(&self) -> Vec<u8> {
        let name = self.text(0..100);
        // GNU puts times where POSIX has the prefix: its magic ends in a blank.
        let prefix = if &self.0[257..263] == b"ustar\0" { self.text(345..500) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// Octal text, or GNU's big-endian binary; an empty field is 0, as other readers have it.
    fn number(&self, range: std::ops::Range<usize>) -> Option<i64> {
        let field = &self.0[range];
        if field[0] & 0x80 != 0 {
            let negative = field[0] & 0x40 != 0;
            let mut value: i128 = if negative { -1 } else { 0 };
            for (i, byte) in field.iter().enumerate() {
                let byte = if i == 0 && !negative { byte & 0x7f } else { *byte };
                value = value << 8 | i128::from(byte);
            }
            return i64::try_from(value).ok();
        }
        let text = std::str::from_utf8(field.split(|b| *b == 0).next()?).ok()?.trim();
        if text.is_empty() {
            return Some(0);
        }
        i64::try_from(u64::from_str_radix(text, 8).ok()?).ok()
    }

    /// Sum of all bytes, the checksum field itself counted as blanks.
    fn checksum_holds(&self) -> bool {
        let sum: i64 =
            self.0.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { i64::from(*b) }).sum();
        self.number(148..156) == Some(sum)
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`; a fraction counts forwards, as in the kernel's timespec.
fn seconds(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{:0<9.9}", fraction).parse().ok()?;
    match (text.starts_with('-'), nanos) {
        (true, 1..) => Some((whole.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((whole, nanos)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_with_fractions() {
        assert_eq!(seconds(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(seconds(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(seconds(b"7"), Some((7, 0)));
        assert_eq!(seconds(b"7.12345678999"), Some((7, 123_456_789)));
        assert_eq!(seconds(b"7.x"), None);
        assert_eq!(seconds(b""), None);
    }

    #[test]
    fn binary_numbers() {
        let mut block = [0; BLOCK];
        block[124] = 0x80;
        block[135] = 5;
        assert_eq!(Header(&block).number(124..136), Some(5));
        block[124..136].fill(0xff);
        assert_eq!(Header(&block).number(124..136), Some(-1));
        block[124..136].copy_from_slice(b"00000000017\0");
        assert_eq!(Header(&block).number(124..136), Some(15));
    }

    #[test]
    fn a_pax_record_that_lies_about_its_length_is_refused() {
        for bad in ["5 a=b\n", "99 a=b\n", "x a=b\n", "3 \n", "6 ab\n", "2 ", "18446744073709551616 a=b\n"] {
            assert!(Records::default().parse_pax(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Records::default().parse_pax(b"6 a=b\n").is_ok());
    }
}
