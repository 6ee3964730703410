#![allow(clippy::unwrap_used)]

use super::features::FEATURES;
use super::*;

/// A processor with these flags, of an x86-64.
fn cpu(flags: impl IntoIterator<Item = String>) -> Cpu {
    Cpu { model: "m".into(), flags: flags.into_iter().collect(), cpuid: vec![1], xsave_bytes: 832, ..Cpu::default() }
}

fn of_level(name: &str) -> CpuBaseline {
    CpuBaseline { name: name.into(), features: features::level(name).unwrap() }
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn value<'a>(made: &'a Environment, name: &str) -> &'a str {
    let mut found = made.all.iter().filter(|(k, _)| k == name).map(|(_, v)| v.as_str());
    let value = found.next().unwrap_or("");
    assert_eq!(found.next(), None, "{name} is there twice");
    value
}

#[test]
fn kernel_versions() {
    for (text, version) in [("6.1", (6, 1)), ("6.12", (6, 12)), ("7.0", (7, 0))] {
        assert_eq!(text.parse(), Ok(KernelVersion::from(version)));
        assert_eq!(KernelVersion::from(version).to_string(), text);
    }
    for text in ["", "6", "6.", ".1", "6.1.2", "6.1-rc1", "six", "6.1 ", "-6.1", "6.+1", "6.99999999999"] {
        assert_eq!(text.parse::<KernelVersion>(), Err(Error::Kernel(text.into())), "{text}");
    }
    assert!(KernelVersion(6, 9) < KernelVersion(6, 12), "not as text");
}

#[test]
fn every_level_holds_the_one_before_and_only_features() {
    let mut before = BTreeSet::new();
    for (name, added) in LEVELS {
        let level = features::level(name).unwrap();
        assert!(level.is_superset(&before) && level.len() == before.len() + added.len(), "{name}");
        for feature in &level {
            assert!(gives_instructions(feature, "x86_64"), "{feature}");
        }
        let cpu = cpu(level.clone());
        assert_eq!(highest_level(&cpu), Some(name));
        assert_eq!(least_cpu(name, None, &cpu, "x86_64").unwrap(), Some(of_level(name)));
        before = level;
    }
    assert_eq!(highest_level(&cpu([])), None);
    assert_eq!(features::level("x86-64-v5"), None);
}

#[test]
fn files_list_features_and_levels() {
    let host = cpu(features::level("x86-64-v3").unwrap().into_iter().chain(["aes".to_owned()]));
    let list = "# common to a and b\nx86-64-v2 # at least\naes  avx\n\n";
    let made = least_cpu("/etc/podd/cpu", Some(list), &host, "x86_64").unwrap().unwrap();
    assert_eq!(made.name, "/etc/podd/cpu");
    let expected: BTreeSet<String> =
        features::level("x86-64-v2").unwrap().into_iter().chain(["aes", "avx"].map(Into::into)).collect();
    assert_eq!(made.features, expected);
    let small = least_cpu("/f", Some("aes"), &host, "x86_64").unwrap().unwrap();
    assert!(small.features.contains("sse2"), "no x86-64 has less than the first level");
}

#[test]
fn what_is_no_baseline_is_refused() {
    let v2 = cpu(features::level("x86-64-v2").unwrap());
    let cases: [(&str, Option<&str>, &str, Error); 6] = [
        ("v2", None, "x86_64", Error::Cpu("v2".into())),
        ("x86-64-v2", None, "aarch64", Error::Arch { name: "x86-64-v2".into(), arch: "aarch64".into() }),
        ("/f", Some("aes"), "aarch64", Error::Arch { name: "/f".into(), arch: "aarch64".into() }),
        ("/f", Some("ssse3 fast"), "x86_64", Error::Word { path: "/f".into(), word: "fast".into() }),
        ("/f", Some("# nothing\n"), "x86_64", Error::Empty("/f".into())),
        (
            "/f",
            Some("aes avx"),
            "x86_64",
            Error::Lacks { name: "/f".into(), model: "m".into(), missing: "aes avx".into(), level: "x86-64-v2" },
        ),
    ];
    for (name, list, arch, error) in cases {
        assert!(!error.cure().is_empty());
        assert_eq!(least_cpu(name, list, &v2, arch), Err(error));
    }
    let lacks = least_cpu("x86-64-v3", None, &v2, "x86_64").unwrap_err();
    assert_eq!(
        lacks.to_string(),
        "this host's processor (m) lacks abm avx avx2 bmi1 bmi2 f16c fma movbe xsave of x86-64-v3"
    );
    assert_eq!(least_cpu("host", None, &v2, "aarch64"), Ok(None));
}

