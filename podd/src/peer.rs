//! A connection between two podds: messages and data in the frames of `checkpoint::wire`, inside mutual TLS.

mod packing;

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use checkpoint::baseline::Baseline;
use checkpoint::clocks::Clocks;
use checkpoint::compat::Finding;
use checkpoint::files::Op;
use checkpoint::host::Cpu;
use checkpoint::process::PodTimer;
use checkpoint::wire;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use self::packing::Packing;
use crate::api::{ChooseRequest, HealthView, StatusView};
use crate::error::{Attempt, Result};
use crate::patch::plan;
use crate::patch::run::orders::{self, Call};
use crate::pod::preflight::TargetFacts;
use crate::server::forget_hosts;
use crate::shim::CRIU_LIMIT;
use crate::store::Host;
use crate::supervisor::Daemon;
use crate::sys::tcp::waited_for_reader;
use crate::trust::{self, Protocol};

pub use self::packing::unpack;

/// Longest silence of a peer that is at work on something (a restore, a large file).
const PATIENCE: Duration = CRIU_LIMIT.saturating_add(Duration::from_secs(30));
/// A reader may wait for its disk this long before the connection counts as dead.
const STALL: Duration = Duration::from_secs(60);
/// ... but not while a pod is frozen.
const HASTE: Duration = Duration::from_secs(10);
/// A peer that does not answer a call, or a simple question, within this time is away.
const CALL: Duration = Duration::from_secs(5);

/// What podds say to each other. The source of a move speaks first; see `pod::journal` for the order.
///
/// New variants go to the end: bincode numbers them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Message {
    /// What are you like? With the pod's volumes and layers.
    AskFacts {
        /// Host paths.
        volumes: Vec<String>,
        /// Digests.
        layers: Vec<String>,
    },
    /// The answer.
    Facts(Box<TargetFacts>),
    /// Reserve room for this pod.
    Prepare {
        /// The migration's id.
        migration: String,
        /// The pod's record as JSON, with the epoch that it will have.
        record: String,
    },
    /// Reserved. These layers are missing.
    Prepared {
        /// Digests.
        missing_layers: Vec<String>,
    },
    /// File operations of this layer follow.
    Layer {
        /// Digest.
        digest: String,
    },
    /// File operations of the writable layer follow.
    Files,
    /// One file operation.
    File(Op),
    /// The file operations end here.
    FilesEnd,
    /// Everything up to here is stored.
    Stored,
    /// One data frame with this part of an image file follows.
    Chunk {
        /// Name in CRIU's folder.
        name: String,
        /// Where it begins, in bytes.
        offset: u64,
    },
    /// All is there: restore the pod and hold it.
    Restore {
        /// Names and sizes of the image files.
        files: Vec<(String, u64)>,
        /// What the pod's clocks show as this is sent.
        clocks: Clocks,
        /// How its timers are as this is sent.
        timers: Vec<PodTimer>,
    },
    /// Restored and held.
    Ready {
        /// Milliseconds that it took.
        restore_ms: f64,
    },
    /// The pod is yours.
    Commit {
        /// The migration's id.
        migration: String,
        /// Ethernet frames that came for it meanwhile.
        frames: Vec<Vec<u8>>,
    },
    /// It runs here.
    Thawed,
    /// It will never run here under this epoch: take it back.
    Lost {
        /// Why.
        reason: String,
    },
    /// Has the pod of this migration been given to me?
    Query {
        /// The migration's id.
        migration: String,
    },
    /// Yes.
    Given,
    /// No, and it never will.
    NotGiven,
    /// Not decided: ask again.
    Undecided,
    /// Not done, for this reason.
    Refused {
        /// One sentence.
        reason: String,
    },
    /// Ethernet frames that came for the pod after the commit.
    Late {
        /// Whole frames.
        frames: Vec<Vec<u8>>,
    },
    /// Which hosts does the fleet have? Asked of the authority, which signs for each of them.
    AskHosts,
    /// The answer.
    Hosts {
        /// All of them.
        hosts: Vec<Host>,
    },
    /// What does the health probe of this pod say?
    AskHealth {
        /// The pod's id.
        pod: String,
    },
    /// The answer; none: it does not run.
    Health(Option<HealthView>),
    /// The pod is not on this host.
    Gone,
    /// It is a rehearsal, and the pod is not given: let the restored clone run for a moment, then destroy it.
    Rehearse,
    /// How that went.
    Rehearsed {
        /// It was let run.
        ran: bool,
        /// What its health probe said, or what broke.
        outcome: std::result::Result<Option<HealthView>, String>,
    },
    /// It is ours, but its processes have died here; it may have run, so nobody may go on from an older state by himself.
    Ended {
        /// Why.
        reason: String,
    },
    /// What may the pods count on that are started with you? A podd of before this question hangs up.
    AskBaseline,
    /// The answer.
    Baseline(Baseline),
    /// All of a round of the pod's memory has been sent.
    Round {
        /// Its number, from 1.
        number: u32,
    },
    /// Do you need patching? A podd of before this question hangs up.
    AskStatus {
        /// Read facts and advisories first.
        refresh: bool,
        /// Say how long each pod would be silent.
        why: bool,
    },
    /// The owner of your host wants this.
    Choose(ChooseRequest),
    /// The answer to these, and to the last two.
    Status {
        /// As JSON, since it grows.
        json: String,
    },
    /// How are you and your pods, for a plan?
    AskPlanFacts,
    /// What does preflight say of a move of your pod?
    AskPreflight {
        /// Its name.
        pod: String,
        /// The host.
        to: String,
    },
    /// About patch runs: a [`Call`](crate::patch::run::orders::Call) as JSON, since it grows. A podd of before this question hangs up.
    Patch {
        /// The question.
        json: String,
    },
    /// One data frame with this part of an image file follows, compressed. Since version 2 of the protocol.
    Packed {
        /// Name in CRIU's folder.
        name: String,
        /// Where it begins, in bytes.
        offset: u64,
        /// Its size, in bytes.
        size: u32,
    },
    /// Can you restore a pod whose memory comes later? A podd of before this question hangs up.
    AskLater,
    /// The answer: why not, if so.
    Later {
        /// One sentence.
        cannot: Option<String>,
    },
    /// Some of the pod's memory stays here until it runs with you: fetch it.
    Lent,
    /// Memory of the pod, which stands still with you. The answer is [`Chunk`](Self::Chunk) or [`Packed`](Self::Packed).
    AskPages {
        /// The migration's id.
        migration: String,
        /// PID in the pod.
        process: i32,
        /// Where it begins and ends in that process, a range after the other.
        ranges: Vec<Range<u64>>,
    },
    /// It runs here, and still fetches memory from you: keep it. The answer to a commit, until all has come.
    Borrows,
    /// Behind [`Restore`](Self::Restore), [`Files`](Self::Files) will follow, while you restore: content alone. Since version 2 of the
    /// protocol.
    MoreFiles,
}

