//! OCI layouts, sound and not.

use std::fs;

use super::*;
use crate::layers::{Error, UnpackError};

fn one() -> Vec<u8> {
    Tar::default().file("f", b"one").end()
}

fn two() -> Vec<u8> {
    Tar::default().file("g", b"two").end()
}

#[test]
fn layers_and_configuration() {
    let lab = Lab::new();
    let mut layout = lab.layout("image");
    let program = json!({"Entrypoint": ["/docker-entrypoint.sh"], "Cmd": ["redis-server"], "Env": ["PATH=/bin"],
        "User": "redis", "WorkingDir": "/data", "StopSignal": "SIGQUIT"});
    let third = Tar::default().file("h", b"three").end();
    let manifest = layout.manifest(&[(PLAIN, &one()), (GZIP, &two()), (ZSTD, &third)], program);
    layout.tag(manifest, "7");
    let reference = layout.finish();
    let mut reports = Vec::new();
    let image =
        lab.store.import(&RootSource::Image(reference), &mut |done, total| reports.push((done, total))).unwrap();
    assert_eq!(image.layers.len(), 3);
    for (n, (name, content)) in [("f", "one"), ("g", "two"), ("h", "three")].into_iter().enumerate() {
        assert_eq!(fs::read_to_string(lab.layer(&image, n).join(name)).unwrap(), content);
    }
    let config = &image.config;
    assert_eq!((config.entrypoint[0].as_str(), config.cmd[0].as_str()), ("/docker-entrypoint.sh", "redis-server"));
    assert_eq!(
        (config.user.as_deref(), config.workdir.as_deref(), config.stop_signal),
        (Some("redis"), Some("/data"), Some(3))
    );
    assert_eq!(config.env["PATH"], "/bin");
    let (done, total) = *reports.last().unwrap();
    assert!(done == total && total > 0 && reports.is_sorted());
}

#[test]
fn a_layer_is_named_by_what_it_holds() {
    let lab = Lab::new();
    let image = lab.import(&lab.layout("image").single(&[(GZIP, &one())])).unwrap();
    assert_eq!(checkpoint::files::digest(&lab.layer(&image, 0)).unwrap(), image.layers[0]);
    // Another compression, another image, another host: the same layer.
    let other = Lab::new();
    let image2 = other.import(&other.layout("image").single(&[(ZSTD, &two()), (PLAIN, &one())])).unwrap();
    assert_eq!(image2.layers[1], image.layers[0]);
}

#[test]
fn a_known_layer_is_not_read_again() {
    let lab = Lab::new();
    lab.import(&lab.layout("first").single(&[(GZIP, &one())])).unwrap();
    let reference = lab.layout("second").single(&[(GZIP, &one()), (GZIP, &two())]);
    fs::remove_file(lab.path("second/blobs/sha256").join(sha256(&gzip(&one())).hex())).unwrap();
    assert_eq!(lab.import(&reference).unwrap().layers.len(), 2);
}

#[test]
fn a_layer_that_depends_on_those_below_is_not_shared_between_bases() {
    let lab = Lab::new();
    let (open, closed) = (Tar::default().dir("tmp/", 0o1777).end(), Tar::default().dir("tmp/", 0o700).end());
    let top = Tar::default().file("tmp/x", b"").end();
    let mode = |base: &[u8], name: &str| {
        let image = lab.import(&lab.layout(name).single(&[(GZIP, base), (GZIP, &top)])).unwrap();
        let again = lab.import(&format!("oci:{}", lab.path(name).display())).unwrap();
        assert_eq!(image.layers, again.layers);
        std::os::unix::fs::MetadataExt::mode(&fs::metadata(lab.layer(&image, 1).join("tmp")).unwrap()) & 0o7777
    };
    assert_eq!(mode(&open, "open"), 0o1777);
    assert_eq!(mode(&closed, "closed"), 0o700);
}

#[test]
fn a_layer_that_comes_twice_is_listed_once_at_its_upper_place() {
    let lab = Lab::new();
    let image = lab.import(&lab.layout("image").single(&[(GZIP, &one()), (GZIP, &two()), (GZIP, &one())])).unwrap();
    let plain = lab.import(&lab.layout("plain").single(&[(GZIP, &two()), (GZIP, &one())])).unwrap();
    assert_eq!(image.layers, plain.layers);
}

#[test]
fn an_opaque_root_hides_all_layers_below() {
    let lab = Lab::new();
    let top = Tar::default().file(".wh..wh..opq", b"").file("g", b"").end();
    assert_eq!(lab.import(&lab.layout("image").single(&[(GZIP, &one()), (GZIP, &top)])).unwrap().layers.len(), 1);
}

