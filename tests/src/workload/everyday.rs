//! The program in `everyday/`: what ordinary programs of several users do all day, checking itself all the time.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use super::Hosts;
use crate::lab::eventually;

/// Time for rounds: some seconds each, and a hundred times as long on emulated machines that share a processor.
const ROUNDS: Duration = Duration::from_secs(900);
/// Between two looks: each takes a good part of an emulated machine's time.
const LOOK: Duration = Duration::from_millis(500);

/// Starts it in a pod named `name` on `host`; options: of `podctl run`.
pub fn everyday(lab: &impl Hosts, host: &str, name: &str, address: &str, options: &[&str]) {
    let (layer, cidr) = (lab.rootfs("shell"), format!("{address}/16"));
    let volume = format!("{}:/opt/everyday:ro", lab.folder("tests/everyday"));
    let mut arguments = vec!["run", "--name", name, "--rootfs", &layer, "--ip", &cidr, "--volume", &volume];
    arguments.extend(options);
    arguments.extend(["--hostname", "everyday", "-e", "PYTHONDONTWRITEBYTECODE=1", "--", "python3", "/opt/everyday"]);
    lab.ok(host, &arguments);
}

/// Rounds that each user has finished, if no check has ever failed.
#[track_caller]
#[must_use]
pub fn rounds(lab: &impl Hosts, host: &str, name: &str) -> BTreeMap<String, u64> {
    let log = lab.podctl(host, &["logs", name]).checked();
    let failed: Vec<&str> = log.out.lines().filter(|l| l.starts_with("FAIL")).collect();
    assert!(failed.is_empty(), "on {host}: {failed:#?}");
    assert_eq!(log.err, "", "on {host}");
    let mut rounds = BTreeMap::new();
    for line in log.out.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let ["ok", user, round, checks] = words[..] else { panic!("what is {line:?}?") };
        let round = round.parse().expect("rounds are numbered");
        let before = rounds.insert(user.to_owned(), round);
        assert_eq!(round, before.unwrap_or(0) + 1, "rounds of {user}");
        assert!(checks.parse::<u32>().is_ok_and(|n| n > 0), "{line}");
    }
    rounds
}

/// Waits until each user has finished so many more rounds.
#[track_caller]
pub fn more_rounds(lab: &impl Hosts, host: &str, name: &str, more: u64) {
    let before = rounds(lab, host, name);
    eventually("all users go on", ROUNDS, || {
        thread::sleep(LOOK);
        let now = rounds(lab, host, name);
        now.len() == 3 && now.iter().all(|(user, n)| *n >= before.get(user).unwrap_or(&0) + more)
    });
}
