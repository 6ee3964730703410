//! `podctl restore`.

use podd::api::{ApiError, PodView, RestoreRequest};
use podd::client::path;
use podd::pod::file::check_name;

use super::{Podctl, absolute, pod_name_of};
use crate::error::{DONE, Outcome};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podctl restore web              from podd's image folder
  podctl restore /backup/web.img  from a file; write ./web for a file that is named like a pod")]
pub struct Args {
    /// A pod's name, or an image file on podd's host.
    #[arg(value_name = "NAME|FILE")]
    from: String,
}

pub async fn run(args: &Args, ctl: &Podctl<'_>) -> Outcome {
    let request = RestoreRequest { from: source(&args.from)? };
    let progress = ctl.out.progress(&args.from);
    let pod: PodView = ctl.daemon.stream(&path(&["restore"]), &request, |p| progress.update(&p)).await?;
    drop(progress);
    ctl.out.show(&pod, pod_name_of);
    Ok(DONE)
}

/// A name stays, a file becomes absolute: the daemon has another working directory.
fn source(from: &str) -> Result<String, ApiError> {
    match check_name(from) {
        Ok(()) => Ok(from.to_owned()),
        Err(_) => absolute(from),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_stay_and_files_become_absolute() {
        assert_eq!(source("web-1").unwrap(), "web-1");
        assert_eq!(source("/backup/web.img").unwrap(), "/backup/web.img");
        for file in ["./web", "web.img"] {
            assert!(source(file).unwrap().starts_with('/'), "{file}");
        }
        assert_eq!(source("").unwrap_err().kind, podd::api::ErrorKind::Usage);
    }
}
