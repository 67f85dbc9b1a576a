/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * What the programs and the engine share. lib.rs mirrors this file, and its test reads it here.
 */
#ifndef ADIT_STEER_H
#define ADIT_STEER_H

#include <linux/types.h>

/*
 * The one outcome of a frame, and its index in `counters`. The order is the meaning: what the kernel gets, what
 * the engine gets, what is dropped; then the same for the guard.
 */
#define ADIT_OUTCOMES(X)                                                                                               \
	X(pass_not_ip)          /* neither IPv4 nor IPv6 */                                                            \
	X(pass_link)            /* multicast, broadcast, link-local, neighbour discovery */                            \
	X(pass_ike)             /* IKE to one of our addresses */                                                      \
	X(pass_own)             /* the rest to one of our addresses */                                                 \
	X(pass_outside)         /* outside every cover */                                                              \
	X(engine_esp)           /* ESP or AH to one of our addresses, for an SA or to be told of; NAT keepalives */                              \
	X(engine_fragment)      /* a fragment of what may be that */                                                   \
	X(engine_icmp)          /* an ICMP error about ESP or AH that one of our addresses sent */                     \
	X(engine_outbound)      /* from inside, to an address under the cover */                                       \
	X(engine_inbound_clear) /* from outside, in clear, under the reversed cover; to one of ours, to be told of */                                 \
	X(drop_unknown_spi)     /* ESP or AH to one of our addresses, for no SA */                                     \
	X(drop_clear_text)      /* to one of our addresses, in clear, though the policy protects it */                 \
	X(drop_vlan)            /* for the engine, but of a VLAN that is no port; or more than two tags */                                \
	X(drop_malformed)       /* too short for, or contradicting, what decides */                                    \
	X(drop_no_socket)       /* for the engine, and no engine listens on this queue */                              \
	X(guard_pass)           /* nothing that the policy protects */                                                 \
	X(guard_pass_ipsec)     /* ESP, AH, or our own IKE, under the cover */                                         \
	X(guard_drop_clear_text) /* in clear across the boundary, under the PROTECT cover */                                  \
	X(guard_drop_malformed) /* as drop_malformed */

#define ADIT_ENUMERATOR(name) ADIT_##name,
enum adit_outcome { ADIT_OUTCOMES(ADIT_ENUMERATOR) ADIT_OUTCOME_COUNT };

#define ADIT_FIRST_ENGINE ADIT_engine_esp
#define ADIT_FIRST_DROP ADIT_drop_unknown_spi

/* Which side of RFC 4301's boundary an interface is on. */
#define ADIT_SIDE_PROTECTED 0
#define ADIT_SIDE_UNPROTECTED 1

/*
 * What a cover says of a prefix: the union over every selector whose prefix contains it. "Everywhere" is a
 * prefix of length zero, which also contains the gateway and the peer themselves, so hooks that could cut off
 * the gateway ask whether a selector named the addresses or merely meant everything.
 */
#define ADIT_PROTECT 1
#define ADIT_DISCARD 2
#define ADIT_PROTECT_EVERYWHERE 4
#define ADIT_DISCARD_EVERYWHERE 8
#define ADIT_NAMED (ADIT_PROTECT | ADIT_DISCARD)
/* Beside them, and no cover: a BYPASS selector, named or everywhere. */
#define ADIT_BYPASS 16

/* Keys of the longest-prefix maps: the prefix length in bits, then the address as on the wire. */
struct adit_prefix4 {
	__u32 length;
	__u8 address[4];
};
struct adit_prefix6 {
	__u32 length;
	__u8 address[16];
};
_Static_assert(sizeof(struct adit_prefix4) == 8, "the engine reads 8 bytes");
_Static_assert(sizeof(struct adit_prefix6) == 20, "the engine reads 20 bytes");

/* Sizes of the maps. */
#define ADIT_COVER_PREFIXES_MAX 131072
#define ADIT_OWN_ADDRESSES_MAX 65536
#define ADIT_SPIS_MAX 1048576
#define ADIT_NAT_PORTS_MAX 65536
#define ADIT_QUEUES_MAX 1024
#define ADIT_VLANS_MAX 4096
/* Kinds of dropped packets that the engine tells of. */
#define ADIT_TOLD_KINDS 2

/* Key of `vlans`: the VLAN identifier of the 802.1ad tag, 0 without one, and that of the 802.1Q tag. */
#define ADIT_VLAN_KEY(outer, inner) ((__u32)(outer) << 16 | (inner))
#define ADIT_DATAGRAMS_MAX 4096

#endif
