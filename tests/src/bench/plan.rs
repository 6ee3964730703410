//! Whose turn it is.

/// One move of one contender.
#[derive(Debug, PartialEq, Eq)]
pub struct Turn<'a> {
    pub contender: &'a str,
    /// Its server is not needed any more.
    pub is_last: bool,
}

/// Round after round, each begun by another contender, so that nobody always follows the same one. If their servers do
/// not fit into the memory together, one contender after the other.
pub fn turns(rounds: u32, contenders: &[String], together: bool) -> Vec<Turn<'_>> {
    let many = contenders.len();
    let rounds = 0..rounds as usize;
    let turn = |n: usize, round: usize| Turn { contender: &contenders[n % many], is_last: round + 1 == rounds.end };
    if !together {
        return (0..many)
            .flat_map(|n| rounds.clone().map(move |round| (n, round)))
            .map(|(n, round)| turn(n, round))
            .collect();
    }
    let each = rounds.clone().flat_map(|round| (0..many).map(move |n| (n + round, round)));
    each.map(|(n, round)| turn(n, round)).collect()
}

/// Whether so many servers of this size can stand side by side, and one of them be on its way: its memory is there four
/// times then (source, two copies of the image, target).
pub fn fits_together(megabytes: u64, contenders: u64, available: u64) -> bool {
    (contenders + 3) * megabytes < available
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(turns: &[Turn<'_>]) -> String {
        turns.iter().map(|turn| format!("{}{}", turn.contender, if turn.is_last { "." } else { "" })).collect()
    }

    #[test]
    fn contenders_take_turns_and_nobody_always_begins() {
        let contenders = ["a", "b", "c"].map(String::from);
        assert_eq!(names(&turns(3, &contenders, true)), "abcbcac.a.b.");
        assert_eq!(names(&turns(2, &contenders, false)), "aa.bb.cc.");
        assert!(turns(2, &[], true).is_empty());
    }

    #[test]
    fn large_servers_do_not_stand_side_by_side() {
        assert!(fits_together(700, 5, 16_000));
        assert!(!fits_together(4096, 5, 16_000));
    }
}
