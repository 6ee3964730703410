//! Booting the host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{in_place, tool};
use crate::api::ApiError;
use crate::error::Result;
use crate::patch::decide::Mechanism;
use crate::patch::run::keep::own_part;
use crate::pod::state::PodState;
use crate::supervisor::Daemon;

/// The command only asks for it.
const LIMIT: Duration = Duration::from_secs(60);

/// Sees, before anything is done, whether the operator's command can boot this host.
pub(super) fn check(command: &[String]) -> Result<()> {
    let program = command.first().map_or("", String::as_str);
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |folder: PathBuf| folder.join(program).is_file();
    if program.is_empty() || !(Path::new(program).is_file() || std::env::split_paths(&folders).any(is_there)) {
        let what = format!("podd is to boot this host with {program:?}, and there is no such program");
        return Err(ApiError::conflict(what).cure("correct `reboot` in podd.toml"));
    }
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let (disabled, lockdown) = (read("/proc/sys/kernel/kexec_load_disabled"), read("/sys/kernel/security/lockdown"));
    refusal(command, &disabled, &lockdown).map_or(Ok(()), |why| {
        let what = format!("podd is to boot this host by kexec, and {why}");
        Err(ApiError::conflict(what).cure("set `reboot` in podd.toml to a command that boots through the firmware"))
    })
}

/// Why the kernel lets nobody kexec (Documentation/admin-guide/sysctl/kernel.rst, `kernel_lockdown`(7)); none: it does, or the
/// command does not try.
fn refusal(command: &[String], disabled: &str, lockdown: &str) -> Option<&'static str> {
    let words = || command.iter().flat_map(|word| word.split_whitespace());
    if !words().any(|word| word.rsplit('/').next() == Some("kexec")) {
        return None;
    }
    if disabled.trim() == "1" {
        return Some("kernel.kexec_load_disabled=1 forbids it until the next boot");
    }
    let is_locked = ["[integrity]", "[confidentiality]"].iter().any(|mode| lockdown.contains(mode));
    // With these the kernel itself reads the new one, and looks at its signature.
    let is_signed = words().any(|word| ["-s", "--kexec-file-syscall", "-a", "--kexec-syscall-auto"].contains(&word));
    (is_locked && !is_signed)
        .then_some("the kernel is locked down (secure boot): it takes signed ones only, by `kexec -s`")
}

/// Boots, unless the host has since this boot. Never with a pod that runs.
pub(super) async fn reboot(daemon: &Arc<Daemon>, (run, term): (&str, u64), boot_id: &str) -> Result<()> {
    if daemon.boot != boot_id {
        return Ok(());
    }
    super::goes_on(daemon, (run, term))?;
    let is_in_place = own_part(daemon)?.is_some_and(|host| host.mechanism == Mechanism::InPlace);
    if is_in_place {
        // Somebody may have woken one up since, or started another one.
        in_place::suspend(daemon, (run, term), false).await?;
    }
    let records = daemon.pods().into_iter().map(|pod| pod.record());
    let alive = |state: &PodState| {
        matches!(state, PodState::Running { .. } | PodState::Arriving { .. } | PodState::Given { .. })
    };
    if let Some(pod) = records.into_iter().find(|record| alive(&record.state)) {
        let what = format!("{} is still on {}, which is not booted with it", pod.spec.name, daemon.config.host);
        return Err(ApiError::conflict(what).cure("move it, or stop it"));
    }
    nix::unistd::sync();
    let command: Vec<&str> = daemon.config.reboot.iter().map(String::as_str).collect();
    let said = tool::run(daemon, run, &command, LIMIT).await?;
    match said.status {
        Some(status) if !status.success() => {
            Err(ApiError::failed(format!("{} does not boot: {}", daemon.config.host, said.last()))
                .cure("set `reboot` in podd.toml to a command that boots this host"))
        }
        _ => {
            if is_in_place {
                // The host goes down. Whoever wants to wake them up waits for its turn until then.
                tokio::time::sleep(LIMIT).await;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kexec_may_be_refused() {
        let (open, locked) = ("[none] integrity confidentiality\n", "none [integrity] confidentiality\n");
        for (command, disabled, lockdown, is_refused) in [
            (vec!["systemctl", "reboot"], "1\n", locked, false),
            (vec!["systemctl", "kexec"], "0\n", open, false),
            (vec!["systemctl", "kexec"], "1\n", open, true),
            (vec!["sh", "-c", "/sbin/kexec -l /vmlinuz && systemctl kexec"], "0\n", locked, true),
            (vec!["sh", "-c", "kexec -s -l /vmlinuz && systemctl kexec"], "0\n", locked, false),
        ] {
            let command: Vec<String> = command.into_iter().map(str::to_owned).collect();
            assert_eq!(refusal(&command, disabled, lockdown).is_some(), is_refused, "{command:?} {lockdown}");
        }
    }

    #[test]
    fn the_command_must_be_there() {
        assert!(check(&["sh".to_owned()]).is_ok());
        for command in [vec![], vec!["/nowhere/boot".to_owned()], vec!["no-such-program".to_owned()]] {
            assert!(check(&command).is_err(), "{command:?}");
        }
    }
}