/// Pieces up to this many bytes together wait for what comes next.
const TOGETHER: usize = 32 << 10;

async fn sent_in_time(sending: impl Future<Output = io::Result<()>>) -> Result<()> {
    let sent = tokio::time::timeout(PATIENCE, sending).await;
    sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).attempt("send to the other host")
}

/// A connection to the podd of another host.
pub struct Peer {
    stream: TlsStream<TcpStream>,
    /// Bytes sent, headers included.
    pub sent: u64,
    /// Bytes that were compressed before they were sent.
    pub packed: u64,
    packing: Packing,
    /// What waits to be sent with what comes next: many small pieces make one record of TLS, and one packet.
    waiting: Vec<u8>,
}

impl Peer {
    /// Takes over an accepted connection.
    #[must_use]
    pub fn new(stream: TlsStream<TcpStream>) -> Self {
        let _ = trust::set_stall_limit(stream.get_ref().0, STALL);
        Self { stream, sent: 0, packed: 0, packing: Packing::default(), waiting: Vec::new() }
    }

    /// Calls a host of the fleet.
    ///
    /// # Errors
    /// Unknown host, no identity, no answer.
    pub async fn call(daemon: &Daemon, host: &str) -> Result<Self> {
        let identity = daemon.identity()?;
        let address = known(daemon, host).await?.address;
        let stream = trust::connect(&identity, host, address, daemon.config.protocol.offers(), CALL).await?;
        Ok(Self::new(TlsStream::from(stream)))
    }

    /// From now on the pod stands still: a cut link is to be noticed soon.
    pub fn hasten(&self) {
        let _ = trust::set_stall_limit(self.stream.get_ref().0, HASTE);
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn send(&mut self, message: &Message) -> Result<()> {
        self.queue(message).await?;
        self.flush().await
    }

    /// Puts a message behind those that wait to be sent.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn queue(&mut self, message: &Message) -> Result<()> {
        let frame = wire::encode_control(message).attempt("encode a message")?;
        self.write(&frame).await
    }

