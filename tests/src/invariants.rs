//! What must hold whatever died on the way: one copy of the pod, no write lost, nothing left behind.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::eventually;
use crate::traces::{self, cgroups, difference, holder, in_network_of, inside};
use crate::{Lab, Run};

/// Steps at which nothing is left to do.
const FINAL: [&str; 5] = ["done", "aborted", "returned", "running", "discarded"];

/// Connects from the LAN's client, as anybody in the network would.
///
/// # Errors
/// Nobody answers.
pub fn connect(lab: &Lab, address: &str, patience: Duration) -> io::Result<TcpStream> {
    let address = format!("{address}:6379").parse().map_err(io::Error::other)?;
    in_network_of(holder(lab, "client"), || {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(stream)
    })
}

/// One redis command that is answered with one line or one short string.
fn command(stream: &mut BufReader<TcpStream>, words: &str) -> io::Result<String> {
    stream.get_mut().write_all(format!("{words}\r\n").as_bytes())?;
    let mut line = String::new();
    while line.is_empty() || line.starts_with('$') {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(line.trim().trim_start_matches(':').to_owned())
}

/// A client that increments a counter in redis over one connection and remembers what was acknowledged.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    complaints: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts writing, every few milliseconds, until dropped.
    #[must_use]
    pub fn start(lab: &Lab, address: &str) -> Self {
        let stream = connect(lab, address, Duration::from_secs(60)).expect("redis accepts a connection");
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let complaints = Arc::new(Mutex::new(Vec::new()));
        let (stopped, last, said) = (stop.clone(), acknowledged.clone(), complaints.clone());
        let thread = std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            while !stopped.load(Ordering::Relaxed) {
                let expected = last.load(Ordering::Relaxed) + 1;
                let wrong = match command(&mut stream, "INCR acknowledged") {
                    Ok(value) if value == expected.to_string() => None,
                    Ok(value) => Some(format!("the counter is {value} instead of {expected}")),
                    Err(e) => Some(format!("the connection broke after {}: {e}", expected - 1)),
                };
                if let Some(wrong) = wrong {
                    said.lock().unwrap_or_else(PoisonError::into_inner).push(wrong);
                    return;
                }
                last.store(expected, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        Self { stop, acknowledged, complaints, thread: Some(thread) }
    }

    /// The last value that was acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// What was wrong so far; empty if nothing.
    #[must_use]
    pub fn complaints(&self) -> String {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).join("; ")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take().filter(JoinHandle::is_finished) {
            let _ = thread.join();
        }
    }
}

/// A client that has redis write to random places of a large value, all the time, until dropped.
#[derive(Debug)]
pub struct Churn(Arc<AtomicBool>);

impl Churn {
    /// Starts writing; some megabytes are written to anew within some milliseconds.
    #[must_use]
    pub fn start(lab: &Lab, address: &str) -> Self {
        const WRITE: &str = "EVAL \"for i = 1, 2000 do redis.call('SETRANGE', 'large', math.random(8000) * 4096, ARGV[1]) end return 1\" 0";
        let mut stream =
            BufReader::new(connect(lab, address, Duration::from_secs(60)).expect("redis accepts a connection"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        std::thread::spawn(move || {
            for n in 0_u64.. {
                if stopped.load(Ordering::Relaxed) || command(&mut stream, &format!("{WRITE} {n}")).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        Self(stop)
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A pod that moves between two hosts, a client that writes to it, and how the hosts look when all is well.
pub struct Subject<'a> {
    lab: &'a Lab,
    pod: String,
    id: String,
    address: String,
    writer: Writer,
    /// How its memory goes.
    mode: &'static str,
    /// Traces of `a` and `b`: with the pod, and without it.
    with: [Vec<String>; 2],
    without: [Vec<String>; 2],
    begun: Instant,
}

/// The two hosts.
pub const HOSTS: [&str; 2] = ["a", "b"];

impl<'a> Subject<'a> {
    /// Takes a redis pod that runs on `a`, moves it to `b` and back, and notes how the hosts look meanwhile.
    #[must_use]
    pub fn new(lab: &'a Lab, pod: &str, address: &str) -> Self {
        let detail = api(lab, "a", &format!("/v1/pods/{pod}")).expect("podd answers");
        let id = detail["id"].as_str().expect("a pod has an id").to_owned();
        let writer = Writer::start(lab, address);
        let mut subject = Self {
            lab,
            pod: pod.to_owned(),
            id,
            address: address.to_owned(),
            writer,
            mode: "auto",
            with: Default::default(),
            without: Default::default(),
            begun: Instant::now(),
        };
        lab.ok("a", &["migrate", pod, "--to", "b"]);
        subject.without[0] = subject.steady("a");
        subject.with[1] = subject.steady("b");
        lab.ok("b", &["migrate", pod, "--to", "a"]);
        subject.with[0] = subject.steady("a");
        subject.without[1] = subject.steady("b");
        subject.settled(Duration::from_secs(25));
        subject
    }

    /// Has its memory go this way.
    #[must_use]
    pub fn by(self, mode: &'static str) -> Self {
        Self { mode, ..self }
    }

    /// Traces that no short-lived process disturbs: the same three times in a row.
    fn steady(&self, host: &str) -> Vec<String> {
        let mut last = Vec::new();
        let mut same = 0;
        eventually("a host comes to rest", Duration::from_secs(20), || {
            let now = traces::of(self.lab, host);
            same = if now == last { same + 1 } else { 0 };
            last = now;
            same >= 3
        });
        last
    }

    /// The pod's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The client.
    #[must_use]
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Waits until every invariant holds; the host on which the pod runs. Fails the test after `limit`.
    #[track_caller]
    pub fn settled(&self, limit: Duration) -> &'static str {
        let begun = Instant::now();
        loop {
            match self.check() {
                Ok(host) => return host,
                Err(reason) if begun.elapsed() > limit => {
                    let moves = HOSTS.map(|h| self.lab.podctl(h, &["migrations"]).out);
                    let [a, b] = moves.map(|m| m.lines().rev().take(4).collect::<Vec<_>>().join("\n"));
                    let podds = HOSTS.map(|h| stand(self.lab, h)).join("\n");
                    panic!("not within {limit:?}: {reason}\n{podds}\nmigrations, newest first\na:\n{a}\nb:\n{b}");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// One look at everything.
    fn check(&self) -> Result<&'static str, String> {
        let (host, other) = self.one_copy()?;
        self.journals_agree()?;
        self.not_frozen(host)?;
        let here = HOSTS.iter().position(|h| *h == host).unwrap_or_default();
        for (host, before) in [(host, &self.with[here]), (other, &self.without[1 - here])] {
            let difference = difference(before, &traces::of(self.lab, host));
            if !difference.is_empty() {
                return Err(format!("{host} does not look as before:\n{difference}"));
            }
        }
        self.answers()?;
        for host in HOSTS {
            if let Some(line) = self.lab.log(host).lines().find(|l| l.contains("panicked")) {
                return Err(format!("podd of {host}: {line}"));
            }
        }
        Ok(host)
    }

    /// Exactly one host knows the pod, and runs it; exactly one has processes of it.
    fn one_copy(&self) -> Result<(&'static str, &'static str), String> {
        let [a, b] = HOSTS.map(|host| self.state(host));
        let there = match (a?.as_deref(), b?.as_deref()) {
            (Some("running"), None) => 0,
            (None, Some("running")) => 1,
            states => return Err(format!("the pod's states are {states:?}")),
        };
        let alive = HOSTS.map(|host| groups(self.lab, host, &self.id).iter().any(|g| populated(g)));
        let mut expected = [false; 2];
        expected[there] = true;
        if alive == expected { Ok((HOSTS[there], HOSTS[1 - there])) } else { Err(format!("processes on {alive:?}")) }
    }

    fn state(&self, host: &str) -> Result<Option<String>, String> {
        let pods = api(self.lab, host, "/v1/pods").map_err(|e| format!("podd of {host}: {e}"))?;
        let found = pods.as_array().into_iter().flatten().find(|p| p["id"] == self.id.as_str());
        Ok(found.map(|p| p["state"].as_str().unwrap_or_default().to_owned()))
    }

    /// No freezer is shut and no process of the pod is held by a tracer.
    fn not_frozen(&self, host: &str) -> Result<(), String> {
        for group in groups(self.lab, host, &self.id) {
            if fs::read_to_string(group.join("cgroup.freeze")).is_ok_and(|t| t.trim() != "0") {
                return Err(format!("{} is frozen", group.display()));
            }
            for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let field = |name: &str| status.lines().find_map(|l| Some(l.strip_prefix(name)?.trim().to_owned()));
                if field("TracerPid:").is_some_and(|t| t != "0")
                    || field("State:").is_some_and(|s| s.starts_with(['t', 'T']))
                {
                    return Err(format!("process {pid} of the pod is held:\n{status}"));
                }
            }
        }
        Ok(())
    }

    /// What the two journals say of each move fits together, and nothing is open.
    fn journals_agree(&self) -> Result<(), String> {
        let mut moves =
            HOSTS.map(|host| api(self.lab, host, "/v1/migrations").map_err(|e| format!("podd of {host}: {e}")));
        let [a, b] = &mut moves;
        let (a, b) = (a.as_mut().map_err(|e| e.clone())?, b.as_mut().map_err(|e| e.clone())?);
        let text = |m: &Value, field: &str| m[field].as_str().unwrap_or_default().to_owned();
        let all = |host: &str, list: &Value| -> Vec<(String, bool, String)> {
            let of_one = |m: &Value| (text(m, "id"), text(m, "from") == host, text(m, "step"));
            list.as_array().into_iter().flatten().map(of_one).collect()
        };
        let (a, b) = (all("a", a), all("b", b));
        if let Some((id, _, step)) = a.iter().chain(&b).find(|m| !FINAL.contains(&m.2.as_str())) {
            return Err(format!("the move {id} is still {step}"));
        }
        for (id, source_side, step) in &a {
            let other = b.iter().find(|m| m.0 == *id).map(|m| m.2.as_str());
            let (source, target) =
                if *source_side { (Some(step.as_str()), other) } else { (other, Some(step.as_str())) };
            match (source, target) {
                (Some("done"), Some("running"))
                | (Some("aborted"), None | Some("discarded"))
                | (Some("returned"), Some("discarded")) => {}
                steps => return Err(format!("the move {id} ended as {steps:?}")),
            }
        }
        Ok(())
    }

    /// The client gets further, and what a new client reads is no older than what was acknowledged.
    fn answers(&self) -> Result<(), String> {
        let before = self.writer.acknowledged();
        let begun = Instant::now();
        while self.writer.acknowledged() < before + 3 {
            let complaints = self.writer.complaints();
            assert!(complaints.is_empty(), "the client says: {complaints}");
            if begun.elapsed() > Duration::from_secs(2) {
                return Err(format!("the client gets no answer since {before}"));
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        let acknowledged = self.writer.acknowledged();
        let read = connect(self.lab, &self.address, Duration::from_secs(2))
            .and_then(|stream| command(&mut BufReader::new(stream), "GET acknowledged"))
            .map_err(|e| format!("a new client gets no answer: {e}"))?;
        let value: u64 = read.parse().map_err(|_| format!("the counter reads {read}"))?;
        assert!(value >= acknowledged, "{acknowledged} was acknowledged, but the counter is {value}");
        Ok(())
    }

    /// Begins a move, and returns at once.
    #[must_use]
    pub fn begin_move(&self, from: &str, to: &str) -> Child {
        let mut command = self.lab.podctl_command(from, &["migrate", &self.pod, "--to", to, "--mode", self.mode]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("podctl starts")
    }

    /// Has the pod on this host before the next case.
    #[track_caller]
    pub fn bring_to(&self, host: &'static str) {
        let now = self.settled(Duration::from_secs(20));
        if now != host {
            self.lab.ok(now, &["migrate", &self.pod, "--to", host]);
        }
    }

    /// The process that the pod's shim on a host has for CRIU, if it has one now.
    #[must_use]
    pub fn criu(&self, host: &str) -> Option<Pid> {
        let shim = self.shim(host)?;
        let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).ok()?;
        let mut children = children.split_whitespace();
        let is_criu = |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "criu");
        children.find(is_criu).and_then(|pid| pid.parse().ok()).map(Pid::from_raw)
    }

    /// The pod's shim on a host, if it has one.
    #[must_use]
    pub fn shim(&self, host: &str) -> Option<Pid> {
        shim(self.lab, host, &self.id)
    }

    /// Time since the subject was made: for progress that a person can read.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// The cgroups of the pod with this id on a host.
#[must_use]
pub fn groups(lab: &Lab, host: &str, id: &str) -> Vec<PathBuf> {
    cgroups(lab, host).into_iter().filter(|group| group.ends_with(id)).collect()
}

/// The shim of the pod with this id on a host, if it has one.
#[must_use]
pub fn shim(lab: &Lab, host: &str, id: &str) -> Option<Pid> {
    let path = inside(lab, host, "/run/podd/pods").join(id).join("shim.pid");
    let shim: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let pid = i32::try_from(shim["pid"].as_i64()?).ok()?;
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (comm.trim() == "podd-shim").then_some(Pid::from_raw(pid))
}

fn populated(group: &std::path::Path) -> bool {
    fs::read_to_string(group.join("cgroup.events")).is_ok_and(|t| t.contains("populated 1"))
}

/// A GET to podd of a host, without podctl: tests ask often.
///
/// # Errors
/// It does not answer with JSON.
pub fn api(lab: &Lab, host: &str, path: &str) -> io::Result<Value> {
    let mut stream = UnixStream::connect(lab.dir().join(host).join("podd.sock"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: podd\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (_, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    serde_json::from_str(body).map_err(io::Error::other)
}

/// podd of a host, if it runs.
#[must_use]
pub fn podd(lab: &Lab, host: &str) -> Option<Pid> {
    let text = fs::read_to_string(lab.dir().join(host).join("podd.pid")).ok()?;
    let pid: i32 = text.trim().parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let alive = stat.contains("(podd)") && !stat.contains(") Z ") && !stat.contains(") X ");
    alive.then_some(Pid::from_raw(pid))
}

/// What every thread of a host's podd is doing.
fn stand(lab: &Lab, host: &str) -> String {
    let Some(pid) = podd(lab, host) else { return format!("podd of {host} does not run") };
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().map(|t| t.path());
    let lines = threads.map(|t| format!("  {} {}", read(t.join("comm")), read(t.join("wchan"))));
    lines.fold(format!("podd of {host} is process {pid}:"), |all, line| all + "\n" + &line)
}

/// kill -9 of podd, if it runs; returns when it is gone.
#[track_caller]
pub fn kill_podd(lab: &Lab, host: &str) {
    if let Some(pid) = podd(lab, host) {
        let _ = kill(pid, Signal::SIGKILL);
        eventually("podd is gone after kill -9", Duration::from_secs(10), || podd(lab, host) != Some(pid));
    }
}

/// Starts podd again wherever it is dead.
#[track_caller]
pub fn start_podds(lab: &Lab) {
    for host in HOSTS {
        if podd(lab, host).is_none() {
            lab.script(&["start", host]).must();
            assert!(podd(lab, host).is_some(), "podd of {host} is dead at once: {}", lab.log(host));
        }
    }
}

/// Waits for a child; none if it does not end within `limit` (it is killed then).
pub fn end_of(mut child: Child, limit: Duration) -> Option<i32> {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.code().unwrap_or(255)),
            Ok(None) if begun.elapsed() < limit => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

/// Demands that a command fails with this exit code.
#[track_caller]
pub fn fails(run: &Run, code: i32) {
    assert_eq!(run.code, code, "stdout: {}\nstderr: {}", run.out, run.err);
}