#[test]
fn each_runtime_is_told_in_its_own_words() {
    let v2 = environment(OLDEST_KERNEL, Some(&of_level("x86-64-v2")), &[]);
    assert_eq!(v2.against, Vec::<String>::new());
    assert_eq!(
        value(&v2, "GLIBC_TUNABLES"),
        "glibc.cpu.hwcaps=-FMA,-MOVBE,-XSAVE,-XSAVEC,-AVX,-AVX_Fast_Unaligned_Load,-LZCNT,-FMA4,-BMI1,-AVX2,-BMI2,-RTM,\
         -AVX512F,-AVX512DQ,-AVX512PF,-AVX512ER,-AVX512CD,-AVX512BW,-AVX512VL:glibc.pthread.rseq=0"
    );
    assert_eq!(value(&v2, "LD_BIND_NOW"), "1");
    assert_eq!(value(&v2, "OPENSSL_ia32cap"), "~0x7240180200000000:~0x5f42fc2f0938:~0x80003703c00100:~0x280000");
    assert_eq!(value(&v2, "GODEBUG"), "cpu.all=off,cpu.sse3=on,cpu.ssse3=on,cpu.sse41=on,cpu.sse42=on,cpu.popcnt=on");

    let v3 = environment(ANY_RSEQ, Some(&of_level("x86-64-v3")), &[]);
    assert_eq!(
        value(&v3, "GLIBC_TUNABLES"),
        "glibc.cpu.hwcaps=-XSAVEC,-FMA4,-RTM,-AVX512F,-AVX512DQ,-AVX512PF,-AVX512ER,-AVX512CD,-AVX512BW,-AVX512VL"
    );
    assert_eq!(value(&v3, "LD_BIND_NOW"), "1");
    let mut file = of_level("x86-64-v3");
    file.features.insert("xsavec".into());
    assert_eq!(value(&environment(ANY_RSEQ, Some(&file), &[]), "LD_BIND_NOW"), "", "XSAVEC writes what is in use");
}

#[test]
fn each_feature_is_withheld_exactly_where_the_baseline_lacks_it() {
    let all: BTreeSet<String> = FEATURES.iter().map(|f| f.name.to_owned()).collect();
    assert_eq!(all.len(), FEATURES.len(), "no name twice");
    let tunables = |features: BTreeSet<String>| {
        let made = environment(ANY_RSEQ, Some(&CpuBaseline { name: "f".into(), features }), &[]);
        let list = value(&made, "GLIBC_TUNABLES").trim_start_matches("glibc.cpu.hwcaps=").to_owned();
        let masks: Vec<u64> = value(&made, "OPENSSL_ia32cap")
            .split(':')
            .map(|mask| u64::from_str_radix(mask.trim_start_matches("~0x"), 16).unwrap())
            .collect();
        (list, masks, value(&made, "GODEBUG").to_owned())
    };
    let (list, masks, go) = tunables(all.clone());
    assert_eq!((list.as_str(), masks), ("", vec![0; 4]));
    assert_eq!(go.matches("=on").count(), FEATURES.iter().filter(|f| f.go.is_some()).count());
    for feature in &FEATURES {
        assert!(gives_instructions(feature.name, "x86_64"), "{}", feature.name);
        let (list, masks, go) = tunables(all.iter().filter(|f| *f != feature.name).cloned().collect());
        assert_eq!(list, feature.glibc.iter().map(|name| format!("-{name}")).collect::<Vec<_>>().join(","));
        let mut expected = vec![0; 4];
        if let Some((vector, bit)) = feature.openssl {
            expected[vector] = 1 << bit;
        }
        assert_eq!(masks, expected, "{}", feature.name);
        if let Some(name) = feature.go {
            assert!(!go.split(',').any(|item| item == format!("cpu.{name}=on")), "{}", feature.name);
        }
    }
}

