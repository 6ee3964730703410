//! What travels between `podctl` and `podd`: HTTP/1.1 with JSON bodies under `/v1`.
//!
//! | method, path | body | answer |
//! |---|---|---|
//! | GET `/v1/version` | | [`Version`] |
//! | GET `/v1/pods` | | `[PodView]` |
//! | POST `/v1/pods` | [`CreateRequest`] | stream of [`Event`], result [`PodView`] |
//! | GET `/v1/pods/{name}` | | [`PodDetail`] |
//! | DELETE `/v1/pods/{name}?force=bool` | | `null` |
//! | POST `/v1/pods/{name}/start`, `suspend`, `resume` | | stream of [`Event`], result [`PodView`] |
//! | POST `/v1/pods/{name}/stop` | [`StopRequest`] | [`PodView`] |
//! | POST `/v1/pods/{name}/kill` | [`KillRequest`] | `null` |
//! | POST `/v1/pods/{name}/wait` | | [`ExitStatus`] |
//! | POST `/v1/pods/{name}/checkpoint` | [`CheckpointRequest`] | stream of [`Event`], result [`CheckpointReport`] |
//! | POST `/v1/restore` | [`RestoreRequest`] | stream of [`Event`], result [`PodView`] |
//! | POST `/v1/pods/{name}/preflight` | [`PreflightRequest`] | `[checkpoint::compat::Finding]` |
//! | POST `/v1/pods/{name}/migrate` | [`MigrateRequest`] | stream of [`Event`], result [`MigrateReport`] |
//! | POST `/v1/pods/{name}/rehearse` | [`MigrateRequest`] | stream of [`Event`], result [`RehearsalReport`] |
//! | GET `/v1/pods/{name}/logs?follow=bool&once=bool&tail=N&timestamps=bool` | | stream of [`LogLine`] |
//! | POST `/v1/pods/{name}/exec` | [`ExecRequest`] | 101 upgrade, then [`exec_stream`] frames |
//! | GET `/v1/pods/{name}/stats` | | [`PodStats`] |
//! | GET `/v1/pods/{name}/top` | | `[ProcessView]` |
//! | GET `/v1/doctor` | | `[Check]` |
//! | GET `/v1/hosts` | | `[HostView]` |
//! | GET `/v1/host/cpu?fleet=bool` | | [`HostCpu`] |
//! | GET `/v1/host/reserved-memory` | | [`ReservedMemory`] |
//! | POST `/v1/host/reserved-memory` | [`ReserveRequest`] | [`ReservedMemory`] |
//! | POST `/v1/host/init` | [`HostInitRequest`] | [`HostView`] |
//! | POST `/v1/host/invite` | [`HostInviteRequest`] | [`Invitation`] |
//! | POST `/v1/host/join` | [`HostJoinRequest`] | [`HostView`] |
//! | POST `/v1/host/remove` | [`HostRemoveRequest`] | [`HostsRemoved`] |
//! | GET `/v1/migrations` | | `[MigrationView]` |
//! | GET `/v1/status?host=NAME&fleet=bool&refresh=bool&why=bool` | | `[StatusView]` |
//! | POST `/v1/patch/choose?host=NAME` | [`ChooseRequest`] | [`StatusView`] |
//! | GET `/v1/patch/plan?host=NAME&fleet=bool` | | [`Plan`] |
//! | POST `/v1/patch/run` | [`RunRequest`] | [`Run`](crate::patch::run::Run) |
//! | POST `/v1/patch/steer` | [`SteerRequest`] | [`Run`](crate::patch::run::Run) |
//! | GET `/v1/patch/runs` | | `[Run]` |
//! | GET `/v1/patch/runs/{id}` | | [`Run`](crate::patch::run::Run) |
//! | GET `/v1/host/cordons` | | `[Cordon]` |
//! | POST `/v1/host/cordon` | [`CordonRequest`] | `[Cordon]` |
//! | POST `/v1/host/uncordon` | `{"owner": ..}` | `[Cordon]` |
//! | GET `/metrics` | | text, see [`crate::patch::metrics`] |
//!
//! A stream is NDJSON: one [`Event`] or [`LogLine`] a line. A failed request has a status of 4xx or 5xx and an
//! [`ApiError`] body; a stream that fails half-way ends with [`Event::Error`].

