//! Dates of certificates: pure, and right on 29 February and with a clock that is wrong.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan};

/// From when until when a certificate is good, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: Timestamp,
    /// Last moment.
    pub not_after: Timestamp,
}

/// Dates of a certificate made `now` for `years` calendar years: from an hour ago, because clocks differ, to the same
/// date `years` later. 29 February becomes 28 February where there is none.
///
/// Never fails: before 1970 (which X.509 verifiers do not accept) and after 9999 it stays at the edge.
pub fn validity(now: Timestamp, years: u8) -> Validity {
    let now = Timestamp::from_second(now.as_second().max(0)).unwrap_or(Timestamp::UNIX_EPOCH);
    let not_before = now.checked_sub(1.hour()).unwrap_or(now).max(Timestamp::UNIX_EPOCH);
    let last = Timestamp::from_second(Timestamp::MAX.as_second()).unwrap_or(Timestamp::MAX);
    let not_after = now
        .to_zoned(TimeZone::UTC)
        .checked_add(Span::new().years(i64::from(years)))
        .map_or(last, |end| end.timestamp().min(last));
    Validity { not_before, not_after }
}

impl Validity {
    /// Less than a third of the life is left: time to renew.
    pub(super) fn due(&self, now: Timestamp) -> bool {
        let life = self.not_after.as_second() - self.not_before.as_second();
        let left = self.not_after.as_second() - now.as_second();
        left.saturating_mul(3) < life
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn dates(now: &str, years: u8) -> (String, String) {
        let made = validity(now.parse().unwrap(), years);
        (made.not_before.to_string(), made.not_after.to_string())
    }

    #[test]
    fn leap_days_and_turns_of_year() {
        for (now, years, from, to) in [
            ("2028-02-29T12:00:00Z", 1, "2028-02-29T11:00:00Z", "2029-02-28T12:00:00Z"),
            ("2028-02-29T12:00:00Z", 4, "2028-02-29T11:00:00Z", "2032-02-29T12:00:00Z"),
            ("2028-02-29T00:30:00Z", 10, "2028-02-28T23:30:00Z", "2038-02-28T00:30:00Z"),
            ("2028-02-29T23:59:59.9Z", 1, "2028-02-29T22:59:59Z", "2029-02-28T23:59:59Z"),
            ("2028-03-01T00:10:00Z", 1, "2028-02-29T23:10:00Z", "2029-03-01T00:10:00Z"),
            ("2027-02-28T12:00:00Z", 1, "2027-02-28T11:00:00Z", "2028-02-28T12:00:00Z"),
            // 2100 is no leap year.
            ("2096-02-29T12:00:00Z", 4, "2096-02-29T11:00:00Z", "2100-02-28T12:00:00Z"),
            ("2096-02-29T12:00:00Z", 1, "2096-02-29T11:00:00Z", "2097-02-28T12:00:00Z"),
            ("2099-12-31T23:59:59Z", 1, "2099-12-31T22:59:59Z", "2100-12-31T23:59:59Z"),
            ("2026-01-01T00:00:00Z", 1, "2025-12-31T23:00:00Z", "2027-01-01T00:00:00Z"),
            // X.509 changes its way to write years in 2050.
            ("2049-06-01T00:00:00Z", 1, "2049-05-31T23:00:00Z", "2050-06-01T00:00:00Z"),
        ] {
            assert_eq!(dates(now, years), (from.to_owned(), to.to_owned()), "{now} + {years}");
        }
    }

    #[test]
    fn impossible_clocks_stay_at_the_edge() {
        assert_eq!(dates("1970-01-01T00:00:00Z", 1), ("1970-01-01T00:00:00Z".into(), "1971-01-01T00:00:00Z".into()));
        assert_eq!(dates("1970-01-01T00:59:59Z", 1).0, "1970-01-01T00:00:00Z");
        assert_eq!(dates("1901-01-01T00:00:00Z", 1), dates("1970-01-01T00:00:00Z", 1));
        assert_eq!(dates("9999-06-01T00:00:00Z", 10).1, "9999-12-30T22:00:00Z");
        let far = validity(Timestamp::MAX, u8::MAX);
        assert!(far.not_before < far.not_after);
        validity(Timestamp::MIN, u8::MAX);
    }

    #[test]
    fn renewal_is_due_in_the_last_third() {
        let made = validity("2027-01-01T01:00:00Z".parse().unwrap(), 1);
        assert!(!made.due("2027-08-31T00:00:00Z".parse().unwrap()));
        assert!(made.due("2027-09-02T00:00:00Z".parse().unwrap()));
        assert!(made.due("2030-01-01T00:00:00Z".parse().unwrap()), "expired is due too");
        assert!(!made.due("1970-01-01T00:00:00Z".parse().unwrap()));
        assert!(!made.due(Timestamp::MIN) && made.due(Timestamp::MAX));
    }

    proptest! {
        #[test]
        fn any_moment_gives_the_same_date_years_later(second in 0i64..200_000_000_000, years in 1u8..30) {
            let now = Timestamp::from_second(second).unwrap();
            let made = validity(now, years);
            prop_assert!(made.not_before <= now && now < made.not_after);
            let (from, to) = (now.to_zoned(TimeZone::UTC), made.not_after.to_zoned(TimeZone::UTC));
            prop_assert_eq!(to.year(), from.year() + i16::from(years));
            prop_assert_eq!(to.month(), from.month());
            prop_assert!(to.day() == from.day() || (from.month() == 2 && from.day() == 29 && to.day() == 28));
            prop_assert_eq!(to.time(), from.time());
        }
    }
}
