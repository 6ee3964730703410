//! Pods in image files: written, restored here and elsewhere, and refused when they are not what they should be.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::lab::{Run, eventually, rootfs};
use tests::{Lab, traces, workload};
use xxhash_rust::xxh3::xxh3_64;

const ADDRESS: &str = "10.77.4.5";

/// A folder that all hosts of a lab see.
fn shared_folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("podd-test-images").tempdir().expect("there is room for images")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}

/// Runs a redis command in the pod `redis`.
#[track_caller]
fn redis(lab: &Lab, host: &str, words: &[&str]) -> String {
    let mut arguments = vec!["exec", "redis", "--", "redis-cli"];
    arguments.extend(words);
    lab.ok(host, &arguments).trim().to_owned()
}

/// Puts a word into the pod's memory and into its files.
fn write(lab: &Lab, word: &str) {
    assert_eq!(redis(lab, "a", &["set", "word", word]), "OK");
    lab.ok("a", &["exec", "redis", "--", "sh", "-c", "echo $1 >/var/tmp/word", "sh", word]);
}

#[track_caller]
fn assert_word(lab: &Lab, host: &str, word: &str) {
    assert_eq!(lab.state(host, "redis").as_deref(), Some("running"));
    assert_eq!(redis(lab, host, &["get", "word"]), word, "memory");
    assert_eq!(lab.ok(host, &["exec", "redis", "--", "cat", "/var/tmp/word"]).trim(), word, "files");
}

/// podctl's answer is exit code 1 and one sentence that has these words.
#[track_caller]
fn assert_refused(run: &Run, words: &str) {
    assert_eq!((run.code, run.out.as_str()), (1, ""), "{run:?}");
    let error: serde_json::Value = serde_json::from_str(&run.err).expect("an error is one JSON object");
    let sentence = error["message"].as_str().expect("it has a message");
    assert!(sentence.contains(words) && !sentence.contains('\n'), "{words:?} is not in {sentence:?}");
}

#[test]
fn every_kind_of_image_brings_memory_and_files_back() {
    let lab = Lab::up(1);
    let folder = shared_folder();
    workload::redis(&lab, "a", "redis", ADDRESS);
    // 8 MB that compress well.
    redis(
        &lab,
        "a",
        &["eval", "for i=1,8000 do redis.call('SET','k'..i,string.rep('abcdefgh',128)) end return 1", "0"],
    );
    let digest = redis(&lab, "a", &["debug", "digest-value", "k1", "k4000", "k8000"]);
    let mut sizes = Vec::new();
    for (leave_running, compress) in [(true, false), (true, true), (false, false), (false, true)] {
        let word = format!("{leave_running}-{compress}");
        let image = folder.path().join(&word);
        let image = text(&image);
        write(&lab, &word);
        let mut arguments = vec!["checkpoint", "redis", "-o", image];
        arguments.extend(leave_running.then_some("--leave-running"));
        arguments.extend(compress.then_some("--compress"));
        let report = lab.json("a", &arguments);
        let bytes = fs::read(image).expect("the image was written");
        assert_eq!(report["bytes"].as_u64(), Some(bytes.len() as u64));
        sizes.push(bytes.len());
        if leave_running {
            assert_word(&lab, "a", &word);
            write(&lab, "later");
            assert_refused(&lab.podctl("a", &["--json", "checkpoint", "redis", "-o", image]), "exists already");
            assert_word(&lab, "a", "later");
        } else {
            assert_eq!(lab.state("a", "redis").as_deref(), Some("suspended"));
            assert_eq!(lab.podctl("a", &["exec", "redis", "--", "true"]).code, 1);
        }
        // Under one name there is one pod.
        assert_refused(&lab.podctl("a", &["--json", "restore", image]), "exists already");
        lab.ok("a", &["rm", "--force", "redis"]);
        assert_eq!(lab.state("a", "redis"), None);
        lab.ok("a", &["restore", image]);
        assert_word(&lab, "a", &word);
        assert_eq!(redis(&lab, "a", &["debug", "digest-value", "k1", "k4000", "k8000"]), digest);
        assert_refused(&lab.podctl("a", &["--json", "restore", image]), "exists already");
        assert_word(&lab, "a", &word);
        assert!(fs::read(image).expect("it is still there") == bytes, "a restore leaves the image as it was");
    }
    assert!(sizes[1] * 2 < sizes[0] && sizes[3] * 2 < sizes[2], "compressed images are smaller: {sizes:?}");
}

