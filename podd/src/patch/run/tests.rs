#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::patch::plan;

const MECHANISMS: [(Mechanism, bool); 5] = [
    (Mechanism::LivePatch, true),
    (Mechanism::Restart, true),
    (Mechanism::InPlace, true),
    (Mechanism::Evacuate, true),
    (Mechanism::Evacuate, false),
];

fn at(second: i64) -> Timestamp {
    Timestamp::new(second, 0).unwrap()
}

/// A run of so many hosts `h0`, `h1` ..., each in a wave of its own.
fn run(hosts: usize) -> Run {
    let step = |n: usize| plan::Step {
        wave: n + 1,
        host: format!("h{n}"),
        mechanism: Mechanism::Evacuate,
        patch: true,
        moves: Vec::new(),
        sleeps: Vec::new(),
        takes_s: None,
        why: "due".to_owned(),
    };
    let plan = Plan { steps: (0..hosts).map(step).collect(), left: Vec::new() };
    let members = (0..hosts).map(|n| format!("h{n}")).collect();
    Run::new(&plan, members, "h0", "root", at(0))
}

fn trouble(step: Step, signature: &str) -> Trouble {
    Trouble {
        at: at(9),
        step,
        signature: signature.to_owned(),
        what: "it broke".to_owned(),
        cure: None,
        pod_lost: false,
        host_gone: false,
    }
}

#[test]
fn each_way_comes_to_its_end() {
    for (mechanism, patch) in MECHANISMS {
        let mut host = run(1).hosts.remove(0);
        (host.mechanism, host.patch) = (mechanism, patch);
        let mut seen = Vec::new();
        while !host.step.is_final() {
            seen.push(host.step);
            let next = host.next();
            host.begin(next, at(1));
            assert!(seen.len() < 20, "{seen:?}");
        }
        assert_eq!(host.step, Step::Done, "{mechanism:?}: {seen:?}");
        let touched = seen.iter().position(|step| matches!(step, Step::Patch | Step::LivePatch));
        assert_eq!(touched.is_some(), patch, "{seen:?}");
        // Whatever is patched is proved, and whatever boots was left before.
        let place = |step| seen.iter().position(|seen| *seen == step);
        assert!(!patch || place(Step::Prove) > touched, "{seen:?}");
        if let Some(boot) = place(Step::Reboot) {
            assert!(place(Step::Cordon) < Some(boot) && place(Step::Evacuate).or(place(Step::Suspend)) < Some(boot));
        }
        assert_eq!(place(Step::Cordon).is_some() && patch, place(Step::Uncordon).is_some(), "{seen:?}");
    }
}

#[test]
fn how_long_a_host_was_away_is_known_once_it_is_back() {
    let mut host = run(1).hosts.remove(0);
    host.begin(Step::Suspend, at(5));
    host.begin(Step::Reboot, at(10));
    assert_eq!(host.away_for(), None);
    host.begin(Step::Prove, at(52));
    assert_eq!(host.away_for(), Some(SignedDuration::from_secs(42)));
    // It was told to boot once more.
    host.begin(Step::Reboot, at(60));
    assert_eq!(host.away_for(), None);
}

#[test]
fn what_was_not_touched_is_put_back_and_what_was_stays_as_it_is() {
    for (step, then) in [
        (Step::Check, Step::PutBack),
        (Step::Evacuate, Step::PutBack),
        (Step::Patch, Step::PutBack),
        (Step::Reboot, Step::Failed),
        (Step::Prove, Step::Failed),
    ] {
        let mut host = run(1).hosts.remove(0);
        host.begin(step, at(1));
        host.fail(trouble(step, "x"));
        assert_eq!(host.step, then, "{step:?}");
    }
    let mut host = run(1).hosts.remove(0);
    host.fail(Trouble { pod_lost: true, ..trouble(Step::Evacuate, "x") });
    assert_eq!(host.step, Step::Failed, "nothing more moves when a pod was lost");
}

