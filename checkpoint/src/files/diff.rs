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
    let assumed = inodes(new, assume_changed);
    let mut copies: HashMap<Inode, &Entry> = HashMap::with_capacity(old.entries.len());
    for entry in old.entries.iter().filter(|entry| entry.is_linkable()) {
        copies.entry(entry.inode).or_insert(entry);
    }
    let mut plan = Plan::default();
    let mut touched: HashSet<RelPath> = HashSet::new();
    let mut touch = |path: &RelPath| touched.extend(path.split().map(|(dir, _)| dir));

    let olds = pair(old, new);
    let mut kept = vec![false; old.entries.len()];
    let mut kept_name: HashMap<Inode, &RelPath> = HashMap::with_capacity(new.entries.len());
    for (index, entry) in new.entries.iter().enumerate() {
        if let Some(at) = olds[index].filter(|at| stays(&old.entries[*at], entry)) {
            kept[at] = true;
            if entry.is_linkable() {
                kept_name.entry(entry.inode).or_insert(&entry.path);
            }
        }
    }
    for (at, entry) in old.entries.iter().enumerate().rev() {
        if !kept[at] && !entry.path.is_root() {
            touch(&entry.path);
            plan.remove.push(entry.path.clone());
        }
    }

    let mut placed: HashMap<Inode, &RelPath> = HashMap::with_capacity(new.entries.len());
    let mut changed_dirs = vec![false; new.entries.len()];
    for (index, entry) in new.entries.iter().enumerate() {
        let mut act = |what| plan.actions.push(Action { entry: index, what });
        let same_name = olds[index]
            .map(|at| &old.entries[at])
            .filter(|old| stays(old, entry));
        if same_name.is_none() {
            touch(&entry.path);
        }
        if !entry.is_linkable() {
            match same_name {
                None => {
                    changed_dirs[index] = true;
                    if !entry.path.is_root() {
                        act(What::Make);
                    }
                }
                Some(old) if !old.meta.differs(&entry.meta) => {}
                Some(_) if entry.kind == Kind::Dir => changed_dirs[index] = true,
                Some(_) => act(What::Meta),
            }
            continue;
        }
        if let Some(first) = placed.get(&entry.inode) {
            if same_name.is_none() {
                act(What::Link((*first).clone()));
            }
            continue;
        }
        placed.insert(entry.inode, &entry.path);
        let Some(copy) = copies
            .get(&entry.inode)
            .filter(|copy| same_object(copy, entry))
        else {
            act(What::Make);
            continue;
        };
        if same_name.is_none() {
            match kept_name.get(&entry.inode) {
                Some(name) => act(What::Link((*name).clone())),
                None => {
                    let stash = plan.stash.get_or_insert_with(|| free_name(old, new));
                    let slot = stash.join(plan.stashed.len().to_string().as_bytes());
                    let slot = slot.expect("two short names make a path");
                    plan.stashed.push((copy.path.clone(), slot.clone()));
                    plan.actions.push(Action {
                        entry: index,
                        what: What::Link(slot),
                    });
                }
            }
        }
        let mut act = |what| plan.actions.push(Action { entry: index, what });
        if has_new_content(old, copy, entry) || (assumed.contains(&entry.inode) && entry.is_file())
        {
            act(What::Content);
        } else if copy.meta.differs(&entry.meta) {
            act(What::Meta);
        }
    }

    if plan.stash.is_some() {
        touched.insert(RelPath::root());
    }
    let dirs = new
        .entries
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, entry)| entry.kind == Kind::Dir);
    plan.dirs = dirs
        .filter(|(index, entry)| changed_dirs[*index] || touched.contains(&entry.path))
        .map(|(index, _)| index)
        .collect();
    plan
}

/// The inodes that `paths` name in `tree`.
pub(super) fn inodes(tree: &Tree, paths: &BTreeSet<PathBuf>) -> HashSet<Inode> {
    let paths = paths
        .iter()
        .filter_map(|path| RelPath::new(path.as_os_str().as_bytes()).ok());
    paths
        .filter_map(|path| tree.find(&path))
        .map(|entry| entry.inode)
        .collect()
}

/// For each entry of `new` the index of `old`'s entry of that name.
fn pair(old: &Tree, new: &Tree) -> Vec<Option<usize>> {
    let mut at = 0;
    let find = |entry: &Entry| {
        while old.entries.get(at).is_some_and(|old| old.path < entry.path) {
            at += 1;
        }
        old.entries
            .get(at)
            .filter(|old| old.path == entry.path)
            .map(|_| at)
    };
    new.entries.iter().map(find).collect()
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

fn has_new_content(old: &Tree, copy: &Entry, new: &Entry) -> bool {
    new.is_file()
        && (copy.kind != new.kind
            || copy.meta.mtime != new.meta.mtime
            || copy.ctime != new.ctime
            || old.unsettled.contains(&copy.inode)
            || old.is_racy(copy))
}

/// A name at the top that neither tree has.
fn free_name(old: &Tree, new: &Tree) -> RelPath {
    let mut names = (0u64..)
        .map(|number| RelPath::new(format!(".moving-{number}")).expect("it is a plain name"));
    names
        .find(|name| old.find(name).is_none() && new.find(name).is_none())
        .expect("no tree has 2^64 names")
}