#[test]
fn without_a_least_processor_only_the_kernel_counts() {
    let own = env(&[("PATH", "/bin")]);
    assert_eq!(environment(KernelVersion(6, 12), None, &own), Environment { all: own.clone(), against: vec![] });
    let made = environment(KernelVersion(6, 11), None, &own);
    assert_eq!(made.all, env(&[("GLIBC_TUNABLES", "glibc.pthread.rseq=0"), ("PATH", "/bin")]));
}

#[test]
fn what_the_user_says_is_joined_and_wins() {
    let v2 = of_level("x86-64-v2");
    let own = |name: &str, text: &str| environment(OLDEST_KERNEL, Some(&v2), &env(&[(name, text)]));
    let ours = environment(OLDEST_KERNEL, Some(&v2), &[]);

    let made = own("GLIBC_TUNABLES", "glibc.malloc.arena_max=1");
    assert_eq!(value(&made, "GLIBC_TUNABLES"), format!("{}:glibc.malloc.arena_max=1", value(&ours, "GLIBC_TUNABLES")));
    assert!(made.against.is_empty());
    let made = own("GLIBC_TUNABLES", "glibc.pthread.rseq=1:glibc.cpu.hwcaps=-AVX2");
    assert_eq!(value(&made, "GLIBC_TUNABLES"), "glibc.pthread.rseq=1:glibc.cpu.hwcaps=-AVX2");
    assert_eq!(made.against, ["GLIBC_TUNABLES (glibc.cpu.hwcaps)"]);

    let made = own("GODEBUG", "gctrace=1");
    assert_eq!(value(&made, "GODEBUG"), format!("{},gctrace=1", value(&ours, "GODEBUG")));
    assert!(made.against.is_empty());
    let made = own("GODEBUG", "gctrace=1,cpu.avx2=on");
    assert_eq!(
        (value(&made, "GODEBUG"), made.against.as_slice()),
        ("gctrace=1,cpu.avx2=on", &["GODEBUG (cpu.*)".to_owned()][..])
    );

    for (name, text) in [("OPENSSL_ia32cap", "~0x0"), ("LD_BIND_NOW", "")] {
        let made = own(name, text);
        assert_eq!((value(&made, name), made.against.as_slice()), (text, &[name.to_owned()][..]));
    }
    // As the record of a pod of an earlier podd has it.
    let made = own("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
    assert_eq!(made.all.iter().filter(|(_, v)| v.contains("rseq")).count(), 1);
    assert!(made.against.is_empty() && value(&made, "GLIBC_TUNABLES").contains("-AVX2"));
}

#[test]
fn a_pod_remembers_its_birth_and_what_it_has_met() {
    let v3 = cpu(features::level("x86-64-v3").unwrap().into_iter().chain(["vmx".to_owned()]));
    let baseline = Baseline { kernel: KernelVersion(6, 6), cpu: Some(of_level("x86-64-v2")) };
    let mut relies = ReliesOn::at_birth(&baseline, &v3, &[]);
    assert_eq!(relies.held(), Some(&of_level("x86-64-v2")));
    assert!(relies.born.has("avx2") && !relies.born.has("vmx"), "instructions alone");
    relies.comes_to(&v3);
    assert_eq!(relies.since, BTreeSet::new());
    relies.comes_to(&cpu(["avx2", "avx512f", "svm"].map(Into::into)));
    assert_eq!(relies.since, ["avx512f".to_owned()].into());
    let loose = ReliesOn::at_birth(&baseline, &v3, &env(&[("LD_BIND_NOW", "")]));
    assert_eq!((loose.held(), loose.own.as_slice()), (None, &["LD_BIND_NOW".to_owned()][..]));

    let bytes = bincode::serde::encode_to_vec(&baseline, bincode::config::standard()).unwrap();
    let back: (Baseline, usize) = bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap();
    assert_eq!((back.0.to_string(), back.0), ("6.6 x86-64-v2".to_owned(), baseline));
}