#[test]
fn the_breaker_opens_for_these_reasons_and_no_others() {
    let policy = RunPolicy { failures: 50, ..RunPolicy::default() };
    let why = |failed: &[(usize, Trouble)], done: usize| {
        let mut run = run(10);
        run.hosts[..done].iter_mut().for_each(|host| host.begin(Step::Done, at(1)));
        for (n, trouble) in failed {
            run.hosts[*n].trouble = Some(trouble.clone());
            run.hosts[*n].begin(Step::Failed, at(2));
        }
        run.breaker(&policy)
    };
    assert_eq!(why(&[], 5), None);
    assert_eq!(why(&[(4, trouble(Step::Prove, "prove kernel"))], 4), None, "one of five");
    let both = [(3, trouble(Step::Prove, "prove kernel")), (5, trouble(Step::Prove, "prove kernel"))];
    assert!(why(&both, 10).unwrap().contains("h3 and h5 failed alike"));
    let other = [(3, trouble(Step::Prove, "prove kernel")), (5, trouble(Step::Check, "check"))];
    assert_eq!(why(&other, 10), None);
    assert!(why(&[(0, trouble(Step::Check, "check"))], 0).unwrap().contains("canary"));
    let lost = Trouble { pod_lost: true, ..trouble(Step::Evacuate, "pod web") };
    assert!(why(&[(7, lost)], 7).unwrap().contains("a pod was lost"));
    let gone = Trouble { host_gone: true, ..trouble(Step::Reboot, "reboot") };
    assert!(why(&[(7, gone)], 7).unwrap().contains("has not come back"));
    let strict = RunPolicy { failures: 0, ..RunPolicy::default() };
    let mut one = run(10);
    one.hosts[..5].iter_mut().for_each(|host| host.begin(Step::Done, at(1)));
    one.hosts[5].fail(trouble(Step::Prove, "x"));
    assert!(one.breaker(&strict).unwrap().contains("1 of 6 hosts failed"));
}

#[test]
fn after_the_breaker_each_host_goes_on_where_it_can() {
    let mut run = run(4);
    run.state = State::Stopped { why: "x".to_owned() };
    for (n, step) in [Step::Check, Step::Reboot, Step::Prove].into_iter().enumerate() {
        run.hosts[n].back_by = Some(at(3));
        run.hosts[n].fail(trouble(step, "x"));
        run.hosts[n].begin(Step::Failed, at(2));
    }
    run.resume(&RunPolicy::default(), at(10));
    let steps: Vec<Step> = run.hosts.iter().map(|host| host.step).collect();
    assert_eq!(steps, [Step::Waiting, Step::Reboot, Step::Prove, Step::Waiting]);
    assert_eq!(
        (run.hosts[1].back_by, &run.state),
        (Some(at(10 + 15 * 60)), &State::Running),
        "it has as much time again"
    );
    assert!(run.hosts.iter().all(|host| host.trouble.is_none()));
}

#[test]
fn a_host_that_was_removed_is_not_waited_for() {
    let mut run = run(3);
    run.hosts[0].begin(Step::Done, at(1));
    run.hosts[1].back_by = Some(at(3));
    run.hosts[1].fail(Trouble { host_gone: true, ..trouble(Step::Reboot, "reboot") });
    let policy = RunPolicy { failures: 100, ..RunPolicy::default() };
    assert!(run.breaker(&policy).is_some());
    run.dismiss(&["h1".to_owned()], at(5));
    assert_eq!((run.breaker(&policy), run.majority(), run.members.len()), (None, 2, 2));
    run.resume(&policy, at(6));
    assert_eq!((run.hosts[1].step, run.wave()), (Step::Failed, vec!["h2".to_owned()]), "{:?}", run.hosts[1]);
    assert!(run.hosts[1].remarks[0].contains("removed from the fleet, after: it broke"));
}

#[test]
fn a_host_takes_back_its_own_and_only_then() {
    let mut run = run(2);
    assert!(!run.takes_back("h0"));
    run.hosts[0].begin(Step::Return, at(1));
    assert!(run.takes_back("h0") && !run.takes_back("h1") && !run.takes_back("x"));
    run.state = State::Done;
    assert!(!run.takes_back("h0"));
}

