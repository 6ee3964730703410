//! Who may change a pod: one owner at a time. Views never wait for it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use checkpoint::baseline::Baseline;
use checkpoint::host::Cpu;
use checkpoint::memory::{self, Understood};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore};

use crate::api::{ApiError, HealthView, PodView};
use crate::config::Config;
use crate::error::Result;
use crate::events::{self, Bell, What};
use crate::layers::LayerStore;
use crate::patch::run::drive::Drive;
use crate::patch::run::orders::Hand;
use crate::patch::told::Told;
use crate::patch::watch::Watch;
use crate::pod::journal::Migration;
use crate::pod::postcopy::Fetching;
use crate::pod::state::{PodRecord, PodState};
use crate::store::{self, Host, Store};
use crate::sys::cgroup::{Cgroup, Hierarchies};
use crate::sys::network;
use crate::trust::Identity;

/// Everything that the daemon's parts share.
pub struct Daemon {
    /// The operator's settings.
    pub config: Config,
    /// Durable records.
    pub store: Box<dyn Store>,
    /// Read-only layers.
    pub layers: LayerStore,
    /// Where cgroups are.
    pub hierarchies: Hierarchies,
    /// This boot of the host.
    pub boot: String,
    /// What pods may count on that are started here.
    pub baseline: Baseline,
    /// This host's processor.
    pub cpu: Cpu,
    /// Whether id-mapped mounts work in the state folder.
    pub id_mapped_mounts: bool,
    /// What is known about patching it.
    pub watch: Watch,
    /// What its pods were told.
    pub told: Told,
    /// What patch runs have this host do.
    pub hand: Hand,
    /// The patch run that this host carries out.
    pub driving: Mutex<Option<Arc<Drive>>>,
    /// Failure domains of hosts, as they said last.
    pub domains: Mutex<BTreeMap<String, Option<String>>>,
    /// Rings at each event.
    pub bell: Bell,
    /// The right to move a pod away: of many that shall leave, a few go at a time.
    pub moves: Semaphore,
    /// The right to freeze a pod for a move. One at a time: together they would only hold each other up, each standing still.
    pub freezes: Semaphore,
    criu: OnceLock<CriuFindings>,
    /// Apart, as the round trip takes a while, and pods that wake up cannot wait for it.
    understood: OnceLock<Understood>,
    pods: RwLock<HashMap<String, Arc<Pod>>>,
}

/// What was found out about CRIU.
#[derive(Debug)]
struct CriuFindings {
    version: Option<String>,
    round_trip: std::result::Result<(), String>,
}

/// A pod in the daemon's memory.
#[derive(Debug)]
pub struct Pod {
    record: RwLock<PodRecord>,
    owner: Arc<AsyncMutex<()>>,
    doing: Mutex<Option<Doing>>,
    health: Mutex<Option<HealthView>>,
    /// Held while the health probe is asked.
    probing: AsyncMutex<()>,
    /// Held by whoever has the kernel tell what the pod writes: a second one would take that from the first.
    followed: Arc<AsyncMutex<()>>,
    /// Brings memory that was left behind on its source.
    fetching: AsyncMutex<Option<Fetching>>,
}

impl Pod {
    /// A copy of its record as it is now.
    #[must_use]
    pub fn record(&self) -> PodRecord {
        self.record.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What its owner is doing with it, if it has one.
    #[must_use]
    pub fn doing(&self) -> Option<Doing> {
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its health probe said last.
    #[must_use]
    pub fn health(&self) -> Option<HealthView> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what its health probe says.
    pub fn set_health(&self, health: HealthView) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = Some(health);
    }

    /// The right to have the kernel tell what the pod writes; none: a move has it.
    #[must_use]
    pub fn try_follow(&self) -> Option<OwnedMutexGuard<()>> {
        self.followed.clone().try_lock_owned().ok()
    }

    /// The same, for a move: whoever has it returns it within a moment.
    pub async fn follow(&self) -> OwnedMutexGuard<()> {
        self.followed.clone().lock_owned().await
    }

    /// Who fetches its memory, if anybody does.
    pub async fn fetching(&self) -> tokio::sync::MutexGuard<'_, Option<Fetching>> {
        self.fetching.lock().await
    }

    /// The right to ask its health probe.
    pub async fn probing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.probing.lock().await
    }
}

