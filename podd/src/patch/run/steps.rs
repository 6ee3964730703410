//! What the coordinator has a host do in each step, and what it makes of the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;

use super::drive::{Done, Drive, Halt, policy, silent};
use super::orders::{self, Checked, Moved, Order, PodStands, Refusal};
use super::{HostRun, PodMove, Proof, Step, Trouble};
use crate::api::{ApiError, ErrorKind, HealthState};
use crate::error::{Attempt, Result};
use crate::patch::decide::Mechanism;
use crate::patch::plan::Sleep;
use crate::patch::policy::words;
use crate::server::plan;
use crate::supervisor::Daemon;

/// A host that is not to be away may be silent so long: its podd may be started anew.
pub(super) const SILENCE: Duration = Duration::from_secs(120);
/// Between two questions to one that is silent.
const PAUSE: Duration = Duration::from_secs(1);
/// Told to boot, and still there after this, a host is told again.
const TOLD_AGAIN: Duration = Duration::from_secs(60);
/// Moves of one host that are asked for at a time; it has a bound of its own, too.
const TOGETHER: usize = 4;
/// Moves and rehearsals that failed are tried so often, with a pause between.
const ATTEMPTS: u32 = 3;
const ATTEMPT_PAUSE: Duration = Duration::from_secs(4);
/// A pod that could not go to so many hosts goes nowhere: it may be what kills them.
const TRIES: usize = 2;

impl Drive {
    pub(super) async fn perform(&self, daemon: &Arc<Daemon>, host: &HostRun) -> Done {
        let name = host.host.as_str();
        match host.step {
            Step::Waiting | Step::Done | Step::Skipped | Step::Failed => Ok(()),
            Step::Check => self.check(daemon, host).await,
            Step::Cordon => {
                let reason = format!("patch run {}", self.run().id);
                self.ask(daemon, host, Order::Cordon { reason }).await
            }
            Step::Rehearse => self.rehearse(daemon, host).await,
            Step::Evacuate => self.evacuate(daemon, host).await,
            Step::Patch => {
                self.ask(daemon, host, Order::Patch { change: host.change.clone().unwrap_or_default() }).await
            }
            Step::LivePatch => self.ask(daemon, host, Order::LivePatch).await,
            Step::Restart => self.ask(daemon, host, Order::Restart).await,
            Step::Suspend => {
                let asleep: Vec<String> = self.ask(daemon, host, Order::Suspend).await?;
                Ok(self.change(daemon, name, |host| host.asleep = asleep).await?)
            }
            Step::Reboot => self.reboot(daemon, host).await,
            Step::Prove => self.prove(daemon, host).await,
            Step::Return => match policy(daemon).return_pods {
                true => self.bring_back(daemon, host).await,
                false => Ok(()),
            },
            Step::Soak => self.soak(daemon, host).await,
            Step::Uncordon => self.ask(daemon, host, Order::Uncordon).await,
            Step::PutBack => {
                self.bring_back(daemon, host).await?;
                if host.mechanism == Mechanism::InPlace {
                    let () = self.ask(daemon, host, Order::Resume).await?;
                }
                self.ask(daemon, host, Order::Uncordon).await
            }
        }
    }

    async fn check(&self, daemon: &Arc<Daemon>, host: &HostRun) -> Done {
        let Checked { change, remarks } = self.ask(daemon, host, Order::Check { mechanism: host.mechanism }).await?;
        let nothing = change.is_none();
        let note = |host: &mut HostRun| {
            host.change = change;
            host.remarks.extend(remarks);
        };
        self.change(daemon, &host.host, note).await?;
        if nothing {
            self.begin(daemon, &host.host, Step::Skipped).await?;
        }
        Ok(())
    }

    /// Pods that run on a host.
    async fn running(&self, daemon: &Arc<Daemon>, host: &HostRun) -> std::result::Result<Vec<PodStands>, Halt> {
        let pods: Vec<PodStands> = self.ask(daemon, host, Order::Pods).await?;
        Ok(pods.into_iter().filter(|pod| pod.state == "running").collect())
    }

