//! Random changes to a tree, for the property tests.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, XattrFlags, linkat, lremovexattr, lsetxattr, mknodat};

use super::noise;

/// Something that a program may do to its files.
#[derive(Clone, Debug)]
pub enum Change {
    Mkdir(Name),
    Write(Name, u64, Size),
    /// The file's time is what it was before.
    WriteQuietly(Name, u64, Size),
    Poke(Name, u64, u16),
    Truncate(Name, Size),
    Extend(Name, u32),
    Punch(Name, u32, u32),
    Remove(Name),
    Rename(Name, Name),
    Link(Name, Name),
    Symlink(Name, u8),
    Fifo(Name),
    Socket(Name),
    Whiteout(Name),
    Mode(Name, u16),
    Owner(Name, u16),
    Time(Name, u32),
    Xattr(Name, u8, Option<u8>),
    Opaque(Name),
}

/// A path out of a small set, so that changes meet.
#[derive(Clone, Debug)]
pub struct Name(Vec<u8>);

/// Few sizes, on both sides of what is compared block by block.
#[derive(Clone, Debug)]
pub enum Size {
    Small(u16),
    Big(u32),
}

impl Size {
    fn bytes(&self) -> usize {
        match self {
            Size::Small(size) => (*size).into(),
            Size::Big(more) => (1 << 20) + *more as usize % 400_000,
        }
    }
}

impl Name {
    fn under(&self, root: &Path) -> PathBuf {
        root.join(OsStr::from_bytes(&self.0))
    }
}

fn name() -> impl Strategy<Value = Name> {
    let parts: [&[u8]; 4] = [b"a", b"c.d", b"\xff\xfe", b".moving-0"];
    let part = prop::sample::select(parts.to_vec());
    let depth = prop_oneof![3 => Just(1usize), 4 => Just(2), 1 => Just(3)];
    depth
        .prop_flat_map(move |depth| prop::collection::vec(part.clone(), depth))
        .prop_map(|parts| Name(parts.join(&b'/')))
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![3 => any::<u16>().prop_map(Size::Small), 1 => any::<u32>().prop_map(Size::Big)]
}

pub fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => name().prop_map(Change::Mkdir),
        6 => (name(), any::<u64>(), size()).prop_map(|(n, seed, size)| Change::Write(n, seed, size)),
        2 => (name(), any::<u64>(), size()).prop_map(|(n, seed, size)| Change::WriteQuietly(n, seed, size)),
        3 => (name(), any::<u64>(), any::<u16>()).prop_map(|(n, at, len)| Change::Poke(n, at, len)),
        2 => (name(), size()).prop_map(|(n, size)| Change::Truncate(n, size)),
        2 => (name(), any::<u32>()).prop_map(|(n, by)| Change::Extend(n, by)),
        2 => (name(), any::<u32>(), any::<u32>()).prop_map(|(n, at, len)| Change::Punch(n, at, len)),
        3 => name().prop_map(Change::Remove),
        5 => (name(), name()).prop_map(|(a, b)| Change::Rename(a, b)),
        4 => (name(), name()).prop_map(|(a, b)| Change::Link(a, b)),
        1 => (name(), any::<u8>()).prop_map(|(n, target)| Change::Symlink(n, target)),
        1 => name().prop_map(Change::Fifo),
        1 => name().prop_map(Change::Socket),
        2 => name().prop_map(Change::Whiteout),
        2 => (name(), any::<u16>()).prop_map(|(n, mode)| Change::Mode(n, mode)),
        2 => (name(), any::<u16>()).prop_map(|(n, id)| Change::Owner(n, id)),
        2 => (name(), any::<u32>()).prop_map(|(n, time)| Change::Time(n, time)),
        3 => (name(), 0..3u8, any::<Option<u8>>()).prop_map(|(n, which, value)| Change::Xattr(n, which, value)),
        1 => name().prop_map(Change::Opaque),
    ]
}

