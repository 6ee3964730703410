//! From words to a [`PodSpec`], and back for a spec that did not come from words.

use super::{HealthFile, PodFile, PodFileError, address, paths, quantity};
use crate::pod::spec::{Limits, PodSpec, RestartPolicy, RootSource};

const STOP_TIMEOUT_S: u32 = 10;
const LOG_BYTES: u64 = 16 << 20;

/// Checks a spec that arrived over the API by the rules for pod files, and returns it in canonical form: paths
/// without doubled slashes, volumes with parents first, capabilities by their full name.
pub fn validated(spec: &PodSpec) -> Result<PodSpec, PodFileError> {
    from_spec(spec).into_spec([0; 6])
}

/// A pod's or host's name: 1 to 63 of `a-z0-9-`, starting with a letter or digit.
pub fn check_name(name: &str) -> Result<(), PodFileError> {
    check_word("name", name)
}

fn check_word(key: &'static str, name: &str) -> Result<(), PodFileError> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.len() > 63 {
        "is longer than 63 characters"
    } else if name.starts_with('-') {
        "starts with a hyphen"
    } else if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        "has other characters than a-z, 0-9 and hyphen"
    } else {
        return Ok(());
    };
    Err(PodFileError::invalid(key, name, problem, "write 1 to 63 of a-z, 0-9 and hyphen, such as web-1"))
}

pub(super) fn into_spec(file: PodFile, random: [u8; 6]) -> Result<PodSpec, PodFileError> {
    let name = file.name.ok_or(PodFileError::Missing { key: "name", cure: "give one with --name, such as web-1" })?;
    check_name(&name)?;
    let source = paths::source(file.rootfs.as_deref(), file.image.as_deref())?;
    let command = command(file.command, &source)?;
    for (key, value) in &file.env {
        check_env(key, value)?;
    }
    let workdir = file.workdir.map(|path| paths::in_pod("workdir", &path)).transpose()?;
    let mut volumes = file.volumes.iter().map(|text| paths::volume(text)).collect::<Result<Vec<_>, _>>()?;
    // Parents first: a volume inside another must be mounted after it.
    volumes.sort_by(|a, b| a.pod.cmp(&b.pod));
    if let Some(pair) = volumes.windows(2).find(|pair| pair[0].pod == pair[1].pod) {
        return Err(PodFileError::Duplicate { key: "volumes", value: pair[0].pod.display().to_string() });
    }
    Ok(PodSpec {
        name,
        source,
        command,
        env: file.env,
        user: file.user.map(checked_user).transpose()?,
        workdir: workdir.map(|path| path.to_string_lossy().into_owned()),
        hostname: file.hostname.map(checked_hostname).transpose()?,
        group: file.group.map(checked_group).transpose()?,
        network: address::network(&file.ip, &file.gateway, file.mac.as_deref(), random)?,
        limits: limits(file.memory.as_deref(), file.cpus, file.pids)?,
        volumes,
        cap_add: capabilities(file.cap_add)?,
        allow_new_privileges: file.allow_new_privileges,
        restart: file.restart.as_deref().map_or(Ok(RestartPolicy::No), restart)?,
        health: file.health.into_health()?,
        stop_signal: file.stop_signal.as_deref().map(stop_signal).transpose()?,
        stop_timeout_s: file.stop_timeout.as_deref().map_or(Ok(STOP_TIMEOUT_S), stop_timeout)?,
        log_bytes: file.log_size.as_deref().map_or(Ok(LOG_BYTES), log_size)?,
    })
}

fn from_spec(spec: &PodSpec) -> PodFile {
    let (rootfs, image) = match &spec.source {
        RootSource::Rootfs(path) => (Some(path.to_string_lossy().into_owned()), None),
        RootSource::Image(image) => (None, Some(image.clone())),
    };
    let volume = |v: &crate::pod::spec::Volume| {
        format!("{}:{}:{}", v.host.display(), v.pod.display(), if v.read_only { "ro" } else { "rw" })
    };
    let network = spec.network.as_ref();
    PodFile {
        name: Some(spec.name.clone()),
        rootfs,
        image,
        command: spec.command.clone(),
        user: spec.user.clone(),
        workdir: spec.workdir.clone(),
        hostname: spec.hostname.clone(),
        group: spec.group.clone(),
        ip: network.map(|n| n.addresses.clone()).unwrap_or_default(),
        gateway: network.map(|n| n.gateways.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        mac: network.map(|n| n.mac.map(|byte| format!("{byte:02x}")).join(":")),
        memory: spec.limits.memory.map(|bytes| bytes.to_string()),
        cpus: spec.limits.cpus,
        pids: spec.limits.pids,
        volumes: spec.volumes.iter().map(volume).collect(),
        cap_add: spec.cap_add.clone(),
        allow_new_privileges: spec.allow_new_privileges,
        restart: Some(
            match spec.restart {
                RestartPolicy::No => "no",
                RestartPolicy::OnFailure => "on-failure",
                RestartPolicy::Always => "always",
            }
            .to_owned(),
        ),
        health: HealthFile::of(spec.health.as_ref()),
        stop_signal: spec.stop_signal.map(|signal| signal.to_string()),
        stop_timeout: Some(spec.stop_timeout_s.to_string()),
        log_size: Some(spec.log_bytes.to_string()),
        env: spec.env.clone(),
    }
}

fn command(command: Vec<String>, source: &RootSource) -> Result<Vec<String>, PodFileError> {
    const CURE: &str = "end with -- PROGRAM ARGUMENTS, or write command = [\"PROGRAM\", \"ARGUMENT\"]";
    match (command.first(), source) {
        (None, RootSource::Image(_)) => return Ok(command),
        (None, RootSource::Rootfs(_)) => {
            return Err(PodFileError::Missing { key: "command", cure: CURE });
        }
        (Some(program), _) if program.is_empty() => {
            return Err(PodFileError::invalid("command", "", "has no program", CURE));
        }
        (Some(_), _) => {}
    }
    match command.iter().find(|word| word.contains('\0')) {
        Some(word) => Err(PodFileError::invalid("command", word, "contains a NUL character", CURE)),
        None => Ok(command),
    }
}

fn check_env(key: &str, value: &str) -> Result<(), PodFileError> {
    const CURE: &str = "write KEY=VALUE; the key has neither `=` nor NUL, the value no NUL";
    if key.is_empty() || key.contains(['=', '\0']) {
        return Err(PodFileError::invalid("env", key, "is not a variable's name", CURE));
    }
    match value.contains('\0') {
        true => Err(PodFileError::invalid("env", key, "has a value with a NUL character", CURE)),
        false => Ok(()),
    }
}

fn checked_user(user: String) -> Result<String, PodFileError> {
    let word = |part: &str| !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || c.is_control());
    let parts: Vec<&str> = user.split(':').collect();
    if parts.len() <= 2 && parts.iter().all(|part| word(part)) {
        return Ok(user);
    }
    Err(PodFileError::invalid("user", user, "is not a user", "write USER or USER:GROUP, names or numbers"))
}

