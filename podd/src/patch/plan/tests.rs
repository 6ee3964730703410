use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::patch::facts::Missing;

const GB: u64 = 1_000_000_000;

fn decision(verdict: Verdict) -> Decision {
    Decision { verdict, ..Decision::unknown(Missing { what: "x".to_owned(), cure: "y".to_owned() }) }
}

fn due(mechanism: Mechanism) -> Decision {
    decision(Verdict::Due { mechanism })
}

/// 8 GB, 6 of them available.
fn host(name: &str, decision: Decision, pods: Vec<Pod>) -> Host {
    let cpu = Cpu::default();
    Host {
        name: name.to_owned(),
        decision,
        kernel: KernelVersion(6, 12),
        domain: None,
        cpu,
        memory: 8 * GB,
        available: 6 * GB,
        cordoned: None,
        pods,
        asleep_ms: None,
        is_away: false,
    }
}

fn pod(name: &str, memory: u64) -> Pod {
    Pod { name: name.to_owned(), memory, relies_on: None, group: None, blackout_ms: 100.0, refused: BTreeMap::new() }
}

fn evacuated(name: &str, pods: Vec<Pod>) -> Host {
    host(name, due(Mechanism::Evacuate), pods)
}

fn waves(plan: &Plan) -> Vec<(usize, &str)> {
    plan.steps.iter().map(|step| (step.wave, step.host.as_str())).collect()
}

fn places(plan: &Plan) -> Vec<(&str, &str)> {
    plan.steps.iter().flat_map(|step| &step.moves).map(|m| (m.pod.as_str(), m.to.as_str())).collect()
}

fn policy(max_unavailable: u32) -> Policy {
    let mut policy = Policy::default();
    policy.limits.max_unavailable = max_unavailable;
    policy
}

#[test]
fn pods_that_do_not_come_back_are_planned_for_where_they_went() {
    let hosts = [
        evacuated("a", vec![pod("p", GB)]),
        evacuated("b", vec![pod("q", GB), pod("r", GB)]),
        host("c", due(Mechanism::Evacuate), vec![pod("s", GB), pod("t", GB), pod("u", GB / 2)]),
    ];
    let back = plan(&hosts, &policy(1), "c");
    assert!(!places(&back).contains(&("p", "a")) && back.steps[1].moves.len() == 2, "{back:?}");
    let mut balanced = policy(1);
    balanced.run.return_pods = false;
    let plan = plan(&hosts, &balanced, "c");
    // p has gone to b, as that is the emptiest that is left, and leaves it again; everything comes to a, which is patched.
    let moved =
        |step: usize| plan.steps[step].moves.iter().map(|m| (m.pod.as_str(), m.to.as_str())).collect::<Vec<_>>();
    assert_eq!(moved(0), [("p", "b")], "{plan:?}");
    assert_eq!(moved(1), [("p", "a"), ("q", "a"), ("r", "a")], "{plan:?}");
    assert_eq!(plan.steps[2].moves.len(), 3, "{plan:?}");
}

#[test]
fn another_place_is_the_best_that_has_room() {
    let mut hosts = vec![
        evacuated("a", vec![pod("p", GB)]),
        host("b", due(Mechanism::Evacuate), vec![]),
        host("c", Decision { verdict: Verdict::Current, ..due(Mechanism::Evacuate) }, vec![]),
        host("d", Decision { verdict: Verdict::Current, ..due(Mechanism::Evacuate) }, vec![]),
    ];
    hosts[3].available = GB;
    let p = hosts[0].pods[0].clone();
    assert_eq!(candidates(&hosts, "a", &p, &policy(1)), ["c", "b"], "c needs no patch, d has no room");
}

#[test]
fn pods_of_a_host_that_is_patched_in_place_sleep_there() {
    let stays = host("a", due(Mechanism::InPlace), vec![pod("p", GB)]);
    let plan = plan(&[Host { asleep_ms: Some(20_000.0), ..stays }], &policy(1), "a");
    assert_eq!(plan.steps[0].sleeps, [Sleep { pod: "p".to_owned(), asleep_ms: Some(20_000.0) }]);
    assert!(plan.steps[0].moves.is_empty());
}

#[test]
fn the_canary_goes_first_and_alone_and_the_coordinator_last() {
    let hosts = [
        evacuated("a", vec![]),
        evacuated("b", vec![pod("b1", GB)]),
        evacuated("c", vec![]),
        evacuated("d", vec![pod("d1", GB)]),
        evacuated("e", vec![]),
        host("f", decision(Verdict::Current), vec![]),
    ];
    assert_eq!(waves(&plan(&hosts, &policy(1), "a")), [(1, "c"), (2, "e"), (3, "b"), (4, "d"), (5, "a")]);
    assert_eq!(waves(&plan(&hosts, &policy(2), "a")), [(1, "c"), (2, "e"), (2, "b"), (3, "d"), (3, "a")]);
}

