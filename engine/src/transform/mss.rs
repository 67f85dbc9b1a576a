//! TCP MSS clamping: a SYN that offers more than the tunnel carries is told what it carries.

/// Lowers the MSS option of a TCP SYN or SYN/ACK so that a segment of it fits `inside_mtu`, in place,
/// mending the TCP checksum; leaves everything else alone. `packet` begins at the IP header and is a
/// whole parsed packet or a first fragment; options that overrun are left alone. Returns true when changed.
pub fn clamp(packet: &mut [u8], parsed: &crate::wire::ip::IpPacket, inside_mtu: u32) -> bool {
    let _ = (packet, parsed, inside_mtu);
    todo!()
}
