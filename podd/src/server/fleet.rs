//! What the hosts of the fleet say of themselves.

use std::sync::Arc;

use checkpoint::baseline::highest_level;
use checkpoint::host::Cpu;
use futures_util::future::join_all;

use crate::api::{ApiError, HostCpu, HostView, HostsRemoved};
use crate::error::Result;
use crate::events::{self, What};
use crate::patch::run::drive;
use crate::patch::run::orders::{self, Call};
use crate::peer;
use crate::supervisor::Daemon;
use crate::trust;

/// Names of all hosts; of a host without a fleet: its own.
///
/// # Errors
/// The store's.
pub async fn names(daemon: &Arc<Daemon>) -> Result<Vec<String>> {
    let _ = peer::learn_hosts(daemon).await;
    let names: Vec<String> = daemon.store.hosts()?.into_iter().map(|host| host.name).collect();
    Ok(if names.is_empty() { vec![daemon.config.host.clone()] } else { names })
}

/// All hosts that are known, each asked whether it is there; of a host without a fleet: none.
///
/// # Errors
/// The store's.
pub async fn hosts(daemon: &Arc<Daemon>) -> Result<Vec<HostView>> {
    // As far as we can: without the authority, those whom we know.
    let _ = peer::learn_hosts(daemon).await;
    let asked = daemon.store.hosts()?.into_iter().map(async |host| {
        let this = is_this(daemon, &host.name);
        let answer =
            if this { Some(Some(daemon.baseline.clone())) } else { peer::baseline_of(daemon, &host.name).await };
        HostView {
            name: host.name,
            address: host.address.to_string(),
            this,
            reachable: Some(answer.is_some()),
            baseline: answer.flatten(),
        }
    });
    Ok(join_all(asked).await)
}

/// Removes hosts from the fleet: of those that do not answer, only what is `gone` for good. A run that is under way goes on without them.
///
/// A majority of the hosts that are left knows of it before this host forgets them, so that of the hosts that stay none can be in a
/// majority with a host that was removed (as in single-server changes of Raft's configuration, Ongaro's thesis, section 4.1; of
/// several at once, `gone` is the operator's word for that).
///
/// # Errors
/// They have pods, do not answer, or the authority does not.
pub async fn remove(daemon: &Arc<Daemon>, names: &[String], gone: bool, by: &str) -> Result<HostsRemoved> {
    let identity = daemon.identity()?;
    for name in names {
        peer::known(daemon, name).await?;
        if *name == identity.name {
            return Err(ApiError::usage(format!("{name} cannot remove itself"))
                .cure("give this command on another host of the fleet"));
        }
        if drive::is_silent(daemon, name).await {
            if !gone {
                return Err(ApiError::unreachable(format!("{name} does not answer")).cure(
                    "start its podd; or switch it off for good, and say so with --gone: its pods go with it, but for those that moved",
                ));
            }
            continue;
        }
        let pods = peer::plan_facts_of(daemon, name).await?.pods;
        if let Some(pod) = pods.first() {
            return Err(ApiError::conflict(format!("{} pod(s) run on {name}, such as {}", pods.len(), pod.name))
                .cure(format!("have them leave first: `podctl migrate --all --to HOST` on {name}")));
        }
    }
    let authority = identity.authority.as_ref().map(|authority| &authority.name);
    let authority = authority.filter(|authority| !names.contains(authority));
    let run = drive::dismiss(daemon, names, by).await?.map(|run| run.id);
    let said = Call::Removed { hosts: names.to_vec(), by: by.to_owned() };
    if let Some(authority) = authority {
        orders::call_host::<()>(daemon, authority, &said).await.map_err(|e| {
            e.cure(format!(
                "{authority} signs for all hosts of the fleet, and must know; if it is gone itself, name it, too"
            ))
        })?;
    }
    // Those that go hear of it, too, as long as they are known here.
    join_all(names.iter().map(|name| orders::call_host::<()>(daemon, name, &said))).await;
    forget(daemon, names, by)?;
    let left: Vec<String> = daemon.store.hosts()?.into_iter().map(|host| host.name).collect();
    let others = left.into_iter().filter(|name| !is_this(daemon, name));
    let told = others.map(async |name| orders::call_host::<()>(daemon, &name, &said).await.err().map(|_| name));
    let untold = join_all(told).await.into_iter().flatten().collect();
    Ok(HostsRemoved { removed: names.to_vec(), run, untold })
}

/// Forgets hosts that were removed from the fleet: they are served no more.
///
/// # Errors
/// The store's.
pub fn forget(daemon: &Daemon, names: &[String], by: &str) -> Result<()> {
    for name in names {
        let event = events::entry(daemon, by, What::HostRemoved { removed: name.clone() });
        if *name == daemon.config.host {
            // It is for people to give it another fleet.
            daemon.store.add_events(std::slice::from_ref(&event))?;
            events::tell(daemon, &[event]);
            continue;
        }
        // Before the store, which a start would else complete by its invitation.
        if daemon.identity()?.is_authority() {
            trust::forget(&daemon.config.state.join("pki"), name)?;
        }
        daemon.store.remove_host(name, &event)?;
        events::tell(daemon, &[event]);
    }
    Ok(())
}

fn is_this(daemon: &Daemon, host: &str) -> bool {
    daemon.identity().is_ok_and(|i| i.name == host)
}

/// The features of this host's processor, or those that the processors of all hosts have in common.
///
/// # Errors
/// A host of the fleet does not answer: what it has is unknown then.
pub async fn cpu(daemon: &Arc<Daemon>, fleet: bool) -> Result<HostCpu> {
    let (mut hosts, mut cpus) = (vec![daemon.config.host.clone()], vec![daemon.cpu.clone()]);
    if fleet {
        daemon.identity()?;
        peer::learn_hosts(daemon).await?;
        let others = daemon.store.hosts()?.into_iter().map(|h| h.name).filter(|name| !is_this(daemon, name));
        let asked = others.map(async |name| (peer::cpu_of(daemon, &name).await, name));
        for (answer, name) in join_all(asked).await {
            let cure = "see that it runs and is reachable: without it, nobody knows what all hosts have";
            cpus.push(answer.map_err(|e| ApiError { message: format!("{name}: {}", e.message), ..e.cure(cure) })?);
            hosts.push(name);
        }
        hosts.sort();
    }
    Ok(in_common(hosts, &cpus))
}

fn in_common(hosts: Vec<String>, cpus: &[Cpu]) -> HostCpu {
    let first = cpus.first().map(Cpu::features).into_iter().flatten();
    let features: Vec<String> = first.filter(|f| cpus.iter().all(|cpu| cpu.has(f))).map(str::to_owned).collect();
    let common = Cpu { flags: features.clone(), ..Cpu::default() };
    HostCpu { hosts, level: highest_level(&common).map(str::to_owned), features }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_processors_have() {
        let v1 = ["cmov", "cx8", "fpu", "fxsr", "lm", "mmx", "sse", "sse2", "syscall"];
        let cpu = |more: &[&str]| Cpu {
            flags: v1.iter().chain(more).map(|f| (*f).to_owned()).collect(),
            cpuid: vec![1],
            ..Cpu::default()
        };
        let common =
            in_common(vec!["a".into(), "b".into()], &[cpu(&["aes", "avx", "vmx"]), cpu(&["avx", "vmx", "xop"])]);
        assert_eq!(common.features, v1.iter().chain(&["avx"]).map(|f| (*f).to_owned()).collect::<Vec<_>>());
        assert_eq!(common.level.as_deref(), Some("x86-64-v1"));
    }
}
