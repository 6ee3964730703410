//! Threads that are in the vDSO (vdso(7)): code of the kernel in the memory of programs. Another kernel has other code there, and a
//! thread that stood still in the middle of it would go on somewhere else: CRIU redirects only the functions' beginnings
//! (checkpoint-restore/criu#512). So such threads go on until they are out of it, while all others stand still.
//!
//! Not seen: a thread whose signal handler has interrupted it there.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use nix::libc;
use nix::unistd::Pid;

use crate::guard::{lead_out, tids};

/// Calls that the vDSO makes itself, where it cannot tell without the kernel.
const CALLS: [i64; 5] =
    [libc::SYS_clock_gettime, libc::SYS_gettimeofday, libc::SYS_clock_getres, libc::SYS_getcpu, libc::SYS_getrandom];

/// Has the threads that are there leave it, of a cgroup (v2) that stands still and does so again afterwards; one that never does is
/// returned. Some 10 µs a thread if nobody is there.
///
/// # Errors
/// They do not stand still again.
pub fn leave_vdso(cgroup: &Path, pids: &[i32]) -> io::Result<Option<i32>> {
    if !anybody_is_there(pids) {
        return Ok(None);
    }
    let codes: HashMap<i32, Vec<Range<u64>>> = pids.iter().map(|pid| (*pid, vdso(*pid))).collect();
    let stays = lead_out(cgroup, |pid, tid| {
        let at = instruction(pid.as_raw(), tid);
        at.is_some_and(|at| codes.get(&pid.as_raw()).is_some_and(|code| is_in(code, at)))
    })?;
    Ok(stays.map(Pid::as_raw))
}

/// Whether any thread is, of processes that stand still.
fn anybody_is_there(pids: &[i32]) -> bool {
    pids.iter().any(|&pid| {
        let mut code = None;
        let is_there =
            |tid: &Pid| instruction(pid, *tid).is_some_and(|at| is_in(code.get_or_insert_with(|| vdso(pid)), at));
        tids(Pid::from_raw(pid)).iter().any(is_there)
    })
}

fn is_in(code: &[Range<u64>], at: u64) -> bool {
    code.iter().any(|range| range.contains(&at))
}

/// Where a thread goes on that may be there: it is in no call, or in one that the vDSO makes.
fn instruction(pid: i32, tid: Pid) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    let number: i64 = text.split_whitespace().next()?.parse().ok()?;
    let at = text.split_whitespace().next_back()?.strip_prefix("0x")?;
    (number == -1 || CALLS.contains(&number)).then(|| u64::from_str_radix(at, 16).ok()).flatten()
}

/// Where a process has it: more than one, if it was moved from another kernel.
pub(crate) fn vdso(pid: i32) -> Vec<Range<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let lines = maps.lines().filter(|line| line.ends_with("[vdso]"));
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    lines
        .filter_map(|line| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            Some(number(start)?..number(end)?)
        })
        .collect()
}
