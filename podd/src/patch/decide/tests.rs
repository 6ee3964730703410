mod laws;
mod recorded;
mod week;

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::patch::advisories::{Advisory, Feed, FeedState, Fix};
use crate::patch::facts::{
    Candidate, Disk, Fact, Hardware, InstalledKernel, Kernel, LivePatch, Microcode, Origin, Package, Release,
    StaleProcess, System,
};

/// The time of all these hosts.
fn now() -> Timestamp {
    "2026-11-29T12:00:00Z".parse().expect("a time")
}

fn hours(n: i64) -> SignedDuration {
    SignedDuration::from_hours(n)
}

fn days(n: i64) -> SignedDuration {
    hours(24 * n)
}

/// All that a decision is made of, with nothing borrowed.
#[derive(Clone, Debug)]
struct Host {
    facts: Facts,
    advisories: Advisories,
    policy: Policy,
    record: Record,
    situation: Situation,
    now: Timestamp,
}

impl Host {
    fn decide(&self) -> Decision {
        let windows = self.policy.windows().expect("windows");
        let Self { facts, advisories, policy, record, situation, now } = self;
        decide(Question { facts, advisories, policy, windows: &windows, record, situation, now: *now })
    }

    fn kernel(&mut self) -> &mut Kernel {
        let Fact::Known(kernel) = &mut self.facts.kernel else { panic!("a kernel runs") };
        kernel
    }

    fn candidate(&mut self) -> &mut Candidate {
        let Fact::Known(candidate) = &mut self.facts.candidate else { panic!("apt has a kernel") };
        candidate
    }

    fn installed(&mut self) -> &mut Vec<InstalledKernel> {
        let Fact::Known(installed) = &mut self.facts.installed else { panic!("kernels are installed") };
        installed
    }

    fn sources(&mut self) -> &mut Vec<Release> {
        let Fact::Known(sources) = &mut self.facts.sources else { panic!("apt has sources") };
        sources
    }

    fn advise(&mut self, id: &str, fixed: &str, urgency: Urgency) -> &mut Advisory {
        self.advisories.list.push(Advisory {
            id: id.to_owned(),
            package: "linux".to_owned(),
            fixed: if fixed.is_empty() { Fix::NotYet } else { Fix::Version(fixed.to_owned()) },
            urgency,
            remote: None,
            exploited: false,
            summary: "a fault".to_owned(),
            feeds: vec![Feed::Tracker],
        });
        self.advisories.list.last_mut().expect("one")
    }

