//! ICMP and ICMPv6 errors that a gateway sends itself: too big, time exceeded (RFC 792, 1191, 4443, 1812).

use std::net::IpAddr;

/// Which error to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpError {
    /// IPv4 "fragmentation needed and DF set" (3/4, RFC 1191) or IPv6 "packet too big" (2/0).
    PacketTooBig {
        /// MTU towards the tunnel's inside, bytes.
        mtu: u32,
    },
    /// TTL or hop limit exceeded in transit (11/0 or 3/0).
    TimeExceeded,
}

/// Writes a complete IP packet with the error about `offending` (bytes from its IP header on) into `out`
/// and returns its length; quotes as much as RFC 1812 (576 bytes in all) or RFC 4443 (1280) allow.
/// `source` is the gateway's own address on the side the packet came from, same version as `offending`.
/// `None` where no error may be sent: `offending` is itself an ICMP error, a later fragment, or has a
/// multicast, broadcast or unspecified source or destination (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e).
pub fn write_error(out: &mut [u8], error: IcmpError, offending: &[u8], source: IpAddr) -> Option<usize> {
    let _ = (out, error, offending, source);
    todo!()
}
