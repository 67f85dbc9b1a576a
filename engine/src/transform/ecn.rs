//! Explicit congestion notification through tunnels (RFC 6040).

/// The outer ECN field (0..=3) for an inner one, normal mode (RFC 6040 section 4.1): a copy.
pub fn ingress(inner: u8) -> u8 {
    let _ = inner;
    todo!()
}

/// The ECN field of the decapsulated packet (RFC 6040 section 4.2, figure 4), or `None`: drop
/// (inner Not-ECT with outer CE).
pub fn egress(inner: u8, outer: u8) -> Option<u8> {
    let _ = (inner, outer);
    todo!()
}
