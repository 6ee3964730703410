//! Decides how one tree becomes another. Pure: two scans in, a plan out.
//!
//! The target holds a copy of each object (inode) of the old tree. An object that lives on is kept under whatever names
//! it now has, so a renamed file (a rotated log, a recycled WAL segment) costs a link and not its content. Whether an
//! inode number is the same file or was used again makes no difference to correctness: content is judged apart.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{Entry, Inode, Kind, RelPath, Tree};

/// Steps that turn the target's copy of the old tree into one of the new, in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// A directory for objects on their way from one name to another, if there are any.
    pub stash: Option<RelPath>,
    /// Objects to link into it: present name, name in there.
    pub stashed: Vec<(RelPath, RelPath)>,
    /// Names to remove, what a directory holds before the directory.
    pub remove: Vec<RelPath>,
    /// What to do to names of the new tree, in its order.
    pub actions: Vec<Action>,
    /// Directories (indices of the new tree's entries) to give their metadata at the end, the deepest first.
    pub dirs: Vec<usize>,
}

/// Something to do to one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Index of the new tree's entry.
    pub entry: usize,
    /// What.
    pub what: What,
}

/// What to do to a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Make the object, with content and metadata.
    Make,
    /// Link it to an object that the target has under this name.
    Link(RelPath),
    /// Send the file's content, or what of it changed, and metadata.
    Content,
    /// Send metadata.
    Meta,
}

/// Compares two scans. A file's content counts as changed when size, mtime, ctime or inode differ, when the old scan
/// could not yet tell, or when one of its names is in `assume_changed`: the kernel gives no new mtime to a file whose
/// already dirty pages are written through a shared mapping.
pub fn diff(old: &Tree, new: &Tree, assume_changed: &BTreeSet<PathBuf>) -> Plan {
    let mut diff = Diff {
        old,
        new,
        assumed: inodes(new, assume_changed),
        objects: HashMap::with_capacity(old.entries.len()),
        staying: vec![None; new.entries.len()],
        touched: HashSet::new(),
        plan: Plan::default(),
    };
    diff.note_copies();
    diff.keep_and_remove();
    for index in 0..new.entries.len() {
        diff.place(index);
    }
    diff.finish_dirs();
    diff.plan
}

struct Diff<'a> {
    old: &'a Tree,
    new: &'a Tree,
    assumed: HashSet<Inode>,
    objects: HashMap<Inode, Object<'a>>,
    /// For each name of the new tree what the target has there already and keeps there.
    staying: Vec<Option<&'a Entry>>,
    /// Directories in which names come or go, which changes their times.
    touched: HashSet<RelPath>,
    plan: Plan,
}

/// An inode that may have several names.
#[derive(Default)]
struct Object<'a> {
    /// What the target has of it, under its first name in the old tree.
    copy: Option<&'a Entry>,
    /// A name that it had and goes on having.
    kept: Option<&'a RelPath>,
    /// Its first name in the new tree, once the target has it.
    placed: Option<&'a RelPath>,
}

impl<'a> Diff<'a> {
    fn note_copies(&mut self) {
        for entry in self.old.entries.iter().filter(|entry| entry.is_linkable()) {
            self.objects.entry(entry.inode).or_default().copy.get_or_insert(entry);
        }
    }

    fn keep_and_remove(&mut self) {
        let (old, new) = (&self.old.entries, &self.new.entries);
        let mut at = 0;
        let mut removed = Vec::new();
        for (index, entry) in new.iter().enumerate() {
            while old.get(at).is_some_and(|old| old.path < entry.path) {
                removed.push(at);
                at += 1;
            }
            let Some(same_name) = old.get(at).filter(|old| old.path == entry.path) else {
                continue;
            };
            if stays(same_name, entry) {
                self.staying[index] = Some(same_name);
                if entry.is_linkable() {
                    self.objects.entry(entry.inode).or_default().kept.get_or_insert(&entry.path);
                }
            } else {
                removed.push(at);
            }
            at += 1;
        }
        removed.extend(at..old.len());
        for at in removed.into_iter().rev() {
            self.touch_parent(&old[at].path);
            self.plan.remove.push(old[at].path.clone());
        }
    }

