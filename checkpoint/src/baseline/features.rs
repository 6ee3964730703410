//! Features of processors, by the names that /proc/cpuinfo gives them, and how each runtime calls them.

use std::collections::BTreeSet;

/// Levels of x86-64 and what each adds to the one before (x86-64 psABI, "micro-architecture levels").
pub const LEVELS: [(&str, &[&str]); 4] = [
    ("x86-64-v1", &["cmov", "cx8", "fpu", "fxsr", "lm", "mmx", "sse", "sse2", "syscall"]),
    ("x86-64-v2", &["cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"]),
    ("x86-64-v3", &["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"]),
    ("x86-64-v4", &["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"]),
];

/// All features of a level; none if there is no such level.
pub(super) fn level(name: &str) -> Option<BTreeSet<String>> {
    let at = LEVELS.iter().position(|(level, _)| *level == name)?;
    Some(LEVELS[..=at].iter().flat_map(|(_, added)| added.iter().map(|f| (*f).to_owned())).collect())
}

/// A feature that runtimes look for at their start, and can be told to overlook.
pub(super) struct Feature {
    /// In /proc/cpuinfo.
    pub name: &'static str,
    /// In the C library's `glibc.cpu.hwcaps` (sysdeps/x86/cpu-tunables.c; those that 2.36 and 2.41 obey). Where it knows no
    /// name, it does not use the feature, or only together with one that it has a name for. `AVX_Fast_Unaligned_Load` is a
    /// preference by its kind, but memmove and its relatives use AVX by its word alone.
    pub glibc: &'static [&'static str],
    /// In OpenSSL's `OPENSSL_ia32cap`: vector and bit (OPENSSL_ia32cap(3)).
    pub openssl: Option<(usize, u32)>,
    /// In Go's `GODEBUG`, after `cpu.` (internal/cpu); names that Go 1.12 had already.
    pub go: Option<&'static str>,
}

const fn of(
    name: &'static str,
    glibc: &'static [&'static str],
    openssl: Option<(usize, u32)>,
    go: Option<&'static str>,
) -> Feature {
    Feature { name, glibc, openssl, go }
}

