use proptest::prelude::*;

use super::*;
use crate::transform::{ah, esp};
use crate::wire::frames::{self, *};
use crate::wire::ip;

fn outer(source: &str, destination: &str) -> OuterHeader {
    OuterHeader {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol: 50,
        udp_ports: None,
        ttl: 64,
        traffic_class: TrafficClass::new(Dscp::Copy, Ecn::Copy),
        dont_fragment: DontFragment::Copy,
    }
}

fn outer_v4() -> OuterHeader {
    outer("192.0.2.1", "198.51.100.9")
}

fn outer_v6() -> OuterHeader {
    outer("2001:db8::1", "2001:db8::9")
}

fn inner(hex: &str) -> IpPacket {
    ip::parse(&frames::bytes(hex)).unwrap()
}

fn written(header: &OuterHeader, inner: &IpPacket) -> Vec<u8> {
    let mut out = vec![0xaa; 64];
    header.write(&mut out, inner, 132, 0xbeef);
    assert!(out[header.length()..].iter().all(|byte| *byte == 0xaa));
    out.truncate(header.length());
    out
}

#[test]
fn equals_what_scapy_builds() {
    // v4 in v4, DF copied.
    assert_eq!(written(&outer_v4(), &inner(V4_UDP)), frames::bytes(OUTER_V4_DF));
    // v4 in v4 with DF clear, fixed DSCP, ECN copied all the same.
    let fixed = OuterHeader {
        traffic_class: TrafficClass::new(Dscp::Fixed(10), Ecn::Copy),
        dont_fragment: DontFragment::Clear,
        ..outer_v4()
    };
    assert_eq!(written(&fixed, &inner(V4_UDP)), frames::bytes(OUTER_V4_CLEAR));
    // v6 in v6: the inner flow label 0x12345 stays inside (RFC 4301 section 5.1.2.2, note 8).
    assert_eq!(written(&outer_v6(), &inner(V6_TCP)), frames::bytes(OUTER_V6));
}

#[test]
fn every_pair_of_versions() {
    for header in [outer_v4(), outer_v6()] {
        for hex in [V4_UDP, V6_TCP, V4_TCP_OPTIONS, V6_CHAIN] {
            let inner = inner(hex);
            let mut out = written(&header, &inner);
            // Never options or extension headers (RFC 4301 section 5.1.2.1, note 7).
            out.extend([0; 132]);
            let parsed = ip::parse(&out).unwrap();
            assert_eq!(parsed.version, header.version());
            assert_eq!(usize::from(parsed.payload_offset), header.length());
            assert_eq!(parsed.total_length as usize, out.len());
            assert_eq!(parsed.flow.protocol, 50);
            assert_eq!(parsed.ttl, 64, "never the inner one");
            assert_eq!(parsed.traffic_class, inner.traffic_class);
            assert_eq!((parsed.flow.source, parsed.flow.destination), (header.source, header.destination));
        }
    }
}

#[test]
fn df_rules_rfc4301_section_8_1() {
    let (df, no_df, v6) = (inner(V4_UDP), inner(V4_LARGE), inner(V6_TCP));
    for (rule, inner, expected) in [
        (DontFragment::Copy, df, true),
        (DontFragment::Copy, no_df, false),
        (DontFragment::Copy, v6, true),
        (DontFragment::Set, no_df, true),
        (DontFragment::Clear, df, false),
        (DontFragment::Clear, v6, false),
    ] {
        let out = written(&OuterHeader { dont_fragment: rule, ..outer_v4() }, &inner);
        assert_eq!(out[6..8], if expected { [0x40, 0] } else { [0, 0] }, "{rule:?}");
        assert_eq!(out[4..6], if expected { [0, 0] } else { [0xbe, 0xef] });
    }
}

fn layouts() -> impl Iterator<Item = Layout> {
    let esp = [0u8, 8, 16].into_iter().flat_map(|iv_length| {
        [4u8, 8, 16].into_iter().flat_map(move |alignment| {
            [8u8, 12, 16, 24, 32]
                .map(|icv_length| Layout::Esp(esp::Layout { iv_length, alignment, icv_length }))
        })
    });
    let ah = [12, 16, 24, 32].into_iter().flat_map(|icv_length| {
        [IpVersion::V4, IpVersion::V6]
            .map(|version| Layout::Ah(ah::Layout::new(icv_length, version, ah::Padding::Rfc4302)))
    });
    esp.chain(ah)
}

