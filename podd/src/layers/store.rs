//! The store itself: makes, names, lists and removes layers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use checkpoint::files;
use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use tempfile::TempDir;

use super::index::Index;
use super::{Digest, Error, Image, Limits, Progress, Result, image, rootfs};
use crate::pod::spec::RootSource;

const TMP: &str = "tmp-";

/// The layer store of a host. Clones share it.
#[derive(Clone, Debug)]
pub struct LayerStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    limits: Limits,
    index: Index,
    /// How many holds each layer has.
    held: Mutex<BTreeMap<Digest, usize>>,
    /// What is being imported in this process, so that a second import waits instead of unpacking too.
    turns: Mutex<BTreeSet<String>>,
    turn_ended: Condvar,
}

impl LayerStore {
    /// Opens the store, makes it if need be, and removes what interrupted imports left.
    pub fn open(root: &Path) -> Result<LayerStore> {
        Self::open_with(root, Limits::default())
    }

    /// [`LayerStore::open`] with other bounds for images.
    pub fn open_with(root: &Path, limits: Limits) -> Result<LayerStore> {
        let make = fs::DirBuilder::new().recursive(true).mode(0o700).create(root);
        make.map_err(|e| Error::io("make the layer store", root, e))?;
        let root = fs::canonicalize(root).map_err(|e| Error::io("find the layer store", root, e))?;
        let private = fs::set_permissions(&root, fs::Permissions::from_mode(0o700));
        private.map_err(|e| Error::io("protect the layer store", &root, e))?;
        probe_xattrs(&root)?;
        let index = Index::open(&root)?;
        let inner =
            Inner { root, limits, index, held: Mutex::default(), turns: Mutex::default(), turn_ended: Condvar::new() };
        let store = LayerStore { inner: Arc::new(inner) };
        store.remove_leftovers()?;
        Ok(store)
    }

    /// Makes the layers of `source` that are not here yet. `progress` gets bytes read.
    pub fn import(&self, source: &RootSource, progress: Progress<'_>) -> Result<Image> {
        match source {
            RootSource::Rootfs(dir) => rootfs::import(self, dir, progress),
            RootSource::Image(reference) => image::import(self, reference, progress),
        }
    }

    /// The layer's tree, a lowerdir for overlayfs. It exists if [`LayerStore::has`] says so.
    pub fn layer_path(&self, layer: &Digest) -> PathBuf {
        self.layer_dir(layer).join("fs")
    }

    /// True if the layer is here.
    pub fn has(&self, layer: &Digest) -> bool {
        self.layer_path(layer).is_dir()
    }

    /// Keeps the layer from being collected while the hold lives; none if it is not here.
    pub fn hold(&self, layer: &Digest) -> Option<Hold> {
        // First the hold, then the look: garbage collection takes the same lock before it renames.
        let hold = self.hold_blindly(layer);
        self.has(layer).then_some(hold)
    }

    /// Begins to take in a layer from another host: fill [`Incoming::path`], then commit.
    pub fn receive(&self, layer: &Digest) -> Result<Incoming> {
        let dir = self.temporary()?;
        let path = dir.make_fs()?;
        Ok(Incoming { store: self.clone(), layer: *layer, dir, path })
    }

    /// All layers.
    pub fn list(&self) -> Result<Vec<Digest>> {
        let mut layers = Vec::new();
        for name in names(&self.inner.root)? {
            if let (64, Ok(layer)) = (name.len(), format!("sha256:{name}").parse()) {
                layers.push(layer);
            }
        }
        layers.sort();
        Ok(layers)
    }

    /// Removes the layers that are neither in use nor held. Returns the bytes of disk that this freed.
    pub fn remove_unused(&self, in_use: &BTreeSet<Digest>) -> Result<u64> {
        let mut freed = 0;
        for layer in self.list()?.into_iter().filter(|layer| !in_use.contains(layer)) {
            let trash = self.temporary()?;
            {
                let held = lock(&self.inner.held);
                if held.contains_key(&layer) {
                    continue;
                }
                let from = self.layer_dir(&layer);
                fs::rename(&from, trash.path().join("fs")).map_err(|e| Error::io("remove the layer", &from, e))?;
            }
            freed += files::disk_usage(&trash.path().join("fs")).map_err(Error::Tree)?;
            trash.remove()?;
            tracing::info!(%layer, "removed a layer that no pod uses");
        }
        self.inner.index.prune(|layer| self.has(layer))?;
        Ok(freed)
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    pub(super) fn index(&self) -> &Index {
        &self.inner.index
    }

    pub(super) fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Waits until no other import of this process works on `key`.
    pub(super) fn turn(&self, key: &str) -> Turn<'_> {
        let mut turns = lock(&self.inner.turns);
        while turns.contains(key) {
            turns = self.inner.turn_ended.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        turns.insert(key.to_owned());
        Turn { inner: &self.inner, key: key.to_owned() }
    }

    /// A directory for something half-done, on the store's file system. Removed when dropped.
    pub(super) fn temporary(&self) -> Result<Temporary> {
        let root = &self.inner.root;
        let _lock = self.lock_leftovers()?;
        let made = tempfile::Builder::new().prefix(TMP).tempdir_in(root);
        let dir = made.map_err(|e| Error::io("make a directory in", root, e))?;
        let lock = open_directory(dir.path())?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|e| Error::io("lock", dir.path(), e))?;
        Ok(Temporary { dir, lock })
    }

