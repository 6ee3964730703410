//! Failure at every phase: whatever dies at whichever step of a move, one copy of the pod runs afterwards, no
//! acknowledged write is lost, and nothing is left behind on either host.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use tests::invariants::{Churn, HOSTS, Subject, end_of, kill_podd, start_podds};
use tests::lab::eventually;
use tests::traces::inside;
use tests::{Lab, workload};

/// Every step that a side records before it acts (`podd/src/pod/journal.rs`).
const STEPS: [(&str, &str); 8] = [
    ("source", "preparing"),
    ("target", "receiving"),
    ("source", "freezing"),
    ("target", "held"),
    ("source", "given"),
    ("target", "committed"),
    ("target", "running"),
    ("source", "done"),
];

/// The same while memory that was left behind is fetched (`podd/src/fault.rs`): the pod runs on the target.
const STEPS_OF_POST_COPY: [(&str, &str); 2] = [("target", "borrows"), ("source", "lent")];

/// What dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Dies {
    SourcePodd,
    TargetPodd,
    BothPodds,
    TargetShim,
    SourceCable,
    TargetCable,
}

/// Time for everything to be in order again after the last thing that died was restarted. A podd that asks another one
/// pauses up to 5 s between its questions.
const LIMIT: Duration = Duration::from_secs(25);
/// How long a podd stands still at a step while the test kills something else, in ms.
const PAUSE: u32 = 600;
/// A cable that is out for this long: longer than all of a move, shorter than what makes a connection break.
const OUT: Duration = Duration::from_millis(1200);

/// One case: the pod is on `a` and goes to `b`.
fn case(lab: &Lab, subject: &Subject<'_>, (role, step): (&str, &str), dies: Dies) {
    subject.bring_to("a");
    let begun = Instant::now();
    let paused = if role == "source" { "a" } else { "b" };
    let dies_by_itself = (role, dies) == ("source", Dies::SourcePodd) || (role, dies) == ("target", Dies::TargetPodd);
    let what = if dies_by_itself { "crash".to_owned() } else { format!("pause {PAUSE}") };
    lab.fault(paused, &format!("{role} {step} {what}"));
    let fault = inside(lab, paused, "/run/podd/fault");
    let mover = subject.begin_move("a", "b");
    eventually(&format!("{role} comes to {step}"), Duration::from_secs(30), || {
        std::fs::read_to_string(&fault).is_ok_and(|t| !t.contains(step))
    });
    let cable = |host: &str| {
        lab.script(&["cut", host]).must();
        std::thread::sleep(OUT);
        lab.script(&["join", host]).must();
    };
    match dies {
        Dies::SourcePodd => kill_podd(lab, "a"),
        Dies::TargetPodd => kill_podd(lab, "b"),
        Dies::BothPodds => HOSTS.iter().for_each(|host| kill_podd(lab, host)),
        Dies::TargetShim => {
            if let Some(shim) = subject.shim("b") {
                let _ = kill(shim, Signal::SIGKILL);
            }
        }
        Dies::SourceCable => cable("a"),
        Dies::TargetCable => cable("b"),
    }
    if dies_by_itself {
        // The fault has done it; kill_podd has waited for the end.
        eventually("podd is dead", Duration::from_secs(5), || tests::invariants::podd(lab, paused).is_none());
    }
    start_podds(lab);
    let code = end_of(mover, Duration::from_secs(30));
    assert!(code.is_some(), "podctl migrate did not end ({role} {step}, {dies:?})");
    let host = subject.settled(LIMIT);
    // The handover is where it is said to be.
    let position = |step| STEPS.iter().position(|s| *s == step).unwrap_or(STEPS.len());
    let (given, now) = (position(("source", "given")), position((role, step)));
    if matches!(dies, Dies::SourcePodd | Dies::BothPodds) {
        assert_eq!(host, if now < given { "a" } else { "b" }, "{role} {step}, {dies:?}");
    }
    eprintln!(
        "{:6.1} s  {role:6} {step:9}  {dies:?}: on {host}, podctl said {}, {} ms",
        subject.elapsed().as_secs_f64(),
        code.unwrap_or(-1),
        begun.elapsed().as_millis()
    );
}

fn all_steps(kinds: &[Dies]) {
    let lab = Lab::up(2);
    workload::redis(&lab, "a", "redis", "10.77.1.6");
    let subject = Subject::new(&lab, "redis", "10.77.1.6");
    for step in STEPS {
        for dies in kinds {
            case(&lab, &subject, step, *dies);
        }
    }
}

