//! The pipeline under a peer that has the keys, hosts that send anything, and a stack of the gateway's own that does.
//!
//! Input: four bytes of configuration ([`Setting`]), then steps ([`Run::step`]): frames as they are, packets with
//! their checksum mended, plaintext under a valid ICV, duplicates, forgeries, changes of the tables. Up to 64 packets
//! make a burst; after each burst everything that came of it is judged ([`Run::judge`]).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use adit_engine::crypto::{Authentication, Encryption};
use adit_engine::offline::{FRAME_LENGTH, HeapFrames};
use adit_engine::pipeline::{BURST, DropReason, HostEnd, IcmpRules, Received, Tables, reassembly};
use adit_engine::policy::{Action, Policy};
use adit_engine::route::PortId;
use adit_engine::sa::publish;
use adit_engine::sa::selector::{AddressRange, Direction, PortRange, Selector, UpperSelector};
use adit_engine::sa::spec::{Protocol, Workers};
use adit_engine::transform::ah::Padding;
use adit_engine::transform::tunnel::DontFragment;
use adit_engine::wire::ip::{self, Fragment, IpPacket, IpVersion, Upper};
use adit_engine::wire::protocol;
use adit_engine::wire::udp::{self, NAT_TRAVERSAL_PORT, UdpHeader};

use super::join::Joiner;
use super::peer::EspPeer;
use super::{Input, residue};
use crate::ah_peer::AhPeer;
use crate::memory::{
    Gateway, INSIDE, OUTSIDE, Options, SPI_TO_A, SPI_TO_B, Site, address, networks, policy, suite,
};
use crate::packet;

/// The gateway under test.
const SITE: Site = Site::B;
static ZEROS: [u8; FRAME_LENGTH] = [0; FRAME_LENGTH];
/// No more packets than this in one input, so that an input's time is bounded.
const PACKETS: usize = 256;

/// What the first four bytes choose.
struct Setting {
    options: Options,
    /// The outbound SA belongs to another worker.
    handed_over: bool,
    /// Transmit frames.
    frames: usize,
    /// There is a way to the gateway's own stack.
    host: Option<HostEnd>,
}

/// Where errors to the gateway's own stack come from.
const HOST_END: HostEnd =
    HostEnd { v4: Ipv4Addr::new(169, 254, 173, 1), v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1) };

impl Setting {
    fn read(input: &mut Input<'_>) -> Self {
        let (first, second, mtus, frames) = (input.byte(), input.byte(), input.byte(), input.byte());
        let is_ah = first & 1 != 0 && second & 0x20 != 0;
        let suite = match (first & 1 == 0, is_ah && second & 0x40 != 0) {
            (true, _) => suite(Encryption::Aes128Gcm, Authentication::None),
            (_, true) => suite(Encryption::Aes128Gmac, Authentication::None),
            _ => suite(Encryption::Null, Authentication::Sha256),
        };
        let mtu = |choice: u8| [1500, 1400, 1280, 1000, 576, 256, 100, 9000][usize::from(choice & 7)];
        let mut options = Options::with_suite(suite);
        options.esn = first & 2 != 0;
        options.outer_ipv6 = first & 4 != 0;
        options.replay_window = [32, 64, 1024, 33][usize::from(first >> 3 & 3)];
        options.clamp_mss = first & 32 != 0;
        options.last_sequence = match first >> 6 {
            0 | 1 => 0,
            2 => u64::from(u32::MAX) - 40,
            _ if options.esn => 5 << 32,
            _ => 1 << 20,
        };
        options.workers = if second & 1 == 0 { Workers::Shared } else { Workers::One };
        options.dont_fragment =
            [DontFragment::Copy, DontFragment::Set, DontFragment::Clear][usize::from(second >> 1 & 3) % 3];
        if second & 8 != 0 {
            let udp = Some(protocol::UDP);
            let port = |first, last| PortRange { first, last };
            let upper = UpperSelector::Ports { local: port(0, 65535), remote: port(1024, 9999) };
            let narrow = |selector| Selector { protocol: udp, upper, ..selector };
            options.selectors = Some(networks(SITE).into_iter().map(narrow).collect());
        }
        if is_ah {
            options.protocol = Protocol::Ah(Padding::Rfc4302);
        } else if second & 0x40 != 0 {
            options.udp_port = Some(NAT_TRAVERSAL_PORT);
        }
        options.policies = clear_policies();
        (options.inside_mtu, options.outside_mtu) = (mtu(mtus), mtu(mtus >> 3));
        let frames = if frames & 0x80 == 0 { usize::MAX } else { usize::from(frames & 0x7f) };
        let host = (second & 0x80 != 0).then_some(HOST_END);
        Self { options, handed_over: second & 0x11 == 0x11, frames, host }
    }