use std::collections::BTreeMap;

use checkpoint::baseline::{Baseline, ReliesOn};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::patch::advisories::FeedState;
use crate::patch::decide::Decision;
use crate::patch::facts::{Facts, Kernel, Missing};
use crate::patch::notice::Notice;
use crate::patch::plan::Plan;
use crate::patch::run::drive::Wish;
use crate::pod::spec::PodSpec;

/// The API's version: the path prefix `/v1`.
pub const API_VERSION: u32 = 1;

/// Why a request was not carried out. `kind` decides podctl's exit code.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Class of the failure.
    pub kind: ErrorKind,
    /// One sentence: what was attempted, on which object, why it failed.
    pub message: String,
    /// What the operator can do about it.
    pub cure: Option<String>,
}

/// Class of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request itself is wrong (exit 2, HTTP 400).
    Usage,
    /// No such pod, host or image (exit 1, HTTP 404).
    NotFound,
    /// The object is in a state in which this cannot be done (exit 1, HTTP 409).
    Conflict,
    /// Preflight says no (exit 3, HTTP 412).
    Refused,
    /// It was tried and failed (exit 1, HTTP 500).
    Failed,
    /// The other host or the daemon does not answer (exit 4, HTTP 503).
    Unreachable,
}

/// One line of a long-running request's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A phase began or went on.
    Progress(Progress),
    /// The last line on success; `value` is the type named in the table above.
    Result {
        /// The answer.
        value: serde_json::Value,
    },
    /// The last line on failure.
    Error(ApiError),
}

/// How far a long-running request is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// Phase name, such as `preflight` or `memory`.
    pub phase: String,
    /// Bytes done in this phase.
    pub done: u64,
    /// Bytes to do in this phase; 0: unknown.
    pub total: u64,
    /// What the move that has just begun is expected to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Times>,
}

/// Answer of `GET /v1/version`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Version {
    /// The daemon's version.
    pub podd: String,
    /// [`API_VERSION`].
    pub api: u32,
    /// The newest version of the protocol between hosts that it speaks; it speaks the one before, too.
    pub protocol: u8,
    /// The host's name.
    pub host: String,
    /// `uname -r`.
    pub kernel: String,
    /// CRIU's version, none if it cannot be run.
    pub criu: Option<String>,
}

/// A line of `podctl ls`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodView {
    /// Name.
    pub name: String,
    /// Identifier for life, the same on every host (16 hex digits).
    pub id: String,
    /// `created`, `running`, `suspended`, `migrating`, `exited`, `lost` ...
    pub state: String,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
    /// Command line.
    pub command: Vec<String>,
    /// When this incarnation started, none if it never did.
    pub started: Option<Timestamp>,
    /// How it ended, if it did.
    pub exit: Option<ExitStatus>,
    /// Times that the restart policy started it again.
    pub restarts: u32,
    /// Host it runs on.
    pub host: String,
    /// Counts the handovers.
    pub epoch: u64,
    /// What its health probe says; none: it has none, or does not run.
    pub health: Option<HealthView>,
    /// The newest image file that holds memory and files of it; none: there is none that podd knows of.
    #[serde(default)]
    pub last_checkpoint: Option<LastCheckpoint>,
}

/// An image file from which a pod can be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCheckpoint {
    /// The file.
    pub image: String,
    /// Host that it was written on.
    pub host: String,
    /// When it was complete.
    pub taken: Timestamp,
}

/// What a pod's health probe says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthView {
    /// The verdict.
    pub state: HealthState,
    /// Failures in a row.
    pub failures: u32,
    /// What the last one was.
    pub reason: Option<String>,
}

/// The verdict of a health probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthState {
    /// It has never succeeded since the pod came to life here, nor failed often enough.
    Starting,
    /// It succeeded.
    Healthy,
    /// It failed as often in a row as the pod's spec allows.
    Unhealthy,
}