#[test]
fn no_two_of_one_failure_domain_are_away_together() {
    let racked = |name: &str, rack: &str| Host { domain: Some(rack.to_owned()), ..evacuated(name, vec![]) };
    let hosts = [racked("a", "r1"), racked("b", "r1"), racked("c", "r1"), racked("d", "r2"), evacuated("e", vec![])];
    // d and e go before c, whose rack is touched already; the canary stays alone.
    assert_eq!(waves(&plan(&hosts, &policy(3), "x")), [(1, "a"), (2, "b"), (2, "d"), (2, "e"), (3, "c")]);
    assert_eq!(waves(&plan(&hosts, &policy(3), "d")), [(1, "a"), (2, "b"), (2, "e"), (3, "c"), (3, "d")]);
    let restarted = hosts.map(|host| Host { decision: due(Mechanism::Restart), ..host });
    // Nobody is away for a restart.
    assert_eq!(plan(&restarted, &policy(3), "x").steps.last().map(|step| step.wave), Some(2));
}

#[test]
fn mild_means_come_first_and_move_nothing() {
    let mut hosts: Vec<Host> = ["a", "b", "c"].map(|n| host(n, due(Mechanism::Restart), vec![pod(n, GB)])).into();
    hosts.push(evacuated("d", vec![pod("d", GB)]));
    let plan = plan(&hosts, &policy(1), "none");
    assert_eq!(waves(&plan), [(1, "a"), (2, "b"), (2, "c"), (3, "d")]);
    assert_eq!(places(&plan), [("d", "a")]);
}

#[test]
fn pods_go_where_they_need_not_move_again_and_where_there_is_room() {
    let hosts = [
        evacuated("a", vec![pod("small", GB / 2), pod("large", 2 * GB), pod("middle", GB)]),
        evacuated("b", vec![]),
        host("c", decision(Verdict::Current), vec![]),
    ];
    let mut roomy = hosts.clone();
    roomy[1].available = 7 * GB;
    // b is patched before a, as it is the canary.
    assert_eq!(places(&plan(&roomy, &policy(1), "")), [("large", "b"), ("middle", "c"), ("small", "b")]);
    let mut full = hosts;
    full[2].available = 3 * GB;
    assert_eq!(places(&plan(&full, &policy(1), "")), [("large", "b"), ("middle", "b"), ("small", "b")]);
}

#[test]
fn a_host_whose_pod_has_nowhere_to_go_is_left_with_the_reason() {
    let why = |others: &[Host], pod: Pod| {
        let mut hosts = vec![evacuated("a", vec![pod])];
        hosts.extend_from_slice(others);
        let plan = plan(&hosts, &policy(1), "");
        assert!(plan.steps.is_empty(), "{plan:?}");
        assert!(!plan.left[0].cure.is_empty());
        plan.left[0].why.clone()
    };
    let current = |name: &str| host(name, decision(Verdict::Current), vec![]);
    assert_eq!(why(&[], pod("p", GB)), "p (1000 MB) has nowhere to go: there is no other host");
    let tight = Host { available: 2 * GB - 1, ..current("b") };
    assert!(why(&[tight], pod("p", GB)).contains("b has 1999 MB free, and twice the pod's is needed for a moment"));
    let grouped = |name: &str| Pod { group: Some("db".to_owned()), ..pod(name, GB) };
    let other = Host { pods: vec![grouped("q")], ..current("b") };
    assert!(why(&[other], grouped("p")).ends_with("b has a pod of the group db"));
    let failing = host("b", decision(Verdict::Leave { signs: vec![] }), vec![]);
    let hosts = [evacuated("a", vec![pod("p", GB)]), failing];
    assert!(plan(&hosts, &policy(1), "").left.iter().any(|left| left.why.ends_with("b is not to be relied on")));
    let refused = Pod { refused: [("b".to_owned(), "fd-count: many".to_owned())].into(), ..pod("p", GB) };
    assert!(why(&[current("b")], refused).ends_with("b is refused by preflight (fd-count: many)"));
    let born = ReliesOn {
        kernel: KernelVersion(6, 16),
        cpu: None,
        own: vec![],
        born: Cpu { flags: vec!["avx2".to_owned()], ..Cpu::default() },
        since: BTreeSet::new(),
    };
    let newer = Pod { relies_on: Some(born.clone()), ..pod("p", GB) };
    assert!(why(&[current("b")], newer).ends_with("b runs Linux 6.12, the pod counts on 6.16"));
    let wide = Pod { relies_on: Some(ReliesOn { kernel: KernelVersion(6, 1), ..born }), ..pod("p", GB) };
    assert!(why(&[current("b")], wide).ends_with("b has a processor without avx2"));
    let mut little = current("b");
    little.available = GB * 152 / 100;
    assert!(why(&[little], pod("p", GB * 3 / 4)).contains("headroom of 10 %"), "770 MB of 8 GB would be left");
}

