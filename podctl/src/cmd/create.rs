//! `podctl create`.

use podd::api::{ApiError, CreateRequest, PodView};
use podd::client::path;
use podd::pod::spec::PodSpec;

use super::{Podctl, pod_name_of};
use crate::error::{DONE, Outcome};
use crate::flags::PodFlags;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podctl create --name web --rootfs /srv/web-root --ip 10.0.0.5/24 -- nginx -g 'daemon off;'
  podctl create -f web.toml && podctl start web")]
pub struct Args {
    #[command(flatten)]
    pub pod: PodFlags,
}

pub async fn run(args: Args, ctl: &Podctl<'_>) -> Outcome {
    let pod = create(ctl, args.pod.spec()?, false).await?;
    ctl.out.show(&pod, pod_name_of);
    Ok(DONE)
}

/// Creates the pod, and starts it if `start`.
pub(super) async fn create(ctl: &Podctl<'_>, spec: PodSpec, start: bool) -> Result<PodView, ApiError> {
    let progress = ctl.out.progress(&spec.name);
    ctl.daemon.stream(&path(&["pods"]), &CreateRequest { spec, start }, |p| progress.update(&p)).await
}
