//! Out by way of the kernel's own services.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::libc;

use crate::raw::{address, address_mut, call, call_that_forks, string};
use crate::{Attempt, Outcome, Target};

pub const ATTEMPTS: &[Attempt] = &[
    // No module: with the privilege, the answer would be that it is not one.
    ("init-module", |_| Outcome::of(call(libc::SYS_init_module, [address(&[0u8; 64]), 64, string(c"")]))),
    ("finit-module", finit_module),
    // No name: with the privilege, the answer would be EFAULT.
    ("delete-module", |_| Outcome::of(call(libc::SYS_delete_module, [0, 0]))),
    ("kexec", |_| Outcome::of(call(libc::SYS_kexec_load, [0, 0, 0, 0xffff]))),
    // Only what Ctrl-Alt-Del means.
    ("reboot", |_| Outcome::of(call(libc::SYS_reboot, [0xfee1_dead, 0x2812_1969, 0x89ab_cdef, 0]))),
    ("clock-settime", clock_settime),
    ("clock-adjtime", |_| {
        adjust(|timex| call(libc::SYS_clock_adjtime, [libc::CLOCK_REALTIME as usize, address_mut(timex)]))
    }),
    ("adjtimex", |_| adjust(|timex| call(libc::SYS_adjtimex, [address_mut(timex)]))),
    ("swapon", |_| Outcome::of(call(libc::SYS_swapon, [string(c"/"), 0]))),
    ("acct", |_| Outcome::of(call(libc::SYS_acct, [0]))),
    ("quotactl", |_| Outcome::of(call(libc::SYS_quotactl, [0x8000_0100, 0, 0, 0]))),
    ("syslog", |_| Outcome::of(call(libc::SYS_syslog, [3, address_mut(&mut [0u8; 64]), 64]))),
    ("sethostname", sethostname),
    #[cfg(target_arch = "x86_64")]
    ("iopl", |_| Outcome::of(call(libc::SYS_iopl, [3]))),
    ("bpf", |_| {
        Outcome::of(call(libc::SYS_bpf, [0, address(&[2u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 20]))
    }),
    ("userfaultfd", |_| Outcome::of(call(libc::SYS_userfaultfd, [1]))),
    ("perf-event-open", perf_event_open),
    ("io-uring", |_| Outcome::of(call(libc::SYS_io_uring_setup, [1, address_mut(&mut [0u8; 120])]))),
    ("keyctl", |_| Outcome::of(call(libc::SYS_keyctl, [0, -3isize as usize, 1]))),
    ("add-key", |_| {
        Outcome::of(call(libc::SYS_add_key, [string(c"user"), string(c"breakout"), address(b"x"), 1, -3isize as usize]))
    }),
    ("request-key", |_| Outcome::of(call(libc::SYS_request_key, [string(c"user"), string(c"breakout"), 0, 0]))),
    ("fanotify", |_| Outcome::of(call(libc::SYS_fanotify_init, [0, 0]))),
    ("memfd-secret", |_| Outcome::of(call(libc::SYS_memfd_secret, [0]))),
    ("clone-user", |_| {
        Outcome::of(call_that_forks(libc::SYS_clone, [(libc::CLONE_NEWUSER | libc::SIGCHLD) as usize, 0, 0, 0, 0]))
    }),
    ("clone3-user", clone3_user),
    ("setns", setns),
    ("tiocsti", |_| Outcome::of(call(libc::SYS_ioctl, [0, libc::TIOCSTI as usize, address(b"x")]))),
    ("raw-socket", |_| socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    ("raw-socket-v6", |_| socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)),
    ("packet-socket", |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0x300)),
    ("crypto-socket", |_| socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    ("vsock-socket", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("no-new-privileges", no_new_privileges),
    ("capabilities", capabilities),
];

/// To be made after all others: success changes what this process is.
pub const LAST: &[Attempt] = &[
    ("unshare-user", |_| Outcome::of(call(libc::SYS_unshare, [libc::CLONE_NEWUSER as usize]))),
    ("unshare-mount", |_| Outcome::of(call(libc::SYS_unshare, [libc::CLONE_NEWNS as usize]))),
];

fn socket(family: i32, kind: i32, protocol: i32) -> Outcome {
    Outcome::of(call(libc::SYS_socket, [family as usize, kind as usize, protocol as usize]))
}

fn finit_module(_: &Target) -> Outcome {
    match File::open("/proc/self/exe") {
        Ok(file) => Outcome::of(call(libc::SYS_finit_module, [file.as_raw_fd() as usize, string(c""), 0])),
        Err(error) => Outcome::through(format!("the attempt could not be made: {error}")),
    }
}

/// To the name that it has.
fn sethostname(_: &Target) -> Outcome {
    Outcome::of(nix::unistd::gethostname().and_then(nix::unistd::sethostname))
}

/// To the time that it is.
fn clock_settime(_: &Target) -> Outcome {
    let clock = nix::time::ClockId::CLOCK_REALTIME;
    Outcome::of(clock.now().and_then(|now| {
        let now = [now.tv_sec(), now.tv_nsec()];
        call(libc::SYS_clock_settime, [libc::CLOCK_REALTIME as usize, address(&now)])
    }))
}

/// Asks for a new offset of zero.
fn adjust(change: impl Fn(&mut [u64; 26]) -> nix::Result<i64>) -> Outcome {
    // struct timex, 208 bytes: modes first.
    let mut timex = [0u64; 26];
    timex[0] = 1;
    Outcome::of(change(&mut timex))
}

fn perf_event_open(_: &Target) -> Outcome {
    // struct perf_event_attr, version 0: a software event, 64 bytes, the CPU clock.
    let mut attributes = [0u64; 8];
    attributes[0] = 1 | 64 << 32;
    Outcome::of(call(libc::SYS_perf_event_open, [address(&attributes), 0, usize::MAX, usize::MAX, 0]))
}

fn clone3_user(_: &Target) -> Outcome {
    // struct clone_args, version 0: flags first, the signal at the end fifth.
    let mut arguments = [0u64; 8];
    arguments[0] = libc::CLONE_NEWUSER as u64;
    arguments[4] = libc::SIGCHLD as u64;
    Outcome::of(call_that_forks(libc::SYS_clone3, [address(&arguments), 64]))
}

fn setns(target: &Target) -> Outcome {
    let namespaces = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"];
    let paths = ["self".to_string(), "1".to_string(), target.host_pid.to_string()]
        .into_iter()
        .flat_map(|process| namespaces.map(|namespace| format!("/proc/{process}/ns/{namespace}")));
    Outcome::worst(paths.map(|path| {
        let outcome = match File::open(&path) {
            Ok(file) => Outcome::of(call(libc::SYS_setns, [file.as_raw_fd() as usize, 0])),
            Err(error) => Outcome::of_io::<()>(Err(error)),
        };
        (path, outcome)
    }))
}

fn no_new_privileges(_: &Target) -> Outcome {
    match nix::sys::prctl::get_no_new_privs() {
        Ok(true) => Outcome::blocked("set"),
        _ => Outcome::through("set-uid programs gain privileges"),
    }
}

/// None of those that reach the kernel itself may be in the bounding set.
fn capabilities(_: &Target) -> Outcome {
    let dangerous = [
        ("NET_ADMIN", 12),
        ("NET_RAW", 13),
        ("SYS_MODULE", 16),
        ("SYS_RAWIO", 17),
        ("SYS_PTRACE", 19),
        ("SYS_ADMIN", 21),
        ("SYS_BOOT", 22),
        ("SYS_TIME", 25),
        ("MKNOD", 27),
        ("DAC_READ_SEARCH", 2),
        ("SYSLOG", 34),
        ("PERFMON", 38),
        ("BPF", 39),
    ];
    let has = |number: usize| call(libc::SYS_prctl, [libc::PR_CAPBSET_READ as usize, number, 0, 0, 0]) == Ok(1);
    let found: Vec<String> =
        dangerous.into_iter().filter(|(_, number)| has(*number)).map(|(name, _)| name.to_string()).collect();
    Outcome::nothing(&found)
}
