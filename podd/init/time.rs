//! Timestamps of log lines.

use std::time::{SystemTime, UNIX_EPOCH};

/// RFC 3339 in UTC with nanoseconds, as the CRI log format wants it: `2026-11-20T05:26:18.123456789Z`.
pub fn format(time: SystemTime) -> String {
    // A clock before 1970 is a broken clock; its log lines are still wanted.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, nanoseconds) = (since.as_secs(), since.subsec_nanos());
    let (year, month, day) = date(seconds / 86400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}Z")
}

/// Year, month and day of a day since 1970-01-01, in eras of 400 years that begin on 1 March, so that the leap day
/// is the last of its year (Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days).
fn date(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64, nanoseconds: u32) -> String {
        format(UNIX_EPOCH + Duration::new(seconds, nanoseconds))
    }

    // Seconds from `date -u -d ... +%s`.
    #[test]
    fn known_times() {
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(1_795_152_378, 123_456_789), "2026-11-20T05:26:18.123456789Z");
        assert_eq!(at(253_402_300_799, 999_999_999), "9999-12-31T23:59:59.999999999Z");
    }

    #[test]
    fn leap_days() {
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(at(1_709_251_199, 1), "2024-02-29T23:59:59.000000001Z");
        assert_eq!(at(1_709_251_200, 0), "2024-03-01T00:00:00.000000000Z");
        assert_eq!(at(1_835_395_200, 0), "2028-02-29T00:00:00.000000000Z");
        // 2100 is not a leap year.
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
        assert_eq!(at(4_107_542_399, 0), "2100-02-28T23:59:59.000000000Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for number in 0..150_000 {
            assert_eq!(date(number), (year, month, day), "day {number}");
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (year, month, day) = match (day == length, month) {
                (true, 12) => (year + 1, 1, 1),
                (true, _) => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
    }

    #[test]
    fn a_clock_before_1970_does_not_panic() {
        assert_eq!(format(UNIX_EPOCH - Duration::from_secs(9)), "1970-01-01T00:00:00.000000000Z");
    }
}
