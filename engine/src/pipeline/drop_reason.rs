//! Why a packet was dropped: one closed table of name, /proc/net/xfrm_stat twin and sentence. The command
//! line, the reports and the tests iterate [`DropReason::ALL`].

macro_rules! drop_reasons {
    ($($variant:ident $name:literal $xfrm:expr, $sentence:literal;)*) => {
        /// The one reason of a dropped packet.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum DropReason { $(#[doc = $sentence] $variant,)* }

        impl DropReason {
            /// All of them, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name users see.
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }
            /// The counter of /proc/net/xfrm_stat that means the same, where there is one.
            pub const fn xfrm_stat(self) -> Option<&'static str> { match self { $(Self::$variant => $xfrm,)* } }
            /// The one with this name.
            pub fn named(name: &str) -> Option<Self> { Self::ALL.iter().copied().find(|known| known.name() == name) }
            /// One sentence for people.
            pub const fn explain(self) -> &'static str { match self { $(Self::$variant => $sentence,)* } }
        }
    };
}

impl DropReason {
    /// Packets that are for the engine itself and go no further: nothing is wrong with them.
    pub const fn is_intended(self) -> bool {
        matches!(self, Self::NatKeepalive | Self::Dummy | Self::IcmpNoted)
    }
}

drop_reasons! {
    Malformed "malformed" Some("XfrmInHdrError"), "The outer packet's headers contradict themselves or its length.";
    NotIp "not_ip" None, "A frame that is neither IPv4 nor IPv6 reached the engine.";
    Vlan "vlan" None, "A frame of a VLAN that no port has, under the cover.";
    NoState "no_state" Some("XfrmInNoStates"), "ESP or AH with an SPI or endpoint that no inbound SA has.";
    NatKeepalive "nat_keepalive" None, "A NAT keepalive (RFC 3948 section 2.3): swallowed as intended.";
    EspFragment "esp_fragment" None, "A fragment of an ESP or AH packet, while reassembly is switched off.";
    ReassemblyTimeout "reassembly_timeout" None, "A fragment of ESP, AH or our own whose datagram did not become whole in time.";
    ReassemblyMemory "reassembly_memory" None, "A fragment of ESP, AH or our own that made room for newer ones: all memory for them was in use.";
    ReassemblySource "reassembly_source" None, "A fragment of ESP, AH or our own that made room for newer ones: its source had too many datagrams unfinished.";
    ReassemblyFragments "reassembly_fragments" None, "A fragment of an ESP or AH packet, or our own, in more pieces than are put together.";
    ReassemblyOverlap "reassembly_overlap" None, "A fragment of an ESP or AH packet, or our own, with overlapping or contradicting pieces (RFC 5722): all of them go.";
    ReassemblyDuplicate "reassembly_duplicate" None, "A copy of a fragment of ESP, AH or our own that is there already.";
    ReassemblyInvalid "reassembly_invalid" Some("XfrmInHdrError"), "A fragment of ESP, AH or our own that is empty, no multiple of 8 bytes, or beyond 65,535.";
    EspTooShort "esp_too_short" Some("XfrmInHdrError"), "ESP shorter than its transform allows, or not a multiple of its block.";
    AhLength "ah_length" Some("XfrmInHdrError"), "AH cut short, or not of the length that its SA's ICV makes it.";
    AhHeaders "ah_headers" Some("XfrmInHdrError"), "IP options or extension headers that AH cannot cover: malformed, a fragment's, on an unfinished route, or over 1 KiB.";
    ReplayDuplicate "replay_duplicate" Some("XfrmInStateSeqError"), "A sequence number that was received before.";
    ReplayOld "replay_old" Some("XfrmInStateSeqError"), "A sequence number left of the anti-replay window.";
    ReplayImpossible "replay_impossible" Some("XfrmInStateSeqError"), "A sequence number no correct peer sends (zero, or outside the ESN space).";
    ReplayFloor "replay_floor" Some("XfrmInStateSeqError"), "An authentic packet beyond what is recorded as received: the record on disk has not kept up.";
    IcvFailed "icv_failed" Some("XfrmInStateProtoError"), "The integrity check failed.";
    BadPadLength "bad_pad_length" Some("XfrmInStateProtoError"), "An authenticated packet with a pad length beyond its payload.";
    BadPadding "bad_padding" Some("XfrmInStateProtoError"), "An authenticated packet whose padding is not 1, 2, 3, …";
    Dummy "dummy" None, "A dummy packet (next header 59): dropped as intended.";
    NextHeader "next_header" Some("XfrmInStateModeError"), "An authenticated packet whose next header is not the SA's mode.";
    InnerMalformed "inner_malformed" Some("XfrmInHdrError"), "An authenticated packet with a malformed inner packet.";
    EcnForbidden "ecn_forbidden" None, "Outer CE around inner Not-ECT (RFC 6040), or beside Not-ECT among fragments (RFC 3168).";
    InnerSource "inner_source" None, "An inner packet, or clear text to the gateway, that claims one of the gateway's own addresses as its source.";
    SelectorMismatch "selector_mismatch" Some("XfrmInTmplMismatch"), "The inner packet is not what its SA was agreed for.";
    Nesting "nesting" Some("XfrmInTmplMismatch"), "ESP or AH out of an SA that no tunnel goes through, or nested more than four deep.";
    PolicyMismatch "policy_mismatch" Some("XfrmInPolError"), "The policy for the inner packet names another tunnel, or none.";
    ClearText "clear_text" Some("XfrmInNoPols"), "Clear text that the policy protects arrived from outside.";
    PolicyDiscard "policy_discard" Some("XfrmOutPolBlock"), "A DISCARD policy, or no policy at all.";
    NoOutboundSa "no_outbound_sa" Some("XfrmOutNoStates"), "A PROTECT policy whose tunnel has no outbound SA.";
    TransportFragment "transport_fragment" None, "A fragment for a transport mode SA, which takes whole datagrams only.";
    IcmpNoted "icmp_noted" None, "An ICMP error from outside about a packet that a live SA sent: the path of its tunnel is what it says, as intended.";
    IcmpQuote "icmp_quote" Some("XfrmInTmplMismatch"), "An ICMP error out of an SA that was agreed neither for it nor, reversed, for the packet it quotes.";
    IcmpForged "icmp_forged" None, "An ICMP error from outside to the gateway that quotes nothing a live SA sent lately.";
    IcmpRefused "icmp_refused" None, "An ICMP error from outside of a type that is not accepted, or with a path MTU below the floor.";
    SequenceExhausted "sequence_exhausted" Some("XfrmOutStateSeqError"), "The outbound SA has no sequence numbers left.";
    LeaseExhausted "lease_exhausted" Some("XfrmOutStateSeqError"), "The next sequence number is beyond the lease on disk: the state directory has not kept up.";
    HardLifetime "hard_lifetime" Some("XfrmOutStateExpired"), "The SA is past its hard limit in packets, bytes or seconds: it needs a new key.";
    TtlExceeded "ttl_exceeded" None, "TTL or hop limit reached its end here.";
    TooBig "too_big" Some("XfrmOutError"), "Larger than the tunnel or the egress carries, and not to be fragmented.";
    NoRoute "no_route" Some("XfrmOutBundleGenError"), "No route to the destination.";
    NoProtectedRoute "no_protected_route" None, "The route of a protected packet leads out of an unprotected interface, or of one that is not steered.";
    NoHostPath "no_host_path" None, "A packet for the gateway itself in clear, or decrypted while there is no host path.";
    HostSource "host_source" None, "A packet in the host device that a policy lets out and whose source is not the gateway's own.";
    HostUnprotected "host_unprotected" None, "A packet in the host device that no policy means (multicast of the kernel's own is usual).";
    HostRefused "host_refused" None, "The gateway's own stack did not take a packet: the host device is down or gone.";
    NoNeighbour "no_neighbour" None, "The next hop did not answer, or too many packets were waiting for it.";
    PartialChecksum "partial_checksum" None, "The sender left the transport checksum to hardware (transmit offload): switch it off.";
    NoFrame "no_frame" None, "No free transmit frame: the egress is slower than the ingress.";
    NoLargeFrame "no_large_frame" None, "A packet of several buffers, and all rooms to put one together are taken.";
    HandOverFull "hand_over_full" None, "The worker that owns the SA has no room for it.";
    LinkDown "link_down" None, "The egress interface is down or gone.";
    TransmitFailed "transmit_failed" Some("XfrmOutError"), "The kernel refused the frame or never completed it.";
}
