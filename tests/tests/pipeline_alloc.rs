//! A warmed pipeline allocates nothing: not for packets that pass, not for those that are dropped.

use std::sync::atomic::Ordering::Relaxed;

use adit_engine::crypto::{Authentication, Encryption};
use adit_engine::pipeline::Received;
use adit_engine::policy::Action;
use adit_engine::route::PortId;
use adit_engine::sa::selector::{AddressRange, Selector, UpperSelector};
use adit_engine::sa::spec::Protocol;
use adit_engine::transform::ah::Padding;
use adit_tests::ah_peer::AhPeer;
use adit_tests::allocator::{self, Counting};
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, Site, address, policy, suite};
use adit_tests::packet::{DONT_FRAGMENT, frame, tcp_syn, udp, with_fragment_field, with_ttl};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs bursts until everything is warm, then more, and returns how often those allocated. Each burst is made of
/// `template` anew, because the pipeline may change what it is given.
fn allocations(gateway: &mut Gateway, template: &[(PortId, Vec<u8>)], bursts: usize) -> u64 {
    let mut room = template.to_vec();
    let mut before = 0;
    for round in 0..bursts + 50 {
        if round == 50 {
            before = allocator::allocations();
        }
        let mut fresh = room.iter_mut().zip(template).map(|((port, frame), (_, original))| {
            frame.copy_from_slice(original);
            Received { port: *port, frame }
        });
        let mut burst: [Received<'_>; 32] = std::array::from_fn(|_| fresh.next().expect("32 packets"));
        gateway.engine.process(round as u64, &mut burst);
        gateway.engine.transmit(|_| ());
        // As often as that: nor does telling of what was dropped.
        gateway.engine.tell_drops(round as u64);
        while gateway.engine.tables.audit.take().is_some() {}
    }
    allocator::allocations() - before
}

/// Everything a burst can come to, outbound, in 32 packets.
fn outbound() -> Vec<(PortId, Vec<u8>)> {
    let (source, destination) = (Site::A.host(false), Site::B.host(false));
    let kinds = [
        udp(source, destination, 64),
        udp(Site::A.host(true), Site::B.host(true), 512),
        tcp_syn(source, destination, 1460),
        udp(source, destination, 1472),
        with_fragment_field(udp(source, destination, 1472), DONT_FRAGMENT),
        with_ttl(udp(source, destination, 64), 1),
        udp(source, address("10.66.0.1"), 64),
        udp(source, address("10.9.0.1"), 64),
        udp(source, Site::A.inside(false), 64),
    ];
    let mut packets: Vec<_> = kinds.iter().cycle().take(30).map(|packet| (INSIDE, frame(packet))).collect();
    packets.push((INSIDE, vec![2; 14]));
    packets.push((OUTSIDE, frame(&udp(destination, source, 64))));
    packets
}

/// One fresh packet, duplicates, forgeries, and every refusal after the ICV, inbound.
fn inbound(mut seal: impl FnMut(u64, u8, &[u8]) -> Vec<u8>) -> Vec<(PortId, Vec<u8>)> {
    let (source, destination) = (Site::A.host(false), Site::B.host(false));
    let mut packets = Vec::new();
    for number in 1..=4 {
        let good = seal(number * 8, 4, &udp(source, destination, 256));
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        packets.extend([good, forged]);
        packets.push(seal(number * 8 + 1, 4, &udp(source, address("10.3.0.1"), 64)));
        packets.push(seal(number * 8 + 2, 59, &[0; 64]));
        packets.push(seal(number * 8 + 3, 17, &[0; 64]));
        packets.push(seal(number * 8 + 4, 4, &with_ttl(udp(source, destination, 64), 1)));
        packets.push(seal(number * 8 + 5, 4, &[0; 64]));
        packets.push(udp(source, destination, 64));
    }
    packets.into_iter().map(|packet| (OUTSIDE, frame(&packet))).collect()
}

// One test, because the count is the process's.
#[test]
fn a_warmed_pipeline_allocates_nothing() {
    let any = AddressRange { first: address("10.66.0.0"), last: address("10.66.255.255") };
    let clear =
        Selector { local: Site::A.network(false), remote: any, protocol: None, upper: UpperSelector::Any };
    for (protocol, suite) in [
        (Protocol::Esp, suite(Encryption::Aes128Gcm, Authentication::None)),
        (Protocol::Esp, suite(Encryption::Aes128Ccm, Authentication::None)),
        (Protocol::Esp, suite(Encryption::Aes256Cbc, Authentication::Sha512)),
        (Protocol::Esp, suite(Encryption::TripleDes, Authentication::Md5)),
        (Protocol::Esp, suite(Encryption::Null, Authentication::Sha256)),
        (Protocol::Esp, suite(Encryption::Aes192Ctr, Authentication::AesCmac)),
        (Protocol::Esp, suite(Encryption::ChaCha20Poly1305, Authentication::None)),
        (Protocol::Esp, suite(Encryption::Aes256Gmac, Authentication::None)),
        (Protocol::Ah(Padding::Rfc4302), suite(Encryption::Null, Authentication::Sha256)),
        (Protocol::Ah(Padding::Rfc4302), suite(Encryption::Aes128Gmac, Authentication::None)),
    ] {
        let options = Options {
            protocol,
            policies: vec![policy("clear", vec![clear], Action::Bypass)],
            // Without a window every round's packets pass, not only the first's.
            replay_window: 0,
            ..Options::with_suite(suite)
        };
        let mut a = Gateway::new(Site::A, &options);
        assert_eq!(allocations(&mut a, &outbound(), 1000), 0, "outbound, {suite:?}");
        assert!(a.drops().len() >= 6 && a.engine.counters().sealed.load(Relaxed) > 0, "{:?}", a.drops());

        for replay_window in [0, 1024] {
            let options = Options { replay_window, ..options.clone() };
            let mut b = Gateway::new(Site::B, &options);
            let burst = match protocol {
                Protocol::Esp => {
                    let mut peer = Peer::of(Site::B, &options);
                    inbound(|number, next_header, payload| peer.seal(number, next_header, payload))
                }
                Protocol::Ah(_) => {
                    let peer = AhPeer::of(Site::B, &options);
                    inbound(|number, next_header, payload| peer.sign(number, next_header, payload))
                }
            };
            assert_eq!(allocations(&mut b, &burst, 500), 0, "inbound, {suite:?}, window {replay_window}");
            assert!(b.drops().len() >= 7 && b.engine.counters().opened.load(Relaxed) > 0, "{:?}", b.drops());
        }
        a.assert_balanced(0);
    }
}
