//! Every rule refuses its own breach, and names the field.

use super::*;

// Suite::new is the crypto layer's; its sizes do not matter here.
fn sa() -> SaSpec {
    SaSpec {
        tunnel: "branch".into(),
        spi: Spi(256),
        protocol: Protocol::Esp,
        mode: Mode::Tunnel,
        udp: None,
        suite: Suite::new(crate::crypto::Encryption::Aes128Gcm, crate::crypto::Authentication::None, None)
            .unwrap(),
        local: "192.0.2.1".parse().unwrap(),
        remote: "198.51.100.1".parse().unwrap(),
        esn: false,
        selectors: vec![selector()],
        limits: Limits::default(),
    }
}

fn selector() -> Selector {
    Selector {
        local: "10.1.0.0/16".parse().unwrap(),
        remote: "10.2.0.0/16".parse().unwrap(),
        protocol: None,
        upper: UpperSelector::Any,
    }
}

fn inbound() -> InboundSpec {
    InboundSpec { sa: sa(), replay_window: 1024, last_sequence: 0 }
}

fn outbound() -> OutboundSpec {
    OutboundSpec {
        sa: sa(),
        workers: Workers::One,
        ttl: 64,
        dscp: Dscp::Copy,
        ecn: Ecn::Copy,
        dont_fragment: DontFragment::Copy,
        keepalive_seconds: 20,
        last_sequence: 0,
    }
}

/// The field that `change` makes wrong; the message must hold `hint`.
fn refused(mut spec: InboundSpec, change: impl FnOnce(&mut InboundSpec), hint: &str) -> &'static str {
    spec.validate().unwrap();
    change(&mut spec);
    let error = spec.validate().unwrap_err();
    assert!(error.to_string().contains(hint), "{error}");
    error.field
}

#[test]
fn names_the_wrong_field_of_an_sa() {
    let refused = |change: fn(&mut SaSpec), hint| refused(inbound(), |spec| change(&mut spec.sa), hint);
    assert_eq!(refused(|sa| sa.tunnel = "".into(), "a name"), "tunnel");
    assert_eq!(refused(|sa| sa.spi = Spi(0), "256 or above"), "spi");
    assert_eq!(refused(|sa| sa.spi = Spi(255), "not 255"), "spi");
    assert_eq!(refused(|sa| sa.local = "224.0.0.1".parse().unwrap(), "unicast"), "local");
    assert_eq!(refused(|sa| sa.local = "0.0.0.0".parse().unwrap(), "unicast"), "local");
    assert_eq!(refused(|sa| sa.remote = "255.255.255.255".parse().unwrap(), "unicast"), "remote");
    assert_eq!(refused(|sa| sa.remote = "ff02::1".parse().unwrap(), "unicast"), "remote");
    assert_eq!(refused(|sa| sa.remote = "2001:db8::1".parse().unwrap(), "version"), "remote");
    assert_eq!(refused(|sa| sa.remote = sa.local, "another address"), "remote");
    assert_eq!(refused(|sa| sa.selectors.clear(), "at least one"), "selectors");
    assert!(UdpPorts::new(0, 4500).is_none() && UdpPorts::new(4500, 0).is_none());
    let mut in_udp = sa();
    in_udp.udp = UdpPorts::new(4500, 1024);
    in_udp.validate().unwrap();
    in_udp.suite =
        Suite::new(crate::crypto::Encryption::Null, crate::crypto::Authentication::Sha256, None).unwrap();
    in_udp.protocol = Protocol::Ah(ah::Padding::Rfc4302);
    assert_eq!(in_udp.validate().unwrap_err().field, "udp_port");
    // What AH would not do, and packets that are not between the endpoints.
    assert_eq!(refused(|sa| sa.protocol = Protocol::Ah(ah::Padding::Rfc4302), "null"), "encryption");
    let transport = Mode::Transport(DestinationOptions::After);
    let mut within = sa();
    within.mode = transport;
    within.selectors[0].local = AddressRange::single(within.local);
    within.selectors[0].remote = AddressRange::single(within.remote);
    within.validate().unwrap();
    within.selectors.push(Selector { local: "192.0.2.0/24".parse().unwrap(), ..within.selectors[0] });
    assert_eq!(within.validate().unwrap_err().field, "selectors");
    assert_eq!(
        refused(|sa| sa.mode = Mode::Transport(DestinationOptions::After), "endpoints themselves"),
        "selectors"
    );
}

