//! A program that writes all the time during live passes and stops before the last.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[test]
fn a_busy_writer_leaves_nothing_wrong_behind() {
    let mut pair = Pair::new();
    let source = pair.source();
    for number in 0..40 {
        fs::create_dir_all(source.join(format!("d{}", number % 7))).unwrap();
        fs::write(source.join(format!("d{}/f{number}", number % 7)), noise(number, 5000)).unwrap();
    }
    fs::write(source.join("db"), noise(1, 8 << 20)).unwrap();
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|seed| {
                let (stop, source) = (&stop, &source);
                scope.spawn(move || write_until(stop, source, seed))
            })
            .collect();
        for _ in 0..6 {
            pair.pass(Mode::Live);
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().unwrap()).sum::<u64>()
    });
    assert!(rounds > 100, "the writers hardly ran: {rounds}");
    assert_eq!(pair.pass(Mode::Frozen).unsettled, 0);
    pair.assert_equal();
}

fn write_until(stop: &AtomicBool, source: &Path, seed: u64) -> u64 {
    let mut round = seed;
    while !stop.load(Ordering::Relaxed) {
        round += 2;
        let dir = source.join(format!("d{}", round % 7));
        let file = dir.join(format!("f{}", round % 40));
        match round / 2 % 8 {
            0 => drop(fs::write(&file, noise(round, (round % 9000) as usize))),
            1 => drop(fs::remove_file(&file)),
            2 => drop(fs::rename(&file, dir.join(format!("g{}", round % 5)))),
            3 => drop(fs::remove_dir_all(&dir)),
            4 => drop(fs::create_dir_all(&dir)),
            5 => drop(fs::hard_link(&file, source.join(format!("d{}/h{}", round % 3, round % 4)))),
            6 => drop(fs::rename(&dir, source.join(format!("d{}/moved", round % 6)))),
            _ => {
                let db = OpenOptions::new().write(true).open(source.join("db")).unwrap();
                db.write_all_at(&noise(round, 5000), round * 7919 % (8 << 20)).unwrap();
                if round.is_multiple_of(5) {
                    db.set_len((8 << 20) - round % (1 << 20)).unwrap();
                }
            }
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    round / 2
}
