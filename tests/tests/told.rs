//! Pods are told before they are touched, and have a say in when; whoever wants to know hears of it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::Lab;
use tests::lab::{eventually, rootfs};

const SOON: Duration = Duration::from_secs(20);

/// Wants two seconds more when it is told that something is coming, and says that it is ready when it has got them.
const APP: &str = "\
import http.client, json, socket, time
class Podd(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect('/run/podd/events.sock')
def ask(method, path):
    podd = Podd('podd')
    podd.request(method, path)
    answer = podd.getresponse()
    return answer.status, json.loads(answer.read())
seen, before, ready = None, None, None
while True:
    events = ask('GET', '/events')[1]['events']
    for event in events:
        base = '/events/' + event['id']
        if event['id'] != seen:
            seen, before = event['id'], event['not_before']
            print('told', event['kind'], event['expected_blackout_ms'] > 0, flush=True)
            print('delay', ask('POST', base + '/delay?seconds=2')[0], flush=True)
        elif event['not_before'] != before and ready != seen:
            ready = seen
            print('ready', ask('POST', base + '/acknowledge')[0], flush=True)
    if seen and not events:
        print('quiet', flush=True)
        seen = None
    time.sleep(0.1)
";

/// Prints what comes, and whether it is signed by whoever has the secret (Standard Webhooks). Fails the first time.
const HOOK: &str = "\
import base64, hashlib, hmac, http.server, json
failed = False
class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        global failed
        body = self.rfile.read(int(self.headers['content-length']))
        signed = f\"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.\".encode() + body
        mac = base64.b64encode(hmac.new(b'hush', signed, hashlib.sha256).digest()).decode()
        said = json.loads(body)
        good = self.headers['webhook-signature'] == 'v1,' + mac and self.headers['webhook-id'] == f\"a-{said['data']['id']}\"
        print(said['type'], 'signed' if good else 'FORGED', 'answered' if failed else 'refused', flush=True)
        self.send_response(200 if failed else 503)
        failed = True
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(('', 8000), Hook).serve_forever()
";

/// The journal of a host: kinds and who wanted it.
fn journal(lab: &Lab, host: &str) -> Vec<(String, String)> {
    let said = lab.ok(host, &["--json", "events", "--tail", "1000"]);
    let entries = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    entries.map(|e| (e["event"].as_str().unwrap().to_owned(), e["by"].as_str().unwrap().to_owned())).collect()
}

fn kinds(lab: &Lab, host: &str) -> Vec<String> {
    journal(lab, host).into_iter().map(|(kind, _)| kind).collect()
}

fn log(lab: &Lab, host: &str, pod: &str) -> Vec<String> {
    lab.ok(host, &["logs", pod]).lines().map(str::to_owned).collect()
}

/// What the pod's file says, if it is there yet.
fn told(lab: &Lab, host: &str, pod: &str) -> Value {
    let text = lab.podctl(host, &["exec", pod, "--", "cat", "/run/podd/events.json"]).out;
    serde_json::from_str::<Value>(&text).unwrap_or_default()["events"].clone()
}

fn migrate(lab: &Lab, notice: &str) -> Child {
    let mut command = lab.podctl_command("a", &["migrate", "web", "--to", "b", "--notice", notice]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_pod_delays_once_and_goes_when_it_is_ready() {
    let lab = Lab::up(2);
    let root = rootfs("shell");
    fs::write(lab.dir().join("a/secret"), "hush\n").unwrap();
    let policy = format!(
        "[notify]\nwebhook = \"http://10.77.1.9:8000/\"\nsecret = \"{}\"\n",
        lab.dir().join("a/secret").display()
    );
    fs::write(lab.dir().join("a/policy.toml"), policy).unwrap();
    lab.ok("b", &["run", "--name", "hook", "--rootfs", &root, "--ip", "10.77.1.9/16", "--", "python3", "-c", HOOK]);
    lab.ok("a", &["run", "--name", "web", "--rootfs", &root, "--", "python3", "-c", APP]);
    let mut follower = lab.podctl_command("a", &["events", "--follow", "--json"]);
    let followed = lab.dir().join("followed");
    let mut follower = follower.stdout(fs::File::create(&followed).unwrap()).spawn().unwrap();

    let begun = Instant::now();
    assert!(migrate(&lab, "5m").wait().unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(60), "it was ready, so nobody waited for the rest");
    let said = ["told move True", "delay 202", "ready 202", "quiet"].map(str::to_owned);
    eventually("the pod is told that it is over", SOON, || log(&lab, "b", "web") == said);
    let pod = "pod web".to_owned();
    let journal = journal(&lab, "a");
    let mine: Vec<_> = journal.iter().map(|(kind, by)| (kind.as_str(), by.as_str())).collect();
    assert_eq!(mine, [("notice", "root"), ("delayed", &*pod), ("acknowledged", &*pod), ("move", "root")]);
    eventually("the target's journal has it, too", SOON, || {
        self::journal(&lab, "b") == [("move".to_owned(), "host a".to_owned())]
    });
    let history = lab.ok("a", &["history", "--pod", "web"]);
    assert!(history.contains("web gets 2s more") && history.contains("web moved from a to b: "), "{history}");
    assert_eq!(lab.ok("a", &["history", "--pod", "other"]).lines().count(), 1, "the head of the table");

    let posts = ["notice", "delayed", "acknowledged", "move"].map(|kind| format!("podd.{kind} signed answered"));
    let posts = [vec!["podd.notice signed refused".to_owned()], posts.to_vec()].concat();
    eventually("the webhook has heard it all, in order", SOON, || log(&lab, "b", "hook") == posts);
    eventually("and so has whoever follows", SOON, || fs::read_to_string(&followed).unwrap().lines().count() == 4);
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn a_notice_holds_as_long_as_somebody_wants_the_move() {
    let lab = Lab::up(2);
    lab.ok("a", &["run", "--name", "web", "--rootfs", &rootfs("shell"), "--", "sleep", "1000"]);
    eventually("it has its file", SOON, || told(&lab, "a", "web") == Value::Array(Vec::new()));
    let is_told = |count: usize| told(&lab, "a", "web").as_array().is_some_and(|events| events.len() == count);
    // Not before podd has said so: preflight refuses a pod in which a command of ours runs.
    let is_told_of_move = |events: &[&str]| {
        eventually("the notice is an event", SOON, || kinds(&lab, "a") == events);
        eventually("the pod is told", SOON, || is_told(1));
    };

    // Whoever wants it goes: Ctrl-C.
    let mut first = migrate(&lab, "5m");
    is_told_of_move(&["notice"]);
    let again = lab.podctl("a", &["migrate", "web", "--to", "b", "--notice", "5m"]);
    assert!(
        again.code == 1 && again.err.contains("web has been told already") && again.err.contains("cure: "),
        "{again:?}"
    );
    first.kill().unwrap();
    first.wait().unwrap();
    eventually("the pod is told that it is off", SOON, || is_told(0));
    eventually("it is an event", SOON, || kinds(&lab, "a") == ["notice", "withdrawn"]);

    // podd dies.
    let mut second = migrate(&lab, "5m");
    is_told_of_move(&["notice", "withdrawn", "notice"]);
    lab.script(&["kill", "a"]).must();
    assert!(!second.wait().unwrap().success());
    lab.script(&["start", "a"]).must();
    eventually("the pod is told that it is off", SOON, || is_told(0));
    eventually("it is an event", SOON, || kinds(&lab, "a") == ["notice", "withdrawn", "notice", "withdrawn"]);

    // The time comes, and the pod has said nothing.
    assert!(migrate(&lab, "2s").wait().unwrap().success());
    eventually("it runs there", SOON, || lab.state("b", "web").as_deref() == Some("running"));
    eventually("nothing of it is left", SOON, || told(&lab, "b", "web") == Value::Array(Vec::new()));
}

/// What lies in the pod's folder is the pod's own: podd writes there and reads it, and nothing of the host is touched.
#[test]
fn a_pod_cannot_lead_podd_astray() {
    let lab = Lab::up(2);
    let victim = lab.dir().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("events.json"), "the host's\n").unwrap();
    let victim_path = victim.display();
    // It removes what applications see, or leads podd's own folder away.
    let careless = "rm -rf /run/*; sleep 1000";
    let evil = format!(
        "mv /.podd/events /.podd/mine && ln -s {victim_path} /.podd/events && ln -s /etc/shadow /.podd/answers; sleep 1000"
    );
    let root = rootfs("shell");
    lab.ok("a", &["run", "--name", "careless", "--rootfs", &root, "--", "sh", "-c", careless]);
    lab.ok("a", &["run", "--name", "evil", "--rootfs", &root, "--", "sh", "-c", &evil]);
    eventually("the link is there", SOON, || {
        lab.ok("a", &["exec", "evil", "--", "ls", "-l", "/.podd"]).contains("answers -> /etc/shadow")
    });
    lab.ok("a", &["migrate", "careless", "--to", "b", "--notice", "2s"]);
    // The socket of its init is bound in a folder that is gone.
    let refused = lab.podctl("a", &["migrate", "evil", "--to", "b", "--notice", "2s"]);
    assert!(refused.code == 3 && refused.err.contains("that folder is gone"), "{refused:?}");
    assert_eq!(fs::read_to_string(victim.join("events.json")).unwrap(), "the host's\n");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
    assert_eq!(kinds(&lab, "a"), ["notice", "move"]);
}
