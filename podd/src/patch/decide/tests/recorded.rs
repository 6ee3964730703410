//! Recorded hosts, judged again: what their own dpkg and apt said (`podd record-facts`), and what would have been said had one
//! thing been otherwise. Each verdict is derived by hand, and says from what.
//!
//! The recordings are of minimal Debian 12 and 13 with the cloud kernel, all sources of the release, and the release's kernel
//! running; names of mirrors are replaced.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use super::*;
use crate::patch::advisories;
use crate::patch::reader::{Recording, Said};

const RECORDINGS: [(&str, &str); 2] =
    [("debian-12", include_str!("recorded/debian-12.json")), ("debian-13", include_str!("recorded/debian-13.json"))];
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// A recorded host, and what else its verdict is made of.
struct Recorded {
    host: Recording,
    /// Of the kernel that runs.
    release: String,
    version: String,
    /// Version that mends CVE-2026-1, and of which release that is said.
    mended: (String, String),
    situation: Situation,
}

impl Recorded {
    fn new(text: &str) -> Self {
        let host: Recording = serde_json::from_str(text).expect("a recording");
        let facts = Facts::read(&host);
        let kernel = facts.kernel.known().expect("a kernel of Debian's").clone();
        let codename = facts.system.known().expect("a system").codename.clone();
        let mended = (kernel.version.clone(), codename);
        Self { host, release: kernel.release, version: kernel.version, mended, situation: Situation::default() }
    }

    fn said(&mut self, command: &str) -> &mut String {
        let found = self.host.commands.iter_mut().find(|(words, _)| words.starts_with(command));
        &mut found.unwrap_or_else(|| panic!("{command} was not asked")).1.out
    }

    /// apt would bring this kernel.
    fn offer(&mut self, release: &str, version: &str) {
        let old = self.version.clone();
        let policy = self.said("apt-cache policy");
        let (head, rest) = policy.split_at(policy.find("  Candidate: ").expect("a candidate"));
        assert!(head.contains(METAPACKAGE), "it is asked for first");
        let rest = rest.replacen(&format!("Candidate: {old}"), &format!("Candidate: {version}"), 1);
        let line =
            rest.lines().find(|line| line.contains("-security/main")).expect("a security source").trim().to_owned();
        let source = line.split_once(' ').expect("a priority").1;
        let rest = rest.replacen(
            "Version table:\n",
            &format!("Version table:\n     {version} 500\n        500 {source}\n"),
            1,
        );
        *policy = format!("{head}{rest}");
        let out = format!("Package: {METAPACKAGE}\nVersion: {version}\nDepends: linux-image-{release} (= {version})\n");
        self.host.commands.insert(format!("apt-cache show {METAPACKAGE}={version}"), Said { code: 0, out });
    }

    /// One that ends CVE-2026-1.
    fn offer_mended(&mut self, release: &str, version: &str) {
        self.offer(release, version);
        self.mended.0 = version.to_owned();
    }

    fn newer(&self) -> String {
        format!("{}+newer1", self.version)
    }

    fn decide(&self) -> Decision {
        let (facts, now) = (Facts::read(&self.host), self.host.now);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tracker.json");
        let (version, codename) = &self.mended;
        let text = serde_json::json!({"linux": {"CVE-2026-1": {"description": "a fault", "releases": {
            codename: {"status": "resolved", "fixed_version": version, "urgency": "high"}}}}});
        fs::write(&path, text.to_string()).expect("the tracker's file");
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_second().unsigned_abs());
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(at))
            .expect("it is as old as the host");
        let config = advisories::Config { tracker: Some(path.to_string_lossy().into_owned()), ..Default::default() };
        let cache = folder.path().join("cache");
        let states = advisories::refresh(&config, &cache, codename, now);
        assert!(states.iter().all(|state| state.problem.is_none()), "{states:?}");
        let advisories = advisories::read(&config, &cache, codename, &["linux".to_owned()].into(), now);
        let (policy, record, situation) = (Policy::default(), Record::default(), &self.situation);
        let windows = policy.windows().expect("windows");
        decide(Question {
            facts: &facts,
            advisories: &advisories,
            policy: &policy,
            windows: &windows,
            record: &record,
            situation,
            now,
        })
    }
}

/// What was otherwise, the verdict, part of the reason, and why that is right.
type Case = (&'static str, fn(&mut Recorded), &'static str, &'static str, &'static str);

