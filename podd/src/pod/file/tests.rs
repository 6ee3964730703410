#![allow(clippy::unwrap_used)]

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::pod::spec::{RestartPolicy, RootSource};

const FULL: &str = r#"
name = "web"
rootfs = "/srv/root"
command = ["nginx", "-g", "daemon off;"]
user = "www-data:33"
workdir = "/var//www/"
hostname = "web.example.org"
ip = ["10.0.0.5/24", "fd00::5/64"]
gateway = ["10.0.0.1", "fe80::1"]
mac = "02:00:00:00:00:05"
memory = "512M"
cpus = 1.5
pids = 512
volumes = ["/srv/a:/data/sub", "/srv/www:/data:ro"]
cap_add = ["net_raw", "CAP_NET_RAW"]
allow_new_privileges = true
restart = "on-failure"
stop_signal = "QUIT"
stop_timeout = "2m"
log_size = "1M"

[env]
PORT = "80"
EMPTY = ""
"#;

fn minimal() -> PodFile {
    PodFile {
        name: Some("web".into()),
        rootfs: Some("/srv/root".into()),
        command: vec!["sleep".into()],
        ..PodFile::default()
    }
}

fn message(file: PodFile) -> String {
    file.into_spec([0; 6]).unwrap_err().to_string()
}

#[test]
fn full_file_means_what_it_says() {
    let spec = PodFile::parse(FULL).unwrap().into_spec([0xff; 6]).unwrap();
    assert_eq!(spec.source, RootSource::Rootfs("/srv/root".into()));
    assert_eq!(spec.workdir.as_deref(), Some("/var/www"));
    assert_eq!(spec.limits.memory, Some(512 << 20));
    assert_eq!(spec.limits.cpus, Some(1.5));
    assert_eq!(spec.volumes[0].pod, Path::new("/data"), "parents come first");
    assert!(spec.volumes[0].read_only && !spec.volumes[1].read_only);
    assert_eq!(spec.cap_add, ["CAP_NET_RAW"]);
    assert_eq!(spec.restart, RestartPolicy::OnFailure);
    assert_eq!((spec.stop_signal, spec.stop_timeout_s, spec.log_bytes), (Some(3), 120, 1 << 20));
    let network = spec.network.as_ref().unwrap();
    assert_eq!(network.mac, [2, 0, 0, 0, 0, 5]);
    assert_eq!(network.addresses, ["10.0.0.5/24", "fd00::5/64"]);
    assert_eq!(validated(&spec).unwrap(), spec);
}

#[test]
fn defaults_are_the_documented_ones() {
    let spec = minimal().into_spec([0; 6]).unwrap();
    assert_eq!((spec.stop_signal, spec.stop_timeout_s, spec.log_bytes), (None, 10, 16 << 20));
    assert_eq!((spec.network, spec.restart), (None, RestartPolicy::No));
}

#[test]
fn numbers_may_stand_for_text_and_one_string_for_a_list() {
    let file = PodFile::parse("user = 33\nmemory = 8388608\nip = '10.0.0.5/24'\nstop_timeout = 3").unwrap();
    assert_eq!((file.user.as_deref(), file.memory.as_deref()), (Some("33"), Some("8388608")));
    assert_eq!((file.ip, file.stop_timeout.as_deref()), (vec!["10.0.0.5/24".to_owned()], Some("3")));
}

#[test]
fn syntax_errors_name_the_line() {
    let error = PodFile::parse("name = 'web'\nmemry = '512M'\n").unwrap_err();
    let PodFileError::Syntax { line, message } = &error else { panic!("{error:?}") };
    assert_eq!(*line, 2);
    assert!(message.contains("unknown field `memry`"), "{message}");
    let error = PodFile::parse("memory = true").unwrap_err().to_string();
    assert!(error.contains("expected a string or a whole number"), "{error}");
    let error = PodFile::parse("memory = ['1G']").unwrap_err().to_string();
    assert!(error.contains("expected a string or a whole number"), "{error}");
    assert!(!PodFile::parse("name = ").unwrap_err().to_string().contains('\n'));
    assert!(PodFile::parse(&" ".repeat(MAX_FILE + 1)).is_err());
}

