//! Telling the neighbours where a pod's addresses live now: gratuitous ARP (RFC 5227, 3) and unsolicited
//! neighbour advertisements (RFC 4861, 7.2.6), sent from the pod's own interface so that switches learn its port.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

use super::namespaces::in_network_of;
use super::network::parse_cidr;
use crate::pod::spec::Network;

const BROADCAST: [u8; 6] = [0xff; 6];
/// Ethernet address of the all-nodes group, `ff02::1`.
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Announces every address of the pod whose init is `pid`.
///
/// # Errors
/// The pod is gone, or it has no `eth0`.
pub fn announce(pid: i32, network: &Network) -> io::Result<()> {
    let mut frames = Vec::new();
    for text in &network.addresses {
        match parse_cidr(text).map_err(io::Error::other)? {
            (IpAddr::V4(ip), _) => frames.push(gratuitous_arp(network.mac, ip)),
            (IpAddr::V6(ip), _) => frames.push(unsolicited_advertisement(network.mac, ip)),
        }
    }
    in_network_of(pid, move || send_frames("eth0", &frames))
}

/// Sends Ethernet frames out of an interface. One that it does not take is no reason to keep back the others.
///
/// # Errors
/// There is no such interface, or what became of the last frame that was not taken.
pub fn send_frames(interface: &str, frames: &[Vec<u8>]) -> io::Result<()> {
    let socket = packet_socket(interface)?;
    let mut sent = Ok(());
    for frame in frames {
        if let Err(e) = nix::sys::socket::send(socket.as_raw_fd(), frame, nix::sys::socket::MsgFlags::empty()) {
            sent = Err(e.into());
        }
    }
    // At its close the kernel waits until no processor looks at it any more: for longer than all of this took.
    std::thread::spawn(move || drop(socket));
    sent
}

/// An ARP request for one's own address.
fn gratuitous_arp(mac: [u8; 6], ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(BROADCAST);
    frame.extend(mac);
    frame.extend([0x08, 0x06]); // ARP
    frame.extend([0, 1, 0x08, 0, 6, 4, 0, 1]); // Ethernet, IPv4, lengths, request
    frame.extend(mac);
    frame.extend(ip.octets());
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    frame
}

/// A neighbour advertisement with the override flag, to all nodes.
fn unsolicited_advertisement(mac: [u8; 6], ip: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0]; // type, code, checksum, override
    message.extend(ip.octets());
    message.extend([2, 1]); // option: target link-layer address, 8 bytes
    message.extend(mac);
    let checksum = icmpv6_checksum(ip, all_nodes, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = Vec::with_capacity(86);
    frame.extend(ALL_NODES);
    frame.extend(mac);
    frame.extend([0x86, 0xdd]); // IPv6
    frame.extend([0x60, 0, 0, 0, 0, 32, 58, 255]); // version, payload length, ICMPv6, hop limit
    frame.extend(ip.octets());
    frame.extend(all_nodes.octets());
    frame.extend(message);
    frame
}

/// RFC 4443, 2.3: the internet checksum over pseudo-header and message.
fn icmpv6_checksum(source: Ipv6Addr, target: Ipv6Addr, message: &[u8]) -> u16 {
    let mut data = Vec::from(source.octets());
    data.extend(target.octets());
    data.extend((message.len() as u32).to_be_bytes());
    data.extend([0, 0, 0, 58]);
    data.extend(message);
    let mut sum: u32 = data.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A raw socket bound to an interface.
fn packet_socket(interface: &str) -> io::Result<OwnedFd> {
    let protocol = libc::ETH_P_ALL as u16;
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let index = nix::net::if_::if_nametoindex(interface)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address lives through the call and its true length is given.
    let result = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advertisement_has_a_valid_checksum() {
        let ip: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 5);
        let frame = unsolicited_advertisement([2, 0, 0, 0, 0, 5], ip);
        assert_eq!(frame.len(), 86);
        // Over data that contains its own checksum, the sum is zero.
        assert_eq!(icmpv6_checksum(ip, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), &frame[54..]), 0);
    }

    #[test]
    fn gratuitous_arp_asks_for_its_own_address() {
        let frame = gratuitous_arp([2, 0, 0, 0, 0, 5], Ipv4Addr::new(10, 0, 0, 5));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[28..32], frame[38..42]);
    }
}
