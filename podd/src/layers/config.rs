//! What an image says about the program to run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Digest, Error, Result, blob};
use crate::pod::file::quantity::signal;

/// The image's defaults for a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Program and arguments that come before the command.
    pub entrypoint: Vec<String>,
    /// The command, if the user gives none.
    pub cmd: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// `USER[:GROUP]`, names or numbers.
    pub user: Option<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// Signal number that asks the program to end.
    pub stop_signal: Option<i32>,
}

/// The configuration blob: OCI's and Docker's have these parts in common. Not `oci_spec`'s type: that one demands
/// parts which `docker save` may lack or fill with null, and nothing of those is needed here.
#[derive(Deserialize)]
struct Blob {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<Program>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Program {
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

/// Some builders write a lone word where a list belongs.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Many(Vec<String>),
    One(String),
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

/// Parses the configuration blob. Returns the diff ids too, lowest layer first.
pub(super) fn parse(image: &str, json: &[u8]) -> Result<(ImageConfig, Vec<Digest>)> {
    let blob: Blob = blob::parse("the configuration", json)?;
    let arch_fits = blob.architecture.is_empty() || blob.architecture == arch();
    if !arch_fits || !matches!(blob.os.as_str(), "" | "linux") {
        return Err(Error::Platform {
            image: image.to_owned(),
            wanted: platform(),
            known: vec![format!("{}/{}", blob.os, blob.architecture)],
        });
    }
    let ids = blob.rootfs.diff_ids.unwrap_or_default();
    let ids = ids.into_iter().map(|id| digest(&id)).collect::<Result<_>>()?;
    Ok((program(blob.config.unwrap_or_default()), ids))
}

/// Parses a digest in an image.
pub(super) fn digest(text: &str) -> Result<Digest> {
    text.parse().map_err(|_| Error::BadDigest { digest: text.chars().take(100).collect() })
}

/// This machine, in the words of images.
pub(super) fn platform() -> String {
    format!("linux/{}", arch())
}

/// This machine's architecture as Go (and so every image) calls it.
pub(super) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "loongarch64" => "loong64",
        other => other,
    }
}

fn program(program: Program) -> ImageConfig {
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let pairs = program.env.unwrap_or_default();
    ImageConfig {
        entrypoint: words(program.entrypoint),
        cmd: words(program.cmd),
        env: pairs.iter().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect(),
        user: filled(program.user),
        workdir: filled(program.working_dir),
        stop_signal: program.stop_signal.as_deref().and_then(signal),
    }
}

fn words(words: Option<Words>) -> Vec<String> {
    match words {
        None => Vec::new(),
        Some(Words::Many(words)) => words,
        Some(Words::One(word)) => vec![word],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nulls_and_missing_parts_are_empty() {
        let json = r#"{"config":{"Cmd":null,"Env":["A=b=c","BROKEN"],"Entrypoint":"/init","User":""},"rootfs":{"diff_ids":null}}"#;
        let (config, ids) = parse("x", json.as_bytes()).unwrap();
        assert_eq!(config.entrypoint, ["/init"]);
        assert!(config.cmd.is_empty() && config.user.is_none() && ids.is_empty());
        assert_eq!(config.env, BTreeMap::from([("A".into(), "b=c".into())]));
    }

    #[test]
    fn another_machine_is_refused() {
        let json = r#"{"architecture":"pdp11","os":"linux","rootfs":{}}"#;
        let error = parse("x", json.as_bytes()).unwrap_err();
        assert!(matches!(&error, Error::Platform { known, .. } if known == &["linux/pdp11"]), "{error}");
    }
}
