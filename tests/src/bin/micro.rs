//! What the kernel's plainest services cost where it is started, for `scripts/bench --steady`: `NAME NANOSECONDS`, a line each.
//!
//! `micro FOLDER...`: files are made and deleted in each folder.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// What the programs that it starts are told.
const END: &str = "end";

fn main() {
    let folders: Vec<String> = std::env::args().skip(1).collect();
    if folders.first().is_some_and(|word| word == END) {
        return;
    }
    let getpid = || {
        std::hint::black_box(nix::unistd::getpid());
    };
    println!("getpid {:.2}", each(1_000_000, getpid));
    let again = || {
        Command::new("/proc/self/exe").arg(END).status().expect("it can be started again");
    };
    println!("fork+exec {:.0}", each(300, again));
    for folder in folders {
        let path = Path::new(&folder).join("micro");
        let file = || {
            drop(File::create(&path).expect("a file can be made"));
            fs::remove_file(&path).expect("it can be deleted");
        };
        println!("{folder} {:.0}", each(3_000, file));
    }
}

/// Nanoseconds of one time.
fn each(times: u32, mut what: impl FnMut()) -> f64 {
    let begun = Instant::now();
    for _ in 0..times {
        what();
    }
    begun.elapsed().as_secs_f64() * 1e9 / f64::from(times)
}
