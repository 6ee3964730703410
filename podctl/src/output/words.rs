//! Numbers and times in words.

use jiff::Timestamp;

/// Decimal units, as networks and disks count: `268 MB`.
pub fn bytes(count: u64) -> String {
    scaled(count, 1000.0, ["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// Binary units, as memory limits count: `512 MiB`.
pub fn memory(count: u64) -> String {
    scaled(count, 1024.0, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// Milliseconds, without unit: `312`, `4.2`.
pub fn ms(value: f64) -> String {
    number(value)
}

/// Processor time: `1.5 s`, `3 min 20 s`.
pub fn cpu_time(microseconds: u64) -> String {
    let seconds = microseconds / 1_000_000;
    match seconds {
        0..60 => format!("{:.2} s", microseconds as f64 / 1e6),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// How long ago: `12 s`, `3 min`, `5 h`, `2 d`. A time to come, as after a clock step, is `0 s`.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `1 round`, `2 rounds`.
pub fn count(n: u32, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// At most `width` characters, the last one `…` if some are missing.
pub fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn scaled(count: u64, step: f64, units: [&str; 7]) -> String {
    let mut value = count as f64;
    let mut unit = 0;
    // 999.5 would be shown as 1000.
    while value >= step - 0.5 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    format!("{} {}", number(value), units[unit])
}

/// Whole from 10 up, else one decimal unless that is 0.
fn number(value: f64) -> String {
    let tenths = (value * 10.0).round();
    if tenths >= 100.0 || tenths % 10.0 == 0.0 { format!("{:.0}", value) } else { format!("{:.1}", value) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn sizes() {
        assert_eq!([0, 999, 1000, 1500, 4_000_000].map(bytes), ["0 B", "999 B", "1 kB", "1.5 kB", "4 MB"]);
        assert_eq!([268_435_456, 999_999, u64::MAX].map(bytes), ["268 MB", "1 MB", "18 EB"]);
        assert_eq!([512 << 20, 1 << 30, 1536 << 20].map(memory), ["512 MiB", "1 GiB", "1.5 GiB"]);
    }

    #[test]
    fn times() {
        assert_eq!([312.4, 4.0, 0.34, 9.96, 0.0].map(ms), ["312", "4", "0.3", "10", "0"]);
        assert_eq!([1_500_000, 200_000_000, 7_260_000_000].map(cpu_time), ["1.50 s", "3 min 20 s", "2 h 1 min"]);
        let now: Timestamp = "2024-02-29T12:00:00Z".parse().unwrap();
        let ago = |seconds: i64| age(Timestamp::from_second(now.as_second() - seconds).unwrap(), now);
        assert_eq!([12, 200, 7199, 86_400, 172_800, -5].map(ago), ["12 s", "3 min", "1 h", "24 h", "2 d", "0 s"]);
    }

    #[test]
    fn text() {
        assert_eq!([count(1, "round"), count(0, "round")], ["1 round", "0 rounds"]);
        assert_eq!(shortened("abcdef", 4), "abc…");
        assert_eq!(shortened("abcd", 4), "abcd");
    }
}
