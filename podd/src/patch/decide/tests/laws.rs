//! What holds for every host.

use proptest::prelude::*;

use super::*;
use crate::patch::policy::Overdue;

const URGENCIES: [Urgency; 5] =
    [Urgency::Unimportant, Urgency::Unassigned, Urgency::Low, Urgency::Medium, Urgency::High];

prop_compose! {
    fn exposures()(list in prop::collection::vec((0..5usize, any::<bool>(), 0..3usize, any::<bool>(), 0..40i64), 0..6))
        -> Vec<(Urgency, bool, &'static str, bool, i64)> {
        let versions = ["6.1.169-1", "6.1.172-1", "6.1.180-1"];
        list.into_iter().map(|(u, exploited, v, ssl, ago)| (URGENCIES[u], exploited, versions[v], ssl, ago)).collect()
    }
}

prop_compose! {
    fn hosts()(
        exposures in exposures(),
        newer in any::<bool>(),
        forbid in prop::collection::btree_set(prop::sample::select(Mechanism::ALL.to_vec()), 0..4),
        prefer in prop::option::of(prop::sample::select(Mechanism::ALL.to_vec())),
        keeps_memory in any::<bool>(),
        windowed in any::<bool>(),
        any_time in any::<bool>(),
        covered in any::<bool>(),
        hour in 0..24 * 400i64,
        chosen in prop::option::of(0..24 * 60i64),
    ) -> Host {
        let mut host = host();
        host.now = now() + hours(hour);
        host.facts.at = host.now;
        let now = host.now;
        host.sources().iter_mut().for_each(|source| source.valid_until = None);
        host.advisories.feeds.iter_mut().for_each(|feed| feed.fetched = Some(now));
        if newer {
            host.candidate().version = "6.1.172-1".to_owned();
            host.candidate().release = "6.1.0-48-amd64".to_owned();
        }
        for (i, (urgency, exploited, fixed, is_openssl, ago)) in exposures.into_iter().enumerate() {
            let id = format!("CVE-2026-{i}");
            let advisory = host.advise(&id, fixed, urgency);
            advisory.exploited = exploited;
            if is_openssl {
                advisory.package = "openssl".to_owned();
                advisory.fixed = Fix::Version("3.0.20-1".to_owned());
            }
            let key = format!("{id} {}", advisory.package);
            host.record.seen.insert(key, now - days(ago));
        }
        let Fact::Known(packages) = &mut host.facts.packages else { panic!("packages") };
        packages[0].candidate = "3.0.20-1".to_owned();
        host.policy.mechanisms.prefer = prefer.into_iter().filter(|mechanism| !forbid.contains(mechanism)).collect();
        host.policy.mechanisms.forbid = forbid;
        host.situation.keeps_memory = keeps_memory;
        if covered {
            host.facts.live_patches = vec![LivePatch { name: "p".to_owned(), enabled: true, in_transition: false }];
            host.situation.covers = vec![Cover {
                patch: "p".to_owned(),
                kernels: vec!["6.1.170-3".to_owned()],
                advisories: (0..6).map(|i| format!("CVE-2026-{i}")).collect(),
                module: None,
            }];
        }
        if windowed {
            let text = "[[windows]]\ndays = [\"tue\", \"sat\"]\nstart = \"22:00\"\nduration = \"3h\"\nzone = \"America/New_York\"\n";
            host.policy.windows = Policy::parse(text, std::path::Path::new("p"), now).expect("a policy").windows;
        }
        if any_time {
            host.policy.phases.overdue = Overdue::AnyTime;
        }
        host.record.chosen = chosen.map(|hour| now + hours(hour));
        host
    }
}

fn start(host: &Host, decision: &Decision) -> Option<Timestamp> {
    match decision.verdict {
        Verdict::Due { .. } => Some(host.now),
        Verdict::Wait { until, .. } => Some(until),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn never_current_while_something_that_matters_can_be_ended(host in hosts()) {
        let decision = host.decide();
        let fixed = decision.exposures.iter().any(|exposure| matches!(exposure.standing, Standing::Fixed(_)));
        let elsewhere = |e: &Exposure| e.standing == Standing::Open && e.fixed_in.is_some();
        if matches!(decision.verdict, Verdict::Current | Verdict::Covered { .. }) {
            prop_assert!(!fixed && !decision.exposures.iter().any(elsewhere), "{decision:#?}");
        }
    }

    #[test]
    fn never_a_mechanism_that_the_policy_forbids(host in hosts()) {
        if let Verdict::Due { mechanism } | Verdict::Wait { mechanism, .. } = host.decide().verdict {
            prop_assert!(!host.policy.mechanisms.forbid.contains(&mechanism));
        }
    }

    #[test]
    fn never_outside_a_window_unless_overdue_policy_says_so(host in hosts()) {
        let decision = host.decide();
        let Some(start) = start(&host, &decision) else { return Ok(()) };
        let windows = host.policy.windows().expect("windows");
        let open = windows.next(start, start + hours(1)).is_some_and(|slot| slot.start == start);
        let allowed = decision.overdue && host.policy.phases.overdue == Overdue::AnyTime;
        prop_assert!(open || allowed, "{start}: {decision:#?}");
    }

    /// Something worse never comes later.
    #[test]
    fn monotone_in_severity(host in hosts(), which in any::<prop::sample::Index>(), to in 0..6usize) {
        if host.advisories.list.len() <= 4 {
            return Ok(());
        }
        let mut worse = host.clone();
        let i = 4 + which.index(host.advisories.list.len() - 4);
        let advisory = &mut worse.advisories.list[i];
        match URGENCIES.get(to) {
            Some(urgency) => advisory.urgency = advisory.urgency.max(*urgency),
            None => advisory.exploited = true,
        }
        let (before, after) = (host.decide(), worse.decide());
        prop_assert!(before.severity <= after.severity, "{:#?}\n{:#?}", before, after);
        if let (Some(before), Some(after)) = (before.deadline, after.deadline) {
            prop_assert!(after <= before);
        }
        if let (Some(earlier), Some(later)) = (start(&worse, &after), start(&host, &before)) {
            prop_assert!(earlier <= later, "{before:#?}\n{after:#?}");
        }
    }

    /// What is forgotten is never an all-clear.
    #[test]
    fn never_current_with_missing_facts(host in hosts(), what in 0..12usize) {
        let mut host = host;
        let missing = || Fact::unknown("x", "y");
        let facts = &mut host.facts;
        match what {
            0 => facts.boot_id = Fact::unknown("x", "y"),
            1 => facts.system = Fact::unknown("x", "y"),
            2 => facts.kernel = Fact::unknown("x", "y"),
            3 => facts.installed = Fact::unknown("x", "y"),
            4 => facts.candidate = Fact::unknown("x", "y"),
            5 => facts.sources = missing(),
            6 => facts.packages = Fact::unknown("x", "y"),
            7 => facts.stale = Fact::unknown("x", "y"),
            8 => host.advisories.feeds.clear(),
            9 => host.advisories.feeds[0].fetched = None,
            10 => facts.boot_default = Fact::unknown("x", "y"),
            _ => facts.at = host.now - days(30),
        }
        let decision = host.decide();
        prop_assert_eq!(decision.exit_code(), 12, "{:#?}", decision);
    }
}
