//! The pod's link: a veth pair whose outer end is plugged into the host's bridge, over netlink, without children.
//!
//! *Unplugged* means: the outer end is up but belongs to no bridge. The pod then sees a carrier, its kernel keeps
//! sending and retransmitting, and nothing leaves the host. (Setting the link down instead would tell applications
//! and could make the kernel wait a second for the carrier.)

pub mod cradle;
pub mod neighbours;
mod uplink;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::namespaces::{in_network_of, on_own_thread};
use crate::pod::spec::Network;

/// An address with its prefix length.
pub type Cidr = (IpAddr, u8);

/// Reads `10.0.0.5/24` or `fd00::5/64`.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let wrong = || format!("{text:?} is not an address with prefix length, such as 10.0.0.5/24");
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    if prefix == 0 || prefix > most { Err(wrong()) } else { Ok((address, prefix)) }
}

/// Name of the outer end of a pod's link: 15 bytes at most, so 12 digits of the id.
#[must_use]
pub fn outer_name(pod_id: &str) -> String {
    format!("pod{}", &pod_id[..pod_id.len().min(12)])
}

/// Makes the bridge if it is missing; with an uplink, moves the uplink's addresses and routes to it.
///
/// # Errors
/// Netlink's, or the uplink does not exist.
pub fn ensure_bridge(bridge: &str, uplink: Option<&str>) -> io::Result<()> {
    here(async |netlink| {
        let index = match index_of(&netlink, bridge).await? {
            Some(index) => index,
            None => {
                // A MAC of its own: a bridge without one takes that of a port, and changes it as pods come and go.
                let mac: [u8; 6] = rand::random();
                let mac = [mac[0] & 0xfc | 0x02, mac[1], mac[2], mac[3], mac[4], mac[5]];
                let link = LinkBridge::new(bridge).address(mac.to_vec()).build();
                netlink.link().add(link).execute().await.map_err(other)?;
                index_of(&netlink, bridge).await?.ok_or_else(|| io::Error::other("the new bridge is gone"))?
            }
        };
        if let Some(name) = uplink {
            uplink::hand_over(&netlink, name, index).await?;
        }
        let up = LinkUnspec::new_with_index(index).up();
        netlink.link().set(up.build()).execute().await.map_err(other)
    })
}

/// Makes the pod's link, unplugged: `outer` on this host, `eth0` in the network namespace of `pid` with the pod's
/// MAC, addresses, routes and known neighbours. The loopback of that namespace goes up too. A link of this name is replaced.
///
/// # Errors
/// Netlink's; nothing is left behind.
pub fn make_link(outer: &str, pid: i32, network: Option<&Network>) -> io::Result<()> {
    if let Some(network) = network {
        let result = here(async |netlink| {
            if let Some(index) = index_of(&netlink, outer).await? {
                netlink.link().del(index).execute().await.map_err(other)?;
            }
            let peer = LinkMessageBuilder::<LinkUnspec>::new()
                .name("eth0")
                .address(network.mac.to_vec())
                .append_extra_attribute(LinkAttribute::NetNsPid(pid.cast_unsigned()))
                .build();
            let veth = LinkMessageBuilder::<LinkVeth>::new(outer, "eth0")
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                .build();
            netlink.link().add(veth).execute().await.map_err(other)?;
            let index = index_of(&netlink, outer).await?.ok_or_else(|| io::Error::other("the new link is gone"))?;
            set_quiet(&netlink, outer, index).await
        });
        result.map_err(|e| io::Error::other(format!("cannot make the link {outer}: {e}")))?;
    }
    let limits = cradle::limits();
    in_network_of(pid, || {
        cradle::set_limits(&limits);
        block_on(async |netlink| {
            set_up(&netlink, "lo").await?;
            let Some(network) = network else { return Ok(()) };
            let eth0 = set_up(&netlink, "eth0").await?;
            for text in &network.addresses {
                add_address(&netlink, eth0, parse_cidr(text).map_err(io::Error::other)?).await?;
            }
            for gateway in &network.gateways {
                add_default_route(&netlink, eth0, *gateway).await?;
            }
            resolve_quickly();
            Ok(())
        })
    })
}

/// Sets how soon the pod asks again for a neighbour's address (Documentation/networking/ip-sysctl.rst). A restored
/// connection asks at once, while the link is still unplugged; with the default that question is repeated only a second
/// later, which would be a second of silence after each move. Best effort: a kernel without IPv6 lacks half of it.
fn resolve_quickly() {
    for family in ["ipv4", "ipv6"] {
        let folder = format!("/proc/sys/net/{family}/neigh/eth0");
        let _ = std::fs::write(format!("{folder}/retrans_time_ms"), "20");
        // As long until it gives up as with the defaults: 3 tries, a second apart.
        let _ = std::fs::write(format!("{folder}/mcast_solicit"), "150");
    }
}

/// Sets a link up that never speaks for the host itself.
///
/// # Errors
/// Netlink's, or there is no such link.
pub fn quiet(name: &str) -> io::Result<()> {
    here(async |netlink| match index_of(&netlink, name).await? {
        Some(index) => set_quiet(&netlink, name, index).await,
        None => Err(io::Error::other(format!("the link {name} does not exist"))),
    })
}

/// Without this the host would answer the pod's ARP and neighbour requests while the pod is unplugged.
async fn set_quiet(netlink: &Handle, name: &str, index: u32) -> io::Result<()> {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let quiet = LinkUnspec::new_with_index(index).arp(false).up();
    netlink.link().set(quiet.build()).execute().await.map_err(other)
}

