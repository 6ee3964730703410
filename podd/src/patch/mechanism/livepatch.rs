//! Live patches: loaded by the distribution's tool, and watched until every task runs the new functions. Never forced
//! (Documentation/livepatch/livepatch.rst, "Consistency model": that can leave the kernel inconsistent).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::tool;
use crate::api::ApiError;
use crate::error::Result;
use crate::patch::watch;
use crate::supervisor::Daemon;

const LIMIT: Duration = Duration::from_secs(60);
/// Tasks that sleep in an old function are waited for so long, in seconds.
const TRANSITION: u32 = 600;
const LOADED: &str = "/sys/kernel/livepatch";

/// Loads what trusted manifests offer for the running kernel, and is not loaded yet.
pub(super) async fn load(daemon: &Arc<Daemon>, run: &str) -> Result<()> {
    watch::look(daemon, false).await?;
    let version =
        watch::facts(daemon).and_then(|facts| Some(facts.kernel.known()?.version.clone())).unwrap_or_default();
    let fitting = watch::covers(daemon).into_iter().filter(|cover| cover.kernels.contains(&version));
    let fitting: Vec<(String, String)> = fitting.filter_map(|cover| Some((cover.patch, cover.module?))).collect();
    if fitting.is_empty() {
        return Err(ApiError::conflict(format!("no live patch for {version} is there any more"))
            .cure("see `podctl livepatch ls`"));
    }
    for (name, module) in fitting {
        if !Path::new(LOADED).join(&name).exists() {
            let has_tool = ["/usr/sbin/kpatch", "/usr/bin/kpatch"].iter().any(|path| Path::new(path).exists());
            let command: [&str; 3] = ["kpatch", "load", &module];
            let command = if has_tool { &command[..] } else { &["insmod", &module][..] };
            let said = tool::run(daemon, run, command, LIMIT).await?;
            if !said.is_well() {
                return Err(ApiError::failed(format!("the kernel does not take {name}: {}", said.last()))
                    .cure("see that it is made for this very kernel: `dmesg`"));
            }
        }
        settle(&name).await?;
    }
    Ok(())
}

/// Waits for the transition; one that does not come to its end is taken back.
async fn settle(name: &str) -> Result<()> {
    let folder = Path::new(LOADED).join(name);
    for _ in 0..TRANSITION {
        if std::fs::read_to_string(folder.join("transition")).is_ok_and(|text| text.trim() == "0") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let _ = std::fs::write(folder.join("enabled"), "0");
    Err(ApiError::failed(format!("{name} was not in use by all tasks after {TRANSITION} s, and is taken back"))
        .cure("find the tasks with 1 in /proc/PID/patch_state that sleep in an old function"))
}