/// Line 48 of RFC 4301 section 8.2.1's arithmetic, for every payload of 0..=9000 bytes and every layout: the
/// packet at the limit fits, one byte more does not.
#[test]
fn inside_mtu_is_exact() {
    let in_udp = OuterHeader { udp_ports: Some((4500, 4501)), ..outer_v4() };
    for header in [outer_v4(), outer_v6(), in_udp] {
        for layout in layouts() {
            for payload in 0..=9000usize {
                // The smallest outside MTU that carries this payload, and one byte less.
                let outside = (header.length() + layout.length(payload)) as u32;
                assert!(header.inside_mtu(outside, &layout) as usize >= payload);
                let below = header.inside_mtu(outside - 1, &layout) as usize;
                assert!(below < payload || payload == 0, "{layout:?} {payload}");
            }
            for outside in [576u32, 1280, 1400, 1492, 1500, 9000] {
                let limit = header.inside_mtu(outside, &layout) as usize;
                assert!(header.length() + layout.length(limit) <= outside as usize);
                assert!(header.length() + layout.length(limit + 1) > outside as usize);
            }
        }
    }
}

#[test]
fn inside_mtu_of_known_tunnels() {
    let gcm = Layout::Esp(esp::Layout { iv_length: 8, alignment: 4, icv_length: 16 });
    let cbc_sha1 = Layout::Esp(esp::Layout { iv_length: 16, alignment: 16, icv_length: 12 });
    // Linux computes ((mtu - headers - ICV) & ~(align - 1)) - 2 for tunnel mode (esp_mtu and xfrm_state_mtu).
    assert_eq!(outer_v4().inside_mtu(1500, &gcm), 1446);
    assert_eq!(outer_v4().inside_mtu(1500, &cbc_sha1), 1438);
    assert_eq!(outer_v6().inside_mtu(1500, &gcm), 1426);
    assert_eq!(outer_v4().inside_mtu(53, &gcm), 0);
    assert_eq!(outer_v4().inside_mtu(0, &gcm), 0);
}

#[test]
fn no_link_is_wider_than_the_length_fields() {
    let in_udp = OuterHeader { udp_ports: Some((4500, 4501)), ..outer_v6() };
    for header in [outer_v4(), outer_v6(), in_udp] {
        for layout in layouts() {
            let limit = header.inside_mtu(u32::MAX, &layout) as usize;
            let mut out = [0; 48];
            // Would panic if the length did not fit.
            header.write(&mut out, &inner(V4_UDP), layout.length(limit), 0);
            let field = if header.version() == IpVersion::V4 { 20 } else { header.length() - 40 };
            assert!(field + layout.length(limit + 1) > usize::from(u16::MAX));
        }
    }
}

proptest! {
    /// Every traffic class, rule and inner version: DSCP by rule, ECN a copy or Not-ECT (RFC 6040 section 4.1, figure 3).
    #[test]
    fn traffic_class(
        class in any::<u8>(),
        fixed in proptest::option::of(0u8..64),
        clear in any::<bool>(),
        v6 in any::<bool>(),
    ) {
        let mut inner = inner(if v6 { V6_TCP } else { V4_UDP });
        inner.traffic_class = class;
        for header in [outer_v4(), outer_v6()] {
            let ecn = if clear { Ecn::Clear } else { Ecn::Copy };
            let traffic_class = TrafficClass::new(fixed.map_or(Dscp::Copy, Dscp::Fixed), ecn);
            let header = OuterHeader { traffic_class, ..header };
            let mut out = written(&header, &inner);
            out.resize(header.length() + 132, 0);
            let expected = fixed.map_or(class & 0xfc, |dscp| dscp << 2) | if clear { 0 } else { class & 3 };
            prop_assert_eq!(ip::parse(&out).unwrap().traffic_class, expected);
        }
    }
}

proptest! {
    /// What a writer remembers of other packets never changes what it writes for this one.
    #[test]
    fn a_writer_writes_what_a_fresh_one_does(
        version in 0..3_usize,
        rule in 0..3_usize,
        packets in proptest::collection::vec((0..4_usize, 0..4_u8, 0..1000_usize, any::<u16>()), 1..40),
    ) {
        let in_udp = OuterHeader { udp_ports: Some((4500, 4501)), ..outer_v4() };
        let dont_fragment = [DontFragment::Copy, DontFragment::Set, DontFragment::Clear][rule];
        let header = OuterHeader { dont_fragment, ..[outer_v4(), outer_v6(), in_udp][version] };
        let mut writer = header.writer();
        for (frame, traffic_class, behind, identification) in packets {
            let mut packet = inner([V4_UDP, V6_TCP, V4_TCP_OPTIONS, V6_CHAIN][frame]);
            packet.traffic_class = traffic_class << 1;
            let (mut own, mut fresh) = ([0xaa; 64], [0xaa; 64]);
            writer.write(&mut own, &packet, behind, identification);
            header.write(&mut fresh, &packet, behind, identification);
            prop_assert_eq!(own, fresh);
        }
    }
}
