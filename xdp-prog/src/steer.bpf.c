/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * adit in the kernel: `steer` decides on arrival which frames the engine gets, `guard` holds back on departure
 * what must not cross the boundary in clear, either way: it is the second line, for whatever came by an interface
 * where `steer` is not, or not yet. One rule stands above the rest: a frame that the policy would PROTECT or DISCARD
 * is never given to the kernel. So what cannot be read is dropped, and so is what nobody listens for.
 *
 * Loaded once for every interface, with maps of its own (`xsks_map`, `counters`) and maps that all share.
 */
#include "bpf.h"
#include "packet.h"
#include "steer.h"

const char license_string[] SEC("license") = "Dual MIT/GPL";

/* Written by the loader before the kernel sees the programs; the verifier removes the other side's branches. */
volatile const __u32 port_side = ADIT_SIDE_UNPROTECTED;

/* This interface's sockets by receive queue. One map for two interfaces would deliver to the wrong device. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, ADIT_QUEUES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} xsks_map SEC(".maps");

/* The VLANs of this interface that are ports of their own, and their sides. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ADIT_VLANS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} vlans SEC(".maps");

/* This interface's frames by outcome. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ADIT_OUTCOME_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* Covers: prefix -> union of ADIT_PROTECT, ... of every selector that contains it. */
#define COVER(name, prefix)                                                                                            \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);                                                                   \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
		__uint(max_entries, ADIT_COVER_PREFIXES_MAX);                                                          \
		__type(key, struct prefix);                                                                            \
		__type(value, __u32);                                                                                  \
	} name SEC(".maps")

COVER(cover_local4, adit_prefix4);
COVER(cover_local6, adit_prefix6);
COVER(cover_remote4, adit_prefix4);
COVER(cover_remote6, adit_prefix6);

/* The gateway's own addresses, of every interface. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ADIT_OWN_ADDRESSES_MAX);
	__type(key, __u8[4]);
	__type(value, __u8);
} own_addresses4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ADIT_OWN_ADDRESSES_MAX);
	__type(key, __u8[16]);
	__type(value, __u8);
} own_addresses6 SEC(".maps");

/* SPIs of inbound SAs, as on the wire: one space for ESP and AH. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ADIT_SPIS_MAX);
	__type(key, __u32);
	__type(value, __u8);
} spis SEC(".maps");

/*
 * When each processor may next let a packet of either kind through: nanoseconds, 0 for never. The engine drops it too, and
 * tells of it (RFC 4301 section 4.4.1, RFC 4303 section 4). One a second will do; a flood costs a look at the clock.
 */
enum told { TOLD_UNKNOWN_SPI, TOLD_CLEAR_TEXT };
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ADIT_TOLD_KINDS);
	__type(key, __u32);
	__type(value, __u64);
} told SEC(".maps");
_Static_assert(TOLD_CLEAR_TEXT + 1 == ADIT_TOLD_KINDS, "the engine sets them all");

/*
 * Datagrams to us whose first fragment the engine has: what their later fragments do not say of themselves. Fragments
 * with the same addresses mostly come in order, and by one queue, whatever they are part of.
 */
struct datagram {
	__u8 source[16];
	__u8 destination[16];
	__u32 identification;
	__u32 version;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, ADIT_DATAGRAMS_MAX);
	__type(key, struct datagram);
	__type(value, __u8);
} datagrams SEC(".maps");

/* Ports of ours besides 4500 that IKE and ESP in UDP come to, as on the wire. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ADIT_NAT_PORTS_MAX);
	__type(key, __u16);
	__type(value, __u8);
} nat_ports SEC(".maps");

INLINE __u32 local_flags(const struct packet *packet, const struct adit_prefix6 *address)
{
	__u32 *flags = packet->version == 6 ? bpf_map_lookup_elem(&cover_local6, address)
					    : bpf_map_lookup_elem(&cover_local4, address);
	return flags ? *flags : 0;
}

INLINE __u32 remote_flags(const struct packet *packet, const struct adit_prefix6 *address)
{
	__u32 *flags = packet->version == 6 ? bpf_map_lookup_elem(&cover_remote6, address)
					    : bpf_map_lookup_elem(&cover_remote4, address);
	return flags ? *flags : 0;
}

INLINE __u32 local_cover(const struct packet *packet, const struct adit_prefix6 *address)
{
	return local_flags(packet, address) & ~ADIT_BYPASS;
}

INLINE __u32 remote_cover(const struct packet *packet, const struct adit_prefix6 *address)
{
	return remote_flags(packet, address) & ~ADIT_BYPASS;
}

INLINE int is_own(const struct packet *packet, const struct adit_prefix6 *address)
{
	return packet->version == 6 ? bpf_map_lookup_elem(&own_addresses6, address->address) != 0
				    : bpf_map_lookup_elem(&own_addresses4, address->address) != 0;
}

/*
 * The side a frame is on: of its VLAN, where that is a port of its own, or else of the interface. False for a VLAN that
 * is no port: the engine does not take its frames. Only priority tags: the interface itself.
 */