#[test]
fn refusals_name_key_value_and_reason() {
    type Change = fn(&mut PodFile);
    let table: [(Change, &str); 37] = [
        (|f| f.name = None, "the pod has no name"),
        (|f| f.name = Some("Web".into()), "name \"Web\" has other characters"),
        (|f| f.name = Some("-web".into()), "name \"-web\" starts with a hyphen"),
        (|f| f.name = Some(String::new()), "name \"\" is empty"),
        (|f| f.name = Some("a".repeat(64)), "is longer than 63 characters"),
        (|f| f.rootfs = None, "the pod has no rootfs or image"),
        (|f| f.image = Some("oci:/x".into()), "image \"oci:/x\" is given together with a rootfs"),
        (|f| f.rootfs = Some("root".into()), "rootfs \"root\" is not an absolute path"),
        (|f| f.rootfs = Some("/a/../b".into()), "rootfs \"/a/../b\" contains `..`"),
        (|f| f.command.clear(), "the pod has no command"),
        (|f| f.command[0].clear(), "command \"\" has no program"),
        (|f| f.command.push("a\0b".into()), "command \"a\\0b\" contains a NUL"),
        (|f| f.env = [("A=B".into(), String::new())].into(), "env \"A=B\" is not a variable's name"),
        (|f| f.env = [("A".into(), "\0".into())].into(), "env \"A\" has a value with a NUL"),
        (|f| f.user = Some("a:b:c".into()), "user \"a:b:c\" is not a user"),
        (|f| f.workdir = Some("tmp".into()), "workdir \"tmp\" is not an absolute path"),
        (|f| f.group = Some("a b".into()), "group \"a b\" has other characters"),
        (|f| f.hostname = Some("a_b".into()), "hostname \"a_b\" is not a host name"),
        (|f| f.ip = vec!["10.0.0.5".into()], "ip \"10.0.0.5\" has no prefix length"),
        (|f| f.ip = vec!["10.0.0.5/33".into()], "has an impossible prefix length"),
        (|f| f.ip = vec!["10.0.0.0/24".into()], "is the address of a whole network"),
        (|f| f.ip = vec!["::1/128".into()], "is not an address that a pod can have"),
        (|f| f.ip = vec!["10.0.0.5/24".into(), "10.0.0.5/16".into()], "ip \"10.0.0.5/16\" is given twice"),
        (|f| f.gateway = vec!["10.0.0.1".into()], "gateway \"10.0.0.1\" is given, but the pod has no address"),
        (|f| f.mac = Some("02:00:00:00:00:05".into()), "is given, but the pod has no address"),
        (|f| f.memory = Some("512X".into()), "memory \"512X\" is not a size"),
        (|f| f.memory = Some("512".into()), "memory \"512\" is less than 4M"),
        (|f| f.cpus = Some(0.0), "cpus \"0\" is not a possible number of cores"),
        (|f| f.cpus = Some(f64::NAN), "is not a possible number of cores"),
        (|f| f.pids = Some(1), "pids \"1\" is not a possible number"),
        (|f| f.volumes = vec!["/srv".into()], "is not of the form HOST:POD[:ro]"),
        (|f| f.volumes = vec!["/srv:/proc/x".into()], "lies in a file system that podd makes itself"),
        (|f| f.volumes = vec!["/a:/d".into(), "/b:/d/".into()], "volumes \"/d\" is given twice"),
        (|f| f.cap_add = vec!["ALL".into()], "cap_add \"ALL\" is not a capability"),
        (|f| f.restart = Some("maybe".into()), "restart \"maybe\" is not a restart policy"),
        (|f| f.stop_signal = Some("65".into()), "stop_signal \"65\" is not a signal"),
        (|f| f.log_size = Some("1K".into()), "log_size \"1K\" is not between 64K and 1T"),
    ];
    for (change, expected) in table {
        let mut file = minimal();
        change(&mut file);
        let said = message(file.clone());
        assert!(said.contains(expected), "{said:?} should contain {expected:?}");
        assert!(!file.into_spec([0; 6]).unwrap_err().cure().is_empty());
    }
}

#[test]
fn gateways_must_be_neighbours() {
    let mut file = minimal();
    file.ip = vec!["10.0.0.5/24".into(), "fd00::5/64".into()];
    let mut with = |gateways: &[&str]| {
        file.gateway = gateways.iter().map(ToString::to_string).collect();
        file.clone().into_spec([0; 6]).map(|spec| spec.network.unwrap().gateways.len()).map_err(|e| e.to_string())
    };
    assert_eq!(with(&["10.0.0.1", "fd00::1"]), Ok(2));
    assert!(with(&["10.0.1.1"]).unwrap_err().contains("in none of the pod's networks"));
    assert!(with(&["10.0.0.5"]).unwrap_err().contains("own address"));
    assert!(with(&["10.0.0.1", "10.0.0.2"]).unwrap_err().contains("second gateway"));
}