#[test]
fn suspended_pod_resumes_with_its_connections() {
    let lab = Lab::up(1);
    workload::redis(&lab, "a", "redis", ADDRESS);
    let counter = workload::Counter::start(&lab, ADDRESS, 6);
    let before = counted(&lab);
    for resume in ["resume", "restore"] {
        lab.ok("a", &["suspend", "redis"]);
        assert_eq!(lab.state("a", "redis").as_deref(), Some("suspended"));
        assert_refused(&lab.podctl("a", &["--json", "checkpoint", "redis"]), "suspended");
        assert_eq!(lab.podctl("a", &["suspend", "redis"]).code, 1);
        lab.ok("a", &[resume, "redis"]);
        assert_eq!(lab.state("a", "redis").as_deref(), Some("running"));
        assert_eq!(lab.podctl("a", &[resume, "redis"]).code, 1, "it can only be done once");
        let now = counted(&lab);
        eventually("the client counts on", Duration::from_secs(5), || counted(&lab) > now);
    }
    let counted = counter.finish();
    assert_eq!((counted.error.as_deref(), counted.gaps), (None, 0));
    assert!(counted.increments > before + 100, "{counted:?}");
}

/// CRIU stores small trees itself (`criu-tmpfs.patch`) and leaves all others to tar: a pod's /dev/shm in both ways.
#[test]
fn files_in_memory_are_the_same_afterwards() {
    const SIMPLE: &str = "cd /dev/shm; umask 0; mkdir -p deep/er; mkdir -m 1777 sticky; ln -s /dev/null link; ln -s ../dangling deep/l
        echo content >file; : >empty; printf %0512d 7 >deep/block; head -c 60000 /dev/urandom >deep/er/random
        chmod 4750 file; chmod 0 empty; chown 1000:33 file deep link; chown 65534:65534 deep/er
        touch -d 2001-02-03T04:05:06Z deep file; touch -h -d 2002-02-03T04:05:06Z link; touch -d 1970-01-01T00:00:00Z sticky";
    const NOT_SIMPLE: &str = "cd /dev/shm; head -c 400000 /dev/urandom >large; ln file hard; mkfifo -m 600 fifo
        : >$(printf %0150d 1); touch -d 1960-01-01 old";
    const LOOK: &str = "cd /dev; find . -xdev /dev/shm \\( -type f -o -type l -o -type d -o -type p \\) \
        -printf '%p %y %m %U:%G %n %l %Ts\\n' | sort; find /dev/shm -type f | sort | xargs -d '\\n' sha256sum";
    let lab = Lab::up(1);
    let layer = rootfs("shell");
    lab.ok("a", &["run", "--name", "p", "--rootfs", &layer, "--", "sleep", "1000"]);
    let sh = |script: &str| lab.ok("a", &["exec", "p", "--", "bash", "-c", script]);
    for make in [SIMPLE, NOT_SIMPLE] {
        sh(make);
        let before = sh(LOOK);
        assert!(before.contains("/dev/shm/deep/er/random"), "{before}");
        for _ in 0..2 {
            lab.ok("a", &["suspend", "p"]);
            lab.ok("a", &["resume", "p"]);
            assert_eq!(sh(LOOK), before);
        }
    }
}

/// An open file without a name is given one for as long as a restore takes (`criu-leftovers.patch`): a restore that was killed
/// has left it, and the next one is not to fail at it.
#[test]
fn what_a_killed_restore_has_left_is_in_nobodys_way() {
    let lab = Lab::up(1);
    let script = "exec 3<>/gone; rm /gone; echo kept >&3; echo $$ >/pid; while :; do sleep 0.1; done";
    lab.ok("a", &["run", "--name", "p", "--rootfs", &rootfs("busybox"), "--", "sh", "-c", script]);
    let sh = |script: &str| lab.ok("a", &["exec", "p", "--", "sh", "-c", script]);
    eventually("the file is open", Duration::from_secs(10), || !sh("cat /pid 2>/dev/null || :").is_empty());
    let about = &lab.json("a", &["inspect", "p"])[0];
    let layer = about["writable_layer"].as_str().expect("a folder");
    lab.ok("a", &["suspend", "p"]);
    let left = Path::new(layer).join("gone.cr.1.ghost");
    fs::write(&left, "half of it").expect("the layer can be written");
    lab.ok("a", &["resume", "p"]);
    assert_eq!(sh("cat /proc/$(cat /pid)/fd/3"), "kept\n");
    assert!(!left.exists(), "{left:?}");
}

