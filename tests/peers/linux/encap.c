/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The sockets that an IKE daemon would have: UDP port 4500 over IPv4 and IPv6, of which the kernel takes the ESP
 * (RFC 3948). Whatever else comes there is IKE, and left to lie. Runs until it is killed.
 */
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

/* linux/udp.h */
#define ENCAP_OPTION 100
#define ENCAP_ESP_IN_UDP 2

static int open_port(int family, const struct sockaddr *address, socklen_t length)
{
	int one = 1, kind = ENCAP_ESP_IN_UDP;
	int port = socket(family, SOCK_DGRAM, 0);
	if (family == AF_INET6 && setsockopt(port, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one)))
		return -1;
	if (bind(port, address, length))
		return -1;
	return setsockopt(port, IPPROTO_UDP, ENCAP_OPTION, &kind, sizeof(kind));
}

int main(void)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(4500)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(4500)};
	if (open_port(AF_INET, (struct sockaddr *)&v4, sizeof(v4)) ||
	    open_port(AF_INET6, (struct sockaddr *)&v6, sizeof(v6))) {
		perror("encap");
		return 1;
	}
	for (;;)
		pause();
}
