//! Something dies at a random moment of a move, more than a hundred times in a row on the same two hosts and the same
//! pod: afterwards every invariant holds, and the client's one connection is still the first.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use tests::invariants::{Subject, end_of, kill_podd, start_podds};
use tests::{Lab, workload};

/// Moves that something disturbs before they have ended.
const DISTURBED: u32 = 105;
/// A kill may find nothing, or come too late: this is enough of them.
const MOST: u32 = 400;
/// The kill comes within this time after the start of the move, in ms: a move takes 200 to 450 ms.
const WITHIN: u64 = 350;
/// A CRIU is killed within this time after it appeared, in ms: most live for 30 to 60 ms.
const CRIU_WITHIN: u64 = 50;
/// As in `faults.rs`.
const LIMIT: Duration = Duration::from_secs(25);

/// SplitMix64: enough to choose moments, and the same sequence for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

#[derive(Clone, Copy, Debug)]
enum Dies {
    SourcePodd,
    TargetPodd,
    SourceCriu,
    TargetCriu,
    TargetShim,
    SourceShim,
    Cable,
}

const ALL: [Dies; 7] = [
    Dies::SourcePodd,
    Dies::TargetPodd,
    Dies::SourceCriu,
    Dies::TargetCriu,
    Dies::TargetShim,
    Dies::SourceShim,
    Dies::Cable,
];

#[test]
fn random_moments() {
    let seed = std::env::var("PODD_TEST_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs()));
    eprintln!("seed: PODD_TEST_SEED={seed}");
    let mut random = Random(seed);
    let lab = Lab::up(2);
    workload::redis(&lab, "a", "redis", "10.77.1.7");
    let subject = Subject::new(&lab, "redis", "10.77.1.7");
    let mut from = "a";
    let mut disturbed = 0;
    for round in 1..=MOST {
        let to = if from == "a" { "b" } else { "a" };
        let dies = ALL[usize::try_from(random.below(ALL.len() as u64)).unwrap_or_default()];
        let host_of_criu = match dies {
            Dies::SourceCriu => Some(from),
            Dies::TargetCriu => Some(to),
            _ => None,
        };
        let within = if host_of_criu.is_some() { CRIU_WITHIN } else { WITHIN };
        let moment = Duration::from_micros(random.below(within * 1000));
        let begun = Instant::now();
        let mut mover = subject.begin_move(from, to);
        if let Some(host) = host_of_criu {
            while subject.criu(host).is_none() && mover.try_wait().unwrap().is_none() {}
        }
        std::thread::sleep(moment);
        let under_way = mover.try_wait().unwrap().is_none();
        let hit = match dies {
            Dies::SourcePodd => {
                kill_podd(&lab, from);
                true
            }
            Dies::TargetPodd => {
                kill_podd(&lab, to);
                true
            }
            Dies::SourceCriu | Dies::TargetCriu => {
                host_of_criu.and_then(|host| subject.criu(host)).is_some_and(|pid| kill(pid, Signal::SIGKILL).is_ok())
            }
            Dies::TargetShim => subject.shim(to).is_some_and(|pid| kill(pid, Signal::SIGKILL).is_ok()),
            Dies::SourceShim => subject.shim(from).is_some_and(|pid| kill(pid, Signal::SIGKILL).is_ok()),
            Dies::Cable => {
                let host = if random.below(2) == 0 { from } else { to };
                lab.script(&["cut", host]).must();
                std::thread::sleep(Duration::from_millis(random.below(1000)));
                lab.script(&["join", host]).must();
                true
            }
        };
        start_podds(&lab);
        let code = end_of(mover, Duration::from_secs(60));
        let now = subject.settled(LIMIT);
        eprintln!(
            "{:6.1} s  {round:3}  {from} to {to}: {dies:?} after {:3} ms ({}), podctl said {code:?}, on {now}, {} ms",
            subject.elapsed().as_secs_f64(),
            moment.as_millis(),
            if !hit {
                "nothing there"
            } else if under_way {
                "hit"
            } else {
                "too late"
            },
            begun.elapsed().as_millis()
        );
        assert!(code.is_some(), "podctl did not end");
        from = now;
        disturbed += u32::from(hit && under_way);
        if disturbed == DISTURBED {
            return;
        }
    }
    panic!("only {disturbed} of {MOST} moves were disturbed");
}
