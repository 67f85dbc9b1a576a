//! Explicit congestion notification through tunnels (RFC 6040).
//!
//! The codepoints (RFC 3168 section 5): Not-ECT 0, ECT(1) 1, ECT(0) 2, CE 3.

const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const CE: u8 = 3;

/// The outer ECN field (0..=3) for an inner one, normal mode (RFC 6040 section 4.1): a copy.
#[inline]
pub fn ingress(inner: u8) -> u8 {
    inner & 3
}

/// The ECN field of the decapsulated packet (RFC 6040 section 4.2, figure 4), or `None`: drop
/// (inner Not-ECT with outer CE).
///
/// ```text
///              outer:  Not-ECT   ECT(0)    ECT(1)    CE
/// inner: Not-ECT       Not-ECT   Not-ECT   Not-ECT   drop
///        ECT(0)        ECT(0)    ECT(0)    ECT(1)    CE
///        ECT(1)        ECT(1)    ECT(1)    ECT(1)    CE
///        CE            CE        CE        CE        CE
/// ```
#[inline]
pub fn egress(inner: u8, outer: u8) -> Option<u8> {
    match (inner & 3, outer & 3) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) | (CE, _) => Some(CE),
        // ECT(1) is the milder congestion mark (RFC 6660) and survives; ECT(0) outside adds nothing.
        (_, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}