    /// Names the finished tree in `dir` and puts it into its place, unless the layer is here already.
    pub(super) fn publish(&self, dir: Temporary, layer: &Digest) -> Result<Hold> {
        let hold = self.hold_blindly(layer);
        // Everything of the layer is on the disk before its name is: a crash leaves a whole layer or a tmp-*.
        rustix::fs::syncfs(&dir.lock).map_err(|e| Error::io("sync", dir.path(), e))?;
        let to = self.layer_dir(layer);
        let renamed =
            rustix::fs::renameat_with(rustix::fs::CWD, dir.path(), rustix::fs::CWD, &to, RenameFlags::NOREPLACE);
        match renamed {
            // No longer this function's to remove.
            Ok(()) => drop(dir.dir.keep()),
            Err(Errno::EXIST) => dir.remove()?,
            Err(e) => return Err(Error::io("make the layer", &to, e)),
        }
        let root = open_directory(&self.inner.root)?;
        rustix::fs::fsync(root).map_err(|e| Error::io("sync", &self.inner.root, e))?;
        Ok(hold)
    }

    fn layer_dir(&self, layer: &Digest) -> PathBuf {
        self.inner.root.join(layer.hex())
    }

    fn hold_blindly(&self, layer: &Digest) -> Hold {
        *lock(&self.inner.held).entry(*layer).or_default() += 1;
        Hold { inner: self.inner.clone(), layer: *layer }
    }

    /// A tmp-* that is locked belongs to a living import, perhaps of another process.
    fn remove_leftovers(&self) -> Result<()> {
        let _lock = self.lock_leftovers()?;
        for name in names(&self.inner.root)?.iter().filter(|name| name.starts_with(TMP)) {
            let path = self.inner.root.join(name);
            if rustix::fs::flock(open_directory(&path)?, FlockOperation::NonBlockingLockExclusive).is_ok() {
                fs::remove_dir_all(&path).map_err(|e| Error::io("remove the leftover", &path, e))?;
                tracing::info!(path = %path.display(), "removed what an interrupted import left");
            }
        }
        Ok(())
    }

    /// Keeps a new tmp-* from being taken for a leftover between its making and its locking.
    fn lock_leftovers(&self) -> Result<File> {
        let path = self.inner.root.join("lock");
        let file = File::options().create(true).append(true).open(&path).map_err(|e| Error::io("open", &path, e))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|e| Error::io("lock", &path, e))?;
        Ok(file)
    }
}

/// Keeps a layer from being collected.
#[derive(Debug)]
pub struct Hold {
    inner: Arc<Inner>,
    layer: Digest,
}

impl Hold {
    /// The layer that is held.
    pub fn layer(&self) -> &Digest {
        &self.layer
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        LayerStore { inner: self.inner.clone() }.hold_blindly(&self.layer)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = lock(&self.inner.held);
        if let Some(count) = held.get_mut(&self.layer) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.layer);
            }
        }
    }
}

/// A layer that is coming from another host. Dropping it discards what came.
#[derive(Debug)]
pub struct Incoming {
    store: LayerStore,
    layer: Digest,
    dir: Temporary,
    path: PathBuf,
}

impl Incoming {
    /// The empty directory that takes the layer's tree.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Verifies the tree against the layer's name and puts it into its place. Keep the hold until a pod's record
    /// names the layer.
    pub fn commit(self) -> Result<Hold> {
        let found = files::digest(&self.path).map_err(Error::Tree)?;
        if found != self.layer {
            return Err(Error::WrongTree { expected: self.layer.to_string(), found: found.to_string() });
        }
        self.store.publish(self.dir, &self.layer)
    }
}

/// A locked tmp-* directory.
#[derive(Debug)]
pub(super) struct Temporary {
    dir: TempDir,
    lock: File,
}

impl Temporary {
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The directory in it that becomes the layer's tree.
    pub fn make_fs(&self) -> Result<PathBuf> {
        let fs = self.path().join("fs");
        fs::create_dir(&fs).map_err(|e| Error::io("make", &fs, e))?;
        Ok(fs)
    }

    fn remove(self) -> Result<()> {
        let path = self.path().to_owned();
        self.dir.close().map_err(|e| Error::io("remove", &path, e))
    }
}

/// See [`LayerStore::turn`].
pub(super) struct Turn<'a> {
    inner: &'a Inner,
    key: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.inner.turns).remove(&self.key);
        self.inner.turn_ended.notify_all();
    }
}

/// Overlayfs needs `trusted.*`: better known now than in the middle of an image.
fn probe_xattrs(root: &Path) -> Result<()> {
    const PROBE: &str = "trusted.podd.probe";
    let dir = open_directory(root)?;
    rustix::fs::fsetxattr(&dir, PROBE, b"y", XattrFlags::empty())
        .and_then(|()| rustix::fs::fremovexattr(&dir, PROBE))
        .or_else(|e| if e == Errno::NODATA { Ok(()) } else { Err(e) })
        .map_err(|e| Error::NoTrustedXattrs { root: root.to_owned(), source: e.into() })
}

fn open_directory(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    Ok(File::from(opened.map_err(|e| Error::io("open the directory", path, e))?))
}

/// Names in a directory that are UTF-8: all of the store's own are.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io("list", dir, e);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// A panic elsewhere leaves these maps whole: every change to them is one statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