impl Change {
    /// Tries it; many do not apply to what is there.
    pub fn apply(&self, root: &Path) -> io::Result<()> {
        match self {
            Change::Mkdir(name) => fs::create_dir(name.under(root)),
            Change::Write(name, seed, size) => write(&name.under(root), *seed, size),
            Change::WriteQuietly(name, seed, size) => {
                let path = name.under(root);
                let time = regular(&path)?.modified()?;
                write(&path, *seed, size)?;
                OpenOptions::new().write(true).open(&path)?.set_modified(time)
            }
            Change::Poke(name, at, len) => {
                let path = name.under(root);
                let size = regular(&path)?.len();
                let file = OpenOptions::new().write(true).open(&path)?;
                file.write_all_at(&noise(*at, (*len).into()), at % (size + 1))
            }
            Change::Truncate(name, size) => {
                let path = name.under(root);
                regular(&path)?;
                OpenOptions::new().write(true).open(&path)?.set_len(size.bytes() as u64)
            }
            Change::Extend(name, by) => {
                let path = name.under(root);
                let size = regular(&path)?.len();
                OpenOptions::new().write(true).open(&path)?.set_len(size + u64::from(*by % (4 << 20)))
            }
            Change::Punch(name, at, len) => {
                let path = name.under(root);
                let size = regular(&path)?.len().max(1);
                let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                let file = OpenOptions::new().write(true).open(&path)?;
                let len = u64::from(*len) % size + 1;
                Ok(rustix::fs::fallocate(&file, flags, u64::from(*at) % size, len)?)
            }
            Change::Remove(name) => {
                let path = name.under(root);
                if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
            }
            Change::Rename(from, to) => fs::rename(from.under(root), to.under(root)),
            Change::Link(from, to) => Ok(linkat(CWD, from.under(root), CWD, to.under(root), AtFlags::empty())?),
            Change::Symlink(name, target) => symlink(format!("/{target}/../x"), name.under(root)),
            Change::Fifo(name) => node(&name.under(root), FileType::Fifo),
            Change::Socket(name) => UnixListener::bind(name.under(root)).map(drop),
            Change::Whiteout(name) => node(&name.under(root), FileType::CharacterDevice),
            Change::Mode(name, mode) => {
                let path = name.under(root);
                if path.symlink_metadata()?.is_symlink() {
                    return Ok(());
                }
                fs::set_permissions(path, fs::Permissions::from_mode(u32::from(*mode) & 0o7777))
            }
            Change::Owner(name, id) => lchown(name.under(root), Some((*id).into()), Some(u32::from(*id) + 1)),
            Change::Time(name, time) => {
                let path = name.under(root);
                regular(&path)?;
                let time = SystemTime::UNIX_EPOCH + Duration::new((*time).into(), *time % 1_000_000_000);
                OpenOptions::new().write(true).open(path)?.set_modified(time)
            }
            Change::Xattr(name, which, value) => {
                let path = name.under(root);
                let attribute = format!("user.test{which}");
                match value {
                    Some(value) => {
                        let value = noise((*value).into(), (*value).into());
                        Ok(lsetxattr(path, attribute, &value, XattrFlags::empty())?)
                    }
                    None => Ok(lremovexattr(path, attribute)?),
                }
            }
            Change::Opaque(name) => {
                let path = name.under(root);
                lsetxattr(&path, "trusted.overlay.origin", b"host-local", XattrFlags::empty())?;
                Ok(lsetxattr(&path, "trusted.overlay.opaque", b"y", XattrFlags::empty())?)
            }
        }
    }
}

fn write(path: &Path, seed: u64, size: &Size) -> io::Result<()> {
    let known = path.symlink_metadata();
    if known.is_ok_and(|known| !known.is_file()) {
        return Ok(());
    }
    fs::write(path, noise(seed, size.bytes()))?;
    chown(path, Some(0), None)
}

fn regular(path: &Path) -> io::Result<fs::Metadata> {
    let meta = path.symlink_metadata()?;
    if meta.is_file() { Ok(meta) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn node(path: &Path, kind: FileType) -> io::Result<()> {
    Ok(mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), 0)?)
}
