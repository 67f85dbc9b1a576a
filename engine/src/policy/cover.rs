//! The cover: prefixes that contain every packet a PROTECT or DISCARD policy means, for the kernel hooks.

use std::net::IpAddr;

use super::Spd;

/// A prefix with what the hooks need to know of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// Network address, host bits zero.
    pub network: IpAddr,
    /// Prefix length.
    pub length: u8,
}

/// What the hooks compare addresses with. Longest match suffices: the lists are minimal and disjoint.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cover {
    /// Protected-side addresses of PROTECT and DISCARD selectors.
    pub local: Vec<Prefix>,
    /// Peer-side addresses of PROTECT and DISCARD selectors.
    pub remote: Vec<Prefix>,
}

impl Cover {
    /// The cover of `spd`; everything when its fallback is DISCARD.
    pub fn of(spd: &Spd) -> Self {
        let _ = spd;
        todo!()
    }
}
