//! SAs in SAs (RFC 4301 section 4.3): AH over ESP, and tunnels in tunnels, made and read by OpenSSL layer by layer; and
//! everything else that claims to be nested.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use adit_engine::crypto::{Authentication, Encryption, IvSource};
use adit_engine::offline::Engine;
use adit_engine::pipeline::reassembly::Limits;
use adit_engine::pipeline::{DropReason, Received};
use adit_engine::policy::Fragmentation;
use adit_engine::sa::InboundSa;
use adit_engine::sa::spec::{Mode, Protocol, Workers};
use adit_engine::transform::ah::Padding;
use adit_engine::transform::transport::DestinationOptions;
use adit_engine::wire::Spi;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, Site, suite};
use adit_tests::packet::{
    DONT_FRAGMENT, frame, ip, one_hop_on, udp, unframe, with_fragment_field, with_traffic_class,
};
use adit_tests::{openssl, scapy};

const ESP: u8 = 50;
const AH: u8 = 51;

/// Keys that no other layer has.
fn other_keys(keys: &(Vec<u8>, Vec<u8>), layer: u8) -> (Vec<u8>, Vec<u8>) {
    let other = |key: &Vec<u8>| key.iter().map(|byte| byte ^ (layer << 4 | layer)).collect();
    (other(&keys.0), other(&keys.1))
}

/// A layer of its own name, SPI and keys.
fn layer(number: u8, options: Options) -> Options {
    let name = ["innermost", "second", "third", "outermost"][usize::from(number)];
    let keys = other_keys(&options.keys, number);
    Options { name, keys, spi: Some(Spi(0x4000 + u32::from(number))), is_outer: number > 0, ..options }
}

/// AH with HMAC-SHA-256-128 between the gateways.
fn ah(number: u8, mode: Mode) -> Options {
    let suite = suite(Encryption::Null, Authentication::Sha256);
    layer(number, Options { protocol: Protocol::Ah(Padding::Rfc4302), mode, ..Options::with_suite(suite) })
}

fn esp(number: u8) -> Options {
    layer(number, Options::new())
}

fn through(inner: Options, outer: Options) -> Options {
    Options { through: Some(Box::new(outer)), ..inner }
}

/// ESP of AES-128-GCM in a tunnel, AH around it in transport mode.
fn ah_over_esp(outer_ipv6: bool) -> Options {
    let outer = Options { outer_ipv6, ..ah(1, Mode::Transport(DestinationOptions::After)) };
    through(Options { outer_ipv6, ..esp(0) }, outer)
}

fn outer(options: &Options) -> &Options {
    options.through.as_ref().expect("there is one")
}

fn inbound(gateway: &Gateway, spi: u32) -> Arc<InboundSa> {
    gateway.engine.tables.sad.list().into_iter().find(|sa| sa.spec.sa.spi == Spi(spi)).unwrap()
}

fn from_a(v6: bool, length: usize) -> Vec<u8> {
    udp(Site::A.host(v6), Site::B.host(v6), length)
}

/// As many as a burst has, and more.
fn mixed() -> Vec<Vec<u8>> {
    (0..150).map(|number| from_a(number % 3 == 0, number * 8)).collect()
}

/// What `packets` are once both gateways have forwarded them.
fn twice_on(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    packets.iter().map(|packet| one_hop_on(&one_hop_on(packet))).collect()
}

#[test]
fn openssl_reads_ah_over_esp() {
    for outer_ipv6 in [false, true] {
        let options = ah_over_esp(outer_ipv6);
        let mut a = Gateway::new(Site::A, &options);
        let packets = mixed();
        let sent = a.run(INSIDE, &packets);
        assert_eq!(sent.len(), packets.len());
        assert!(sent.iter().all(|(port, _)| *port == OUTSIDE));
        let sent: Vec<&[u8]> = sent.iter().map(|(_, packet)| &packet[..]).collect();
        let esp = openssl::check_ah(&outer(&options).keys.1, &sent);
        assert!(esp.iter().all(|ah| ah.next_header == ESP));
        let esp: Vec<&[u8]> = esp.iter().map(|ah| &ah.payload[..]).collect();
        for (number, esp) in (1u32..).zip(&esp) {
            assert_eq!(esp[..8], [0x4000u32.to_be_bytes(), number.to_be_bytes()].concat());
        }
        let inner: Vec<_> =
            openssl::open(&options.keys.0, &esp).into_iter().map(|opened| opened.payload).collect();
        assert_eq!(inner, packets.iter().map(|packet| one_hop_on(packet)).collect::<Vec<_>>());
        assert_eq!(a.drops(), []);
        let counters = a.engine.counters();
        assert_eq!(counters.sealed.load(Relaxed), 2 * packets.len() as u64, "each layer counts");
        assert_eq!(counters.originated.load(Relaxed), 0);
    }
}

