use super::*;
use crate::patch::reader::{Recorder, Recording, Said};

/// A host of which only this can be read.
fn recording(files: &[(&str, &str)], commands: &[(&str, &str)]) -> Recording {
    let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let said = |(key, out): &(&str, &str)| ((*key).to_owned(), Said { code: 0, out: (*out).to_owned() });
    Recording {
        files: files.iter().map(text).collect(),
        commands: commands.iter().map(said).collect(),
        ..Recording::default()
    }
}

#[test]
fn flavours_are_what_follows_version_and_abi() {
    for (release, flavour) in [
        ("6.1.0-47-amd64", Some("amd64")),
        ("6.1.0-47-cloud-amd64", Some("cloud-amd64")),
        ("6.12.117+deb13-rt-amd64", Some("rt-amd64")),
        ("6.12.9+bpo-cloud-arm64", Some("cloud-arm64")),
        ("6.1.0-0.deb11.5-686-pae", Some("686-pae")),
        ("7.3-rc5-amd64", Some("amd64")),
        ("6.18.5", None),
        ("6.1.0-47", None),
    ] {
        assert_eq!(kernel::flavour(release).as_deref(), flavour, "{release}");
    }
}

#[test]
fn backports_belong_to_the_next_release() {
    let of = |version| advisories_of(version, "bookworm");
    assert_eq!(of("6.1.170-3"), Some(("bookworm", "6.1.170-3")));
    assert_eq!(of("6.12.43-1~bpo12+1"), Some(("trixie", "6.12.43-1")));
    assert_eq!(of("6.16.12-1~bpo13+1"), Some(("forky", "6.16.12-1")));
    assert_eq!(of("9.1-1~bpo99+1"), None);
    assert_eq!(of("9.1-1~bpo"), None);
}

#[test]
fn other_systems_are_never_taken_for_patched() {
    let kernel = [
        ("/proc/sys/kernel/osrelease", "6.8.0-45-generic\n"),
        ("/proc/sys/kernel/version", "#45-Ubuntu SMP PREEMPT_DYNAMIC Fri Aug 30 12:02:04 UTC 2024\n"),
    ];
    for id in ["ubuntu", "fedora", "rocky"] {
        let release = format!("ID={id}\nVERSION_ID=\"24.04\"\n");
        let facts = Facts::read(&recording(&[kernel[0], kernel[1], ("/etc/os-release", &release)], &[]));
        for missing in
            [facts.kernel.missing(), facts.installed.missing(), facts.candidate.missing(), facts.packages.missing()]
        {
            let missing = missing.expect("it is not known");
            assert!(missing.what.contains(&format!("the system is {id:?}")), "{missing:?}");
        }
    }
    // Debian with a kernel of one's own.
    let own = recording(
        &[
            ("/etc/os-release", "ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n"),
            ("/proc/sys/kernel/osrelease", "6.18.5\n"),
            ("/proc/sys/kernel/version", "#1 SMP PREEMPT_DYNAMIC @0\n"),
        ],
        &[],
    );
    let facts = Facts::read(&own);
    assert!(facts.kernel.missing().is_some_and(|missing| missing.what.contains("not one of Debian's packages")));
    // And one of which nothing can be read.
    let facts = Facts::read(&recording(&[], &[]));
    assert!(
        facts.system.missing().is_some() && facts.boot_id.missing().is_some() && facts.boot_default.missing().is_some()
    );
}

#[test]
fn the_next_boot_as_grub_chooses_it() {
    let menu = |default: &str| {
        format!(
            "if [ \"${{next_entry}}\" ] ; then\n   set default=\"${{next_entry}}\"\nelse\n   set default=\"{default}\"\nfi\n\
             menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-1' {{\n\
             \tif [ x = y ]; then\n\t\tset root='x'\n\tfi\n\tlinux\t/boot/vmlinuz-6.1.0-48-amd64 root=/dev/sda1 ro quiet\n}}\n\
             submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-1' {{\n\
             \tmenuentry 'Debian GNU/Linux, with Linux 6.1.0-48-amd64' $menuentry_id_option 'gnulinux-48' {{\n\
             \t\tlinux\t/boot/vmlinuz-6.1.0-48-amd64 root=/dev/sda1\n\t}}\n\
             \tmenuentry 'Debian GNU/Linux, with Linux 6.1.0-47-amd64' $menuentry_id_option 'gnulinux-47' {{\n\
             \t\tlinux\t/vmlinuz-6.1.0-47-amd64 root=/dev/sda1\n\t}}\n}}\n"
        )
    };
    let next = |default: &str, environment: &str| {
        let files = [("/boot/grub/grub.cfg", menu(default)), ("/boot/grub/grubenv", environment.to_owned())];
        boot::next(&recording(&files.each_ref().map(|(path, text)| (*path, text.as_str())), &[]))
    };
    let takes = |default: &str, environment: &str| next(default, environment).known().cloned().unwrap_or_default();
    assert_eq!(takes("0", ""), "6.1.0-48-amd64");
    assert_eq!(takes("1>1", ""), "6.1.0-47-amd64");
    assert_eq!(takes("gnulinux-advanced-1>gnulinux-47", ""), "6.1.0-47-amd64");
    let titled = "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-47-amd64";
    assert_eq!(takes(titled, ""), "6.1.0-47-amd64");
    assert_eq!(takes("${saved_entry}", "# GRUB Environment Block\nsaved_entry=1>1\n"), "6.1.0-47-amd64");
    assert_eq!(takes("${saved_entry}", ""), "6.1.0-48-amd64");
    assert_eq!(takes("0", "next_entry=1>1\n"), "6.1.0-47-amd64");
    assert!(next("9", "").missing().is_some_and(|missing| missing.what.contains("\"9\" is not in its menu")));
    // Without GRUB: the link that other loaders take.
    let mut linked = recording(&[], &[]);
    linked.links.insert("/boot/vmlinuz".to_owned(), "../usr/lib/modules/7.2.13+deb14-cloud-amd64/vmlinuz".to_owned());
    assert_eq!(boot::next(&linked).known().map(String::as_str), Some("7.2.13+deb14-cloud-amd64"));
}