    /// The peer's end of the SA with this SPI, which is from `from`.
    fn peer(&self, spi: u32, from: Site) -> Peer {
        let Options { keys: (encryption, authentication), esn, outer_ipv6, udp_port, .. } = &self.options;
        let addresses = (from.endpoint(*outer_ipv6), from.peer().endpoint(*outer_ipv6));
        let protector = match self.options.protocol {
            Protocol::Ah(_) => Protector::Ah(AhPeer { spi, ..AhPeer::of(from.peer(), &self.options) }),
            Protocol::Esp if encryption.is_empty() => {
                Protector::Esp(EspPeer::null(spi, authentication, *esn))
            }
            Protocol::Esp => Protector::Esp(EspPeer::gcm(spi, encryption, *esn)),
        };
        Peer { protector, addresses, in_udp: udp_port.is_some() }
    }
}

/// The peer's end of an SA, whichever protocol.
struct Peer {
    protector: Protector,
    /// Sender's and receiver's.
    addresses: (IpAddr, IpAddr),
    in_udp: bool,
}

enum Protector {
    Esp(EspPeer),
    Ah(AhPeer),
}

impl Peer {
    /// A packet around `plaintext`: payload, padding, pad length, next header. AH has no trailer, and says only what
    /// that one does.
    fn seal(&self, sequence: u64, plaintext: &[u8]) -> Vec<u8> {
        match (&self.protector, plaintext) {
            (Protector::Esp(peer), _) => {
                let esp = peer.seal(sequence, plaintext);
                let (source, destination) = self.addresses;
                if !self.in_udp {
                    return packet::ip(source, destination, protocol::ESP, &esp);
                }
                let header = UdpHeader {
                    source: NAT_TRAVERSAL_PORT,
                    destination: NAT_TRAVERSAL_PORT,
                    length: (udp::HEADER_LENGTH + esp.len()) as u16,
                };
                packet::ip(source, destination, protocol::UDP, &[&header.to_bytes()[..], &esp].concat())
            }
            (Protector::Ah(peer), [payload @ .., pad_length, next_header]) => {
                let length = payload.len().saturating_sub(usize::from(*pad_length));
                peer.sign(sequence, *next_header, &payload[..length])
            }
            (Protector::Ah(peer), _) => peer.sign(sequence, protocol::NO_NEXT_HEADER, plaintext),
        }
    }

    /// The number of a packet and what is inside, as ESP has it, if the ICV is right.
    fn open(&self, high_word: u32, packet: &[u8]) -> Option<(u64, Vec<u8>)> {
        match &self.protector {
            Protector::Esp(peer) => {
                let header = if self.addresses.0.is_ipv4() { 20 } else { 40 };
                let in_udp = if self.in_udp { udp::HEADER_LENGTH } else { 0 };
                peer.open(high_word, packet.get(header + in_udp..)?)
            }
            Protector::Ah(peer) => {
                let (sequence, next_header, payload) = peer.verify(high_word, packet)?;
                Some((sequence, [&payload[..], &[0, next_header]].concat()))
            }
        }
    }
}

