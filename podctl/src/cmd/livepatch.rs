//! `podctl livepatch trust` and `ls`: whose word counts about what live patches cover. On the host itself, without podd.

use std::path::PathBuf;

use podd::api::{ApiError, ErrorKind};
use podd::patch::cover::{FOLDER, Manifest, manifests, trust};

use crate::error::{DONE, Outcome};
use crate::output::{Output, table};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Trust the manifests that somebody signs with an Ed25519 key.
    Trust(TrustArgs),
    /// List manifests of live patches, and whether they count.
    Ls(LsArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example, of whoever makes live patches:
  openssl genpkey -algorithm ed25519 -out key.pem
  openssl pkey -in key.pem -pubout -out vendor.pem
  openssl pkeyutl -sign -rawin -inkey key.pem -in fix.json -out fix.json.sig
and on each host, with fix.json and fix.json.sig in /etc/podd/livepatch:
  podctl livepatch trust vendor.pem")]
pub struct TrustArgs {
    /// Public key, as PEM.
    key: PathBuf,
    /// Folder of manifests and keys.
    #[arg(long, default_value = FOLDER)]
    folder: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct LsArgs {
    /// Folder of manifests and keys.
    #[arg(long, default_value = FOLDER)]
    folder: PathBuf,
}

pub fn run(verb: &Verb, out: &Output) -> Outcome {
    match verb {
        Verb::Trust(TrustArgs { key, folder }) => {
            let name = trust(folder, key).map_err(|error| ApiError::told(ErrorKind::Failed, &error.to_string()))?;
            out.show(&name, |name| format!("manifests that {name} signs count from now on"));
        }
        Verb::Ls(LsArgs { folder }) => out.show(&manifests(folder), |manifests| in_words(manifests)),
    }
    Ok(DONE)
}

fn in_words(manifests: &[Manifest]) -> String {
    let rows = manifests.iter().map(|manifest| {
        let cover = manifest.cover.as_ref();
        [
            manifest.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            cover.map(|cover| cover.patch.clone()).unwrap_or_default(),
            cover.map(|cover| cover.kernels.join(", ")).unwrap_or_default(),
            cover.map(|cover| cover.advisories.len().to_string()).unwrap_or_default(),
            manifest.signed_by.clone().unwrap_or_default(),
            manifest.problem.clone().unwrap_or_default().lines().next().unwrap_or_default().to_owned(),
        ]
    });
    table(["MANIFEST", "PATCH", "KERNELS", "ADVISORIES", "SIGNED BY", "PROBLEM"], rows)
}
