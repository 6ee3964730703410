//! How long the status service takes, and how much memory, with as many advisories as there are.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use super::host::Failure;
use super::report::Spread;
use crate::Lab;
use crate::debian::{Fleet, NEW};

/// About Linux, and exposing the host: since Debian 12 there are some thousands.
const LINUX: usize = 5_000;
/// About packages that this host lacks, as most are: together with those the feed is as large as Debian's, some 60 MB.
const OTHERS: usize = 70_000;

/// Measures `podctl status` as a user does, warm and with all read anew, and the memory of podd; a line each.
///
/// # Errors
/// A host does not answer.
pub fn run() -> Result<String, Failure> {
    let fleet = Fleet::up(1, "");
    let feed = fleet.file("a", "tracker.json");
    let bytes = write_feed(&feed).map_err(|e| Failure(format!("cannot write {}: {e}", feed.display())))?;
    let timed = |arguments: &[&str]| {
        let begun = Instant::now();
        let said = fleet.lab.podctl("a", arguments);
        let took = begun.elapsed().as_secs_f64() * 1e3;
        eprintln!("bench: podctl {}: {took:.0} ms", arguments.join(" "));
        match said.code {
            10 | 11 => Ok(took),
            _ => Err(Failure(format!("{arguments:?} says {said:?}"))),
        }
    };
    let start = memory(&fleet.lab, "VmRSS")?;
    let refreshes = (0..10).map(|_| timed(&["status", "--refresh", "a"])).collect::<Result<Vec<_>, _>>()?;
    let warm = (0..50).map(|_| timed(&["status", "a"])).collect::<Result<Vec<_>, _>>()?;
    let why = (0..10).map(|_| timed(&["why", "a"])).collect::<Result<Vec<_>, _>>()?;
    let line = |what: &str, values: Vec<f64>| {
        let count = values.len();
        Spread::of(values).map_or_else(String::new, |s| {
            format!("{what}: {:.1} ms ({:.1} to {:.1}; {count} times)\n", s.median, s.min, s.max)
        })
    };
    let (peak, now) = (memory(&fleet.lab, "VmHWM")?, memory(&fleet.lab, "VmRSS")?);
    let feed = format!("{LINUX} advisories about this kernel, in a feed of {} MB:\n", bytes / 1_000_000);
    let times = [line("podctl status", warm), line("podctl status --refresh", refreshes), line("podctl why", why)];
    let memory = format!("podd's memory: {start:.1} MB at its start, {peak:.1} at most, {now:.1} afterwards\n");
    Ok(feed + &times.concat() + &memory)
}

/// A figure of podd's, in MB (proc_pid_status(5)).
pub fn memory(lab: &Lab, name: &str) -> Result<f64, Failure> {
    let pid = crate::invariants::podd(lab, "a").ok_or_else(|| Failure("podd does not run".to_owned()))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib: Option<f64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    Ok(kib.ok_or_else(|| Failure(format!("/proc/{pid}/status has no {name}")))? * 1024.0 / 1e6)
}

/// In the form of Debian's security tracker; its size in bytes.
fn write_feed(path: &Path) -> std::io::Result<u64> {
    let text = "A fault was found in this program, by which somebody can do what nobody should. ".repeat(5);
    let mut out = BufWriter::new(File::create(path)?);
    let issue = |number: usize, fixed: &str| {
        format!(
            "\"CVE-2026-{number:05}\":{{\"description\":\"{text}\",\"scope\":\"remote\",\"releases\":{{\"bookworm\":{{\
             \"status\":\"resolved\",\"repositories\":{{\"bookworm\":\"1.0-1\",\"bookworm-security\":\"1.0-2\"}},\
             \"fixed_version\":\"{fixed}\",\"urgency\":\"not yet assigned\"}},\"trixie\":{{\"status\":\"open\",\
             \"repositories\":{{\"trixie\":\"1.1-1\"}},\"urgency\":\"not yet assigned\"}}}}}}"
        )
    };
    write!(out, "{{\"linux\":{{")?;
    for number in 0..LINUX {
        write!(out, "{}{}", if number == 0 { "" } else { "," }, issue(number, NEW.1))?;
    }
    for number in 0..OTHERS {
        match number % 20 {
            0 => write!(out, "}},\"package{number}\":{{{}", issue(number, "1.0-2"))?,
            _ => write!(out, ",{}", issue(number, "1.0-2"))?,
        }
    }
    write!(out, "}}}}")?;
    out.flush()?;
    Ok(path.metadata()?.len())
}
