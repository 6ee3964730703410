//! The few questions to the kernel and the processor that no safe crate asks. Every unsafe block of this module tree is here.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::libc;

use super::{Clock, HostError};

/// The wall clock and whether something keeps it right.
pub(super) fn clock() -> Result<Clock, HostError> {
    // SAFETY: timex is plain integers, for which zero is a value.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole timex; modes is 0, so the kernel only fills it in.
    if unsafe { libc::adjtimex(&mut timex) } < 0 {
        return Err(HostError::Call { call: "adjtimex", source: std::io::Error::last_os_error() });
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(Clock {
        unix_us: i64::try_from(now.as_micros()).unwrap_or(i64::MAX),
        synchronised: timex.status & libc::STA_UNSYNC == 0,
    })
}

/// A page that was just written has its soft-dirty bit (55) set, if the kernel has such a bit
/// (Documentation/admin-guide/mm/soft-dirty.rst).
pub(crate) fn has_soft_dirty_bits() -> bool {
    let page = rustix::param::page_size();
    let fresh = vec![1u8; 2 * page];
    let index = (fresh.as_ptr() as usize + page) / page;
    let mut entry = [0u8; 8];
    let read = File::open("/proc/self/pagemap").and_then(|f| f.read_exact_at(&mut entry, index as u64 * 8));
    drop(std::hint::black_box(fresh));
    read.is_ok() && u64::from_ne_bytes(entry) & (1 << 55) != 0
}

/// Whether PAGEMAP_SCAN is known: an empty range is scanned (Documentation/admin-guide/mm/pagemap.rst).
pub(super) fn pagemap_scan() -> bool {
    /// `struct pm_scan_arg` of linux/fs.h: twelve 64-bit numbers, the first its own size.
    const ARG_BYTES: u64 = 96;
    const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610u32 as libc::Ioctl;
    let Ok(pagemap) = File::open("/proc/self/pagemap") else {
        return false;
    };
    let mut arg = [0u64; 12];
    arg[0] = ARG_BYTES;
    // SAFETY: the request carries the size 96, which is that of `arg`; the range and the output vector are empty.
    let answer = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, arg.as_mut_ptr()) };
    answer >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOTTY)
}

/// Feature words of CPUID in the order of [`WORDS`], and the bytes of extended state now switched on.
#[cfg(target_arch = "x86_64")]
pub(super) fn cpuid() -> (Vec<u32>, u32) {
    use std::arch::x86_64::__cpuid_count;
    // CPUID is there on every x86-64 processor. Older Rust calls the function unsafe, newer does not.
    #[allow(unused_unsafe)]
    // SAFETY: see above.
    let ask = |leaf, sub| unsafe { __cpuid_count(leaf, sub) };
    let (highest, extended) = (ask(0, 0).eax, ask(0x8000_0000, 0).eax);
    let words = WORDS.iter().map(|&(leaf, sub, register, mask)| {
        // Beyond the highest leaf, Intel answers with the data of the highest one.
        let known = if leaf >= 0x8000_0000 { leaf <= extended } else { leaf <= highest };
        let known = known && (sub == 0 || leaf != 7 || sub <= ask(7, 0).eax);
        let answer = ask(leaf, sub);
        let word = [answer.eax, answer.ebx, answer.ecx, answer.edx][register];
        if known { word & mask } else { 0 }
    });
    let xsave = if highest >= 0xd { ask(0xd, 0).ebx } else { 0 };
    (words.collect(), xsave)
}

/// No CPUID here.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn cpuid() -> (Vec<u32>, u32) {
    (Vec::new(), 0)
}

/// Leaf, subleaf, register (a b c d), and the bits that give instructions to programs: virtualisation, power and mitigation
/// bits differ between hosts without harm. Intel SDM volume 2A (CPUID), AMD APM volume 3 appendix E.
#[cfg(target_arch = "x86_64")]
const WORDS: [(u32, u32, usize, u32); 10] = [
    // sse3 pclmul ssse3 fma cx16 sse4.1 sse4.2 movbe popcnt aes xsave osxsave avx f16c rdrand.
    (1, 0, 2, bits(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 27, 28, 29, 30])),
    // fpu tsc cx8 sep cmov clflush mmx fxsr sse sse2.
    (1, 0, 3, bits(&[0, 4, 8, 11, 15, 19, 23, 24, 25, 26])),
    // fsgsbase bmi1 hle avx2 bmi2 rtm mpx avx512(f dq) rdseed adx avx512ifma clflushopt clwb avx512(pf er cd) sha avx512(bw vl).
    (7, 0, 1, bits(&[0, 3, 4, 5, 8, 11, 14, 16, 17, 18, 19, 21, 23, 24, 26, 27, 28, 29, 30, 31])),
    // prefetchwt1 vbmi pku ospke waitpkg vbmi2 gfni vaes vpclmul vnni bitalg vpopcntdq rdpid kl cldemote movdiri movdir64b enqcmd.
    (7, 0, 2, bits(&[0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 22, 23, 25, 27, 28, 29])),
    // avx512(4vnniw 4fmaps) uintr vp2intersect serialize tsxldtrk amx-bf16 avx512_fp16 amx-tile amx-int8.
    (7, 0, 3, bits(&[2, 3, 5, 8, 14, 16, 22, 23, 24, 25])),
    // sha512 sm3 sm4 rao-int avx-vnni avx512-bf16 cmpccxadd amx-fp16 avx-ifma movrs.
    (7, 1, 0, bits(&[0, 1, 2, 3, 4, 5, 7, 21, 23, 31])),
    // avx-vnni-int8 avx-ne-convert amx-complex avx-vnni-int16 prefetchi user_msr avx10 apx.
    (7, 1, 3, bits(&[4, 5, 8, 10, 14, 15, 19, 21])),
    // xsaveopt xsavec xgetbv1.
    (0xd, 1, 0, bits(&[0, 1, 2])),
    // lahf lzcnt sse4a misalignsse 3dnowprefetch xop lwp fma4 tbm mwaitx.
    (0x8000_0001, 0, 2, bits(&[0, 5, 6, 7, 8, 11, 15, 16, 21, 29])),
    // syscall mmxext rdtscp long-mode 3dnowext 3dnow.
    (0x8000_0001, 0, 3, bits(&[11, 22, 27, 29, 30, 31])),
];

#[cfg(target_arch = "x86_64")]
const fn bits(set: &[u32]) -> u32 {
    let (mut word, mut at) = (0, 0);
    while at < set.len() {
        word |= 1 << set[at];
        at += 1;
    }
    word
}
