/* The yardstick for the load balancer's throughput: the same rewriting, written by hand for tc (direct action).
 *
 * Requests to VIP:PORT get the server's address, replies the VIP; both checksums are updated incrementally, the TTL
 * goes down, the MACs change, and the packet is redirected to the other port. Everything is compiled in; there are
 * no tables. ARP is answered by nobody: the hosts of the benchmark have static entries.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* From the command line, in host byte order: VIP, SERVER, CLIENT_IF, SERVER_IF; and PORT. */
#define IP_OFFSET sizeof(struct ethhdr)
#define TCP_OFFSET (IP_OFFSET + sizeof(struct iphdr))

static __always_inline int to_port(struct __sk_buff *skb, __u32 field, __u32 from, __u32 to, int ifindex,
                                   const unsigned char *dst, const unsigned char *src)
{
    __u32 old_address = bpf_htonl(from), new_address = bpf_htonl(to);
    __u16 old_ttl, new_ttl;
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ethhdr *eth = data;
    struct iphdr *ip = data + IP_OFFSET;

    if ((void *)(ip + 1) > end)
        return TC_ACT_SHOT;
    __builtin_memcpy(eth->h_dest, dst, ETH_ALEN);
    __builtin_memcpy(eth->h_source, src, ETH_ALEN);
    old_ttl = *(__u16 *)&ip->ttl;
    ip->ttl--;
    new_ttl = *(__u16 *)&ip->ttl;
    bpf_l3_csum_replace(skb, IP_OFFSET + offsetof(struct iphdr, check), old_ttl, new_ttl, 2);
    bpf_l4_csum_replace(skb, TCP_OFFSET + offsetof(struct tcphdr, check), old_address, new_address,
                        BPF_F_PSEUDO_HDR | 4);
    bpf_l3_csum_replace(skb, IP_OFFSET + offsetof(struct iphdr, check), old_address, new_address, 4);
    bpf_skb_store_bytes(skb, field, &new_address, 4, 0);
    return bpf_redirect(ifindex, 0);
}

SEC("tc")
int rewrite(struct __sk_buff *skb)
{
    static const unsigned char client[] = CLIENT_MAC, server[] = SERVER_MAC, own[] = OWN_MAC;
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ethhdr *eth = data;
    struct iphdr *ip = data + IP_OFFSET;
    struct tcphdr *tcp = data + TCP_OFFSET;

    if ((void *)(tcp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->protocol != IPPROTO_TCP)
        return TC_ACT_SHOT;
    if (ip->daddr == bpf_htonl(VIP) && tcp->dest == bpf_htons(PORT))
        return to_port(skb, IP_OFFSET + offsetof(struct iphdr, daddr), VIP, SERVER, SERVER_IF, server, own);
    if (ip->saddr == bpf_htonl(SERVER) && tcp->source == bpf_htons(PORT))
        return to_port(skb, IP_OFFSET + offsetof(struct iphdr, saddr), SERVER, VIP, CLIENT_IF, client, own);
    return TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
