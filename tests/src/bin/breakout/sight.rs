//! What can be seen of the host: names and paths.

use std::fs;

use crate::files::processes;
use crate::{Attempt, Outcome, Target};

pub const ATTEMPTS: &[Attempt] = &[
    // Overlay mounts show the paths of their layers: relative ones say nothing.
    ("host-paths-in-mountinfo", |target| {
        hidden(target, &["mountinfo", "mounts", "mountstats"], &["lowerdir=/", "upperdir=/", "workdir=/", ":/"])
    }),
    ("host-paths-in-maps", |target| hidden(target, &["maps"], &[])),
    ("host-paths-in-environ", |target| hidden(target, &["environ"], &[])),
    ("host-paths-in-cmdline", |target| hidden(target, &["cmdline", "comm"], &[])),
    ("host-paths-in-cgroup", cgroup),
    ("host-paths-in-links", links),
    ("host-name", host_name),
];

/// None of the markers, nor of these words, in these files of any process.
fn hidden(target: &Target, files: &[&str], words: &[&str]) -> Outcome {
    let markers: Vec<&str> = target.host_markers.iter().map(String::as_str).chain(words.iter().copied()).collect();
    let mut found = Vec::new();
    for process in processes() {
        // Of this program and of what started it.
        let cmdline = fs::read(process.join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&cmdline).contains("--host-marker") && files.contains(&"cmdline") {
            continue;
        }
        for file in files {
            let path = process.join(file);
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).replace('\0', " ");
            let lines = text.lines().filter(|line| markers.iter().any(|marker| line.contains(marker)));
            found.extend(lines.map(|line| format!("{}: {line}", path.display())));
        }
    }
    found.truncate(3);
    Outcome::nothing(&found)
}

/// `/proc/PID/cgroup` must name the root of the pod's own cgroup namespace.
fn cgroup(_: &Target) -> Outcome {
    let mut found = Vec::new();
    for process in processes() {
        let text = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        let foreign = text.lines().filter(|line| line.splitn(3, ':').nth(2).is_none_or(|path| path != "/"));
        found.extend(foreign.map(|line| format!("{}: {line}", process.display())));
    }
    found.truncate(3);
    Outcome::nothing(&found)
}

fn links(target: &Target) -> Outcome {
    let mut found = Vec::new();
    for process in processes() {
        let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
        for link in descriptors.chain(["cwd", "root", "exe"].map(|name| process.join(name))) {
            let aim = fs::read_link(&link).unwrap_or_default().display().to_string();
            if target.host_markers.iter().any(|marker| aim.contains(marker)) || aim.starts_with("(unreachable)") {
                found.push(format!("{} -> {aim}", link.display()));
            }
        }
    }
    Outcome::nothing(&found)
}

fn host_name(target: &Target) -> Outcome {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let name = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let places = [
        ("hostname", name),
        ("/etc/hostname", read("/etc/hostname")),
        ("/etc/hosts", read("/etc/hosts")),
        ("/etc/resolv.conf", read("/etc/resolv.conf")),
    ];
    let found = places.into_iter().filter(|(_, text)| target.host_markers.iter().any(|marker| text.contains(marker)));
    Outcome::nothing(&found.map(|(place, text)| format!("{place}: {}", text.trim())).collect::<Vec<_>>())
}
