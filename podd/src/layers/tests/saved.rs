//! Archives as `docker save` writes them.

use std::fs;

use super::*;
use crate::layers::{Error, UnpackError};

fn layer(content: &[u8]) -> Vec<u8> {
    Tar::default().file("f", content).end()
}

fn config_json(tars: &[&[u8]]) -> Vec<u8> {
    let ids: Vec<String> = tars.iter().map(|tar| sha256(tar).to_string()).collect();
    let config = json!({"architecture": config::arch(), "os": "linux", "config": {"Cmd": ["sh"], "Volumes": null},
        "rootfs": {"type": "layers", "diff_ids": ids}});
    serde_json::to_vec(&config).unwrap()
}

/// The form before Docker 25: a directory for each layer; a layer that comes twice is a symlink.
fn classic(tags: &[&str]) -> Vec<u8> {
    let (a, b) = (layer(b"a"), Tar::default().file("g", b"b").end());
    let config = config_json(&[&a, &b, &a]);
    let name = format!("{}.json", sha256(&config).hex());
    let manifest = json!([{"Config": name, "RepoTags": tags, "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"]}]);
    Tar::default()
        .dir("1/", 0o755)
        .file("1/VERSION", b"1.0")
        .file("1/layer.tar", &a)
        .file("2/layer.tar", &b)
        .symlink("3/layer.tar", "../1/layer.tar")
        .file(&name, &config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .file("repositories", b"{}")
        .end()
}

fn saved(lab: &Lab, bytes: &[u8]) -> String {
    fs::write(lab.path("image.tar"), bytes).unwrap();
    format!("docker-archive:{}", lab.path("image.tar").display())
}

#[test]
fn the_classic_form() {
    let lab = Lab::new();
    let reference = saved(&lab, &classic(&["app:1"]));
    let image = lab.import(&reference).unwrap();
    assert_eq!(image.layers.len(), 2, "the first layer comes a second time on top");
    assert_eq!(fs::read(lab.layer(&image, 1).join("f")).unwrap(), b"a");
    assert_eq!(fs::read(lab.layer(&image, 0).join("g")).unwrap(), b"b");
    assert_eq!(image.config.cmd, ["sh"]);
    assert_eq!(lab.import(&format!("{reference}:app:1")).unwrap().layers, image.layers);
    assert_eq!(lab.import(&format!("{reference}:1")).unwrap().layers, image.layers);
    let error = lab.import(&format!("{reference}:2")).unwrap_err();
    assert_eq!(error.cure().unwrap(), "give one of these tags: app:1");
}

#[test]
fn a_compressed_archive() {
    let lab = Lab::new();
    let plain = lab.import(&saved(&lab, &classic(&[]))).unwrap();
    let other = Lab::new();
    assert_eq!(other.import(&saved(&other, &gzip(&classic(&[])))).unwrap().layers, plain.layers);
    assert!(other.leftovers().is_empty());
    let small = Lab::with(Limits { max_image_bytes: 4096, ..Limits::default() });
    let error = small.import(&saved(&small, &gzip(&classic(&[])))).unwrap_err();
    assert!(matches!(error, Error::Archive { source: UnpackError::TooManyBytes { .. }, .. }), "{error}");
    assert!(small.leftovers().is_empty());
}

/// The newer form: an OCI layout, with or without a manifest.json beside it.
fn modern(with_manifest: bool) -> Vec<u8> {
    let lab = Lab::new();
    let mut layout = lab.layout("image");
    let tar = layer(b"modern");
    let manifest = layout.manifest(&[(PLAIN, &tar)], json!({"Cmd": ["sh"]}));
    layout.tag(manifest, "1");
    layout.finish();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all("", &layout.dir).unwrap();
    let config = config_json(&[&tar]);
    let mut append = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    if with_manifest {
        let name = format!("blobs/sha256/{}", sha256(&config).hex());
        append(&name, &config);
        let layers = [format!("blobs/sha256/{}", sha256(&tar).hex())];
        append("manifest.json", json!([{"Config": name, "RepoTags": null, "Layers": layers}]).to_string().as_bytes());
    }
    builder.into_inner().unwrap()
}

#[test]
fn the_form_of_docker_25_and_plain_oci_archives() {
    for with_manifest in [true, false] {
        let lab = Lab::new();
        let image = lab.import(&saved(&lab, &modern(with_manifest))).unwrap();
        assert_eq!(fs::read(lab.layer(&image, 0).join("f")).unwrap(), b"modern");
        assert_eq!(image.config.cmd, ["sh"]);
    }
}

#[test]
fn several_images_need_a_tag() {
    let lab = Lab::new();
    let (a, b) = (layer(b"a"), layer(b"b"));
    let manifest = json!([
        {"Config": "a.json", "RepoTags": ["a:1"], "Layers": ["a.tar"]},
        {"Config": "b.json", "RepoTags": ["b:1", "b:latest"], "Layers": ["b.tar"]},
    ]);
    let tar = Tar::default()
        .file("a.tar", &a)
        .file("b.tar", &b)
        .file("a.json", &config_json(&[&a]))
        .file("b.json", &config_json(&[&b]))
        .file("manifest.json", manifest.to_string().as_bytes());
    let reference = saved(&lab, &tar.end());
    let error = lab.import(&reference).unwrap_err();
    assert_eq!(error.cure().unwrap(), "give one of these tags: a:1, b:1, b:latest");
    let image = lab.import(&format!("{reference}:b:latest")).unwrap();
    assert_eq!(fs::read(lab.layer(&image, 0).join("f")).unwrap(), b"b");
}

#[test]
fn damaged_and_hostile_archives() {
    let import = |bytes: &[u8]| {
        let lab = Lab::new();
        let error = lab.import(&saved(&lab, bytes)).unwrap_err();
        assert!(lab.store.list().unwrap().is_empty() && lab.leftovers().is_empty());
        error
    };
    let error = import(b"this is not a tar");
    assert!(matches!(error, Error::Archive { .. }), "{error}");
    let error = import(&Tar::default().file("readme", b"hello").end());
    assert!(matches!(&error, Error::MissingBlob { name } if name == "index.json"), "{error}");
    let lonely = |config: &str, layer: &str| {
        let manifest = json!([{"Config": config, "Layers": [layer]}]).to_string();
        Tar::default().file("manifest.json", manifest.as_bytes()).file("c.json", &config_json(&[b""]))
    };
    for (config, layer) in
        [("nothing.json", "x"), ("../c.json", "x"), ("/etc/passwd", "x"), ("c.json", "../../etc/passwd")]
    {
        let error = import(&lonely(config, layer).end());
        assert!(matches!(error, Error::MissingBlob { .. }), "{error}");
    }
    // A member that claims more than the archive has, symlinks in a circle, a symlink out of the archive.
    let mut long = lonely("c.json", "x");
    long.header(b"x", &HEAD, 1 << 40);
    let error = import(&long.0);
    assert!(matches!(error, Error::Layer { .. } | Error::Archive { .. }), "{error}");
    for (name, target) in [("x", "y"), ("x", "/etc/passwd"), ("x", "../etc/passwd")] {
        let error = import(&lonely("c.json", "x").symlink(name, target).symlink("y", "x").end());
        assert!(matches!(error, Error::MissingBlob { .. }), "{error}");
    }
    // The layer is not the one that the configuration names.
    let error = import(&lonely("c.json", "x").file("x", &layer(b"other")).end());
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
}