    /// Whether the other host speaks this version of the protocol, or a newer one.
    #[must_use]
    pub fn speaks(&self, version: Protocol) -> bool {
        Protocol::agreed(self.stream.get_ref().1.alpn_protocol()) >= Some(version)
    }

    /// Puts a part of an image file behind those that wait to be sent; compressed, if the link is what takes the time.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn queue_chunk(&mut self, name: &str, offset: u64, data: &[u8]) -> Result<()> {
        let name = name.to_owned();
        let packed = if self.speaks(Protocol::V2) { self.packing.pack(data).attempt("compress memory")? } else { None };
        let (begun, waited) = (Instant::now(), waited_for_reader(self.stream.get_ref().0));
        let length = match &packed {
            Some(packed) => {
                self.packed += data.len() as u64;
                self.queue(&Message::Packed { name, offset, size: data.len() as u32 }).await?;
                self.queue_data(packed).await?;
                packed.len()
            }
            None => {
                self.queue(&Message::Chunk { name, offset }).await?;
                self.queue_data(data).await?;
                data.len()
            }
        };
        let waited = waited_for_reader(self.stream.get_ref().0).saturating_sub(waited);
        self.packing.sent(length, begun.elapsed().saturating_sub(waited));
        Ok(())
    }

    /// Puts a data frame behind those that wait to be sent.
    ///
    /// # Errors
    /// The connection is broken.
    async fn queue_data(&mut self, data: &[u8]) -> Result<()> {
        let header = wire::encode_data_header(data, true).attempt("encode data")?;
        self.write(&header).await?;
        self.write(data).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.sent += bytes.len() as u64;
        if self.waiting.len() + bytes.len() > TOGETHER {
            self.write_waiting().await?;
        }
        if bytes.len() > TOGETHER {
            return sent_in_time(self.stream.write_all(bytes)).await;
        }
        self.waiting.extend_from_slice(bytes);
        Ok(())
    }

    async fn write_waiting(&mut self) -> Result<()> {
        sent_in_time(self.stream.write_all(&self.waiting)).await?;
        self.waiting.clear();
        Ok(())
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn flush(&mut self) -> Result<()> {
        self.write_waiting().await?;
        self.stream.flush().await.attempt("send to the other host")
    }

    /// Receives a message.
    ///
    /// # Errors
    /// The connection is broken or silent for too long, or what comes is not understood.
    pub async fn receive(&mut self) -> Result<Message> {
        self.receive_within(PATIENCE).await
    }

    /// Receives a message within a time.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub async fn receive_within(&mut self, limit: Duration) -> Result<Message> {
        let (header, payload) = self.frame(limit).await?;
        wire::decode_control(&header, &payload).attempt("understand the other host")
    }

    /// Receives a data frame.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub async fn receive_data(&mut self) -> Result<Vec<u8>> {
        let (header, payload) = self.frame(PATIENCE).await?;
        wire::verify_data(&header, &payload).attempt("understand the other host")?;
        Ok(payload)
    }

    /// Sends a message and receives its answer.
    ///
    /// # Errors
    /// As [`Self::receive`]; a refusal becomes the error.
    pub async fn ask(&mut self, message: &Message) -> Result<Message> {
        self.send(message).await?;
        self.answer().await
    }

    /// Receives what the other host says to what it was told.
    ///
    /// # Errors
    /// As [`Self::receive`]; a refusal becomes the error.
    pub async fn answer(&mut self) -> Result<Message> {
        match self.receive().await? {
            Message::Refused { reason } => Err(crate::api::ApiError::failed(reason)),
            answer => Ok(answer),
        }
    }

    async fn frame(&mut self, limit: Duration) -> Result<(wire::Header, Vec<u8>)> {
        let read = async {
            let mut bytes = [0; wire::HEADER];
            self.stream.read_exact(&mut bytes).await?;
            let header = wire::decode_header(&bytes).map_err(io::Error::other)?;
            let mut payload = vec![0; header.length as usize];
            self.stream.read_exact(&mut payload).await?;
            Ok::<_, io::Error>((header, payload))
        };
        let read = tokio::time::timeout(limit, read).await;
        read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).attempt("hear from the other host")
    }
}

/// A host of the fleet, which may have joined after this one did.
///
/// # Errors
/// There is no such host, or the authority does not answer.
pub async fn known(daemon: &Daemon, host: &str) -> Result<Host> {
    let unknown = match daemon.host(host) {
        Ok(host) => return Ok(host),
        Err(unknown) => unknown,
    };
    match learn_hosts(daemon).await {
        Ok(()) => daemon.host(host),
        Err(e) => Err(unknown.cure(format!("should it have joined lately: the authority could not be asked ({e})"))),
    }
}

