//! Notices: pods are told before they are touched, may ask for more time, and may say that they need none. In the spirit of the
//! scheduled events of clouds. Pure; [`super::told`] does what follows.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::decide::{Decision, Mechanism, Verdict};
use super::policy::{Phases, words};
use crate::events::What;

/// What the file in a pod says if nothing is coming, as its init writes it.
const NOTHING: &str = "{\"incarnation\":0,\"events\":[]}\n";

/// What will be done to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It goes to another host while this one boots.
    Evacuate,
    /// It stays in memory while its host boots.
    InPlace,
    /// Somebody moves it.
    Move,
}

/// A pod was told that it will be touched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// Identifier: 16 hex digits.
    pub id: String,
    /// The pod's name.
    pub pod: String,
    /// What will be done.
    pub kind: Kind,
    /// When it was told.
    pub posted: Timestamp,
    /// It is not touched before.
    pub not_before: Timestamp,
    /// For so long it will stand still, as predicted, in ms; none: as long as its host takes to boot.
    pub expected_blackout_ms: Option<f64>,
    /// More time that it got, in s.
    pub delayed_s: u64,
    /// More time that it may have, in s.
    pub delay_left_s: u64,
    /// It said that it is ready.
    pub acknowledged: bool,
    /// Answers of the pod that have been heard.
    pub heard: usize,
}

/// What a pod answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Go ahead.
    Ready,
    /// Not before so many seconds more.
    Delay(u64),
}

/// A running pod, as notices need it.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
}

impl Notice {
    /// A new notice.
    #[must_use]
    pub fn new(subject: &Subject, kind: Kind, now: Timestamp, not_before: Timestamp, phases: &Phases) -> Self {
        Self {
            id: format!("{:016x}", rand::random::<u64>()),
            pod: subject.name.clone(),
            kind,
            posted: now,
            not_before,
            expected_blackout_ms: None,
            delayed_s: 0,
            delay_left_s: phases.delay.0.unsigned_abs().as_secs(),
            acknowledged: false,
            heard: 0,
        }
    }

    /// Whether the pod may be touched.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.acknowledged || now >= self.not_before
    }

    /// In a sentence.
    #[must_use]
    pub fn in_words(&self) -> String {
        let what = match self.kind {
            Kind::Evacuate => "leaves for another host while this one is patched",
            Kind::InPlace => "sleeps while its host is patched and boots",
            Kind::Move => "moves to another host",
        };
        let silence = self.expected_blackout_ms.map_or_else(String::new, |ms| format!(": some {ms:.0} ms of silence"));
        format!("{} {what}, not before {}{silence}", self.pod, self.not_before)
    }

    /// Hears the answers of the pod, of which some may have been heard already; what follows.
    pub fn hear(&mut self, answers: &[Answer], now: Timestamp) -> Vec<What> {
        let new = answers.get(self.heard..).unwrap_or_default();
        self.heard = self.heard.max(answers.len());
        new.iter().map(|answer| self.hear_one(*answer, now)).collect()
    }

    fn hear_one(&mut self, answer: Answer, now: Timestamp) -> What {
        let (pod, notice) = (self.pod.clone(), self.id.clone());
        let refused = |why: &str| What::NotDelayed { pod: pod.clone(), notice: notice.clone(), why: why.to_owned() };
        match answer {
            Answer::Ready => {
                self.acknowledged = true;
                self.not_before = self.not_before.min(now);
                What::Acknowledged { pod, notice }
            }
            Answer::Delay(_) if self.acknowledged => refused("it had said that it is ready"),
            Answer::Delay(_) if self.delay_left_s == 0 => refused("it had all that the policy allows ([phases] delay)"),
            Answer::Delay(seconds) => {
                let seconds = seconds.min(self.delay_left_s);
                let more = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                let later = self.not_before.max(now).checked_add(more).unwrap_or(Timestamp::MAX);
                (self.not_before, self.delayed_s) = (later, self.delayed_s + seconds);
                self.delay_left_s -= seconds;
                What::Delayed { pod, notice, seconds, not_before: later }
            }
        }
    }
}

/// What the file in a pod says: `incarnation` changes with its content.
#[must_use]
pub fn document(notice: Option<&Notice>) -> String {
    let Some(notice) = notice else { return NOTHING.to_owned() };
    let told = json!({
        "id": notice.id,
        "kind": notice.kind,
        "posted": notice.posted,
        "not_before": notice.not_before,
        "expected_blackout_ms": notice.expected_blackout_ms.map(f64::round),
        "delay_left_s": notice.delay_left_s,
        "acknowledged": notice.acknowledged,
    });
    let incarnation = notice.posted.as_second().unsigned_abs() + notice.heard as u64;
    format!("{}\n", json!({ "incarnation": incarnation, "events": [told] }))
}

