//! What would end a host's exposures: the steps there are, and the mildest of them.

use std::collections::BTreeSet;

use super::exposure::{Exposure, LINUX, Standing, is_before};
use super::missing::known;
use super::{Mechanism, Question, Severity, Verdict};
use crate::patch::facts::{Candidate, Fact, Facts, Kernel, Missing, Package, StaleProcess};

/// Sources of packages that only a boot brings into use.
const BOOTED: [&str; 3] = [LINUX, "intel-microcode", "amd64-microcode"];
/// Parts of the names of files that matter to pods and moves.
const MATTERS: [&str; 7] = ["/libc.so", "/libc-", "/ld-linux", "/libssl", "/libcrypto", "/criu", "/podd"];

/// Whether a newer version of this source package is in use only after a boot.
#[must_use]
pub fn needs_boot(package: &str) -> bool {
    BOOTED.contains(&package)
}

/// What is to be done.
pub(super) enum Due {
    /// Nothing, or nothing that can be.
    Nothing(Verdict),
    /// This.
    Step(Step),
}

/// A step.
pub(super) struct Step {
    pub(super) mechanism: Mechanism,
    /// [Keys](Exposure::key) of the exposures that it ends, and of reasons that are none.
    pub(super) ends: BTreeSet<String>,
}

pub(super) fn due(question: Question<'_>, exposures: &[Exposure], chain: &mut Vec<String>) -> Due {
    match look(question, exposures, chain) {
        Ok(due) => due,
        Err(missing) => Due::Nothing(Verdict::Unknown { missing: vec![missing] }),
    }
}

fn look(question: Question<'_>, exposures: &[Exposure], chain: &mut Vec<String>) -> Result<Due, Missing> {
    let facts = question.facts;
    let (kernel, candidate) = (known(&facts.kernel)?, known(&facts.candidate)?);
    let codename = &known(&facts.system)?.codename;
    chain.push(format!("the kernel {} of package version {} runs", kernel.release, kernel.version));
    let is_newer = is_before(&kernel.version, &candidate.version)?;
    chain.push(if is_newer {
        format!("{} brings {} in version {}", candidate.metapackage, candidate.release, candidate.version)
    } else {
        format!("{} brings nothing newer than {}", candidate.metapackage, candidate.version)
    });
    let needs_boot = |exposure: &&Exposure| needs_boot(&exposure.package);
    let fixed: Vec<&Exposure> = exposures.iter().filter(|exposure| exposure.is_fixed()).collect();
    let (boot, restart): (Vec<&Exposure>, Vec<&Exposure>) = fixed.into_iter().partition(needs_boot);
    let mut boot: BTreeSet<String> = boot.into_iter().map(Exposure::key).collect();
    let mut restart: BTreeSet<String> = restart.into_iter().map(Exposure::key).collect();
    let covered: BTreeSet<&str> = exposures
        .iter()
        .filter_map(|exposure| match &exposure.standing {
            Standing::Covered(patch) => Some(patch.as_str()),
            Standing::Fixed(_) | Standing::Open => None,
        })
        .collect();
    if is_newer && boot.is_empty() && covered.is_empty() {
        // The archive can be ahead of the advisories.
        if candidate.origins.iter().any(|origin| origin.is_security_of(codename)) {
            chain.push("it is a security update, though no advisory that is known names it".to_owned());
            boot.insert(format!("update {LINUX}"));
        } else if question.policy.facts.any_update {
            chain.push("no advisory names it, and the policy wants any update".to_owned());
            boot.insert(format!("update {LINUX}"));
        }
    }
    let stale = known(&facts.stale)?.iter().filter(|process| matters(process));
    let (stale, others): (Vec<&StaleProcess>, Vec<_>) = stale.partition(|process| process.can_restart());
    if !stale.is_empty() {
        chain.push(format!("{} process(es) run with files that were replaced: {}", stale.len(), programs(&stale)));
        restart.insert("restart".to_owned());
    }
    if !others.is_empty() {
        chain.push(format!("so do {} that only their users can start again: {}", others.len(), programs(&others)));
    }
    let kept = held(known(&facts.packages)?, [&mut boot, &mut restart]);
    if let Some(Verdict::Blocked { reason, .. }) = &kept {
        chain.push(reason.clone());
    }
    chain.push(format!(
        "a newer kernel ends {}, newer programs end {}, live patches cover {} of {} exposure(s)",
        boot.len(),
        restart.len(),
        exposures.iter().filter(|exposure| matches!(exposure.standing, Standing::Covered(_))).count(),
        exposures.len()
    ));
    if boot.is_empty() && restart.is_empty() {
        if let Some(verdict) = kept.map_or_else(|| unfollowed(kernel, candidate, exposures), |kept| Ok(Some(kept)))? {
            return Ok(Due::Nothing(verdict));
        }
        if let Some(missing) = not_offered(exposures) {
            return Err(missing);
        }
        let patches = covered.into_iter().map(str::to_owned).collect::<Vec<_>>();
        return Ok(Due::Nothing(if patches.is_empty() { Verdict::Current } else { Verdict::Covered { patches } }));
    }
    let none = BTreeSet::new();
    Ok(match mildest(question, &boot, &restart, chain) {
        Ok(step) => Due::Step(step),
        // What is blocked must be seen, unless something as bad can be ended without it.
        Err(verdict)
            if !boot.is_empty() && !restart.is_empty() && worst(exposures, &restart) >= worst(exposures, &boot) =>
        {
            let Verdict::Blocked { reason, .. } = &verdict else { return Ok(Due::Nothing(verdict)) };
            chain.push(format!("{reason}; newer programs need no boot"));
            match mildest(question, &none, &restart, chain) {
                Ok(step) if step.mechanism == Mechanism::Restart => Due::Step(step),
                _ => Due::Nothing(verdict),
            }
        }
        Err(verdict) => Due::Nothing(verdict),
    })
}