/// Asks the authority which hosts there are; nothing to do on the authority itself.
///
/// # Errors
/// This host belongs to no fleet, or the authority does not answer.
pub async fn learn_hosts(daemon: &Daemon) -> Result<()> {
    let identity = daemon.identity()?;
    let Some(authority) = &identity.authority else { return Ok(()) };
    // What somebody said here of the authority itself, it may not know.
    if daemon.store.removed_hosts()?.contains(&authority.name) {
        return Ok(());
    }
    let stream =
        trust::connect(&identity, &authority.name, authority.address, daemon.config.protocol.offers(), CALL).await?;
    let mut peer = Peer::new(TlsStream::from(stream));
    match peer.ask(&Message::AskHosts).await? {
        Message::Hosts { hosts } => hosts.iter().try_for_each(|host| daemon.store.put_host(host))?,
        other => return Err(unexpected(&other)),
    }
    // A podd that does not know the question removes nobody.
    let left: Vec<String> = orders::ask(&mut peer, &authority.name, &Call::WhoLeft).await.unwrap_or_default();
    let known = daemon.store.hosts()?;
    let news: Vec<String> = left.into_iter().filter(|name| known.iter().any(|host| host.name == *name)).collect();
    forget_hosts(daemon, &news, &format!("host {}", authority.name))
}

/// Asks a host for its baseline: none if it does not answer, and within it none if it does not know the question.
pub async fn baseline_of(daemon: &Daemon, host: &str) -> Option<Option<Baseline>> {
    let mut peer = Peer::call(daemon, host).await.ok()?;
    Some(match peer.ask(&Message::AskBaseline).await {
        Ok(Message::Baseline(baseline)) => Some(baseline),
        _ => None,
    })
}

/// Whether a host needs patching.
///
/// # Errors
/// It does not answer, or its answer is not understood.
pub async fn status_of(daemon: &Daemon, host: &str, refresh: bool, why: bool) -> Result<StatusView> {
    told(daemon, host, &Message::AskStatus { refresh, why }).await
}

/// Tells a host what its owner wants.
///
/// # Errors
/// It does not answer, or refuses.
pub async fn choose_for(daemon: &Daemon, host: &str, request: ChooseRequest) -> Result<StatusView> {
    told(daemon, host, &Message::Choose(request)).await
}

/// A host, as plans need it.
///
/// # Errors
/// It does not answer, or its answer is not understood.
pub async fn plan_facts_of(daemon: &Daemon, host: &str) -> Result<plan::Host> {
    told(daemon, host, &Message::AskPlanFacts).await
}

/// What preflight says of a move from one host to another.
///
/// # Errors
/// It does not answer, or has no such pod.
pub async fn preflight_of(daemon: &Daemon, host: &str, pod: &str, to: &str) -> Result<Vec<Finding>> {
    told(daemon, host, &Message::AskPreflight { pod: pod.to_owned(), to: to.to_owned() }).await
}

async fn told<T: DeserializeOwned>(daemon: &Daemon, host: &str, question: &Message) -> Result<T> {
    match Peer::call(daemon, host).await?.ask(question).await? {
        Message::Status { json } => serde_json::from_str(&json).attempt("understand the other host's answer"),
        other => Err(unexpected(&other)),
    }
}

/// Asks a host whether it has a pod, in whatever state.
///
/// # Errors
/// It does not answer.
pub async fn has_pod(daemon: &Daemon, host: &str, id: &str) -> Result<bool> {
    let mut peer = Peer::call(daemon, host).await?;
    peer.send(&Message::AskHealth { pod: id.to_owned() }).await?;
    match peer.receive_within(CALL).await? {
        Message::Health(_) => Ok(true),
        Message::Gone => Ok(false),
        other => Err(unexpected(&other)),
    }
}

/// Asks a host for its processor.
///
/// # Errors
/// It does not answer.
pub async fn cpu_of(daemon: &Daemon, host: &str) -> Result<Cpu> {
    let question = Message::AskFacts { volumes: Vec::new(), layers: Vec::new() };
    match Peer::call(daemon, host).await?.ask(&question).await? {
        Message::Facts(facts) => Ok(facts.facts.cpu),
        other => Err(unexpected(&other)),
    }
}

/// The error for an answer that does not belong here.
#[must_use]
pub fn unexpected(message: &Message) -> crate::api::ApiError {
    let text = format!("{message:?}");
    let name = text.split([' ', '(', '{']).next().unwrap_or_default();
    crate::api::ApiError::failed(format!("the other host said {name} out of turn"))
}
