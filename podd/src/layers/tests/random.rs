//! Random tars: whatever they hold, nothing outside the layer changes, and the result depends on the tar alone.

use std::fs;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::*;
use crate::layers::unpack;

#[derive(Clone, Debug)]
struct Item {
    kind: u8,
    name: String,
    link: String,
    mode: u32,
    uid: u32,
    content: Vec<u8>,
}

/// Few names, so that entries meet: replace each other, lie below each other, link to each other.
fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        8 => "[abc]",
        1 => Just(".".to_owned()),
        1 => Just("..".to_owned()),
        1 => Just(String::new()),
        1 => "\\.wh\\.[abc]",
        1 => Just(".wh..wh..opq".to_owned()),
    ];
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn item(kinds: &'static [u8]) -> impl Strategy<Value = Item> {
    let parts = (
        prop::sample::select(kinds),
        name(),
        prop_oneof![name(), Just("../outside".to_owned()), Just("/".to_owned())],
        0..0o10000u32,
        0..5u32,
        prop::collection::vec(any::<u8>(), 0..700),
    );
    parts.prop_map(|(kind, name, link, mode, uid, content)| Item { kind, name, link, mode, uid, content })
}

fn tar_of(items: &[Item]) -> Vec<u8> {
    let mut tar = Tar::default();
    for item in items {
        let head = Head { kind: item.kind, link: item.link.as_bytes(), mode: item.mode, uid: item.uid, ..HEAD };
        let content = if item.kind == b'0' { &item.content[..] } else { b"" };
        tar = tar.raw(item.name.as_bytes(), &head, content);
    }
    tar.end()
}

/// Unpacks beside files that must not change. Returns the tree's digest, or the error.
fn unpack_guarded(tar: &[u8]) -> std::result::Result<Digest, String> {
    let lab = tempfile::tempdir().unwrap();
    let (layer, outside) = (lab.path().join("layer"), lab.path().join("outside"));
    fs::create_dir(&layer).unwrap();
    fs::write(&outside, "unharmed").unwrap();
    let state = || {
        let meta = fs::symlink_metadata(&outside).unwrap();
        let parent = fs::symlink_metadata(lab.path()).unwrap();
        let time = |meta: &fs::Metadata| (meta.ctime(), meta.ctime_nsec());
        (time(&meta), meta.nlink(), time(&parent), parent.mode(), fs::read(&outside).unwrap())
    };
    let before = state();
    let limits = Limits { max_bytes: 1 << 20, max_entries: 500, max_path: 200, ..Limits::default() };
    let result = unpack(&mut &tar[..], &layer, &[], &limits);
    assert_eq!(state(), before, "something outside the layer was touched");
    match result {
        Ok(_) => Ok(checkpoint::files::digest(&layer).unwrap()),
        Err(error) => Err(error.to_string()),
    }
}

/// The other writer tidies link targets, and makes `//` of `/`: give it what is tidy already.
fn plain(target: &str) -> std::path::PathBuf {
    use std::path::Component;
    let parts =
        Path::new(target).components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    Path::new("../x").join(parts.collect::<std::path::PathBuf>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_entries(items in prop::collection::vec(item(b"00551223467xV"), 1..25)) {
        let tar = tar_of(&items);
        prop_assert_eq!(unpack_guarded(&tar), unpack_guarded(&tar));
    }

    #[test]
    fn flipped_bits(items in prop::collection::vec(item(b"00551122"), 1..6), flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8u8), 1..6)) {
        let mut tar = tar_of(&items);
        for (at, bit) in flips {
            let at = at.index(tar.len());
            tar[at] ^= 1 << bit;
            // A wrong checksum would end most attempts at once.
            let block = at / 512 * 512;
            let mut header = tar::Header::new_old();
            header.as_mut_bytes().copy_from_slice(&tar[block..block + 512]);
            header.set_cksum();
            tar[block..block + 512].copy_from_slice(header.as_bytes());
        }
        let _ = unpack_guarded(&tar);
    }

    #[test]
    fn what_another_tar_writer_packs_is_unpacked_whole(items in prop::collection::vec(item(b"0052"), 1..25)) {
        let source = tempfile::tempdir().unwrap();
        fs::set_permissions(source.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for item in items.iter().filter(|item| !item.name.contains("..") && !item.name.contains(".wh.")) {
            let path = source.path().join(item.name.trim_start_matches('/'));
            // Where items collide the file system decides; what results is the tree that counts.
            let _ = match item.kind {
                b'5' => fs::create_dir_all(&path),
                b'2' => std::os::unix::fs::symlink(plain(&item.link), &path),
                _ => fs::write(&path, &item.content),
            };
            let _ = std::os::unix::fs::lchown(&path, Some(item.uid), Some(0));
            if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_symlink()) {
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(item.mode)).unwrap();
            }
        }
        let mut builder = tar::Builder::new(Vec::new());
        builder.follow_symlinks(false);
        builder.append_dir_all(".", source.path()).unwrap();
        let tar = builder.into_inner().unwrap();
        prop_assert_eq!(unpack_guarded(&tar), Ok(checkpoint::files::digest(source.path()).unwrap()));
    }
}