    async fn rehearse(&self, daemon: &Arc<Daemon>, host: &HostRun) -> Done {
        if !policy(daemon).rehearse {
            return Ok(());
        }
        for pod in self.running(daemon, host).await? {
            let Some(to) = host.places.get(&pod.name) else { continue };
            self.may_go_on()?;
            let order = Order::Rehearse { pod: pod.id, to: to.clone() };
            let signature = format!("pod {}", pod.name);
            let rehearsed = self.ask_again::<serde_json::Value>(daemon, &host.host, order).await;
            rehearsed.map_err(|refusal| halt(host, &signature, refusal))?;
        }
        Ok(())
    }

    /// Until no pod runs there any more.
    async fn evacuate(&self, daemon: &Arc<Daemon>, host: &HostRun) -> Done {
        self.close(daemon, host, false).await?;
        // Some may be started meanwhile by their restart policy.
        for _ in 0..3 {
            self.settled(daemon, host).await?;
            let pods = self.running(daemon, host).await?;
            if pods.is_empty() {
                return Ok(());
            }
            let mut moving = stream::iter(pods)
                .map(|pod| async move { self.send_away(daemon, host, &pod).await })
                .buffer_unordered(TOGETHER);
            let mut ended = Ok(());
            while let Some(moved) = moving.next().await {
                // Those under way come to their end.
                if ended.is_ok() {
                    ended = moved;
                }
            }
            ended?;
        }
        match self.running(daemon, host).await?.first() {
            None => Ok(()),
            Some(pod) => {
                let error = ApiError::failed(format!("{} is started there again and again", pod.name))
                    .cure("see who starts it; a host that is cordoned takes none");
                Err(trouble(host, &format!("pod {}", pod.name), &error))
            }
        }
    }

    /// Brings moves there, or back, to their end that a coordinator before us had begun, or we had, when it died.
    async fn close(&self, daemon: &Arc<Daemon>, host: &HostRun, back: bool) -> Done {
        for m in host.moves.iter().filter(|m| m.back == back && !m.done && m.error.is_none()) {
            // What becomes of the pod is seen by whoever asks where it is.
            drop(self.send(daemon, host, (&m.id, &m.pod), &m.from, &m.to).await?);
        }
        Ok(())
    }