/// OpenSSL's vectors are words of CPUID: 0 is leaf 1 EDX and, from bit 32, ECX; 1 is leaf 7 EBX and ECX; 2 is leaf 7 EDX and
/// subleaf 1 EAX; 3 is its EDX. XOP has a place in vector 0 that CPUID uses for something else. Its bits for XSAVE are left
/// alone: without them it takes the processor for another one.
pub(super) const FEATURES: [Feature; 54] = [
    of("pni", &[], Some((0, 32)), Some("sse3")),
    of("pclmulqdq", &[], Some((0, 33)), Some("pclmulqdq")),
    of("ssse3", &["SSSE3"], Some((0, 41)), Some("ssse3")),
    of("xop", &[], Some((0, 43)), None),
    of("fma", &["FMA"], Some((0, 44)), Some("fma")),
    of("sse4_1", &["SSE4_1"], Some((0, 51)), Some("sse41")),
    of("sse4_2", &["SSE4_2"], Some((0, 52)), Some("sse42")),
    of("movbe", &["MOVBE"], Some((0, 54)), None),
    of("popcnt", &["POPCNT"], Some((0, 55)), Some("popcnt")),
    of("aes", &[], Some((0, 57)), Some("aes")),
    of("xsave", &["XSAVE"], None, None),
    of("xsavec", &["XSAVEC"], None, None),
    of("avx", &["AVX", "AVX_Fast_Unaligned_Load"], Some((0, 60)), Some("avx")),
    of("f16c", &[], Some((0, 61)), None),
    of("rdrand", &[], Some((0, 62)), None),
    of("abm", &["LZCNT"], None, None),
    of("fma4", &["FMA4"], None, None),
    of("bmi1", &["BMI1"], Some((1, 3)), Some("bmi1")),
    of("hle", &[], Some((1, 4)), None),
    of("avx2", &["AVX2"], Some((1, 5)), Some("avx2")),
    of("bmi2", &["BMI2"], Some((1, 8)), Some("bmi2")),
    of("rtm", &["RTM"], Some((1, 11)), None),
    of("avx512f", &["AVX512F"], Some((1, 16)), None),
    of("avx512dq", &["AVX512DQ"], Some((1, 17)), None),
    of("rdseed", &[], Some((1, 18)), None),
    of("adx", &[], Some((1, 19)), Some("adx")),
    of("avx512ifma", &[], Some((1, 21)), None),
    of("avx512pf", &["AVX512PF"], Some((1, 26)), None),
    of("avx512er", &["AVX512ER"], Some((1, 27)), None),
    of("avx512cd", &["AVX512CD"], Some((1, 28)), None),
    of("sha_ni", &[], Some((1, 29)), None),
    of("avx512bw", &["AVX512BW"], Some((1, 30)), None),
    of("avx512vl", &["AVX512VL"], Some((1, 31)), None),
    of("avx512vbmi", &[], Some((1, 33)), None),
    of("avx512_vbmi2", &[], Some((1, 38)), None),
    of("gfni", &[], Some((1, 40)), None),
    of("vaes", &[], Some((1, 41)), None),
    of("vpclmulqdq", &[], Some((1, 42)), None),
    of("avx512_vnni", &[], Some((1, 43)), None),
    of("avx512_bitalg", &[], Some((1, 44)), None),
    of("avx512_vpopcntdq", &[], Some((1, 46)), None),
    of("avx512_vp2intersect", &[], Some((2, 8)), None),
    of("amx_bf16", &[], Some((2, 22)), None),
    of("avx512_fp16", &[], Some((2, 23)), None),
    of("amx_tile", &[], Some((2, 24)), None),
    of("amx_int8", &[], Some((2, 25)), None),
    of("sha512", &[], Some((2, 32)), None),
    of("sm3", &[], Some((2, 33)), None),
    of("sm4", &[], Some((2, 34)), None),
    of("avx_vnni", &[], Some((2, 36)), None),
    of("avx512_bf16", &[], Some((2, 37)), None),
    of("avx_ifma", &[], Some((2, 55)), None),
    of("avx10", &[], Some((3, 19)), None),
    of("apx", &[], Some((3, 21)), None),
];

/// Of the names in /proc/cpuinfo (arch/x86/include/asm/cpufeatures.h), those of instructions that programs can execute. The rest
/// (virtualisation, power, mitigations) differs between kernels and hosts without harm.
#[must_use]
pub fn gives_instructions(flag: &str, arch: &str) -> bool {
    const PREFIXES: [&str; 12] =
        ["3dnow", "aes", "amx", "apx", "avx", "bmi", "fma", "mmx", "sha", "sse", "ssse", "xsave"];
    const NAMES: [&str; 47] = [
        "abm",
        "adx",
        "clflush",
        "clflushopt",
        "cldemote",
        "clwb",
        "clzero",
        "cmov",
        "cmpccxadd",
        "cx16",
        "cx8",
        "enqcmd",
        "f16c",
        "fpu",
        "fsgsbase",
        "fxsr",
        "gfni",
        "hle",
        "lahf_lm",
        "lm",
        "lwp",
        "misalignsse",
        "movbe",
        "movdir64b",
        "movdiri",
        "movrs",
        "mwaitx",
        "ospke",
        "pclmulqdq",
        "pku",
        "pni",
        "popcnt",
        "rdpid",
        "rdrand",
        "rdseed",
        "rdtscp",
        "rtm",
        "serialize",
        "sm3",
        "sm4",
        "syscall",
        "tbm",
        "tsxldtrk",
        "vaes",
        "vpclmulqdq",
        "waitpkg",
        "xop",
    ];
    // Elsewhere all names are of instructions.
    !arch.starts_with("x86") || NAMES.contains(&flag) || PREFIXES.iter().any(|p| flag.starts_with(p))
}
