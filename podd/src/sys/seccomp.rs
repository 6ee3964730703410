//! The system calls that a pod may make: an allow-list in the spirit of Docker's default profile.
//!
//! **Order**, in the pod's first process, inside its user namespace: `no_new_privs` (unless the pod wants set-uid
//! programs to work), [`install`], [`drop_to`](super::capabilities::drop_to), exec. Without `no_new_privs` the kernel
//! lets only a thread with SYS_ADMIN in its user namespace install a filter, so it must come before the drop; the
//! filter allows all that the rest needs. No threads after it, before exec: glibc aborts if one thread has rseq and the
//! next does not get it.
//!
//! **What a refused call answers.** EPERM, as if for lack of privilege. But ENOSYS, so that programs fall back to
//! something older, for
//! - calls newer than the oldest kernel that the pod may move to: a program that found one on its first host would miss it
//!   on the next;
//! - calls whose effect CRIU cannot carry over (see [`calls::ABSENT`]), or not to so old a kernel: rseq, MAP_DROPPABLE;
//! - clone3, whose flags lie in memory, out of a filter's sight. libc uses clone instead, whose flags are checked.
//!
//! **ptrace is allowed**: since Linux 4.8 a tracer cannot change a call after it was filtered, and the pod's PID and
//! user namespaces hold nobody else to trace. Debuggers, and crash handlers that attach to their own process, work.
//!
//! 32-bit programs are killed: their calls have other numbers, and nothing checks those.

use std::collections::{BTreeMap, BTreeSet};

use caps::{Capability, CapsHashSet};
use checkpoint::baseline::{ANY_RSEQ, DROPPABLE, KernelVersion};
use nix::errno::Errno;
use nix::libc;
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, BpfProgramRef, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

mod calls;

/// Calls and what must be true of their arguments; several rules are alternatives, none means always.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// set_mempolicy_home_node, the last call of Linux 6.1, the least baseline. (Numbers above 400 are the same on all
/// architectures.)
const LAST_CALL: u32 = 450;
/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET. (NEWTIME cannot be given to clone.)
const NAMESPACES: u64 = 0x7e02_0000;
const FAMILIES: [i32; 5] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET];
/// SCTP, SMC and MPTCP: CRIU cannot dump them. Go and others fall back to TCP.
const PROTOCOLS: [u64; 3] = [132, 256, 262];
/// Typing into a terminal (TIOCSTI, and TIOCLINUX's paste), and line disciplines, which load kernel modules.
const TERMINAL_REQUESTS: [u64; 3] = [0x5412, 0x541c, 0x5423];
/// MAP_DROPPABLE as a map type, Linux 6.11 (vDSO getrandom asks for it and can do without).
const MAP_DROPPABLE: u64 = 0x08;
const MAP_TYPE: u64 = 0x0f;
/// MADV_GUARD_INSTALL and MADV_GUARD_REMOVE, Linux 6.13 (glibc 2.42 asks for them and can do without).
const GUARD_ADVICE: [u64; 2] = [102, 103];
/// Personalities that Docker allows too: Linux and its 32-bit and UNAME26 variants, and the question which it is.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The profile could not be made a program.
    #[error("cannot compile the seccomp profile")]
    Compile(#[from] BackendError),
    /// The kernel did not take it.
    #[error("cannot install the seccomp filter (needs no_new_privs, or SYS_ADMIN in the user namespace)")]
    Install(#[source] Errno),
}

/// The filter for a pod that keeps these capabilities. Some calls are allowed only along with the capability that they
/// need anyway: mount and namespaces with SYS_ADMIN, chroot with SYS_CHROOT ... Some are absent on behalf of the oldest
/// kernel that the pod may go to. Takes less than a millisecond.
pub fn profile(kept: &CapsHashSet, oldest: KernelVersion) -> Result<BpfProgram, SeccompError> {
    // Each part refuses something with an error of its own and lets the rest go on to the next one.
    let parts = [
        refuse(absent(oldest).map(|call| (call, vec![])).collect(), libc::ENOSYS)?,
        refuse(not_portable(oldest)?, libc::EINVAL)?,
        refuse(
            Rules::from([(libc::SYS_socket, vec![all(FAMILIES.map(|family| (0, Ne, family as u64)))?])]),
            libc::EAFNOSUPPORT,
        )?,
        refuse(Rules::from([(libc::SYS_socket, any(2, PROTOCOLS)?)]), libc::EPROTONOSUPPORT)?,
    ];
    let newer =
        || calls::NEWER.iter().filter(|(_, since)| *since <= oldest).flat_map(|(calls, _)| calls.iter().copied());
    let mut program = unknown_calls(newer());
    for part in parts {
        append(&mut program, part);
    }
    let mut allowed = allowed(kept)?;
    allowed.extend(newer().map(|call| (call, vec![])));
    if oldest >= ANY_RSEQ {
        allowed.insert(libc::SYS_rseq, vec![]);
    }
    let (always, sometimes): (Rules, Rules) = allowed.into_iter().partition(|(_, rules)| rules.is_empty());
    program.extend(allow(&always.into_keys().map(|call| call as u32).collect()));
    program.extend(compile(sometimes, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)?);
    Ok(program)
}

/// Applies a filter to the current thread, for good. Does not set `no_new_privs`: see the order above.
pub fn install(program: BpfProgramRef<'_>) -> Result<(), SeccompError> {
    // Not by seccompiler, which would set no_new_privs.
    let length = program.len().try_into().map_err(|_| BackendError::FilterTooLarge(program.len()))?;
    // Same layout: seccompiler only derives more traits for its type.
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: the program and the structure that points to it outlive the call, and the kernel only reads them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) };
    Errno::result(result).map(drop).map_err(SeccompError::Install)
}