INLINE int find_side(const struct packet *packet, __u32 *side)
{
	*side = port_side;
	if (!packet->tags)
		return 1;
	__u32 key = ADIT_VLAN_KEY(packet->outer_vlan, packet->inner_vlan);
	if (packet->odd_tags)
		return 0;
	if (!key)
		return 1;
	__u32 *found = bpf_map_lookup_elem(&vlans, &key);
	if (!found)
		return 0;
	*side = *found;
	return 1;
}

INLINE int is_nat_port(__u16 port)
{
	return port == htons(PORT_IKE_NAT) || bpf_map_lookup_elem(&nat_ports, &port) != 0;
}

INLINE void count(__u32 outcome)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &outcome);
	if (counter)
		*counter += 1;
}

/*
 * What the kernel never forwards, and needs. (Neighbour discovery it does forward, like any packet, if it is neither
 * to the link nor to us: see `decide`.) IPv4 link-local is the exception in both: Linux does forward it, and
 * people number tunnels with it, so where a selector names it the policy has the say.
 */
INLINE int is_link_business(const struct packet *packet)
{
	if (is_multicast(packet))
		return 1;
	if (!is_link_local(packet))
		return 0;
	return packet->version == 6 || !((remote_cover(packet, &packet->destination) |
					   local_cover(packet, &packet->destination)) & ADIT_NAMED);
}

INLINE struct datagram datagram_of(const struct packet *packet)
{
	struct datagram datagram = {.identification = packet->identification, .version = packet->version};
	__builtin_memcpy(datagram.source, packet->source.address, sizeof(datagram.source));
	__builtin_memcpy(datagram.destination, packet->destination.address, sizeof(datagram.destination));
	return datagram;
}

/* Whether the engine is to tell of this packet, which is dropped either way. */
INLINE int is_to_be_told(enum told kind, const struct packet *packet)
{
	const __u64 second = 1000000000;
	__u32 index = kind;
	__u64 *next = bpf_map_lookup_elem(&told, &index);
	if (packet->fragment != WHOLE || !next || !*next)
		return 0;
	__u64 now = bpf_ktime_get_coarse_ns();
	if (now < *next)
		return 0;
	*next = now + second;
	return 1;
}

/* ESP or AH to one of our addresses; which of the two the SA is for, the engine looks at. */
INLINE enum adit_outcome decide_spi(const __u32 *spi, void *data_end, const struct packet *packet)
{
	if ((void *)(spi + 1) > data_end)
		return ADIT_drop_malformed;
	__u32 key = *spi;
	if (!bpf_map_lookup_elem(&spis, &key))
		return is_to_be_told(TOLD_UNKNOWN_SPI, packet) ? ADIT_engine_esp : ADIT_drop_unknown_spi;
	if (packet->fragment == WHOLE)
		return ADIT_engine_esp;
	struct datagram datagram = datagram_of(packet);
	__u8 there = 1;
	bpf_map_update_elem(&datagrams, &datagram, &there, BPF_ANY);
	return ADIT_engine_fragment;
}

/* A later fragment to one of our addresses: the engine's, if it is of ESP or AH, or the engine has the first one. */
INLINE int is_engine_fragment(const struct packet *packet)
{
	if (packet->fragment != LATER_FRAGMENT)
		return 0;
	if (packet->protocol == PROTOCOL_ESP || packet->protocol == PROTOCOL_AH)
		return 1;
	struct datagram datagram = datagram_of(packet);
	return bpf_map_lookup_elem(&datagrams, &datagram) != 0;
}

