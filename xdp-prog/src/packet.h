/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * Reads a frame as far as the decisions need it: Ethernet, up to two VLAN tags, IPv4 or IPv6 with its extension
 * headers. Nothing here decides.
 */
#ifndef ADIT_PACKET_H
#define ADIT_PACKET_H

#include "bpf.h"
#include "steer.h"

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define ETHERTYPE_8021Q 0x8100
#define ETHERTYPE_8021AD 0x88a8

#define PROTOCOL_HOP_BY_HOP 0
#define PROTOCOL_ICMP 1
#define PROTOCOL_UDP 17
#define PROTOCOL_ROUTING 43
#define PROTOCOL_FRAGMENT 44
#define PROTOCOL_ESP 50
#define PROTOCOL_AH 51
#define PROTOCOL_ICMPV6 58
#define PROTOCOL_DESTINATION_OPTIONS 60
#define PROTOCOL_MOBILITY 135
#define PROTOCOL_HIP 139
#define PROTOCOL_SHIM6 140

#define AH_SPI_OFFSET 4

#define PORT_IKE 500
#define PORT_IKE_NAT 4500

#define VLAN_TAGS_MAX 2
#define EXTENSION_HEADERS_MAX 8

enum parsed {
	PARSED_IP,
	PARSED_NOT_IP,
	PARSED_TOO_MANY_TAGS,
	PARSED_MALFORMED,
};

enum fragment { WHOLE, FIRST_FRAGMENT, LATER_FRAGMENT };

struct packet {
	/* Both are ready to be looked up; an IPv4 address fills the first four bytes. */
	struct adit_prefix6 source;
	struct adit_prefix6 destination;
	/* Where the next layer begins, from the start of the frame. Valid if `protocol_known`. */
	__u32 transport;
	/* Which datagram it is a piece of, if it is one; in network byte order. */
	__u32 identification;
	/* VLAN identifiers of the 802.1ad tag and of the 802.1Q tag; 0 where there is none, or a priority tag. */
	__u16 outer_vlan;
	__u16 inner_vlan;
	__u8 tags;
	__u8 inner_tags;
	/* The tags are not an 802.1ad tag or an 802.1Q tag, or one of each in that order. */
	__u8 odd_tags;
	__u8 version;
	__u8 hop_limit;
	__u8 fragment;
	__u8 protocol;
	/* False when the chain of extension headers is cut short or longer than we follow. */
	__u8 protocol_known;
};

struct ethernet {
	__u8 destination[6];
	__u8 source[6];
	__u16 type;
} __attribute__((packed));

struct vlan {
	__u16 tci;
	__u16 type;
} __attribute__((packed));

struct ipv4 {
	__u8 version_ihl;
	__u8 tos;
	__u16 length;
	__u16 id;
	__u16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__u8 source[4];
	__u8 destination[4];
} __attribute__((packed));

struct ipv6 {
	__u32 version_class_flow;
	__u16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	__u8 source[16];
	__u8 destination[16];
} __attribute__((packed));

struct ipv6_extension {
	__u8 next_header;
	__u8 length;
} __attribute__((packed));

struct ipv6_fragment {
	__u8 next_header;
	__u8 reserved;
	__u16 offset;
	__u32 id;
} __attribute__((packed));

struct udp {
	__u16 source;
	__u16 destination;
	__u16 length;
	__u16 checksum;
} __attribute__((packed));

/* ICMP and ICMPv6 errors (RFC 792, RFC 4443): the packet that they are about comes behind. */
struct icmp_error {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__u32 value;
} __attribute__((packed));

/* The header at `offset`, or nothing when the frame ends before it does. */
#define HEADER(type, data, data_end, offset)                                                                           \
	({                                                                                                             \
		struct type *header_ = (data) + (offset);                                                              \
		(void *)(header_ + 1) > (data_end) ? 0 : header_;                                                      \
	})

/*
 * The next layer. The mask is for the verifier, which forgets bounds when it spills: eight extension headers of
 * 2048 bytes end well below it.
 */
#define TRANSPORT_MASK 0x7fff
INLINE void *transport(void *data, const struct packet *packet)
{
	return data + (packet->transport & TRANSPORT_MASK);
}

INLINE int is_vlan(__u16 type)
{
	return type == htons(ETHERTYPE_8021Q) || type == htons(ETHERTYPE_8021AD);
}

/* Headers of the shape "next header, length in 8 bytes without the first 8" (RFC 8200, 6275, 7401, 5533). */
INLINE int is_extension(__u8 next)
{
	return next == PROTOCOL_HOP_BY_HOP || next == PROTOCOL_ROUTING || next == PROTOCOL_DESTINATION_OPTIONS ||
	       next == PROTOCOL_MOBILITY || next == PROTOCOL_HIP || next == PROTOCOL_SHIM6;
}

INLINE enum parsed parse_ipv4(void *data, void *data_end, __u32 offset, struct packet *packet)
{
	struct ipv4 *ip = HEADER(ipv4, data, data_end, offset);
	/* A version or header length that is no IPv4 is dropped by every stack, so nothing is lost by doing it. */
	if (!ip || ip->version_ihl >> 4 != 4 || (ip->version_ihl & 15) < 5)
		return PARSED_MALFORMED;

	packet->version = 4;
	packet->source.length = 32;
	packet->destination.length = 32;
	__builtin_memcpy(packet->source.address, ip->source, 4);
	__builtin_memcpy(packet->destination.address, ip->destination, 4);
	packet->hop_limit = ip->ttl;
	packet->protocol = ip->protocol;
	packet->protocol_known = 1;
	packet->transport = offset + (ip->version_ihl & 15) * 4;
	packet->identification = ip->id;
	if (ip->fragment & htons(0x1fff))
		packet->fragment = LATER_FRAGMENT;
	else if (ip->fragment & htons(0x2000))
		packet->fragment = FIRST_FRAGMENT;
	return PARSED_IP;
}