#[test]
fn quantities() {
    use quantity::{seconds, signal, size};
    assert_eq!([size("1"), size("2k"), size("3MiB"), size("4 G")], [Some(1), Some(2048), Some(3 << 20), Some(4 << 30)]);
    assert_eq!([size("1MB"), size("-1"), size("1.5G"), size(""), size("99999999T")], [None; 5]);
    assert_eq!(
        [seconds("10s"), seconds("2m"), seconds("1h"), seconds("7")],
        [Some(10), Some(120), Some(3600), Some(7)]
    );
    assert_eq!([seconds("s"), seconds("1w"), seconds("99999999999999999999")], [None; 3]);
    assert_eq!(
        [signal("TERM"), signal("sigkill"), signal("15"), signal("RTMIN+3"), signal("RTMAX-1")],
        [Some(15), Some(9), Some(15), Some(37), Some(63)]
    );
    assert_eq!(
        [
            signal("0"),
            signal("-1"),
            signal("65"),
            signal("RTMIN+31"),
            signal("SIGRTMIN+2147483647"),
            signal("FOO"),
            signal("")
        ],
        [None; 7]
    );
}

#[test]
fn flags_lie_over_the_file() {
    let file = PodFile::parse(FULL).unwrap();
    let flags = PodFile {
        name: Some("web-2".into()),
        image: Some("oci:/images/nginx".into()),
        ip: vec!["10.0.0.6/24".into()],
        volumes: vec!["/x:/x".into()],
        env: [("PORT".to_owned(), "81".to_owned())].into(),
        ..PodFile::default()
    };
    let both = file.clone().overlaid(flags);
    assert_eq!((both.name.as_deref(), both.rootfs, both.ip.len()), (Some("web-2"), None, 1));
    assert_eq!((both.volumes.len(), both.env["PORT"].as_str(), both.env.len()), (3, "81", 2));
    assert_eq!(file.clone().overlaid(PodFile::default()), file);
}

#[test]
fn relative_paths_are_relative_to_the_file() {
    let file = PodFile {
        rootfs: Some("./root".into()),
        image: Some("oci:images/a:v1".into()),
        volumes: vec!["data:/data:ro".into(), "/abs:/x".into()],
        ..PodFile::default()
    }
    .resolved(Path::new("/etc/pods"));
    assert_eq!(file.rootfs.as_deref(), Some("/etc/pods/root"));
    assert_eq!(file.image.as_deref(), Some("oci:/etc/pods/images/a:v1"));
    assert_eq!(file.volumes, ["/etc/pods/data:/data:ro", "/abs:/x"]);
}

fn words() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9-]{0,70}",
        "/[a-z./]{0,20}(:/[a-z./]{0,9})?(:r[ow])?",
        "[0-9]{1,25}[a-zA-Z]{0,3}",
        "[0-9a-f.:]{1,20}/[0-9]{1,3}",
        "(oci|docker-archive):/?[a-z:/]{0,12}",
        any::<String>(),
    ]
}

prop_compose! {
    fn any_file()(
        name in proptest::option::of(words()), rootfs in proptest::option::of(words()),
        image in proptest::option::of(words()), command in proptest::collection::vec(words(), 0..3),
        user in proptest::option::of(words()), workdir in proptest::option::of(words()),
        ip in proptest::collection::vec(words(), 0..3), gateway in proptest::collection::vec(words(), 0..2),
        memory in proptest::option::of(words()), cpus in proptest::option::of(any::<f64>()),
        volumes in proptest::collection::vec(words(), 0..3), cap_add in proptest::collection::vec(words(), 0..2),
    ) -> PodFile {
        PodFile {
            name, rootfs, image, command, user: user.clone(), workdir, hostname: user.clone(), group: user.clone(), ip, gateway,
            mac: memory.clone(), memory, cpus, pids: cpus.map(|c| c as u64), volumes, cap_add,
            allow_new_privileges: false, restart: user.clone(), health: HealthFile { http: user.clone(), interval: user.clone(), ..HealthFile::default() }, stop_signal: user.clone(),
            stop_timeout: user.clone(), log_size: user, env: Default::default(),
        }
    }
}