#[test]
fn ah_over_esp_of_openssls_is_opened() {
    for outer_ipv6 in [false, true] {
        let options = ah_over_esp(outer_ipv6);
        let mut b = Gateway::new(Site::B, &options);
        let packets = mixed();
        let to_seal: Vec<_> = (1..)
            .zip(&packets)
            .map(|(number, packet)| {
                (0x4000, number, if packet[0] >> 4 == 4 { 4 } else { 41 }, packet.clone())
            })
            .collect();
        let esp = openssl::seal(&options.keys.0, &to_seal);
        let header = ip(options.endpoint(Site::A), options.endpoint(Site::B), AH, &[]);
        let to_sign: Vec<_> = (1..).zip(esp).map(|(number, esp)| (0x4001, number, ESP, esp)).collect();
        let packets_with_ah = openssl::sign_ah(&outer(&options).keys.1, &header, &to_sign);
        let opened: Vec<_> = b.run(OUTSIDE, &packets_with_ah).into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(opened, packets.iter().map(|packet| one_hop_on(packet)).collect::<Vec<_>>());
        assert_eq!(b.drops(), []);
        for spi in [0x4000, 0x4001] {
            let sa = inbound(&b, spi);
            assert_eq!((sa.replay.right_edge(), sa.counters.packets.load(Relaxed)), (150, 150));
        }

        // Each layer by itself: nothing without the AH that was agreed on, nothing twice, nothing forged.
        let esp_alone = openssl::seal(&options.keys.0, &[(0x4000, 151, 4, from_a(false, 10))]).remove(0);
        let esp_alone = ip(options.endpoint(Site::A), options.endpoint(Site::B), ESP, &esp_alone);
        b.assert_drops(OUTSIDE, &esp_alone, DropReason::PolicyMismatch);
        b.run(OUTSIDE, &packets_with_ah[149..]);
        assert!(b.drops().contains(&(DropReason::ReplayDuplicate, 1)));
        let again = (0x4001, 151, ESP, to_sign[149].3.clone());
        let again = openssl::sign_ah(&outer(&options).keys.1, &header, &[again]).remove(0);
        b.run(OUTSIDE, &[again]);
        assert!(b.drops().contains(&(DropReason::ReplayDuplicate, 2)), "the ESP inside has its own window");
        let mut forged = to_sign[149].3.clone();
        *forged.last_mut().unwrap() ^= 1;
        forged[7] = 200;
        let forged =
            openssl::sign_ah(&outer(&options).keys.1, &header, &[(0x4001, 152, ESP, forged)]).remove(0);
        b.assert_drops(OUTSIDE, &forged, DropReason::IcvFailed);
        assert_eq!(inbound(&b, 0x4000).counters.icv_failed.load(Relaxed), 1);
    }
}

/// Two to four layers of every kind, of both versions in each other.
fn chains() -> Vec<Options> {
    let v6 = |options: Options| Options { outer_ipv6: true, ..options };
    let transport = Mode::Transport(DestinationOptions::After);
    let esp_transport = |number| layer(number, Options { mode: transport, ..Options::new() });
    let cbc =
        |number| layer(number, Options::with_suite(suite(Encryption::Aes256Cbc, Authentication::Sha512)));
    vec![
        ah_over_esp(false),
        ah_over_esp(true),
        through(esp(0), esp(1)),
        through(v6(esp(0)), esp(1)),
        through(esp(0), v6(cbc(1))),
        through(ah(0, Mode::Tunnel), cbc(1)),
        through(cbc(0), ah(1, Mode::Tunnel)),
        through(ah(0, Mode::Tunnel), esp_transport(1)),
        through(esp(0), through(ah(1, transport), v6(esp(2)))),
        through(esp(0), through(v6(cbc(1)), through(v6(ah(2, transport)), esp(3)))),
    ]
}

