//! `podctl inspect`.

use podd::api::{LastCheckpoint, PodDetail, PodView};
use podd::client::baseline::ReliesOn;
use podd::client::path;
use podd::pod::spec::{PodSpec, RestartPolicy, RootSource};

use super::migrations::step;
use super::{Podctl, each, ls};
use crate::error::Outcome;
use crate::flags::pod_name;
use crate::output::{printable, words};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pods to show.
    #[arg(required = true, value_name = "NAME", value_parser = pod_name)]
    names: Vec<String>,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    each(ctl, &args.names, in_words, async |name| ctl.daemon.get::<PodDetail>(&path(&["pods", name])).await).await
}

fn in_words(pod: &PodDetail) -> String {
    let view = &pod.view;
    let mut lines = vec![
        ("name", view.name.clone()),
        ("id", view.id.clone()),
        ("state", ls::state(view)),
        ("host", view.host.clone()),
        ("epoch", view.epoch.to_string()),
        ("started", view.started.map(|time| time.to_string()).unwrap_or_default()),
        ("restarts", view.restarts.to_string()),
        ("pid", pod.pid.map(|pid| pid.to_string()).unwrap_or_default()),
        ("ids", format!("{} to {}", pod.id_base, u64::from(pod.id_base) + 65_535)),
        ("writable layer", pod.writable_layer.clone()),
    ];
    lines.extend(pod.layers.iter().map(|layer| ("layer", layer.clone())));
    let last = view.last_checkpoint.as_ref();
    lines.extend(last.map(|last| ("checkpoint", format!("{} on {} of {}", last.image, last.host, last.taken))));
    if view.state == "lost" {
        lines.push(("cure", after_a_loss(view)));
    }
    lines.extend(of_spec(&pod.spec));
    lines.extend(pod.relies_on.iter().flat_map(relied_on));
    for m in &pod.migrations {
        let blackout = m.blackout_ms.map(|ms| format!(", {} ms blackout", words::ms(ms))).unwrap_or_default();
        let error = m.error.as_ref().map(|error| format!(", {error}")).unwrap_or_default();
        lines.push(("move", format!("{} {} to {}: {}{blackout}{error}", m.started, m.from, m.to, step(m))));
    }
    let lines = lines.iter().filter(|(_, value)| !value.is_empty());
    lines.map(|(key, value)| format!("{:<16}{}\n", format!("{key}:"), printable(value))).collect::<String>()
}

/// What can be had again of a pod whose processes are gone.
fn after_a_loss(pod: &PodView) -> String {
    let name = &pod.name;
    let anew = format!("`podctl start {name}` starts it anew, with the files that it has now");
    match &pod.last_checkpoint {
        None => format!("{anew}; there is no checkpoint of it"),
        Some(LastCheckpoint { image, host, .. }) => {
            format!("{anew}; `podctl rm {name}`, and `podctl restore {image}` on {host}, bring back what it was then")
        }
    }
}

/// What the pod counts on, and the processor that it was started on if that is something else.
fn relied_on(relies_on: &ReliesOn) -> Vec<(&'static str, String)> {
    let born = format!("{} ({} features)", relies_on.born.model, relies_on.born.flags.len());
    let (processor, born) = match (&relies_on.cpu, relies_on.held().is_some()) {
        (Some(cpu), true) => (cpu.name.clone(), born),
        (Some(cpu), false) => {
            let own = relies_on.own.join(", ");
            (format!("{born}; not held to {}, as its own environment sets {own}", cpu.name), String::new())
        }
        (None, _) => (born, String::new()),
    };
    vec![
        ("relies on", format!("kernel {} or later", relies_on.kernel)),
        ("relies on", format!("processor {processor}")),
        ("started on", born),
    ]
}

fn of_spec(spec: &PodSpec) -> Vec<(&'static str, String)> {
    let source = match &spec.source {
        RootSource::Rootfs(path) => ("rootfs", path.display().to_string()),
        RootSource::Image(image) => ("image", image.clone()),
    };
    let restart = match spec.restart {
        RestartPolicy::No => "no",
        RestartPolicy::OnFailure => "on-failure",
        RestartPolicy::Always => "always",
    };
    let mut lines = vec![source, ("command", spec.command.join(" "))];
    lines.extend(spec.env.iter().map(|(key, value)| ("env", format!("{key}={value}"))));
    lines.push(("user", spec.user.clone().unwrap_or_default()));
    lines.push(("workdir", spec.workdir.clone().unwrap_or_default()));
    lines.push(("hostname", spec.hostname.clone().unwrap_or_default()));
    if let Some(network) = &spec.network {
        lines.extend(network.addresses.iter().map(|address| ("ip", address.clone())));
        lines.extend(network.gateways.iter().map(|gateway| ("gateway", gateway.to_string())));
        lines.push(("mac", network.mac.map(|byte| format!("{byte:02x}")).join(":")));
    }
    lines.push(("memory", spec.limits.memory.map(words::memory).unwrap_or_default()));
    lines.push(("cpus", spec.limits.cpus.map(|cpus| cpus.to_string()).unwrap_or_default()));
    lines.push(("pids", spec.limits.pids.map(|pids| pids.to_string()).unwrap_or_default()));
    for volume in &spec.volumes {
        let mode = if volume.read_only { " (read-only)" } else { "" };
        lines.push(("volume", format!("{} at {}{mode}", volume.host.display(), volume.pod.display())));
    }
    lines.push(("capabilities", spec.cap_add.join(" ")));
    if spec.allow_new_privileges {
        lines.push(("new privileges", "allowed".to_owned()));
    }
    lines.push(("restart", restart.to_owned()));
    lines.push(("stop", format!("signal {}, killed after {} s", spec.stop_signal(), spec.stop_timeout_s)));
    lines.push(("log size", words::memory(spec.log_bytes)));
    lines
}