fn counted(lab: &Lab) -> u64 {
    redis(lab, "a", &["get", "n"]).parse().unwrap_or(0)
}

#[test]
fn image_goes_to_a_host_with_the_same_layers() {
    let lab = Lab::up(2);
    let folder = shared_folder();
    let image = folder.path().join("redis.img");
    let image = text(&image);
    workload::redis(&lab, "a", "redis", ADDRESS);
    write(&lab, "moved by hand");
    lab.ok("a", &["checkpoint", "redis", "-o", image, "--compress"]);
    let before = traces::of(&lab, "b");
    assert_refused(&lab.podctl("b", &["--json", "restore", image]), "layer");
    assert_eq!(traces::of(&lab, "b"), before);
    lab.ok("a", &["rm", "redis"]);

    // A pod of the same rootfs brings the layer, and leaves it.
    lab.ok("b", &["create", "--name", "other", "--rootfs", &rootfs("redis"), "--", "true"]);
    lab.ok("b", &["rm", "other"]);
    lab.ok("b", &["restore", image]);
    assert_word(&lab, "b", "moved by hand");
    // It is a pod like any other, and may move.
    workload::migrate(&lab, "redis", "b", "a");
    assert_word(&lab, "a", "moved by hand");
}

#[test]
fn backups_are_the_users_and_the_suspended_pods_image_is_podds() {
    let lab = Lab::up(1);
    lab.ok("a", &["run", "--name", "web", "--rootfs", &rootfs("busybox"), "--", "sleep", "1000"]);
    let id = lab.json("a", &["inspect", "web"])[0]["id"].as_str().expect("it has an id").to_owned();
    let images = lab.dir().join("a/state/images");
    let own = images.join(format!("{id}.img"));
    let backup = || {
        let report = lab.json("a", &["checkpoint", "web", "--leave-running"]);
        PathBuf::from(report["image"].as_str().expect("the image is named"))
    };
    // Two in one second, perhaps.
    let backups = [backup(), backup()];
    let kept = || {
        let mut files: Vec<PathBuf> = fs::read_dir(&images).expect("it is there").map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    };
    let mut wanted = backups.to_vec();
    wanted.sort();
    assert_eq!(kept(), wanted);
    for path in &backups {
        assert!(text(path).starts_with(&format!("{}/web-2", images.display())), "{}", path.display());
    }
    let before = backups.clone().map(|path| fs::read(path).expect("it can be read"));
    for away in [&["suspend", "web"][..], &["checkpoint", "web"]] {
        lab.ok("a", away);
        assert!(own.exists());
        lab.ok("a", &["resume", "web"]);
        assert_eq!(kept(), wanted, "{away:?}");
    }
    for path in &backups {
        lab.ok("a", &["rm", "-f", "web"]);
        lab.ok("a", &["restore", text(path)]);
        assert_eq!(lab.state("a", "web").as_deref(), Some("running"));
        assert_eq!(kept(), wanted);
    }
    // Suspended into a file that lies there, it does not own the file either.
    let named = images.join("named.img");
    lab.ok("a", &["checkpoint", "web", "-o", text(&named)]);
    lab.ok("a", &["resume", "web"]);
    assert!(named.exists());
    fs::remove_file(&named).expect("it can be removed");
    // What crashes may have left: an image of the pod just after its resume, and one that was never finished.
    fs::write(&own, "x").expect("there is room");
    lab.ok("a", &["rm", "-f", "web"]);
    assert_eq!(kept(), wanted);
    lab.script(&["kill", "a"]).must();
    fs::write(images.join("web.img.partial"), "x").expect("there is room");
    lab.script(&["start", "a"]).must();
    assert_eq!(kept(), wanted);
    assert_eq!(before, backups.map(|path| fs::read(path).expect("it can be read")));
}