    fn place(&mut self, index: usize) {
        let entry = &self.new.entries[index];
        let staying = self.staying[index];
        if staying.is_none() {
            self.touch_parent(&entry.path);
        }
        if !entry.is_linkable() {
            match staying {
                None if !entry.path.is_root() => self.act(index, What::Make),
                Some(old) if entry.kind != Kind::Dir && old.meta.differs(&entry.meta) => self.act(index, What::Meta),
                _ => {}
            }
            return;
        }
        let object = self.objects.entry(entry.inode).or_default();
        if let Some(first) = object.placed {
            if staying.is_none() {
                self.act(index, What::Link(first.clone()));
            }
            return;
        }
        object.placed = Some(&entry.path);
        let kept = object.kept;
        let Some(copy) = object.copy.filter(|copy| same_object(copy, entry)) else {
            return self.act(index, What::Make);
        };
        if staying.is_none() {
            let from = kept.cloned().unwrap_or_else(|| self.stash(copy));
            self.act(index, What::Link(from));
        }
        if self.has_new_content(copy, entry) {
            self.act(index, What::Content);
        } else if copy.meta.differs(&entry.meta) {
            self.act(index, What::Meta);
        }
    }

    /// Keeps `copy` alive while the names around it change, for two files may have swapped theirs.
    fn stash(&mut self, copy: &Entry) -> RelPath {
        let stash = self.plan.stash.get_or_insert_with(|| free_name(self.old, self.new));
        let slot = stash.join(self.plan.stashed.len().to_string().as_bytes());
        let slot = slot.expect("two short names make a path");
        self.touched.insert(RelPath::root());
        self.plan.stashed.push((copy.path.clone(), slot.clone()));
        slot
    }

    fn has_new_content(&self, copy: &Entry, new: &Entry) -> bool {
        new.is_file()
            && (copy.kind != new.kind
                || copy.meta.mtime != new.meta.mtime
                || copy.ctime != new.ctime
                || self.old.unsettled.contains(&copy.inode)
                || self.assumed.contains(&new.inode)
                || self.old.is_racy(copy))
    }

    fn finish_dirs(&mut self) {
        for (index, entry) in self.new.entries.iter().enumerate().rev().filter(|(_, entry)| entry.kind == Kind::Dir) {
            let differs = self.staying[index].is_none_or(|old| old.meta.differs(&entry.meta));
            if differs || self.touched.contains(&entry.path) {
                self.plan.dirs.push(index);
            }
        }
    }

    fn touch_parent(&mut self, path: &RelPath) {
        self.touched.extend(path.split().map(|(dir, _)| dir));
    }

    fn act(&mut self, index: usize, what: What) {
        self.plan.actions.push(Action { entry: index, what });
    }
}

/// The inodes that `paths` name in `tree`.
pub(super) fn inodes(tree: &Tree, paths: &BTreeSet<PathBuf>) -> HashSet<Inode> {
    let paths = paths.iter().filter_map(|path| RelPath::new(path.as_os_str().as_bytes()).ok());
    paths.filter_map(|path| tree.find(&path)).map(|entry| entry.inode).collect()
}

/// Whether the target's object of this name can go on bearing it.
fn stays(old: &Entry, new: &Entry) -> bool {
    match (&old.kind, &new.kind) {
        (Kind::Dir, Kind::Dir) | (&Kind::WHITEOUT, &Kind::WHITEOUT) => true,
        _ => same_object(old, new),
    }
}

fn same_object(old: &Entry, new: &Entry) -> bool {
    old.inode == new.inode && ((old.is_file() && new.is_file()) || old.kind == new.kind)
}

