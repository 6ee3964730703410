//! Recorded hosts, judged again: Debian 12 and 13 in emulated machines (`scripts/vm record`), each really in the state that its name
//! tells, with what its own dpkg, apt and kernel said of it; only the names of mirrors are others. Each verdict is derived by hand
//! from the recording and from one advisory, and says from what. Whoever records anew derives anew.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use super::*;
use crate::patch::advisories;
use crate::patch::facts::advisories_of;
use crate::patch::reader::Recording;

/// CVE-2026-1 is mended by this version in this release, says Debian's tracker.
type Mended = (&'static str, &'static str);

struct Case {
    name: &'static str,
    text: &'static str,
    mended: Mended,
    verdict: &'static str,
    /// Of what is said.
    part: &'static str,
    because: &'static str,
}

macro_rules! case {
    ($name:literal, $mended:expr, $verdict:literal, $part:literal, $because:literal) => {
        Case {
            name: $name,
            text: include_str!(concat!("recorded/", $name, ".json")),
            mended: $mended,
            verdict: $verdict,
            part: $part,
            because: $because,
        }
    };
}

const CASES: [Case; 28] = [
    case!(
        "bookworm-current",
        ("bookworm", "6.1.192-3"),
        "current",
        "brings nothing newer",
        "uname -v has the mended version, 6.1.192-3, which is the newest but for backports"
    ),
    case!(
        "bookworm-same-abi",
        ("bookworm", "6.1.192-3+podd1"),
        "wait",
        "ends 1 exposure(s), the worst of severity high",
        "uname -r is 6.1.0-57 in both, but uname -v has 6.1.192-3, which is before the mended one, the candidate"
    ),
    case!(
        "bookworm-new-abi",
        ("bookworm", "6.1.192-3"),
        "wait",
        "brings 6.1.0-57-cloud-amd64",
        "6.1.176-1 runs, and the candidate of the metapackage, 6.1.192-3, depends on an image of another name"
    ),
    case!(
        "bookworm-backports",
        ("trixie", "6.12.90-1"),
        "current",
        "brings nothing newer",
        "6.12.95-1~bpo12+1 is after 6.12.90-1 of the release that it was made from"
    ),
    case!(
        "bookworm-backports",
        ("trixie", "6.12.118-1"),
        "unknown",
        "6.12.95-1~bpo12+1",
        "it is before 6.12.118-1 of the release that it was made from, and backports have nothing newer"
    ),
    case!(
        "bookworm-two-flavours",
        ("bookworm", "6.1.192-3"),
        "blocked",
        "the next boot takes 6.1.0-50-amd64",
        "the newest of the flavour runs, but /boot/vmlinuz leads to the other flavour, which was installed last, and is older"
    ),
    case!(
        "bookworm-grub",
        ("bookworm", "6.1.192-3"),
        "current",
        "brings nothing newer",
        "the newest runs, and is the first entry of the menu that grub-mkconfig made, which is the default"
    ),
    case!(
        "bookworm-grub-pinned",
        ("bookworm", "6.1.192-3"),
        "blocked",
        "the next boot takes 6.1.0-50-cloud-amd64",
        "the newest runs, but GRUB_DEFAULT names the entry of the older one, which has the fault"
    ),
    case!(
        "bookworm-no-metapackage",
        ("bookworm", "6.1.192-3"),
        "blocked",
        "is not installed, so no newer kernel",
        "the image of 6.1.176-1 is there, the metapackage is not: apt upgrade would bring nothing, for ever"
    ),
    case!(
        "bookworm-held",
        ("bookworm", "6.1.192-3"),
        "blocked",
        "is held",
        "dpkg wants to hold the metapackage (hi), and 6.1.176-1 runs"
    ),
    case!(
        "bookworm-stale",
        ("bookworm", "6.1.192-3"),
        "unknown",
        "lost its validity",
        "the security source is valid until a week after it was made, and this was two weeks later"
    ),
    case!(
        "bookworm-clock-behind",
        ("bookworm", "6.1.192-3"),
        "blocked",
        "the clock shows",
        "the sources were made in what would be the future"
    ),
    case!(
        "bookworm-clock-ahead",
        ("bookworm", "6.1.192-3"),
        "blocked",
        "no time service keeps it",
        "no source was renewed for a year, and the kernel says that nobody keeps its clock"
    ),
    case!(
        "bookworm-live-patched",
        ("bookworm", "6.1.192-3"),
        "covered",
        "live patches cover 1",
        "6.1.176-1 runs with vm_patched enabled and not in transition, for which there is a manifest"
    ),
    case!(
        "trixie-current",
        ("trixie", "6.12.118-1"),
        "current",
        "brings nothing newer",
        "uname -v has the mended version, 6.12.118-1, which is the newest but for backports"
    ),
    case!(
        "trixie-same-abi",
        ("trixie", "6.12.118-1+podd1"),
        "wait",
        "ends 1 exposure(s), the worst of severity high",
        "uname -r is the same in both, but uname -v has 6.12.118-1, which is before the mended one, the candidate"
    ),
    case!(
        "trixie-new-abi",
        ("trixie", "6.12.118-1"),
        "wait",
        "brings 6.12.118+deb13-cloud-amd64",
        "6.12.117-1 runs, and the candidate of the metapackage depends on an image of another name"
    ),
    case!(
        "trixie-backports",
        ("forky", "7.3.1-1"),
        "current",
        "brings nothing newer",
        "7.3.4-1~bpo13+1 is after 7.3.1-1 of the release that it was made from"
    ),
    case!(
        "trixie-backports",
        ("forky", "7.3.5-1"),
        "unknown",
        "7.3.4-1~bpo13+1",
        "it is before 7.3.5-1 of the release that it was made from, and backports have nothing newer"
    ),
    case!(
        "trixie-two-flavours",
        ("trixie", "6.12.118-1"),
        "blocked",
        "the next boot takes 6.12.117+deb13-amd64",
        "the newest of the flavour runs, but /boot/vmlinuz leads to the other flavour, which was installed last, and is older"
    ),
    case!(
        "trixie-grub",
        ("trixie", "6.12.118-1"),
        "current",
        "brings nothing newer",
        "the newest runs, and is the first entry of the menu that grub-mkconfig made, which is the default"
    ),
    case!(
        "trixie-grub-pinned",
        ("trixie", "6.12.118-1"),
        "blocked",
        "the next boot takes 6.12.117+deb13-cloud-amd64",
        "the newest runs, but GRUB_DEFAULT names the entry of the older one, which has the fault"
    ),
    case!(
        "trixie-no-metapackage",
        ("trixie", "6.12.118-1"),
        "blocked",
        "is not installed, so no newer kernel",
        "the image of 6.12.117-1 is there, the metapackage is not: apt upgrade would bring nothing, for ever"
    ),
    case!(
        "trixie-held",
        ("trixie", "6.12.118-1"),
        "blocked",
        "is held",
        "dpkg wants to hold the metapackage (hi), and 6.12.117-1 runs"
    ),
    case!(
        "trixie-stale",
        ("trixie", "6.12.118-1"),
        "unknown",
        "lost its validity",
        "the security source is valid until a week after it was made, and this was two weeks later"
    ),
    case!(
        "trixie-clock-behind",
        ("trixie", "6.12.118-1"),
        "blocked",
        "the clock shows",
        "the sources were made in what would be the future"
    ),
    case!(
        "trixie-clock-ahead",
        ("trixie", "6.12.118-1"),
        "blocked",
        "no time service keeps it",
        "no source was renewed for a year, and the kernel says that nobody keeps its clock"
    ),
    case!(
        "trixie-live-patched",
        ("trixie", "6.12.118-1"),
        "covered",
        "live patches cover 1",
        "6.12.117-1 runs with vm_patched enabled and not in transition, for which there is a manifest"
    ),
];