/* memcmp would be a call, and there is nobody to call. */
INLINE int is_same(const __u8 *one, const __u8 *other, int length)
{
	__u8 difference = 0;
#pragma unroll
	for (int i = 0; i < length; i++)
		difference |= one[i] ^ other[i];
	return !difference;
}

/*
 * An ICMP error to us about ESP or AH, also in UDP, that we sent: the kernel knows nothing of that. Of UDP it must quote
 * enough to be told from IKE, whose errors are the daemon's.
 */
INLINE int is_error_about_ipsec(void *data, void *data_end, const struct packet *packet)
{
	void *message = transport(data, packet);
	struct icmp_error *error = HEADER(icmp_error, message, data_end, 0);
	if (packet->fragment != WHOLE || !error)
		return 0;

	__u8 protocol;
	__u32 offset = sizeof(*error);
	if (packet->version == 4) {
		struct ipv4 *about = HEADER(ipv4, message, data_end, sizeof(*error));
		/* Destination unreachable, time exceeded, parameter problem. */
		if (packet->protocol != PROTOCOL_ICMP || (error->type != 3 && error->type != 11 && error->type != 12))
			return 0;
		if (!about || !is_same(about->source, packet->destination.address, 4))
			return 0;
		protocol = about->protocol;
		offset += (about->version_ihl & 15) * 4;
	} else {
		struct ipv6 *about = HEADER(ipv6, message, data_end, sizeof(*error));
		if (packet->protocol != PROTOCOL_ICMPV6 || error->type < 1 || error->type > 4)
			return 0;
		if (!about || !is_same(about->source, packet->destination.address, 16))
			return 0;
		protocol = about->next_header;
		offset += sizeof(*about);
		if (protocol == PROTOCOL_FRAGMENT) {
			struct ipv6_fragment *fragment = HEADER(ipv6_fragment, message, data_end, offset);
			if (!fragment)
				return 0;
			protocol = fragment->next_header;
			offset += sizeof(*fragment);
		}
	}
	if (protocol == PROTOCOL_ESP || protocol == PROTOCOL_AH)
		return 1;
	struct udp *udp = HEADER(udp, message, data_end, offset);
	if (protocol != PROTOCOL_UDP || !udp || !is_nat_port(udp->source))
		return 0;
	__u32 *marker = (void *)(udp + 1);
	return (void *)(marker + 1) <= data_end && *marker != 0;
}

/* UDP to one of our addresses: IKE, ESP in UDP, or `ADIT_pass_own` for neither. */
INLINE enum adit_outcome decide_udp(void *data, void *data_end, const struct packet *packet)
{
	struct udp *udp = HEADER(udp, transport(data, packet), data_end, 0);
	if (!udp)
		return ADIT_drop_malformed;
	if (udp->destination == htons(PORT_IKE))
		return ADIT_pass_ike;
	if (!is_nat_port(udp->destination))
		return ADIT_pass_own;

	/* RFC 3948 section 2.3: a NAT keepalive is the one octet 0xff. The engine swallows it: nobody else wants it. */
	__u8 *octet = (void *)(udp + 1);
	if (udp->length == htons(sizeof(*udp) + 1))
		return (void *)(octet + 1) <= data_end && *octet == 0xff ? ADIT_engine_esp : ADIT_drop_malformed;
	/* Section 2.2: IKE begins with a Non-ESP Marker of four zero octets, where ESP has its SPI. */
	__u32 *marker = (void *)(udp + 1);
	if (ntohs(udp->length) < sizeof(*udp) + sizeof(*marker) || (void *)(marker + 1) > data_end)
		return ADIT_drop_malformed;
	if (*marker == 0)
		return ADIT_pass_ike;
	return decide_spi(marker, data_end, packet);
}