/// Of these keys; what is no exposure is of low severity.
fn worst(exposures: &[Exposure], keys: &BTreeSet<String>) -> Severity {
    let severities =
        exposures.iter().filter(|exposure| keys.contains(&exposure.key())).map(|exposure| exposure.severity);
    severities.max().unwrap_or(Severity::Low)
}

/// The mildest step that ends all of these; or why there is none.
fn mildest(
    question: Question<'_>,
    boot: &BTreeSet<String>,
    restart: &BTreeSet<String>,
    chain: &mut Vec<String>,
) -> Result<Step, Verdict> {
    let options = options(question, boot);
    chain.push(format!("what suffices, the mildest first: {}", names(&options)));
    let forbidden = &question.policy.mechanisms.forbid;
    let allowed: Vec<Mechanism> = options.iter().copied().filter(|option| !forbidden.contains(option)).collect();
    let preferred = question.policy.mechanisms.prefer.iter().find(|mechanism| allowed.contains(mechanism));
    let Some(mechanism) = preferred.or(allowed.first()).copied() else {
        return Err(Verdict::Blocked {
            reason: format!("the policy forbids all that suffices ({})", names(&options)),
            cure: "allow one of them in [mechanisms] of podd's policy".to_owned(),
        });
    };
    if mechanism >= Mechanism::InPlace
        && !boot.is_empty()
        && let Some(verdict) = hindrance(question.facts)
    {
        return Err(verdict);
    }
    let ends = match mechanism {
        Mechanism::LivePatch => boot.clone(),
        Mechanism::Restart => restart.clone(),
        Mechanism::InPlace | Mechanism::Evacuate => boot.union(restart).cloned().collect(),
    };
    Ok(Step { mechanism, ends })
}

/// Takes away what packages would end that the operator keeps as they are; says so.
fn held(packages: &[Package], sets: [&mut BTreeSet<String>; 2]) -> Option<Verdict> {
    let held: Vec<&Package> =
        packages.iter().filter(|package| package.held && package.candidate != package.installed).collect();
    let mut kept = BTreeSet::new();
    for set in sets {
        set.retain(|key| {
            let keeper = held.iter().find(|package| key.ends_with(&format!(" {}", package.source)));
            kept.extend(keeper.map(|package| package.name.as_str()));
            keeper.is_none()
        });
    }
    let names = kept.into_iter().collect::<Vec<_>>().join(" ");
    (!names.is_empty()).then(|| Verdict::Blocked {
        reason: format!("{names} is held, so what ends its faults does not come"),
        cure: format!("apt-mark unhold {names}"),
    })
}

fn names(mechanisms: &[Mechanism]) -> String {
    mechanisms.iter().map(|mechanism| mechanism.name()).collect::<Vec<_>>().join(", ")
}

