//! This boot, and the next one.

use std::collections::BTreeMap;

use super::{Fact, SHORT};
use crate::patch::reader::{Reader, word};

/// GRUB's menu: made by update-grub, so larger than other files.
const MENU: (&str, u64) = ("/boot/grub/grub.cfg", 256 << 10);

pub(super) fn id(reader: &dyn Reader) -> Fact<String> {
    word(reader, "/proc/sys/kernel/random/boot_id")
        .map_or_else(|error| Fact::unknown(format!("the boot has no id: {error}"), "mount /proc"), Fact::Known)
}

pub(super) fn uptime_s(reader: &dyn Reader) -> Fact<u64> {
    let text = word(reader, "/proc/uptime").unwrap_or_default();
    let seconds = text.split('.').next().and_then(|seconds| seconds.parse().ok());
    seconds.map_or_else(|| Fact::unknown("the uptime cannot be read", "mount /proc"), Fact::Known)
}

/// Packages that want a reboot (`/run/reboot-required`, written by packages' own scripts where that is set up).
pub(super) fn hints(reader: &dyn Reader) -> Vec<String> {
    let packages = reader.head("/run/reboot-required.pkgs", SHORT).unwrap_or_default();
    let mut packages: Vec<String> = packages.lines().map(str::to_owned).collect();
    packages.sort();
    packages.dedup();
    if packages.is_empty() && reader.head("/run/reboot-required", SHORT).is_ok() {
        packages.push("a package that does not tell its name".to_owned());
    }
    packages
}

/// Release of the kernel that the next boot takes: GRUB's default entry, or else the link that other loaders take.
pub(super) fn next(reader: &dyn Reader) -> Fact<String> {
    if let Ok(menu) = reader.head(MENU.0, MENU.1) {
        return of_grub(reader, &menu);
    }
    let image = ["/boot/vmlinuz", "/vmlinuz"].into_iter().find_map(|link| reader.link(link).ok());
    image.and_then(|image| release(&image)).map_or_else(
        || Fact::unknown("no boot loader's choice was found", "run `update-grub`, or make /vmlinuz the kernel to boot"),
        Fact::Known,
    )
}

/// Entries are numbered through submenus, as `1>2`; `saved` and a `next_entry` stand in GRUB's environment.
fn of_grub(reader: &dyn Reader, menu: &str) -> Fact<String> {
    let environment = reader.head("/boot/grub/grubenv", 1024).unwrap_or_default();
    let saved: BTreeMap<&str, &str> = environment.lines().filter_map(|line| line.split_once('=')).collect();
    let value = |name: &str| saved.get(name).copied().filter(|value| !value.is_empty());
    // The last one that stands in the file for the usual case: `set default="0"`.
    let mut set =
        menu.lines().filter_map(|line| line.trim().strip_prefix("set default=")).map(|text| text.trim_matches('"'));
    let set = set.rfind(|text| *text != "${next_entry}").unwrap_or("0");
    let chosen = value("next_entry").or(if set == "${saved_entry}" { value("saved_entry") } else { Some(set) });
    let chosen = chosen.unwrap_or("0");
    let entries = entries(menu);
    let entry = entries.iter().find(|entry| entry.place == chosen || entry.title == chosen || entry.id == chosen);
    let found = entry.and_then(|entry| release(&entry.image));
    found.map_or_else(
        || {
            Fact::unknown(
                format!("GRUB's default entry {chosen:?} is not in its menu"),
                "run `update-grub`, and look at GRUB_DEFAULT in /etc/default/grub",
            )
        },
        Fact::Known,
    )
}

#[derive(Debug, Default)]
struct Entry {
    place: String,
    title: String,
    id: String,
    image: String,
}

fn entries(menu: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    // For each open submenu and the top: how many entries it has so far; and its names.
    let mut counts = vec![0];
    let mut path: Vec<[String; 3]> = Vec::new();
    let mut open = Vec::new();
    for line in menu.lines().map(str::trim) {
        let kind = line.split_whitespace().next().unwrap_or_default();
        if kind == "menuentry" || kind == "submenu" {
            let number = counts.last_mut().map_or(0, |count| std::mem::replace(count, *count + 1));
            let names = [
                number.to_string(),
                quoted(line, 0),
                quoted(line.split("menuentry_id_option").nth(1).unwrap_or_default(), 0),
            ];
            if kind == "submenu" {
                path.push(names);
                counts.push(0);
            } else {
                let whole = |i: usize| {
                    path.iter().map(|names| &names[i]).chain([&names[i]]).cloned().collect::<Vec<_>>().join(">")
                };
                entries.push(Entry { place: whole(0), title: whole(1), id: whole(2), image: String::new() });
            }
            open.push(kind == "submenu");
        } else if line == "}" {
            if open.pop() == Some(true) {
                path.pop();
                counts.pop();
            }
        } else if line.ends_with('{') {
            open.push(false);
        } else if kind.starts_with("linux") && !open.is_empty() {
            let image = line.split_whitespace().nth(1).unwrap_or_default();
            if let Some(entry) = entries.last_mut().filter(|entry| entry.image.is_empty()) {
                image.clone_into(&mut entry.image);
            }
        }
    }
    entries
}

/// The n-th text in single quotes.
fn quoted(line: &str, n: usize) -> String {
    line.split('\'').nth(2 * n + 1).unwrap_or_default().to_owned()
}

/// `/boot/vmlinuz-6.1.0-48-amd64`, or `.../modules/7.2.1+deb14-amd64/vmlinuz`.
fn release(image: &str) -> Option<String> {
    if let Some((_, release)) = image.rsplit_once("vmlinuz-") {
        return Some(release.to_owned());
    }
    let mut parts = image.rsplit('/');
    (parts.next() == Some("vmlinuz")).then(|| parts.next().map(str::to_owned)).flatten()
}