/// What is done to a pod by whoever has the right to change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It is being made.
    Create,
    /// A user starts it.
    Start,
    /// A user stops it.
    Stop,
    /// A user removes it.
    Remove,
    /// It goes into an image.
    Checkpoint,
    /// It goes into an image, until it is resumed.
    Suspend,
    /// It comes back from its own image.
    Resume,
    /// It comes from an image.
    Restore,
    /// It leaves for another host, or comes from one.
    Migrate,
    /// A clone of it goes to another host, and is destroyed.
    Rehearse,
    /// podd looks after it at its own start.
    Recover,
    /// podd tidies up after its command has ended.
    ClearUp,
    /// The restart policy starts it.
    Restart,
    /// podd replaces its dead shim.
    ReplaceShim,
    /// podd tells it what is coming.
    Tell,
}

impl Doing {
    /// What becomes of the pod, for messages.
    #[must_use]
    pub fn participle(self) -> &'static str {
        match self {
            Self::Create => "created",
            Self::Start => "started",
            Self::Stop => "stopped",
            Self::Remove => "removed",
            Self::Checkpoint => "checkpointed",
            Self::Suspend => "suspended",
            Self::Resume => "resumed",
            Self::Restore => "restored",
            Self::Migrate => "migrated",
            Self::Rehearse => "rehearsed",
            Self::Recover => "recovered",
            Self::ClearUp => "cleared up",
            Self::Restart => "restarted",
            Self::ReplaceShim => "given a new shim",
            Self::Tell => "told what is coming",
        }
    }

    /// podd does it of its own accord, and soon has done.
    fn is_upkeep(self) -> bool {
        matches!(self, Self::ClearUp | Self::Restart | Self::ReplaceShim | Self::Tell)
    }
}

/// The right to change one pod.
pub struct Claim {
    pod: Arc<Pod>,
    _guard: OwnedMutexGuard<()>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        *self.pod.doing.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Claim {
    /// A copy of the record.
    #[must_use]
    pub fn record(&self) -> PodRecord {
        self.pod.record()
    }

    /// See [`Pod::follow`].
    pub async fn follow(&self) -> OwnedMutexGuard<()> {
        self.pod.follow().await
    }

    /// Records a change: first on disk, then for everyone to see.
    ///
    /// # Errors
    /// The store's.
    pub fn update(&self, daemon: &Daemon, change: impl FnOnce(&mut PodRecord)) -> Result<PodRecord> {
        let mut record = self.record();
        change(&mut record);
        daemon.store.put_pod(&record)?;
        self.publish(record.clone());
        Ok(record)
    }

    /// Waits until no health probe is being asked; none will be while this claim lasts.
    pub async fn quiet(&self) {
        drop(self.pod.probing().await);
    }

    /// Shows a record that is on disk already.
    pub fn publish(&self, record: PodRecord) {
        *self.pod.record.write().unwrap_or_else(PoisonError::into_inner) = record;
    }
}

impl Daemon {
    /// Puts the parts together, with the pods that the store knows.
    ///
    /// # Errors
    /// The store's.
    pub fn new(
        config: Config,
        store: Box<dyn Store>,
        layers: LayerStore,
        hierarchies: Hierarchies,
        boot: String,
        (baseline, cpu): (Baseline, Cpu),
    ) -> Result<Self> {
        let id_mapped_mounts = crate::sys::namespaces::id_mapped_mounts_work(&config.state);
        let (criu, understood) = (OnceLock::new(), OnceLock::new());
        let pods = RwLock::default();
        let (watch, told, bell) = (Watch::default(), Told::default(), Bell::default());
        let (moves, freezes) = (Semaphore::new(config.moves.get().into()), Semaphore::new(1));
        let daemon = Self {
            config,
            store,
            layers,
            hierarchies,
            boot,
            baseline,
            cpu,
            id_mapped_mounts,
            watch,
            told,
            hand: Hand::default(),
            driving: Mutex::default(),
            domains: Mutex::default(),
            bell,
            moves,
            freezes,
            criu,
            understood,
            pods,
        };
        for record in daemon.store.pods()? {
            daemon.insert(record);
        }
        Ok(daemon)
    }

    /// Every pod, by name.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        let mut pods: Vec<_> = self.pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        pods.sort_by_key(|pod| pod.record().spec.name);
        pods
    }