impl HealthState {
    /// One word for people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// How a pod's command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// 0 to 255; 128 + N if a signal ended it.
    pub code: i32,
    /// The signal, if one ended it.
    pub signal: Option<i32>,
    /// The memory limit killed it.
    pub oom: bool,
}

/// Answer of `podctl inspect`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodDetail {
    /// The line of `podctl ls`.
    #[serde(flatten)]
    pub view: PodView,
    /// What was asked for.
    pub spec: PodSpec,
    /// Layers, lowest first.
    pub layers: Vec<String>,
    /// First host uid and gid of the pod's range of 65,536.
    pub id_base: u32,
    /// The init process on this host, if it runs.
    pub pid: Option<i32>,
    /// Root of the writable layer on this host.
    pub writable_layer: String,
    /// Past moves, newest last.
    pub migrations: Vec<MigrationView>,
    /// What its present run counts on; none: it never ran, or was started by a podd that did not note it.
    #[serde(default)]
    pub relies_on: Option<ReliesOn>,
}

/// Body of `POST /v1/pods`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateRequest {
    /// The pod.
    pub spec: PodSpec,
    /// Start it too.
    pub start: bool,
}

/// Body of `stop`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StopRequest {
    /// Seconds until the kill; none: the pod's own.
    pub timeout_s: Option<u32>,
}

/// Body of `kill`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KillRequest {
    /// Signal number.
    pub signal: i32,
}

/// Body of `checkpoint`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CheckpointRequest {
    /// File to write on the daemon's host; none: the daemon's image folder.
    pub output: Option<String>,
    /// Let the pod go on.
    pub leave_running: bool,
    /// Compress with zstd.
    pub compress: bool,
}

/// Answer of `checkpoint`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointReport {
    /// Pod.
    pub pod: String,
    /// The image file.
    pub image: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Milliseconds in which the pod was frozen (until now, if it was not left running).
    pub frozen_ms: f64,
}

/// Body of `restore`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// An image file on the daemon's host, or the name of a pod whose image the daemon holds.
    pub from: String,
}

/// Body of `preflight`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PreflightRequest {
    /// Target host; none: this host.
    pub to: Option<String>,
}

/// How a pod's memory is to go to another host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryMode {
    /// Ahead if the kernel tells what the pod writes, otherwise in the freeze.
    #[default]
    Auto,
    /// Ahead while the pod runs, then what it has written meanwhile; refused where the kernel does not tell.
    PreCopy,
    /// All of it while the pod stands still: less work in all, but the blackout grows with the memory.
    StopCopy,
    /// Ahead, and what the pod has written meanwhile, if it is much, only after it runs on the target: a short blackout, however fast it
    /// writes. Until all has come it depends on both hosts: should the source fail in that time, the pod ends as if it had crashed.
    PostCopy,
}

/// Body of `migrate` and `rehearse`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MigrateRequest {
    /// Target host.
    pub to: String,
    /// How its memory goes. Not of a rehearsal.
    #[serde(default)]
    pub mode: MemoryMode,
    /// The pod is told so many seconds before, and may ask for more; none: it is not told. Not of a rehearsal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice_s: Option<u64>,
}

/// [`MigrateReport::mode`] of a move some of whose memory went after the thaw.
pub const POST_COPY: &str = "post-copy";

/// Answer of `migrate`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MigrateReport {
    /// Pod.
    pub pod: String,
    /// Source host.
    pub from: String,
    /// Target host.
    pub to: String,
    /// How the memory went: `pre-copy` (ahead, in rounds, while the pod ran), `stop-copy` (all of it in the freeze) or `post-copy` (what
    /// was written last, after the thaw).
    pub mode: String,
    /// Why so, and why no more of it went ahead.
    #[serde(default)]
    pub why: String,
    /// How the kernel told what was written since each round: `write-protection` or `soft-dirty`.
    #[serde(default)]
    pub tracker: Option<String>,
    /// From freeze on the source to thaw on the target, in ms.
    pub blackout_ms: f64,
    /// From the request to the pod's thaw on the target, and until all of its memory had come, in ms.
    #[serde(default)]
    pub total_ms: f64,
    /// Of `post-copy`: from the pod's thaw until all of its memory had come, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_ms: Option<f64>,
    /// What was expected.
    #[serde(default)]
    pub predicted: Option<Prediction>,
    /// Where the time went. From `freeze` on they add up to the blackout.
    pub phases: Phases,
    /// How much went.
    pub bytes: Bytes,
    /// How often the memory was gone over while the pod ran; of `stop-copy`, the files.
    pub rounds: u32,
}

