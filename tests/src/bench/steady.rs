//! What a pod costs while nothing moves: servers and system calls in a pod beside the same of a bare process on the same host, in turns;
//! how long `podctl run` takes, and what podd needs with many pods.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::host::{Failure, Server, Workload, bash, must, redis_cli};
use super::report::Spread;
use super::status::memory;
use crate::Lab;
use crate::lab::{eventually, rootfs, run};
use crate::workload::{helper, web};

/// Pods that podd keeps at the end.
const PODS: usize = 50;
/// How long podd is watched then.
const WATCHED: Duration = Duration::from_secs(30);
/// Where a bare nginx answers: at host a's own address.
const BARE_NGINX: &str = "10.77.0.1:8080";
/// Clock ticks a second, of `/proc/PID/stat` (sysconf(3): 100 on x86-64).
const TICKS: f64 = 100.0;

/// Starts a program in a root of its own, as a pod's is made: an overlay on the host's disk. No namespaces, no limits.
const START: &str = r#"
lower=$1 folder=$2; shift 2
mkdir -p "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work" overlay "$folder/root"
mount --rbind /dev "$folder/root/dev"
setsid chroot "$folder/root" "$@" >/dev/null 2>&1 &
"#;

/// Measures all of it in so many rounds; a line each.
///
/// # Errors
/// Something does not start, or says nothing that can be read.
pub fn measure(rounds: u32) -> Result<String, Failure> {
    let lab = Lab::up(1);
    let pod = |workload| Server::new(workload, "podd");
    let redis = pod(Workload::Redis { megabytes: 1 });
    let folder = lab.dir().join("a/steady");
    std::fs::create_dir_all(&folder).map_err(|e| Failure(format!("cannot make {}: {e}", folder.display())))?;
    serve(&lab, &redis, &folder)?;
    let micro = Micro::prepare(&lab, &folder)?;
    let bare_redis = bare_redis();
    let mut pairs: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for round in 0..rounds {
        let mut add = |what: String, pod, bare| {
            eprintln!("bench: {what}: {pod:.1} in the pod, {bare:.1} bare");
            pairs.entry(what).or_default().push((pod, bare));
        };
        let pod_first = round % 2 == 0;
        let (in_pod, bare) =
            in_turns(pod_first, |is_pod| redis_benchmark(&lab, if is_pod { &redis } else { &bare_redis }))?;
        add("redis-benchmark GET, requests a second".to_owned(), in_pod, bare);
        let (in_pod, bare) =
            in_turns(pod_first, |is_pod| wrk(&lab, if is_pod { "10.77.1.6" } else { BARE_NGINX }, "3s"))?;
        add("nginx and wrk, requests a second".to_owned(), in_pod, bare);
        for (what, in_pod, bare) in micro.once(&lab, pod_first)? {
            add(what, in_pod, bare);
        }
    }
    let mut text = String::new();
    for (what, pairs) in pairs {
        // More is better of what is counted by the second.
        let faster = what.ends_with("a second");
        let slower =
            pairs.iter().map(|(pod, bare)| if faster { bare / pod } else { pod / bare }).map(|r| (r - 1.0) * 100.0);
        let of = |values: Vec<f64>| {
            Spread::of(values).map_or_else(String::new, |s| format!("{:.0} ({:.0} to {:.0})", s.median, s.min, s.max))
        };
        let (pod, bare) = pairs.iter().copied().unzip();
        let median = Spread::of(slower).map_or(0.0, |spread| spread.median);
        text += &format!("{what}: in a pod {}, bare {}: {median:+.1} % of time\n", of(pod), of(bare));
    }
    Ok(text + &at_rest(&lab)?)
}

/// What is measured in the pod and bare, in this order.
fn in_turns<T>(pod_first: bool, measure: impl Fn(bool) -> Result<T, Failure>) -> Result<(T, T), Failure> {
    let (first, second) = (measure(pod_first)?, measure(!pod_first)?);
    Ok(if pod_first { (first, second) } else { (second, first) })
}

fn bare_redis() -> Server {
    Server { address: ([10, 77, 0, 1], 6379).into(), ..Server::new(Workload::Redis { megabytes: 1 }, "podd") }
}

/// redis and nginx, each in a pod and bare.
fn serve(lab: &Lab, redis: &Server, folder: &Path) -> Result<(), Failure> {
    let (root, cidr) = (rootfs("redis"), format!("{}/16", redis.address.ip()));
    let words = redis.redis("/tmp");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let run = [&["run", "--name", "redis", "--rootfs", &root, "--ip", &cidr, "--"], &words[..]].concat();
    must("podctl run", lab.podctl("a", &run))?;
    web::nginx(lab, "a", "nginx", "10.77.1.6");
    let start = |name: &str, words: &[&str]| {
        let (root, folder) = (rootfs(name), folder.join(name).display().to_string());
        bash(lab, name, START, &[&[root.as_str(), &folder], words].concat()).map(drop)
    };
    let bare = bare_redis();
    let words = bare.redis("/tmp");
    start("redis", &words.iter().map(String::as_str).collect::<Vec<_>>())?;
    let configuration =
        web::CONFIGURATION.replace("listen 80", "listen 8080").replace("/run/nginx.pid", "/tmp/nginx.pid");
    start("nginx", &["sh", "-c", web::SCRIPT, "sh", &configuration, web::SMALL])?;
    for server in [redis, &bare] {
        eventually("redis answers", Duration::from_secs(30), || redis_cli(lab, server, &["ping"]).out.trim() == "PONG");
    }
    eventually("nginx answers", Duration::from_secs(30), || wrk(lab, BARE_NGINX, "1s").is_ok());
    Ok(())
}

