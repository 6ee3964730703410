//! Whatever happens between and during live passes, the frozen pass makes an exact copy.

use proptest::prelude::*;

use super::change::{Change, change};
use super::*;

#[derive(Clone, Debug)]
struct Round {
    before: Vec<Change>,
    /// Wait until times can be trusted again.
    settle: bool,
    /// Before which operation of the pass, and what.
    during: Vec<(usize, Change)>,
}

fn round() -> impl Strategy<Value = Round> {
    let during = prop::collection::vec((0..60usize, change()), 0..20);
    (prop::collection::vec(change(), 0..25), any::<bool>(), during).prop_map(|(before, settle, during)| Round {
        before,
        settle,
        during,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_last_pass_makes_an_exact_copy(
        start in prop::collection::vec(change(), 20..60),
        live in prop::collection::vec(round(), 0..4),
        last in round(),
        apart in any::<bool>(),
    ) {
        let mut pair = Pair::new();
        let source = pair.source();
        let apply = |changes: &[Change]| changes.iter().for_each(|change| drop(change.apply(&source)));
        apply(&start);
        for round in &live {
            apply(&round.before);
            if round.settle {
                settle();
            }
            pair.pass_with(Mode::Live, &[], &mut |count| {
                for (_, change) in round.during.iter().filter(|(at, _)| *at == count) {
                    drop(change.apply(&source));
                }
            });
        }
        apply(&last.before);
        if last.settle {
            settle();
        }
        let report = if apart { pair.last_pass().0 } else { pair.pass(Mode::Frozen) };
        prop_assert_eq!(report.unsettled, 0);
        pair.assert_equal();
        // The copy is complete, so there is nothing left to send, and a copy of the copy is the same again.
        settle();
        pair.pass(Mode::Frozen);
        let again = pair.pass(Mode::Frozen);
        prop_assert_eq!((again.bytes, again.removed), (0, 0));
        pair.assert_equal();
    }
}
