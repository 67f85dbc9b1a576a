//! adit's two kernel programs, compiled from `steer.bpf.c` at build time, and what they share with the engine.
//!
//! The C header `steer.h` is the source; this mirrors it, and the tests at the bottom read the header to see that
//! it still does.

/// The ELF object with the programs [`STEER_PROGRAM`] and [`GUARD_PROGRAM`], aligned as ELF readers want it.
pub static STEER_OBJECT: &[u8] = &ALIGNED.bytes;

static ALIGNED: &Aligned<[u8]> =
    &Aligned { _align: [], bytes: *include_bytes!(concat!(env!("OUT_DIR"), "/steer.bpf.o")) };

#[repr(C)]
struct Aligned<Bytes: ?Sized> {
    _align: [u64; 0],
    bytes: Bytes,
}

/// The XDP program: decides on arrival.
pub const STEER_PROGRAM: &str = "steer";
/// The tc program: decides on departure.
pub const GUARD_PROGRAM: &str = "guard";
/// Read-only global that tells both programs their side.
pub const PORT_SIDE: &str = "port_side";
/// Value of [`PORT_SIDE`] inside.
pub const SIDE_PROTECTED: u32 = 0;
/// Value of [`PORT_SIDE`] outside.
pub const SIDE_UNPROTECTED: u32 = 1;

/// Names of maps.
pub mod maps {
    /// Sockets of one interface by receive queue.
    pub const XSKS: &str = "xsks_map";
    /// Frames of one interface by [`Outcome`](super::Outcome), for each CPU.
    pub const COUNTERS: &str = "counters";
    /// VLANs of one interface that are ports, by [`vlan_key`](super::vlan_key), and their sides.
    pub const VLANS: &str = "vlans";
    /// IPv4 prefixes on the protected side.
    pub const COVER_LOCAL4: &str = "cover_local4";
    /// IPv6 prefixes on the protected side.
    pub const COVER_LOCAL6: &str = "cover_local6";
    /// IPv4 prefixes behind peers.
    pub const COVER_REMOTE4: &str = "cover_remote4";
    /// IPv6 prefixes behind peers.
    pub const COVER_REMOTE6: &str = "cover_remote6";
    /// The gateway's own IPv4 addresses.
    pub const OWN_ADDRESSES4: &str = "own_addresses4";
    /// The gateway's own IPv6 addresses.
    pub const OWN_ADDRESSES6: &str = "own_addresses6";
    /// SPIs of inbound ESP SAs, in network byte order.
    pub const SPIS: &str = "spis";
    /// Ports of ours besides 4500 that IKE and ESP in UDP come to, in network byte order.
    pub const NAT_PORTS: &str = "nat_ports";
    /// When each processor may next let a packet through for the engine to tell of, by kind.
    pub const TOLD: &str = "told";

    /// The maps that all interfaces of an instance share.
    pub const SHARED: [&str; 9] = [
        COVER_LOCAL4,
        COVER_LOCAL6,
        COVER_REMOTE4,
        COVER_REMOTE6,
        OWN_ADDRESSES4,
        OWN_ADDRESSES6,
        SPIS,
        NAT_PORTS,
        TOLD,
    ];
}

/// Flags of a prefix in a cover: the union over every selector whose prefix contains it.
pub mod cover {
    /// A PROTECT selector with a prefix longer than zero.
    pub const PROTECT: u32 = 1;
    /// A DISCARD selector with a prefix longer than zero.
    pub const DISCARD: u32 = 2;
    /// A PROTECT selector that means every address.
    pub const PROTECT_EVERYWHERE: u32 = 4;
    /// A DISCARD selector that means every address.
    pub const DISCARD_EVERYWHERE: u32 = 8;
    /// A BYPASS selector: no cover.
    pub const BYPASS: u32 = 16;
}

/// Kinds of packets that the hooks drop and the engine tells of: those of no SA, and clear text.
pub const TOLD_KINDS: u32 = 2;

/// Key of a VLAN: the identifier of its 802.1ad tag, 0 without one, and that of its 802.1Q tag.
pub const fn vlan_key(outer: u16, inner: u16) -> u32 {
    (outer as u32) << 16 | inner as u32
}

/// Key of an IPv4 prefix map.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix4 {
    /// Prefix length in bits.
    pub length: u32,
    /// Network address, as on the wire.
    pub address: [u8; 4],
}

/// Key of an IPv6 prefix map.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix6 {
    /// Prefix length in bits.
    pub length: u32,
    /// Network address, as on the wire.
    pub address: [u8; 16],
}

const _: () = assert!(size_of::<Prefix4>() == 8 && size_of::<Prefix6>() == 20);