/// GETs a second of twenty clients on the LAN.
fn redis_benchmark(lab: &Lab, server: &Server) -> Result<f64, Failure> {
    let (root, ip, port) = (rootfs("redis"), server.address.ip().to_string(), server.address.port().to_string());
    let words = ["chroot", &root, "redis-benchmark", "-h", &ip, "-p", &port];
    let words = [&words[..], &["-t", "get", "-n", "100000", "-c", "20", "--csv"]].concat();
    let said = must("redis-benchmark", run(lab.client(&words)))?.out;
    let line = said.lines().find_map(|line| line.strip_prefix("\"GET\",\""));
    number(line.and_then(|rest| rest.split('"').next()), "redis-benchmark", &said)
}

/// Answers a second to twenty connections from the LAN.
fn wrk(lab: &Lab, place: &str, time: &str) -> Result<f64, Failure> {
    let url = format!("http://{place}/small");
    let said = must("wrk", run(lab.client(&["wrk", "-t", "1", "-c", "20", "-d", time, &url])))?.out;
    if said.contains("Non-2xx") || said.contains("Socket errors") {
        return Err(Failure(format!("wrk was answered with errors: {said}")));
    }
    let line = said.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    number(line.map(str::trim), "wrk", &said)
}

fn number(word: Option<&str>, who: &str, said: &str) -> Result<f64, Failure> {
    word.and_then(|word| word.parse().ok()).ok_or_else(|| Failure(format!("{who} says no figure: {said}")))
}

/// System calls (`src/bin/micro.rs`).
struct Micro {
    /// Its path on the host, in a folder that is a volume of the pod's.
    program: String,
    folder: String,
}

impl Micro {
    fn prepare(lab: &Lab, folder: &Path) -> Result<Self, Failure> {
        let volume = folder.join("volume");
        let failed = |e: std::io::Error| Failure(format!("cannot prepare {}: {e}", volume.display()));
        std::fs::create_dir_all(&volume).map_err(failed)?;
        std::fs::copy(helper("micro"), volume.join("micro-program")).map_err(failed)?;
        // The pod's root is another user of the host's.
        std::fs::set_permissions(&volume, std::os::unix::fs::PermissionsExt::from_mode(0o777)).map_err(failed)?;
        let volume = volume.display().to_string();
        let (root, mount) = (rootfs("shell"), format!("{volume}:/volume"));
        let pod = ["run", "--name", "micro", "--rootfs", &root, "--volume", &mount, "--", "sleep", "100000"];
        must("podctl run", lab.podctl("a", &pod))?;
        Ok(Self { program: format!("{volume}/micro-program"), folder: volume })
    }

    /// Of each call, nanoseconds in the pod and bare. Files are on the host's disk: in a volume, and in the pod's own layer, which is an
    /// overlay, where a bare process writes to the disk itself.
    fn once(&self, lab: &Lab, pod_first: bool) -> Result<Vec<(String, f64, f64)>, Failure> {
        const NAMES: [&str; 4] =
            ["getpid", "fork+exec", "file made and deleted in a volume", "file made and deleted in its layer"];
        let measure = |is_pod: bool| -> Result<Vec<f64>, Failure> {
            let said = match is_pod {
                true => lab.podctl("a", &["exec", "micro", "--", "/volume/micro-program", "/volume", "/tmp"]),
                false => run(lab.on("a", &[&self.program[..], &self.folder, &self.folder])),
            };
            let said = must("micro", said)?.out;
            let figures = said.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok());
            let figures: Vec<f64> = figures.collect();
            (figures.len() == NAMES.len()).then_some(figures).ok_or_else(|| Failure(format!("micro says {said:?}")))
        };
        let (pod, bare) = in_turns(pod_first, measure)?;
        let both = pod.into_iter().zip(bare);
        Ok(NAMES.into_iter().zip(both).map(|(name, (pod, bare))| (format!("{name}, ns"), pod, bare)).collect())
    }
}

/// What podd needs with many pods that do nothing, and how long each took to start.
fn at_rest(lab: &Lab) -> Result<String, Failure> {
    let root = rootfs("busybox");
    for name in ["redis", "nginx", "micro"] {
        must("podctl rm", lab.podctl("a", &["rm", "--force", name]))?;
    }
    let start = |number: usize| {
        let name = format!("pod{number}");
        let begun = Instant::now();
        let run = lab.podctl("a", &["run", "--name", &name, "--rootfs", &root, "--", "sleep", "100000"]);
        must("podctl run", run).map(|_| begun.elapsed().as_secs_f64() * 1e3)
    };
    let started = (0..PODS).map(start).collect::<Result<Vec<_>, _>>()?;
    let pid = crate::invariants::podd(lab, "a").ok_or_else(|| Failure("podd does not run".to_owned()))?;
    let ticks = || -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let words = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        words.skip(11).take(2).filter_map(|word| word.parse::<f64>().ok()).sum()
    };
    // Threads of the runtime's that have nothing to do end.
    std::thread::sleep(WATCHED);
    let before = ticks();
    std::thread::sleep(WATCHED);
    let cpu = (ticks() - before) / TICKS / WATCHED.as_secs_f64() * 100.0;
    let memory = memory(lab, "VmRSS")?;
    let started =
        Spread::of(started).map_or_else(String::new, |s| format!("{:.0} ms ({:.0} to {:.0})", s.median, s.min, s.max));
    Ok(format!(
        "podctl run of a small pod: {started}; podd with {PODS} pods at rest: {memory:.1} MB, {cpu:.2} % of a processor\n"
    ))
}
