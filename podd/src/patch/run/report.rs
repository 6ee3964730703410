//! A run for people, afterwards: every step, its time, and how long each pod was silent.

use jiff::Timestamp;

use super::{HostRun, Run};
use crate::patch::policy::words;

/// In Markdown.
#[must_use]
pub fn markdown(run: &Run) -> String {
    let ended = run.ended.map_or_else(|| "now".to_owned(), |ended| format!("{ended:.0}"));
    let took = words(run.ended.unwrap_or_else(Timestamp::now).duration_since(run.began));
    let mut text = format!(
        "# Patch run {}: {}\n\n{}. Begun {:.0} by {}, carried out by {}, until {ended}: {took}.\n",
        run.id,
        run.state.word(),
        run.in_words(),
        run.began,
        run.by,
        run.coordinator
    );
    for host in &run.hosts {
        text += &of_host(host);
    }
    let pods: String = run.hosts.iter().map(pods_of).collect();
    if !pods.is_empty() {
        text += &format!("\n## Pods\n\n| pod | from | to | silent |\n|---|---|---|---|\n{pods}");
    }
    text
}

fn pods_of(host: &HostRun) -> String {
    let for_so_long = |ms: Option<f64>| ms.map_or_else(|| "not known".to_owned(), |ms| format!("{ms:.0} ms"));
    let moved = host.moves.iter().map(|m| {
        let silent = match (m.done, &m.error) {
            (_, Some(error)) => error.clone(),
            (true, None) => for_so_long(m.blackout_ms),
            (false, None) => "under way".to_owned(),
        };
        format!("| {} | {} | {} | {} |\n", m.pod, m.from, m.to, cell(&silent))
    });
    let slept = host.slept.iter().map(|slept| {
        format!("| {} | {} | stayed, asleep | {} |\n", slept.pod, host.host, for_so_long(slept.asleep_ms))
    });
    moved.chain(slept).collect()
}

fn of_host(host: &HostRun) -> String {
    let how = if host.patch { host.mechanism.verdict() } else { "leave" };
    let mut text = format!("\n## {}: {}\n\nBy {how}: {}.\n", host.host, host.step.word(), host.why);
    if let Some(change) = host.change.as_ref().filter(|change| !change.packages.is_empty()) {
        text += &format!("Installed: {}", change.packages.join(", "));
        text += &change.kernel.as_ref().map(|kernel| format!(" (kernel {kernel})")).unwrap_or_default();
        text += &format!(". Ends: {}.\n", change.ends.join(", "));
    }
    if let Some(trouble) = &host.trouble {
        text += &format!("**Failed in {}: {}**", trouble.step.word(), trouble.what);
        text += &trouble.cure.as_ref().map(|cure| format!("; cure: {cure}")).unwrap_or_default();
        text += "\n";
    }
    if let Some(foretold) = &host.foretold {
        let cure = foretold.cure.as_ref().map(|cure| format!("; cure: {cure}")).unwrap_or_default();
        text += &format!("Before its turn, {:.0}, this stood in its way: {}{cure}\n", foretold.at, foretold.what);
    }
    for remark in &host.remarks {
        text += &format!("Note: {remark}.\n");
    }
    if !host.begun.is_empty() {
        text += "\n| step | begun | took |\n|---|---|---|\n";
        for (at, begun) in host.begun.iter().enumerate() {
            let took = host.begun.get(at + 1).map(|next| words(next.at.duration_since(begun.at))).unwrap_or_default();
            text += &format!("| {} | {:.0} | {took} |\n", begun.step.word(), begun.at);
        }
    }
    if !host.proofs.is_empty() {
        text += "\n| proof | | seen |\n|---|---|---|\n";
        for proof in &host.proofs {
            text += &format!(
                "| {} | {} | {} |\n",
                cell(&proof.what),
                if proof.well { "well" } else { "**ill**" },
                cell(&proof.seen)
            );
        }
    }
    text
}

/// Text within a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