const CASES: [Case; 11] = [
    (
        "as recorded",
        |_| {},
        "current",
        "brings nothing newer",
        "the running package is the newest that the sources have",
    ),
    (
        "same ABI, newer package",
        |r| r.offer_mended(&r.release.clone(), &r.newer()),
        "wait",
        "ends 1 exposure(s), the worst of severity high",
        "the name of the release is the same, and the package version in uname -v is older than the mended one",
    ),
    (
        "new ABI",
        |r| r.offer_mended("6.99.0-1-cloud-amd64", &r.newer()),
        "wait",
        "brings 6.99.0-1-cloud-amd64",
        "the metapackage depends on an image of another name",
    ),
    (
        "backports kernel that is outdated",
        |r| {
            let bpo = if r.mended.1 == "bookworm" { "12" } else { "13" };
            r.mended = ("6.99.2-1".to_owned(), if bpo == "12" { "trixie" } else { "forky" }.to_owned());
            let (old, new) = (format!("6.99.1-1~bpo{bpo}+1"), format!("6.99.2-1~bpo{bpo}+1"));
            r.host.files.insert("/proc/sys/kernel/osrelease".to_owned(), format!("6.99.1+deb{bpo}-cloud-amd64"));
            r.host.files.insert(
                "/proc/sys/kernel/version".to_owned(),
                format!("#1 SMP PREEMPT_DYNAMIC Debian {old} (2026-11-01)"),
            );
            r.offer(&format!("6.99.2+deb{bpo}-cloud-amd64"), &new);
        },
        "wait",
        "~bpo",
        "6.99.1 is before 6.99.2 by the next release's list; by its own release's, it would be beyond all",
    ),
    (
        "two flavours installed, the other one newer",
        |r| {
            let line = "linux-image-6.99.0-1-amd64 6.99.1-1 ii\nlinux-image-6.99.0-1-rt-amd64 6.99.1-1 ii\n";
            r.said("dpkg-query -W -f=${Package} ${Version} ${db:Status-Abbrev}\\n linux").push_str(line);
        },
        "current",
        "brings nothing newer",
        "only the running flavour's metapackage says what is newer",
    ),
    (
        "metapackage removed, and a newer kernel out",
        |r| {
            r.offer_mended("6.99.0-1-cloud-amd64", &r.newer());
            let installed = format!("Installed: {}", r.version);
            let policy = r.said("apt-cache policy");
            *policy = policy.replacen(&installed, "Installed: (none)", 1);
        },
        "blocked",
        "is not installed, so no newer kernel",
        "apt upgrade would bring nothing, for ever",
    ),
    (
        "kernel held",
        |r| {
            r.offer_mended("6.99.0-1-cloud-amd64", &r.newer());
            let states = r.said("dpkg-query -W -f=${Package} ${db:Status-Abbrev}");
            *states = states.replacen(&format!("{METAPACKAGE} ii "), &format!("{METAPACKAGE} hi "), 1);
        },
        "blocked",
        "is held",
        "dpkg wants to hold it (first letter h)",
    ),
    (
        "stale metadata",
        |r| r.host.now = r.host.now.checked_add(SignedDuration::from_hours(24 * 20)).expect("a time"),
        "unknown",
        "lost its validity",
        "Valid-Until of the security source is a week after it was made",
    ),
    (
        "clock a year behind",
        |r| r.host.now = r.host.now.checked_sub(SignedDuration::from_hours(24 * 365)).expect("a time"),
        "blocked",
        "the clock shows",
        "the sources were made in what would be the future",
    ),
    (
        "clock a year ahead, kept by nobody",
        |r| {
            r.host.now = r.host.now.checked_add(SignedDuration::from_hours(24 * 365)).expect("a time");
            r.host.synchronized = Some(false);
        },
        "blocked",
        "no time service keeps it",
        "no source was renewed for a year, and nothing says that the clock is right",
    ),
    (
        "live-patched",
        |r| {
            r.offer_mended("6.99.0-1-cloud-amd64", &r.newer());
            let patch = "/sys/kernel/livepatch";
            r.host.folders.insert(patch.to_owned(), vec!["kpatch_1".to_owned()]);
            for (file, flag) in [("enabled", "1"), ("transition", "0")] {
                r.host.files.insert(format!("{patch}/kpatch_1/{file}"), flag.to_owned());
            }
            r.situation.covers.push(Cover {
                patch: "kpatch_1".to_owned(),
                kernels: vec![r.version.clone()],
                advisories: vec!["CVE-2026-1".to_owned()],
                module: None,
            });
        },
        "covered",
        "live patches cover 1",
        "a manifest for this very package version names the CVE, and the patch is in place",
    ),
];

#[test]
fn recorded_hosts_get_the_verdicts_that_were_derived_by_hand() {
    for (name, text) in RECORDINGS {
        for (what, change, verdict, part, because) in CASES {
            let mut recorded = Recorded::new(text);
            change(&mut recorded);
            let decision = recorded.decide();
            let said = format!("{}\n{:?}", decision.chain.join("\n"), decision.verdict);
            assert_eq!(decision.verdict.name(), verdict, "{name}, {what} ({because}): {decision:#?}");
            assert!(said.contains(part), "{name}, {what}, lacks {part:?}: {said}");
        }
    }
}
