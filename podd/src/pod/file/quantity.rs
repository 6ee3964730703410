//! Sizes, durations and signals as people write them.

use nix::sys::signal::Signal;

/// Bytes: `512M`, `1G`, `64KiB` or a plain number; units are binary.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "ki" | "kib" => 10,
        "m" | "mi" | "mib" => 20,
        "g" | "gi" | "gib" => 30,
        "t" | "ti" | "tib" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// Seconds: `10s`, `5m`, `1h`, `2d` or a plain number.
pub fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// A signal's number: `SIGTERM`, `term`, `15`, `RTMIN+3`; none for what is no signal.
pub fn signal(text: &str) -> Option<i32> {
    /// glibc's, which keeps the kernel's first two for itself.
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;

    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = match short {
        "RTMIN" => Some(RTMIN),
        "RTMAX" => Some(RTMAX),
        _ => match (short.strip_prefix("RTMIN+"), short.strip_prefix("RTMAX-")) {
            (Some(up), _) => up.parse::<u8>().ok().map(|n| RTMIN + i32::from(n)),
            (_, Some(down)) => down.parse::<u8>().ok().map(|n| RTMAX - i32::from(n)),
            (None, None) => None,
        },
    };
    match real_time {
        Some(number) => (RTMIN..=RTMAX).contains(&number).then_some(number),
        None => format!("SIG{short}").parse::<Signal>().ok().map(|signal| signal as i32),
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}
