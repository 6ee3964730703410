//! Runs inside a pod and tries to get out of it, or to see what is outside.
//!
//! ```text
//! breakout --host-pid PID --abstract NAME --host-marker TEXT [--host-marker TEXT ...]
//! ```
//!
//! PID is a process of the host outside the pod, NAME an abstract unix socket that somebody listens on outside, TEXT
//! what must not be visible inside: the host's state path, its name. Prints one JSON object a line,
//! `{"name":"mount-tmpfs","blocked":true,"how":"EPERM"}`, and ends with 0 only if everything was blocked, 2 for wrong
//! arguments.
//!
//! Every attempt is chosen so that it does no harm if it gets through. An attempt counts as blocked only if the answer is
//! a refusal: EINVAL, say, means that the kernel looked at the request, and would have carried out a better one.

use std::process::ExitCode;

use nix::errno::Errno;

mod files;
mod kernel;
mod processes;
mod raw;
mod sight;

/// What the attempts aim at.
struct Target {
    host_pid: i32,
    abstract_name: String,
    host_markers: Vec<String>,
}

/// How an attempt ended.
struct Outcome {
    blocked: bool,
    how: String,
}

type Attempt = (&'static str, fn(&Target) -> Outcome);

/// Answers that mean "no".
const REFUSALS: [Errno; 13] = [
    Errno::EPERM,
    Errno::EACCES,
    Errno::ENOSYS,
    Errno::EROFS,
    Errno::ENOENT,
    Errno::ENOTDIR,
    Errno::ENODEV,
    Errno::ENXIO,
    Errno::ESRCH,
    Errno::ECONNREFUSED,
    Errno::EAFNOSUPPORT,
    Errno::EPROTONOSUPPORT,
    Errno::EOPNOTSUPP,
];

impl Outcome {
    fn blocked(how: impl Into<String>) -> Outcome {
        Outcome { blocked: true, how: how.into() }
    }

    fn through(how: impl Into<String>) -> Outcome {
        Outcome { blocked: false, how: how.into() }
    }

    /// Of a system call that must be refused.
    fn of<T>(result: nix::Result<T>) -> Outcome {
        match result {
            Ok(_) => Outcome::through("succeeded"),
            Err(errno) if REFUSALS.contains(&errno) => Outcome::blocked(format!("{errno:?}")),
            Err(errno) => Outcome::through(format!("{errno:?}: not a refusal")),
        }
    }

    fn of_io<T>(result: std::io::Result<T>) -> Outcome {
        Outcome::of(result.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default())))
    }

    /// Of something that must not be found.
    fn nothing(found: &[String]) -> Outcome {
        if found.is_empty() { Outcome::blocked("nothing found") } else { Outcome::through(found.join("; ")) }
    }

    /// Of several variants of one attempt: one that got through, else the last refusal.
    fn worst(outcomes: impl IntoIterator<Item = (String, Outcome)>) -> Outcome {
        let mut last = Outcome::blocked("nothing to try");
        for (what, outcome) in outcomes {
            let named = format!("{what}: {}", outcome.how);
            last = Outcome { blocked: outcome.blocked, how: named };
            if !outcome.blocked {
                break;
            }
        }
        last
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == [files::CHROOT_CHILD] {
        return files::escape_chroot();
    }
    let target = match parse(arguments.into_iter()) {
        Ok(target) => target,
        Err(reason) => {
            eprintln!("breakout: {reason}");
            return ExitCode::from(2);
        }
    };
    let mut all_blocked = true;
    for (name, attempt) in
        [files::ATTEMPTS, kernel::ATTEMPTS, processes::ATTEMPTS, sight::ATTEMPTS, kernel::LAST].concat()
    {
        let Outcome { blocked, how } = attempt(&target);
        println!("{}", serde_json::json!({ "name": name, "blocked": blocked, "how": how }));
        all_blocked &= blocked;
    }
    ExitCode::from(u8::from(!all_blocked))
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Target, String> {
    let (mut host_pid, mut abstract_name, mut host_markers) = (None, None, Vec::new());
    while let Some(name) = arguments.next() {
        let value =
            arguments.next().filter(|value| !value.is_empty()).ok_or_else(|| format!("{name} wants a value"))?;
        match name.as_str() {
            "--host-pid" => host_pid = Some(value.parse().map_err(|_| format!("{value} is no PID"))?),
            "--abstract" => abstract_name = Some(value),
            "--host-marker" => host_markers.push(value),
            _ => return Err(format!("there is no option {name}")),
        }
    }
    match (host_pid, abstract_name) {
        (Some(host_pid), Some(abstract_name)) if !host_markers.is_empty() => {
            Ok(Target { host_pid, abstract_name, host_markers })
        }
        _ => Err("--host-pid, --abstract and --host-marker are all needed".into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_refusals_count_as_blocked() {
        assert!(Outcome::of::<()>(Err(Errno::EPERM)).blocked);
        assert!(!Outcome::of::<()>(Err(Errno::EINVAL)).blocked);
        assert!(!Outcome::of(Ok(())).blocked);
        assert!(!Outcome::nothing(&["x".into()]).blocked);
    }

    #[test]
    fn one_that_got_through_is_not_hidden_by_others() {
        let outcomes = [("a", true), ("b", false), ("c", true)]
            .map(|(name, blocked)| (name.to_string(), Outcome { blocked, how: String::new() }));
        let worst = Outcome::worst(outcomes);
        assert!(!worst.blocked && worst.how.starts_with('b'));
        assert!(Outcome::worst([]).blocked);
    }

    #[test]
    fn names_are_unique() {
        let all = [files::ATTEMPTS, kernel::ATTEMPTS, processes::ATTEMPTS, sight::ATTEMPTS].concat();
        let mut names: Vec<_> = all.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn all_arguments_are_needed() {
        let words = |words: &str| parse(words.split(' ').map(String::from)).is_ok();
        assert!(words("--host-pid 7 --abstract a --host-marker b --host-marker c"));
        assert!(!words("--host-pid 7 --abstract a"));
        assert!(!words("--host-pid x --abstract a --host-marker b"));
    }
}