macro_rules! outcomes {
    ($($variant:ident $name:literal $sentence:literal;)*) => {
        /// What became of a frame at a hook: its index in the counters.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Outcome { $(#[doc = $sentence] $variant,)* }

        impl Outcome {
            /// All of them, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name users see.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence for people.
            pub const fn explain(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

outcomes! {
    PassNotIp "pass_not_ip" "Neither IPv4 nor IPv6: the kernel's.";
    PassLink "pass_link" "Multicast, broadcast, link-local or neighbour discovery: the kernel's.";
    PassIke "pass_ike" "IKE to one of the gateway's addresses: the kernel's.";
    PassOwn "pass_own" "The rest to one of the gateway's addresses: the kernel's.";
    PassOutside "pass_outside" "Outside every cover: the kernel's.";
    EngineEsp "engine_esp" "ESP or AH to one of the gateway's addresses with a known SPI, one a second without, or a NAT keepalive: the engine's.";
    EngineFragment "engine_fragment" "A fragment of what may be that: the engine's.";
    EngineIcmp "engine_icmp" "An ICMP error about ESP or AH that one of the gateway's addresses sent: the engine's.";
    EngineOutbound "engine_outbound" "From inside to an address under the cover: the engine's.";
    EngineInboundClear "engine_inbound_clear" "From outside, in clear, under the reversed cover, of those to the gateway itself what a BYPASS policy may mean and one a second: the engine's.";
    DropUnknownSpi "drop_unknown_spi" "ESP or AH to one of the gateway's addresses that no SA is for.";
    DropClearText "drop_clear_text" "In clear to one of the gateway's addresses, though the policy protects it.";
    DropVlan "drop_vlan" "For the engine but of a VLAN that is no port, or with more than two tags.";
    DropMalformed "drop_malformed" "Too short for, or contradicting, what the decision needs.";
    DropNoSocket "drop_no_socket" "For the engine, and no engine listens on the receive queue.";
    GuardPass "guard_pass" "Leaving: nothing that the policy protects.";
    GuardPassIpsec "guard_pass_ipsec" "Leaving under the cover: ESP, AH, or the gateway's own IKE.";
    GuardDropClearText "guard_drop_clear_text" "Leaving in clear for either side, though the policy protects it: held back.";
    GuardDropMalformed "guard_drop_malformed" "Leaving, and too short for what the decision needs: held back.";
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = include_str!("steer.h");
    const PROGRAM: &str = include_str!("steer.bpf.c");

    #[test]
    fn outcomes_have_the_headers_names_in_the_headers_order() {
        let in_header: Vec<&str> = HEADER
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("X("))
            .map(|line| line.split_once(')').expect("X(name)").0)
            .collect();
        let here: Vec<&str> = Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        assert_eq!(here, in_header);
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
        }
    }

    #[test]
    fn constants_are_the_headers() {
        for (name, value) in [
            ("ADIT_SIDE_PROTECTED", SIDE_PROTECTED),
            ("ADIT_SIDE_UNPROTECTED", SIDE_UNPROTECTED),
            ("ADIT_TOLD_KINDS", TOLD_KINDS),
            ("ADIT_PROTECT", cover::PROTECT),
            ("ADIT_DISCARD", cover::DISCARD),
            ("ADIT_PROTECT_EVERYWHERE", cover::PROTECT_EVERYWHERE),
            ("ADIT_DISCARD_EVERYWHERE", cover::DISCARD_EVERYWHERE),
            ("ADIT_BYPASS", cover::BYPASS),
        ] {
            let line = format!("#define {name} {value}");
            assert!(HEADER.lines().any(|text| text == line), "{line} is not in steer.h");
        }
    }

    #[test]
    fn every_map_and_program_is_in_the_source() {
        for name in maps::SHARED.iter().chain(&[maps::XSKS, maps::COUNTERS]) {
            let declared = [format!("}} {name} SEC(\".maps\")"), format!("COVER({name}, ")];
            assert!(declared.iter().any(|text| PROGRAM.contains(text)), "{name}");
        }
        for name in [STEER_PROGRAM, GUARD_PROGRAM] {
            assert!(PROGRAM.contains(&format!("int {name}(")), "{name}");
        }
        assert!(PROGRAM.contains(&format!("volatile const __u32 {PORT_SIDE} ")));
    }

    #[test]
    fn the_object_is_an_aligned_elf_for_bpf_without_paths_of_the_build() {
        assert_eq!(STEER_OBJECT.as_ptr().align_offset(align_of::<u64>()), 0);
        assert_eq!(&STEER_OBJECT[..4], b"\x7fELF");
        const EM_BPF: u16 = 247;
        assert_eq!(u16::from_ne_bytes([STEER_OBJECT[18], STEER_OBJECT[19]]), EM_BPF);
        let here = env!("CARGO_MANIFEST_DIR").as_bytes();
        assert!(
            !STEER_OBJECT.windows(here.len()).any(|window| window == here),
            "the object names the build directory"
        );
    }
}