prop_compose! {
    fn good_file()(
        name in "[a-z0-9][a-z0-9-]{0,62}", image in any::<bool>(), path in "(/[a-z]{1,8}){1,4}",
        command in proptest::collection::vec("[^\0]{1,9}", 1..4), user in proptest::option::of("[a-z]{1,8}(:[0-9]{1,5})?"),
        workdir in proptest::option::of("(/[a-z]{1,5}){1,3}/?"), host in 2_u8..250, with_ip in any::<bool>(),
        memory in proptest::option::of(4_u64..1 << 20), cpus in proptest::option::of(0.01..64.0_f64),
        pids in proptest::option::of(2_u64..9999), volumes in proptest::collection::btree_set("[a-z]{3,8}", 0..4),
        read_only in any::<bool>(), restart in prop_oneof![Just("no"), Just("on-failure"), Just("always")],
        signal in 1..=64_i32, timeout in 0_u32..9999, env in proptest::collection::btree_map("[^=\0]{1,9}", "[^\0]{0,9}", 0..4),
    ) -> PodFile {
        let mode = if read_only { ":ro" } else { "" };
        PodFile {
            name: Some(name), rootfs: (!image).then(|| path.clone()), image: image.then(|| format!("oci:{path}:v1")),
            command, user, workdir, hostname: None, group: None,
            ip: if with_ip { vec![format!("10.0.0.{host}/24"), format!("fd00::{host:x}/64")] } else { vec![] },
            gateway: if with_ip { vec!["10.0.0.1".into()] } else { vec![] }, mac: None,
            memory: memory.map(|m| format!("{m}M")), cpus, pids,
            volumes: volumes.iter().filter(|v| !["dev", "sys", "proc"].contains(&v.as_str()))
                .map(|v| format!("{path}/{v}:/{v}{mode}")).collect(),
            cap_add: vec!["net_raw".into()], allow_new_privileges: read_only, restart: Some(restart.into()),
            health: HealthFile { tcp: with_ip.then(|| signal.to_string()), command: if image && !with_ip { vec!["a".into(), "b".into()] } else { vec![] }, ..HealthFile::default() },
            stop_signal: Some(signal.to_string()), stop_timeout: Some(format!("{timeout}s")),
            log_size: memory.map(|m| format!("{m}M")), env,
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_an_answer_not_a_panic(text in any::<String>()) {
        let _ = PodFile::parse(&text);
    }

    #[test]
    fn any_toml_is_an_answer_not_a_panic(
        key in "(name|rootfs|command|ip|gateway|memory|cpus|pids|volumes|env|user|mac|restart|[a-z_]{1,9})",
        value in prop_oneof![any::<i64>().prop_map(|n| n.to_string()), any::<f64>().prop_map(|n| n.to_string()),
            words().prop_map(|w| format!("{w:?}")), words().prop_map(|w| format!("[{w:?}]")),
            words().prop_map(|w| format!("{{ {w:?} = {w:?} }}")), Just("true".to_owned())],
    ) {
        if let Ok(file) = PodFile::parse(&format!("{key} = {value}")) {
            let _ = file.into_spec([7; 6]);
        }
    }

    #[test]
    fn any_values_are_an_answer_not_a_panic(file in any_file(), random in any::<[u8; 6]>()) {
        match file.resolved(Path::new("/base")).into_spec(random) {
            Ok(spec) => prop_assert_eq!(validated(&spec), Ok(spec)),
            Err(error) => prop_assert!(!error.to_string().contains('\n') && !error.cure().is_empty()),
        }
    }

    #[test]
    fn valid_files_round_trip(file in good_file(), random in any::<[u8; 6]>()) {
        let text = toml::to_string(&file).unwrap();
        prop_assert_eq!(&PodFile::parse(&text).unwrap(), &file);
        let spec = file.into_spec(random).unwrap();
        if let Some(network) = &spec.network {
            prop_assert_eq!(network.mac[0] & 3, 2, "unicast and locally administered");
            prop_assert_eq!(&network.mac[1..], &random[1..]);
        }
        prop_assert_eq!(validated(&spec), Ok(spec));
    }
}
