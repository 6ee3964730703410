//! Time and memory on data as large as the real ones. Run alone, as memory is measured for the whole process:
//! `cargo test --release size -- --ignored --nocapture --test-threads 1`

use std::fmt::Write as _;
use std::io::BufWriter;

use super::*;

const PACKAGES: usize = 4000;

/// In KiB, since the last call of `forget`.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn forget() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Few have many, as the kernel; together some 38,000, as bookworm has.
fn issues(package: usize) -> usize {
    if package.is_multiple_of(8) { 40 } else { 5 }
}

fn tracker(path: &Path, packages: usize) -> u64 {
    let mut out = BufWriter::new(fs::File::create(path).unwrap());
    out.write_all(b"{").unwrap();
    for package in 0..packages {
        let mut text = format!("{}\"package{package}\":{{", if package > 0 { "," } else { "" });
        for issue in 0..issues(package) {
            let comma = if issue > 0 { "," } else { "" };
            let text = &mut text;
            write!(text, "{comma}\"CVE-2024-{}\":{{\"description\":\"", package * 100 + issue).unwrap();
            (0..12).for_each(|n| write!(text, "The function number {n} of it reads what it should not. ").unwrap());
            text.push_str("\",\"scope\":\"remote\",\"releases\":{");
            for (n, release) in ["bookworm", "bullseye", "forky", "sid", "trixie"].iter().enumerate() {
                let comma = if n > 0 { "," } else { "" };
                write!(
                    text,
                    "{comma}\"{release}\":{{\"status\":\"resolved\",\"repositories\":{{\"{release}\":\"1.{package}-1\",\
                     \"{release}-security\":\"1.{package}-1+deb12u2\"}},\"fixed_version\":\"1.{package}-1+deb12u{issue}\",\
                     \"urgency\":\"not yet assigned\"}}"
                )
                .unwrap();
            }
            text.push_str("}}");
        }
        text.push('}');
        out.write_all(text.as_bytes()).unwrap();
    }
    out.write_all(b"}").unwrap();
    out.into_inner().unwrap().metadata().unwrap().len()
}

/// Nanoseconds on a processor: the machine may have other work.
fn cpu() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

/// Peak memory in KiB and milliseconds for a `read`.
fn measure(lab: &Lab, config: &Config, what: &str, bytes: u64, wanted: &[&str]) -> (u64, u64) {
    forget();
    let start = cpu();
    let state = lab.refresh(config);
    let (refreshed, memory) = (cpu() - start, peak());
    assert_eq!(state.problem, None);
    let start = cpu();
    let found = lab.read(config, wanted).list.len();
    let read = cpu() - start;
    let list = fs::metadata(lab.cache().join(format!("{}-bookworm.list", state.feed.name()))).unwrap().len();
    eprintln!(
        "{what}: {} MB, {} entries: refresh {} ms, peak {} MB; extract {} MB, read of {found} {} ms",
        bytes / 1_000_000,
        state.entries,
        refreshed / 1_000_000,
        memory / 1024,
        list / 1_000_000,
        read / 1_000_000
    );
    (memory, read / 1_000_000)
}

fn names(step: usize) -> Vec<String> {
    (0..PACKAGES).step_by(step).map(|n| format!("package{n}")).collect()
}

#[test]
#[ignore = "large, and for --release: measures the whole process"]
fn size_of_real_data() {
    let lab = Lab::new();
    let wanted = names(10);
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();

    let path = lab.file("tracker.json", "");
    let bytes = tracker(&path, PACKAGES);
    assert!(bytes > 55_000_000, "{bytes}");
    touch(&path, NOW);
    let (memory, read) = measure(&lab, &only(Feed::Tracker, &path), "tracker", bytes, &wanted);
    assert!(memory <= 50 * 1024 && read <= 50, "{memory} KiB, {read} ms");

    let mut text = String::from("VERSION 1\n");
    (0..45_000).for_each(|n| writeln!(text, "CVE-2024-{n},,{}", "description ".repeat(6)).unwrap());
    text.push('\n');
    for n in 0..58_000 {
        // Sorted by package, as it is; most records need few versions.
        let (package, others) = (n * PACKAGES / 58_000, if n % 8 == 0 { 40 } else { 3 });
        let others: Vec<_> = (0..others).map(|v| format!("1.{package}-1+deb1{}u{v}", v % 3)).collect();
        writeln!(text, "package{package},{},SM F,2.0-1,{}", n % 45_000, others.join(" ")).unwrap();
    }
    text.push_str("\n\n");
    let file = zlib(&text);
    let path = lab.file("bookworm", &file);
    let bytes = text.len() as u64;
    drop((text, file));
    let (memory, _) = measure(&lab, &only(Feed::Debsecan, &path), "debsecan", bytes, &wanted);
    assert!(memory <= 50 * 1024, "{memory} KiB");

    let path = lab.file("all.zip", "");
    let mut zip = ::zip::ZipWriter::new(fs::File::create(&path).unwrap());
    let mut bytes = 0;
    for n in 0..60_000 {
        let text = OSV_CVE.replace("0001", &n.to_string()).replace("openssl", &format!("package{}", n % PACKAGES));
        bytes += text.len() as u64;
        zip.start_file(format!("DEBIAN-CVE-2024-{n}.json"), ::zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.finish().unwrap();
    touch(&path, NOW);
    let (memory, read) = measure(&lab, &only(Feed::Osv, &path), "osv", bytes, &wanted);
    assert!(memory <= 50 * 1024 && read <= 50, "{memory} KiB, {read} ms");
}

/// Small enough for every run: what is kept in memory does not grow with the file.
#[test]
fn a_tracker_of_some_megabytes() {
    let lab = Lab::new();
    let path = lab.file("tracker.json", "");
    let bytes = tracker(&path, 150);
    assert!(bytes > 1_500_000, "{bytes}");
    touch(&path, NOW);
    let config = only(Feed::Tracker, &path);
    let state = lab.refresh(&config);
    let entries: usize = (0..150).map(issues).sum();
    assert_eq!((state.problem, state.entries), (None, entries as u64));
    assert_eq!(lab.read(&config, &["package8", "package9", "package1000"]).list.len(), 45);
}
