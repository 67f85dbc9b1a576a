//! Two gateways in memory, joined by nothing but what a test carries across: A at 192.0.2.1 and
//! 2001:db8:f::1 with 10.1.0.0/16 and 2001:db8:1::/48 inside; B at 198.51.100.9 and 2001:db8:e::9 with
//! 10.2.0.0/16 and 2001:db8:2::/48.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

use adit_engine::control::settings::TfcSettings;
use adit_engine::crypto::key::{Key, KeyMaterial};
use adit_engine::crypto::sequence::SequenceCounter;
use adit_engine::crypto::{Authentication, Encryption, IvSource, Seal, Sealer, Suite};
use adit_engine::offline::Engine;
use adit_engine::pipeline::{DropReason, HostEnd, IcmpRules, Tables, reassembly};
use adit_engine::policy::spd::Fallback;
use adit_engine::policy::{Action, Fragmentation, Policy, Spd, Tunnel};
use adit_engine::route::{Network, NetworkBuilder, Port, PortId, RouteTarget, Side};
use adit_engine::sa::lifetime::Limits;
use adit_engine::sa::publish::Published;
use adit_engine::sa::selector::{AddressRange, Selector, UpperSelector};
use adit_engine::sa::spec::{InboundSpec, Mode, OutboundSpec, Protocol, SaSpec, UdpPorts, Workers};
use adit_engine::sa::{InboundSa, Lease, OutboundSa};
use adit_engine::transform::ecn::Ecn;
use adit_engine::transform::esp::Layout;
use adit_engine::transform::tunnel::{DontFragment, Dscp};
use adit_engine::wire::Spi;
use adit_engine::wire::ethernet::MacAddress;

/// The inside port of every gateway here.
pub const INSIDE: PortId = PortId(0);
/// The outside port.
pub const OUTSIDE: PortId = PortId(1);
/// The tunnel both gateways have.
pub const TUNNEL: &str = "site";
/// The SPI of packets from A to B.
pub const SPI_TO_B: Spi = Spi(0x00ab_cdef);
/// The SPI of packets from B to A.
pub const SPI_TO_A: Spi = Spi(0x00fe_dcba);

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Site {
    /// 192.0.2.1, 10.1.0.0/16.
    A,
    /// 198.51.100.9, 10.2.0.0/16.
    B,
}

/// The engine's end of a gateway's host path.
pub const HOST_END: HostEnd =
    HostEnd { v4: Ipv4Addr::new(169, 254, 173, 9), v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1) };

