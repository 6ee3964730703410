//! Which daemon to talk to.
//!
//! The first of: `--socket`, `--host`, `$PODD_SOCKET`, the contexts file's `default`, `/run/podd/podd.sock`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use podd::api::ApiError;
use serde::Deserialize;

use crate::error;

pub const DEFAULT_SOCKET: &str = "/run/podd/podd.sock";
const SYSTEM_FILE: &str = "/etc/podd/podctl.toml";

/// The contexts file.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Contexts {
    default: Option<String>,
    hosts: BTreeMap<String, Host>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    socket: PathBuf,
}

/// The socket to use. Reads the environment and, if need be, the contexts file.
pub fn socket(flag: Option<PathBuf>, host: Option<&str>) -> Result<PathBuf, ApiError> {
    if let Some(socket) = flag {
        return Ok(socket);
    }
    let from_environment = std::env::var_os("PODD_SOCKET").filter(|value| !value.is_empty());
    if let (None, Some(socket)) = (host, from_environment) {
        return Ok(socket.into());
    }
    for (path, must_exist) in candidates(|name| std::env::var_os(name).filter(|value| !value.is_empty())) {
        match std::fs::read_to_string(&path) {
            Ok(text) => return choose(parse(&text, &path)?, host, &path),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must_exist => {}
            Err(e) => {
                let message = format!("the contexts file {} cannot be read: {e}", path.display());
                return Err(error::usage(message, "correct PODCTL_CONFIG or the file's permissions"));
            }
        }
    }
    choose(Contexts::default(), host, Path::new(SYSTEM_FILE))
}

/// Where the contexts file may be, and whether it must be there.
fn candidates(environment: impl Fn(&str) -> Option<OsString>) -> Vec<(PathBuf, bool)> {
    if let Some(path) = environment("PODCTL_CONFIG") {
        return vec![(path.into(), true)];
    }
    let base = environment("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| environment("HOME").map(|home| Path::new(&home).join(".config")));
    let own = base.map(|base| (base.join("podctl/config.toml"), false));
    own.into_iter().chain([(PathBuf::from(SYSTEM_FILE), false)]).collect()
}

fn parse(text: &str, path: &Path) -> Result<Contexts, ApiError> {
    toml::from_str(text).map_err(|e| {
        let start = e.span().map_or(0, |span| span.start.min(text.len()));
        let line = 1 + text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count();
        let message = format!("the contexts file {} is wrong in line {line}: {}", path.display(), e.message());
        error::usage(message.replace('\n', ", "), "write default = \"a\" and [hosts.a] with socket = \"/path\"")
    })
}

fn choose(contexts: Contexts, host: Option<&str>, path: &Path) -> Result<PathBuf, ApiError> {
    let Some(name) = host.or(contexts.default.as_deref()) else {
        return Ok(DEFAULT_SOCKET.into());
    };
    if let Some(host) = contexts.hosts.get(name) {
        return Ok(host.socket.clone());
    }
    let known: Vec<&str> = contexts.hosts.keys().map(String::as_str).collect();
    let cure = match known.is_empty() {
        true => format!("no host is known: add [hosts.{name}] with socket = \"/path\" to {}", path.display()),
        false => format!("known hosts: {}", known.join(", ")),
    };
    Err(error::usage(format!("{} knows no host {name:?}", path.display()), cure))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const FILE: &str = "default = 'a'\n[hosts.a]\nsocket = '/run/a.sock'\n[hosts.b]\nsocket = '/run/b.sock'\n";

    fn chosen(text: &str, host: Option<&str>) -> Result<PathBuf, ApiError> {
        choose(parse(text, Path::new("f.toml"))?, host, Path::new("f.toml"))
    }

    #[test]
    fn a_host_is_chosen_by_name_or_default() {
        assert_eq!(chosen(FILE, None).unwrap(), Path::new("/run/a.sock"));
        assert_eq!(chosen(FILE, Some("b")).unwrap(), Path::new("/run/b.sock"));
        assert_eq!(chosen("", None).unwrap(), Path::new(DEFAULT_SOCKET));
    }

    #[test]
    fn unknown_hosts_list_the_known_ones() {
        let error = chosen(FILE, Some("c")).unwrap_err();
        assert_eq!(error.message, "f.toml knows no host \"c\"");
        assert_eq!(error.cure.as_deref(), Some("known hosts: a, b"));
        assert!(chosen("", Some("c")).unwrap_err().cure.unwrap().contains("[hosts.c]"));
        assert!(chosen("default = 'x'", None).is_err());
    }

    #[test]
    fn a_wrong_file_is_named_with_its_line() {
        let error = chosen("default = 'a'\nhost = 3\n", None).unwrap_err();
        assert!(error.message.contains("f.toml is wrong in line 2: unknown field `host`"), "{}", error.message);
    }

    #[test]
    fn files_are_looked_for_in_order() {
        let with = |set: &'static [(&'static str, &'static str)]| {
            candidates(move |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        assert_eq!(with(&[("PODCTL_CONFIG", "/x"), ("HOME", "/h")]), [("/x".into(), true)]);
        assert_eq!(with(&[("XDG_CONFIG_HOME", "/c"), ("HOME", "/h")])[0].0, Path::new("/c/podctl/config.toml"));
        assert_eq!(with(&[("HOME", "/h")])[0].0, Path::new("/h/.config/podctl/config.toml"));
        assert_eq!(with(&[]), [(SYSTEM_FILE.into(), false)]);
    }
}
