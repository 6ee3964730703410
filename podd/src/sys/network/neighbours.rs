//! The pod's neighbours: which hardware addresses belong to which addresses on its LAN. They go along in a move, for otherwise the
//! first packet after it would have to wait until its receiver has been asked for.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use futures_util::TryStreamExt;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::Handle;
use serde::{Deserialize, Serialize};

use super::{block_on, in_network_of, index_of, other};

/// Name of the file beside CRIU's images.
const NOTE: &str = "neighbours-noted";
/// More are asked for again.
const MOST: usize = 1024;

/// A neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    address: IpAddr,
    hardware: Vec<u8>,
}

/// Notes beside a dump that is to be restored at once whom the pod of this process knows.
///
/// # Errors
/// Netlink's, or I/O errors.
pub fn note(pid: i32, images: &Path) -> io::Result<()> {
    let known = in_network_of(pid, || {
        block_on(async |netlink| {
            let Some(eth0) = index_of(&netlink, "eth0").await? else { return Ok(Vec::new()) };
            let all: Vec<_> = netlink.neighbours().get().execute().try_collect().await.map_err(other)?;
            let known = all.into_iter().filter(|message| message.header.ifindex == eth0);
            Ok(known.filter_map(Neighbour::of).take(MOST).collect::<Vec<_>>())
        })
    })?;
    std::fs::write(images.join(NOTE), serde_json::to_vec(&known)?)
}

/// Whom the pod knew that is restored from these images; nobody if that was not noted.
#[must_use]
pub fn noted(images: &Path) -> Vec<Neighbour> {
    let known: Vec<Neighbour> =
        std::fs::read(images.join(NOTE)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    known.into_iter().take(MOST).collect()
}

/// Makes neighbours known to the pod of this process, if it has a link.
///
/// # Errors
/// Netlink's.
pub fn make_known(pid: i32, known: &[Neighbour]) -> io::Result<()> {
    if known.is_empty() {
        return Ok(());
    }
    in_network_of(pid, || {
        block_on(async |netlink| {
            let Some(eth0) = index_of(&netlink, "eth0").await? else { return Ok(()) };
            for neighbour in known {
                let _ = neighbour.add(&netlink, eth0).await;
            }
            Ok(())
        })
    })
}

impl Neighbour {
    fn of(message: NeighbourMessage) -> Option<Self> {
        // Those that were made by hand, or that do not answer, are not of this kind.
        let learnt = [NeighbourState::Reachable, NeighbourState::Stale, NeighbourState::Delay, NeighbourState::Probe];
        if !learnt.contains(&message.header.state) {
            return None;
        }
        let (mut address, mut hardware) = (None, None);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(ip.into()),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(ip.into()),
                NeighbourAttribute::LinkLayerAddress(bytes) => hardware = Some(bytes),
                _ => {}
            }
        }
        Some(Self { address: address?, hardware: hardware? })
    }

    /// The kernel uses it at once, and asks it again as soon as it does not answer for some seconds.
    async fn add(&self, netlink: &Handle, link: u32) -> io::Result<()> {
        let request = netlink.neighbours().add(link, self.address).link_layer_address(&self.hardware);
        request.state(NeighbourState::Stale).replace().execute().await.map_err(other)
    }
}
