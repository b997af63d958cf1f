/* An IPv4 router (v1model): answers ARP and echo requests for its own addresses, forwards the rest by
 * longest prefix. The switches between the load balancer and the servers run it.
 *
 * What comes in on a port listed in `uplink` (a host's port) always goes up to the load balancer, also when
 * the addressee is next door: only there is it known where a program lives now.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <core.p4>
#include <v1model.p4>
#include "headers.p4"

struct headers_t {
    ethernet_h ethernet;
    arp_h      arp;
    ipv4_h     ipv4;
    icmp_h     icmp;
}

struct metadata_t {
    ipv4_t own_address;  // what an ARP or echo request asks for
}

parser PacketParser(packet_in packet, out headers_t hdr, inout metadata_t meta,
                    inout standard_metadata_t standard_metadata) {
    state start {
        packet.extract(hdr.ethernet);
        transition select(hdr.ethernet.ethertype) {
            ETHERTYPE_IPV4: parse_ipv4;
            ETHERTYPE_ARP: parse_arp;
            default: accept;
        }
    }
    state parse_arp {
        packet.extract(hdr.arp);
        transition accept;
    }
    state parse_ipv4 {
        packet.extract(hdr.ipv4);
        transition select(hdr.ipv4.ihl, hdr.ipv4.fragment_offset, hdr.ipv4.protocol) {
            (5, 0, PROTO_ICMP): parse_icmp;
            default: accept;
        }
    }
    state parse_icmp {
        packet.extract(hdr.icmp);
        transition accept;
    }
}

control VerifyChecksums(inout headers_t hdr, inout metadata_t meta) {
    apply { }
}

@name("Ingress")
control RouterIngress(inout headers_t hdr, inout metadata_t meta,
                      inout standard_metadata_t standard_metadata) {
    direct_counter(CounterType.packets_and_bytes) route_counter;

    action drop() {
        mark_to_drop(standard_metadata);
    }

    action arp_reply(mac_t mac) {
        hdr.ethernet.dst = hdr.arp.sha;
        hdr.ethernet.src = mac;
        hdr.arp.oper = ARP_REPLY;
        hdr.arp.tha = hdr.arp.sha;
        hdr.arp.tpa = hdr.arp.spa;
        hdr.arp.sha = mac;
        hdr.arp.spa = meta.own_address;
        standard_metadata.egress_spec = standard_metadata.ingress_port;
    }
    table arp {
        key = { meta.own_address: exact @name("address"); }
        actions = { arp_reply; drop; }
        default_action = drop();
        size = 1024;
    }

    action echo_reply() {
        mac_t mac = hdr.ethernet.dst;
        hdr.ethernet.dst = hdr.ethernet.src;
        hdr.ethernet.src = mac;
        hdr.ipv4.dst = hdr.ipv4.src;
        hdr.ipv4.src = meta.own_address;
        hdr.ipv4.ttl = 64;
        hdr.icmp.icmp_type = ICMP_ECHO_REPLY;
        standard_metadata.egress_spec = standard_metadata.ingress_port;
    }
    table echo {
        key = { meta.own_address: exact @name("address"); }
        actions = { echo_reply; NoAction; }
        default_action = NoAction();
        size = 1024;
    }

    action forward_up(bit<9> port, mac_t src_mac, mac_t dst_mac) {
        standard_metadata.egress_spec = port;
        hdr.ethernet.src = src_mac;
        hdr.ethernet.dst = dst_mac;
        hdr.ipv4.ttl = hdr.ipv4.ttl - 1;
    }
    action forward(bit<9> port, mac_t src_mac, mac_t dst_mac) {
        standard_metadata.egress_spec = port;
        hdr.ethernet.src = src_mac;
        hdr.ethernet.dst = dst_mac;
        hdr.ipv4.ttl = hdr.ipv4.ttl - 1;
        route_counter.count();
    }
    table uplink {
        key = { standard_metadata.ingress_port: exact @name("port"); }
        actions = { forward_up; NoAction; }
        default_action = NoAction();
        size = 512;
    }
    table route {
        key = { hdr.ipv4.dst: lpm @name("address"); }
        actions = { forward; drop; }
        default_action = drop();
        counters = route_counter;
        size = 1024;
    }

    apply {
        if (hdr.arp.isValid()) {
            meta.own_address = hdr.arp.tpa;
            if (hdr.arp.oper == ARP_REQUEST) {
                arp.apply();
            } else {
                drop();
            }
            return;
        }
        if (!hdr.ipv4.isValid() || hdr.ipv4.ihl != 5 || hdr.ipv4.ttl < 2) {
            drop();
            return;
        }
        if (hdr.icmp.isValid() && hdr.icmp.icmp_type == ICMP_ECHO_REQUEST) {
            meta.own_address = hdr.ipv4.dst;
            if (echo.apply().hit) {
                return;
            }
        }
        if (!uplink.apply().hit) {
            route.apply();
        }
    }
}

@name("Egress")
control RouterEgress(inout headers_t hdr, inout metadata_t meta,
                     inout standard_metadata_t standard_metadata) {
    apply { }
}

control ComputeChecksums(inout headers_t hdr, inout metadata_t meta) {
    apply {
        update_checksum(hdr.ipv4.isValid(),
            { hdr.ipv4.version, hdr.ipv4.ihl, hdr.ipv4.tos, hdr.ipv4.total_length,
              hdr.ipv4.identification, hdr.ipv4.flags, hdr.ipv4.fragment_offset,
              hdr.ipv4.ttl, hdr.ipv4.protocol, hdr.ipv4.src, hdr.ipv4.dst },
            hdr.ipv4.checksum, HashAlgorithm.csum16);
        update_checksum_with_payload(hdr.icmp.isValid(),
            { hdr.icmp.icmp_type, hdr.icmp.code },
            hdr.icmp.checksum, HashAlgorithm.csum16);
    }
}

control PacketDeparser(packet_out packet, in headers_t hdr) {
    apply {
        packet.emit(hdr.ethernet);
        packet.emit(hdr.arp);
        packet.emit(hdr.ipv4);
        packet.emit(hdr.icmp);
    }
}

V1Switch(PacketParser(), VerifyChecksums(), RouterIngress(), RouterEgress(), ComputeChecksums(), PacketDeparser()) main;