    /// A newer kernel with another ABI can be had, and ends an advisory of this urgency.
    fn outdated(mut self, urgency: Urgency) -> Self {
        self.candidate().version = "6.1.172-1".to_owned();
        self.candidate().release = "6.1.0-48-amd64".to_owned();
        self.advise("CVE-2026-1", "6.1.172-1", urgency);
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// A Debian 12 host that is well.
fn host() -> Host {
    let text = str::to_owned;
    let origin = |codename: &str, label: &str| Origin {
        origin: text("Debian"),
        label: text(label),
        suite: text("oldstable"),
        codename: text(codename),
    };
    let source = |codename: &str, label: &str, valid: Option<i64>| Release {
        origin: origin(codename, label),
        date: now() - hours(20),
        valid_until: valid.map(|valid| now() + days(valid)),
    };
    let feed = |feed| FeedState {
        feed,
        from: text("/srv/advisories"),
        fetched: Some(now() - hours(2)),
        dated: None,
        entries: 1,
        problem: None,
    };
    let facts = Facts {
        at: now() - hours(1),
        synchronized: Some(true),
        boot_id: Fact::Known(text("d6a6c9be-5ef9-4d5c-8a3c-2b1ff2ff61cd")),
        uptime_s: Fact::Known(3 * 86400),
        system: Fact::Known(System {
            id: text("debian"),
            version: text("12"),
            codename: text("bookworm"),
            architecture: text("amd64"),
        }),
        kernel: Fact::Known(Kernel {
            release: text("6.1.0-47-amd64"),
            flavour: text("amd64"),
            version: text("6.1.170-3"),
        }),
        installed: Fact::Known(vec![InstalledKernel {
            package: text("linux-image-6.1.0-47-amd64"),
            release: text("6.1.0-47-amd64"),
            version: text("6.1.170-3"),
            held: false,
        }]),
        boot_default: Fact::Known(text("6.1.0-47-amd64")),
        candidate: Fact::Known(Candidate {
            metapackage: text("linux-image-amd64"),
            installed: Some(text("6.1.170-3")),
            release: text("6.1.0-47-amd64"),
            version: text("6.1.170-3"),
            held: false,
            origins: vec![origin("bookworm", "Debian")],
        }),
        sources: Fact::Known(vec![
            source("bookworm", "Debian", None),
            source("bookworm-security", "Debian-Security", Some(6)),
        ]),
        packages: Fact::Known(vec![Package {
            name: text("libssl3"),
            source: text("openssl"),
            installed: text("3.0.19-1~deb12u2"),
            candidate: text("3.0.19-1~deb12u2"),
            held: false,
            origins: vec![],
        }]),
        stale: Fact::Known(vec![]),
        live_patches: vec![],
        microcode: Fact::Known(Microcode { revisions: vec![text("0x2b")] }),
        reboot_hints: vec![],
        hardware: Hardware::default(),
    };
    let advisories = Advisories { list: vec![], feeds: vec![feed(Feed::Tracker), feed(Feed::Kev)] };
    let (policy, record, situation) = (Policy::default(), Record::default(), Situation::default());
    Host { facts, advisories, policy, record, situation, now: now() }
        // Ended already; of another package; of a fault that nobody need mind; not yet mended.
        .with(|host| {
            host.advise("CVE-2025-1", "6.1.170-3", Urgency::High);
            host.advise("CVE-2025-2", "99", Urgency::High).package = text("bash");
            host.advise("CVE-2025-3", "6.1.172-1", Urgency::Unimportant);
            host.advise("CVE-2025-4", "", Urgency::Unassigned);
        })
}

fn due(mechanism: Mechanism) -> Verdict {
    Verdict::Due { mechanism }
}

/// Its reason.
fn blocked(decision: &Decision) -> &str {
    let Verdict::Blocked { reason, cure } = &decision.verdict else { panic!("{decision:#?}") };
    assert!(!cure.is_empty());
    assert_eq!(decision.exit_code(), 13);
    reason
}

/// What is missing.
fn unknown(decision: &Decision) -> Vec<&str> {
    let Verdict::Unknown { missing } = &decision.verdict else { panic!("{decision:#?}") };
    assert!(missing.iter().all(|missing| !missing.cure.is_empty()));
    assert_eq!(decision.exit_code(), 12);
    missing.iter().map(|missing| missing.what.as_str()).collect()
}

#[test]
fn a_host_that_is_well_is_current() {
    let decision = host().decide();
    assert_eq!((decision.verdict.clone(), decision.exit_code()), (Verdict::Current, 0), "{decision:#?}");
    // A fault that nobody has mended does not change that, and is shown.
    let open: Vec<_> = decision.exposures.iter().map(|exposure| (exposure.id.as_str(), &exposure.standing)).collect();
    assert_eq!(open, [("CVE-2025-4", &Standing::Open)]);
}

#[test]
fn each_missing_fact_makes_it_unknown() {
    fn forget<T>(fact: &mut Fact<T>) {
        *fact = Fact::unknown("this cannot be told", "look");
    }
    let forgetful: [fn(&mut Facts); 8] = [
        |facts| forget(&mut facts.boot_id),
        |facts| forget(&mut facts.system),
        |facts| forget(&mut facts.kernel),
        |facts| forget(&mut facts.installed),
        |facts| forget(&mut facts.candidate),
        |facts| forget(&mut facts.sources),
        |facts| forget(&mut facts.packages),
        |facts| forget(&mut facts.stale),
    ];
    for forget in forgetful {
        for mut host in [host(), host().outdated(Urgency::High)] {
            forget(&mut host.facts);
            assert_eq!(unknown(&host.decide()), ["this cannot be told"]);
        }
    }
}

#[test]
fn what_is_too_old_makes_it_unknown_and_its_age_is_told() {
    let stale = host().with(|host| host.sources()[1].valid_until = Some(now() - hours(30)));
    assert_eq!(unknown(&stale.decide()), ["apt's source bookworm-security is 20h old and lost its validity 1d 6h ago"]);
    let facts = host().with(|host| host.facts.at = now() - days(4));
    assert_eq!(unknown(&facts.decide()), ["the facts are 4d old"]);
    let feed = host().with(|host| {
        host.advisories.feeds[0].fetched = Some(now() - days(5));
        host.advisories.feeds[0].problem = Some("the mirror answers 404".to_owned());
    });
    let said = unknown(&feed.decide()).join("");
    assert_eq!(said, "the advisories of tracker (/srv/advisories) are 5d old: the mirror answers 404");
    let never = host().with(|host| host.advisories.feeds[0].fetched = None);
    assert!(unknown(&never.decide())[0].contains("were never fetched"));
    let none = host().with(|host| {
        host.advisories.feeds.remove(0);
    });
    assert_eq!(unknown(&none.decide()), ["no source of advisories is set"]);
    let unsafe_sources = host().with(|host| {
        host.sources().pop();
    });
    assert!(unknown(&unsafe_sources.decide())[0].starts_with("apt has no source of security updates for \"bookworm\""));
}

#[test]
fn a_clock_that_cannot_be_right_blocks() {
    let early = host().with(|host| host.now = "2025-11-29T12:00:00Z".parse().expect("a time"));
    assert!(blocked(&early.decide()).contains("before this podd was written"));
    let behind = host().with(|host| {
        host.now = now() - days(200);
        host.facts.at = host.now;
    });
    assert!(blocked(&behind.decide()).contains("and apt's source bookworm was made at 2026-11-28T16:00:00Z"));
    let ahead = |synchronized| {
        host().with(|host| {
            host.now = now() + days(365);
            host.facts.at = host.now;
            host.facts.synchronized = synchronized;
        })
    };
    assert!(blocked(&ahead(Some(false)).decide()).contains("no time service keeps it"));
    // A time service says that it is right: then the sources are old.
    assert!(unknown(&ahead(Some(true)).decide())[0].contains("lost its validity"));
}

#[test]
fn a_newer_kernel_that_ends_advisories_is_due_by_the_worst_of_them() {
    for (urgency, exploited, severity, time) in [
        (Urgency::Unassigned, false, Severity::Low, days(35)),
        (Urgency::Medium, false, Severity::Medium, days(35)),
        (Urgency::High, false, Severity::High, days(7)),
        (Urgency::Unimportant, true, Severity::Exploited, hours(48)),
    ] {
        let decision = host()
            .outdated(urgency)
            .with(|host| host.advisories.list.last_mut().expect("one").exploited = exploited)
            .with(|host| {
                host.advise("CVE-2026-2", "6.1.171-1", Urgency::Unassigned);
            })
            .decide();
        assert_eq!((decision.severity, decision.deadline), (Some(severity), Some(now() + time)));
        // The owner has time until the last day before it.
        let Verdict::Wait { until, mechanism: Mechanism::Evacuate, .. } = decision.verdict else {
            panic!("{decision:#?}")
        };
        assert!(until < now() + time && until + days(1) >= now() + time, "{until}");
        assert_eq!(decision.exit_code(), 10);
    }
}

#[test]
fn the_deadline_counts_from_when_the_fix_was_seen_first() {
    let seen = |ago: SignedDuration| {
        host().outdated(Urgency::High).with(|host| {
            host.record.seen.insert("CVE-2026-1 linux".to_owned(), now() - ago);
        })
    };
    let decision = seen(days(6)).decide();
    assert_eq!(decision.deadline, Some(now() + days(1)));
    let late = seen(days(8)).decide();
    assert_eq!((late.verdict.clone(), late.overdue, late.exit_code()), (due(Mechanism::Evacuate), true, 11));
    // A time in the future is none: the clock was set back since.
    assert_eq!(seen(-days(30)).decide().deadline, Some(now() + days(7)));
}

#[test]
fn windows_are_waited_for_and_a_missed_deadline_opens_none_unless_the_policy_says_so() {
    let saturday = "[[windows]]\nname = \"saturday\"\ndays = [\"sat\"]\nstart = \"02:00\"\nduration = \"4h\"\n";
    let policy =
        |more: &str| Policy::parse(&format!("{saturday}{more}"), std::path::Path::new("p"), now()).expect("a policy");
    // It is a Sunday; the last Saturday within the deadline is the next one.
    let waits = host().outdated(Urgency::High).with(|host| host.policy = policy(""));
    let Verdict::Wait { until, why, .. } = waits.decide().verdict else { panic!("it waits") };
    assert_eq!((until.to_string().as_str(), why.as_str()), ("2026-12-05T02:00:00Z", "window saturday"));
    let open = waits.clone().with(|host| {
        host.now = "2026-12-05T03:00:00Z".parse().expect("a time");
        host.facts.at = host.now;
        host.sources()[1].valid_until = None;
        host.advisories.feeds.iter_mut().for_each(|feed| feed.fetched = Some(host.now));
        host.record.seen.insert("CVE-2026-1 linux".to_owned(), now());
    });
    assert_eq!(open.decide().verdict, due(Mechanism::Evacuate));
    let overdue = |more| {
        waits.clone().with(|host| {
            host.policy = policy(more);
            host.record.seen.insert("CVE-2026-1 linux".to_owned(), now() - days(9));
        })
    };
    let decision = overdue("").decide();
    assert!(matches!(decision.verdict, Verdict::Wait { .. }) && decision.overdue, "{decision:#?}");
    assert_eq!(decision.exit_code(), 11);
    assert_eq!(overdue("[phases]\noverdue = \"any-time\"\n").decide().verdict, due(Mechanism::Evacuate));
    // What the owner says.
    let at_once = waits.clone().with(|host| host.record.at_once = true);
    assert_eq!(at_once.decide().verdict, due(Mechanism::Evacuate));
    let rest = waits.with(|host| {
        host.advisories.list.last_mut().expect("one").urgency = Urgency::Low;
        host.record.chosen = Some(now() + days(10));
    });
    let Verdict::Wait { until, .. } = rest.decide().verdict else { panic!("it waits") };
    assert_eq!(until.to_string(), "2026-12-12T02:00:00Z");
}

#[test]
fn the_mildest_that_suffices_and_is_allowed_is_taken() {
    let take = |change: fn(&mut Host)| {
        host().outdated(Urgency::High).with(|host| host.record.at_once = true).with(change).decide()
    };
    fn cover(host: &mut Host) {
        host.situation.covers.push(Cover {
            patch: "kpatch_1".to_owned(),
            kernels: vec!["6.1.170-3".to_owned()],
            advisories: vec!["CVE-2026-1".to_owned()],
            module: Some("/usr/lib/kpatch/kpatch_1.ko".to_owned()),
        });
    }
    assert_eq!(take(|_| {}).verdict, due(Mechanism::Evacuate));
    assert_eq!(take(|host| host.situation.keeps_memory = true).verdict, due(Mechanism::InPlace));
    assert_eq!(take(cover).verdict, due(Mechanism::LivePatch));
    let forbids = |host: &mut Host| {
        cover(host);
        host.situation.keeps_memory = true;
        host.policy.mechanisms.forbid = [Mechanism::LivePatch, Mechanism::InPlace].into();
    };
    assert_eq!(take(forbids).verdict, due(Mechanism::Evacuate));
    let prefers = |host: &mut Host| {
        host.situation.keeps_memory = true;
        host.policy.mechanisms.prefer = vec![Mechanism::Restart, Mechanism::Evacuate];
    };
    assert_eq!(take(prefers).verdict, due(Mechanism::Evacuate), "a restart does not suffice");
    let forbids_all = |host: &mut Host| host.policy.mechanisms.forbid = [Mechanism::Evacuate].into();
    assert!(blocked(&take(forbids_all)).starts_with("the policy forbids all that suffices (evacuate)"));
}

#[test]
fn live_patches_cover_what_a_trusted_manifest_says_and_nothing_else() {
    let cover = |patch: &str, kernel: &str, id: &str| Cover {
        patch: patch.to_owned(),
        kernels: vec![kernel.to_owned()],
        advisories: vec![id.to_owned()],
        module: None,
    };
    let loaded = |enabled, in_transition| LivePatch { name: "kpatch_1".to_owned(), enabled, in_transition };
    let covered = |patch: LivePatch, cover: Cover| {
        host().outdated(Urgency::High).with(|host| {
            host.facts.live_patches = vec![patch];
            host.situation.covers = vec![cover];
        })
    };
    let right = || cover("kpatch_1", "6.1.170-3", "CVE-2026-1");
    let decision = covered(loaded(true, false), right()).decide();
    assert_eq!(decision.verdict, Verdict::Covered { patches: vec!["kpatch_1".to_owned()] }, "{decision:#?}");
    assert_eq!(decision.exit_code(), 0);
    let uncovered = [
        covered(loaded(true, true), right()),
        covered(loaded(false, false), right()),
        covered(loaded(true, false), cover("kpatch_1", "6.1.170-2", "CVE-2026-1")),
        covered(loaded(true, false), cover("kpatch_1", "6.1.170-3", "CVE-2026-2")),
        covered(loaded(true, false), cover("kpatch_2", "6.1.170-3", "CVE-2026-1")),
        covered(loaded(true, false), right()).with(|host| {
            host.advise("CVE-2026-2", "6.1.171-1", Urgency::Low);
        }),
    ];
    for host in uncovered {
        assert!(matches!(host.decide().verdict, Verdict::Wait { mechanism: Mechanism::Evacuate, .. }));
    }
}

#[test]
fn programs_with_replaced_libraries_are_restarted() {
    let stale = |file: &str| StaleProcess {
        pid: 700,
        name: "sshd".to_owned(),
        unit: Some("ssh.service".to_owned()),
        files: vec![file.to_owned()],
    };
    let with = |processes| host().with(|host| host.facts.stale = Fact::Known(processes)).decide();
    let decision = with(vec![stale("/usr/lib/x86_64-linux-gnu/libssl.so.3")]);
    assert!(matches!(decision.verdict, Verdict::Wait { mechanism: Mechanism::Restart, .. }), "{decision:#?}");
    assert_eq!(with(vec![stale("/usr/bin/python3.11")]).verdict, Verdict::Current);
    // A library that can be had in a mended version.
    let upgrade = host().with(|host| {
        host.record.at_once = true;
        host.advise("CVE-2026-9", "3.0.20-1~deb12u1", Urgency::High).package = "openssl".to_owned();
        let Fact::Known(packages) = &mut host.facts.packages else { panic!("packages") };
        packages[0].candidate = "3.0.20-1~deb12u1".to_owned();
    });
    assert_eq!(upgrade.decide().verdict, due(Mechanism::Restart));
    // A boot ends both.
    assert_eq!(upgrade.outdated(Urgency::Low).decide().verdict, due(Mechanism::Evacuate));
}

#[test]
fn what_needs_no_boot_is_done_though_the_boot_is_blocked_if_it_is_as_bad() {
    let both = |kernel, openssl| {
        host().outdated(kernel).with(|host| {
            host.record.at_once = true;
            host.advise("CVE-2026-9", "3.0.20-1~deb12u1", openssl).package = "openssl".to_owned();
            let Fact::Known(packages) = &mut host.facts.packages else { panic!("packages") };
            packages[0].candidate = "3.0.20-1~deb12u1".to_owned();
        })
    };
    let blocking: [fn(&mut Host); 2] =
        [|host| host.candidate().held = true, |host| host.policy.mechanisms.forbid = [Mechanism::Evacuate].into()];
    for block in blocking {
        let decision = both(Urgency::Low, Urgency::High).with(block).decide();
        assert_eq!((decision.verdict, decision.severity), (due(Mechanism::Restart), Some(Severity::High)));
        let ends: Vec<&str> = decision.ends.iter().map(String::as_str).collect();
        assert_eq!(ends, ["CVE-2026-9 openssl"]);
        let worse = both(Urgency::High, Urgency::Low).with(block).decide();
        assert_eq!(worse.severity, Some(Severity::High));
        assert!(!blocked(&worse).is_empty());
    }
}

#[test]
fn a_package_that_is_held_is_no_all_clear() {
    let held = host().with(|host| {
        host.advise("CVE-2026-9", "3.0.20-1~deb12u1", Urgency::High).package = "openssl".to_owned();
        let Fact::Known(packages) = &mut host.facts.packages else { panic!("packages") };
        packages[0].candidate = "3.0.20-1~deb12u1".to_owned();
        packages[0].held = true;
    });
    assert_eq!(blocked(&held.decide()), "libssl3 is held, so what ends its faults does not come");
    // The rest is done all the same.
    let decision = held.outdated(Urgency::Low).decide();
    assert!(matches!(decision.verdict, Verdict::Wait { mechanism: Mechanism::Evacuate, .. }), "{decision:#?}");
}

#[test]
fn what_would_keep_the_newer_kernel_away_is_found_before() {
    let there = |host: &mut Host| {
        let newer = InstalledKernel {
            package: "linux-image-6.1.0-48-amd64".to_owned(),
            release: "6.1.0-48-amd64".to_owned(),
            version: "6.1.172-1".to_owned(),
            held: false,
        };
        host.installed().push(newer);
    };
    let outdated = || host().outdated(Urgency::High);
    let held = outdated().with(|host| host.candidate().held = true).decide();
    assert_eq!(blocked(&held), "linux-image-amd64 is held, so 6.1.172-1 does not come");
    let alone = outdated().with(|host| host.candidate().installed = None).decide();
    assert!(blocked(&alone).starts_with("linux-image-amd64 is not installed"));
    // Both do not matter any more once it is there.
    for change in [|host: &mut Host| host.candidate().held = true, |host: &mut Host| host.candidate().installed = None]
    {
        let ready = outdated().with(there).with(change).with(|host| {
            host.facts.boot_default = Fact::Known("6.1.0-48-amd64".to_owned());
        });
        assert!(matches!(ready.decide().verdict, Verdict::Wait { .. }));
    }
    let pinned = outdated().with(there).decide();
    assert_eq!(blocked(&pinned), "6.1.0-48-amd64 is installed, and the next boot takes 6.1.0-47-amd64");
    let same_abi = outdated().with(|host| {
        host.candidate().release = "6.1.0-47-amd64".to_owned();
        host.installed()[0].held = true;
    });
    assert!(blocked(&same_abi.decide()).starts_with("linux-image-6.1.0-47-amd64 is held in version 6.1.170-3"));
    // Without hold: the same name, and a boot is due as for any other.
    let same_abi = same_abi.with(|host| host.installed()[0].held = false);
    assert!(matches!(same_abi.decide().verdict, Verdict::Wait { mechanism: Mechanism::Evacuate, .. }));
}

#[test]
fn a_host_that_would_boot_an_outdated_kernel_is_not_well() {
    let newest = |host: &mut Host| {
        let (release, version) = ("6.1.0-48-amd64".to_owned(), "6.1.172-1".to_owned());
        let package = format!("linux-image-{release}");
        host.installed().push(InstalledKernel {
            package,
            release: release.clone(),
            version: version.clone(),
            held: false,
        });
        host.facts.kernel = Fact::Known(Kernel { release, version, flavour: "amd64".to_owned() });
    };
    let relapsing = host().outdated(Urgency::High).with(newest);
    let reason = "the next boot takes 6.1.0-47-amd64 (6.1.170-3), which brings 1 exposure(s) back";
    assert_eq!(blocked(&relapsing.decide()), reason);
    let well = relapsing.with(|host| host.facts.boot_default = Fact::Known("6.1.0-48-amd64".to_owned()));
    assert_eq!(well.decide().verdict, Verdict::Current);
    // An older one without faults is the operator's choice.
    let older = host().outdated(Urgency::Unimportant).with(newest);
    assert_eq!(older.decide().verdict, Verdict::Current);
}

#[test]
fn sources_that_do_not_say_how_long_they_are_valid_are_believed_for_a_while() {
    let silent = host().with(|host| {
        let Fact::Known(sources) = &mut host.facts.sources else { panic!("sources") };
        sources[1].valid_until = None;
    });
    assert_eq!(silent.decide().verdict, Verdict::Current);
    let old = silent.with(|host| {
        let Fact::Known(sources) = &mut host.facts.sources else { panic!("sources") };
        sources[1].date = now() - days(15);
    });
    assert!(matches!(old.decide().verdict, Verdict::Unknown { .. }), "{:#?}", old.decide());
}

#[test]
fn an_update_that_no_advisory_names_is_due_if_the_security_team_sent_it_or_the_policy_wants_it() {
    let newer = || host().outdated(Urgency::Unimportant);
    assert_eq!(newer().decide().verdict, Verdict::Current);
    let sent = newer().with(|host| {
        host.candidate().origins[0].label = "Debian-Security".to_owned();
        host.candidate().origins[0].codename = "bookworm-security".to_owned();
    });
    let wanted = newer().with(|host| host.policy.facts.any_update = true);
    for host in [sent, wanted] {
        let decision = host.decide();
        assert!(matches!(decision.verdict, Verdict::Wait { .. }), "{decision:#?}");
        assert_eq!(decision.severity, Some(Severity::Low));
    }
}

#[test]
fn backports_are_judged_by_the_release_that_they_come_from() {
    // As bookworm counts, 6.12.43 would be far beyond every mended 6.1: a false all-clear. The list is of trixie's here, as the
    // service reads it for such a kernel.
    let backport = |fixed: &str| {
        host().with(|host| {
            host.advisories.list.clear();
            host.advise("CVE-2026-1", fixed, Urgency::High);
            host.kernel().version = "6.12.43-1~bpo12+1".to_owned();
            host.candidate().version = "6.12.48-1~bpo12+1".to_owned();
            host.candidate().release = "6.12.48+deb12-amd64".to_owned();
        })
    };
    assert!(matches!(backport("6.12.48-1").decide().verdict, Verdict::Wait { .. }));
    assert_eq!(backport("6.12.43-1").decide().verdict, Verdict::Current);
    let unknown_release = backport("6.12.48-1").with(|host| host.kernel().version = "9.1-1~bpo99+1".to_owned());
    assert!(unknown(&unknown_release.decide())[0].contains("is a backport of a release that this podd does not know"));
}

#[test]
fn a_kernel_that_apt_does_not_follow_is_no_all_clear() {
    let tried = host().with(|host| {
        host.kernel().version = "6.1.171-1".to_owned();
        host.advise("CVE-2026-1", "6.1.172-1", Urgency::High);
    });
    assert!(blocked(&tried.decide()).contains("is newer than 6.1.170-3, which linux-image-amd64 follows"));
}

#[test]
fn failing_hardware_needs_a_certain_sign_or_two_and_is_limited() {
    let with = |change: fn(&mut Host)| host().with(change);
    let certain: [fn(&mut Host); 2] = [
        |host| host.facts.hardware.uncorrected = Some(1),
        |host| host.facts.hardware.disks = Some(vec![Disk { name: "/dev/sda".to_owned(), passed: false }]),
    ];
    for change in certain {
        assert!(matches!(with(change).decide().verdict, Verdict::Leave { .. }));
        // Also if nothing else is known.
        let ignorant = with(change).with(|host| host.facts.kernel = Fact::unknown("x", "y"));
        assert!(matches!(ignorant.decide().verdict, Verdict::Leave { .. }));
        let off = with(change).with(|host| host.policy.hardware.evacuate = false);
        assert_eq!(off.decide().verdict, Verdict::Current);
        let lately = with(change).with(|host| host.record.left = vec![now() - hours(23)]);
        assert!(blocked(&lately.decide()).contains("the policy allows 1"));
        let before = with(change).with(|host| host.record.left = vec![now() - hours(25)]);
        assert!(matches!(before.decide().verdict, Verdict::Leave { .. }));
        let open = with(change).with(|host| host.record.breaker_open = true);
        assert!(blocked(&open.decide()).contains("the breaker is open"));
    }
    let signs: [fn(&mut Host); 3] = [
        |host| host.facts.hardware.corrected = Some(3300),
        |host| host.facts.hardware.hot = vec!["x86_pkg_temp: 99 °C, 100 °C is its limit".to_owned()],
        |host| host.facts.hardware.log = vec!["I/O error, dev sda, sector 1".to_owned()],
    ];
    for (i, one) in signs.iter().enumerate() {
        assert_eq!(with(*one).decide().verdict, Verdict::Current, "one sign is not enough");
        let two = with(*one).with(signs[(i + 1) % 3]);
        assert!(matches!(two.decide().verdict, Verdict::Leave { .. }));
    }
    let few = with(|host| host.facts.hardware.corrected = Some(2900)).with(signs[1]);
    assert_eq!(few.decide().verdict, Verdict::Current, "in three days: less than 1000 a day");
}
