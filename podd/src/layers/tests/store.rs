//! The store as others use it: crashes, several imports at once, garbage collection, layers from other hosts.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::layers::Error;

fn some_layer(lab: &Lab, content: &[u8]) -> Image {
    let name = sha256(content).hex();
    lab.import(&lab.layout(&name).single(&[(GZIP, &Tar::default().file("f", content).end())])).unwrap()
}

#[test]
fn what_a_crash_left_is_removed_and_layers_stay() {
    let lab = Lab::new();
    let image = some_layer(&lab, b"one");
    let root = lab.store.root().to_owned();
    fs::create_dir_all(root.join("tmp-crash/fs/deep/er")).unwrap();
    fs::write(root.join("tmp-crash/fs/deep/er/file"), "half").unwrap();
    let living = lab.store.receive(&image.layers[0]).unwrap();
    let again = LayerStore::open(&root).unwrap();
    assert!(!root.join("tmp-crash").exists());
    assert!(living.path().is_dir(), "an import that is under way must not be cleaned away");
    assert_eq!(again.list().unwrap(), image.layers);
    drop(living);
    assert!(lab.leftovers().is_empty());
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_process_killed_in_mid_import_leaves_a_clean_store() {
    // The child imports an image large enough to be caught at it, and is killed.
    let lab = Lab::new();
    let tar = (0..600).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), &vec![n as u8; 20_000])).end();
    let reference = lab.layout("image").single(&[(GZIP, &tar)]);
    let root = lab.store.root().to_owned();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "layers::tests::store::import_in_a_child", "--ignored", "--nocapture"])
        .env("LAYER_STORE", &root)
        .env("LAYER_IMAGE", &reference)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while lab.leftovers().is_empty() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    let ended = std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap());
    assert_eq!(ended, Some(9), "the child was not in mid-import");
    assert!(!lab.leftovers().is_empty());
    let store = LayerStore::open(&root).unwrap();
    assert!(lab.leftovers().is_empty());
    let image = store.import(&RootSource::Image(reference), &mut |_, _| {}).unwrap();
    assert_eq!(checkpoint::files::digest(&store.layer_path(&image.layers[0])).unwrap(), image.layers[0]);
}

#[test]
#[ignore = "the killed half of a_process_killed_in_mid_import_leaves_a_clean_store"]
fn import_in_a_child() {
    let (Ok(root), Ok(reference)) = (std::env::var("LAYER_STORE"), std::env::var("LAYER_IMAGE")) else {
        return;
    };
    let store = LayerStore::open(Path::new(&root)).unwrap();
    store.import(&RootSource::Image(reference), &mut |_, _| {}).unwrap();
}

#[test]
fn imports_of_one_image_at_once_unpack_it_once() {
    let lab = Lab::new();
    let tars = [Tar::default().file("a", &[1; 300_000]).end(), Tar::default().file("b", &[2; 300_000]).end()];
    let reference = lab.layout("image").single(&[(GZIP, &tars[0]), (ZSTD, &tars[1])]);
    let images: Vec<Image> = std::thread::scope(|scope| {
        let imports: Vec<_> = (0..6).map(|_| scope.spawn(|| lab.import(&reference).unwrap())).collect();
        imports.into_iter().map(|import| import.join().unwrap()).collect()
    });
    assert!(images.iter().all(|image| image.layers == images[0].layers && image.layers.len() == 2));
    assert_eq!(lab.store.list().unwrap().len(), 2);
    assert!(lab.leftovers().is_empty());
}

#[test]
fn two_stores_on_one_directory_do_not_disturb_each_other() {
    let lab = Lab::new();
    let tar = Tar::default().file("a", &[1; 3_000_000]).end();
    let reference = lab.layout("image").single(&[(GZIP, &tar)]);
    let root = lab.store.root();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let store = LayerStore::open(root).unwrap();
                store.import(&RootSource::Image(reference.clone()), &mut |_, _| {}).unwrap();
            });
        }
    });
    assert_eq!(lab.store.list().unwrap().len(), 1);
    assert!(lab.leftovers().is_empty());
}

#[test]
fn only_layers_that_nobody_uses_are_collected() {
    let lab = Lab::new();
    let (used, held, unused) = (some_layer(&lab, b"used"), some_layer(&lab, b"held"), some_layer(&lab, &[7; 100_000]));
    let in_use = BTreeSet::from([used.layers[0]]);
    let used_layers = used.layers.clone();
    drop(used);
    let unused_layer = unused.layers[0];
    let extra_hold = unused.holds[0].clone();
    drop(unused);
    assert_eq!(lab.store.remove_unused(&in_use).unwrap(), 0, "a clone of a hold holds");
    drop(extra_hold);
    assert!(lab.store.remove_unused(&in_use).unwrap() >= 100_000);
    assert!(!lab.store.has(&unused_layer));
    assert!(lab.store.hold(&unused_layer).is_none());
    assert!(lab.store.has(&held.layers[0]) && lab.store.has(&used_layers[0]));
    assert!(lab.leftovers().is_empty());
    // The index forgot it too: the image is unpacked anew.
    assert_eq!(some_layer(&lab, &[7; 100_000]).layers[0], unused_layer);
    assert!(lab.store.has(&unused_layer));
}

#[test]
fn layers_from_another_host_are_verified() {
    let (here, there) = (Lab::new(), Lab::new());
    let image = some_layer(&there, b"content");
    let layer = image.layers[0];
    let fill = |content: &str| {
        let incoming = here.store.receive(&layer).unwrap();
        fs::set_permissions(incoming.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(incoming.path().join("f"), content).unwrap();
        fs::set_permissions(incoming.path().join("f"), fs::Permissions::from_mode(0o644)).unwrap();
        incoming.commit()
    };
    assert!(matches!(fill("Content"), Err(Error::WrongTree { .. })));
    assert!(!here.store.has(&layer));
    let hold = fill("content").unwrap();
    assert_eq!(here.store.remove_unused(&BTreeSet::new()).unwrap(), 0);
    drop(hold);
    assert!(here.store.has(&layer));
    // A second time is no error: another pod may have brought it meanwhile.
    fill("content").unwrap();
    assert_eq!(here.store.list().unwrap(), [layer]);
    assert!(here.leftovers().is_empty());
}

#[test]
fn damaged_index_records_cost_an_import_and_nothing_else() {
    let lab = Lab::new();
    let image = some_layer(&lab, b"content");
    let index = lab.store.root().join("index");
    for record in fs::read_dir(&index).unwrap() {
        fs::write(record.unwrap().path(), "sha256:nonsense").unwrap();
    }
    fs::write(index.join(".new-torn"), "").unwrap();
    assert_eq!(some_layer(&lab, b"content").layers, image.layers);
    lab.store.remove_unused(&BTreeSet::from([image.layers[0]])).unwrap();
    assert!(lab.store.has(&image.layers[0]));
}