#[test]
fn every_chain_carries_every_family_in_order() {
    for options in chains() {
        let layers =
            std::iter::successors(Some(&options), |options| options.through.as_deref()).count() as u64;
        let (mut a, mut b) = Gateway::pair(&options);
        let packets: Vec<_> = mixed().into_iter().filter(|packet| packet.len() < 1100).collect();
        let sent: Vec<_> = a.run(INSIDE, &packets).into_iter().map(|(_, packet)| packet).collect();
        let opened: Vec<_> = b.run(OUTSIDE, &sent).into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(opened, twice_on(&packets));
        assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
        let count = packets.len() as u64;
        assert_eq!(a.engine.counters().sealed.load(Relaxed), layers * count);
        assert_eq!(b.engine.counters().opened.load(Relaxed), layers * count);
        // Congestion that the outermost header was marked with reaches the host, through every layer (RFC 6040).
        let marked = a.run(INSIDE, &[with_traffic_class(from_a(true, 100), 0b10)]).remove(0).1;
        let is_ah = marked[if marked[0] >> 4 == 4 { 9 } else { 6 }] == AH;
        let marked = with_traffic_class(marked, 0b11);
        let arrived = b.run(OUTSIDE, &[marked]).remove(0).1;
        let is_transport = matches!(options.through.as_ref().unwrap().mode, Mode::Transport(_));
        assert_eq!(arrived[1] >> 4 & 0b11, 0b11, "{is_ah} {is_transport}");
    }
}

#[test]
fn the_mtu_of_a_chain_is_that_of_all_its_layers() {
    for options in chains() {
        let (mut a, mut b) = Gateway::pair(&options);
        let sized = |length: usize| with_fragment_field(from_a(false, length - 28), DONT_FRAGMENT);
        let is_refused = |a: &mut Gateway, length| a.run(INSIDE, &[sized(length)])[0].0 == INSIDE;
        let largest = (1100..1500).find(|&length| is_refused(&mut a, length + 1)).unwrap();
        let sent = a.run(INSIDE, &[sized(largest)]).remove(0).1;
        assert!(sent.len() <= 1500 && sent.len() > 1500 - 40, "{largest} becomes {}", sent.len());
        assert_eq!(b.run(OUTSIDE, &[sent]).len(), 1);
        // One byte more is answered, with exactly this size.
        let (port, error) = a.run(INSIDE, &[sized(largest + 1)]).remove(0);
        assert_eq!((port, &error[20..22]), (INSIDE, &[3, 4][..]));
        assert_eq!(usize::from(u16::from_be_bytes([error[26], error[27]])), largest);
        // What may be fragmented is, before the innermost layer.
        let pieces = a.run(INSIDE, &[from_a(false, 2500)]);
        assert!(pieces.len() >= 2 && pieces.iter().all(|(_, packet)| packet.len() <= 1500));
        let pieces: Vec<_> = pieces.into_iter().map(|(_, packet)| packet).collect();
        let arrived = b.run(OUTSIDE, &pieces);
        assert_eq!(arrived.iter().map(|(_, packet)| packet.len() - 20).sum::<usize>(), 2508);
    }
    // By hand: 1500 - 20 - 28 (AH) for ESP, of which 8 + 8 + 16 around 1420, of which 2 trailer.
    let mut a = Gateway::new(Site::A, &ah_over_esp(false));
    let sized = |length: usize| with_fragment_field(from_a(false, length - 28), DONT_FRAGMENT);
    assert_eq!(a.run(INSIDE, &[sized(1418)])[0].0, OUTSIDE);
    assert_eq!(a.run(INSIDE, &[sized(1419)])[0].0, INSIDE);
}