#[test]
fn a_pod_that_is_on_another_host_is_not_restored() {
    let lab = Lab::up(2);
    let folder = shared_folder();
    let [first, second] = ["first.img", "second.img"].map(|name| folder.path().join(name));
    lab.ok("a", &["run", "--name", "web", "--rootfs", &rootfs("busybox"), "--", "sleep", "1000"]);
    lab.ok("a", &["checkpoint", "web", "-o", text(&first), "--leave-running"]);
    workload::migrate(&lab, "web", "a", "b");
    lab.ok("b", &["checkpoint", "web", "-o", text(&second), "--leave-running"]);
    for image in [&first, &second] {
        let restored = lab.podctl("a", &["--json", "restore", text(image)]);
        assert_refused(&restored, "web is on b already");
        assert!(restored.err.contains("podctl --host b rm web"), "{restored:?}");
        assert_eq!(lab.state("a", "web"), None);
    }
    // Silence of the host that it went to is no proof that it is gone.
    lab.script(&["kill", "b"]).must();
    let restored = lab.podctl("a", &["restore", text(&first)]);
    assert_eq!(restored.code, 4, "{restored:?}");
    assert!(restored.err.contains("web went to b after this image was made"), "{restored:?}");
    assert_eq!(lab.state("a", "web"), None);
    lab.script(&["start", "b"]).must();
    lab.ok("b", &["rm", "-f", "web"]);
    lab.ok("a", &["restore", text(&first)]);
    // A host to which it never went from here may be silent; podd's log says so.
    lab.ok("a", &["rm", "-f", "web"]);
    lab.script(&["kill", "a"]).must();
    lab.ok("b", &["restore", text(&first)]);
    assert_eq!(lab.state("b", "web").as_deref(), Some("running"));
    assert!(lab.log("b").contains("does not say whether it has the pod"), "{}", lab.log("b"));
}

#[test]
fn bad_images_are_refused_in_one_sentence_and_change_nothing() {
    let lab = Lab::up(1);
    let folder = shared_folder();
    let good = folder.path().join("good.img");
    let script = "head -c 300000 /dev/urandom >/var/tmp/file; exec sleep 1000000";
    lab.ok(
        "a",
        &["run", "--name", "pod", "--rootfs", &rootfs("busybox"), "--ip", "10.77.4.6/16", "--", "sh", "-c", script],
    );
    eventually("the pod has written its file", Duration::from_secs(5), || {
        lab.ok("a", &["exec", "pod", "--", "sh", "-c", "wc -c </var/tmp/file || true"]).trim() == "300000"
    });
    lab.ok("a", &["checkpoint", "pod", "-o", text(&good)]);
    lab.ok("a", &["rm", "pod"]);
    let image = fs::read(&good).expect("the image was written");
    let before = traces::of(&lab, "a");

    let mut cases: Vec<(PathBuf, &str)> =
        vec![(folder.path().join("absent"), "No such file"), (folder.path().into(), "not")];
    let mut bad = |name: String, bytes: &[u8], words| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("there is room");
        cases.push((path, words));
    };
    bad("empty".into(), b"", "is not a pod image");
    bad("photograph".into(), b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0", "is not a pod image");
    bad(
        "photograph-of-the-same-size".into(),
        &[b"\xff\xd8\xff\xe0\0\x10JFIF", &image[10..]].concat(),
        "is not a pod image",
    );
    for length in [1, 8, 63, 64, 1000, image.len() / 2, image.len() - 1] {
        bad(format!("first-{length}"), &image[..length], "is truncated");
    }
    bad("with-more".into(), &[&image[..], b"\n"].concat(), "is damaged");
    // The header, parts all over the file, the manifest.
    let mut positions: Vec<usize> = (1..16).map(|i| image.len() / 16 * i).collect();
    positions.extend([9, 20, 30, 60, 64, image.len() - 1]);
    for position in positions {
        let mut bytes = image.clone();
        bytes[position] ^= 0x10;
        bad(format!("flipped-{position}"), &bytes, "damaged");
    }
    let mut newer = image.clone();
    newer[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let sum = xxh3_64(&newer[..56]);
    newer[56..64].copy_from_slice(&sum.to_le_bytes());
    bad("newer".into(), &newer, "format version 2, this build reads up to 1: upgrade podd");

    for (path, words) in &cases {
        assert_refused(&lab.podctl("a", &["--json", "restore", text(path)]), words);
        assert_eq!(lab.state("a", "pod"), None, "{}", path.display());
    }
    assert_eq!(traces::of(&lab, "a"), before, "nothing on the host has changed");
    // All of that was the images' fault.
    lab.ok("a", &["restore", text(&good)]);
    assert_eq!(lab.state("a", "pod").as_deref(), Some("running"));
}
