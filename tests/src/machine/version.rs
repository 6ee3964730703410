//! The order of Debian's package versions (Debian Policy 5.6.12), without a process for each comparison.

use std::cmp::Ordering;

/// Compares two versions as `dpkg --compare-versions` does.
#[must_use]
pub fn compare(a: &str, b: &str) -> Ordering {
    let (epoch_a, a) = epoch(a);
    let (epoch_b, b) = epoch(b);
    let ((upstream_a, revision_a), (upstream_b, revision_b)) = (revision(a), revision(b));
    epoch_a.cmp(&epoch_b).then_with(|| part(upstream_a, upstream_b)).then_with(|| part(revision_a, revision_b))
}

/// `6.12` of `6.12.107-1`; none if it does not begin with two numbers.
#[must_use]
pub fn series(version: &str) -> Option<String> {
    let mut numbers = version.split(['.', '~', '-', '+']);
    let (major, minor) = (numbers.next()?, numbers.next()?);
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (number(major) && number(minor)).then(|| format!("{major}.{minor}"))
}

fn epoch(version: &str) -> (u64, &str) {
    match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    }
}

fn revision(version: &str) -> (&str, &str) {
    version.rsplit_once('-').unwrap_or((version, "0"))
}

/// Text and numbers take turns, beginning with text, which may be empty.
fn part(mut a: &str, mut b: &str) -> Ordering {
    loop {
        let (text_a, rest_a) = split(a, |c| !c.is_ascii_digit());
        let (text_b, rest_b) = split(b, |c| !c.is_ascii_digit());
        let (number_a, rest_a) = split(rest_a, |c| c.is_ascii_digit());
        let (number_b, rest_b) = split(rest_b, |c| c.is_ascii_digit());
        let value = |digits: &str| digits.parse::<u128>().unwrap_or(0);
        let order = text(text_a, text_b).then_with(|| value(number_a).cmp(&value(number_b)));
        if order != Ordering::Equal || (rest_a.is_empty() && rest_b.is_empty()) {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

fn split(text: &str, mut belongs: impl FnMut(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

/// `~` before the end, the end before letters, letters before everything else.
fn text(a: &str, b: &str) -> Ordering {
    let weight = |c: Option<char>| match c {
        Some('~') => -1,
        None => 0,
        Some(c) if c.is_ascii_alphabetic() => c as i64,
        Some(c) => c as i64 + 256,
    };
    let (mut a, mut b) = (a.chars(), b.chars());
    loop {
        let (x, y) = (a.next(), b.next());
        let order = weight(x).cmp(&weight(y));
        if order != Ordering::Equal || x.is_none() {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        // Each pair was checked with dpkg --compare-versions A lt B.
        for (smaller, larger) in [
            ("6.1.176-1", "6.1.180-1"),
            ("6.12.9-1", "6.12.10-1"),
            ("7.3~rc7-1~exp1", "7.3-1"),
            ("7.2.12-1~bpo13+1", "7.2.12-1"),
            ("6.12.90-1", "6.12.90-1.1"),
            ("6.12.115-1", "6.12.115-1+deb13u1"),
            ("9.0-1", "1:1.0-1"),
            ("4.9", "4.17~bpo13+1"),
            ("1.0", "1.0a"),
            ("1.0a", "1.0+"),
        ] {
            assert_eq!(compare(smaller, larger), Ordering::Less, "{smaller} {larger}");
            assert_eq!(compare(larger, smaller), Ordering::Greater, "{smaller} {larger}");
        }
        assert_eq!(compare("6.1.176-1", "6.1.176-1"), Ordering::Equal);
    }

    #[test]
    fn a_series_is_the_first_two_numbers() {
        assert_eq!(series("6.12.107-1").as_deref(), Some("6.12"));
        assert_eq!(series("7.3~rc7-1~exp1").as_deref(), Some("7.3"));
        assert_eq!(series("unknown"), None);
    }
}
