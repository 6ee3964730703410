//! The kernel's word: layers mounted as podd will mount them show what the image means.

use std::fs;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::*;

#[test]
fn a_mounted_image_shows_the_topmost_of_everything() {
    let base = Tar::default()
        .dir("etc/", 0o755)
        .file("etc/passwd", b"base")
        .file("etc/gone", b"")
        .dir("var/cache/", 0o755)
        .file("var/cache/old", b"")
        .dir("opt/", 0o755)
        .file("opt/old", b"")
        .dir("tmp/", 0o1777);
    let top = Tar::default()
        .file("etc/passwd", b"top")
        .file("etc/.wh.gone", b"")
        .file("var/cache/.wh..wh..opq", b"")
        .file("var/cache/new", b"")
        .file(".wh.opt", b"")
        .dir("opt/", 0o700)
        .file("opt/new", b"")
        .file("tmp/x", b"");
    let lab = Lab::new();
    let image = lab.import(&lab.layout("image").single(&[(GZIP, &base.end()), (GZIP, &top.end())])).unwrap();
    let lower = format!("lowerdir={}:{}", lab.layer(&image, 1).display(), lab.layer(&image, 0).display());
    let merged = lab.path("merged");
    fs::create_dir(&merged).unwrap();
    // A mount namespace of this thread's own: nothing stays, however the test ends.
    let shown = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::MS_RDONLY, Some(lower.as_str())).unwrap();
        let names = |dir: &str| {
            let entries = fs::read_dir(merged.join(dir)).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names.join(" ")
        };
        let mode = |dir: &str| std::os::unix::fs::MetadataExt::mode(&fs::metadata(merged.join(dir)).unwrap()) & 0o7777;
        let shown = (
            [names("etc"), names("var/cache"), names("opt"), names("tmp")],
            fs::read_to_string(merged.join("etc/passwd")).unwrap(),
            [mode("opt"), mode("tmp")],
        );
        umount2(&merged, MntFlags::MNT_DETACH).unwrap();
        shown
    });
    let (names, passwd, modes) = shown.join().unwrap();
    assert_eq!(names, ["passwd", "new", "new", "x"]);
    assert_eq!(passwd, "top");
    assert_eq!(modes, [0o700, 0o1777]);
}