#[test]
fn names_the_wrong_field_of_an_inbound_sa() {
    for size in [0, 32, 33, 40, 100, 65535, 65536] {
        InboundSpec { replay_window: size, ..inbound() }.validate().unwrap();
    }
    for size in [1, 31, 65537, u32::MAX] {
        assert_eq!(refused(inbound(), |spec| spec.replay_window = size, "32 to 65536"), "replay_window");
    }
    let without_window = |spec: &mut InboundSpec| {
        spec.sa.esn = true;
        spec.replay_window = 0;
    };
    assert_eq!(refused(inbound(), without_window, "extended sequence numbers"), "replay_window");
    let last = |last| move |spec: &mut InboundSpec| spec.last_sequence = last;
    assert_eq!(refused(inbound(), last(1 << 32), "4294967295"), "last_sequence");
    let mut esn = inbound();
    esn.sa.esn = true;
    esn.last_sequence = u64::MAX;
    esn.validate().unwrap();
}

#[test]
fn names_the_wrong_field_of_an_outbound_sa() {
    let refused = |change: fn(&mut OutboundSpec)| {
        let mut spec = outbound();
        spec.validate().unwrap();
        change(&mut spec);
        spec.validate().unwrap_err().field
    };
    assert_eq!(refused(|spec| spec.sa.spi = Spi(1)), "spi");
    assert_eq!(refused(|spec| spec.ttl = 0), "ttl");
    assert_eq!(refused(|spec| spec.dscp = Dscp::Fixed(64)), "dscp");
    assert_eq!(refused(|spec| spec.last_sequence = u64::from(u32::MAX)), "last_sequence");
    let mut spec = outbound();
    spec.last_sequence = u64::from(u32::MAX) - 1;
    spec.dscp = Dscp::Fixed(63);
    spec.validate().unwrap();
    spec.sa.esn = true;
    spec.last_sequence = u64::MAX - 1;
    spec.validate().unwrap();
    spec.last_sequence = u64::MAX;
    assert_eq!(spec.validate().unwrap_err().field, "last_sequence");
}

#[test]
fn names_the_wrong_field_of_a_selector() {
    let refused = |change: fn(&mut Selector)| {
        let mut selector = selector();
        selector.validate().unwrap();
        change(&mut selector);
        selector.validate().unwrap_err().field
    };
    let ports = |local, remote| UpperSelector::Ports { local, remote };
    let reversed = PortRange { first: 9, last: 1 };
    let v6: AddressRange = "2001:db8::/32".parse().unwrap();
    assert_eq!(refused(|it| std::mem::swap(&mut it.local.first, &mut it.local.last)), "selectors.local");
    assert_eq!(refused(|it| it.local.last = "::1".parse().unwrap()), "selectors.local");
    assert_eq!(refused(|it| it.remote.last = "10.0.0.0".parse().unwrap()), "selectors.remote");
    let with = |protocol, upper| Selector { protocol, upper, ..selector() }.validate().map_err(|it| it.field);
    assert_eq!(Selector { remote: v6, ..selector() }.validate().unwrap_err().field, "selectors.remote");
    assert_eq!(with(None, ports(PortRange::ANY, PortRange::ANY)), Err("selectors.protocol"));
    assert_eq!(with(Some(protocol::ICMP), ports(PortRange::ANY, PortRange::ANY)), Err("selectors.protocol"));
    assert_eq!(with(Some(protocol::UDP), ports(reversed, PortRange::ANY)), Err("selectors.local_port"));
    assert_eq!(with(Some(protocol::UDP), ports(PortRange::ANY, reversed)), Err("selectors.remote_port"));
    assert_eq!(with(Some(protocol::SCTP), ports(PortRange::ANY, PortRange::ANY)), Ok(()));
    let icmp = |kinds, codes| UpperSelector::Icmp { kinds, codes };
    assert_eq!(with(Some(protocol::ICMP), icmp((8, 8), (0, 0))), Ok(()));
    assert_eq!(with(Some(protocol::ICMPV6), icmp((8, 8), (0, 0))), Err("selectors.protocol"));
    assert_eq!(with(Some(protocol::ICMP), icmp((8, 0), (0, 0))), Err("selectors.icmp_type"));
    assert_eq!(with(Some(protocol::ICMP), icmp((8, 8), (1, 0))), Err("selectors.icmp_code"));
    let v6_echo =
        Selector { local: v6, remote: v6, protocol: Some(protocol::ICMPV6), upper: icmp((128, 129), (0, 0)) };
    assert_eq!(v6_echo.validate(), Ok(()));
}