fn programs(processes: &[&StaleProcess]) -> String {
    let names: BTreeSet<&str> = processes.iter().map(|process| process.name.as_str()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

fn matters(process: &StaleProcess) -> bool {
    process.files.iter().any(|file| MATTERS.iter().any(|part| file.contains(part)))
}

/// Means that end all of these, the mildest first.
fn options(question: Question<'_>, boot: &BTreeSet<String>) -> Vec<Mechanism> {
    let ends_all = |advisories: &[String]| {
        let ended: BTreeSet<String> = advisories.iter().map(|id| format!("{id} {LINUX}")).collect();
        boot.is_subset(&ended)
    };
    let loaded = |name: &str| question.facts.live_patches.iter().any(|patch| patch.name == name);
    let can_load = question.situation.covers.iter().any(|cover| {
        let runs = question.facts.kernel.known().is_some_and(|kernel| cover.kernels.contains(&kernel.version));
        let fits = cover.module.is_some() && runs;
        fits && !loaded(&cover.patch) && ends_all(&cover.advisories)
    });
    let mut options = Vec::new();
    if !boot.is_empty() && can_load {
        options.push(Mechanism::LivePatch);
    }
    if boot.is_empty() {
        options.push(Mechanism::Restart);
    }
    if question.situation.keeps_memory {
        options.push(Mechanism::InPlace);
    }
    options.push(Mechanism::Evacuate);
    options
}

/// Why a boot would not bring the newer kernel.
fn hindrance(facts: &Facts) -> Option<Verdict> {
    let (kernel, candidate) = (facts.kernel.known()?, facts.candidate.known()?);
    let blocked = |reason: String, cure: String| Some(Verdict::Blocked { reason, cure });
    let installed = facts.installed.known()?.iter().find(|installed| installed.release == candidate.release);
    let is_there = installed.is_some_and(|installed| installed.version == candidate.version);
    let Candidate { metapackage, release, version, .. } = candidate;
    if !is_there && candidate.installed.is_none() {
        let reason = format!("{metapackage} is not installed, so no newer kernel than {} comes", kernel.release);
        return blocked(reason, format!("apt-get install {metapackage}"));
    }
    if !is_there && candidate.held {
        return blocked(
            format!("{metapackage} is held, so {version} does not come"),
            format!("apt-mark unhold {metapackage}"),
        );
    }
    if let Some(held) = installed.filter(|installed| !is_there && installed.held) {
        let reason = format!("{} is held in version {}, so {version} does not come", held.package, held.version);
        return blocked(reason, format!("apt-mark unhold {}", held.package));
    }
    let next = facts.boot_default.known()?;
    if is_there && next != release {
        let reason = format!("{release} is installed, and the next boot takes {next}");
        return blocked(reason, "run `update-grub`, and look at GRUB_DEFAULT in /etc/default/grub".to_owned());
    }
    None
}

/// Whether the next boot brings a kernel back with faults that the running one has not.
pub(super) fn relapse(question: Question<'_>, exposures: &[Exposure], chain: &mut Vec<String>) -> Option<Verdict> {
    let Facts { kernel, installed, boot_default, .. } = question.facts;
    let (kernel, next) = (kernel.known()?, boot_default.known()?);
    let version = &installed.known()?.iter().find(|there| there.release == *next && *next != kernel.release)?.version;
    let then = Kernel { release: next.clone(), version: version.clone(), ..kernel.clone() };
    let facts = Facts { kernel: Fact::Known(then), ..question.facts.clone() };
    let then = super::exposure::exposures(Question { facts: &facts, ..question }).ok()?;
    let back = then.iter().filter(|then| exposures.iter().all(|now| now.key() != then.key())).count();
    if back == 0 {
        return None;
    }
    let reason = format!("the next boot takes {next} ({version}), which brings {back} exposure(s) back");
    chain.push(reason.clone());
    let cure = "run `update-grub`, and look at GRUB_DEFAULT in /etc/default/grub".to_owned();
    Some(Verdict::Blocked { reason, cure })
}

/// A version that ends a fault, as an advisory says, and that apt does not bring: lists or a mirror that lag behind, a source that is
/// missing, a pin. Nobody can say then that all is well.
pub(super) fn not_offered(exposures: &[Exposure]) -> Option<Missing> {
    let mut open = exposures.iter().filter(|exposure| exposure.standing == Standing::Open);
    let Exposure { package, fixed_in, id, .. } = open.find(|exposure| exposure.fixed_in.is_some())?;
    Some(Missing {
        what: format!("apt does not bring {package} {}, which ends {id}", fixed_in.as_deref().unwrap_or_default()),
        cure: "apt-get update; look at apt's sources and pins (`apt-cache policy`)".to_owned(),
    })
}

/// A kernel that runs, has faults that are mended, and is newer than what apt follows: one that was tried, or whose source is gone.
fn unfollowed(kernel: &Kernel, candidate: &Candidate, exposures: &[Exposure]) -> Result<Option<Verdict>, Missing> {
    let mended = exposures.iter().filter(|exposure| {
        exposure.package == LINUX && exposure.fixed_in.is_some() && exposure.standing == Standing::Open
    });
    let count = mended.count();
    if count == 0 || !is_before(&candidate.version, &kernel.version)? {
        return Ok(None);
    }
    let Candidate { metapackage, version, .. } = candidate;
    Ok(Some(Verdict::Blocked {
        reason: format!(
            "the kernel {} that runs is newer than {version}, which {metapackage} follows; {count} of its faults are mended \
             in kernels that do not come here",
            kernel.version
        ),
        cure: format!("install {metapackage} from where the running kernel came, or boot the one that it follows"),
    }))
}