impl MigrateReport {
    /// What it took.
    #[must_use]
    pub fn took(&self) -> Times {
        Times { blackout_ms: self.blackout_ms, total_ms: self.total_ms }
    }
}

/// How long a move takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Milliseconds in which clients get no answer.
    pub blackout_ms: f64,
    /// Milliseconds in all.
    pub total_ms: f64,
}

/// How long a move will take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// What is expected.
    pub expected: Times,
    /// The same before it was corrected by what earlier moves took.
    pub model: Times,
}

/// Answer of `rehearse`: all went well.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RehearsalReport {
    /// Pod.
    pub pod: String,
    /// The host that it is on.
    pub from: String,
    /// The host on which a clone of it was restored.
    pub to: String,
    /// How long the pod stood still to be dumped, in ms.
    pub pause_ms: f64,
    /// CRIU's restore of the clone, in ms.
    pub restore_ms: f64,
    /// The clone ran; false: it was restored but not let run, since what it did to its volumes would be done twice.
    pub ran: bool,
    /// What the clone's health probe said, if the pod has one.
    pub health: Option<HealthView>,
}

/// Milliseconds a phase.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Phases {
    /// Facts of both hosts compared.
    pub preflight_ms: f64,
    /// Reservation, layers, writable layer.
    pub prepare_ms: f64,
    /// Cgroup frozen and link cut.
    pub freeze_ms: f64,
    /// CRIU's dump.
    pub dump_ms: f64,
    /// What was still to be sent after the dump.
    pub transfer_ms: f64,
    /// CRIU's restore.
    pub restore_ms: f64,
    /// Handover, announcement, thaw.
    pub announce_ms: f64,
}

/// Bytes a kind.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Bytes {
    /// Memory pages; one that was written to meanwhile counts again.
    pub memory: u64,
    /// Those of them that went over while the pod stood still.
    pub frozen: u64,
    /// Memory that went over after that (`post-copy`).
    pub later: u64,
    /// Files of layers and writable layer.
    pub files: u64,
    /// Of memory, so much was compressed on its way, as the link was what took the time.
    pub packed: u64,
    /// All that went over the wire.
    pub wire: u64,
}

/// Whether a host needs patching, and what is known about it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusView {
    /// The host.
    pub host: String,
    /// Its clock, when this was said.
    pub now: Timestamp,
    /// When its facts were read; none: never yet.
    pub facts_at: Option<Timestamp>,
    /// The kernel that runs, if it is known.
    pub kernel: Option<Kernel>,
    /// Where advisories come from.
    pub feeds: Vec<FeedState>,
    /// What becomes of it, and why.
    pub decision: Decision,
    /// The time that its owner chose.
    pub chosen: Option<Timestamp>,
    /// Its owner wants it patched now.
    pub at_once: bool,
    /// How long each running pod would be silent in a move; only if that was asked for.
    pub pods: Vec<PodSilence>,
    /// What its pods were told.
    #[serde(default)]
    pub notices: Vec<Notice>,
    /// What else its operators should know.
    pub remarks: Vec<String>,
    /// All facts; only if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Box<Facts>>,
}

impl StatusView {
    /// Of a host of which nothing is known, and why.
    #[must_use]
    pub fn unknown(host: &str, now: Timestamp, missing: Missing) -> Self {
        Self {
            host: host.to_owned(),
            now,
            facts_at: None,
            kernel: None,
            feeds: Vec::new(),
            decision: Decision::unknown(missing),
            chosen: None,
            at_once: false,
            pods: Vec::new(),
            notices: Vec::new(),
            remarks: Vec::new(),
            facts: None,
        }
    }
}

