//! `restart_block` of threads (include/linux/restart_block.h): what the kernel notes of an interrupted call with a time limit.
//!
//! No file of /proc has it. A BPF iterator prints it for every thread; where its members are, the kernel's own description of its
//! types tells.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use crate::bpf::{FRAME, OBJECT, WORD, add, call, copy, for_each, load, set, store};
use crate::btf::Btf;
use crate::sys;

/// Until when which call waits, in nanoseconds of the host's CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// nanosleep(2), clock_nanosleep(2).
    Sleep(i64),
    /// poll(2).
    Poll(i64),
    /// futex(2).
    Futex(i64),
}

/// Those of the host's threads that have such calls, by number; of a thread that has gone on since, an old one.
///
/// # Errors
/// This kernel does not tell: it has no BPF iterators (Linux 5.8) or no description of itself.
pub(super) fn all() -> io::Result<HashMap<i32, Block>> {
    let reader = reader().ok_or(io::ErrorKind::Unsupported)?;
    let mut text = String::new();
    sys::iterate(&reader.iterator)?.read_to_string(&mut text)?;
    Ok(text.lines().filter_map(|line| reader.places.block(line)).collect())
}

/// Whether this kernel tells; the first answer takes some 10 ms, later ones none.
pub(super) fn are_told() -> bool {
    reader().is_some()
}

struct Reader {
    iterator: OwnedFd,
    places: Places,
}

fn reader() -> Option<&'static Reader> {
    static READER: OnceLock<Option<Reader>> = OnceLock::new();
    READER
        .get_or_init(|| {
            let types = std::fs::read("/sys/kernel/btf/vmlinux").ok()?;
            let btf = Btf::parse(&types)?;
            let places = Places::of(&btf)?;
            let program = sys::bpf_iterator_program(&places.program(), btf.function("bpf_iter_task")?);
            let iterator = program.and_then(|program| sys::bpf_iterator(&program, None));
            let iterator = iterator.inspect_err(|e| tracing::debug!(error = %e, "no BPF iterators")).ok()?;
            Some(Reader { iterator, places })
        })
        .as_ref()
}

/// Where things are: in `task_struct` in bytes, in `restart_block` in words.
struct Places {
    pid: usize,
    block: usize,
    words: usize,
    function: usize,
    sleep: usize,
    poll: [usize; 2],
    futex: usize,
}

impl Places {
    fn of(btf: &Btf<'_>) -> Option<Self> {
        let word = |path: &[&str]| btf.offset("restart_block", path).filter(|at| at % 8 == 0).map(|at| at / 8);
        // One member, since some Linux 6.18.
        let seconds = word(&["poll", "tv_sec"]).or_else(|| word(&["poll", "end_time", "tv_sec"]))?;
        let nanoseconds = word(&["poll", "tv_nsec"]).or_else(|| word(&["poll", "end_time", "tv_nsec"]))?;
        Some(Self {
            pid: btf.offset("task_struct", &["pid"])?,
            block: btf.offset("task_struct", &["restart_block"])?,
            // As many as bpf_seq_printf() takes, but one.
            words: btf.size("restart_block").filter(|size| size / 8 <= 11)? / 8,
            function: word(&["fn"])?,
            sleep: word(&["nanosleep", "expires"])?,
            poll: [seconds, nanoseconds],
            futex: word(&["futex", "time"])?,
        })
    }

    /// For each task: prints its number, then the words of its block, the function by name.
    fn program(&self) -> Vec<u64> {
        const PROBE_READ_KERNEL: i32 = 113;
        let numbers: Vec<&str> =
            (0..self.words).map(|word| if word == self.function { "%ps" } else { "%llx" }).collect();
        let data_size = 8 * (1 + self.words as i32);
        let data = -data_size as i16;
        let task = 8;
        let body = [
            load(WORD, 1, OBJECT, self.pid as i16),
            store(FRAME, data, 1),
            copy(1, FRAME),
            add(1, i32::from(data) + 8),
            set(2, data_size - 8),
            copy(3, OBJECT),
            add(3, self.block as i32),
            call(PROBE_READ_KERNEL),
        ];
        for_each(task, &body, &format!("%d {}\n", numbers.join(" ")), 1 + self.words)
    }

    /// A line that the program has printed.
    fn block(&self, line: &str) -> Option<(i32, Block)> {
        let mut words = line.split(' ');
        let tid = words.next()?.parse().ok()?;
        let words: Vec<&str> = words.collect();
        // Of members that the call did not set, anything is there.
        let number =
            |word: usize| u64::from_str_radix(words.get(word)?, 16).ok().map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        let block = match *words.get(self.function)? {
            "hrtimer_nanosleep_restart" => Block::Sleep(number(self.sleep)?),
            "do_restart_poll" => {
                let [seconds, nanoseconds] = self.poll;
                Block::Poll(number(seconds)?.saturating_mul(1_000_000_000).saturating_add(number(nanoseconds)?))
            }
            "futex_wait_restart" => Block::Futex(number(self.futex)?),
            _ => return None,
        };
        Some((tid, block))
    }
}