/// Requirement: out of an SA only what says that it goes through it; and never deeper than four.
#[test]
fn nothing_is_nested_that_no_tunnel_nests() {
    // A hundred deep, or as deep as a packet gets: each in the same SA again.
    let options = Options::new();
    let mut b = Gateway::new(Site::B, &options);
    let mut peer = Peer::of(Site::B, &options);
    let mut packet = from_a(false, 10);
    let mut number = 0;
    while packet.len() < 1400 {
        number += 1;
        packet = peer.seal(number, 4, &packet);
    }
    assert!(number > 20);
    b.assert_drops(OUTSIDE, &packet, DropReason::SelectorMismatch);
    // ESP and AH as ESP's own next header are no packets at all in a tunnel, and nobody's in transport mode.
    let between_hosts = Options { mode: Mode::Transport(DestinationOptions::After), ..Options::new() };
    for next_header in [ESP, AH] {
        number += 1;
        let packet = peer.seal(number, next_header, &[0; 64]);
        b.assert_drops(OUTSIDE, &packet, DropReason::NextHeader);
        let packet = Peer::of(Site::B, &between_hosts).seal(1, next_header, &[0; 64]);
        Gateway::new(Site::B, &between_hosts).assert_drops(OUTSIDE, &packet, DropReason::Nesting);
    }

    // Another tunnel of ours that goes through nothing, or through something else.
    let chain = through(esp(0), through(esp(1), esp(2)));
    let mut b = Gateway::new(Site::B, &chain);
    let middle = outer(&chain);
    let outermost = outer(middle);
    let seal = |options: &Options, number: u64, packet: &[u8]| {
        Peer::of(Site::B, options).seal(number, if packet[0] >> 4 == 4 { 4 } else { 41 }, packet)
    };
    let inner = seal(&chain, 1, &from_a(false, 10));
    b.assert_drops(OUTSIDE, &inner, DropReason::PolicyMismatch);
    let skipped = seal(outermost, 1, &inner);
    b.assert_drops(OUTSIDE, &skipped, DropReason::Nesting);
    let upside_down = seal(middle, 2, &seal(outermost, 2, &inner));
    b.assert_drops(OUTSIDE, &upside_down, DropReason::PolicyMismatch);
    let in_itself = seal(outermost, 3, &seal(outermost, 4, &inner));
    b.assert_drops(OUTSIDE, &in_itself, DropReason::Nesting);
    let unknown = Options { spi: Some(Spi(0x9999)), ..chain.clone() };
    let unknown = seal(outermost, 5, &seal(middle, 5, &seal(&unknown, 5, &from_a(false, 10))));
    b.assert_drops(OUTSIDE, &unknown, DropReason::NoState);
    let cut = seal(
        outermost,
        6,
        &seal(middle, 6, &ip(chain.endpoint(Site::A), chain.endpoint(Site::B), ESP, &[0; 7])),
    );
    b.assert_drops(OUTSIDE, &cut, DropReason::EspTooShort);
    // None of that spoiled the chain, and the packet inside is still held to its own SA's selectors.
    let right = seal(outermost, 7, &seal(middle, 7, &seal(&chain, 7, &from_a(false, 10))));
    assert_eq!(b.run(OUTSIDE, &[right]).len(), 1);
    let elsewhere = udp("203.0.113.1".parse().unwrap(), Site::B.host(false), 10);
    let elsewhere = seal(outermost, 8, &seal(middle, 8, &seal(&chain, 8, &elsewhere)));
    b.assert_drops(OUTSIDE, &elsewhere, DropReason::SelectorMismatch);
    // What is clear inside the outer tunnels is no one's.
    let clear = seal(outermost, 9, &from_a(false, 10));
    b.assert_drops(OUTSIDE, &clear, DropReason::PolicyMismatch);
}