/// As a podd on that host would have, that moment, with an advisory and a manifest of its live patch.
fn decision(text: &str, (codename, version): Mended) -> Decision {
    let host: Recording = serde_json::from_str(text).expect("a recording");
    let (facts, now) = (Facts::read(&host), host.now);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tracker.json");
    let text = serde_json::json!({"linux": {"CVE-2026-1": {"description": "a fault", "releases": {
        codename: {"status": "resolved", "fixed_version": version, "urgency": "high"}}}}});
    fs::write(&path, text.to_string()).expect("the tracker's file");
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_second().unsigned_abs());
    File::options().write(true).open(&path).and_then(|file| file.set_modified(at)).expect("it is as old as the host");
    let config = advisories::Config { tracker: Some(path.to_string_lossy().into_owned()), ..Default::default() };
    let cache = folder.path().join("cache");
    let own = &facts.system.known().expect("a system").codename;
    let kernel = facts.kernel.known().expect("a kernel of Debian's").version.clone();
    // A kernel from backports is judged by the release that it was made from.
    let release = advisories_of(&kernel, own).map_or(own.as_str(), |(release, _)| release);
    let states = advisories::refresh(&config, &cache, release, now);
    assert!(states.iter().all(|state| state.problem.is_none()), "{states:?}");
    let advisories = advisories::read(&config, &cache, release, &["linux".to_owned()].into(), now);
    let cover = Cover {
        patch: "vm_patched".to_owned(),
        kernels: vec![kernel],
        advisories: vec!["CVE-2026-1".to_owned()],
        module: None,
    };
    let (policy, record) = (Policy::default(), Record::default());
    let situation = Situation { covers: vec![cover], ..Situation::default() };
    let windows = policy.windows().expect("windows");
    decide(Question {
        facts: &facts,
        advisories: &advisories,
        policy: &policy,
        windows: &windows,
        record: &record,
        situation: &situation,
        now,
    })
}

#[test]
fn recorded_hosts_get_the_verdicts_that_were_derived_by_hand() {
    let mut wrong = Vec::new();
    for Case { name, text, mended, verdict, part, because } in CASES {
        let decision = decision(text, mended);
        let said = format!("{}\n{:?}", decision.chain.join("\n"), decision.verdict);
        if decision.verdict.name() != verdict || !said.contains(part) {
            wrong.push(format!("{name} is to be {verdict} and to say {part:?}, as {because}: {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
