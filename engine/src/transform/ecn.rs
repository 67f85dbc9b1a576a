//! Explicit congestion notification through tunnels (RFC 6040).
//!
//! The codepoints (RFC 3168 section 5): Not-ECT 0, ECT(1) 1, ECT(0) 2, CE 3.

const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// Where the outer ECN field comes from (RFC 6040 section 4.1). The inner one stays as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ecn {
    /// Normal mode: a copy of the inner field.
    Copy,
    /// Compatibility mode: Not-ECT, for a peer that does not propagate congestion marks, as of RFC 2401.
    Clear,
}

impl Ecn {
    /// The outer field (0..=3) for an inner one.
    #[inline]
    pub fn ingress(self, inner: u8) -> u8 {
        inner & self.copied()
    }

    /// The bits of the inner field that are copied.
    #[inline]
    pub fn copied(self) -> u8 {
        match self {
            Ecn::Copy => 3,
            Ecn::Clear => 0,
        }
    }
}

/// The ECN field of the decapsulated packet (RFC 6040 section 4.2, figure 4), or `None`: drop
/// (inner Not-ECT with outer CE). Where both are alike, that is it.
///
/// ```text
///              outer:  Not-ECT   ECT(0)    ECT(1)    CE
/// inner: Not-ECT       Not-ECT   Not-ECT!  Not-ECT!  drop!
///        ECT(0)        ECT(0)    ECT(0)    ECT(1)    CE
///        ECT(1)        ECT(1)    ECT(1)!   ECT(1)    CE
///        CE            CE        CE        CE!       CE
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

/// Whether no tunnel of any specification makes this pair of fields, so that somebody on the way did (the "currently
/// unused" combinations of RFC 6040 section 4.2, `!` above).
pub fn is_suspect(inner: u8, outer: u8) -> bool {
    matches!((inner & 3, outer & 3), (NOT_ECT, ECT_0 | ECT_1 | CE) | (ECT_1, ECT_0) | (CE, ECT_1))
}