#[test]
fn a_chain_with_a_missing_link_carries_nothing() {
    let chain = through(esp(0), through(esp(1), esp(2)));
    for missing in 1..3 {
        let mut a = Gateway::new(Site::A, &chain);
        let tunnel = Arc::clone(&a.tunnel);
        let layer = tunnel.layers().nth(missing).unwrap();
        let sa = layer.outbound.get();
        layer.outbound.replace(None);
        a.assert_drops(INSIDE, &from_a(false, 10), DropReason::NoOutboundSa);
        layer.outbound.replace(sa.clone());
        sa.unwrap().lifetime.end();
        a.assert_drops(INSIDE, &from_a(false, 10), DropReason::HardLifetime);
        assert_eq!(
            tunnel.outbound.get().unwrap().last_sequence(),
            0,
            "no number is spent on what cannot leave"
        );
    }
    // The outer SA ends in the middle of a burst.
    let nearly_used_up = Options { last_sequence: u64::from(u32::MAX) - 3, ..esp(2) };
    let mut a = Gateway::new(Site::A, &through(esp(0), through(esp(1), nearly_used_up)));
    assert_eq!(a.run(INSIDE, &vec![from_a(false, 10); 10]).len(), 3);
    assert_eq!(a.drops(), [(DropReason::SequenceExhausted, 7)]);
}

#[test]
fn one_worker_numbers_all_layers_and_others_hand_over_untouched() {
    let chain = through(esp(0), esp(1));
    let a = Gateway::new(Site::A, &chain);
    let [inner, outer] = [0, 1].map(|layer| a.tunnel.layers().nth(layer).unwrap().outbound.get().unwrap());
    // Somebody else has the outer one; this worker may have used the inner one before that was so.
    assert_eq!((outer.owner(7), inner.owner(0)), (7, 0));
    let mut engine = Engine::new(a.engine.tables.clone(), 0, IvSource::from_seed([5; 32]));
    let before = frame(&from_a(false, 10));
    let mut bytes = before.clone();
    engine.process(0, &mut [Received { port: INSIDE, frame: &mut bytes }]);
    assert_eq!(engine.take_handed_over().collect::<Vec<_>>(), [(0, 7)]);
    assert_eq!(bytes, before);
    assert_eq!((inner.last_sequence(), outer.last_sequence()), (0, 0));

    let shared = |options: Options| Options { workers: Workers::Shared, ..options };
    let chain = through(esp(0), shared(esp(1)));
    let a = Gateway::new(Site::A, &chain);
    assert_eq!(a.tunnel.outbound.get().unwrap().owner(3), 3);
    let mut engine = Engine::new(a.engine.tables.clone(), 0, IvSource::from_seed([5; 32]));
    engine.process(0, &mut [Received { port: INSIDE, frame: &mut bytes }]);
    assert_eq!(engine.take_handed_over().collect::<Vec<_>>(), [(0, 3)], "the inner one keeps its order");
}

/// What OpenSSL finds in ESP packets of AES-128-GCM over IPv4 or IPv6.
fn opened(options: &Options, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let header = |packet: &Vec<u8>| if packet[0] >> 4 == 4 { 20 } else { 40 };
    let esp: Vec<&[u8]> = packets.iter().map(|packet| &packet[header(packet)..]).collect();
    openssl::open(&options.keys.0, &esp).into_iter().map(|opened| opened.payload).collect()
}

/// What OpenSSL makes of `packets` for `options`' SA of gateway B's, numbered from `first` on.
fn sealed(options: &Options, first: u32, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let as_next_header = |packet: &Vec<u8>| if packet[0] >> 4 == 4 { 4 } else { 41 };
    let spi = options.spi.expect("a layer has one").0;
    let numbered = (first..).zip(packets);
    let to_seal: Vec<_> =
        numbered.map(|(number, packet)| (spi, number, as_next_header(packet), packet.clone())).collect();
    let esp = openssl::seal(&options.keys.0, &to_seal);
    esp.iter().map(|esp| ip(options.endpoint(Site::A), options.endpoint(Site::B), ESP, esp)).collect()
}

