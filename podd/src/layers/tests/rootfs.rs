//! Directories of the host.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;

use super::*;
use crate::layers::Error;

fn import(lab: &Lab, dir: &Path) -> Result<Image> {
    lab.store.import(&RootSource::Rootfs(dir.to_owned()), &mut |_, _| {})
}

/// The second import must not copy: its answer comes from the index.
fn copies(lab: &Lab) -> usize {
    fs::read_dir(lab.store.root().join("index")).unwrap().count()
}

#[test]
fn a_copy_is_the_same_tree() {
    let lab = Lab::new();
    let root = lab.path("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o751)).unwrap();
    fs::write(root.join("bin/su"), vec![7; 100_000]).unwrap();
    std::os::unix::fs::chown(root.join("bin/su"), Some(33), Some(65535)).unwrap();
    fs::set_permissions(root.join("bin/su"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("bin/su"), root.join("bin/sg")).unwrap();
    symlink("/nowhere", root.join("link")).unwrap();
    nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    rustix::fs::setxattr(root.join("bin"), "user.note", b"kept", XattrFlags::empty()).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 20 << 20).unwrap();

    let image = import(&lab, &root).unwrap();
    assert_eq!(image.layers, [checkpoint::files::digest(&root).unwrap()]);
    let fs_dir = lab.layer(&image, 0);
    let meta = |name: &str| fs::symlink_metadata(fs_dir.join(name)).unwrap();
    assert_eq!((meta("bin/su").ino(), meta("bin/su").nlink()), (meta("bin/sg").ino(), 2));
    assert_eq!(meta("bin/su").mtime_nsec(), fs::metadata(root.join("bin/su")).unwrap().mtime_nsec());
    assert_ne!(meta("bin/su").ino(), fs::metadata(root.join("bin/su")).unwrap().ino());
    assert!(meta("sparse").blocks() * 512 < 1 << 20, "holes stay holes");
    assert!(meta("pipe").file_type().is_fifo());
    assert_eq!(xattr(&fs_dir.join("bin"), "user.note").unwrap(), b"kept");
}

#[test]
fn changes_of_the_original_do_not_reach_the_layer() {
    let lab = Lab::new();
    let root = lab.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("f"), "before").unwrap();
    let image = import(&lab, &root).unwrap();
    std::os::unix::fs::FileExt::write_all_at(
        &fs::File::options().write(true).open(root.join("f")).unwrap(),
        b"AFTER!",
        0,
    )
    .unwrap();
    assert_eq!(fs::read(lab.layer(&image, 0).join("f")).unwrap(), b"before");
    let changed = import(&lab, &root).unwrap();
    assert_ne!(changed.layers, image.layers);
    assert_eq!(fs::read(lab.layer(&changed, 0).join("f")).unwrap(), b"AFTER!");
    assert_eq!(copies(&lab), 1);
}

#[test]
fn an_unchanged_directory_is_not_copied_again() {
    let lab = Lab::new();
    let root = lab.path("root");
    for dir in 0..20 {
        fs::create_dir_all(root.join(format!("d{dir}"))).unwrap();
        for file in 0..100 {
            fs::write(root.join(format!("d{dir}/f{file}")), "x").unwrap();
        }
    }
    let first = import(&lab, &root).unwrap();
    // Gone from the store's view if it were copied again: the layer is marked.
    let mark = lab.layer(&first, 0).join("d0/f0");
    let inode = fs::metadata(&mark).unwrap().ino();
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        let again = import(&lab, &root).unwrap();
        best = best.min(start.elapsed());
        assert_eq!(again.layers, first.layers);
    }
    assert_eq!(fs::metadata(&mark).unwrap().ino(), inode);
    // 10,000 files take 17 ms when optimised; this is neither, and other tests run beside it.
    assert!(best < Duration::from_millis(150), "{best:?} for 2,000 files");
    let record = fs::read_dir(lab.store.root().join("index")).unwrap().next().unwrap().unwrap().path();
    let written = fs::metadata(&record).unwrap().ino();
    import(&lab, &root).unwrap();
    assert_eq!(fs::metadata(&record).unwrap().ino(), written, "the record is not written again");
}

#[test]
fn every_kind_of_change_is_noticed() {
    let lab = Lab::new();
    let root = lab.path("root");
    fs::create_dir_all(root.join("d")).unwrap();
    fs::write(root.join("a"), "one").unwrap();
    fs::write(root.join("b"), "two").unwrap();
    let changes: [fn(&Path); 8] = [
        |root| fs::write(root.join("a"), "eno").unwrap(),
        |root| fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o600)).unwrap(),
        |root| rustix::fs::setxattr(root.join("a"), "user.x", b"y", XattrFlags::empty()).unwrap(),
        |root| fs::rename(root.join("a"), root.join("d/a")).unwrap(),
        |root| fs::remove_file(root.join("d/a")).unwrap(),
        |root| std::os::unix::fs::chown(root.join("b"), Some(9), None).unwrap(),
        |root| fs::hard_link(root.join("b"), root.join("c")).unwrap(),
        |root| {
            // The same size and the same modification time: only the change time tells.
            let times = fs::metadata(root.join("b")).unwrap().modified().unwrap();
            fs::write(root.join("b"), "owt").unwrap();
            fs::File::options().write(true).open(root.join("b")).unwrap().set_modified(times).unwrap();
        },
    ];
    let mut seen = vec![import(&lab, &root).unwrap().layers[0]];
    for (n, change) in changes.into_iter().enumerate() {
        change(&root);
        let now = import(&lab, &root).unwrap().layers[0];
        assert!(!seen.contains(&now), "change {n}");
        seen.push(now);
    }
}

#[test]
fn devices_and_sockets_are_left_out() {
    let lab = Lab::new();
    let root = lab.path("root");
    fs::create_dir_all(root.join("dev")).unwrap();
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    for (name, device) in [("null", nix::sys::stat::makedev(1, 3)), ("zero-zero", 0)] {
        nix::sys::stat::mknod(&root.join("dev").join(name), nix::sys::stat::SFlag::S_IFCHR, mode, device).unwrap();
    }
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let image = import(&lab, &root).unwrap();
    assert_eq!(fs::read_dir(lab.layer(&image, 0).join("dev")).unwrap().count(), 0);
    assert!(!lab.layer(&image, 0).join("socket").exists());
}

#[test]
fn directories_that_cannot_be_a_rootfs() {
    let lab = Lab::new();
    assert!(matches!(import(&lab, Path::new("relative")), Err(Error::Relative { .. })));
    assert!(matches!(import(&lab, Path::new("/no/such/dir")), Err(Error::Io { .. })));
    assert!(matches!(import(&lab, Path::new("/etc/passwd")), Err(Error::NotDirectory { .. })));
    assert!(matches!(import(&lab, Path::new("/")), Err(Error::ContainsStore { .. })));
    assert!(matches!(import(&lab, &lab.path("")), Err(Error::ContainsStore { .. })));
    let root = lab.path("root");
    fs::create_dir_all(root.join("home")).unwrap();
    std::os::unix::fs::chown(root.join("home"), Some(100_000), None).unwrap();
    let error = import(&lab, &root).unwrap_err();
    assert!(matches!(&error, Error::ForeignId { path, .. } if path.ends_with("root/home")), "{error}");
    fs::remove_dir(root.join("home")).unwrap();
    fs::create_dir_all(root.join("d/".repeat(200))).unwrap();
    assert!(matches!(import(&lab, &root), Err(Error::TooDeep { .. })));
    assert!(lab.store.list().unwrap().is_empty() && lab.leftovers().is_empty());
}
