use std::path::Path;

use jiff::{Timestamp, Zoned};

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().or_else(|_| text.parse::<Zoned>().map(|zoned| zoned.timestamp())).expect("a time")
}

fn parse(text: &str) -> Result<Policy, String> {
    let now = at("2026-11-29T12:00:00Z");
    Policy::parse(text, Path::new("policy.toml"), now).map_err(|error| error.to_string())
}

/// Slots of a policy that begin between two times.
fn slots(text: &str, from: &str, until: &str) -> Vec<(Timestamp, Timestamp)> {
    let windows = parse(text).expect("a policy").windows().expect("windows");
    windows.slots(at(from), at(until)).into_iter().map(|slot| (slot.start, slot.end)).collect()
}

const NIGHT: &str = "[[windows]]\nstart = \"02:30\"\nduration = \"2h\"\nzone = \"Europe/Berlin\"\n";

#[test]
fn an_empty_file_is_a_policy() {
    assert_eq!(parse(""), Ok(Policy::default()));
    let text = toml::to_string(&Policy::default()).expect("it can be written");
    assert_eq!(parse(&text), Ok(Policy::default()), "{text}");
}

#[test]
fn what_is_wrong_is_said_in_a_sentence_with_its_line() {
    let wrong = [
        ("[deadlines]\nexploted = \"48h\"", "policy.toml is wrong in line 2: unknown field `exploted`"),
        ("[deadlines]\nhigh = \"1 month\"", "years and months have no fixed length"),
        ("[deadlines]\nhigh = \"-3d\"", "negative"),
        ("[deadlines]\nhigh = \"99999999999999d\"", "is no length of time"),
        ("[deadlines]\nexploited = \"30d\"", "gives what is worse more time: exploited 30d, high 7d, rest 35d"),
        ("[phases]\ndelay = \"48h\"", "longer than the shortest deadline"),
        ("[phases]\noverdue = \"never\"", "line 2: unknown variant `never`"),
        ("[mechanisms]\nforbid = [\"live-patch\", \"restart\", \"in-place\", \"evacuate\"]", "forbids all there are"),
        ("[mechanisms]\nforbid = [\"in-place\"]\nprefer = [\"in-place\"]", "both prefers and forbids in-place"),
        ("[limits]\nmax-unavailable = 0", "lets no host be patched"),
        ("[limits]\nheadroom = 91", "leaves no room"),
        ("[facts]\ninterval = \"4d\"", "are read every 4d and are too old after 3d"),
        ("[notify]\nsecret = \"/x\"", "has a secret and no webhook"),
        ("[notify]\nwebhook = \"ftp://x\"", "is no address"),
        ("[[windows]]\nduration = \"1h\"", "either `cron`, or `start`"),
        ("[[windows]]\nstart = \"02:00\"\ncron = \"0 2 * * *\"\nduration = \"1h\"", "either `cron`, or `start`"),
        ("[[windows]]\nstart = \"25:00\"\nduration = \"1h\"", "line 2"),
        ("[[windows]]\nstart = \"02:00\"\nduration = \"8d\"", "five minutes to seven days"),
        (
            "[[windows]]\nstart = \"02:00\"\nduration = \"1h\"\nzone = \"Mars/Olympus\"",
            "there is no time zone \"Mars/Olympus\"",
        ),
        ("[[windows]]\ncron = \"61 2 * * *\"\nduration = \"1h\"", "is not understood"),
        ("[[windows]]\ncron = \"0 2 30 2 *\"\nduration = \"1h\"", "no window is left"),
        ("[[exclusions]]\nfrom = \"2026-01-01\"\nto = \"9999-12-31\"", "no window is left"),
        ("[[exclusions]]\nfrom = \"2026-02-02\"\nto = \"2026-02-01\"", "an exclusion is from 2026-02-02 to 2026-02-01"),
        ("[[exclusions]]\nfrom = \"2026-02-30\"", "line 2"),
        ("[limits", "line 1"),
    ];
    for (text, sentence) in wrong {
        let said = parse(text).expect_err(text);
        assert!(said.contains(sentence), "{text}: {said}");
        assert!(said.contains("\n  cure: "), "{text}: {said}");
    }
}