/// As many answers to a notice are heard: each is an event. A pod's init keeps no more.
const ANSWERS: usize = 64;

/// Answers to a notice among the notes of a pod's init. The pod's own: what is not understood is none.
#[must_use]
pub fn answers(notes: &str, notice: &str) -> Vec<Answer> {
    let read = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            [id, "ack"] if *id == notice => Some(Answer::Ready),
            [id, "delay", seconds] if *id == notice => Some(Answer::Delay(seconds.parse().ok()?)),
            _ => None,
        }
    };
    notes.lines().filter_map(read).take(ANSWERS).collect()
}

/// What a decision changes about notices.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// Pods, by id, that are told now: of what kind, and before which time they are not touched.
    pub tell: Vec<(String, Kind, Timestamp)>,
    /// Pods, by id, that are told that it is off.
    pub withdraw: Vec<String>,
    /// When to look again.
    pub look: Option<Timestamp>,
}

/// Who is to be told what, by a decision. What is not known changes nothing.
#[must_use]
pub fn plan(
    decision: &Decision,
    told: &BTreeMap<String, Notice>,
    pods: &[Subject],
    phases: &Phases,
    now: Timestamp,
) -> Changes {
    let mut changes = Changes::default();
    let (mechanism, start, notice) = match &decision.verdict {
        Verdict::Unknown { .. } => return changes,
        Verdict::Due { mechanism } => (Some(*mechanism), now, phases.notice.0),
        Verdict::Wait { mechanism, until, .. } => (Some(*mechanism), *until, phases.notice.0),
        // Hardware that fails waits for nobody.
        Verdict::Leave { .. } => (Some(Mechanism::Evacuate), now, SignedDuration::ZERO),
        Verdict::Current | Verdict::Covered { .. } | Verdict::Blocked { .. } => (None, now, SignedDuration::ZERO),
    };
    let kind = match mechanism {
        Some(Mechanism::Evacuate) => Some(Kind::Evacuate),
        Some(Mechanism::InPlace) => Some(Kind::InPlace),
        Some(Mechanism::LivePatch | Mechanism::Restart) | None => None,
    };
    let first = start.checked_sub(notice).unwrap_or(Timestamp::MIN);
    let is_time = first <= now;
    changes.look = kind.filter(|_| !is_time).map(|_| first);
    for pod in pods {
        match (told.get(&pod.id), kind.filter(|_| is_time)) {
            // Somebody moves it: what that is for, whoever does it knows.
            (Some(Notice { kind: Kind::Move, .. }), _) | (None, None) => {}
            (Some(notice), Some(kind)) if notice.kind == kind => {}
            (Some(_), None) => changes.withdraw.push(pod.id.clone()),
            (None | Some(_), Some(kind)) => {
                let earliest = now.checked_add(notice).unwrap_or(Timestamp::MAX);
                changes.tell.push((pod.id.clone(), kind, start.max(earliest)));
            }
        }
    }
    changes
}