#[test]
fn hosts_that_are_not_due_are_told() {
    let until: Timestamp = "2026-12-05T02:00:00Z".parse().expect("a time");
    let wait = Verdict::Wait { until, mechanism: Mechanism::Evacuate, why: "window night".to_owned() };
    let blocked = Verdict::Blocked { reason: "linux is held".to_owned(), cure: "apt-mark unhold linux".to_owned() };
    let unknown =
        Verdict::Unknown { missing: vec![Missing { what: "no feed".to_owned(), cure: "add one".to_owned() }] };
    let hosts = [("a", wait), ("b", blocked), ("c", unknown), ("d", Verdict::Current)];
    let plan = plan(&hosts.map(|(name, verdict)| host(name, decision(verdict), vec![])), &policy(1), "");
    let said: Vec<_> = plan.left.iter().map(|left| format!("{}: {} [{}]", left.host, left.why, left.cure)).collect();
    assert_eq!(
        said,
        [
            "a: it waits until 2026-12-05T02:00:00Z (window night) []",
            "b: it is blocked: linux is held [apt-mark unhold linux]",
            "c: it is unknown: no feed [add one]"
        ]
    );
    assert!(plan.steps.is_empty());
}

#[test]
fn hosts_that_do_not_answer_are_away_already() {
    let mut hosts = [
        evacuated("a", vec![]),
        evacuated("b", vec![]),
        evacuated("c", vec![]),
        host("d", due(Mechanism::Restart), vec![]),
    ];
    let waves_of = |hosts: &[Host], limit| {
        waves(&plan(hosts, &policy(limit), "x"))
            .into_iter()
            .map(|(wave, host)| format!("{wave}{host}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(waves_of(&hosts, 2), ["1d", "2a", "3b", "3c"]);
    (hosts[0].is_away, hosts[0].decision.verdict) = (true, Verdict::Current);
    assert_eq!(waves_of(&hosts, 2), ["1d", "2b", "3c"], "one at a time");
    assert_eq!(waves_of(&hosts, 1), ["1d"], "what stays up is restarted all the same");
    let left = plan(&hosts, &policy(1), "x").left;
    assert!(left.len() == 2 && left[0].why.contains("a does not answer"), "{left:?}");
    for n in [0, 1] {
        hosts[n].domain = Some("rack".to_owned());
    }
    let plan = plan(&hosts, &policy(2), "x");
    assert!(waves(&plan) == [(1, "d"), (2, "c")] && plan.left[0].why.contains("same domain"), "{plan:?}");
}

#[test]
fn a_large_fleet_is_planned_in_no_time() {
    let hosts: Vec<Host> = (0..1000)
        .map(|n| {
            let pods = (0..20).map(|p| Pod {
                group: (p % 4 == 0).then(|| format!("group{}", (n * 20 + p) % 300)),
                ..pod(&format!("pod{n}-{p}"), GB / 10)
            });
            evacuated(&format!("host{n:04}"), pods.collect())
        })
        .collect();
    let begun = std::time::Instant::now();
    let plan = plan(&hosts, &policy(10), "host0007");
    eprintln!("a plan of 1,000 hosts with 20 pods each: {:.0?}", begun.elapsed());
    assert_eq!((plan.steps.len(), plan.left.len()), (1000, 0));
    assert_eq!(plan.steps.iter().map(|step| step.moves.len()).sum::<usize>(), 20_000);
    assert_eq!(plan.steps[999].host, "host0007");
}

/// Memory in tenths of a GB, and group.
type Pods = Vec<(u64, Option<i32>)>;

/// Some fleet: memory in tenths of a GB.
fn fleets() -> impl Strategy<Value = Vec<Host>> {
    let pod = (1_u64..30, proptest::option::of(0..3));
    let one = (0..6, proptest::collection::vec(pod, 0..6), 1_u64..70, proptest::option::of(0..3));
    proptest::collection::vec(one, 1..12).prop_map(|hosts| {
        let verdicts = |kind| match kind {
            0 => decision(Verdict::Current),
            1 => due(Mechanism::Restart),
            2 => decision(Verdict::Leave { signs: vec![] }),
            3 => decision(Verdict::Unknown { missing: vec![] }),
            _ => due(Mechanism::Evacuate),
        };
        let made = |(n, (kind, pods, available, rack)): (usize, (i32, Pods, u64, Option<i32>))| {
            let pods = pods.into_iter().enumerate().map(|(p, (memory, group))| Pod {
                group: group.map(|group: i32| format!("g{group}")),
                ..pod_of(n, p, memory * GB / 10)
            });
            let domain = rack.map(|rack| format!("r{rack}"));
            Host { available: available * GB / 10, domain, ..host(&format!("h{n:02}"), verdicts(kind), pods.collect()) }
        };
        hosts.into_iter().enumerate().map(made).collect()
    })
}

fn pod_of(host: usize, number: usize, memory: u64) -> Pod {
    pod(&format!("p{host}-{number}"), memory)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn laws(hosts in fleets(), max in 1_u32..4, return_pods in any::<bool>()) {
        let mut policy = policy(max);
        policy.run.return_pods = return_pods;
        let plan = plan(&hosts, &policy, "h00");
        let by_name: BTreeMap<&str, &Host> = hosts.iter().map(|host| (host.name.as_str(), host)).collect();
        let known = plan.steps.iter().map(|s| s.host.as_str()).chain(plan.left.iter().map(|l| l.host.as_str()));
        let known: Vec<&str> = known.collect();
        prop_assert_eq!(known.iter().collect::<BTreeSet<_>>().len(), known.len(), "each host once");
        // Where pods are when a wave begins, and what there is room for.
        let mut at: BTreeMap<&str, Vec<&Pod>> = hosts.iter().map(|host| (host.name.as_str(), host.pods.iter().collect())).collect();
        let mut room: BTreeMap<&str, u64> = hosts.iter().map(|host| (host.name.as_str(), host.available)).collect();
        for wave in 1..=plan.steps.iter().map(|step| step.wave).max().unwrap_or(0) {
            let wave: Vec<&Step> = plan.steps.iter().filter(|step| step.wave == wave).collect();
            prop_assert!(!wave.is_empty(), "no wave is empty");
            let gone: BTreeSet<&str> =
                wave.iter().filter(|step| step.mechanism == Mechanism::Evacuate).map(|step| step.host.as_str()).collect();
            prop_assert!(gone.len() <= max as usize);
            let domains: Vec<&str> = gone.iter().filter_map(|host| by_name[host].domain.as_deref()).collect();
            prop_assert_eq!(domains.iter().collect::<BTreeSet<_>>().len(), domains.len(), "one of a failure domain");
            let mut came: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
            let mut stay: Vec<(&str, &str, &Pod)> = Vec::new();
            for step in &wave {
                let pods = at[step.host.as_str()].clone();
                if step.mechanism == Mechanism::Evacuate {
                    prop_assert_eq!(step.moves.len(), pods.len(), "all of its pods leave");
                }
                for m in &step.moves {
                    prop_assert!(!gone.contains(m.to.as_str()), "nothing goes to a host that is away");
                    let pod = pods.iter().find(|pod| pod.name == m.pod).expect("its own");
                    came.entry(&m.to).or_default().push(pod);
                    if !step.patch || !return_pods {
                        stay.push((&step.host, &m.to, pod));
                    }
                }
            }
            for (to, pods) in came {
                let verdict = &by_name[to].decision.verdict;
                prop_assert!(pods.iter().map(|pod| pod.memory).sum::<u64>() <= room[to], "there is room");
                let groups: Vec<_> = pods.iter().copied().chain(at[to].iter().copied()).filter_map(|pod| pod.group.as_deref()).collect();
                let old: Vec<&str> = at[to].iter().filter_map(|pod| pod.group.as_deref()).collect();
                let kinds = |list: &[&str]| list.iter().collect::<BTreeSet<_>>().len();
                prop_assert_eq!(kinds(&groups) - kinds(&old), groups.len() - old.len(), "no two of a group come together");
                let unfit = matches!(verdict, Verdict::Leave { .. } | Verdict::Unknown { .. });
                prop_assert!(!unfit);
            }
            for (from, to, pod) in stay {
                at.get_mut(from).unwrap().retain(|other| other.name != pod.name);
                at.get_mut(to).unwrap().push(pod);
                *room.get_mut(from).unwrap() += pod.memory;
                *room.get_mut(to).unwrap() -= pod.memory;
            }
        }
    }
}