#[test]
fn the_report_has_every_step_and_every_pod() {
    let mut run = run(1);
    let host = &mut run.hosts[0];
    for (step, second) in [(Step::Check, 1), (Step::Reboot, 61), (Step::Done, 100)] {
        host.begin(step, at(second));
    }
    host.moves.push(PodMove {
        id: "1".to_owned(),
        pod: "web".to_owned(),
        from: "h0".to_owned(),
        to: "h1".to_owned(),
        back: false,
        done: true,
        blackout_ms: Some(91.6),
        error: None,
        at: None,
    });
    host.proofs.push(Proof { what: "verify `a | b`".to_owned(), well: true, seen: "it succeeded".to_owned() });
    (run.state, run.ended) = (State::Done, Some(at(100)));
    let text = markdown(&run);
    for part in ["| check | 1970-01-01T00:00:01Z | 1m |", "| web | h0 | h1 | 92 ms |", "a \\| b", "1 of 1 hosts done"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(run.left_s(at(100)), Some(0));
}

#[test]
fn what_is_left_is_told_by_hosts_that_are_done_else_by_what_was_expected() {
    let mut run = run(3);
    assert_eq!(run.left_s(at(0)), None, "nobody knows");
    (run.hosts[0].expected_s, run.hosts[1].expected_s) = (Some(100), Some(100));
    (run.hosts[2].wave, run.hosts[2].expected_s, run.hosts[2].mechanism) = (2, Some(30), Mechanism::InPlace);
    assert_eq!(run.left_s(at(0)), Some(200), "the last two are patched at the same time");
    run.hosts[0].begin(Step::Check, at(0));
    assert_eq!(run.left_s(at(40)), Some(160));
    run.hosts[0].begin(Step::Done, at(60));
    assert_eq!(run.left_s(at(60)), Some(60), "this one took 60 s");
    assert_eq!(usual_s(&[run], Mechanism::InPlace, true), None);
}

proptest! {
    /// Whoever has a majority for an open run has it for one run only, whatever the order in which hosts are asked.
    #[test]
    fn two_runs_never_have_a_majority_both(hosts in 1_usize..8, order in prop::collection::vec((0_usize..2, 0_usize..8), 0..40)) {
        let runs = [run(hosts), run(hosts)];
        let mut kept: Vec<Option<usize>> = vec![None; hosts];
        for (which, host) in order {
            let Some(slot) = kept.get_mut(host) else { continue };
            let same = slot.filter(|kept| *kept == which).map(|kept| &runs[kept]);
            let open = slot.map(|kept| &runs[kept]);
            if Run::judge(&runs[which], same, open) == Kept::Yes {
                *slot = Some(which);
            }
        }
        let copies = |which| kept.iter().filter(|kept| **kept == Some(which)).count();
        let majorities = [0, 1].into_iter().filter(|which| copies(*which) >= runs[*which].majority()).count();
        prop_assert!(majorities <= 1);
    }

    /// A majority of those that stay, and one of all that were there before, have a host in common: whoever was removed, and does
    /// not know, can do nothing grave any more.
    #[test]
    fn majorities_before_and_after_a_host_was_removed_meet(hosts in 2_usize..10) {
        let before = run(hosts);
        let mut after = before.clone();
        after.dismiss(&["h0".to_owned()], at(1));
        prop_assert!(before.majority() + after.majority() > hosts);
    }

    /// However many are gone: whoever hears enough of the rest hears of each copy that a majority had, unless that may be gone itself.
    #[test]
    fn enough_answers_tell_of_the_newest_copy(hosts in 1_usize..10, gone in 0_usize..9) {
        prop_assume!(gone < hosts);
        let run = run(hosts);
        let names: Vec<String> = (0..gone).map(|n| format!("h{n}")).collect();
        let (left, enough) = (hosts - gone, run.enough(&names));
        prop_assert!(enough > left / 2);
        prop_assert!(enough <= left || gone == 0);
        prop_assert!(gone >= run.majority() || enough + (run.majority() - gone) > left);
    }

    /// Two that take a run over at the same moment are not kept by one host both.
    #[test]
    fn one_coordinator_has_a_term(terms in prop::collection::vec((1_u64..4, 0_u64..3, 0..3), 1..30)) {
        let mut kept: Option<Run> = None;
        let mut coordinators: BTreeMap<u64, String> = BTreeMap::new();
        for (term, revision, who) in terms {
            let new = Run { term, revision, coordinator: format!("h{who}"), ..run(3) };
            let new = Run { id: "1".to_owned(), ..new };
            if Run::judge(&new, kept.as_ref(), kept.as_ref()) == Kept::Yes {
                let first = coordinators.entry(term).or_insert_with(|| new.coordinator.clone());
                prop_assert_eq!(first, &new.coordinator);
                kept = Some(new);
            }
        }
    }

    /// An older coordinator's copy never replaces a newer one's.
    #[test]
    fn terms_only_grow(terms in prop::collection::vec((1_u64..5, 0_u64..5), 1..30)) {
        let mut kept: Option<Run> = None;
        let first = run(3);
        for (term, revision) in terms {
            let new = Run { term, revision, ..first.clone() };
            let before = kept.as_ref().map(|kept| (kept.term, kept.revision));
            if Run::judge(&new, kept.as_ref(), kept.as_ref()) == Kept::Yes {
                kept = Some(new);
            }
            prop_assert!(kept.as_ref().map(|kept| (kept.term, kept.revision)) >= before);
        }
    }
}