/// What a pod may be told in a word about its time.
#[must_use]
pub fn left(notice: &Notice, now: Timestamp) -> String {
    match notice.is_over(now) {
        true if notice.acknowledged => format!("{} is ready", notice.pod),
        true => format!("{} has had its time", notice.pod),
        false => format!("{} has {} left", notice.pod, words(notice.not_before.duration_since(now))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::facts::Missing;
    use crate::patch::policy::Policy;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::new(seconds, 0).expect("a time")
    }

    fn pods() -> Vec<Subject> {
        ["1", "2"].map(|id| Subject { id: id.to_owned(), name: format!("pod{id}") }).to_vec()
    }

    /// Notice 15 min, delay 1 day.
    fn phases() -> Phases {
        Policy::default().phases
    }

    fn decision(verdict: Verdict) -> Decision {
        let missing = Missing { what: "x".to_owned(), cure: "y".to_owned() };
        Decision { verdict, ..Decision::unknown(missing) }
    }

    fn due(mechanism: Mechanism) -> Decision {
        decision(Verdict::Due { mechanism })
    }

    fn wait(until: i64) -> Decision {
        decision(Verdict::Wait { until: at(until), mechanism: Mechanism::Evacuate, why: "window".to_owned() })
    }

    #[test]
    fn pods_are_told_in_time_and_never_too_late() {
        let none = BTreeMap::new();
        let plan = |decision: &Decision, now| plan(decision, &none, &pods(), &phases(), at(now));
        let early = plan(&wait(10_000), 0);
        assert_eq!((early.tell.len(), early.look), (0, Some(at(9_100))));
        let told = |changes: Changes| changes.tell.into_iter().map(|(_, kind, time)| (kind, time)).collect::<Vec<_>>();
        assert_eq!(told(plan(&wait(10_000), 9_100)), [(Kind::Evacuate, at(10_000)); 2]);
        assert_eq!(
            told(plan(&wait(10_000), 9_900)),
            [(Kind::Evacuate, at(10_800)); 2],
            "the notice is kept in any case"
        );
        assert_eq!(told(plan(&due(Mechanism::InPlace), 50)), [(Kind::InPlace, at(950)); 2]);
        let leave = decision(Verdict::Leave { signs: Vec::new() });
        assert_eq!(told(plan(&leave, 50)), [(Kind::Evacuate, at(50)); 2]);
        for mild in [Mechanism::LivePatch, Mechanism::Restart] {
            assert_eq!(plan(&due(mild), 0), Changes::default(), "{mild:?} touches no pod");
        }
    }

    #[test]
    fn a_notice_holds_until_it_is_known_to_be_off() {
        let notice = Notice::new(&pods()[0], Kind::Evacuate, at(0), at(900), &phases());
        let told = BTreeMap::from([("1".to_owned(), notice.clone())]);
        let plan = |decision: &Decision| plan(decision, &told, &pods(), &phases(), at(100));
        let unknown = decision(Verdict::Unknown { missing: Vec::new() });
        assert_eq!(plan(&unknown), Changes::default());
        let again = plan(&due(Mechanism::Evacuate));
        assert_eq!((again.tell.len(), again.withdraw.len()), (1, 0), "the other pod has just come");
        for off in [decision(Verdict::Current), wait(100_000), due(Mechanism::Restart)] {
            assert_eq!(plan(&off).withdraw, ["1"], "{off:?}");
        }
        let moved = BTreeMap::from([("1".to_owned(), Notice { kind: Kind::Move, ..notice })]);
        let changes = super::plan(&decision(Verdict::Current), &moved, &pods(), &phases(), at(100));
        assert_eq!(changes, Changes::default(), "whoever moves it withdraws it");
    }

    #[test]
    fn more_time_is_given_up_to_the_limit_and_each_answer_counts_once() {
        let mut notice = Notice::new(&pods()[0], Kind::Evacuate, at(0), at(900), &phases());
        let notes = "other ack\nID delay 600\nID delay x\nID\nID delay 1000000\nID delay 5\n".replace("ID", &notice.id);
        let heard = answers(&notes, &notice.id);
        assert_eq!(heard, [Answer::Delay(600), Answer::Delay(1_000_000), Answer::Delay(5)]);
        let events = notice.hear(&heard[..1], at(100));
        assert!(matches!(events[..], [What::Delayed { seconds: 600, .. }]), "{events:?}");
        assert_eq!(notice.not_before, at(1500));
        let events = notice.hear(&heard, at(2000));
        assert!(matches!(events[..], [What::Delayed { seconds: 85_800, .. }, What::NotDelayed { .. }]), "{events:?}");
        assert_eq!((notice.not_before, notice.delayed_s), (at(2000 + 85_800), 86_400), "after its time, from now on");
        assert!(!notice.is_over(at(80_000)));
        let events = notice.hear(&[heard.clone(), vec![Answer::Ready, Answer::Delay(1)]].concat(), at(3000));
        assert!(matches!(events[..], [What::Acknowledged { .. }, What::NotDelayed { .. }]), "{events:?}");
        assert!(notice.is_over(at(3000)) && notice.not_before == at(3000));
        assert_eq!(answers(&format!("{} ack\n", notice.id).repeat(1000), &notice.id).len(), ANSWERS);
        assert_eq!(notice.hear(&heard, at(4000)), []);
    }

    #[test]
    fn the_file_is_what_the_pods_init_understands() {
        let notice = Notice::new(&pods()[0], Kind::InPlace, at(5), at(900), &phases());
        let text = document(Some(&notice));
        assert!(text.contains(&format!("\"id\":\"{}\"", notice.id)), "{text}");
        assert!(text.contains("\"kind\":\"in-place\"") && text.contains("\"incarnation\":5"), "{text}");
    }
}
