/* A layer-4 load balancer whose endpoints can move while their connections stay open (v1model).
 *
 * Every endpoint (protocol, address, port) has an identity, which its peers use, and a location,
 * where it lives now. The two differ for a service behind a VIP and for a program that has moved.
 * A packet carries (source location, destination identity) when it comes in, and leaves with
 * (source identity, destination location):
 *
 *   1. source       connection_source, else endpoint_source: who is speaking?
 *   2. destination  connection, else destination (-> a service's Maglev table, or a moved endpoint):
 *                   where does the addressee live now?
 *   3. hold         is one of the two locations on the move, and held? Then the untouched packet goes to
 *                   the controller, which sends it again (packet-out, OP_RESUME) when the program runs again.
 *                   What a frozen program's kernel still sends (its timers run) must be held as well:
 *                   a peer's answer to bytes that the checkpoint does not know would be refused.
 *                   A connection that its program has closed does not move: its kernel still has to send
 *                   what was written. It stays at its location (stay_as, stay_at), and is never held.
 *   4. route        next hop towards the location.
 *
 * A connection that the table `connection` does not know is reported by a digest; the controller then
 * pins it, so that no later change of a pool reaches it. While a pool changes, its service is
 * "guarded": openings of connections wait at the controller until the change is complete.
 * Nothing about addresses is compiled in.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <core.p4>
#include <v1model.p4>
#include "headers.p4"

#ifndef CPU_PORT
#define CPU_PORT 255
#endif
#define MAGLEV_SLOTS 1021
#define MAX_SERVICES 64
#define MAX_BACKENDS 1024
#define MAX_CONNECTIONS 131072

const bit<8> OP_SEND    = 0;  // send as it is to `port`
const bit<8> OP_RESUME  = 1;  // process as if it had come in on `port`; the hold `id` lets it pass
const bit<8> OP_BARRIER = 2;  // give it back as a packet-in with the same `id`

const bit<8> REASON_BARRIER = 1;  // answers OP_BARRIER
const bit<8> REASON_HELD    = 2;  // its destination is on the move; `id` names the hold
const bit<8> REASON_GUARDED = 3;  // opens a connection to a guarded service; `id` is the service
const bit<8> REASON_DIRECT  = 4;  // opens a connection to a backend by the backend's own address
const bit<8> REASON_HELD_SOURCE = 5;  // its source is on the move; `id` names the hold

const bit<8> EVENT_OPENED  = 1;   // a service's connection that is not pinned yet
const bit<8> EVENT_CLOSING = 2;   // FIN or RST on a pinned connection

const bit<8> TCP_FIN = 0x01;
const bit<8> TCP_SYN = 0x02;
const bit<8> TCP_RST = 0x04;
const bit<8> TCP_ACK = 0x10;

@controller_header("packet_in")
header packet_in_h {
    bit<16> port;    // ingress port
    bit<8>  reason;
    bit<32> id;
}

@controller_header("packet_out")
header packet_out_h {
    bit<16> port;
    bit<8>  operation;
    bit<32> id;
}

struct headers_t {
    packet_in_h  packet_in;
    packet_out_h packet_out;
    ethernet_h   ethernet;
    arp_h        arp;
    ipv4_h       ipv4;
    icmp_h       icmp;
    tcp_h        tcp;
    udp_h        udp;
}

struct metadata_t {
    bit<16>   in_port;      // where the packet came in, or is said to have come in
    bit<8>    operation;    // of a packet-out, else OP_SEND
    bit<32>   resume_id;    // the hold that an OP_RESUME passes, else 0
    ipv4_t    own_address;  // what an ARP or echo request asks for
    l4_port_t src_port;     // as in the packet, TCP or UDP
    l4_port_t dst_port;
    ipv4_t    dst_addr;     // destination identity; stays when the header is rewritten
    ipv4_t    as_addr;      // source identity
    l4_port_t as_port;
    ipv4_t    to_addr;      // destination location
    l4_port_t to_port;
    bit<1>    opens;        // may be the first packet of its connection
    bit<1>    guarded;
    bit<1>    pinned;
    bit<1>    stays;        // of a connection that no hold is for
    bit<32>   service;      // 0: none
    bit<32>   backend;      // 0: none
    bit<32>   slot;
    bit<8>    reason;       // why the packet goes to the controller; 0: it does not
    bit<32>   id;
    bit<16>   l4_length;    // bytes, for the pseudo header
    bit<8>    closing;      // FIN and RST of the packet
}

// What the controller learns of connections.
struct connection_event_t {
    bit<8>    event;
    bit<8>    protocol;
    ipv4_t    src_addr;     // identities
    l4_port_t src_port;
    ipv4_t    dst_addr;
    l4_port_t dst_port;
    bit<32>   service;
    bit<32>   backend;
    bit<8>    tcp_flags;    // FIN and RST only, so that a connection's first packets report the same
}

parser PacketParser(packet_in packet, out headers_t hdr, inout metadata_t meta,
                    inout standard_metadata_t standard_metadata) {
    state start {
        transition select(standard_metadata.ingress_port) {
            CPU_PORT: parse_packet_out;
            default: parse_ethernet;
        }
    }
    state parse_packet_out {
        packet.extract(hdr.packet_out);
        transition parse_ethernet;
    }
    state parse_ethernet {
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
        // Later fragments and headers with options carry no ports where we would read them.
        transition select(hdr.ipv4.ihl, hdr.ipv4.fragment_offset, hdr.ipv4.protocol) {
            (5, 0, PROTO_TCP): parse_tcp;
            (5, 0, PROTO_UDP): parse_udp;
            (5, 0, PROTO_ICMP): parse_icmp;
            default: accept;
        }
    }
    state parse_icmp {
        packet.extract(hdr.icmp);
        transition accept;
    }
    state parse_tcp {
        packet.extract(hdr.tcp);
        meta.src_port = hdr.tcp.src_port;
        meta.dst_port = hdr.tcp.dst_port;
        meta.closing = hdr.tcp.flags & (TCP_FIN | TCP_RST);
        transition accept;
    }
    state parse_udp {
        packet.extract(hdr.udp);
        meta.src_port = hdr.udp.src_port;
        meta.dst_port = hdr.udp.dst_port;
        transition accept;
    }
}

control VerifyChecksums(inout headers_t hdr, inout metadata_t meta) {
    apply { }  // A corrupt packet stays corrupt; the receiver finds it.
}

@name("Ingress")
control BalancerIngress(inout headers_t hdr, inout metadata_t meta,
                        inout standard_metadata_t standard_metadata) {
    counter(MAX_SERVICES, CounterType.packets_and_bytes) service_counter;
    counter(MAX_BACKENDS, CounterType.packets_and_bytes) backend_counter;
    direct_counter(CounterType.packets_and_bytes) connection_counter;

    action drop() {
        mark_to_drop(standard_metadata);
    }

    // ---- the switch's own addresses: gateways and VIPs

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

    // ---- 1. source: from location to identity

    action speak_as(ipv4_t address, l4_port_t port) {
        meta.as_addr = address;
        meta.as_port = port;
    }
    action stay_as(ipv4_t address, l4_port_t port) {
        meta.as_addr = address;
        meta.as_port = port;
        meta.stays = 1;
    }
    table connection_source {
        key = {
            hdr.ipv4.protocol: exact @name("protocol");
            hdr.ipv4.src:      exact @name("src_addr");   // location
            meta.src_port:     exact @name("src_port");
            hdr.ipv4.dst:      exact @name("dst_addr");   // the peer's identity
            meta.dst_port:     exact @name("dst_port");
        }
        actions = { speak_as; stay_as; NoAction; }
        default_action = NoAction();
        size = MAX_CONNECTIONS;
    }
    table endpoint_source {
        key = {
            hdr.ipv4.protocol: exact @name("protocol");
            hdr.ipv4.src:      exact @name("address");
            meta.src_port:     exact @name("port");
        }
        actions = { speak_as; NoAction; }
        default_action = NoAction();
        size = 16384;
    }

    // ---- 2. destination: from identity to location

    action send_to(ipv4_t address, l4_port_t port) {
        meta.to_addr = address;
        meta.to_port = port;
    }
    action pin_to_backend(bit<32> service, bit<32> backend) {
        meta.service = service;
        meta.backend = backend;
        connection_counter.count();
    }
    action pin_to_location(ipv4_t address, l4_port_t port) {
        meta.to_addr = address;
        meta.to_port = port;
        connection_counter.count();
    }
    action stay_at(ipv4_t address, l4_port_t port) {
        meta.to_addr = address;
        meta.to_port = port;
        meta.stays = 1;
        connection_counter.count();
    }
    table connection {
        key = {
            hdr.ipv4.protocol: exact @name("protocol");
            meta.as_addr:      exact @name("src_addr");   // identities
            meta.as_port:      exact @name("src_port");
            hdr.ipv4.dst:      exact @name("dst_addr");
            meta.dst_port:     exact @name("dst_port");
        }
        actions = { pin_to_backend; pin_to_location; stay_at; NoAction; }
        default_action = NoAction();
        counters = connection_counter;
        size = MAX_CONNECTIONS;
    }

    action serve(bit<32> service) {
        meta.service = service;
    }
    action serve_guarded(bit<32> service) {
        meta.service = service;
        meta.guarded = 1;
    }
    // A backend addressed by its own address although it answers as a VIP: only an opening matters,
    // the controller pins that connection to the backend's own identity.
    action direct(bit<32> backend) {
        meta.reason = REASON_DIRECT;
        meta.id = backend;
    }
    table destination {
        key = {
            hdr.ipv4.protocol: exact @name("protocol");
            hdr.ipv4.dst:      exact @name("address");
            meta.dst_port:     exact @name("port");
        }
        actions = { serve; serve_guarded; send_to; direct; NoAction; }
        default_action = NoAction();
        size = 16384;
    }

    action choose(bit<32> backend) {
        meta.backend = backend;
    }
    table maglev {
        key = {
            meta.service: exact @name("service");
            meta.slot:    exact @name("slot");
        }
        actions = { choose; NoAction; }
        default_action = NoAction();
        size = 65536;
    }
    table backend {
        key = { meta.backend: exact @name("backend"); }
        actions = { send_to; drop; }
        default_action = drop();
        size = MAX_BACKENDS;
    }

    // ---- 3. hold

    // Rows of these two name the hold that an endpoint belongs to. They may stand long before and after: a hold
    // begins and ends with its one row in `holding`, and one in `holding_source`, however many endpoints it has.
    action hold_for(bit<32> id) {
        meta.id = id;
    }
    table hold {
        key = {
            hdr.ipv4.protocol: exact @name("protocol");
            meta.to_addr:      exact @name("address");   // location
            meta.to_port:      exact @name("port");
        }
        actions = { hold_for; NoAction; }
        default_action = NoAction();
        size = 16384;
    }

    table hold_source {
        key = {
            hdr.ipv4.protocol: exact @name("protocol");
            hdr.ipv4.src:      exact @name("address");   // location
            meta.src_port:     exact @name("port");
        }
        actions = { hold_for; NoAction; }
        default_action = NoAction();
        size = 16384;
    }

    action keep(bit<8> reason) {
        meta.reason = reason;
    }
    table holding {
        key = { meta.id: exact @name("id"); }
        actions = { keep; NoAction; }
        default_action = NoAction();
        size = 1024;
    }
    table holding_source {
        key = { meta.id: exact @name("id"); }
        actions = { keep; NoAction; }
        default_action = NoAction();
        size = 1024;
    }

    // ---- 4. route

    action forward(bit<9> port, mac_t src_mac, mac_t dst_mac) {
        standard_metadata.egress_spec = port;
        hdr.ethernet.src = src_mac;
        hdr.ethernet.dst = dst_mac;
        hdr.ipv4.ttl = hdr.ipv4.ttl - 1;
    }
    table route {
        key = { meta.to_addr: lpm @name("address"); }
        actions = { forward; drop; }
        default_action = drop();
        size = 1024;
    }

    action punt() {
        hdr.packet_in.setValid();
        hdr.packet_in.port = meta.in_port;
        hdr.packet_in.reason = meta.reason;
        hdr.packet_in.id = meta.id;
        standard_metadata.egress_spec = CPU_PORT;
    }

    action accept_packet_out() {
        meta.operation = hdr.packet_out.operation;
        meta.in_port = hdr.packet_out.port;
        meta.resume_id = hdr.packet_out.id;
        hdr.packet_out.setInvalid();
    }

    // BMv2 reads a digest's fields at the end of ingress: nothing here may be rewritten by then.
    action report(in bit<8> event) {
        digest<connection_event_t>(1, {
            event, hdr.ipv4.protocol, meta.as_addr, meta.as_port, meta.dst_addr, meta.dst_port,
            meta.service, meta.backend, meta.closing });
    }

    apply {
        meta.in_port = (bit<16>)standard_metadata.ingress_port;
        if (hdr.packet_out.isValid()) {
            accept_packet_out();
            if (meta.operation == OP_SEND) {
                standard_metadata.egress_spec = (bit<9>)meta.in_port;
                return;
            }
            if (meta.operation == OP_BARRIER) {
                meta.reason = REASON_BARRIER;
                meta.id = meta.resume_id;
                punt();
                return;
            }
        }

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

        meta.to_addr = hdr.ipv4.dst;
        meta.to_port = meta.dst_port;
        if (hdr.tcp.isValid() || hdr.udp.isValid()) {
            meta.dst_addr = hdr.ipv4.dst;
            meta.as_addr = hdr.ipv4.src;
            meta.as_port = meta.src_port;
            meta.opens = 1;
            if (hdr.tcp.isValid() && (hdr.tcp.flags & (TCP_SYN | TCP_ACK)) != TCP_SYN) {
                meta.opens = 0;
            }

            if (!connection_source.apply().hit) {
                endpoint_source.apply();
            }
            if (connection.apply().hit) {
                meta.pinned = 1;
            } else {
                destination.apply();
                if (meta.reason == REASON_DIRECT && meta.opens == 0) {
                    meta.reason = 0;
                }
                if (meta.service != 0) {
                    hash(meta.slot, HashAlgorithm.crc32, 32w0,
                         { hdr.ipv4.protocol, meta.as_addr, meta.as_port, hdr.ipv4.dst, meta.dst_port },
                         (bit<32>)MAGLEV_SLOTS);
                    maglev.apply();
                    if (meta.backend == 0) {
                        drop();  // a service without backends
                        return;
                    }
                    if (meta.guarded == 1 && meta.opens == 1) {
                        meta.reason = REASON_GUARDED;
                        meta.id = meta.service;
                    }
                }
            }
            if (meta.backend != 0 && meta.reason == 0) {
                if (!backend.apply().hit) {
                    return;
                }
            }

            // What comes back from a hold has been this way: it was sent before its source was frozen. Were it
            // asked again, the holds of a connection's two ends would hand it to each other.
            if (meta.reason == 0 && meta.resume_id == 0 && meta.stays == 0) {
                if (hold_source.apply().hit) {
                    holding_source.apply();
                }
            }
            if (meta.reason == 0 && meta.stays == 0) {
                if (hold.apply().hit) {
                    if (meta.id != meta.resume_id) {
                        holding.apply();
                    }
                }
            }
            if (meta.reason != 0) {
                punt();
                return;
            }

            if (meta.pinned == 0 && meta.service != 0) {
                report(EVENT_OPENED);
            }
            if (meta.pinned == 1 && meta.closing != 0) {
                report(EVENT_CLOSING);
            }
            if (meta.backend != 0) {
                service_counter.count(meta.service);
                backend_counter.count(meta.backend);
            }

            meta.l4_length = hdr.ipv4.total_length - 20;
            hdr.ipv4.src = meta.as_addr;
            hdr.ipv4.dst = meta.to_addr;
            if (hdr.tcp.isValid()) {
                hdr.tcp.src_port = meta.as_port;
                hdr.tcp.dst_port = meta.to_port;
            } else {
                hdr.udp.src_port = meta.as_port;
                hdr.udp.dst_port = meta.to_port;
            }
        }
        route.apply();
    }
}

@name("Egress")
control BalancerEgress(inout headers_t hdr, inout metadata_t meta,
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
        // RFC 768: zero means that the sender computed no checksum.
        update_checksum_with_payload(hdr.udp.isValid() && hdr.udp.checksum != 0,
            { hdr.ipv4.src, hdr.ipv4.dst, 8w0, hdr.ipv4.protocol, meta.l4_length,
              hdr.udp.src_port, hdr.udp.dst_port, hdr.udp.length },
            hdr.udp.checksum, HashAlgorithm.csum16);
        update_checksum_with_payload(hdr.icmp.isValid(),
            { hdr.icmp.icmp_type, hdr.icmp.code },
            hdr.icmp.checksum, HashAlgorithm.csum16);
    }
}

control PacketDeparser(packet_out packet, in headers_t hdr) {
    apply {
        packet.emit(hdr.packet_in);
        packet.emit(hdr.ethernet);
        packet.emit(hdr.arp);
        packet.emit(hdr.ipv4);
        packet.emit(hdr.icmp);
        packet.emit(hdr.tcp);
        packet.emit(hdr.udp);
    }
}

V1Switch(PacketParser(), VerifyChecksums(), BalancerIngress(), BalancerEgress(), ComputeChecksums(), PacketDeparser()) main;
