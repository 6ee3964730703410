//! Handing an interface's addresses and routes to the bridge that it joins, so that the host stays reachable.

use std::io;

use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::{Handle, LinkUnspec};

use super::{add_address, address_of, is_link_local, link, other};

/// Makes `name` a port of the bridge with this index, unless it is. In this order the addresses and routes exist
/// somewhere at every moment, and after a crash at any step this may be done again.
///
/// # Errors
/// Netlink's, or the interface does not exist.
pub(super) async fn hand_over(netlink: &Handle, name: &str, bridge: u32) -> io::Result<()> {
    let up = link(netlink, name).await?.ok_or_else(|| io::Error::other(format!("the uplink {name} does not exist")))?;
    if up.attributes.contains(&LinkAttribute::Controller(bridge)) {
        return Ok(());
    }
    // The bridge takes over the uplink's MAC, or its own would change with each pod that comes.
    let mac = up.attributes.iter().find_map(|a| match a {
        LinkAttribute::Address(mac) => Some(mac.clone()),
        _ => None,
    });
    let mut change = LinkUnspec::new_with_index(bridge).up();
    if let Some(mac) = mac {
        change = change.address(mac);
    }
    netlink.link().set(change.build()).execute().await.map_err(other)?;
    let addresses: Vec<AddressMessage> =
        netlink.address().get().set_link_index_filter(up.header.index).execute().try_collect().await.map_err(other)?;
    let addresses: Vec<_> = addresses.into_iter().filter(|m| !is_link_local(m)).collect();
    let routes = routes_of(netlink, up.header.index).await?;
    for message in &addresses {
        if let Some(ip) = address_of(message) {
            add_address(netlink, bridge, (ip, message.header.prefix_len)).await?;
        }
    }
    let join = LinkUnspec::new_with_index(up.header.index).controller(bridge).up();
    netlink.link().set(join.build()).execute().await.map_err(other)?;
    for route in routes {
        // IPv6 would otherwise keep both, and use the dead one.
        let gone = netlink.route().del(route.clone()).execute().await;
        gone.or_else(|e| if missing(&e) { Ok(()) } else { Err(other(e)) })?;
        netlink.route().add(through(route, bridge)).replace().execute().await.map_err(other)?;
    }
    for message in addresses {
        netlink.address().del(message).execute().await.map_err(other)?;
    }
    Ok(())
}

/// The routes of the main table that lead through an interface, those without a gateway first. (The kernel makes
/// those of the addresses themselves.)
async fn routes_of(netlink: &Handle, interface: u32) -> io::Result<Vec<RouteMessage>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let all: Vec<RouteMessage> = netlink.route().get(question).execute().try_collect().await.map_err(other)?;
        routes.extend(all.into_iter().filter(|route| {
            route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.kind == RouteType::Unicast
                && route.header.protocol != RouteProtocol::Kernel
                && route.attributes.contains(&RouteAttribute::Oif(interface))
        }));
    }
    routes.sort_by_key(|route| route.attributes.iter().any(|a| matches!(a, RouteAttribute::Gateway(_))));
    Ok(routes)
}

/// The same route through another interface.
fn through(mut route: RouteMessage, interface: u32) -> RouteMessage {
    route.header.flags &= RouteFlags::Onlink;
    // What else the kernel tells of a route is its own (statistics, remaining lifetime).
    route.attributes.retain(|a| {
        use RouteAttribute::{Destination, Gateway, Metrics, PrefSource, Preference, Priority, Table};
        matches!(a, Destination(_) | Gateway(_) | Metrics(_) | PrefSource(_) | Preference(_) | Priority(_) | Table(_))
    });
    route.attributes.push(RouteAttribute::Oif(interface));
    route
}

fn missing(e: &rtnetlink::Error) -> bool {
    matches!(e, rtnetlink::Error::NetlinkError(e) if e.raw_code() == -nix::libc::ESRCH)
}