INLINE enum parsed parse_ipv6(void *data, void *data_end, __u32 offset, struct packet *packet)
{
	struct ipv6 *ip = HEADER(ipv6, data, data_end, offset);
	if (!ip || (ip->version_class_flow & htonl(0xf0000000)) != htonl(0x60000000))
		return PARSED_MALFORMED;

	packet->version = 6;
	packet->source.length = 128;
	packet->destination.length = 128;
	__builtin_memcpy(packet->source.address, ip->source, 16);
	__builtin_memcpy(packet->destination.address, ip->destination, 16);
	packet->hop_limit = ip->hop_limit;

	__u8 next = ip->next_header;
	offset += sizeof(*ip);
	for (int i = 0; i < EXTENSION_HEADERS_MAX; i++) {
		if (next == PROTOCOL_FRAGMENT) {
			struct ipv6_fragment *fragment = HEADER(ipv6_fragment, data, data_end, offset);
			if (!fragment)
				return PARSED_IP;
			next = fragment->next_header;
			offset += sizeof(*fragment);
			packet->identification = fragment->id;
			if (fragment->offset & htons(0xfff8)) {
				/* What follows is not a header: `next` is what the datagram begins with. */
				packet->fragment = LATER_FRAGMENT;
				break;
			}
			/* Without more to follow it is an atomic fragment (RFC 6946), that is, whole. */
			if (fragment->offset & htons(1))
				packet->fragment = FIRST_FRAGMENT;
		} else if (is_extension(next)) {
			struct ipv6_extension *extension = HEADER(ipv6_extension, data, data_end, offset);
			if (!extension)
				return PARSED_IP;
			next = extension->next_header;
			offset += (extension->length + 1) * 8;
		} else {
			break;
		}
	}
	packet->protocol = next;
	packet->protocol_known = packet->fragment == LATER_FRAGMENT || (next != PROTOCOL_FRAGMENT && !is_extension(next));
	packet->transport = offset;
	return PARSED_IP;
}

/* The next tag from outside. A priority tag (IEEE 802.1Q section 6.9: VID 0) says nothing of a VLAN. */
INLINE void add_tag(struct packet *packet, __u16 type, __u16 tci)
{
	__u16 vlan = ntohs(tci) & 0xfff;
	packet->tags++;
	if (type == htons(ETHERTYPE_8021AD) && packet->tags == 1)
		packet->outer_vlan = vlan;
	else if (type == htons(ETHERTYPE_8021Q) && ++packet->inner_tags == 1)
		packet->inner_vlan = vlan;
	else
		packet->odd_tags = 1;
}

/* `packet` must be zero, but for a tag that is not in the frame. */
INLINE enum parsed parse(void *data, void *data_end, struct packet *packet)
{
	struct ethernet *ethernet = HEADER(ethernet, data, data_end, 0);
	if (!ethernet)
		return PARSED_MALFORMED;

	__u16 type = ethernet->type;
	__u32 offset = sizeof(*ethernet);
	for (int i = 0; i < VLAN_TAGS_MAX && is_vlan(type); i++) {
		struct vlan *vlan = HEADER(vlan, data, data_end, offset);
		if (!vlan)
			return PARSED_MALFORMED;
		add_tag(packet, type, vlan->tci);
		type = vlan->type;
		offset += sizeof(*vlan);
	}
	if (is_vlan(type))
		return PARSED_TOO_MANY_TAGS;
	if (type == htons(ETHERTYPE_IPV4))
		return parse_ipv4(data, data_end, offset, packet);
	if (type == htons(ETHERTYPE_IPV6))
		return parse_ipv6(data, data_end, offset, packet);
	return PARSED_NOT_IP;
}

/* IPv4: 224.0.0.0/4 and 255.255.255.255. IPv6: ff00::/8. */
INLINE int is_multicast(const struct packet *packet)
{
	const __u8 *to = packet->destination.address;
	if (packet->version == 6)
		return to[0] == 0xff;
	return to[0] >> 4 == 14 || (to[0] == 255 && to[1] == 255 && to[2] == 255 && to[3] == 255);
}

/* 169.254.0.0/16 (RFC 3927), fe80::/10 (RFC 4291 section 2.5.6). */
INLINE int is_link_local(const struct packet *packet)
{
	const __u8 *to = packet->destination.address;
	if (packet->version == 6)
		return to[0] == 0xfe && (to[1] & 0xc0) == 0x80;
	return to[0] == 169 && to[1] == 254;
}

/*
 * Neighbour and router discovery (RFC 4861) is to IPv6 what ARP is to IPv4; without it not even ESP leaves. A hop
 * limit of 255 proves that it comes from this link, and a forwarder would make it invalid.
 */
INLINE int is_neighbour_discovery(void *data, void *data_end, const struct packet *packet)
{
	if (packet->version != 6 || packet->hop_limit != 255 || !packet->protocol_known ||
	    packet->protocol != PROTOCOL_ICMPV6 || packet->fragment != WHOLE)
		return 0;
	__u8 *type = transport(data, packet);
	return (void *)(type + 1) <= data_end && *type >= 133 && *type <= 137;
}

#endif
