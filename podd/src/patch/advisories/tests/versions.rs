//! The order of versions against dpkg itself.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::super::version::check;
use super::*;

const PAIRS: usize = 2000;

/// Near each other, so that most pairs differ late: the same upstream version with another tail, now and then anything.
fn pair() -> impl Strategy<Value = (String, String)> {
    let part = "(0{0,2}[0-9]{1,3}|[1-9][0-9]{18,24}|[A-Za-z]{1,2}|~{1,2}|\\+|\\.){0,4}";
    let tail = format!("{part}(-[0-9a-z]{part})?");
    let head = "(0:|1:|00:|12:)?[0-9]{1,2}(\\.[0-9]{1,2}){0,2}";
    let other = format!("((0|1|01):)?[0-9]{part}(-1{part}){{0,2}}");
    let version = (head, regex(&tail)).prop_map(|(head, tail)| format!("{head}{tail}"));
    prop_oneof![
        6 => (head, regex(&tail), regex(&tail)).prop_map(|(head, a, b)| (format!("{head}{a}"), format!("{head}{b}"))),
        2 => (version, 0..5_u32).prop_map(|(version, how)| (version.clone(), rewritten(&version, how))),
        1 => (regex(&other), regex(&other)),
    ]
}

fn regex(expression: &str) -> proptest::string::RegexGeneratorStrategy<String> {
    proptest::string::string_regex(expression).unwrap()
}

/// Another way to write the same version, mostly.
fn rewritten(version: &str, how: u32) -> String {
    match how {
        0 => format!("0:{version}"),
        1 => format!("{version}-0"),
        2 => version.replace('.', ".0"),
        3 => version.replace('-', "-0"),
        _ => format!("{version}0"),
    }
}

/// Asks dpkg, in one shell: the lines whose claim it denies. Exit status 2 is neither yes nor no.
fn denied(claims: &[(String, &'static str, String)]) -> Vec<String> {
    let mut script = String::new();
    for (a, op, b) in claims {
        let _ = writeln!(script, "dpkg --compare-versions '{a}' {op} '{b}' 2>&- || echo \"$? {a} {op} {b}\"");
    }
    let mut shell = Command::new("sh").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn claim(a: &str, b: &str) -> (String, &'static str, String) {
    let op = match compare(a, b).unwrap() {
        Ordering::Less => "lt",
        Ordering::Equal => "eq",
        Ordering::Greater => "gt",
    };
    (a.to_owned(), op, b.to_owned())
}

#[test]
fn the_order_is_that_of_dpkg() {
    let mut runner = TestRunner::deterministic();
    let (strategy, mut claims) = (pair(), Vec::new());
    let known = [
        ("1.a", "1.a0"),
        ("1.0", "1.0-0"),
        ("1.0", "0:1.0"),
        ("01:1", "1:1"),
        ("1.0~rc1-1", "1.0-1"),
        ("1.0~~", "1.0~"),
        ("1.0+b1", "1.0"),
        ("1.0+deb12u1", "1.0+deb12u10"),
        ("1.0-1~bpo12+1", "1.0-1"),
        ("1_2-1", "1_3"),
        ("a1", "a2"),
        ("1:0.1", "9"),
        ("2147483647:1", "1"),
        ("1:2:3", "1:2"),
        ("1.0-", "1.0"),
        ("1.2-3-4", "1.2-3-5"),
        ("1~", "1~~a"),
        ("1.0a", "1.0+"),
        ("1.0-a", "1.0-a0"),
        ("5.10.0-8", "5.10.0-08"),
        ("1..", "1.0."),
        ("1+", "1+0"),
        ("1-0~", "1"),
    ];
    for (a, b) in known.into_iter().filter(|(a, b)| check(a).is_ok() && check(b).is_ok()) {
        claims.push(claim(a, b));
        claims.push(claim(b, a));
    }
    let mut equal = 0;
    while claims.len() < PAIRS {
        let (a, b) = strategy.new_tree(&mut runner).unwrap().current();
        if check(&a).is_ok() && check(&b).is_ok() {
            let claim = claim(&a, &b);
            equal += usize::from(claim.1 == "eq");
            claims.push(claim);
        }
    }
    assert!((50..PAIRS / 2).contains(&equal), "{equal} equal pairs do not test much");
    let (half, other) = claims.split_at(PAIRS / 2);
    let wrong = std::thread::scope(|scope| {
        let half = scope.spawn(|| denied(half));
        let other = denied(other);
        [half.join().unwrap(), other].concat()
    });
    assert!(wrong.is_empty(), "dpkg disagrees with {} of {PAIRS}: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
}

/// What we refuse: what dpkg refuses, and what it reads differently than it was meant.
#[test]
fn no_versions() {
    let dpkg_too = [
        ("-1:1", "its epoch is not a number"),
        ("a:1", "its epoch is not a number"),
        (":1", "its epoch is missing or beyond 2147483647"),
        ("2147483648:1", "its epoch is missing or beyond 2147483647"),
        ("1:", "nothing follows its epoch"),
        ("1.0-", "its revision is empty"),
        ("1:-1", "nothing stands before its revision"),
        ("1 0", "it has a character that no version has"),
    ];
    let only_we = [
        ("", "it is empty"),
        (" ", "it has a character that no version has"),
        (" 1", "it has a character that no version has"),
        ("1\n", "it has a character that no version has"),
        ("1.0-\u{e9}", "it has a character that no version has"),
        ("\u{661}:1", "it has a character that no version has"),
        ("+1:1", "its epoch is not a number"),
        ("1:1-2:3", "its revision has a colon"),
        ("<unfixed>", "it has a character that no version has"),
    ];
    for (version, reason) in dpkg_too.into_iter().chain(only_we) {
        for result in [compare(version, "1"), compare("1", version)] {
            let refused = result.unwrap_err();
            assert_eq!((refused.version.as_str(), refused.reason), (version, reason));
            assert!(refused.to_string().contains("\n  cure: "));
        }
    }
    assert_eq!(compare(&"1".repeat(129), "1").unwrap_err().reason, "it is longer than 128 bytes");
    assert_eq!(compare(&"1".repeat(128), "1"), Ok(Ordering::Greater));
    for (version, _) in dpkg_too {
        let status = Command::new("dpkg").args(["--compare-versions", "--", version, "eq", "1"]).output().unwrap();
        assert_eq!(status.status.code(), Some(2), "{version}");
    }
}

proptest! {
    /// What passes the check, debversion takes; and the order is one.
    #[test]
    fn an_order_for_whatever_passes(a in "[0-9a-z.+~:_-]{1,12}", b in "[0-9a-z.+~:_-]{1,12}", c in "\\PC{0,20}") {
        prop_assert_eq!(check(&c).is_ok(), compare(&c, &c) == Ok(Ordering::Equal));
        if check(&a).is_ok() && check(&b).is_ok() {
            prop_assert_eq!(compare(&a, &b).unwrap(), compare(&b, &a).unwrap().reverse());
        }
    }
}
