#![allow(clippy::unwrap_used)]

use super::*;
use crate::sys::capabilities::{DEFAULT, drop_to};
use checkpoint::baseline::OLDEST_KERNEL;
use std::process::Command;
use std::time::{Duration, Instant};

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

fn answer_with(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

fn default_profile() -> BpfProgram {
    profile(&DEFAULT.into(), OLDEST_KERNEL).unwrap()
}

/// What the kernel would do: a filter's machine, as far as the profile uses it.
fn run(program: &[sock_filter], call: i64, arguments: [u64; 6]) -> u32 {
    let architecture = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
    let mut data = vec![call as u32, architecture, 0, 0];
    data.extend(arguments.iter().flat_map(|argument| [*argument as u32, (argument >> 32) as u32]));
    let (mut position, mut accumulator) = (0, 0);
    loop {
        let instruction = &program[position];
        let jump = |taken| usize::from(if taken { instruction.jt } else { instruction.jf });
        position += 1;
        match instruction.code {
            0x20 => accumulator = data[instruction.k as usize / 4],
            0x54 => accumulator &= instruction.k,
            0x05 => position += instruction.k as usize,
            0x15 => position += jump(accumulator == instruction.k),
            0x25 => position += jump(accumulator > instruction.k),
            0x35 => position += jump(accumulator >= instruction.k),
            0x06 => return instruction.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn answer(call: i64, arguments: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    run(&default_profile(), call, all)
}

#[test]
fn dangerous_calls_are_refused() {
    for call in [
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_fsconfig,
        libc::SYS_fspick,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_mount_setattr,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_open_by_handle_at,
        libc::SYS_quotactl,
        libc::SYS_quotactl_fd,
        libc::SYS_acct,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_clock_adjtime,
        libc::SYS_adjtimex,
        libc::SYS_fanotify_init,
        libc::SYS_syslog,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_kcmp,
        libc::SYS_mbind,
        libc::SYS_vhangup,
        libc::SYS_lookup_dcookie,
    ] {
        assert_eq!(answer(call, &[]), answer_with(libc::EPERM), "call {call}");
    }
    #[cfg(target_arch = "x86_64")]
    for call in [
        libc::SYS_iopl,
        libc::SYS_ioperm,
        libc::SYS_kexec_file_load,
        libc::SYS_uselib,
        libc::SYS_ustat,
        libc::SYS_sysfs,
    ] {
        assert_eq!(answer(call, &[]), answer_with(libc::EPERM), "call {call}");
    }
}

#[test]
fn what_cannot_move_seems_not_to_exist() {
    // fchmodat2, futex_wake, mseal, and numbers of the x32 interface.
    let newer = [451, 452, 454, 462, 469, 500, 0x4000_0000, 0x4000_0000 + 520, -1];
    for call in calls::ABSENT.iter().copied().chain([libc::SYS_rseq]).chain(newer) {
        assert_eq!(answer(call, &[]), answer_with(libc::ENOSYS), "call {call:#x}");
    }
    assert_eq!(answer(libc::SYS_futex_waitv, &[]), ALLOW);
    let (anonymous, private) = (0x20, 0x02);
    assert_eq!(answer(libc::SYS_mmap, &[0, 4096, 3, anonymous | MAP_DROPPABLE]), answer_with(libc::EINVAL));
    assert_eq!(answer(libc::SYS_mmap, &[0, 4096, 3, anonymous | private]), ALLOW);
    assert_eq!(answer(libc::SYS_madvise, &[0, 4096, 102]), answer_with(libc::EINVAL));
    assert_eq!(answer(libc::SYS_madvise, &[0, 4096, libc::MADV_DONTNEED as u64]), ALLOW);
}

#[test]
fn what_a_pod_may_use_grows_with_the_oldest_kernel_that_it_goes_to() {
    let droppable = [0, 4096, 3, 0x20 | MAP_DROPPABLE, 0, 0];
    // Call, arguments, the first kernel of a pod that may use it, what others get. Beyond the list: map_shadow_stack,
    // statmount, mseal, and what comes after it.
    let cases = [
        (450, [0; 6], (6, 1), libc::ENOSYS),
        (451, [0; 6], (6, 5), libc::ENOSYS),
        (452, [0; 6], (6, 6), libc::ENOSYS),
        (453, [0; 6], (99, 0), libc::ENOSYS),
        (454, [0; 6], (6, 7), libc::ENOSYS),
        (456, [0; 6], (6, 7), libc::ENOSYS),
        (457, [0; 6], (99, 0), libc::ENOSYS),
        (462, [0; 6], (99, 0), libc::ENOSYS),
        (466, [0; 6], (6, 13), libc::ENOSYS),
        (467, [0; 6], (99, 0), libc::ENOSYS),
        (0x4000_0000, [0; 6], (99, 0), libc::ENOSYS),
        (libc::SYS_rseq, [0; 6], (6, 12), libc::ENOSYS),
        (libc::SYS_mmap, droppable, (6, 11), libc::EINVAL),
        (libc::SYS_landlock_create_ruleset, [0; 6], (99, 0), libc::ENOSYS),
    ];
    for oldest in [(6, 1), (6, 5), (6, 6), (6, 7), (6, 11), (6, 12), (6, 13), (7, 2)] {
        let program = profile(&DEFAULT.into(), oldest.into()).unwrap();
        for (call, arguments, since, refusal) in cases {
            // set_mempolicy_home_node is known everywhere, and forbidden.
            let allowed = if call == 450 { answer_with(libc::EPERM) } else { ALLOW };
            let expected = if oldest >= since { allowed } else { answer_with(refusal) };
            assert_eq!(run(&program, call, arguments), expected, "call {call:#x} for {oldest:?} and later");
        }
        assert_eq!(run(&program, libc::SYS_mount, [0; 6]), answer_with(libc::EPERM));
    }
}

#[test]
fn processes_and_threads_but_no_namespaces() {
    let thread = 0x3d_0f00;
    assert_eq!(answer(libc::SYS_clone, &[thread]), ALLOW);
    assert_eq!(answer(libc::SYS_clone, &[libc::SIGCHLD as u64]), ALLOW);
    for bit in [17, 25, 26, 27, 28, 29, 30] {
        assert_eq!(answer(libc::SYS_clone, &[thread | 1 << bit]), answer_with(libc::EPERM), "bit {bit}");
    }
}

#[test]
fn sockets_that_can_be_moved() {
    for family in FAMILIES {
        assert_eq!(answer(libc::SYS_socket, &[family as u64, 1, 0]), ALLOW, "family {family}");
    }
    // AX25, TIPC, ALG, CAN, BLUETOOTH, VSOCK, SMC, XDP
    for family in [3, 30, 38, 29, 31, 40, 43, 44] {
        assert_eq!(answer(libc::SYS_socket, &[family, 1, 0]), answer_with(libc::EAFNOSUPPORT), "family {family}");
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        assert_eq!(answer(libc::SYS_socket, &[family as u64, 1, libc::IPPROTO_TCP as u64]), ALLOW);
        assert_eq!(
            answer(libc::SYS_socket, &[family as u64, 1, libc::IPPROTO_MPTCP as u64]),
            answer_with(libc::EPROTONOSUPPORT)
        );
    }
}

#[test]
fn terminals_cannot_be_typed_into() {
    for request in [libc::TIOCSTI, libc::TIOCLINUX, 0x5423] {
        // The kernel ignores the upper half, so it must not help to set it.
        for request in [request, request | 1 << 40] {
            assert_eq!(answer(libc::SYS_ioctl, &[0, request]), answer_with(libc::EPERM), "{request:#x}");
        }
    }
    assert_eq!(answer(libc::SYS_ioctl, &[0, libc::TIOCGWINSZ]), ALLOW);
}

#[test]
fn personality_only_without_surprises() {
    for persona in PERSONALITIES {
        assert_eq!(answer(libc::SYS_personality, &[persona]), ALLOW);
    }
    // READ_IMPLIES_EXEC, ADDR_NO_RANDOMIZE
    for persona in [0x0040_0000, 0x0004_0000] {
        assert_eq!(answer(libc::SYS_personality, &[persona]), answer_with(libc::EPERM));
    }
}

#[test]
fn capabilities_bring_their_calls() {
    let program = profile(&[Capability::CAP_SYS_ADMIN].into(), OLDEST_KERNEL).unwrap();
    for call in [libc::SYS_mount, libc::SYS_unshare, libc::SYS_setns] {
        assert_eq!(run(&program, call, [0; 6]), ALLOW);
    }
    assert_eq!(run(&program, libc::SYS_clone, [NAMESPACES, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(run(&program, libc::SYS_chroot, [0; 6]), answer_with(libc::EPERM));
    assert_eq!(answer(libc::SYS_chroot, &[]), ALLOW);
    let all = profile(&caps::all(), OLDEST_KERNEL).unwrap();
    for call in
        [libc::SYS_init_module, libc::SYS_bpf, libc::SYS_kexec_load, libc::SYS_clock_settime, libc::SYS_userfaultfd]
    {
        assert_eq!(run(&all, call, [0; 6]), answer_with(libc::EPERM), "call {call}");
    }
}

#[test]
fn another_architecture_is_killed() {
    let mut program = default_profile();
    // The same program, seen from a caller of another architecture.
    for instruction in &mut program {
        if instruction.k == 0xc000_003e || instruction.k == 0xc000_00b7 {
            instruction.k = 0x4000_0003;
        }
    }
    assert_eq!(run(&program, libc::SYS_read, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
}

/// The kernel translates it for each process that is restored.
#[test]
fn what_is_always_allowed_is_found_by_halving() {
    let sets: [&[u32]; 6] = [&[], &[0], &[5], &[0, 1, 2, 7, 8, 300], &[1, 3, 5, 7, 9], &[LAST_CALL]];
    for calls in sets.map(|calls| calls.iter().copied().collect::<BTreeSet<u32>>()) {
        let mut program = allow(&calls);
        program.push(instruction(RETURN, 0, 0, answer_with(libc::EPERM)));
        for call in 0..2 * LAST_CALL {
            let wanted = if calls.contains(&call) { ALLOW } else { answer_with(libc::EPERM) };
            assert_eq!(run(&program, call.into(), [0; 6]), wanted, "{call} of {calls:?}");
        }
    }
    let length = default_profile().len();
    assert!(length < 600, "{length} instructions");
}

#[test]
fn compiling_is_cheap() {
    let begin = Instant::now();
    let program = default_profile();
    assert!(begin.elapsed() < Duration::from_millis(50), "{:?}", begin.elapsed());
    assert!(program.len() < 4096, "{} instructions", program.len());
}

/// The real thing, in the order of the module's text, without no_new_privs: a shell with pipes and children still works,
/// and the kernel answers as the profile says.
#[test]
fn programs_run_under_the_filter() {
    std::thread::spawn(|| {
        install(&default_profile()).unwrap();
        drop_to(&DEFAULT.into()).unwrap();
        let script = "grep -E 'Seccomp:|NoNewPrivs:' /proc/self/status; for i in 1 2 3; do echo $i | sort; done; mkfifo $0 && rm $0; unshare -U true 2>&1";
        let fifo = std::env::temp_dir().join(format!("seccomp-fifo-{}", std::process::id()));
        let output = Command::new("sh").args(["-c", script]).arg(fifo).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("NoNewPrivs:\t0\nSeccomp:\t2\n1\n2\n3\n"), "{text}");
        assert!(text.contains("Operation not permitted"), "{text}");
        // SAFETY: an invalid socket, or none.
        let mptcp = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) };
        assert_eq!((mptcp, Errno::last()), (-1, Errno::EPROTONOSUPPORT));
        // SAFETY: a request without arguments.
        let clone3 = unsafe { libc::syscall(libc::SYS_clone3, 0, 0) };
        assert_eq!((clone3, Errno::last()), (-1, Errno::ENOSYS));
        assert!(install(&default_profile()).is_err(), "without SYS_ADMIN and without no_new_privs");
    })
    .join()
    .unwrap();
}