#[test]
fn tags_choose() {
    let lab = Lab::new();
    let mut layout = lab.layout("image");
    let (a, b) = (layout.manifest(&[(GZIP, &one())], json!({})), layout.manifest(&[(GZIP, &two())], json!({})));
    layout.tag(a, "docker.io/library/redis:6");
    layout.tag(b, "7");
    let reference = layout.finish();
    let file = |tag: &str| {
        let image = lab.import(&format!("{reference}{tag}")).unwrap();
        fs::read_dir(lab.layer(&image, 0)).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap()
    };
    assert_eq!(file(":6"), "f");
    assert_eq!(file(":docker.io/library/redis:6"), "f");
    assert_eq!(file(":7"), "g");
    let several = lab.import(&reference).unwrap_err();
    assert!(matches!(several, Error::TagNeeded { .. }), "{several}");
    let unknown = lab.import(&format!("{reference}:8")).unwrap_err();
    assert!(matches!(unknown, Error::UnknownTag { .. }), "{unknown}");
    for error in [several, unknown] {
        assert_eq!(error.cure().unwrap(), "give one of these tags: docker.io/library/redis:6, 7");
    }
}

#[test]
fn nested_indexes_choose_this_machine() {
    let lab = Lab::new();
    let mut layout = lab.layout("image");
    let on = |mut descriptor: Value, arch: &str, os: &str| {
        descriptor["platform"] = json!({"architecture": arch, "os": os});
        descriptor
    };
    let other = on(layout.manifest(&[(GZIP, &one())], json!({})), "s390x", "linux");
    let windows = on(layout.manifest(&[(GZIP, &one())], json!({"Cmd": ["x"]})), config::arch(), "windows");
    let mut attestation = on(layout.manifest(&[(PLAIN, &one())], json!({})), "unknown", "unknown");
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let mine = on(layout.manifest(&[(GZIP, &two())], json!({})), config::arch(), "linux");
    let nested = json!({"schemaVersion": 2, "manifests": [attestation, other.clone(), windows, mine]});
    let mut nested = layout.json(INDEX, &nested);
    nested["mediaType"] = json!("application/vnd.docker.distribution.manifest.list.v2+json");
    layout.tag(nested, "all");
    let image = lab.import(&layout.finish()).unwrap();
    assert!(lab.layer(&image, 0).join("g").exists());

    let mut layout = lab.layout("foreign");
    layout.tag(other, "latest");
    let error = lab.import(&layout.finish()).unwrap_err();
    assert!(matches!(&error, Error::Platform { known, .. } if known == &["linux/s390x"]), "{error}");
}

#[test]
fn indexes_without_end_are_refused() {
    let lab = Lab::new();
    let mut layout = lab.layout("image");
    let mut inner = layout.manifest(&[(GZIP, &one())], json!({}));
    for _ in 0..6 {
        inner = layout.json(INDEX, &json!({"schemaVersion": 2, "manifests": [inner]}));
    }
    layout.tag(inner, "latest");
    assert!(matches!(lab.import(&layout.finish()), Err(Error::NestedTooDeep { .. })));
}