/// An address from its text.
pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Site {
    /// The other.
    pub fn peer(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The tunnel endpoint.
    pub fn endpoint(self, ipv6: bool) -> IpAddr {
        address(match (self, ipv6) {
            (Self::A, false) => "192.0.2.1",
            (Self::A, true) => "2001:db8:f::1",
            (Self::B, false) => "198.51.100.9",
            (Self::B, true) => "2001:db8:e::9",
        })
    }

    /// The gateway's address inside.
    pub fn inside(self, ipv6: bool) -> IpAddr {
        address(match (self, ipv6) {
            (Self::A, false) => "10.1.0.1",
            (Self::A, true) => "2001:db8:1::1",
            (Self::B, false) => "10.2.0.1",
            (Self::B, true) => "2001:db8:2::1",
        })
    }

    /// A host inside.
    pub fn host(self, ipv6: bool) -> IpAddr {
        address(match (self, ipv6) {
            (Self::A, false) => "10.1.0.2",
            (Self::A, true) => "2001:db8:1::2",
            (Self::B, false) => "10.2.0.3",
            (Self::B, true) => "2001:db8:2::3",
        })
    }

    /// The addresses inside.
    pub fn network(self, ipv6: bool) -> AddressRange {
        let (first, last) = match (self, ipv6) {
            (Self::A, false) => ("10.1.0.0", "10.1.255.255"),
            (Self::A, true) => ("2001:db8:1::", "2001:db8:1:ffff:ffff:ffff:ffff:ffff"),
            (Self::B, false) => ("10.2.0.0", "10.2.255.255"),
            (Self::B, true) => ("2001:db8:2::", "2001:db8:2:ffff:ffff:ffff:ffff:ffff"),
        };
        AddressRange { first: address(first), last: address(last) }
    }

    pub(crate) fn spi_inbound(self) -> Spi {
        match self {
            Self::A => SPI_TO_A,
            Self::B => SPI_TO_B,
        }
    }
}

/// What a test may choose of a gateway.
#[derive(Clone)]
pub struct Options {
    /// ESP or AH.
    pub protocol: Protocol,
    /// Tunnel, or transport between the hosts of [`Site::host`], whose addresses are the gateways' then.
    pub mode: Mode,
    /// What the tunnel is called.
    pub name: &'static str,
    /// The tunnel that this one goes through.
    pub through: Option<Box<Options>>,
    /// Another tunnel goes through this one: in transport mode, too, it is between the gateways.
    pub is_outer: bool,
    /// ESP in UDP: the peer's port.
    pub udp_port: Option<u16>,
    /// Where a NAT has the peer be, if not where it is.
    pub peer: Option<IpAddr>,
    /// Our port of ESP in UDP.
    pub local_udp_port: u16,
    /// Algorithms.
    pub suite: Suite,
    /// Keys: encryption with its salt, authentication.
    pub keys: (Vec<u8>, Vec<u8>),
    /// Outer version.
    pub outer_ipv6: bool,
    /// 64-bit sequence numbers.
    pub esn: bool,
    /// Window.
    pub replay_window: u32,
    /// Lifetime.
    pub limits: Limits,
    /// Last number, on both sides.
    pub last_sequence: u64,
    /// SAs under leases that grant nothing yet, and how often their keeper was rung for.
    pub leased: Option<Arc<AtomicU32>>,
    /// Lower MSS.
    pub clamp_mss: bool,
    /// Traffic-flow confidentiality.
    pub tfc: TfcSettings,
    /// When what is too large is fragmented.
    pub fragmentation: Fragmentation,
    /// Outer ECN.
    pub ecn: Ecn,
    /// Outer DF.
    pub dont_fragment: DontFragment,
    /// Who numbers.
    pub workers: Workers,
    /// MTU of the outside port.
    pub outside_mtu: u32,
    /// MTU of the inside port.
    pub inside_mtu: u32,
    /// What the SA carries; `None` for the two networks, both versions.
    pub selectors: Option<Vec<Selector>>,
    /// SPI of both directions of this SA; `None` for the defaults.
    pub spi: Option<Spi>,
    /// Policies in front of the tunnel's.
    pub policies: Vec<Arc<Policy>>,
    /// What to make of ICMP errors.
    pub icmp: IcmpRules,
    /// Fragments of ESP and AH; none is kept at first.
    pub reassembly: reassembly::Limits,
}

impl Options {
    /// AES-128-GCM over IPv4, MTU 1500.
    pub fn new() -> Self {
        Self::with_suite(suite(Encryption::Aes128Gcm, Authentication::None))
    }

    /// `suite` with keys of the right lengths.
    pub fn with_suite(suite: Suite) -> Self {
        let key =
            |length: usize, step: u8| (0..length as u8).map(|index| (index + 1).wrapping_mul(step)).collect();
        Self {
            protocol: Protocol::Esp,
            mode: Mode::Tunnel,
            name: TUNNEL,
            through: None,
            is_outer: false,
            udp_port: None,
            peer: None,
            local_udp_port: 4500,
            suite,
            keys: (key(suite.encryption_key_length(), 37), key(suite.authentication_key_length(), 91)),
            outer_ipv6: false,
            esn: false,
            replay_window: 1024,
            limits: Limits::default(),
            last_sequence: 0,
            leased: None,
            clamp_mss: true,
            tfc: TfcSettings::default(),
            fragmentation: Fragmentation::Before,
            ecn: Ecn::Copy,
            dont_fragment: DontFragment::Copy,
            workers: Workers::One,
            outside_mtu: 1500,
            inside_mtu: 1500,
            selectors: None,
            spi: None,
            policies: Vec::new(),
            icmp: IcmpRules::default(),
            reassembly: reassembly::Limits::OFF,
        }
    }

    /// The keys once more (they are not to be cloned).
    pub fn key_material(&self) -> KeyMaterial {
        let key = |bytes: &[u8]| Key::new(bytes.to_vec().into_boxed_slice().into());
        KeyMaterial { encryption: key(&self.keys.0), authentication: key(&self.keys.1) }
    }

    /// The endpoint of `site`.
    pub fn endpoint(&self, site: Site) -> IpAddr {
        match self.mode {
            Mode::Tunnel => site.endpoint(self.outer_ipv6),
            Mode::Transport(_) if self.is_outer => site.endpoint(self.outer_ipv6),
            Mode::Transport(_) => site.host(self.outer_ipv6),
        }
    }

    /// What `site` knows its peer by.
    fn remote(&self, site: Site) -> IpAddr {
        self.peer.unwrap_or_else(|| self.endpoint(site.peer()))
    }

    /// What the policy of `site` protects.
    fn protected(&self, site: Site) -> Vec<Selector> {
        match self.mode {
            Mode::Tunnel => networks(site),
            Mode::Transport(_) => vec![Selector {
                local: AddressRange::single(self.endpoint(site)),
                remote: AddressRange::single(self.remote(site)),
                protocol: None,
                upper: UpperSelector::Any,
            }],
        }
    }

    fn sa(&self, site: Site, spi: Spi) -> SaSpec {
        let spec = SaSpec {
            tunnel: self.name.into(),
            spi: self.spi.unwrap_or(spi),
            protocol: self.protocol,
            mode: self.mode,
            udp: self.udp_port.and_then(|remote| UdpPorts::new(self.local_udp_port, remote)),
            suite: self.suite,
            local: self.endpoint(site),
            remote: self.remote(site),
            esn: self.esn,
            selectors: self.selectors.clone().unwrap_or_else(|| self.protected(site)),
            limits: self.limits,
        };
        spec.validate().unwrap();
        spec
    }

    fn lease(&self) -> Option<Arc<Lease>> {
        let rung = self.leased.clone()?;
        let bell = move || {
            rung.fetch_add(1, Relaxed);
        };
        Some(Arc::new(Lease::starting_after(self.last_sequence, Box::new(bell))))
    }

    /// The inbound SA of `site`.
    pub fn inbound(&self, site: Site) -> InboundSa {
        let spec = InboundSpec {
            sa: self.sa(site, site.spi_inbound()),
            replay_window: self.replay_window,
            last_sequence: self.last_sequence,
        };
        InboundSa::under(self.lease(), spec, &self.key_material()).unwrap()
    }

    /// The tunnel of `site`, and those that it goes through.
    pub fn tunnel(&self, site: Site) -> Arc<Tunnel> {
        let outbound = self.outbound(site);
        Arc::new(Tunnel {
            name: self.name.into(),
            local: self.endpoint(site),
            remote: self.remote(site),
            mode: self.mode,
            udp: outbound.spec.sa.udp,
            clamp_mss: self.clamp_mss,
            tfc: self.tfc.runtime(),
            through: self.through.as_ref().map(|outer| outer.tunnel(site)),
            fragmentation: self.fragmentation,
            path: Arc::default(),
            outbound: Published::new(Some(Arc::new(outbound))),
        })
    }

    /// The outbound SA of `site`.
    pub fn outbound(&self, site: Site) -> OutboundSa {
        let spec = OutboundSpec {
            sa: self.sa(site, site.peer().spi_inbound()),
            workers: self.workers,
            ttl: 64,
            dscp: Dscp::Copy,
            ecn: self.ecn,
            dont_fragment: self.dont_fragment,
            keepalive_seconds: 20,
            last_sequence: self.last_sequence,
        };
        OutboundSa::under(self.lease(), spec, &self.key_material()).unwrap()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

/// A suite with its default ICV.
pub fn suite(encryption: Encryption, authentication: Authentication) -> Suite {
    Suite::new(encryption, authentication, None).unwrap()
}

/// Selectors between the networks of `site` and its peer, both versions.
pub fn networks(site: Site) -> Vec<Selector> {
    [false, true]
        .map(|ipv6| Selector {
            local: site.network(ipv6),
            remote: site.peer().network(ipv6),
            protocol: None,
            upper: UpperSelector::Any,
        })
        .to_vec()
}

/// A policy for both directions.
pub fn policy(name: &str, selectors: Vec<Selector>, action: Action) -> Arc<Policy> {
    Arc::new(Policy {
        name: name.into(),
        outbound: true,
        inbound: true,
        selectors,
        action,
        packets: 0.into(),
    })
}

/// One gateway.
pub struct Gateway {
    /// Its only worker.
    pub engine: Engine,
    /// Its tunnel.
    pub tunnel: Arc<Tunnel>,
    /// Which it is.
    pub site: Site,
    options: Options,
}

impl Gateway {
    /// A gateway with one tunnel, its SAs and its policy.
    pub fn new(site: Site, options: &Options) -> Self {
        Self::over(Arc::new(Tables::new(options.reassembly, options.icmp)), site, options)
    }

    /// As [`Gateway::new`], over tables that may have served another gateway with the same SPI, which is gone.
    pub fn over(tables: Arc<Tables>, site: Site, options: &Options) -> Self {
        let tunnel = options.tunnel(site);
        let mut policies = options.policies.clone();
        policies.push(policy("site", options.protected(site), Action::Protect(Arc::clone(&tunnel))));
        for layer in std::iter::successors(Some(options), |options| options.through.as_deref()) {
            let inbound = layer.inbound(site);
            tables.sad.remove(inbound.spec.sa.spi);
            tables.sad.insert(Arc::new(inbound)).unwrap();
        }
        tables.spd.replace(Some(Arc::new(Spd::new(policies, Fallback::Kernel, 1))));
        tables.network.replace(Some(Arc::new(network(site, options))));
        let engine = Engine::new(tables, 0, IvSource::from_seed([7; 32]));
        Self { engine, tunnel, site, options: options.clone() }
    }

    /// The same with a way to the gateway's own stack.
    #[must_use]
    pub fn with_host(mut self) -> Self {
        self.engine.frames.host = Some(HOST_END);
        self
    }

    /// The pair.
    pub fn pair(options: &Options) -> (Self, Self) {
        (Self::new(Site::A, options), Self::new(Site::B, options))
    }

    /// The inbound SA in its table.
    pub fn inbound_sa(&self) -> Arc<InboundSa> {
        self.engine.tables.sad.list().pop().expect("an inbound SA")
    }

    /// Another picture of the network, changed by `change`.
    pub fn change_network(&self, change: impl FnOnce(&mut Vec<Port>)) {
        let mut builder_ports = ports(self.site, &self.options);
        change(&mut builder_ports);
        let picture = network_of(self.site, builder_ports, self.options.mode);
        self.engine.tables.network.replace(Some(Arc::new(picture)));
    }

    /// Sends IP packets in by `port`; what comes out, as (port, IP packet), after the books were balanced.
    pub fn run(&mut self, port: PortId, packets: &[Vec<u8>]) -> Vec<(PortId, Vec<u8>)> {
        let frames = packets.iter().map(|packet| (port, super::packet::frame(packet))).collect();
        let sent = self.run_frames(frames);
        sent.into_iter().map(|(port, frame)| (port, super::packet::unframe(&frame).to_vec())).collect()
    }

    /// As [`Gateway::run`], whole frames in and out.
    pub fn run_frames(&mut self, frames: Vec<(PortId, Vec<u8>)>) -> Vec<(PortId, Vec<u8>)> {
        let sent = self.engine.run(0, frames);
        self.assert_balanced(0);
        sent
    }

    /// Received and originated = transmitted, delivered, absorbed, dropped, waiting and handed over; no frame is out.
    pub fn assert_balanced(&self, handed_over: u64) {
        let counters = self.engine.counters();
        let came = counters.received.load(Relaxed) + counters.originated.load(Relaxed);
        let dropped: u64 = counters.dropped.iter().map(|count| count.load(Relaxed)).sum();
        let waiting = self.engine.tables.reassembly.held();
        let on =
            [&counters.transmitted, &counters.delivered, &counters.absorbed].map(|count| count.load(Relaxed));
        let went = on.iter().sum::<u64>() + dropped + waiting + handed_over;
        assert_eq!(came, went, "the books do not balance: {:?}", self.drops());
        assert_eq!(self.engine.frames.out(), 0, "frames were lost");
    }

    /// Every drop so far.
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        let counters = &self.engine.counters().dropped;
        let counts = DropReason::ALL.iter().map(|&reason| (reason, counters[reason as usize].load(Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// Asserts that one packet, in by `port`, is dropped for exactly this reason, and nothing else happens.
    pub fn assert_drops(&mut self, port: PortId, packet: &[u8], reason: DropReason) {
        self.assert_drops_frame(port, super::packet::frame(packet), reason);
    }

    /// As [`Gateway::assert_drops`], for a whole frame.
    pub fn assert_drops_frame(&mut self, port: PortId, frame: Vec<u8>, reason: DropReason) {
        let before = self.drops();
        let sent = self.run_frames(vec![(port, frame)]);
        let mut expected = before;
        match expected.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => expected.push((reason, 1)),
        }
        expected.sort_by_key(|(reason, _)| *reason as u8);
        assert_eq!(self.drops(), expected);
        assert_eq!(sent, [], "dropped as {reason:?}, yet something went out");
    }
}

/// The two ports of `site`.
fn ports(site: Site, options: &Options) -> Vec<Port> {
    let port = |name: &str, side, mac, mtu, addresses| Port {
        name: name.into(),
        side,
        ifindex: 1,
        mac: MacAddress([2, 0, 0, 0, 1, mac]),
        mtu,
        up: true,
        addresses,
        vlan: None,
    };
    vec![
        port(
            "inside",
            Side::Protected,
            1,
            options.inside_mtu,
            [false, true].map(|v6| site.inside(v6)).to_vec(),
        ),
        port(
            "outside",
            Side::Unprotected,
            2,
            options.outside_mtu,
            [false, true].map(|v6| site.endpoint(v6)).to_vec(),
        ),
    ]
}

/// Networks on their links, the default route out of the outside port to the peer.
fn network(site: Site, options: &Options) -> Network {
    network_of(site, ports(site, options), options.mode)
}

fn network_of(site: Site, ports: Vec<Port>, mode: Mode) -> Network {
    let mut builder = NetworkBuilder::new();
    for port in ports {
        builder.port(port);
    }
    for (ipv6, any, length, default) in [(false, "0.0.0.0", 16, 0), (true, "::", 48, 0)] {
        let peer = site.peer().endpoint(ipv6);
        builder.route(site.network(ipv6).first, length, 0, RouteTarget::OnLink(INSIDE));
        builder.route(address(any), default, 0, RouteTarget::Gateway(OUTSIDE, peer));
        builder.neighbour(OUTSIDE, peer, MacAddress(PEER_MAC));
        builder.neighbour(INSIDE, site.host(ipv6), MacAddress(super::packet::HOST_MAC));
        if let Mode::Transport(_) = mode {
            builder.local(site.host(ipv6));
        }
    }
    // Each picture is another, as the mirror's are.
    static GENERATION: AtomicU64 = AtomicU64::new(1);
    builder.build(GENERATION.fetch_add(1, Relaxed))
}

/// The peer's address on the outside link.
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];

/// A peer that holds the keys and puts into ESP whatever it likes.
pub struct Peer {
    sealer: Sealer,
    layout: Layout,
    ivs: IvSource,
    /// Outer source.
    pub source: IpAddr,
    /// Outer destination.
    pub destination: IpAddr,
    /// SPI it writes.
    pub spi: Spi,
}

impl Peer {
    /// The peer of `site`.
    pub fn of(site: Site, options: &Options) -> Self {
        Self {
            sealer: Sealer::new(options.suite, &options.key_material(), options.esn).unwrap(),
            layout: Layout::new(&options.suite),
            ivs: IvSource::from_seed([9; 32]),
            source: options.endpoint(site.peer()),
            destination: options.endpoint(site),
            spi: options.spi.unwrap_or(site.spi_inbound()),
        }
    }

    /// An IP packet with `payload` in ESP under number `sequence`.
    pub fn seal(&mut self, sequence: u64, next_header: u8, payload: &[u8]) -> Vec<u8> {
        let sequence =
            SequenceCounter::starting_after(sequence - 1).take(1, u64::MAX).unwrap().next().unwrap();
        let mut esp = vec![0; self.layout.esp_length(payload.len())];
        let mut burst = [Seal { esp: &mut esp, payload, next_header, sequence }];
        self.sealer.seal(self.spi, &mut burst, &mut self.ivs);
        super::packet::ip(self.source, self.destination, 50, &esp)
    }
}