/* To one of the gateway's own addresses. */
INLINE enum adit_outcome decide_own(void *data, void *data_end, const struct packet *packet, __u32 side)
{
	if (!packet->protocol_known)
		return ADIT_drop_malformed;
	if (is_engine_fragment(packet))
		return ADIT_engine_fragment;
	if (side == ADIT_SIDE_UNPROTECTED && is_error_about_ipsec(data, data_end, packet))
		return ADIT_engine_icmp;
	if (packet->protocol == PROTOCOL_ESP)
		return decide_spi(transport(data, packet), data_end, packet);
	/* RFC 4302 section 2: next header, length and reserved come first. */
	if (packet->protocol == PROTOCOL_AH)
		return decide_spi(transport(data, packet) + AH_SPI_OFFSET, data_end, packet);
	if (packet->protocol == PROTOCOL_UDP && packet->fragment != LATER_FRAGMENT) {
		/* IKE goes before the cover: a selector that contains the peer must not cut off the negotiation. */
		enum adit_outcome outcome = decide_udp(data, data_end, packet);
		if (outcome != ADIT_pass_own)
			return outcome;
	}

	/* Selectors reversed: what a peer should have sent protected. */
	__u32 source = remote_flags(packet, &packet->source);
	__u32 destination = local_flags(packet, &packet->destination);
	if (!(source & ~ADIT_BYPASS) || !(destination & ~ADIT_BYPASS))
		return ADIT_pass_own;
	/*
	 * From outside that is the end of it, unless a policy may mean it to come in clear: the engine knows, and has a
	 * way to us. Inside, remote prefixes that contain our own networks are common (10.0.0.0/8, everything), and a
	 * neighbour there who speaks to the gateway crosses no boundary. Only one who claims an address that can be
	 * nowhere but behind a peer is refused.
	 */
	if (side == ADIT_SIDE_UNPROTECTED)
		return source & destination & ADIT_BYPASS || is_to_be_told(TOLD_CLEAR_TEXT, packet) ? ADIT_engine_inbound_clear
												    : ADIT_drop_clear_text;
	return (source & ADIT_NAMED) && !local_cover(packet, &packet->source) ? ADIT_drop_clear_text : ADIT_pass_own;
}

INLINE enum adit_outcome decide(void *data, void *data_end, const struct packet *packet, __u32 side)
{
	if (is_link_business(packet))
		return ADIT_pass_link;
	if (is_own(packet, &packet->destination)) {
		if (is_neighbour_discovery(data, data_end, packet))
			return ADIT_pass_link;
		return decide_own(data, data_end, packet, side);
	}
	if (side == ADIT_SIDE_PROTECTED)
		return remote_cover(packet, &packet->destination) ? ADIT_engine_outbound : ADIT_pass_outside;
	if (remote_cover(packet, &packet->source) && local_cover(packet, &packet->destination))
		return ADIT_engine_inbound_clear;
	return ADIT_pass_outside;
}

SEC("xdp.frags")
int steer(struct xdp_md *ctx)
{
	/* With multi-buffer, data_end is the end of the first buffer, which holds all headers we read. */
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct packet packet = {};
	__u32 outcome = ADIT_drop_malformed;
	__u32 side;
	int is_port = 1;

	switch (parse(data, data_end, &packet)) {
	case PARSED_NOT_IP:
		outcome = ADIT_pass_not_ip;
		break;
	case PARSED_TOO_MANY_TAGS:
		outcome = ADIT_drop_vlan;
		break;
	case PARSED_MALFORMED:
		break;
	case PARSED_IP:
		is_port = find_side(&packet, &side);
		outcome = decide(data, data_end, &packet, side);
		break;
	}

	long verdict = XDP_PASS;
	if (outcome >= ADIT_FIRST_DROP) {
		verdict = XDP_DROP;
	} else if (outcome >= ADIT_FIRST_ENGINE && !is_port) {
		outcome = ADIT_drop_vlan;
		verdict = XDP_DROP;
	} else if (outcome >= ADIT_FIRST_ENGINE) {
		/* The last argument is the verdict when there is no socket: a dead engine drops. */
		verdict = bpf_redirect_map(&xsks_map, ctx->rx_queue_index, XDP_DROP);
		if (verdict != XDP_REDIRECT)
			outcome = ADIT_drop_no_socket;
	}
	count(outcome);
	return verdict;
}

/* Goes on to whoever else is on this hook; TC_ACT_OK would end the chain. */
#define GUARD_NEXT (-1)
#define GUARD_DROP 2
/* Enough for every header that a decision reads. */
#define GUARD_PULL_BYTES 512
/* The guard is for PROTECT: what DISCARD means, `steer` and the engine see to. */
#define GUARDED (ADIT_PROTECT | ADIT_PROTECT_EVERYWHERE)

/*
 * IKE of this gateway's own daemon: from one of our addresses and ports. (A first fragment has the ports; later
 * ones, where a selector names the peer itself, do not pass: IKE fragments by itself, RFC 7383.)
 */