/// How long a pod would be silent in a move.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodSilence {
    /// The pod.
    pub pod: String,
    /// Predicted, in ms.
    pub blackout_ms: f64,
}

/// What the owner of a host wants: patched now, at a time, or as the policy says (neither).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChooseRequest {
    /// Now.
    pub at_once: bool,
    /// Then.
    pub at: Option<Timestamp>,
}

/// Body of `patch run`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunRequest {
    /// This host only; none: all of the fleet.
    pub host: Option<String>,
    /// The plan that was shown; it is refused if another one has become of it.
    pub plan: Option<Plan>,
}

/// Body of `patch pause`, `resume` and `cancel`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SteerRequest {
    /// The run; none: the one that is under way.
    #[serde(default)]
    pub run: Option<String>,
    /// What is wanted.
    pub what: Wish,
}

/// Body of `host cordon`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CordonRequest {
    /// Why.
    pub reason: String,
    /// For so long, in s; none: until it is taken back.
    #[serde(default)]
    pub seconds: Option<u64>,
}

/// One past or present move, as journaled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MigrationView {
    /// Identifier.
    pub id: String,
    /// Pod.
    pub pod: String,
    /// Source host.
    pub from: String,
    /// Target host.
    pub to: String,
    /// Last journaled step. A move that went well ends as `done` on its source and as `running` on its target.
    pub step: String,
    /// It is a rehearsal, which ends as `aborted` and `discarded`.
    #[serde(default)]
    pub rehearsal: bool,
    /// When it began.
    pub started: Timestamp,
    /// Blackout in ms, if it came to that.
    pub blackout_ms: Option<f64>,
    /// What it took in all, in ms.
    #[serde(default)]
    pub total_ms: Option<f64>,
    /// What was expected.
    #[serde(default)]
    pub predicted: Option<Times>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// One line of a pod's log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was read.
    pub time: String,
    /// `stdout` or `stderr`; `podd`: a word of podd's own, as that the pod went to another host.
    pub stream: String,
    /// The line, without its end.
    pub text: String,
}

/// Body of `exec`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Extra environment.
    pub env: BTreeMap<String, String>,
    /// `USER[:GROUP]`; none: the pod's.
    pub user: Option<String>,
    /// Working directory; none: the pod's.
    pub workdir: Option<String>,
    /// Give it a terminal of this many columns and rows.
    pub tty: Option<(u16, u16)>,
    /// Standard input is connected.
    pub stdin: bool,
}

/// Frames on an upgraded exec connection, both ways: kind (1 byte), length (4 bytes, big endian, at most 64 KiB), payload.
pub mod exec_stream {
    /// Client to daemon: bytes for standard input; empty: end of input.
    pub const STDIN: u8 = 0;
    /// Daemon to client: bytes of standard output (and of the terminal).
    pub const STDOUT: u8 = 1;
    /// Daemon to client: bytes of standard error.
    pub const STDERR: u8 = 2;
    /// Client to daemon: columns and rows, two 16-bit big endian numbers.
    pub const RESIZE: u8 = 3;
    /// Daemon to client, the last frame: exit code, 32-bit big endian.
    pub const EXIT: u8 = 4;
    /// Client to daemon: a signal number (1 byte) for the process.
    pub const SIGNAL: u8 = 5;
    /// Daemon to client, the last frame: an [`super::ApiError`] as JSON.
    pub const ERROR: u8 = 6;
    /// Largest payload.
    pub const MAX: usize = 64 * 1024;
}

/// Answer of `stats`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodStats {
    /// Name.
    pub name: String,
    /// CPU time in microseconds since start.
    pub cpu_usec: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Memory limit in bytes.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes received on eth0.
    pub rx_bytes: u64,
    /// Bytes sent on eth0.
    pub tx_bytes: u64,
    /// When this was read.
    pub time: Timestamp,
}

