//! Packets made by hand, field by field, so that a test can make them wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit_engine::wire::checksum::internet;

/// An Ethernet frame around an IP packet, from and to fixed stations.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    let ether_type: [u8; 2] =
        if packet.first().is_some_and(|byte| byte >> 4 == 6) { [0x86, 0xdd] } else { [8, 0] };
    [&[2, 0, 0, 0, 0, 1][..], &HOST_MAC, &ether_type, packet].concat()
}

/// Where [`frame`] comes from.
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];

/// The IP packet in an Ethernet frame.
pub fn unframe(frame: &[u8]) -> &[u8] {
    &frame[14..]
}

/// An IPv4 header without options, its checksum right, then `payload`.
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    fix_ipv4(&mut packet);
    packet
}

/// Writes the right header checksum.
pub fn fix_ipv4(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = internet(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// An IPv6 header, then `payload`.
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next_header, 64];
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// An IP packet of the version that both addresses have.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(source, destination, protocol, payload),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6(source, destination, protocol, payload),
        _ => panic!("{source} and {destination} differ in version"),
    }
}

/// The pseudo-header of RFC 793 and RFC 8200 section 8.1.
fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// The checksum of a segment whose checksum field is zero.
pub fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    internet(&[&pseudo_header(source, destination, protocol, segment.len())[..], segment].concat())
}

/// What a sender leaves in the field when it counts on hardware: the sum of the pseudo-header, not complemented.
pub fn partial_checksum(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u16 {
    !internet(&pseudo_header(source, destination, protocol, length))
}

/// A UDP packet with a payload of `length` bytes and right checksums; ports 4660 to 53.
pub fn udp(source: IpAddr, destination: IpAddr, length: usize) -> Vec<u8> {
    udp_ports(source, destination, 4660, 53, length)
}

/// As [`udp`], from and to these ports.
pub fn udp_ports(source: IpAddr, destination: IpAddr, from: u16, to: u16, length: usize) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment.extend(((8 + length) as u16).to_be_bytes());
    segment.extend([0, 0]);
    segment.extend((0..length).map(|index| (index * 7 + 3) as u8));
    let sum = transport_checksum(source, destination, 17, &segment);
    segment[6..8].copy_from_slice(&sum.to_be_bytes());
    ip(source, destination, 17, &segment)
}

/// A TCP SYN that offers `mss`, with right checksums.
pub fn tcp_syn(source: IpAddr, destination: IpAddr, mss: u16) -> Vec<u8> {
    let mut segment =
        vec![0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 0x02, 0xff, 0xff, 0, 0, 0, 0, 2, 4];
    segment.extend(mss.to_be_bytes());
    let sum = transport_checksum(source, destination, 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ip(source, destination, 6, &segment)
}

/// Sets TTL or hop limit, mending the IPv4 checksum.
pub fn with_ttl(mut packet: Vec<u8>, ttl: u8) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[8] = ttl;
        fix_ipv4(&mut packet);
    } else {
        packet[7] = ttl;
    }
    packet
}

/// Sets the IPv4 flags and fragment offset (in the header's own encoding), mending the checksum.
pub fn with_fragment_field(mut packet: Vec<u8>, field: u16) -> Vec<u8> {
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    fix_ipv4(&mut packet);
    packet
}

/// The IPv4 don't-fragment bit in [`with_fragment_field`]'s encoding.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The IPv4 more-fragments bit.
pub const MORE_FRAGMENTS: u16 = 0x2000;

/// Sets DSCP and ECN, mending the IPv4 checksum.
pub fn with_traffic_class(mut packet: Vec<u8>, class: u8) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[1] = class;
        fix_ipv4(&mut packet);
    } else {
        packet[0] = 0x60 | class >> 4;
        packet[1] = packet[1] & 0x0f | class << 4;
    }
    packet
}

/// An IP packet of ESP without options or extension headers, as it is in UDP from `port` to 4500, checksum 0.
pub fn in_udp(esp_packet: &[u8], port: u16) -> Vec<u8> {
    let parsed = adit_engine::wire::ip::parse(esp_packet).unwrap();
    let esp = &esp_packet[usize::from(parsed.payload_offset)..];
    let length = (8 + esp.len()) as u16;
    let header = [port.to_be_bytes(), 4500u16.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    ip(parsed.flow.source, parsed.flow.destination, 17, &[&header, esp].concat())
}

/// What a router makes of a packet: TTL or hop limit one less, all else as it was.
pub fn one_hop_on(packet: &[u8]) -> Vec<u8> {
    let ttl = if packet[0] >> 4 == 4 { packet[8] } else { packet[7] };
    with_ttl(packet.to_vec(), ttl - 1)
}