/// Nothing is lost by post-copy either, as long as the source has the pod's processes.
#[test]
fn podds_and_cables_at_every_step_of_post_copy() {
    let lab = Lab::up(2);
    workload::redis(&lab, "a", "redis", "10.77.1.6");
    let subject = Subject::new(&lab, "redis", "10.77.1.6").by("post-copy");
    let _churn = Churn::start(&lab, "10.77.1.6");
    for step in STEPS.into_iter().skip(3).chain(STEPS_OF_POST_COPY) {
        for dies in [Dies::SourcePodd, Dies::TargetPodd, Dies::SourceCable] {
            case(&lab, &subject, step, dies);
        }
    }
    for dies in [Dies::BothPodds, Dies::TargetCable] {
        STEPS_OF_POST_COPY.into_iter().for_each(|step| case(&lab, &subject, step, dies));
    }
    // Before it runs on the target, that can restore it anew.
    case(&lab, &subject, ("target", "held"), Dies::TargetShim);
}

#[test]
fn podd_dies_at_every_step() {
    all_steps(&[Dies::SourcePodd, Dies::TargetPodd, Dies::BothPodds]);
}

#[test]
fn cable_is_cut_at_every_step() {
    all_steps(&[Dies::SourceCable, Dies::TargetCable]);
}

#[test]
fn shim_of_the_target_dies_at_every_step() {
    all_steps(&[Dies::TargetShim]);
}

/// CRIU is killed while it dumps: early, in the middle, late. The move fails, and the pod runs on. If it is killed while it loads
/// memory ahead or restores, another one takes its place.
#[test]
fn criu_dies() {
    // More, for those who want to know how sure it is.
    let rounds = std::env::var("PODD_CRIU_DIES").map_or(1, |n| n.parse().unwrap());
    let lab = Lab::up(2);
    workload::redis(&lab, "a", "redis", "10.77.1.6");
    let subject = Subject::new(&lab, "redis", "10.77.1.6");
    let mut kills = 0;
    for round in 0..rounds {
        let in_the_dump = [0_u64, 2, 5, 10, 15, 20, 25, 30].map(|ms| (CriuOf::Dump, ms));
        let ahead = [0, 2, 10].map(|ms| (CriuOf::Ahead, ms));
        let in_the_restore = [2, 5, 10, 15].map(|ms| (CriuOf::Restore, ms));
        let of_the_target = ahead.into_iter().chain(in_the_restore).filter(|_| round == 0);
        for (whose, after_ms) in in_the_dump.into_iter().chain(of_the_target) {
            // A fast CRIU may end before its time has come: then a little earlier.
            let mut moments = (0..15).map(|less| Duration::from_millis(after_ms.saturating_sub(less)));
            let as_it_should = |failed: bool| failed == matches!(whose, CriuOf::Dump);
            let killed = moments.any(|after| criu_case(&subject, whose, after).is_some_and(as_it_should));
            assert!(killed, "CRIU ({whose:?}) was not killed within {after_ms} ms");
            kills += 1;
        }
    }
    eprintln!("CRIU was killed {kills} times, and the pod lives");
}

/// Which CRIU is killed, and from when on its time counts.
#[derive(Clone, Copy, Debug)]
enum CriuOf {
    /// That of the source, from its start.
    Dump,
    /// That of the target, from its start.
    Ahead,
    /// That of the target, from the end of the dump.
    Restore,
}

/// Kills a CRIU after so long; whether the move failed, or none if it had ended by then.
fn criu_case(subject: &Subject<'_>, whose: CriuOf, after: Duration) -> Option<bool> {
    let seen = if matches!(whose, CriuOf::Ahead) { "b" } else { "a" };
    let host = if matches!(whose, CriuOf::Dump) { "a" } else { "b" };
    subject.bring_to("a");
    let mut mover = subject.begin_move("a", "b");
    let mut criu = None;
    while criu.is_none() && mover.try_wait().unwrap().is_none() {
        criu = subject.criu(seen);
    }
    while matches!(whose, CriuOf::Restore) && subject.criu(seen).is_some() {}
    std::thread::sleep(after);
    let criu = if seen == host { criu } else { subject.criu(host) };
    let killed = criu.is_some_and(|pid| kill(pid, Signal::SIGKILL).is_ok());
    let code = end_of(mover, Duration::from_secs(30));
    let now = subject.settled(LIMIT);
    let failed = code.is_some_and(|c| c != 0);
    assert_eq!(now, if failed { "a" } else { "b" });
    let seconds = subject.elapsed().as_secs_f64();
    eprintln!("{seconds:6.1} s  CRIU ({whose:?}) after {after:?}: killed {killed}, podctl said {code:?}, on {now}");
    killed.then_some(failed)
}
