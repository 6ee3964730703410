//! `podctl version`.

use podd::api::{API_VERSION, Version};
use podd::client::path;
use serde::Serialize;

use super::Podctl;
use crate::error::{DONE, Outcome};

#[derive(Debug, clap::Args)]
pub struct Args {}

#[derive(Serialize)]
struct Versions {
    podctl: &'static str,
    api: u32,
    daemon: Option<Version>,
}

/// podctl's own version is printed even if the daemon cannot be asked.
pub async fn run(ctl: &Podctl<'_>) -> Outcome {
    let (daemon, error) = match ctl.daemon.get(&path(&["version"])).await {
        Ok(version) => (Some(version), None),
        Err(error) => (None, Some(error)),
    };
    let versions = Versions { podctl: env!("CARGO_PKG_VERSION"), api: API_VERSION, daemon };
    ctl.out.show(&versions, in_words);
    error.map_or(Ok(DONE), Err)
}

fn in_words(versions: &Versions) -> String {
    let mut text = format!("podctl {} (API {})\n", versions.podctl, versions.api);
    if let Some(Version { podd, api, protocol, host, kernel, criu }) = &versions.daemon {
        let criu = criu.as_deref().unwrap_or("not usable");
        text.push_str(&format!(
            "podd {podd} (API {api}, protocol {protocol}) on {host}: kernel {kernel}, CRIU {criu}\n"
        ));
    }
    text
}