#[test]
fn windows_keep_their_hour_when_clocks_are_changed() {
    // 29 March 2026, 2:00 to 3:00 is missing; 25 October 2026, 2:00 to 3:00 comes twice.
    let by_cron = NIGHT.replace("start = \"02:30\"", "cron = \"30 2 * * *\"");
    for night in [NIGHT, &by_cron] {
        let spring = slots(night, "2026-03-28T00:00:00Z", "2026-03-31T00:00:00Z");
        let want = [("2026-03-28T01:30:00Z", 2), ("2026-03-29T01:30:00Z", 2), ("2026-03-30T00:30:00Z", 2)];
        assert_eq!(
            spring,
            want.map(|(start, hours)| (at(start), at(start) + SignedDuration::from_hours(hours))),
            "{night}"
        );
        let autumn = slots(night, "2026-10-24T00:00:00Z", "2026-10-27T00:00:00Z");
        let want = [("2026-10-24T00:30:00Z", 2), ("2026-10-25T00:30:00Z", 2), ("2026-10-26T01:30:00Z", 2)];
        assert_eq!(
            autumn,
            want.map(|(start, hours)| (at(start), at(start) + SignedDuration::from_hours(hours))),
            "{night}"
        );
    }
}

#[test]
fn windows_of_leap_days_and_the_ends_of_years() {
    let last_of_february = "[[windows]]\ncron = \"0 22 29 2 *\"\nduration = \"4h\"\n";
    // No such day within 400 days of the end of 2026; within those of 2027, there is.
    let policy = |now| Policy::parse(last_of_february, Path::new("p"), at(now));
    assert!(policy("2026-11-29T12:00:00Z").is_err_and(|error| error.to_string().contains("no window is left")));
    let windows = policy("2027-11-29T12:00:00Z").expect("2028 has one").windows().expect("windows");
    let slot = windows.next(at("2027-11-29T12:00:00Z"), at("2029-01-01T00:00:00Z")).expect("2028 has one");
    assert_eq!((slot.start, slot.end), (at("2028-02-29T22:00:00Z"), at("2028-03-01T02:00:00Z")));
    let new_year = "[[windows]]\ndays = [\"thu\"]\nstart = \"23:00\"\nduration = \"2h\"\n";
    let want = (at("2026-12-31T23:00:00Z"), at("2027-01-01T01:00:00Z"));
    assert_eq!(slots(new_year, "2026-12-31T00:00:00Z", "2027-01-02T00:00:00Z"), [want]);
    // One that is open already is cut, not lost.
    assert_eq!(slots(new_year, "2027-01-01T00:30:00Z", "2027-01-02T00:00:00Z"), [(at("2027-01-01T00:30:00Z"), want.1)]);
}

#[test]
fn exclusions_take_away_their_days_and_no_more() {
    let text = format!("{NIGHT}[[exclusions]]\nfrom = \"2026-12-24\"\nto = \"2026-12-26\"\nzone = \"Europe/Berlin\"\n");
    let days: Vec<String> =
        slots(&text, "2026-12-22T12:00:00Z", "2026-12-29T12:00:00Z").iter().map(|slot| slot.0.to_string()).collect();
    assert_eq!(days, ["2026-12-23T01:30:00Z", "2026-12-27T01:30:00Z", "2026-12-28T01:30:00Z", "2026-12-29T01:30:00Z"]);
    // What is left of a window on both sides of an excluded day.
    let long =
        "[[windows]]\ndays = [\"fri\"]\nstart = \"20:00\"\nduration = \"60h\"\n[[exclusions]]\nfrom = \"2026-12-05\"\n";
    let left = slots(long, "2026-12-04T00:00:00Z", "2026-12-10T00:00:00Z");
    let want = [("2026-12-04T20:00:00Z", "2026-12-05T00:00:00Z"), ("2026-12-06T00:00:00Z", "2026-12-07T08:00:00Z")];
    assert_eq!(left, want.map(|(start, end)| (at(start), at(end))));
}

#[test]
fn without_windows_any_time_will_do() {
    let windows = Policy::default().windows().expect("windows");
    let now = at("2026-11-29T12:00:00Z");
    assert_eq!(windows.next(now, now + SignedDuration::from_hours(1)).expect("now").start, now);
    // The last one before a deadline begins within the day before it.
    let deadline = at("2026-12-06T12:00:00Z");
    assert_eq!(windows.last(now, deadline).expect("one").start, at("2026-12-06T00:00:00Z"));
}

#[test]
fn the_ends_of_time_are_survived() {
    let windows = parse(NIGHT).expect("a policy").windows().expect("windows");
    for now in [Timestamp::MIN, Timestamp::MAX, Timestamp::UNIX_EPOCH] {
        let _ = windows.next(now, now);
        let _ = windows.last(now, Timestamp::MAX.min(now.checked_add(SignedDuration::from_hours(1)).unwrap_or(now)));
    }
    let end = Policy::parse("", Path::new("p"), at("9999-12-30T00:00:00Z"));
    assert!(end.is_err_and(|error| error.to_string().contains("no window is left")), "no window ends before time does");
}