/// Beside the tunnel: a network outside of which half is reached in clear and the other half not at all, and one
/// whose packets come in in clear while nothing may go there. Addresses only, so that what becomes of a packet can be
/// read from the packet that comes out, also from a fragment of it.
fn clear_policies() -> Vec<Arc<Policy>> {
    let range = |first, last| AddressRange { first: address(first), last: address(last) };
    let any = [range("0.0.0.0", "255.255.255.255"), range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")];
    let selectors = |remotes: [AddressRange; 2]| {
        let both = any.into_iter().zip(remotes);
        both.map(|(local, remote)| Selector { local, remote, protocol: None, upper: UpperSelector::Any })
            .collect()
    };
    let discarded = [
        range("203.0.113.128", "203.0.113.255"),
        range("2001:db8:b:8000::", "2001:db8:b:ffff:ffff:ffff:ffff:ffff"),
    ];
    let bypassed =
        [range("203.0.113.0", "203.0.113.255"), range("2001:db8:b::", "2001:db8:b:ffff:ffff:ffff:ffff:ffff")];
    let one_way =
        [range("192.0.2.128", "192.0.2.255"), range("2001:db8:c::", "2001:db8:c:ffff:ffff:ffff:ffff:ffff")];
    let direction = |policy: Arc<Policy>, inbound: bool| {
        let Policy { name, selectors, action, .. } = &*policy;
        let (name, selectors, action) = (name.clone(), selectors.clone(), action.clone());
        Arc::new(Policy { name, outbound: !inbound, inbound, selectors, action, packets: 0.into() })
    };
    vec![
        policy("refused", selectors(discarded), Action::Discard),
        policy("clear", selectors(bypassed), Action::Bypass),
        direction(policy("only-in", selectors(one_way), Action::Bypass), true),
        direction(policy("never-out", selectors(one_way), Action::Discard), false),
    ]
}

/// Addresses that packets may be aimed at: the tunnel's two sides, each of [`clear_policies`], the gateway itself.
fn aims(ipv6: bool) -> [IpAddr; 7] {
    let [clear, refused, only_in] = match ipv6 {
        false => ["203.0.113.7", "203.0.113.200", "192.0.2.200"],
        true => ["2001:db8:b::7", "2001:db8:b:8000::7", "2001:db8:c::7"],
    };
    [
        SITE.peer().host(ipv6),
        SITE.host(ipv6),
        address(clear),
        address(refused),
        SITE.inside(ipv6),
        SITE.endpoint(ipv6),
        address(only_in),
    ]
}

thread_local! {
    /// The SAD is made for a million SAs: too much to build for every input.
    static TABLES: RefCell<Option<Arc<Tables>>> = const { RefCell::new(None) };
}

fn tables() -> Arc<Tables> {
    TABLES.with_borrow_mut(|tables| {
        let new = || Tables::new(reassembly::Limits::OFF, IcmpRules::default());
        Arc::clone(tables.get_or_insert_with(|| Arc::new(new())))
    })
}

/// Input: a [`Setting`], then steps until it ends.
pub fn inbound(input: &[u8]) {
    let mut input = Input(input);
    let setting = Setting::read(&mut input);
    let mut gateway = Gateway::over(tables(), SITE, &setting.options);
    gateway.engine.frames = HeapFrames::new(setting.frames);
    gateway.engine.frames.host = setting.host;
    if setting.handed_over {
        gateway.tunnel.outbound.get().unwrap().owner(1);
    }
    let (sender, receiver) = (setting.peer(SPI_TO_B.0, Site::A), setting.peer(SPI_TO_A.0, Site::B));
    let last_sent = setting.options.last_sequence;
    let mut run = Run {
        gateway,
        setting,
        sender,
        receiver,
        now: 0,
        sent: last_sent,
        sealed: BTreeSet::new(),
        plaintexts: Vec::new(),
        frames: Vec::new(),
        burst: Vec::new(),
        handed_over: 0,
        last_received: last_sent,
        joiner: Joiner::default(),
    };
    while !input.is_empty() && run.frames.len() < PACKETS {
        run.step(&mut input);
        if run.burst.len() == BURST {
            run.process();
        }
    }
    run.process();
    drop(run);
    publish::reclaim();
}

/// A frame that was sent to the gateway.
#[derive(Clone)]
struct Sent {
    port: PortId,
    frame: Vec<u8>,
    /// It is ESP of the peer's, unchanged: what is in it may not be seen in clear.
    sealed: bool,
}

/// One input under way.
struct Run {
    gateway: Gateway,
    setting: Setting,
    sender: Peer,
    receiver: Peer,
    now: u64,
    /// The last number the peer used.
    sent: u64,
    /// All numbers the peer used.
    sealed: BTreeSet<u64>,
    /// What was put under a valid ICV so far.
    plaintexts: Vec<Vec<u8>>,
    /// All frames so far, for duplicates.
    frames: Vec<Sent>,
    /// Those that wait for the end of the burst, by index.
    burst: Vec<usize>,
    handed_over: u64,
    /// The last number of ours that the peer saw.
    last_received: u64,
    /// What left in fragments.
    joiner: Joiner,
}

impl Run {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 9 {
            0 => {
                self.process();
                self.now += u64::from(input.byte()) * 10;
            }
            1 => {
                let port = PortId(u16::from(input.byte() & 1));
                self.push(port, bytes(input), false);
            }
            2 => {
                let flags = input.byte();
                let mut packet = bytes(input);
                mend(&mut packet, flags);
                self.push(PortId(u16::from(flags >> 7)), packet::frame(&packet), false);
            }
            // The whole plaintext, trailer and all, is the input's.
            3 => {
                let (step, flags) = (input.byte(), input.byte());
                let mut plaintext = bytes(input);
                mend(&mut plaintext, flags);
                let aligned = plaintext.len() & !3;
                plaintext.truncate(aligned);
                self.seal(step, flags, plaintext);
            }
            // An honest trailer behind the input's payload.
            4 | 5 => {
                let (step, flags) = (input.byte(), input.byte());
                let mut plaintext = bytes(input);
                mend(&mut plaintext, flags);
                let next_header = if plaintext.first().is_some_and(|byte| byte >> 4 == 6) { 41 } else { 4 };
                let pad = (4 - (plaintext.len() + 2) % 4) % 4;
                plaintext.extend((1..=pad as u8).chain([pad as u8, next_header]));
                self.seal(step, flags, plaintext);
            }
            6 => {
                if let Some(Sent { port, frame, sealed }) = self.earlier(input) {
                    self.push(port, frame, sealed);
                }
            }
            // A forgery, in or outside of what the ICV covers.
            7 => {
                let earlier = self.earlier(input);
                let (at, change) = (usize::from(input.word()), input.byte());
                if let Some(Sent { port, mut frame, .. }) = earlier.filter(|sent| !sent.frame.is_empty()) {
                    let at = at % frame.len();
                    frame[at] ^= change;
                    self.push(port, frame, false);
                }
            }
            _ => {
                self.process();
                let choice = input.byte();
                match choice & 7 {
                    0 => self.gateway.tunnel.outbound.replace(None),
                    1 => drop(self.gateway.engine.tables.sad.remove(SPI_TO_B)),
                    2 => self.gateway.change_network(|ports| ports[usize::from(choice >> 7)].up = false),
                    3 => {
                        self.gateway.change_network(|ports| ports[usize::from(choice >> 7)].addresses.clear())
                    }
                    4 => self.gateway.engine.tables.network.replace(None),
                    5 => {
                        self.setting.frames = usize::from(choice >> 3);
                        self.gateway.engine.frames = HeapFrames::new(self.setting.frames);
                        self.gateway.engine.frames.host = self.setting.host;
                    }
                    6 => {
                        let flags = input.byte();
                        let mut packet = bytes(input);
                        mend(&mut packet, flags & !3);
                        if flags & 0x80 != 0 {
                            set_source(&mut packet, |ipv6| SITE.inside(ipv6));
                        }
                        mend(&mut packet, flags & 3);
                        self.push(PortId::HOST, packet::frame(&packet), false);
                    }
                    _ => self.gateway.change_network(|_| ()),
                }
            }
        }
    }

    fn earlier(&self, input: &mut Input<'_>) -> Option<Sent> {
        let index = usize::from(input.byte());
        self.frames.get(index % self.frames.len().max(1)).cloned()
    }

    fn push(&mut self, port: PortId, frame: Vec<u8>, sealed: bool) {
        self.burst.push(self.frames.len());
        self.frames.push(Sent { port, frame, sealed });
    }

    /// Seals under a number 0 to 2^13 on, or one used before.
    fn seal(&mut self, step: u8, flags: u8, plaintext: Vec<u8>) {
        let step = match step {
            0x80.. => 0,
            0x40.. => u64::from(step & 0x3f) << 7,
            _ => u64::from(step),
        };
        self.sent += step;
        // The number 0 is never sent (RFC 4303 section 3.3.3), and a peer without ESN stops at 2^32 - 1.
        self.sent = self.sent.max(1);
        if !self.setting.options.esn {
            self.sent = self.sent.min(u64::from(u32::MAX));
        }
        let outer = self.sender.seal(self.sent, &plaintext);
        let outer = packet::with_traffic_class(outer, flags >> 6);
        self.sealed.insert(self.sent);
        self.plaintexts.push(plaintext);
        self.push(OUTSIDE, packet::frame(&outer), true);
    }

    /// Runs the burst that waits, and judges.
    fn process(&mut self) {
        let before: Vec<_> = self.burst.drain(..).map(|index| self.frames[index].clone()).collect();
        let mut frames = before.clone();
        let engine = &mut self.gateway.engine;
        let mut burst: Vec<_> =
            frames.iter_mut().map(|sent| Received { port: sent.port, frame: &mut sent.frame }).collect();
        engine.process(self.now, &mut burst);
        let mut outputs = Vec::new();
        engine.transmit(|output| {
            outputs.push((output.port, output.frame[..output.length].to_vec()));
            output.frame.fill(0);
        });
        let mut delivered = Vec::new();
        engine.deliver(|packet| delivered.push(packet.to_vec()));
        let handed_over: Vec<_> = engine.take_handed_over().collect();
        for (index, worker) in &handed_over {
            assert!(self.setting.handed_over && *worker == 1);
            assert_eq!(frames[*index].frame, before[*index].frame, "handed over, so not touched");
        }
        self.handed_over += handed_over.len() as u64;
        self.gateway.assert_balanced(self.handed_over);
        let clear = before.iter().filter(|sent| !sent.sealed);
        let clear: Vec<_> = clear.map(|sent| sent.frame.get(14..).unwrap_or_default()).collect();
        self.judge(&clear, &outputs);
        for packet in &delivered {
            self.judge_delivered(&clear, packet);
        }
        self.no_plaintext_left();
    }

    /// `clear`: the packets of the burst that were not sealed.
    fn judge(&mut self, clear: &[&[u8]], outputs: &[(PortId, Vec<u8>)]) {
        for (port, frame) in outputs {
            let packet = &frame[14..];
            let parsed = ip::parse(packet).expect("what is sent is a packet, checksum included");
            assert_eq!(parsed.total_length as usize, packet.len());
            let ether_type = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
            assert_eq!(frame[12..14], ether_type);
            assert!(parsed.ttl > 0);
            let mtus = [self.setting.options.inside_mtu, self.setting.options.outside_mtu];
            let mtu = mtus[usize::from(port.0)];
            if is_own_error(*port, &parsed) {
                let quote = packet.get(usize::from(parsed.payload_offset) + 8..).unwrap_or_default();
                assert!(carried(clear, quote), "it quotes what was received");
                let out = [Direction::Outbound];
                assert!(
                    *port == INSIDE || self.is_bypassed(&parsed, &out),
                    "clear text outside: {packet:02x?}"
                );
                continue;
            }
            assert!(parsed.total_length <= mtu, "{} bytes for {mtu}", parsed.total_length);
            match *port {
                // Our own pieces follow each other; a later one does not show its ports.
                OUTSIDE
                    if parsed.fragment != Fragment::Whole
                        && (self.joiner.is_waiting() || self.is_sealed(&parsed)) =>
                {
                    if parsed.fragment == Fragment::First && self.joiner.is_waiting() {
                        // What is sent already stays sent.
                        assert!(self.has_run_out(), "a packet never finished");
                        self.joiner = Joiner::default();
                    }
                    if let Some(whole) = self.joiner.join(packet) {
                        self.receive(&whole, clear);
                    }
                }
                OUTSIDE if self.is_sealed(&parsed) => self.receive(packet, clear),
                _ if self.is_bypassed(&parsed, &[Direction::Outbound, Direction::Inbound]) => {
                    assert!(carried(clear, body(packet, &parsed)), "what came in clear goes on in clear");
                }
                OUTSIDE => panic!("clear text outside: {packet:02x?}"),
                _ => self.decapsulated(packet, &parsed),
            }
        }
        // RFC 4303 section 3.4.3: each number at most once.
        let accepted = self.gateway.engine.counters().opened.load(Relaxed);
        assert!(accepted <= self.sealed.len() as u64, "a number was accepted twice");
    }

    /// What reaches the gateway's own stack is of the peer's and belongs there, or an error about what that stack sent, or
    /// came in clear where a policy lets it.
    fn judge_delivered(&self, clear: &[&[u8]], packet: &[u8]) {
        let parsed = ip::parse(packet).expect("what is delivered is a packet, checksum included");
        assert_eq!(parsed.total_length as usize, packet.len());
        let HostEnd { v4, v6 } = self.setting.host.expect("there is a way");
        if [IpAddr::from(v4), v6.into()].contains(&parsed.flow.source) {
            let quote = packet.get(usize::from(parsed.payload_offset) + 8..).unwrap_or_default();
            assert!(carried(clear, quote), "it quotes what was received");
            return;
        }
        let network = self.gateway.engine.tables.network.get().expect("a picture");
        assert!(network.is_local(parsed.flow.destination) && !network.is_local(parsed.flow.source));
        if self.is_bypassed(&parsed, &[Direction::Inbound]) {
            // UDP came in fragments, perhaps, and not all of them in this burst.
            let is_udp = parsed.flow.protocol == protocol::UDP;
            assert!(is_udp || carried(clear, body(packet, &parsed)), "not what came in");
            return;
        }
        self.decapsulated(packet, &parsed);
    }

    /// Whether the policy lets a packet that looks like this pass in clear in one of `directions`.
    fn is_bypassed(&self, packet: &IpPacket, directions: &[Direction]) -> bool {
        let Some(spd) = self.gateway.engine.tables.spd.get() else { return false };
        directions.iter().any(|direction| {
            spd.classify_linear(*direction, &packet.flow, packet.fragment)
                .is_some_and(|index| matches!(spd.policies[index].action, Action::Bypass))
        })
    }

    fn is_sealed(&self, packet: &IpPacket) -> bool {
        if self.setting.options.udp_port.is_some() {
            // Wherever the peer is by now: port and address are not under its ICV.
            let own = SITE.endpoint(self.setting.options.outer_ipv6);
            let from_port = matches!(packet.flow.upper, Upper::Ports { source: NAT_TRAVERSAL_PORT, .. });
            return packet.flow.protocol == protocol::UDP && packet.flow.source == own && from_port;
        }
        let ipv6 = self.setting.options.outer_ipv6;
        let endpoints = (SITE.endpoint(ipv6), SITE.peer().endpoint(ipv6));
        packet.flow.protocol == self.setting.options.protocol.number()
            && (packet.flow.source, packet.flow.destination) == endpoints
    }

    /// Whether there was no frame for something.
    fn has_run_out(&self) -> bool {
        self.gateway.drops().iter().any(|(reason, _)| *reason == DropReason::NoFrame)
    }

    /// The peer's view of our ESP or AH: the ICV is good, numbers ascend, and inside is what came from inside for it.
    fn receive(&mut self, packet: &[u8], clear: &[&[u8]]) {
        let next = self.last_received + 1;
        let (sequence, plaintext) = self.receiver.open((next >> 32) as u32, packet).expect("a good ICV");
        // Without frames for all of its fragments, a packet has had its number and is lost.
        assert!(sequence == next || sequence > next && self.has_run_out(), "numbers ascend one by one");
        self.last_received = sequence;
        let [rest @ .., pad_length, next_header] = &plaintext[..] else { panic!("a trailer") };
        let (inner, padding) = rest.split_at(rest.len() - usize::from(*pad_length));
        assert!(padding.iter().enumerate().all(|(index, byte)| index + 1 == usize::from(*byte)));
        let inside = ip::parse(inner).expect("a packet");
        assert_eq!(inside.total_length as usize, inner.len());
        assert_eq!(*next_header, if inside.flow.source.is_ipv4() { 4 } else { 41 });
        let site = |selector: &Selector| selector.matches(Direction::Outbound, &inside.flow, inside.fragment);
        assert!(networks(SITE).iter().any(site), "not for this tunnel");
        if is_own_error(INSIDE, &inside) {
            // About a packet of the peer's; of its header, TTL and ECN are no longer what they were.
            let quote = inner.get(usize::from(inside.payload_offset) + 8..).unwrap_or_default();
            let first = quote.first().copied().unwrap_or(0x60);
            let header = if first >> 4 == 4 { usize::from(first & 15) * 4 } else { 40 };
            let sealed: Vec<&[u8]> = self.plaintexts.iter().map(Vec::as_slice).collect();
            let quote = quote.get(header..).unwrap_or_default();
            assert!(carried(&sealed, quote) || carried(clear, quote), "it quotes what was received");
        } else {
            assert!(is_syn(inner, &inside) || carried(clear, body(inner, &inside)), "what came in goes out");
        }
    }

    /// What left the tunnel is what the peer put in, and belongs there.
    fn decapsulated(&self, packet: &[u8], parsed: &IpPacket) {
        let selectors = self.setting.options.selectors.clone().unwrap_or_else(|| networks(SITE));
        let means = |selector: &Selector| {
            // A later fragment may have been made here; the packet it was made of showed its ports.
            let later = parsed.fragment == Fragment::Later && parsed.version == IpVersion::V4;
            let upper = if later { UpperSelector::Any } else { selector.upper };
            Selector { upper, ..*selector }.matches(Direction::Inbound, &parsed.flow, parsed.fragment)
        };
        assert!(selectors.iter().any(means), "not what the SA is for: {packet:02x?}");
        let sealed: Vec<&[u8]> = self.plaintexts.iter().map(Vec::as_slice).collect();
        assert!(is_syn(packet, parsed) || carried(&sealed, body(packet, parsed)), "not what the peer sent");
    }

    /// Transmitted frames were wiped above, so what would be in the free ones is of packets that were dropped.
    fn no_plaintext_left(&mut self) {
        for frame in self.gateway.engine.frames.free() {
            assert!(frame[14..] == ZEROS[14..frame.len()], "left in a free frame: {:02x?}", &frame[..128]);
        }
    }
}