/// Joins the pod's link to the bridge.
///
/// # Errors
/// Netlink's, or one of them does not exist.
pub fn plug(outer: &str, bridge: &str) -> io::Result<()> {
    here(async |netlink| {
        let (Some(outer), Some(bridge)) = (index_of(&netlink, outer).await?, index_of(&netlink, bridge).await?) else {
            return Err(io::Error::other(format!("the link {outer} or the bridge {bridge} does not exist")));
        };
        let join = LinkUnspec::new_with_index(outer).controller(bridge);
        netlink.link().set(join.build()).execute().await.map_err(other)?;
        // It may have been there all the time, and deaf.
        hear(&netlink, outer, true).await
    })
}

/// Makes a plugged pod deaf: what it sends goes out, nothing comes in. What is meant for it is flooded to the bridge's
/// other ports. Unplugging and plugging end this.
///
/// # Errors
/// Netlink's, or there is no such link.
pub fn deafen(outer: &str) -> io::Result<()> {
    here(async |netlink| match index_of(&netlink, outer).await? {
        Some(index) => hear(&netlink, index, false).await,
        None => Err(io::Error::other(format!("the link {outer} does not exist"))),
    })
}

/// A port that the bridge does not know any address of, and to which it floods nothing, gets nothing.
async fn hear(netlink: &Handle, port: u32, on: bool) -> io::Result<()> {
    let mut change = LinkBridgePort::new(port).learning(on).flood(on).mcast_flood(on).bcast_flood(on);
    if !on {
        change = change.fdb_flush();
    }
    netlink.link().set_port(change.build()).execute().await.map_err(other)
}

/// Cuts the pod's link off the bridge; no error if there is no such link.
///
/// # Errors
/// Netlink's.
pub fn unplug(outer: &str) -> io::Result<()> {
    here(async |netlink| {
        let Some(outer) = index_of(&netlink, outer).await? else { return Ok(()) };
        let leave = LinkUnspec::new_with_index(outer).nocontroller();
        netlink.link().set(leave.build()).execute().await.map_err(other)
    })
}

/// Removes the pod's link; no error if there is none.
///
/// # Errors
/// Netlink's.
pub fn remove_link(outer: &str) -> io::Result<()> {
    here(async |netlink| match index_of(&netlink, outer).await? {
        Some(index) => match netlink.link().del(index).execute().await {
            // It goes with its peer, whose namespace may be ending just now.
            Err(e) if !is_no_device(&e) => Err(other(e)),
            _ => Ok(()),
        },
        None => Ok(()),
    })
}

/// Every address in use on this host, without prefix.
///
/// # Errors
/// Netlink's.
pub fn addresses_in_use() -> io::Result<Vec<IpAddr>> {
    here(async |netlink| {
        let all: Vec<AddressMessage> = netlink.address().get().execute().try_collect().await.map_err(other)?;
        Ok(all.iter().filter_map(address_of).collect())
    })
}

async fn link(netlink: &Handle, name: &str) -> io::Result<Option<LinkMessage>> {
    match netlink.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(found) => Ok(found),
        Err(e) if is_no_device(&e) => Ok(None),
        Err(e) => Err(other(e)),
    }
}

fn is_no_device(e: &rtnetlink::Error) -> bool {
    matches!(e, rtnetlink::Error::NetlinkError(e) if e.raw_code() == -nix::libc::ENODEV)
}

/// Sets a link up; its index.
async fn set_up(netlink: &Handle, name: &str) -> io::Result<u32> {
    let index = index_of(netlink, name).await?.ok_or_else(|| io::Error::other(format!("there is no link {name}")))?;
    let up = LinkUnspec::new_with_index(index).up();
    netlink.link().set(up.build()).execute().await.map_err(other)?;
    Ok(index)
}

async fn index_of(netlink: &Handle, name: &str) -> io::Result<Option<u32>> {
    Ok(link(netlink, name).await?.map(|l| l.header.index))
}

async fn add_address(netlink: &Handle, index: u32, (address, prefix): Cidr) -> io::Result<()> {
    let mut add = netlink.address().add(index, address, prefix).replace();
    // The address is the pod's alone and it is moving: duplicate detection would only keep it mute for a second.
    if address.is_ipv6() {
        add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    add.execute().await.map_err(other)
}

async fn add_default_route(netlink: &Handle, index: u32, gateway: IpAddr) -> io::Result<()> {
    let route = match gateway {
        IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
            .gateway(gateway)
            .output_interface(index)
            .onlink()
            .build(),
        IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
            .gateway(gateway)
            .output_interface(index)
            .onlink()
            .build(),
    };
    netlink.route().add(route).replace().execute().await.map_err(other)
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        AddressAttribute::Address(ip) if message.header.family == AddressFamily::Inet6 => Some(*ip),
        _ => None,
    })
}

fn is_link_local(message: &AddressMessage) -> bool {
    matches!(address_of(message), Some(IpAddr::V6(ip)) if ip.is_unicast_link_local())
}

/// Talks to netlink in this thread's network namespace, on a thread of its own: callers may be inside a runtime.
fn here<T: Send>(work: impl AsyncFnOnce(Handle) -> io::Result<T> + Send) -> io::Result<T> {
    on_own_thread(|| block_on(work))
}

fn block_on<T>(work: impl AsyncFnOnce(Handle) -> io::Result<T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let driver = tokio::spawn(connection);
        let result = work(handle).await;
        driver.abort();
        result
    })
}

fn other(e: rtnetlink::Error) -> io::Error {
    io::Error::other(e.to_string())
}
