//! A week of a thousand hosts.

use std::time::Instant;

use super::*;

const HOSTS: usize = 1000;
const STEP_MINUTES: i64 = 15;

/// Decisions follow one another: each host is looked at every quarter of an hour, done when it is due, and never before or
/// after it should.
#[test]
fn a_week_of_a_thousand_hosts() {
    let text = "[[windows]]\ndays = [\"tue\"]\nstart = \"01:00\"\nduration = \"4h\"\nzone = \"Europe/Berlin\"\n\
                [[windows]]\ncron = \"0 22 * * 6\"\nduration = \"6h\"\nzone = \"Europe/Berlin\"\n";
    let policy = Policy::parse(text, std::path::Path::new("p"), now()).expect("a policy");
    let begun = Instant::now();
    let mut done = Vec::new();
    for i in 0..HOSTS {
        let mut host = host();
        host.policy = policy.clone();
        let windows = policy.windows().expect("windows");
        host.sources()[1].valid_until = None;
        let appears = now() + SignedDuration::from_mins(i as i64 * 5);
        let urgency = [Urgency::Low, Urgency::High, Urgency::Unassigned][i % 3];
        let exploited = i % 10 == 0;
        let mut finished = None;
        for step in 0..7 * 24 * 60 / STEP_MINUTES {
            host.now = now() + SignedDuration::from_mins(step * STEP_MINUTES);
            host.facts.at = host.now;
            host.advisories.feeds[0].fetched = Some(host.now);
            host.advisories.feeds[1].fetched = Some(host.now);
            if host.now >= appears && finished.is_none() && host.advisories.list.len() == 4 {
                host = host.outdated(urgency);
                host.advisories.list[4].exploited = exploited;
            }
            let question = Question {
                facts: &host.facts,
                advisories: &host.advisories,
                policy: &host.policy,
                windows: &windows,
                record: &host.record,
                situation: &host.situation,
                now: host.now,
            };
            let decision = decide(question);
            match decision.verdict {
                Verdict::Current => assert!(finished.is_some() || host.now < appears),
                Verdict::Wait { until, .. } => assert!(until > host.now && finished.is_none()),
                Verdict::Due { mechanism: Mechanism::Evacuate } => {
                    finished = Some(host.now);
                    host.kernel().version = "6.1.172-1".to_owned();
                    host.kernel().release = "6.1.0-48-amd64".to_owned();
                    host.facts.boot_default = Fact::Known("6.1.0-48-amd64".to_owned());
                }
                other => panic!("{other:?}"),
            }
            if finished.is_none() {
                for key in decision.fixes() {
                    host.record.seen.entry(key).or_insert(host.now);
                }
            }
        }
        let slack = SignedDuration::from_mins(STEP_MINUTES);
        let limit = if exploited { hours(48) } else { days(7) };
        // Of the low ones, the owner has 35 days.
        let must = (exploited || urgency == Urgency::High) && appears + limit < now() + days(7);
        assert!(!must || finished.is_some(), "host {i}, from {appears}");
        if let Some(at) = finished {
            let open = windows.next(at, at + hours(1)).expect("a window is open");
            assert_eq!(open.start, at);
            // A deadline is missed only if no window came before it.
            let missed = at > appears + limit + slack;
            assert!(!missed || windows.next(appears, appears + limit).is_none(), "host {i}: {appears} to {at}");
            done.push(at);
        }
    }
    assert!(done.len() > HOSTS / 5, "{}", done.len());
    assert!(begun.elapsed().as_secs() < 10 || cfg!(debug_assertions), "{:?}", begun.elapsed());
}