fn allowed(kept: &CapsHashSet) -> Result<Rules, BackendError> {
    let always = calls::ALLOWED.iter().chain(calls::ALLOWED_HERE);
    let mut rules: Rules = always.map(|call| (*call, vec![])).collect();
    for (capability, calls) in calls::WITH_CAPABILITY {
        if kept.contains(capability) {
            rules.extend(calls.iter().map(|call| (*call, vec![])));
        }
    }
    if !kept.contains(&Capability::CAP_SYS_ADMIN) {
        rules.insert(libc::SYS_clone, vec![all([(0, MaskedEq(NAMESPACES), 0)])?]);
    }
    rules.insert(libc::SYS_ioctl, vec![all(TERMINAL_REQUESTS.map(|request| (1, Ne, request)))?]);
    rules.insert(libc::SYS_personality, any(0, PERSONALITIES)?);
    Ok(rules)
}

fn absent(oldest: KernelVersion) -> impl Iterator<Item = i64> {
    calls::ABSENT.iter().copied().chain((oldest < ANY_RSEQ).then_some(libc::SYS_rseq))
}

fn not_portable(oldest: KernelVersion) -> Result<Rules, BackendError> {
    let mut rules = Rules::from([(libc::SYS_madvise, any(2, GUARD_ADVICE)?)]);
    if oldest < DROPPABLE {
        rules.insert(libc::SYS_mmap, vec![all([(3, MaskedEq(MAP_TYPE), MAP_DROPPABLE)])?]);
    }
    Ok(rules)
}

/// One rule: every condition (argument, comparison, value) holds. The low 32 bits, as all that the kernel looks at in
/// these arguments.
fn all<const N: usize>(conditions: [(u8, SeccompCmpOp, u64); N]) -> Result<SeccompRule, BackendError> {
    let conditions = conditions
        .into_iter()
        .map(|(argument, comparison, value)| SeccompCondition::new(argument, Dword, comparison, value));
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// Alternatives: the argument is one of these values.
fn any<const N: usize>(argument: u8, values: [u64; N]) -> Result<Vec<SeccompRule>, BackendError> {
    values.into_iter().map(|value| all([(argument, Eq, value)])).collect()
}

fn refuse(rules: Rules, error: i32) -> Result<BpfProgram, BackendError> {
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(error as u32))
}

fn compile(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, matched, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// Appends a part that refuses: where it allows, the program goes on behind it.
fn append(program: &mut BpfProgram, mut part: BpfProgram) {
    let length = part.len();
    for (position, instruction) in part.iter_mut().enumerate() {
        if instruction.code == RETURN && instruction.k == libc::SECCOMP_RET_ALLOW {
            *instruction = sock_filter { code: JUMP, jt: 0, jf: 0, k: (length - position - 1) as u32 };
        }
    }
    program.extend(part);
}

/// Allows these calls, whatever their arguments. Others go on behind this part.
///
/// By halving: seccompiler compares with one number after the other. The kernel translates a filter whenever one is installed, in a
/// restore for each process, and runs it for each call that it cannot decide beforehand.
fn allow(calls: &BTreeSet<u32>) -> BpfProgram {
    // From each of these numbers on, calls are allowed, or not.
    let changes = calls.iter().flat_map(|call| [*call, call + 1]);
    let changes =
        changes.filter(|at| calls.contains(at) != at.checked_sub(1).is_some_and(|before| calls.contains(&before)));
    let mut runs: Vec<(u32, bool)> = changes.map(|at| (at, calls.contains(&at))).collect();
    if !calls.contains(&0) {
        runs.insert(0, (0, false));
    }
    let mut program = vec![LOAD_NUMBER];
    halve(&runs, &mut program);
    let length = program.len();
    for (position, instruction) in program.iter_mut().enumerate().filter(|(_, instruction)| instruction.code == JUMP) {
        // Those that are not allowed.
        if instruction.k == u32::MAX {
            instruction.k = (length - position - 1) as u32;
        }
    }
    program
}

/// Finds out in which run a number is.
fn halve(runs: &[(u32, bool)], program: &mut BpfProgram) {
    let (low, high) = runs.split_at(runs.len() / 2);
    match (low, high) {
        ([], [(_, true)]) => program.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW)),
        ([], _) => program.push(instruction(JUMP, 0, 0, u32::MAX)),
        (_, [(first, _), ..]) => {
            let at = program.len();
            program.extend([instruction(AT_LEAST, 0, 1, *first), instruction(JUMP, 0, 0, 0)]);
            halve(low, program);
            // A conditional jump is too short for this.
            program[at + 1].k = (program.len() - at - 2) as u32;
            halve(high, program);
        }
        (_, []) => {}
    }
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// ENOSYS for numbers beyond [`LAST_CALL`] but these few, among them those of the x32 interface. seccompiler compares numbers
/// for equality only, so this is written by hand. (A foreign architecture's calls get this answer or die in the next part.)
fn unknown_calls(known: impl Iterator<Item = i64>) -> BpfProgram {
    let known: Vec<u32> = known.map(|call| call as u32).collect();
    // Over the rest of the list, and over the refusal.
    let over = |at: usize| (known.len() - at) as u8;
    let mut program = vec![LOAD_NUMBER, instruction(AT_LEAST, 0, over(0) + 1, LAST_CALL + 1)];
    program.extend(known.iter().enumerate().map(|(at, call)| instruction(EQUAL, over(at), 0, *call)));
    program.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32));
    program
}

const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const LOAD_NUMBER: sock_filter =
    sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: 0 };

#[cfg(test)]
mod tests;