    /// A pod by name or id.
    ///
    /// # Errors
    /// There is none.
    pub fn pod(&self, name: &str) -> Result<Arc<Pod>> {
        self.pods()
            .into_iter()
            .find(|pod| {
                let r = pod.record();
                r.spec.name == name || r.id == name
            })
            .ok_or_else(|| {
                ApiError::not_found(format!("there is no pod named {name:?} on {}", self.config.host))
                    .cure("`podctl ls` shows the pods of this host")
            })
    }

    /// Takes the right to change a pod, at once or not at all.
    ///
    /// # Errors
    /// There is no such pod, or somebody is changing it.
    pub fn claim(&self, name: &str, what: Doing) -> Result<Claim> {
        let pod = self.pod(name)?;
        let guard = pod.owner.clone().try_lock_owned().map_err(|_| {
            let doing = pod.doing().map_or("changed", Doing::participle);
            ApiError::conflict(format!("{name} is being {doing}")).cure("try again when that has ended")
        })?;
        Ok(self.claimed(pod, guard, what))
    }

    /// Takes the right to change a pod as [`Daemon::claim`] does, but waits while podd itself tidies up after its end:
    /// to a user, a pod that has exited can be started and removed.
    ///
    /// # Errors
    /// There is no such pod, or somebody is changing it.
    pub async fn claim_once_tidy(&self, name: &str, what: Doing) -> Result<Claim> {
        loop {
            let pod = self.pod(name)?;
            match self.claim(name, what) {
                // Whoever has the pod says what for a moment after it has begun, and no more a moment before it ends.
                Err(_) if pod.doing().is_none_or(Doing::is_upkeep) => {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
                claimed => return claimed,
            }
        }
    }

    /// Takes the right to change a pod, after whoever has it.
    pub async fn claim_in_turn(&self, pod: Arc<Pod>, what: Doing) -> Claim {
        let guard = pod.owner.clone().lock_owned().await;
        self.claimed(pod, guard, what)
    }

    fn claimed(&self, pod: Arc<Pod>, guard: OwnedMutexGuard<()>, what: Doing) -> Claim {
        *pod.doing.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
        Claim { pod, _guard: guard }
    }

    /// Writes a step of a move, and its pod's record with it, before it is acted upon.
    ///
    /// # Errors
    /// The store's.
    pub fn journal(&self, migration: &Migration, pod: Option<&PodRecord>) -> std::result::Result<(), store::Error> {
        let end = What::of(migration, &self.config.host).map(|what| events::entry(self, &migration.by, what));
        self.store.put_migration(migration, pod, end.as_ref())?;
        crate::fault::point(&self.config.run, migration.role.word(), migration.step.word());
        if end.is_some()
            && let Ok(newest) = self.store.newest_event()
        {
            self.bell.ring(newest);
        }
        Ok(())
    }

    /// Adds a pod whose record is on disk.
    pub fn insert(&self, record: PodRecord) -> Arc<Pod> {
        let id = record.id.clone();
        let pod = Arc::new(Pod {
            record: RwLock::new(record),
            owner: Arc::default(),
            doing: Mutex::default(),
            health: Mutex::default(),
            probing: AsyncMutex::default(),
            followed: Arc::default(),
            fetching: AsyncMutex::default(),
        });
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(id, pod.clone());
        pod
    }

    /// Forgets a pod, on disk and in memory.
    ///
    /// # Errors
    /// The store's.
    pub fn forget(&self, id: &str) -> Result<()> {
        self.store.delete_pod(id)?;
        self.pods.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(())
    }

    /// A pod's cgroup.
    #[must_use]
    pub fn cgroup(&self, id: &str) -> Cgroup {
        self.hierarchies.cgroup(&self.config.cgroup_of(id))
    }

    /// Joins a pod's link to the bridge; nothing to do without a network.
    ///
    /// # Errors
    /// Netlink's.
    pub fn plug(&self, record: &PodRecord) -> std::io::Result<()> {
        match record.spec.network {
            Some(_) => network::plug(&network::outer_name(&record.id), &self.config.network.bridge),
            None => Ok(()),
        }
    }

    /// Cuts a pod's link off the bridge.
    ///
    /// # Errors
    /// Netlink's.
    pub fn unplug(&self, record: &PodRecord) -> std::io::Result<()> {
        network::unplug(&network::outer_name(&record.id))
    }

    /// This host's identity.
    ///
    /// # Errors
    /// It has none yet.
    pub fn identity(&self) -> Result<Identity> {
        Identity::load(&self.config.state.join("pki"))?.ok_or_else(|| {
            ApiError::conflict("this host belongs to no fleet")
                .cure("`podctl host init` founds one, `podctl host join` joins one")
        })
    }

    /// A host of the fleet.
    ///
    /// # Errors
    /// There is none of this name; the sentence lists those that are known.
    pub fn host(&self, name: &str) -> Result<Host> {
        let hosts = self.store.hosts()?;
        let known: Vec<&str> = hosts.iter().map(|h| h.name.as_str()).collect();
        let error = ApiError::usage(format!("there is no host named {name:?}")).cure(if known.is_empty() {
            "`podctl host join` makes hosts known to each other".into()
        } else {
            format!("known hosts: {}", known.join(", "))
        });
        hosts.into_iter().find(|h| h.name == name).ok_or(error)
    }

    /// CRIU's version, asked once; none if it cannot be run.
    #[must_use]
    pub fn criu_version(&self) -> Option<String> {
        self.criu_findings().version.clone()
    }

    /// Whether CRIU can really dump and restore here, tried once a start.
    #[must_use]
    pub fn round_trip(&self) -> Option<std::result::Result<(), String>> {
        Some(self.criu_findings().round_trip.clone())
    }

    /// How the kernel can tell what a pod has written since some moment, if CRIU understands that.
    #[must_use]
    pub fn follows_writes(&self) -> Option<memory::Backend> {
        memory::Backend::of_kernel().filter(|_| self.understood().written)
    }

    /// Whether CRIU can load memory that comes ahead of the rest.
    #[must_use]
    pub fn loads_ahead(&self) -> bool {
        self.understood().loaded
    }

    /// Whether CRIU can restore memory out of an image as it is.
    #[must_use]
    pub fn reads_elsewhere(&self) -> bool {
        self.understood().elsewhere
    }

    /// Whether CRIU can leave memory where it is, to be brought later.
    #[must_use]
    pub fn leaves_memory(&self) -> bool {
        self.understood().lazy
    }

    fn criu_findings(&self) -> &CriuFindings {
        self.criu.get_or_init(|| CriuFindings {
            version: checkpoint::criu::version(&self.config.criu).ok(),
            round_trip: crate::doctor::round_trip::round_trip(&self.config.criu, &self.config.flight()),
        })
    }

    fn understood(&self) -> Understood {
        *self.understood.get_or_init(|| Understood::by(&self.config.criu))
    }

    /// Where a pod stands, for sentences that begin with "it is".
    #[must_use]
    pub fn stands(&self, record: &PodRecord) -> String {
        let peer = match &record.state {
            PodState::Arriving { migration } | PodState::Given { migration } => self.store.migration(migration).ok(),
            _ => None,
        };
        record.state.in_words(peer.flatten().map(|m| m.peer).as_deref())
    }

    /// What `podctl ls` shows of a pod.
    #[must_use]
    pub fn view(&self, pod: &Pod) -> PodView {
        let record = pod.record();
        let exit = match &record.state {
            PodState::Exited { exit, .. } => Some(*exit),
            _ => None,
        };
        PodView {
            name: record.spec.name,
            id: record.id,
            state: record.state.word().to_owned(),
            addresses: record.spec.network.map(|n| n.addresses).unwrap_or_default(),
            command: record.process.command,
            started: record.started,
            exit,
            restarts: record.restarts,
            host: self.config.host.clone(),
            epoch: record.epoch,
            health: match &record.state {
                // It has just come, and nobody has asked yet.
                PodState::Running { .. } => pod.health().or(record.spec.health.as_ref().map(|_| HealthView::STARTING)),
                _ => None,
            },
            // Who has deleted the file has no checkpoint any more. Looked at where it counts only: the file may lie far away.
            last_checkpoint: record.last_checkpoint.filter(|last| {
                !matches!(record.state, PodState::Lost { .. })
                    || last.host != self.config.host
                    || Path::new(&last.image).exists()
            }),
        }
    }
}