fn checked_group(group: String) -> Result<String, PodFileError> {
    check_word("group", &group)?;
    Ok(group)
}

fn checked_hostname(name: String) -> Result<String, PodFileError> {
    let label = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if name.len() <= 63 && name.split('.').all(label) {
        return Ok(name);
    }
    Err(PodFileError::invalid(
        "hostname",
        name,
        "is not a host name",
        "write up to 63 letters, digits, hyphens and dots, such as web.example.org",
    ))
}

fn limits(memory: Option<&str>, cpus: Option<f64>, pids: Option<u64>) -> Result<Limits, PodFileError> {
    let memory = memory.map(|text| bytes("memory", text)).transpose()?;
    if let Some(memory) = memory {
        // Catches the forgotten unit.
        if memory < 4 << 20 {
            return Err(PodFileError::invalid(
                "memory",
                memory.to_string(),
                "is less than 4M, too little for any pod",
                SIZE,
            ));
        }
    }
    if let Some(cpus) = cpus {
        // The kernel's smallest quota is 1 ms in our period of 100 ms.
        if !(0.01..=8192.0).contains(&cpus) {
            return Err(PodFileError::invalid(
                "cpus",
                cpus.to_string(),
                "is not a possible number of cores",
                "write a number from 0.01 up, such as 1.5",
            ));
        }
    }
    if let Some(pids) = pids {
        // Two: podd's init and the command. 4,194,304 is the kernel's PID_MAX_LIMIT.
        if !(2..=4 << 20).contains(&pids) {
            return Err(PodFileError::invalid(
                "pids",
                pids.to_string(),
                "is not a possible number of processes",
                "write a number from 2 to 4194304, such as 512",
            ));
        }
    }
    Ok(Limits { memory, cpus, pids })
}

fn capabilities(names: Vec<String>) -> Result<Vec<String>, PodFileError> {
    let mut all = Vec::with_capacity(names.len());
    for name in names {
        let upper = name.to_ascii_uppercase();
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        let known: Result<caps::Capability, _> = full.parse();
        if known.is_err() {
            return Err(PodFileError::invalid(
                "cap_add",
                name,
                "is not a capability",
                "write one capability's name, such as CAP_NET_RAW (see capabilities(7))",
            ));
        }
        all.push(full);
    }
    all.sort();
    all.dedup();
    Ok(all)
}

fn restart(text: &str) -> Result<RestartPolicy, PodFileError> {
    match text {
        "no" => Ok(RestartPolicy::No),
        "on-failure" => Ok(RestartPolicy::OnFailure),
        "always" => Ok(RestartPolicy::Always),
        _ => Err(PodFileError::invalid("restart", text, "is not a restart policy", "write no, on-failure or always")),
    }
}

fn stop_signal(text: &str) -> Result<i32, PodFileError> {
    quantity::signal(text).ok_or_else(|| {
        PodFileError::invalid(
            "stop_signal",
            text,
            "is not a signal",
            "write a signal's name or number, such as SIGTERM or 15",
        )
    })
}

fn stop_timeout(text: &str) -> Result<u32, PodFileError> {
    let seconds = quantity::seconds(text).and_then(|seconds| u32::try_from(seconds).ok());
    seconds.ok_or_else(|| {
        PodFileError::invalid(
            "stop_timeout",
            text,
            "is not a duration",
            "write a whole number with a unit, such as 10s or 5m",
        )
    })
}

fn log_size(text: &str) -> Result<u64, PodFileError> {
    let size = bytes("log_size", text)?;
    match (64 << 10..=1 << 40).contains(&size) {
        true => Ok(size),
        false => Err(PodFileError::invalid("log_size", text, "is not between 64K and 1T", SIZE)),
    }
}

const SIZE: &str = "write a whole number with a binary unit, such as 512M or 1G";

fn bytes(key: &'static str, text: &str) -> Result<u64, PodFileError> {
    // The kernel's and TOML's numbers are signed.
    let size = quantity::size(text).filter(|size| i64::try_from(*size).is_ok());
    size.ok_or_else(|| PodFileError::invalid(key, text, "is not a size", SIZE))
}
