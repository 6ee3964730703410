//! `podctl host init`, `invite`, `join`, `ls`, `rm`: who may move pods to whom; and what a host is told of itself.

use std::net::SocketAddr;

use jiff::Timestamp;
use podd::api::{
    CordonRequest, HostCpu, HostInitRequest, HostInviteRequest, HostJoinRequest, HostRemoveRequest, HostView,
    HostsRemoved, Invitation, ReserveRequest, ReservedMemory,
};
use podd::client::path;
use podd::patch::cordon::Cordon;
use podd::pod::file::quantity;

use super::Podctl;
use crate::error::{DONE, Outcome};
use crate::flags::pod_name;
use crate::output::{printable, table, words};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Begin a fleet: make its certificate authority on this host.
    Init(InitArgs),
    /// Print a token with which one new host can join the fleet.
    Invite(InviteArgs),
    /// Join the fleet of a host that has invited this one.
    Join(JoinArgs),
    /// List the hosts of the fleet.
    Ls,
    /// Remove hosts from the fleet; a patch run goes on without them.
    Rm(RemoveArgs),
    /// Let no pod come to this host, or be started there; those that run there stay.
    Cordon(CordonArgs),
    /// Let pods come again.
    Uncordon(UncordonArgs),
    /// Tell who has cordoned this host, and why.
    Cordons,
    /// Set memory aside that survives a boot, so that pods which sleep meanwhile come back from it, not from the disk.
    ReserveMemory(ReserveArgs),
    /// List the features of this host's processor, as a file for `baseline.cpu` of podd.toml.
    Cpu(CpuArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example, for a file that is the same on all hosts:
  podctl host cpu --fleet >/etc/podd/cpu")]
pub struct CpuArgs {
    /// List what the processors of all hosts of the fleet have in common.
    #[arg(long)]
    fleet: bool,
}

#[derive(Debug, clap::Args)]
pub struct CordonArgs {
    /// Why.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// For so long; without it, until `podctl host uncordon`.
    #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
    seconds: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub struct UncordonArgs {
    /// Whose cordon ends; without it, yours.
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podctl host reserve-memory 4G    # from the next boot on; GRUB is told
  podctl host reserve-memory       # how it stands
  podctl host reserve-memory off")]
pub struct ReserveArgs {
    /// So much, at most half of the host's memory; `off`: none any more; without it, nothing is changed.
    #[arg(value_name = "SIZE|off", value_parser = reserve)]
    size: Option<ReserveRequest>,
}

#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// Name this host.
    #[arg(long, value_parser = pod_name)]
    name: String,
    /// Expect other hosts on this address.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
}

#[derive(Debug, clap::Args)]
pub struct InviteArgs {
    /// Name of the new host.
    #[arg(value_parser = pod_name)]
    name: String,
    /// Let the token be good for this long.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
    valid: u64,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example, on host a and then on host b:
  a$ podctl host init --name a --listen 192.0.2.1:7777
  a$ podctl host invite b
  b$ podctl host join 192.0.2.1:7777 TOKEN --name b --listen 192.0.2.2:7777")]
pub struct JoinArgs {
    /// Address of the inviting host.
    #[arg(value_name = "IP:PORT")]
    authority: SocketAddr,
    /// The token that `podctl host invite` printed there.
    token: String,
    /// Name this host, as in the invitation.
    #[arg(long, value_parser = pod_name)]
    name: String,
    /// Expect other hosts on this address.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A host that answers must have no pods. One that does not answer is removed with --gone, which says that it is off and stays off:
the pods that were on it are lost to the fleet. In a fleet of two, this is how the other one goes on with a patch run:
  podctl host rm b --gone
  podctl patch resume

To come back, a host must join anew: stop its podd, remove the folder pki from its state, and invite it. Without the host
that founded the fleet no other one can join any more, and certificates end a year after they were made or renewed.")]
pub struct RemoveArgs {
    /// Their names.
    #[arg(value_name = "NAME", required = true)]
    hosts: Vec<String>,
    /// Those that do not answer are off, and never come back.
    #[arg(long)]
    gone: bool,
}

pub async fn run(verb: Verb, ctl: &Podctl<'_>) -> Outcome {
    match verb {
        Verb::Init(InitArgs { name, listen }) => {
            let request = HostInitRequest { name, listen: listen.to_string() };
            let host: HostView = ctl.daemon.post(&path(&["host", "init"]), &request).await?;
            ctl.out.show(&host, |host| format!("{} begins a fleet on {}", host.name, host.address));
        }
        Verb::Invite(InviteArgs { name, valid }) => {
            let request = HostInviteRequest { name: name.clone(), valid_s: valid };
            let invitation: Invitation = ctl.daemon.post(&path(&["host", "invite"]), &request).await?;
            if !ctl.out.is_json() {
                let minutes = words::age(Timestamp::now(), invitation.expires);
                ctl.out.note(&format!("good once, for host {name}, for {minutes}"));
            }
            ctl.out.show(&invitation, |invitation| invitation.token.clone());
        }
        Verb::Join(JoinArgs { authority, token, name, listen }) => {
            let (authority, listen) = (authority.to_string(), listen.to_string());
            let request = HostJoinRequest { authority, token: token.trim().to_owned(), name, listen };
            let host: HostView = ctl.daemon.post(&path(&["host", "join"]), &request).await?;
            ctl.out.show(&host, |host| format!("{} joined the fleet of {}", host.name, request.authority));
        }
        Verb::Ls => {
            let hosts: Vec<HostView> = ctl.daemon.get(&path(&["hosts"])).await?;
            ctl.out.show(&hosts, |hosts| in_words(hosts));
        }
        Verb::Rm(RemoveArgs { hosts, gone }) => {
            let request = HostRemoveRequest { hosts, gone };
            let removed: HostsRemoved = ctl.daemon.post(&path(&["host", "remove"]), &request).await?;
            ctl.out.show(&removed, in_sentences);
        }
        Verb::Cordon(CordonArgs { reason, seconds }) => {
            let request = CordonRequest { reason, seconds };
            let all: Vec<Cordon> = ctl.daemon.post(&path(&["host", "cordon"]), &request).await?;
            ctl.out.show(&all, |all| cordons(all));
        }
        Verb::Uncordon(UncordonArgs { owner }) => {
            let request = serde_json::json!({ "owner": owner });
            let all: Vec<Cordon> = ctl.daemon.post(&path(&["host", "uncordon"]), &request).await?;
            ctl.out.show(&all, |all| cordons(all));
        }
        Verb::Cordons => {
            let all: Vec<Cordon> = ctl.daemon.get(&path(&["host", "cordons"])).await?;
            ctl.out.show(&all, |all| cordons(all));
        }
        Verb::ReserveMemory(ReserveArgs { size }) => {
            let path = path(&["host", "reserved-memory"]);
            let memory: ReservedMemory = match size {
                Some(request) => ctl.daemon.post(&path, &request).await?,
                None => ctl.daemon.get(&path).await?,
            };
            ctl.out.show(&memory, ReservedMemory::in_words);
        }
        Verb::Cpu(CpuArgs { fleet }) => {
            let cpu: HostCpu = ctl.daemon.get(&format!("{}?fleet={fleet}", path(&["host", "cpu"]))).await?;
            ctl.out.show(&cpu, features);
        }
    }
    Ok(DONE)
}

/// A file for podd.toml, one feature a line.
fn features(cpu: &HostCpu) -> String {
    let level = cpu.level.as_ref().map(|level| format!(" (at least {level})")).unwrap_or_default();
    let head = format!("# Features of the processors of {}{level}.\n", cpu.hosts.join(", "));
    cpu.features.iter().fold(head, |text, feature| text + feature + "\n")
}

fn cordons(all: &[Cordon]) -> String {
    if all.is_empty() {
        return "this host takes pods".to_owned();
    }
    let until = |cordon: &Cordon| cordon.until.map(|until| format!("{until:.0}")).unwrap_or_default();
    let rows = all
        .iter()
        .map(|cordon| [cordon.owner.clone(), format!("{:.0}", cordon.since), until(cordon), printable(&cordon.reason)]);
    table(["CORDONED BY", "SINCE", "UNTIL", "WHY"], rows)
}

fn in_words(hosts: &[HostView]) -> String {
    let rows = hosts.iter().map(|host| {
        let state = match (host.this, host.reachable) {
            (true, _) => "this host",
            (false, Some(true)) => "reachable",
            (false, Some(false)) => "unreachable",
            (false, None) => "not asked",
        };
        let baseline = host.baseline.as_ref().map(ToString::to_string).unwrap_or_default();
        [host.name.clone(), host.address.clone(), state.to_owned(), baseline]
    });
    table(["NAME", "ADDRESS", "STATE", "BASELINE"], rows)
}

fn in_sentences(removed: &HostsRemoved) -> String {
    let mut text = format!("removed from the fleet: {}", removed.removed.join(", "));
    if let Some(run) = &removed.run {
        text += &format!("\npatch run {run} counts on the others now; if it stands still: `podctl patch resume`");
    }
    for pod in &removed.in_doubt {
        text += &format!(
            "\n{pod} was on its way between this host and one that is gone; if it runs nowhere else: `podctl resume {pod}`"
        );
    }
    if !removed.untold.is_empty() {
        let untold = removed.untold.join(", ");
        text += &format!(
            "\nnot told, as they do not answer: {untold}. Say it there, too, if `podctl host ls` still lists what was removed"
        );
    }
    text
}

fn reserve(text: &str) -> Result<ReserveRequest, String> {
    let bytes = (text != "off").then(|| quantity::size(text).filter(|bytes| *bytes > 0));
    let wrong = || "write a size, such as 4G, or off".to_owned();
    Ok(ReserveRequest { bytes: bytes.map(|bytes| bytes.ok_or_else(wrong)).transpose()? })
}

fn seconds(text: &str) -> Result<u64, String> {
    let seconds = quantity::seconds(text).filter(|seconds| *seconds > 0);
    seconds.ok_or_else(|| "write a duration, such as 30m or 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_as_a_table() {
        let host = |name: &str, this, reachable| HostView {
            name: name.into(),
            address: "192.0.2.1:7777".into(),
            this,
            reachable,
            baseline: this.then(Default::default),
        };
        assert_eq!(
            in_words(&[host("a", true, None), host("b", false, Some(false))]),
            "\
NAME  ADDRESS         STATE        BASELINE
a     192.0.2.1:7777  this host    6.1 host
b     192.0.2.1:7777  unreachable  -
"
        );
    }

    #[test]
    fn features_as_a_file() {
        let cpu = HostCpu {
            hosts: vec!["a".into(), "b".into()],
            level: Some("x86-64-v1".into()),
            features: vec!["aes".into(), "sse2".into()],
        };
        assert_eq!(features(&cpu), "# Features of the processors of a, b (at least x86-64-v1).\naes\nsse2\n");
    }
}
