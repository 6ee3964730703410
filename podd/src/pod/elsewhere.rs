//! Is a pod on another host of the fleet? A pod is in one place only, but an image of it can be anywhere, and twice.

use std::sync::Arc;

use futures_util::future::join_all;

use super::journal::{Migration, Role, Step};
use super::state::PodRecord;
use crate::api::ApiError;
use crate::error::Result;
use crate::peer;
use crate::supervisor::Daemon;

/// What a host says of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It has it, in whatever state.
    Has,
    /// It does not.
    HasNot,
    /// Nothing.
    Silent,
}

/// Asks all other hosts at once, and refuses if the pod is on one of them, or may be. Nothing to do without a fleet.
///
/// # Errors
/// A host has it; or one to which it went from here does not answer.
pub async fn refuse_if_elsewhere(daemon: &Arc<Daemon>, record: &PodRecord) -> Result<()> {
    let answers = ask_others(daemon, record).await?;
    judge(record, last_gone(&daemon.store.migrations()?, &record.id), &answers)
}

/// Asks all other hosts at once whether they have a pod.
async fn ask_others(daemon: &Arc<Daemon>, record: &PodRecord) -> Result<Vec<(String, Answer)>> {
    if daemon.identity().is_ok() {
        // As far as we can: without the authority, those whom we know.
        let _ = peer::learn_hosts(daemon).await;
    }
    let others = daemon.store.hosts()?.into_iter().map(|h| h.name).filter(|name| *name != daemon.config.host);
    let asked = others.map(async |host| match peer::has_pod(daemon, &host, &record.id).await {
        Ok(true) => (host, Answer::Has),
        Ok(false) => (host, Answer::HasNot),
        Err(e) => {
            tracing::warn!(pod = record.spec.name, host, error = %e, "the host does not say whether it has the pod");
            (host, Answer::Silent)
        }
    });
    Ok(join_all(asked).await)
}

/// Asks all other hosts, and refuses unless each says that it does not have the pod. Those that were removed from the fleet count no
/// more.
///
/// # Errors
/// A host has it, or does not answer.
pub async fn refuse_unless_nowhere(daemon: &Arc<Daemon>, record: &PodRecord) -> Result<()> {
    let name = &record.spec.name;
    // All of them: also one that joined unnoticed.
    peer::learn_hosts(daemon).await?;
    for (host, answer) in ask_others(daemon, record).await? {
        match answer {
            Answer::HasNot => {}
            Answer::Has => {
                return Err(ApiError::conflict(format!("{name} is on {host}")).cure(format!(
                    "a pod is in one place only: leave it there, or remove it there first (`podctl --host {host} rm {name}`)"
                )));
            }
            Answer::Silent => {
                return Err(ApiError::unreachable(format!("{host} does not say whether it has {name}"))
                    .cure(format!("start its podd; if it is gone for good, too: `podctl host rm {host} --gone`")));
            }
        }
    }
    Ok(())
}

/// The move by which a pod left this host; none if it has come back since, or never left.
#[must_use]
pub fn last_gone<'a>(moves: &'a [Migration], pod_id: &str) -> Option<&'a Migration> {
    let happened = moves.iter().rev().find(|m| {
        let passed_on = match m.role {
            Role::Source => matches!(m.step, Step::Given | Step::Done),
            Role::Target => matches!(m.step, Step::Committed | Step::Running),
        };
        m.pod_id == pod_id && passed_on
    });
    happened.filter(|m| m.role == Role::Source)
}

fn judge(record: &PodRecord, gone: Option<&Migration>, answers: &[(String, Answer)]) -> Result<()> {
    let name = &record.spec.name;
    for (host, answer) in answers {
        match answer {
            Answer::Has => {
                return Err(ApiError::conflict(format!("{name} is on {host} already")).cure(format!(
                    "a pod is in one place only: to go on from the image, remove it there (`podctl --host {host} rm {name}`)"
                )));
            }
            Answer::Silent if gone.is_some_and(|m| m.peer == *host && m.epoch > record.epoch) => {
                return Err(ApiError::unreachable(format!(
                    "{name} went to {host} after this image was made, and {host} does not say whether it is still there"
                ))
                .cure(format!("bring {host} back, and remove {name} there; a pod is in one place only")));
            }
            // Whether it has the pod is unknown, but nothing says so; a warning is in the log.
            Answer::Silent | Answer::HasNot => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use jiff::Timestamp;

    use super::*;
    use crate::api::ErrorKind;

    fn record(epoch: u64) -> PodRecord {
        let mut record: PodRecord = serde_json::from_str(super::super::state::OLD).unwrap();
        record.epoch = epoch;
        record
    }

    fn moved(role: Role, peer: &str, epoch: u64, step: Step) -> Migration {
        Migration {
            id: format!("{epoch:032x}"),
            role,
            peer: peer.to_owned(),
            pod_id: record(0).id,
            pod: "web".to_owned(),
            epoch,
            started: Timestamp::UNIX_EPOCH,
            step,
            error: None,
            report: None,
            rehearsal: false,
            forsaken: None,
            by: String::new(),
        }
    }

    fn kind(epoch: u64, moves: &[Migration], answers: [Answer; 2]) -> Option<ErrorKind> {
        let record = record(epoch);
        let answers = ["b".to_owned(), "c".to_owned()].into_iter().zip(answers).collect::<Vec<_>>();
        judge(&record, last_gone(moves, &record.id), &answers).err().map(|e| e.kind)
    }

    #[test]
    fn a_pod_that_is_somewhere_stays_there() {
        use Answer::{Has, HasNot, Silent};
        let gone = [moved(Role::Source, "b", 2, Step::Done)];
        assert_eq!(kind(1, &[], [HasNot, HasNot]), None);
        assert_eq!(kind(1, &gone, [HasNot, HasNot]), None, "it went there, and was removed");
        assert_eq!(kind(1, &[], [HasNot, Has]), Some(ErrorKind::Conflict));
        assert_eq!(kind(9, &gone, [Silent, Has]), Some(ErrorKind::Conflict));
    }

    #[test]
    fn silence_counts_where_the_pod_went() {
        use Answer::{HasNot, Silent};
        let gone = [moved(Role::Source, "b", 2, Step::Given)];
        assert_eq!(kind(1, &[], [Silent, Silent]), None);
        assert_eq!(kind(1, &gone, [Silent, HasNot]), Some(ErrorKind::Unreachable));
        assert_eq!(kind(1, &gone, [HasNot, Silent]), None, "another host is silent");
        assert_eq!(kind(2, &gone, [Silent, HasNot]), None, "the image was made after the move");
        let called_off = [moved(Role::Source, "b", 2, Step::Aborted), moved(Role::Source, "b", 3, Step::Returned)];
        assert_eq!(kind(1, &called_off, [Silent, HasNot]), None);
        let back = [moved(Role::Source, "b", 2, Step::Done), moved(Role::Target, "c", 3, Step::Running)];
        assert_eq!(kind(1, &back, [Silent, HasNot]), None, "it came back, and was removed here");
    }
}
