//! What the hosts of the fleet say of themselves.

use std::sync::Arc;

use checkpoint::baseline::highest_level;
use checkpoint::host::Cpu;
use futures_util::future::join_all;

use crate::api::{ApiError, HostCpu, HostView, HostsRemoved};
use crate::error::Result;
use crate::events::{self, What};
use crate::patch::run::drive;
use crate::patch::run::orders::{self, Call, PodStands};
use crate::peer;
use crate::pod::state::{PodRecord, PodState};
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

/// Removes hosts from the fleet: those without pods, and those that are `gone` for good. A run that is under way goes on without
/// them. May be repeated, should it not come to its end.
///
/// A majority of the hosts that stay knows of it when this succeeds, and each of those refuses whoever was removed; what was
/// removed, and hears of it, does nothing more by itself.
///
/// # Errors
/// They have pods, do not answer, or too few of the others do.
pub async fn remove(daemon: &Arc<Daemon>, names: &[String], gone: bool, by: &str) -> Result<HostsRemoved> {
    let identity = daemon.identity()?;
    let authority = identity.authority.as_ref().map(|authority| &authority.name);
    let removed = daemon.store.removed_hosts()?;
    for name in names.iter().filter(|name| !removed.contains(name)) {
        peer::known(daemon, name).await?;
        may_leave(daemon, &identity.name, authority, name, gone).await?;
    }
    let authority = authority.filter(|authority| !names.contains(authority) && !removed.contains(authority));
    if let Some(authority) = authority
        && drive::is_silent(daemon, authority).await
    {
        return Err(ApiError::unreachable(format!(
            "{authority} signs for all hosts of the fleet, and does not answer"
        ))
        .cure("start its podd; if it is gone for good itself, name it, too"));
    }
    let run = drive::dismiss(daemon, names, by).await?.map(|run| run.id);
    let said = Call::Removed { hosts: names.to_vec(), by: by.to_owned() };
    if let Some(authority) = authority {
        orders::call_host::<()>(daemon, authority, &said).await?;
    }
    // Those that go hear of it, too, as long as they are known here.
    join_all(names.iter().map(|name| orders::call_host::<()>(daemon, name, &said))).await;
    forget(daemon, names, by)?;
    let left: Vec<String> = daemon.store.hosts()?.into_iter().map(|host| host.name).collect();
    let others = left.iter().filter(|name| !is_this(daemon, name));
    let told = others.map(async |name| orders::call_host::<()>(daemon, name, &said).await.err().map(|_| name.clone()));
    let untold: Vec<String> = join_all(told).await.into_iter().flatten().collect();
    if (left.len() - untold.len()) * 2 <= left.len() {
        let what =
            format!("most of the hosts that stay do not know of it yet, as they do not answer: {}", untold.join(", "));
        return Err(ApiError::unreachable(what).cure("give this command again when they do"));
    }
    let in_doubt = |record: PodRecord| {
        let (PodState::Given { migration } | PodState::Arriving { migration }) = &record.state else { return None };
        let migration = daemon.store.migration(migration).ok()??;
        names.contains(&migration.peer).then_some(record.spec.name)
    };
    let in_doubt = daemon.pods().iter().filter_map(|pod| in_doubt(pod.record())).collect();
    Ok(HostsRemoved { removed: names.to_vec(), run, in_doubt, untold })
}

/// Whether a host can be removed.
async fn may_leave(daemon: &Daemon, this: &str, authority: Option<&String>, name: &String, gone: bool) -> Result<()> {
    if name == this {
        return Err(ApiError::usage(format!("{name} cannot remove itself"))
            .cure("give this command on another host of the fleet"));
    }
    if drive::is_silent(daemon, name).await {
        let cure = "start its podd; or switch it off for good, and say so with --gone: its pods go with it, but for those that moved";
        return match gone {
            true => Ok(()),
            false => Err(ApiError::unreachable(format!("{name} does not answer")).cure(cure)),
        };
    }
    if authority == Some(name) {
        let what = format!(
            "{name} signs for all hosts of the fleet: without it none can join, and none renews its certificate"
        );
        return Err(ApiError::conflict(what).cure("found another fleet, and have all hosts join that"));
    }
    // No pod comes between this look and the end. A podd that does not know this question is only looked at.
    let leaves: Result<Vec<PodStands>> = orders::call_host(daemon, name, &Call::Leave).await;
    let pods = match leaves {
        Ok(pods) => pods,
        Err(_) => orders::call_host(daemon, name, &Call::Pods).await?,
    };
    match pods.first() {
        None => Ok(()),
        Some(pod) => Err(ApiError::conflict(format!("{name} has {} pod(s), such as {}", pods.len(), pod.name))
            .cure(format!("on {name}: `podctl migrate --all --to HOST`, and `podctl rm` what is not needed"))),
    }
}

/// Forgets hosts that were removed from the fleet: they are served no more.
///
/// # Errors
/// The store's.
pub fn forget(daemon: &Daemon, names: &[String], by: &str) -> Result<()> {
    let known = daemon.store.removed_hosts()?;
    for name in names.iter().filter(|name| !known.contains(name)) {
        let event = events::entry(daemon, by, What::HostRemoved { removed: name.clone() });
        // Before the store, which a start would else complete by its invitation.
        if daemon.identity()?.is_authority() {
            trust::forget(&daemon.config.state.join("pki"), name)?;
        }
        daemon.store.remove_host(name, &event)?;
        events::tell(daemon, &[event]);
    }
    Ok(())
}

/// Refuses if this host was removed from its fleet.
///
/// # Errors
/// It was; or the store's.
pub fn refuse_if_removed(daemon: &Daemon) -> Result<()> {
    match daemon.store.removed_hosts()?.contains(&daemon.config.host) {
        true => Err(ApiError::conflict("this host was removed from its fleet")
            .cure("to join one: stop podd, remove the folder pki from its state, start it, and `podctl host join`")),
        false => Ok(()),
    }
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