#[test]
fn processes_with_replaced_code() {
    let mut host = recording(
        &[
            ("/proc/7/cgroup", "0::/system.slice/ssh.service\n"),
            ("/proc/7/comm", "sshd\n"),
            ("/proc/8/cgroup", "0::/podd/3dc59c25db4d121b\n"),
        ],
        &[],
    );
    let code = "7f3c r-xp 00000000 08:01 1234 /usr/lib/x86_64-linux-gnu/libssl.so.3 (deleted)";
    let lines = [
        (7, vec![code, "7f3d r--p 00000000 08:01 1234 /usr/lib/x86_64-linux-gnu/libssl.so.3 (deleted)"]),
        (8, vec![code]),
        (9, vec!["7f3c rwxs 00000000 00:05 2 /memfd:x (deleted)", "7f3c r--p 00000000 08:01 5 /usr/share/x (deleted)"]),
        (10, vec![]),
    ];
    host.folders.insert("/proc".to_owned(), ["10", "7", "8", "9", "self"].map(str::to_owned).to_vec());
    for (pid, lines) in lines {
        host.lines.insert(format!("/proc/{pid}/maps"), lines.into_iter().map(str::to_owned).collect());
    }
    let stale = userland::stale(&host);
    let want = StaleProcess {
        pid: 7,
        name: "sshd".to_owned(),
        unit: Some("ssh.service".to_owned()),
        files: vec!["/usr/lib/x86_64-linux-gnu/libssl.so.3".to_owned()],
    };
    assert_eq!(stale.known(), Some(&vec![want]));
}

#[test]
fn live_patches_and_hardware() {
    let mut host = recording(
        &[
            ("/sys/kernel/livepatch/kpatch_1/enabled", "1\n"),
            ("/sys/kernel/livepatch/kpatch_1/transition", "0\n"),
            ("/sys/kernel/livepatch/kpatch_2/enabled", "1\n"),
            ("/sys/devices/system/edac/mc/mc0/ce_count", "3\n"),
            ("/sys/devices/system/edac/mc/mc0/ue_count", "0\n"),
            ("/sys/devices/system/edac/mc/mc1/ce_count", "4\n"),
            ("/sys/devices/system/edac/mc/mc1/ue_count", "1\n"),
            ("/sys/class/thermal/thermal_zone0/type", "x86_pkg_temp\n"),
            ("/sys/class/thermal/thermal_zone0/temp", "98000\n"),
            ("/sys/class/thermal/thermal_zone0/trip_point_0_type", "passive\n"),
            ("/sys/class/thermal/thermal_zone0/trip_point_1_type", "critical\n"),
            ("/sys/class/thermal/thermal_zone0/trip_point_1_temp", "100000\n"),
            (
                "/proc/pressure/memory",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=1.25 total=1\n",
            ),
        ],
        &[
            ("smartctl --json --scan", r#"{"devices": [{"name": "/dev/sda"}, {"name": "/dev/vda"}]}"#),
            ("smartctl --json --health /dev/sda", r#"{"smart_status": {"passed": false}}"#),
            ("smartctl --json --health /dev/vda", r#"{"smartctl": {"exit_status": 4}}"#),
            (
                "dmesg --notime --level emerg,alert,crit,err",
                "blk_update_request: I/O error, dev sda, sector 77\nusb 1-1: device descriptor read/64, error -71\n\
                 [Hardware Error]: Corrected error, no action required.\nblk_update_request: I/O error, dev sr0, sector 0\n\
                 [Hardware Error]: Uncorrected error\n",
            ),
        ],
    );
    for (folder, names) in [
        ("/sys/kernel/livepatch", vec!["kpatch_1", "kpatch_2"]),
        ("/sys/devices/system/edac/mc", vec!["mc0", "mc1", "power"]),
        ("/sys/class/thermal", vec!["cooling_device0", "thermal_zone0"]),
    ] {
        host.folders.insert(folder.to_owned(), names.into_iter().map(str::to_owned).collect());
    }
    let facts = Facts::read(&host);
    let patches: Vec<_> = facts.live_patches.iter().map(|p| (p.name.as_str(), p.enabled, p.in_transition)).collect();
    // What does not tell that its transition is over is still in it.
    assert_eq!(patches, [("kpatch_1", true, false), ("kpatch_2", true, true)]);
    let want = Hardware {
        corrected: Some(7),
        uncorrected: Some(1),
        hot: vec!["x86_pkg_temp: 98 °C, 100 °C is its limit".to_owned()],
        disks: Some(vec![Disk { name: "/dev/sda".to_owned(), passed: false }]),
        log: ["blk_update_request: I/O error, dev sda, sector 77", "[Hardware Error]: Uncorrected error"]
            .map(str::to_owned)
            .to_vec(),
        memory_pressure: Some(125),
    };
    assert_eq!(facts.hardware, want);
}

/// What the running host says, read again from its recording, is the same.
#[test]
fn a_recording_answers_as_the_host_did() {
    let recorder = Recorder::new("the host of this test");
    let facts = Facts::read(&recorder);
    let text = serde_json::to_string(&recorder.finish()).expect("it is JSON");
    let recording: Recording = serde_json::from_str(&text).expect("it is a recording");
    assert_eq!(Facts::read(&recording), facts);
    assert!(facts.uptime_s.known().is_some_and(|seconds| *seconds > 0), "{facts:?}");
}
