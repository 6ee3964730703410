//! What the hosts of the fleet say of themselves.

use std::sync::Arc;

use checkpoint::baseline::highest_level;
use checkpoint::host::Cpu;
use futures_util::future::join_all;

use crate::api::{ApiError, HostCpu, HostView};
use crate::error::Result;
use crate::peer;
use crate::supervisor::Daemon;

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
