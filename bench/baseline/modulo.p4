/* The control arm of the affinity benchmark: a load balancer that chooses a backend by hash modulo their number, for
 * every packet anew. That is what stateless load balancers in textbooks do; a change of the number moves most
 * connections to a backend that has never heard of them.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <core.p4>
#include <v1model.p4>
#include "headers.p4"

struct headers_t {
    ethernet_h ethernet;
    arp_h      arp;
    ipv4_h     ipv4;
    tcp_h      tcp;
}

struct metadata_t {
    bit<32> backend;
    bit<16> l4_length;
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
        transition select(hdr.ipv4.protocol) {
            PROTO_TCP: parse_tcp;
            default: accept;
        }
    }
    state parse_tcp {
        packet.extract(hdr.tcp);
        transition accept;
    }
}

control VerifyChecksums(inout headers_t hdr, inout metadata_t meta) {
    apply { }
}

@name("Ingress")
control ModuloIngress(inout headers_t hdr, inout metadata_t meta,
                      inout standard_metadata_t standard_metadata) {
    action drop() {
        mark_to_drop(standard_metadata);
    }

    action arp_reply(mac_t mac) {
        ipv4_t asked = hdr.arp.tpa;
        hdr.ethernet.dst = hdr.arp.sha;
        hdr.ethernet.src = mac;
        hdr.arp.oper = ARP_REPLY;
        hdr.arp.tha = hdr.arp.sha;
        hdr.arp.tpa = hdr.arp.spa;
        hdr.arp.sha = mac;
        hdr.arp.spa = asked;
        standard_metadata.egress_spec = standard_metadata.ingress_port;
    }
    table arp {
        key = { hdr.arp.tpa: exact @name("address"); }
        actions = { arp_reply; drop; }
        default_action = drop();
    }

    action spread(bit<32> backends) {
        hash(meta.backend, HashAlgorithm.crc32, 32w0,
             { hdr.ipv4.src, hdr.tcp.src_port, hdr.ipv4.dst, hdr.tcp.dst_port }, backends);
    }
    table vip {
        key = { hdr.ipv4.dst: exact @name("address"); }
        actions = { spread; NoAction; }
        default_action = NoAction();
    }

    action send_to(ipv4_t address) {
        hdr.ipv4.dst = address;
    }
    table backend {
        key = { meta.backend: exact @name("backend"); }
        actions = { send_to; drop; }
        default_action = drop();
    }

    action speak_as(ipv4_t address) {
        hdr.ipv4.src = address;
    }
    table source {
        key = { hdr.ipv4.src: exact @name("address"); }
        actions = { speak_as; NoAction; }
        default_action = NoAction();
    }

    action forward(bit<9> port, mac_t src_mac, mac_t dst_mac) {
        standard_metadata.egress_spec = port;
        hdr.ethernet.src = src_mac;
        hdr.ethernet.dst = dst_mac;
        hdr.ipv4.ttl = hdr.ipv4.ttl - 1;
    }
    table route {
        key = { hdr.ipv4.dst: lpm @name("address"); }
        actions = { forward; drop; }
        default_action = drop();
    }

    apply {
        if (hdr.arp.isValid()) {
            arp.apply();
        } else if (hdr.tcp.isValid()) {
            meta.l4_length = hdr.ipv4.total_length - 20;
            source.apply();
            if (vip.apply().hit) {
                backend.apply();
            }
            route.apply();
        } else {
            drop();
        }
    }
}

@name("Egress")
control ModuloEgress(inout headers_t hdr, inout metadata_t meta,
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
        update_checksum_with_payload(hdr.tcp.isValid(),
            { hdr.ipv4.src, hdr.ipv4.dst, 8w0, hdr.ipv4.protocol, meta.l4_length,
              hdr.tcp.src_port, hdr.tcp.dst_port, hdr.tcp.sequence, hdr.tcp.acknowledgement,
              hdr.tcp.data_offset, hdr.tcp.reserved, hdr.tcp.flags, hdr.tcp.window,
              hdr.tcp.urgent },
            hdr.tcp.checksum, HashAlgorithm.csum16);
    }
}

control PacketDeparser(packet_out packet, in headers_t hdr) {
    apply {
        packet.emit(hdr.ethernet);
        packet.emit(hdr.arp);
        packet.emit(hdr.ipv4);
        packet.emit(hdr.tcp);
    }
}

V1Switch(PacketParser(), VerifyChecksums(), ModuloIngress(), ModuloEgress(), ComputeChecksums(), PacketDeparser()) main;