    /// Waits until no pod is on its way any more: a coordinator before us may have sent some, or somebody else.
    async fn settled(&self, daemon: &Arc<Daemon>, host: &HostRun) -> Done {
        let begun = Instant::now();
        loop {
            let pods: Vec<PodStands> = self.ask(daemon, host, Order::Pods).await?;
            let Some(moving) = pods.iter().find(|pod| pod.is_moving) else { return Ok(()) };
            if begun.elapsed() > SILENCE {
                let what = format!("{} is on its way, and does not arrive: it is {}", moving.name, moving.state);
                let error = ApiError::failed(what).cure("see `podctl migrations`");
                return Err(trouble(host, &format!("pod {}", moving.name), &error));
            }
            self.may_go_on()?;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Has a pod leave: to where the plan has it go, or else to another host.
    async fn send_away(&self, daemon: &Arc<Daemon>, host: &HostRun, pod: &PodStands) -> Done {
        let (mut tried, mut why) = (Vec::new(), Vec::new());
        while tried.len() < TRIES {
            // Others of its group may have come somewhere meanwhile.
            let Some(to) = self.place(daemon, host, pod, &tried).await? else { break };
            self.may_go_on()?;
            match self.send(daemon, host, (&pod.id, &pod.name), &host.host, &to).await? {
                Ok(()) => return Ok(()),
                Err(error) => why.push(format!("{to} ({})", error.message)),
            }
            tried.push(to);
        }
        self.may_go_on()?;
        let what = match (why.is_empty(), &pod.group) {
            (false, _) => format!("{} could not go to {}", pod.name, why.join(", nor to ")),
            (true, Some(group)) => format!("there is no host for {} without a pod of the group {group}", pod.name),
            (true, None) => format!("there is no host for {}: none has room, and what it counts on", pod.name),
        };
        let error = ApiError::failed(what).cure(format!(
            "see `podctl preflight {} --to HOST`; `podctl patch plan` tells of each host what it lacks",
            pod.name
        ));
        Err(trouble(host, &format!("pod {}", pod.name), &error))
    }

    /// Where a pod can go: where it was planned to, else to the best other host that has room for it as things are now; nowhere where
    /// one of its group is, or is about to be, and nowhere where it has been tried.
    async fn place(
        &self,
        daemon: &Arc<Daemon>,
        host: &HostRun,
        pod: &PodStands,
        tried: &[String],
    ) -> Result<Option<String>> {
        let mut taken = BTreeSet::new();
        if pod.group.is_some() {
            let mut alike = self.stand(daemon).await.pods;
            alike.retain(|(_, other)| {
                other.group == pod.group && other.id != pod.id && (other.is_moving || other.state == "running")
            });
            let run = self.run();
            let coming = run
                .hosts
                .iter()
                .flat_map(|host| &host.moves)
                .filter(|m| !m.done && m.error.is_none() && alike.iter().any(|(_, other)| other.id == m.id));
            taken.extend(coming.map(|m| m.to.clone()));
            taken.extend(alike.into_iter().map(|(at, _)| at));
        }
        let run = self.run();
        let is_away = |name: &String| {
            run.host(name).is_some_and(|host| !matches!(host.step, Step::Waiting | Step::Done | Step::Skipped))
        };
        let may_take = |name: &String| !is_away(name) && !taken.contains(name) && !tried.contains(name);
        if let Some(planned) = host.places.get(&pod.name).filter(|name| may_take(name)) {
            return Ok(Some(planned.clone()));
        }
        let others = plan::candidates(daemon, &host.host, &pod.name).await?;
        Ok(others.into_iter().find(|name| run.members.contains(name) && may_take(name)))
    }

    /// Moves a pod of one host's to another. First: the run, or the host, halts. Second: why the pod did not go.
    async fn send(
        &self,
        daemon: &Arc<Daemon>,
        of: &HostRun,
        (id, name): (&str, &str),
        from: &str,
        to: &str,
    ) -> std::result::Result<Result<()>, Halt> {
        let back = to == of.host;
        let intent = PodMove {
            id: id.to_owned(),
            pod: name.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            back,
            done: false,
            blackout_ms: None,
            error: None,
            at: None,
        };
        let same = |m: &PodMove| m.id == intent.id && m.from == intent.from && m.to == intent.to && !m.done;
        let planned = intent.clone();
        let note = |host: &mut HostRun| {
            if !host.moves.iter().any(same) {
                host.moves.push(planned);
            }
        };
        self.change(daemon, &of.host, note).await?;
        let order = Order::Move { pod: id.to_owned(), to: to.to_owned() };
        let moved: std::result::Result<Moved, ApiError> = match self.ask_again(daemon, from, order).await {
            Ok(moved) => Ok(moved),
            Err(Refusal::Failed(error) | Refusal::Silent(error)) => Err(error),
            Err(Refusal::Overtaken(error)) => return Err(Halt::Run(error)),
        };
        let note = |host: &mut HostRun| {
            if let Some(m) = host.moves.iter_mut().rev().find(|m| same(m)) {
                let ended = moved.as_ref().is_ok_and(|moved| moved.has_ended).then(|| "it has ended".to_owned());
                m.done = moved.is_ok() && ended.is_none();
                m.blackout_ms = moved.as_ref().ok().and_then(|moved| moved.blackout_ms);
                m.error = moved.as_ref().err().map(|error| error.message.clone()).or(ended);
                m.at = Some(Timestamp::now());
                if let Some(other) = moved.as_ref().ok().and_then(|moved| moved.at.clone()) {
                    m.to = other;
                }
            }
        };
        self.change(daemon, &of.host, note).await?;
        let Err(error) = moved else { return Ok(Ok(())) };
        // It may be lost, and then nothing more is to move.
        match self.is_lost(daemon, id, [from, to]).await? {
            false => Ok(Err(error)),
            true => {
                let mut lost = trouble_of(of, &format!("pod {name}"), &error);
                lost.pod_lost = true;
                Err(Halt::Host(Box::new(lost)))
            }
        }
    }

    /// Whether a pod is lost on one of these hosts, and does not run on another. Where it belongs may still have to be settled.
    async fn is_lost(&self, daemon: &Arc<Daemon>, id: &str, hosts: [&str; 2]) -> Result<bool> {
        let begun = Instant::now();
        loop {
            let mut stands: Vec<PodStands> = Vec::new();
            for host in hosts {
                let pods = self.ask_at::<Vec<PodStands>>(daemon, host, Order::Pods).await.unwrap_or_default();
                stands.extend(pods.into_iter().filter(|pod| pod.id == id));
            }
            if begun.elapsed() > SILENCE || !stands.iter().any(|pod| pod.is_moving) {
                let is_well = stands.iter().any(|pod| pod.is_moving || pod.state == "running");
                return Ok(!is_well && stands.iter().any(|pod| pod.state == "lost"));
            }
            self.may_go_on()?;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn reboot(&self, daemon: &Arc<Daemon>, host: &HostRun) -> Done {
        let limit = policy(daemon).back_within;
        if host.back_by.is_none() {
            // Written down before it is told: whoever takes the run over knows by it whether the host has booted.
            let boot_id: String = self.ask(daemon, host, Order::Boot).await?;
            let back_by = Timestamp::now().checked_add(limit.0).attempt("reckon with such a limit")?;
            let note = |host: &mut HostRun| (host.boot_id, host.back_by) = (Some(boot_id), Some(back_by));
            self.change(daemon, &host.host, note).await?;
        }
        let HostRun { boot_id, back_by, .. } = self.host(&host.host)?;
        let (boot_id, back_by) = (boot_id.unwrap_or_default(), back_by.unwrap_or(Timestamp::UNIX_EPOCH));
        let mut told: Option<Instant> = None;
        loop {
            self.may_go_on()?;
            let boot: std::result::Result<String, Refusal> =
                orders::order(daemon, &self.run(), &host.host, Order::Boot).await;
            match boot {
                Err(Refusal::Overtaken(error)) => return Err(Halt::Run(error)),
                Ok(now) if now != boot_id => break,
                Ok(_) if told.is_none_or(|at| at.elapsed() > TOLD_AGAIN) => {
                    told = Some(Instant::now());
                    let order = Order::Reboot { boot_id: boot_id.clone() };
                    if let Err(Refusal::Failed(error)) =
                        orders::order::<()>(daemon, &self.run(), &host.host, order).await
                    {
                        self.may_go_on()?;
                        if host.mechanism == Mechanism::InPlace {
                            // It does not boot, so they need not sleep.
                            let () = self.ask(daemon, host, Order::Resume).await?;
                        }
                        return Err(trouble(host, "reboot", &error));
                    }
                }
                Ok(_) | Err(Refusal::Silent(_) | Refusal::Failed(_)) => {}
            }
            if Timestamp::now() > back_by {
                let what = format!("it was told to boot, and is not back after {}", words(limit.0));
                let error = ApiError::failed(what).cure(
                    "look at its console; once it is back, or if it stays away, `podctl patch resume` or `podctl patch cancel`",
                );
                let mut gone = trouble_of(host, "reboot", &error);
                gone.host_gone = true;
                return Err(Halt::Host(Box::new(gone)));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(self.change(daemon, &host.host, |host| host.back_by = None).await?)
    }

    async fn prove(&self, daemon: &Arc<Daemon>, host: &HostRun) -> Done {
        let run = self.run();
        // Others of its wave may boot meanwhile.
        let is_there = |name: &&String| {
            let is_at_work = |other: &HostRun| {
                let may_boot = other.mechanism >= Mechanism::InPlace && !other.step.is_final();
                other.back_by.is_some() || other.trouble.is_some() || (other.wave == host.wave && may_boot)
            };
            **name != host.host && !run.despite.contains(name) && !run.host(name).is_some_and(is_at_work)
        };
        // Who answers nobody says nothing about this host.
        let silent = silent(daemon, run.members.iter().filter(is_there)).await;
        let peers = run.members.iter().filter(is_there).filter(|name| !silent.contains(name)).cloned().collect();
        let order =
            Order::Prove { change: host.change.clone().unwrap_or_default(), boot_id: host.boot_id.clone(), peers };
        if host.mechanism == Mechanism::InPlace {
            // They come first, also those that did not wake up before; whether all run is seen below.
            match self.ask_at::<()>(daemon, &host.host, Order::Resume).await {
                Ok(()) | Err(Refusal::Failed(_)) => self.may_go_on()?,
                Err(refusal) => return Err(halt(host, host.step.word(), refusal)),
            }
        }
        let mut proofs: Vec<Proof> = self.ask(daemon, host, order).await?;
        proofs.push(self.all_run(daemon, host).await?);
        let failed = proofs.iter().find(|proof| !proof.well).cloned();
        self.change(daemon, &host.host, |host| host.proofs = proofs).await?;
        let Some(failed) = failed else { return Ok(()) };
        let error = ApiError::failed(format!("{}: {}", failed.what, failed.seen))
            .cure("look at the host; `podctl patch resume` proves it again, `podctl patch cancel` leaves it as it is");
        let mut trouble = trouble_of(host, &failed.what, &error);
        trouble.pod_lost = failed.what == PODS;
        Err(Halt::Host(Box::new(trouble)))
    }

    /// Whether all pods run that left this host, or slept on it.
    async fn all_run(&self, daemon: &Arc<Daemon>, host: &HostRun) -> std::result::Result<Proof, Halt> {
        let left = host.moves.iter().filter(|m| m.done).map(|m| (&m.id, m.pod.as_str()));
        let ids: BTreeMap<&String, &str> = left.chain(host.asleep.iter().map(|id| (id, id.as_str()))).collect();
        // One that has ended by itself has, and one that was put to sleep by its owner sleeps.
        let is_well = |pod: &PodStands| {
            ["running", "exited"].contains(&pod.state.as_str())
                || (pod.state == "suspended" && pod.wakes == Some(false))
        };
        let (Stand { pods, silent }, missing) = self.stand_with(daemon, &ids, is_well).await?;
        // A host that answers forgets no pod by itself: somebody has removed it, if no other can have it either.
        let is_removed = |id: &&String| silent.is_empty() && !pods.iter().any(|(_, pod)| pod.id == **id);
        let (removed, missing): (Vec<&String>, Vec<&String>) = missing.into_iter().partition(is_removed);
        let removed: Vec<&str> = removed.into_iter().map(|id| ids[id]).collect();
        let here = || pods.iter().filter(|(at, _)| *at == host.host).map(|(_, pod)| pod);
        let slept = here().filter(|pod| host.asleep.contains(&pod.id));
        let slept = slept.map(|pod| Sleep { pod: pod.name.clone(), asleep_ms: pod.slept_ms }).collect();
        self.change(daemon, &host.host, |host| host.slept = slept).await?;
        let name = |id: &String| pods.iter().find(|(_, pod)| pod.id == *id).map_or(ids[id], |(_, pod)| &pod.name);
        // It may have gone to sleep when the host was told to boot, and not before.
        let is_asleep = |pod: &&PodStands| pod.state == "suspended" && pod.wakes == Some(true);
        let mut ill: BTreeSet<&str> = here().filter(is_asleep).map(|pod| pod.name.as_str()).collect();
        ill.extend(missing.into_iter().map(name));
        let ill: Vec<&str> = ill.into_iter().collect();
        let removed = if removed.is_empty() { String::new() } else { format!("; removed: {}", removed.join(", ")) };
        let seen = match ill.is_empty() {
            true => format!("{} run{removed}", ids.len()),
            false => format!("{} run(s) nowhere that answers{removed}", ill.join(", ")),
        };
        Ok(Proof { what: PODS.to_owned(), well: ill.is_empty(), seen })
    }

    /// All pods, once these are among them as they should be, and ids of those that are not: a host may be silent for a moment, and one
    /// that has booted may still be waking its pods up.
    async fn stand_with<'a>(
        &self,
        daemon: &Arc<Daemon>,
        ids: &BTreeMap<&'a String, &str>,
        is_well: impl Fn(&PodStands) -> bool,
    ) -> std::result::Result<(Stand, Vec<&'a String>), Halt> {
        let mut begun = Instant::now();
        loop {
            let stand = self.stand(daemon).await;
            let is_missing = |id: &String| !stand.pods.iter().any(|(_, pod)| pod.id == *id && is_well(pod));
            let missing: Vec<&String> = ids.keys().copied().filter(|id| is_missing(id)).collect();
            if missing.is_empty() || begun.elapsed() > SILENCE / 4 {
                return Ok((stand, missing));
            }
            if stand.pods.iter().any(|(_, pod)| pod.is_waking) {
                begun = Instant::now();
            }
            self.may_go_on()?;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// All pods of all members.
    async fn stand(&self, daemon: &Arc<Daemon>) -> Stand {
        let run = self.run();
        let asked = run
            .members
            .iter()
            .map(async |member| (member, orders::order::<Vec<PodStands>>(daemon, &run, member, Order::Pods).await));
        let mut stand = Stand { pods: Vec::new(), silent: Vec::new() };
        for (member, answer) in join_all(asked).await {
            match answer {
                Ok(pods) => stand.pods.extend(pods.into_iter().map(|pod| (member.clone(), pod))),
                Err(_) => stand.silent.push(member.clone()),
            }
        }
        stand
    }

    /// Has a host's pods come back: first one, then the others. What does not come is told, and no more.
    async fn bring_back(&self, daemon: &Arc<Daemon>, host: &HostRun) -> Done {
        self.close(daemon, host, true).await?;
        let host = &self.host(&host.host)?;
        let remark = async |text: String| self.change(daemon, &host.host, |host| host.remarks.push(text)).await;
        let ids: BTreeMap<&String, &str> =
            host.moves.iter().filter(|m| m.done).map(|m| (&m.id, m.pod.as_str())).collect();
        let (Stand { pods, .. }, missing) = self.stand_with(daemon, &ids, |_| true).await?;
        for id in missing {
            remark(format!("{} does not come back: no host that answers has it", ids[id])).await?;
        }
        let left = |pod: &PodStands| host.moves.iter().any(|m| m.id == pod.id);
        let is_away = |(at, pod): &(String, PodStands)| *at != host.host && pod.state == "running" && left(pod);
        let away: Vec<(String, PodStands)> = pods.into_iter().filter(is_away).collect();
        let come = async |(at, pod): &(String, PodStands)| -> std::result::Result<bool, Halt> {
            self.may_go_on()?;
            let came = self.send(daemon, host, (&pod.id, &pod.name), at, &host.host).await?;
            if let Err(error) = &came {
                remark(format!("{} does not come back from {at}: {}", pod.name, error.message)).await?;
            }
            Ok(came.is_ok())
        };
        let Some((first, others)) = away.split_first() else { return Ok(()) };
        // It takes those of which its own copy of the run says that they come back, and a podd that was dead may have missed that.
        let begun = Instant::now();
        while orders::keep_at(daemon, &host.host, &self.run()).await.is_err() && begun.elapsed() < SILENCE / 4 {
            self.may_go_on()?;
            tokio::time::sleep(PAUSE).await;
        }
        if !come(first).await? {
            let names: Vec<&str> = others.iter().map(|(_, pod)| pod.name.as_str()).collect();
            if !names.is_empty() {
                remark(format!("so these stay where they are: {}", names.join(", "))).await?;
            }
            return Ok(());
        }
        let mut coming = stream::iter(others).map(come).buffer_unordered(TOGETHER);
        while let Some(came) = coming.next().await {
            came?;
        }
        Ok(())
    }

    async fn soak(&self, daemon: &Arc<Daemon>, host: &HostRun) -> Done {
        let soak = policy(daemon).soak.0;
        let since = host.since().unwrap_or(Timestamp::UNIX_EPOCH);
        loop {
            self.may_go_on()?;
            // It must answer; of the others, whoever has one of its pods.
            let _: Vec<PodStands> = self.ask(daemon, host, Order::Pods).await?;
            let pods = self.stand(daemon).await.pods;
            let ours = |pod: &PodStands| host.moves.iter().any(|m| m.id == pod.id) || host.asleep.contains(&pod.id);
            let is_ill = |pod: &PodStands| pod.state == "lost" || pod.health == Some(HealthState::Unhealthy);
            if let Some((at, ill)) = pods.iter().find(|(_, pod)| ours(pod) && is_ill(pod)) {
                let (name, is_lost) = (&ill.name, ill.state == "lost");
                let (how, verb) = if is_lost { ("lost", "inspect") } else { ("unhealthy", "logs") };
                let error = ApiError::failed(format!("{name} is {how} on {at}"))
                    .cure(format!("see `podctl --host {at} {verb} {name}`"));
                let mut trouble = trouble_of(host, "a pod is ill", &error);
                trouble.pod_lost = is_lost;
                return Err(Halt::Host(Box::new(trouble)));
            }
            if Timestamp::now().duration_since(since) >= soak {
                return Ok(());
            }
            let left = soak - Timestamp::now().duration_since(since);
            tokio::time::sleep(left.clamp(SignedDuration::ZERO, SignedDuration::from_secs(2)).unsigned_abs()).await;
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        daemon: &Arc<Daemon>,
        host: &HostRun,
        order: Order,
    ) -> std::result::Result<T, Halt> {
        let asked = self.ask_at(daemon, &host.host, order).await;
        if asked.is_err() {
            // It may have stopped because the run has.
            self.may_go_on()?;
        }
        asked.map_err(|refusal| halt(host, host.step.word(), refusal))
    }

    /// Has a host do something with another one, whose podd may just be starting anew: what fails, and is not refused, is tried again.
    async fn ask_again<T: DeserializeOwned>(
        &self,
        daemon: &Arc<Daemon>,
        host: &str,
        order: Order,
    ) -> std::result::Result<T, Refusal> {
        for _ in 1..ATTEMPTS {
            match self.ask_at(daemon, host, order.clone()).await {
                Err(Refusal::Failed(error)) if matches!(error.kind, ErrorKind::Failed | ErrorKind::Unreachable) => {
                    tracing::warn!(host, error = error.message, "it failed; trying again");
                }
                answer => return answer,
            }
            tokio::time::sleep(ATTEMPT_PAUSE).await;
            self.may_go_on().map_err(Refusal::Overtaken)?;
        }
        self.ask_at(daemon, host, order).await
    }

    /// Has a host do something; one that is silent is asked again for a while.
    async fn ask_at<T: DeserializeOwned>(
        &self,
        daemon: &Arc<Daemon>,
        host: &str,
        order: Order,
    ) -> std::result::Result<T, Refusal> {
        let mut silent: Option<Instant> = None;
        loop {
            let answer = orders::order(daemon, &self.run(), host, order.clone()).await;
            match answer {
                Err(Refusal::Silent(error)) => {
                    tracing::info!(host, error = error.message, "it does not answer; asking again");
                    if silent.get_or_insert_with(Instant::now).elapsed() > SILENCE {
                        return Err(Refusal::Silent(error));
                    }
                }
                answer => return answer,
            }
            self.may_go_on().map_err(Refusal::Overtaken)?;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Pods of the fleet.
struct Stand {
    /// Where, and how.
    pods: Vec<(String, PodStands)>,
    /// Members that do not answer.
    silent: Vec<String>,
}

/// Name of the proof that no pod is lost.
const PODS: &str = "pods";

/// What a refusal means for the host of which something was wanted.
fn halt(host: &HostRun, signature: &str, refusal: Refusal) -> Halt {
    match refusal {
        Refusal::Overtaken(error) => Halt::Run(error),
        Refusal::Failed(error) => trouble(host, signature, &error),
        Refusal::Silent(error) => {
            let what = format!("it has been silent for {} s: {}", SILENCE.as_secs(), error.message);
            let cure = error
                .cure
                .clone()
                .unwrap_or_else(|| "look at it, and at the network; once it answers, `podctl patch resume`".to_owned());
            let mut trouble = trouble_of(host, "silent", &ApiError { message: what, cure: Some(cure), ..error });
            trouble.host_gone = true;
            Halt::Host(Box::new(trouble))
        }
    }
}

fn trouble(host: &HostRun, signature: &str, error: &ApiError) -> Halt {
    Halt::Host(Box::new(trouble_of(host, signature, error)))
}

fn trouble_of(host: &HostRun, signature: &str, error: &ApiError) -> Trouble {
    Trouble {
        at: Timestamp::now(),
        step: host.step,
        signature: format!("{} {signature}", host.step.word()),
        what: error.message.clone(),
        cure: error.cure.clone(),
        pod_lost: false,
        host_gone: false,
    }
}