/// A name at the top that neither tree has.
fn free_name(old: &Tree, new: &Tree) -> RelPath {
    let mut names = (0u64..).map(|number| RelPath::new(format!(".moving-{number}")).expect("it is a plain name"));
    names.find(|name| old.find(name).is_none() && new.find(name).is_none()).expect("no tree has 2^64 names")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, SystemTime};

    use super::super::{Meta, Time};
    use super::*;

    fn file(path: &str, ino: u64) -> Entry {
        let time = Time { secs: 1_000, nanos: 1 };
        Entry {
            path: RelPath::new(path).unwrap(),
            kind: Kind::File { size: 5 },
            meta: Meta { mode: 0o644, uid: 0, gid: 0, mtime: time, xattrs: Vec::new() },
            inode: Inode { dev: 1, ino },
            links: 1,
            ctime: time,
            allocated: 4096,
        }
    }

    fn tree(files: impl IntoIterator<Item = Entry>) -> Tree {
        let root = Entry { kind: Kind::Dir, ..file("", 1) };
        let started = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000);
        Tree { entries: [root].into_iter().chain(files).collect(), started, unsettled: HashSet::new() }
    }

    fn actions(old: &Tree, new: &Tree, assume_changed: &[&str]) -> Vec<What> {
        let assume_changed = assume_changed.iter().map(PathBuf::from).collect();
        diff(old, new, &assume_changed).actions.into_iter().map(|action| action.what).collect()
    }

    #[test]
    fn the_same_tree_needs_nothing() {
        let same = tree([file("a", 2), file("b", 3)]);
        assert_eq!(diff(&same, &same, &BTreeSet::new()), Plan::default());
    }

    #[test]
    fn every_reason_to_read_a_file_again() {
        let old = tree([file("a", 2)]);
        let changes: [fn(&mut Entry); 3] = [
            |entry| entry.kind = Kind::File { size: 6 },
            |entry| entry.meta.mtime.nanos += 1,
            |entry| entry.ctime.nanos += 1,
        ];
        for change in changes {
            let mut new = file("a", 2);
            change(&mut new);
            assert_eq!(actions(&old, &tree([new]), &[]), [What::Content]);
        }
        assert_eq!(actions(&old, &tree([file("a", 7)]), &[]), [What::Make]);
        assert_eq!(actions(&old, &old, &["a", "elsewhere", "../a"]), [What::Content]);
        let unsettled = Tree { unsettled: HashSet::from([Inode { dev: 1, ino: 2 }]), ..old.clone() };
        assert_eq!(actions(&unsettled, &old, &[]), [What::Content]);
    }

    #[test]
    fn a_scan_distrusts_times_near_its_start() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        for (ctime_nanos, started, racy) in [
            (1, at(1_000_049), true),
            (1, at(1_000_051), false),
            (1, at(999_000), true),
            // A file system that keeps whole seconds.
            (0, at(1_000_900), true),
            (0, at(1_001_100), false),
        ] {
            let mut entry = file("a", 2);
            entry.ctime.nanos = ctime_nanos;
            let old = Tree { started, ..tree([entry]) };
            assert_eq!(actions(&old, &old, &[]).len(), usize::from(racy), "{ctime_nanos} {started:?}");
        }
    }

    #[test]
    fn a_new_name_for_a_kept_file_is_a_link() {
        let old = tree([file("b", 2)]);
        let new = tree([file("a", 2), file("b", 2), file("c", 2)]);
        let [a, b] = ["a", "b"].map(|name| RelPath::new(name).unwrap());
        assert_eq!(actions(&old, &new, &[]), [What::Link(b), What::Link(a)]);
        let plan = diff(&old, &new, &BTreeSet::new());
        assert_eq!((plan.stash, plan.remove, plan.dirs), (None, Vec::new(), vec![0]));
    }
}