/// RFC 4301 section 8.2: a router behind the outer tunnel's peer tells us about the inner tunnel's packets, and what it
/// tells comes out of the outer one.
#[test]
fn the_path_of_an_inner_tunnel_is_told_out_of_its_outer_one() {
    for (inner_v6, outer_v6) in [(false, false), (true, false), (false, true), (true, true)] {
        let outermost = Options { outer_ipv6: outer_v6, ..esp(1) };
        let options = through(Options { outer_ipv6: inner_v6, ..esp(0) }, outermost);
        let mut a = Gateway::new(Site::A, &options);
        let told = |a: &Gateway| a.tunnel.layers().map(|tunnel| tunnel.path.mtu(0, 1)).collect::<Vec<_>>();
        let sized = |length: usize| with_fragment_field(from_a(false, length - 28), DONT_FRAGMENT);
        let sent: Vec<_> = a.run(INSIDE, &[sized(1_350)]).into_iter().map(|(_, packet)| packet).collect();
        let inner = opened(outer(&options), &sent);
        let mut peer = Peer::of(Site::A, outer(&options));
        let mut number = 0;
        let mut out_of_outer = |error: &Vec<u8>| {
            number += 1;
            peer.seal(number, if error[0] >> 4 == 4 { 4 } else { 41 }, error)
        };
        let error = |about: &Vec<u8>| {
            let router = if about[0] >> 4 == 4 { "203.0.113.1" } else { "2001:db8:99::1" };
            scapy::errors(std::slice::from_ref(about), router, "too-big", 1_300, 16).remove(0)
        };

        // About a number that was not sent, about the outer tunnel itself, about anything else: nobody's.
        let mut another = inner[0].clone();
        another[if inner_v6 { 46 } else { 26 }] ^= 1;
        let not_ours = udp(options.endpoint(Site::A), options.endpoint(Site::B), 1_300);
        for about in [&another, &sent[0], &not_ours] {
            let packet = out_of_outer(&error(about));
            a.assert_drops(OUTSIDE, &packet, DropReason::IcmpQuote);
        }
        assert_eq!(told(&a), [None, None]);
        let packet = out_of_outer(&error(&inner[0]));
        a.assert_drops(OUTSIDE, &packet, DropReason::IcmpNoted);
        assert_eq!(told(&a), [Some(1_300), None]);

        // The largest that fits leaves the inner tunnel in 1,300 bytes or a little less, and the host is told that.
        let reply = a.run(INSIDE, &[sized(1_350)]).remove(0).1;
        let largest = usize::from(u16::from_be_bytes([reply[26], reply[27]]));
        let sent = a.run(INSIDE, &[sized(largest)]).remove(0).1;
        let inside = opened(outer(&options), &[sent])[0].len();
        assert!((1_297..=1_300).contains(&inside), "{largest} {inside}");
        // The outer one's own path is as narrow as its own errors say, whoever goes through it.
        a.tunnel.through.as_ref().unwrap().path.learn(1_280, 0);
        assert!(a.run(INSIDE, &[sized(largest)]).remove(0).0 == INSIDE);
    }
}

/// RFC 4303 section 3.4.1, for each layer: what a router behind the outer tunnel's peer has fragmented, by scapy.
#[test]
fn fragments_of_an_inner_layer_are_put_together() {
    for (inner_v6, outer_v6) in [(false, false), (true, true), (true, false)] {
        let outermost = Options { outer_ipv6: outer_v6, ..esp(1) };
        let options = through(Options { outer_ipv6: inner_v6, ..esp(0) }, outermost);
        let joining = Options { reassembly: Limits::default(), ..options.clone() };
        let packets: Vec<_> = mixed().into_iter().skip(110).collect();
        let inner = sealed(&options, 1, &packets);
        let fragments = scapy::fragments(&inner, if inner_v6 { 1_280 } else { 576 }).concat();
        assert!(fragments.len() > packets.len());
        let sent = sealed(outer(&options), 1, &fragments);
        let mut b = Gateway::new(Site::B, &joining);
        let mut arrived: Vec<_> = b.run(OUTSIDE, &sent).into_iter().map(|(_, packet)| packet).collect();
        let mut expected: Vec<_> = packets.iter().map(|packet| one_hop_on(packet)).collect();
        // What was put together follows the rest of its burst.
        arrived.sort();
        expected.sort();
        assert!(arrived == expected, "{inner_v6} {outer_v6}");
        let counters = b.engine.counters();
        assert_eq!(counters.absorbed.load(Relaxed), (fragments.len() - packets.len()) as u64);
        assert_eq!(counters.opened.load(Relaxed), (fragments.len() + packets.len()) as u64);
        assert_eq!((b.drops(), b.engine.tables.reassembly.held()), (vec![], 0));

        // The other half from outside is another datagram's, which is never whole.
        let inner = sealed(&options, 500, &[from_a(false, 1_400)]);
        let halves = scapy::fragments(&inner, 1_280).remove(0);
        assert_eq!(b.run(OUTSIDE, &sealed(outer(&options), 500, &halves[..1])), []);
        assert_eq!(b.run(OUTSIDE, &halves[1..]), []);
        assert_eq!(b.engine.tables.reassembly.held(), 2);
        // And whole, but from outside altogether, it is what it is without fragments.
        b.run(OUTSIDE, &halves[..1]);
        assert_eq!(b.drops(), [(DropReason::PolicyMismatch, 1)]);
        // Nothing is kept where that is not wanted.
        let mut strict = Gateway::new(Site::B, &options);
        strict.assert_drops(OUTSIDE, &sealed(outer(&options), 500, &halves[..1])[0], DropReason::EspFragment);
    }
}

