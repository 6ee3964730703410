//! Measurements, run by hand: `cargo test --release -p checkpoint files::tests::speed -- --ignored --nocapture`.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::*;

/// Time by the clock and by the processor (the clock alone says little on a busy machine), and what was done.
fn frozen_pass(pair: &mut Pair) -> (Duration, Duration, PassReport) {
    let (start, cpu) = (Instant::now(), cpu_time());
    let report = pair.sender.pass(Mode::Frozen, &BTreeSet::new(), &mut |_| Ok(())).unwrap();
    (start.elapsed(), cpu_time() - cpu, report)
}

fn cpu_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    Duration::new(time.tv_sec() as u64, time.tv_nsec() as u32)
}

#[test]
#[ignore = "a measurement"]
fn frozen_pass_over_many_unchanged_files() {
    let mut pair = Pair::new();
    for number in 0..20_000 {
        let dir = pair.source().join(format!("dir{}", number / 100));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("some-file-{number}")), "content").unwrap();
    }
    settle();
    let start = Instant::now();
    pair.pass(Mode::Live);
    println!("first pass, applied twice: {:?}", start.elapsed());
    for _ in 0..5 {
        println!("{:?}", frozen_pass(&mut pair));
    }
}

#[test]
#[ignore = "a measurement"]
fn frozen_pass_over_one_changed_block() {
    let mut pair = Pair::new();
    let path = pair.source().join("big");
    fs::write(&path, noise(1, 1 << 30)).unwrap();
    let start = Instant::now();
    pair.pass(Mode::Live);
    println!("first pass, applied twice: {:?}", start.elapsed());
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for round in 0..5 {
        file.write_all_at(b"changed", (round * 123 + 7) << 20).unwrap();
        println!("{:?}", frozen_pass(&mut pair));
    }
}
