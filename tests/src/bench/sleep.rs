//! How long a pod takes to go to sleep and to wake up, beside copying and reading as many bytes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Contender;
use super::host::{Failure, Server, Workload, must, redis_cli};
use super::podd::{POD, Podd};
use super::report::Spread;
use crate::Lab;

/// Suspends and resumes a redis of each of these sizes, MB, so many times; a line each.
///
/// # Errors
/// podd does not do it.
pub fn run(sizes: &[u64], times: u32) -> Result<String, Failure> {
    let lab = Lab::up(1);
    let mut text = String::new();
    for &megabytes in sizes {
        let server = Server::new(Workload::Redis { megabytes }, "podd");
        let mut podd = Podd::new(&lab, server.clone(), "auto");
        podd.start()?;
        let rows = (0..times).map(|_| once(&lab, &server)).collect::<Result<Vec<_>, _>>()?;
        podd.end();
        let names = [
            "memcpy(3) into fresh memory",
            "memcpy(3) once more",
            "podctl suspend",
            "reading the image",
            "podctl resume",
        ];
        for (column, name) in names.into_iter().enumerate() {
            if let Some(s) = Spread::of(rows.iter().map(|row| row[column])) {
                text += &format!(
                    "redis, {megabytes} MB: {name}: {:.0} ms ({:.0} to {:.0}; {times} times)\n",
                    s.median, s.min, s.max
                );
            }
        }
    }
    Ok(text)
}

/// Milliseconds of each.
fn once(lab: &Lab, server: &Server) -> Result<[f64; 5], Failure> {
    let podctl = |verb: &str| {
        let begun = Instant::now();
        must(&format!("podctl {verb}"), lab.podctl("a", &[verb, POD])).map(|_| milliseconds(begun))
    };
    let before = redis_cli(lab, server, &["dbsize"]).out;
    let suspended = podctl("suspend")?;
    let images = lab.dir().join("a/state/images");
    let image = newest(&images).ok_or_else(|| Failure(format!("there is no image in {}", images.display())))?;
    let unreadable = |e: std::io::Error| Failure(format!("{} cannot be read: {e}", image.display()));
    let mut content = Vec::new();
    // Twice, as memory is slow when it is used for the first time.
    File::open(&image).and_then(|mut file| file.read_to_end(&mut content)).map_err(unreadable)?;
    let begun = Instant::now();
    File::open(&image).and_then(|mut file| file.read_exact(&mut content)).map_err(unreadable)?;
    let read = milliseconds(begun);
    // A pod that goes to sleep or wakes up needs memory that it does not have yet.
    let begun = Instant::now();
    let mut copy = content.clone();
    let copied_anew = milliseconds(begun);
    let begun = Instant::now();
    copy.copy_from_slice(std::hint::black_box(&content));
    let copied = milliseconds(begun);
    drop((std::hint::black_box(copy), content));
    let resumed = podctl("resume")?;
    let after = redis_cli(lab, server, &["dbsize"]).out;
    if before != after {
        return Err(Failure(format!("redis had {before} keys and has {after}")));
    }
    let row = [copied_anew, copied, suspended, read, resumed];
    eprintln!("bench: {row:.0?} ms");
    Ok(row)
}

fn newest(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    entries.map(|entry| entry.path()).max_by_key(|path| path.metadata().and_then(|facts| facts.modified()).ok())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
