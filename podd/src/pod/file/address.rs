//! The pod's network as written: addresses, gateways, MAC.

use std::net::IpAddr;

use super::PodFileError;
use crate::pod::spec::Network;

/// None without addresses: the pod then has loopback only.
pub(super) fn network(
    ip: &[String],
    gateway: &[String],
    mac: Option<&str>,
    random: [u8; 6],
) -> Result<Option<Network>, PodFileError> {
    const NEEDS_IP: &str = "is given, but the pod has no address";
    const GIVE_IP: &str = "give the pod an address too, such as 10.0.0.5/24";

    if ip.is_empty() {
        return match (gateway.first(), mac) {
            (Some(gateway), _) => Err(PodFileError::invalid("gateway", gateway, NEEDS_IP, GIVE_IP)),
            (None, Some(mac)) => Err(PodFileError::invalid("mac", mac, NEEDS_IP, GIVE_IP)),
            (None, None) => Ok(None),
        };
    }
    let mut nets: Vec<(IpAddr, u8)> = Vec::new();
    for text in ip {
        let net = address(text)?;
        if nets.iter().any(|(other, _)| *other == net.0) {
            return Err(PodFileError::Duplicate { key: "ip", value: text.clone() });
        }
        nets.push(net);
    }
    Ok(Some(Network {
        addresses: nets.iter().map(|(address, prefix)| format!("{address}/{prefix}")).collect(),
        gateways: gateways(gateway, &nets)?,
        mac: mac.map_or_else(|| Ok(locally_administered(random)), parse_mac)?,
    }))
}

/// Turns any six bytes into a unicast, locally administered address (IEEE 802, bits 0 and 1 of the first byte).
fn locally_administered(mut bytes: [u8; 6]) -> [u8; 6] {
    bytes[0] = (bytes[0] & 0xfe) | 0x02;
    bytes
}

fn address(text: &str) -> Result<(IpAddr, u8), PodFileError> {
    let invalid = |problem| {
        PodFileError::invalid("ip", text, problem, "write address and prefix length, such as 10.0.0.5/24 or fd00::5/64")
    };
    let (address, prefix) = text.split_once('/').ok_or_else(|| invalid("has no prefix length"))?;
    let address: IpAddr = address.parse().map_err(|_| invalid("is not an address"))?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let digits = prefix.bytes().all(|b| b.is_ascii_digit());
    let prefix = prefix.parse::<u8>().ok().filter(|p| digits && (1..=bits).contains(p));
    let prefix = prefix.ok_or_else(|| invalid("has an impossible prefix length"))?;
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(invalid("is not an address that a pod can have"));
    }
    match address {
        IpAddr::V4(v4) if prefix < 31 => {
            let host = v4.to_bits() & (u32::MAX >> prefix);
            if host == 0 || host == u32::MAX >> prefix {
                return Err(invalid("is the address of a whole network"));
            }
        }
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            return Err(invalid("is an IPv4 address in disguise"));
        }
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    Ok((address, prefix))
}

fn gateways(texts: &[String], nets: &[(IpAddr, u8)]) -> Result<Vec<IpAddr>, PodFileError> {
    let mut gateways: Vec<IpAddr> = Vec::new();
    for text in texts {
        let invalid = |problem| {
            PodFileError::invalid("gateway", text, problem, "name a router in the pod's own network, such as 10.0.0.1")
        };
        let gateway: IpAddr = text.parse().map_err(|_| invalid("is not an address"))?;
        if nets.iter().any(|(address, _)| *address == gateway) {
            return Err(invalid("is the pod's own address"));
        }
        // A link-local router is on every link, and the usual one for IPv6.
        let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let reachable = if link_local {
            nets.iter().any(|(address, _)| address.is_ipv6())
        } else {
            nets.iter().any(|net| contains(*net, gateway))
        };
        if !reachable {
            return Err(invalid("is in none of the pod's networks"));
        }
        if gateways.iter().any(|other| other.is_ipv4() == gateway.is_ipv4()) {
            return Err(invalid("is a second gateway of its family"));
        }
        gateways.push(gateway);
    }
    Ok(gateways)
}

fn contains((address, prefix): (IpAddr, u8), other: IpAddr) -> bool {
    match (address, other) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= prefix.into(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= prefix.into(),
        _ => false,
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6], PodFileError> {
    const CURE: &str = "write a locally administered address, such as 02:00:00:00:00:05, or leave it out";
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        *byte = parts
            .next()
            .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .ok_or_else(|| PodFileError::invalid("mac", text, "is not a MAC address", CURE))?;
    }
    if parts.next().is_some() {
        return Err(PodFileError::invalid("mac", text, "is not a MAC address", CURE));
    }
    if bytes != locally_administered(bytes) {
        return Err(PodFileError::invalid("mac", text, "is not a locally administered unicast address", CURE));
    }
    Ok(bytes)
}