#[test]
fn docker_media_types_are_accepted() {
    let lab = Lab::new();
    let mut layout = lab.layout("image");
    let tar = one();
    let config =
        json!({"architecture": config::arch(), "os": "linux", "rootfs": {"diff_ids": [sha256(&tar).to_string()]}});
    let blob = gzip(&tar);
    let layer = json!({"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "digest": layout.blob(&blob).to_string(), "size": blob.len()});
    let manifest = json!({"schemaVersion": 2, "layers": [layer],
        "config": layout.json("application/vnd.docker.container.image.v1+json", &config)});
    let descriptor = layout.json("application/vnd.docker.distribution.manifest.v2+json", &manifest);
    layout.tag(descriptor, "latest");
    lab.import(&layout.finish()).unwrap();
}

#[test]
fn what_is_no_container_image_is_named() {
    let lab = Lab::new();
    let mut layout = lab.layout("chart");
    let mut chart = layout.manifest(&[(GZIP, &one())], json!({}));
    chart["mediaType"] = json!("application/vnd.cncf.helm.chart");
    layout.tag(chart, "latest");
    let error = lab.import(&layout.finish()).unwrap_err();
    assert!(error.to_string().contains("helm.chart"), "{error}");

    let error = lab.import(&lab.layout("wasm").single(&[("application/wasm", &one())])).unwrap_err();
    assert!(matches!(error, Error::MediaType { what: "a layer", .. }), "{error}");
    let error = lab.import(&lab.layout("empty").single(&[])).unwrap_err();
    assert!(matches!(error, Error::NoLayers), "{error}");
    let error = lab.import(&lab.layout("bare").finish()).unwrap_err();
    assert!(matches!(error, Error::NoImage { .. }), "{error}");
    fs::write(lab.path("bare/index.json"), "{").unwrap();
    let error = lab.import(&format!("oci:{}", lab.path("bare").display())).unwrap_err();
    assert!(matches!(error, Error::Json { .. }), "{error}");
}

/// Damages one blob of a sound image and imports it.
fn with_blob(name: &Digest, damage: impl FnOnce(&std::path::Path)) -> Error {
    let lab = Lab::new();
    let reference = lab.layout("image").single(&[(GZIP, &one())]);
    damage(&lab.path("image/blobs/sha256").join(name.hex()));
    let error = lab.import(&reference).unwrap_err();
    assert!(lab.store.list().unwrap().is_empty() && lab.leftovers().is_empty());
    error
}

#[test]
fn damaged_blobs_are_named() {
    let layer = sha256(&gzip(&one()));
    let error = with_blob(&layer, |path| fs::remove_file(path).unwrap());
    assert!(matches!(&error, Error::MissingBlob { name } if name.contains(&layer.hex())), "{error}");
    let error = with_blob(&layer, |path| fs::write(path, "short").unwrap());
    assert!(matches!(error, Error::WrongSize { found: 5, .. }), "{error}");
    let length = gzip(&one()).len();
    for at in [0, 1, 12, 30, length / 2, length - 6, length - 1] {
        let error = with_blob(&layer, |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[at] ^= 0x40;
            fs::write(path, bytes).unwrap();
        });
        assert!(matches!(error, Error::WrongDigest { .. }), "byte {at}: {error}");
    }
    let error = with_blob(&layer, |path| {
        fs::remove_file(path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    });
    assert!(matches!(error, Error::NotRegular { .. }), "{error}");
    let error = with_blob(&layer, |path| {
        fs::remove_file(path).unwrap();
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    });
    assert!(matches!(error, Error::NotRegular { .. }), "{error}");
}

#[test]
fn a_configuration_that_lies_about_the_layers_is_refused() {
    let lab = Lab::new();
    let mut layout = lab.layout("image");
    let blob = gzip(&one());
    let layer = json!({"mediaType": GZIP, "digest": layout.blob(&blob).to_string(), "size": blob.len()});
    let image = |layout: &mut Layout, ids: &[Digest]| {
        let ids: Vec<String> = ids.iter().map(Digest::to_string).collect();
        let config = json!({"architecture": config::arch(), "os": "linux", "rootfs": {"diff_ids": ids}});
        let manifest = json!({"schemaVersion": 2, "config": layout.json(CONFIG, &config), "layers": [layer]});
        let manifest = layout.json(MANIFEST, &manifest);
        layout.entries = vec![manifest];
        lab.import(&layout.finish()).unwrap_err()
    };
    let error = image(&mut layout, &[sha256(&two())]);
    assert!(matches!(&error, Error::WrongDigest { name, .. } if name.contains("unpacked")), "{error}");
    let error = image(&mut layout, &[sha256(&one()), sha256(&two())]);
    assert!(matches!(error, Error::LayerCount { layers: 1, diff_ids: 2 }), "{error}");
    assert!(lab.store.list().unwrap().is_empty());
}

#[test]
fn a_hostile_entry_is_named_with_its_layer() {
    let lab = Lab::new();
    let error =
        lab.import(&lab.layout("image").single(&[(GZIP, &Tar::default().file("../x", b"").end())])).unwrap_err();
    assert!(matches!(&error, Error::Layer { source: UnpackError::Entry { .. }, .. }));
    assert!(error.to_string().contains(r#"entry "../x" has .. in its name"#), "{error}");
    assert!(error.cure().unwrap().contains("without this entry"));
}

#[test]
fn digests_of_other_kinds_are_refused() {
    let lab = Lab::new();
    let mut layout = lab.layout("image");
    let mut manifest = layout.manifest(&[(GZIP, &one())], json!({}));
    manifest["digest"] = json!(format!("sha512:{}", "0".repeat(128)));
    layout.tag(manifest, "latest");
    assert!(matches!(lab.import(&layout.finish()), Err(Error::BadDigest { .. })));
}

#[test]
fn what_an_image_says_is_cut_before_it_reaches_people() {
    let lab = Lab::new();
    let long = "x".repeat(100_000);
    let mut layout = lab.layout("image");
    for _ in 0..200 {
        let mut manifest = layout.manifest(&[(GZIP, &one())], json!({}));
        manifest["platform"] = json!({"architecture": long, "os": "linux"});
        layout.tag(manifest, &long[..10_000]);
    }
    layout.entries[0].as_object_mut().unwrap().remove("platform");
    layout.entries[0]["mediaType"] = json!(long);
    let reference = layout.finish();
    fs::write(
        lab.path("image/index.json"),
        json!({"schemaVersion": 2, "manifests": &layout.entries[..30]}).to_string(),
    )
    .unwrap();
    for reference in [reference.clone(), format!("{reference}:7")] {
        let error = lab.import(&reference).unwrap_err();
        assert!(error.to_string().len() < 1000 && error.cure().unwrap().len() < 20_000);
    }
    fs::write(lab.path("image/index.json"), json!({"schemaVersion": long}).to_string()).unwrap();
    let error = lab.import(&reference).unwrap_err();
    assert!(error.to_string().len() < 1000, "{}", error.to_string().len());
}