/// What is too large for the path of any layer is fragmented by the layer itself, and every chain carries 1,280 bytes of
/// IPv6 (RFC 2473 section 7.1), through the narrowest links.
#[test]
fn each_layer_fragments_for_its_own_path() {
    for options in chains() {
        let options = Options {
            fragmentation: Fragmentation::After,
            reassembly: Limits::default(),
            outside_mtu: 1_280,
            ..options
        };
        let (mut a, mut b) = Gateway::pair(&Options { inside_mtu: 1_500, ..options.clone() });
        let packets = [
            udp(Site::A.host(true), Site::B.host(true), 1_280 - 48),
            from_a(false, 1_400),
            from_a(true, 100),
        ];
        for narrow in 0..=a.tunnel.layers().count() {
            if let Some(tunnel) = a.tunnel.layers().nth(narrow) {
                tunnel.path.learn(if tunnel.local.is_ipv6() { 1_280 } else { 900 }, 0);
            }
            let sent: Vec<_> = a.run(INSIDE, &packets).into_iter().map(|(_, packet)| packet).collect();
            assert!(sent.len() >= 5 && sent.iter().all(|packet| packet.len() <= 1_280), "{narrow}");
            let mut arrived: Vec<_> = b.run(OUTSIDE, &sent).into_iter().map(|(_, packet)| packet).collect();
            let mut expected = twice_on(&packets);
            arrived.sort();
            expected.sort();
            assert_eq!(arrived, expected, "{narrow} {:?}", options.name);
            assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
            assert_eq!(b.engine.tables.reassembly.held(), 0);
        }
    }
    // Seen from outside: OpenSSL opens the outer tunnel, scapy puts together what is in it, and OpenSSL opens that.
    let options = through(Options { fragmentation: Fragmentation::After, ..esp(0) }, esp(1));
    let mut a = Gateway::new(Site::A, &options);
    a.tunnel.path.learn(700, 0);
    let packet = from_a(false, 1_300);
    let sent: Vec<_> =
        a.run(INSIDE, std::slice::from_ref(&packet)).into_iter().map(|(_, packet)| packet).collect();
    let fragments = opened(outer(&options), &sent);
    assert!(fragments.len() == 3 && fragments.iter().all(|fragment| fragment.len() <= 700));
    assert_eq!(opened(&options, &scapy::whole(&fragments)), [one_hop_on(&packet)]);
}

/// AH does not encrypt: what it carried between two layers, and what ESP gave, is not left in free frames.
#[test]
fn nothing_lies_about_between_layers() {
    let options = through(ah(0, Mode::Tunnel), esp(1));
    let (mut a, mut b) = Gateway::pair(&options);
    let inner = from_a(false, 500);
    let sent = a.run_frames(vec![(INSIDE, frame(&inner))]).remove(0).1;
    let secret = &inner[28..92];
    let holds = |gateway: &Gateway| {
        gateway
            .engine
            .frames
            .free()
            .iter()
            .filter(|frame| frame.windows(64).any(|bytes| bytes == secret))
            .count()
    };
    assert_eq!(holds(&a), 0);
    assert_eq!(b.run(OUTSIDE, &[unframe(&sent).to_vec()]).len(), 1);
    assert!(holds(&b) <= 1, "only where it was transmitted from");
}