fn bytes(input: &mut Input<'_>) -> Vec<u8> {
    let length = usize::from(input.word() & 0x0fff);
    input.take(length).to_vec()
}

/// Whoever it was to be from, it is from `source` now.
fn set_source(packet: &mut [u8], source: impl Fn(bool) -> IpAddr) {
    let ipv6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    let (at, octets) = match source(ipv6) {
        IpAddr::V4(address) => (12, address.octets().to_vec()),
        IpAddr::V6(address) => (8, address.octets().to_vec()),
    };
    if let Some(field) = packet.get_mut(at..at + octets.len()) {
        field.copy_from_slice(&octets);
    }
}

/// What a random packet never gets right, as `flags` say: 1 the checksum, 2 the length, 4 addresses, 8 which.
fn mend(packet: &mut [u8], flags: u8) {
    let ipv6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    if packet.len() < if ipv6 { 40 } else { 20 } {
        return;
    }
    let length = packet.len() as u16;
    if flags & 4 != 0 {
        let (from, to) = match flags >> 3 & 7 {
            0 => (0, 1),
            1 => (1, 0),
            2 => (1, 2),
            3 => (2, 1),
            4 => (2, 5),
            5 => (0, 4),
            6 => (3, 1),
            _ => (6, 1),
        };
        let at = if ipv6 { 8 } else { 12 };
        let octets = [from, to].map(|index| match aims(ipv6)[index] {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        });
        let octets = octets.concat();
        packet[at..at + octets.len()].copy_from_slice(&octets);
    }
    if ipv6 {
        if flags & 2 != 0 {
            packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        }
        return;
    }
    if flags & 2 != 0 {
        packet[2..4].copy_from_slice(&length.to_be_bytes());
    }
    let header = usize::from(packet[0] & 15) * 4;
    if flags & 1 != 0 && (20..=packet.len()).contains(&header) {
        packet[10..12].fill(0);
        let sum = !(residue(&packet[..header]) as u16);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// An ICMP error in the gateway's own name.
fn is_own_error(port: PortId, packet: &IpPacket) -> bool {
    let own = [false, true].map(|ipv6| match port {
        INSIDE => SITE.inside(ipv6),
        _ => SITE.endpoint(ipv6),
    });
    matches!(packet.flow.protocol, protocol::ICMP | protocol::ICMPV6) && own.contains(&packet.flow.source)
}

/// What a router does not change.
fn body<'p>(packet: &'p [u8], parsed: &IpPacket) -> &'p [u8] {
    &packet[usize::from(parsed.header_length)..]
}

/// The MSS of a SYN may have been lowered.
fn is_syn(packet: &[u8], parsed: &IpPacket) -> bool {
    let flags = usize::from(parsed.payload_offset) + 13;
    parsed.flow.protocol == protocol::TCP && packet.get(flags).is_none_or(|flags| flags & 2 != 0)
}

/// Whether `body` is a stretch of one of `packets`.
fn carried(packets: &[&[u8]], body: &[u8]) -> bool {
    let found = |packet: &&&[u8]| {
        (0..=packet.len().saturating_sub(body.len())).step_by(4).any(|at| packet[at..].starts_with(body))
    };
    body.is_empty() || packets.iter().find(found).is_some()
}