INLINE int is_own_ike(void *data, void *data_end, const struct packet *packet)
{
	if (!packet->protocol_known || packet->protocol != PROTOCOL_UDP || packet->fragment == LATER_FRAGMENT)
		return 0;
	struct udp *udp = HEADER(udp, transport(data, packet), data_end, 0);
	if (!udp || (udp->source != htons(PORT_IKE) && !is_nat_port(udp->source)))
		return 0;
	return is_own(packet, &packet->source);
}

/* Leaving for outside: what the policy means to be protected from here on. */
INLINE enum adit_outcome decide_guard_outward(void *data, void *data_end, const struct packet *packet)
{
	__u32 destination = remote_cover(packet, &packet->destination);
	if (!(destination & GUARDED))
		return ADIT_guard_pass;
	if (packet->protocol_known && (packet->protocol == PROTOCOL_ESP || packet->protocol == PROTOCOL_AH))
		return ADIT_guard_pass_ipsec;
	if (is_own_ike(data, data_end, packet))
		return ADIT_guard_pass_ipsec;
	/* A selector names the destination: whoever sends, also after source NAT. */
	if (destination & ADIT_PROTECT)
		return ADIT_guard_drop_clear_text;
	/* It means everything, the gateway's own business outside included: the source decides. */
	if (local_cover(packet, &packet->source) & GUARDED)
		return ADIT_guard_drop_clear_text;
	return ADIT_guard_pass;
}

/*
 * Leaving for inside: selectors reversed, both of them, as for what arrives from outside. The engine's own frames
 * leave by AF_XDP and are not seen here, so this is clear text that never met the policy (RFC 4301 section 5.2).
 * ESP is no exception: to an inside host, without a tunnel of ours around it, it is traffic like any other.
 */
INLINE enum adit_outcome decide_guard_inward(const struct packet *packet, __u32 came_by)
{
	if (!(remote_cover(packet, &packet->source) & GUARDED) || !(local_cover(packet, &packet->destination) & GUARDED))
		return ADIT_guard_pass;
	/*
	 * A remote prefix that contains our own networks is common (10.0.0.0/8, everything), and the gateway answers
	 * its neighbours. Only what it made itself: IPv6 forwards a packet that borrows one of our addresses.
	 */
	if (!came_by && is_own(packet, &packet->source))
		return ADIT_guard_pass;
	return ADIT_guard_drop_clear_text;
}

INLINE enum adit_outcome decide_guard(void *data, void *data_end, const struct packet *packet, __u32 side, __u32 came_by)
{
	/* What the kernel forwards has lost its hop limit of 255: this is its own discovery. */
	if (is_link_business(packet) || is_neighbour_discovery(data, data_end, packet))
		return ADIT_guard_pass;
	if (side == ADIT_SIDE_PROTECTED)
		return decide_guard_inward(packet, came_by);
	return decide_guard_outward(data, data_end, packet);
}

SEC("classifier")
int guard(struct __sk_buff *skb)
{
	/* Headers can lie outside the linear part (sent from pages); what stays unreadable is dropped. */
	if (skb->data_end - skb->data < GUARD_PULL_BYTES && skb->data_end - skb->data < skb->len)
		bpf_skb_pull_data(skb, skb->len < GUARD_PULL_BYTES ? skb->len : GUARD_PULL_BYTES);
	void *data = (void *)(long)skb->data;
	void *data_end = (void *)(long)skb->data_end;
	struct packet packet = {};
	__u32 outcome = ADIT_guard_drop_malformed;
	__u32 side;

	/* The tag of a VLAN device mostly lies beside the frame, for the driver to put in. */
	if (skb->vlan_present)
		add_tag(&packet, skb->vlan_proto, htons(skb->vlan_tci));

	switch (parse(data, data_end, &packet)) {
	case PARSED_NOT_IP:
		outcome = ADIT_guard_pass;
		break;
	case PARSED_IP:
		/* 0: made here. */
		find_side(&packet, &side);
		outcome = decide_guard(data, data_end, &packet, side, skb->ingress_ifindex);
		break;
	case PARSED_TOO_MANY_TAGS:
	case PARSED_MALFORMED:
		break;
	}
	count(outcome);
	return outcome >= ADIT_guard_drop_clear_text ? GUARD_DROP : GUARD_NEXT;
}