/// A process of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessView {
    /// PID inside the pod.
    pub pid: i32,
    /// PID on the host.
    pub host_pid: i32,
    /// Parent PID inside the pod.
    pub ppid: i32,
    /// User id inside the pod.
    pub uid: u32,
    /// State letter.
    pub state: String,
    /// Resident memory in bytes.
    pub rss: u64,
    /// Threads.
    pub threads: u64,
    /// CPU time in microseconds.
    pub cpu_usec: u64,
    /// Command line.
    pub command: String,
}

/// A line of `podctl doctor`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Result.
    pub verdict: Verdict,
    /// What was found.
    pub fact: String,
    /// What to do, if anything.
    pub cure: Option<String>,
}

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, with a drawback.
    Warn,
    /// Pods cannot run or move.
    Fail,
}

/// A known host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostView {
    /// Name.
    pub name: String,
    /// Peer address, `IP:PORT`.
    pub address: String,
    /// It is this host.
    pub this: bool,
    /// It answers now; none: not asked.
    pub reachable: Option<bool>,
    /// What pods may count on that are started there; none: it did not say.
    #[serde(default)]
    pub baseline: Option<Baseline>,
}

/// What processors have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostCpu {
    /// Their hosts.
    pub hosts: Vec<String>,
    /// The highest level of x86-64 that they have.
    pub level: Option<String>,
    /// Features that give instructions to programs, by their names in /proc/cpuinfo.
    pub features: Vec<String>,
}

/// Memory of a host that survives its boots.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReservedMemory {
    /// So much shall be set aside, in bytes.
    pub bytes: u64,
    /// The boot parameter that does it; none: nothing shall.
    pub parameter: Option<String>,
    /// The boot loader's file that holds it; none: the operator has to add it.
    pub loader: Option<String>,
    /// The kernel that runs has set it aside.
    pub is_there: bool,
    /// Room for images of pods, in bytes; none: not in use.
    pub free_bytes: Option<u64>,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

impl ReservedMemory {
    /// How it stands.
    #[must_use]
    pub fn in_words(&self) -> String {
        let Some(parameter) = &self.parameter else { return "no memory is set aside".to_owned() };
        let (wanted, place) = (self.bytes >> 20, self.loader.as_deref().unwrap_or("no boot loader's file"));
        match (&self.problem, self.free_bytes) {
            (Some(problem), _) => format!("{wanted} MiB are set aside, and cannot be used: {problem}"),
            (None, Some(free)) => format!("{wanted} MiB survive a boot, {} of them free", free >> 20),
            (None, None) if self.is_there => format!("{wanted} MiB are set aside"),
            (None, None) => format!("{wanted} MiB are to be set aside from the next boot on ({parameter} in {place})"),
        }
    }
}

/// Body of `host reserve-memory`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReserveRequest {
    /// So much, in bytes; none: no more.
    pub bytes: Option<u64>,
}

/// Body of `host init`: makes the fleet's certificate authority on this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostInitRequest {
    /// This host's name.
    pub name: String,
    /// Peer address, `IP:PORT`.
    pub listen: String,
}

/// Body of `host invite`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostInviteRequest {
    /// The new host's name.
    pub name: String,
    /// Seconds for which the token is good.
    pub valid_s: u64,
}

/// Body of `host rm`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostRemoveRequest {
    /// Names.
    pub hosts: Vec<String>,
    /// Those that do not answer never come back.
    pub gone: bool,
}

/// Answer of `host rm`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostsRemoved {
    /// Their names.
    pub removed: Vec<String>,
    /// The patch run that goes on without them.
    pub run: Option<String>,
    /// Pods of this host that were on their way to or from one of them: `podctl resume` has them go on here.
    #[serde(default)]
    pub in_doubt: Vec<String>,
    /// Hosts that could not be told; they hear of it from the fleet's authority, unless that was removed itself.
    pub untold: Vec<String>,
}

/// Answer of `host invite`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Invitation {
    /// One line, to be given to `host join` once.
    pub token: String,
    /// Until when.
    pub expires: Timestamp,
}

/// Body of `host join`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostJoinRequest {
    /// Peer address of the inviting host.
    pub authority: String,
    /// The token.
    pub token: String,
    /// This host's name.
    pub name: String,
    /// This host's peer address.
    pub listen: String,
}
