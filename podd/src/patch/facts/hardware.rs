//! Signs that the hardware is about to fail.

use serde::{Deserialize, Serialize};

use super::number;
use crate::patch::reader::{Reader, word};

/// Memory controllers (Documentation/driver-api/edac.rst).
const CONTROLLERS: &str = "/sys/devices/system/edac/mc";
const THERMAL: &str = "/sys/class/thermal";

/// How the hardware is. Counters count since the boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Memory errors that were corrected; none: this host does not count them.
    pub corrected: Option<u64>,
    /// Memory errors that were not.
    pub uncorrected: Option<u64>,
    /// Sensors above the temperature at which the machine switches itself off, or less than 5 °C below.
    pub hot: Vec<String>,
    /// Disks, as they judge themselves; none: nobody asked them (smartctl(8) is not installed).
    pub disks: Option<Vec<Disk>>,
    /// Lines of the kernel's log about disks or hardware that fail.
    pub log: Vec<String>,
    /// Part of the last five minutes in which everything waited for memory, in hundredths of a percent
    /// (Documentation/accounting/psi.rst).
    pub memory_pressure: Option<u64>,
}

/// What a disk says about itself (SMART, NVMe).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// `/dev/nvme0`.
    pub name: String,
    /// It expects no failure.
    pub passed: bool,
}

pub(super) fn read(reader: &dyn Reader) -> Hardware {
    Hardware {
        corrected: count(reader, "ce_count"),
        uncorrected: count(reader, "ue_count"),
        hot: hot(reader),
        disks: disks(reader),
        log: log(reader),
        memory_pressure: pressure(reader),
    }
}

/// The sum over all memory controllers.
fn count(reader: &dyn Reader, file: &str) -> Option<u64> {
    let names = reader.names(CONTROLLERS).ok()?;
    let controllers: Vec<String> = names.into_iter().filter(|name| name.starts_with("mc")).collect();
    let counts = controllers.iter().map(|name| number(reader, &format!("{CONTROLLERS}/{name}/{file}")));
    let sum = counts.map(|count| count.and_then(|count| u64::try_from(count).ok())).sum();
    if controllers.is_empty() { None } else { sum }
}

fn hot(reader: &dyn Reader) -> Vec<String> {
    let names = reader.names(THERMAL).unwrap_or_default();
    let zones = names.into_iter().filter(|name| name.starts_with("thermal_zone"));
    let too_hot = |zone: &String| {
        let file = |name: &str| format!("{THERMAL}/{zone}/{name}");
        let now = number(reader, &file("temp"))?;
        let critical =
            (0..16).find(|n| word(reader, &file(&format!("trip_point_{n}_type"))).is_ok_and(|kind| kind == "critical"));
        let limit = number(reader, &file(&format!("trip_point_{}_temp", critical?)))?;
        let name = word(reader, &file("type")).unwrap_or_else(|_| zone.clone());
        (now > 0 && limit > 0 && now + 5000 > limit)
            .then(|| format!("{name}: {} °C, {} °C is its limit", now / 1000, limit / 1000))
    };
    zones.filter_map(|zone| too_hot(&zone)).collect()
}

fn disks(reader: &dyn Reader) -> Option<Vec<Disk>> {
    let json = |command: &[&str]| serde_json::from_str::<serde_json::Value>(&reader.run(command).ok()?.out).ok();
    let scan = json(&["smartctl", "--json", "--scan"])?;
    let names = scan["devices"].as_array().into_iter().flatten().filter_map(|device| device["name"].as_str());
    let asked = names.take(64).filter_map(|name| {
        let health = json(&["smartctl", "--json", "--health", name])?;
        // A virtual disk has no opinion.
        Some(Disk { name: name.to_owned(), passed: health["smart_status"]["passed"].as_bool()? })
    });
    Some(asked.collect())
}

/// What drivers write when a device or the machine fails.
fn log(reader: &dyn Reader) -> Vec<String> {
    const SIGNS: [&str; 7] = [
        "I/O error, dev ",
        "EXT4-fs error",
        "XFS (",
        "Medium Error",
        "controller is down",
        "Hardware Error",
        "Uncorrected error",
    ];
    let said = reader.run(&["dmesg", "--notime", "--level", "emerg,alert,crit,err"]).unwrap_or_default();
    // What was corrected is counted already (EDAC), and these devices come and go.
    const NO_SIGNS: [&str; 5] = ["Corrected error", " corrected error", "dev fd", "dev sr", "dev loop"];
    let is_sign = |line: &&str| {
        SIGNS.iter().any(|sign| line.contains(sign))
            && !NO_SIGNS.iter().any(|no| line.contains(no))
            && (!line.contains("XFS (") || line.contains("rror"))
    };
    let mut lines: Vec<String> =
        said.out.lines().filter(is_sign).map(|line| line.chars().take(200).collect()).collect();
    lines.dedup();
    lines.truncate(50);
    lines
}

/// `full avg10=0.00 avg60=0.00 avg300=1.25 total=..`
fn pressure(reader: &dyn Reader) -> Option<u64> {
    let text = word(reader, "/proc/pressure/memory").ok()?;
    let full = text.lines().find(|line| line.starts_with("full"))?;
    let average = full.split(' ').find_map(|word| word.strip_prefix("avg300="))?;
    let (whole, part) = average.split_once('.')?;
    Some(whole.parse::<u64>().ok()? * 100 + part.parse::<u64>().ok()?)
}
