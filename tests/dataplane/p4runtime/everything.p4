/* One of everything that P4Runtime serves here: every match kind, const entries, counters, a register.
 * A packet's UDP destination port, source address, and so on choose rows; the answer goes back where it came from. */
#include <core.p4>
#include <v1model.p4>

header ethernet_h { bit<48> dst; bit<48> src; bit<16> ethertype; }
header ipv4_h {
    bit<4> version; bit<4> ihl; bit<8> tos; bit<16> total_length; bit<16> identification; bit<3> flags;
    bit<13> fragment_offset; bit<8> ttl; bit<8> protocol; bit<16> checksum; bit<32> src; bit<32> dst;
}
header udp_h { bit<16> src_port; bit<16> dst_port; bit<16> length; bit<16> checksum; }
struct headers_t { ethernet_h ethernet; ipv4_h ipv4; udp_h udp; }
struct metadata_t { }

parser P(packet_in packet, out headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    state start {
        packet.extract(hdr.ethernet);
        transition select(hdr.ethernet.ethertype) { 0x0800: ipv4; default: accept; }
    }
    state ipv4 {
        packet.extract(hdr.ipv4);
        transition select(hdr.ipv4.protocol) { 17: udp; default: accept; }
    }
    state udp { packet.extract(hdr.udp); transition accept; }
}
control V(inout headers_t hdr, inout metadata_t meta) { apply { } }
control MyIngress(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    counter(16, CounterType.packets) seen;
    direct_counter(CounterType.packets_and_bytes) hits;
    register<bit<32>>(8) last;

    action drop() { mark_to_drop(sm); }
    action answer(bit<8> mark) {
        hdr.ethernet.dst[7:0] = mark;
        sm.egress_spec = sm.ingress_port;
        seen.count((bit<32>)mark);
        last.write(0, hdr.ipv4.src);
        hits.count();
    }
    table acl {
        key = {
            hdr.ipv4.protocol: exact @name("protocol");
            hdr.ipv4.src: ternary @name("src");
            hdr.udp.dst_port: range @name("port");
            hdr.ipv4.tos: optional @name("tos");
        }
        actions = { answer; drop; }
        default_action = drop();
        counters = hits;
        size = 64;
    }
    action set_ttl(bit<8> ttl) { hdr.ipv4.ttl = ttl; }
    table classes {
        key = { hdr.ipv4.tos: exact @name("tos"); }
        actions = { set_ttl; NoAction; }
        const entries = { 1: set_ttl(11); 2: set_ttl(22); }
        const default_action = NoAction();
    }
    apply {
        if (hdr.udp.isValid()) {
            classes.apply();
            acl.apply();
        } else {
            drop();
        }
    }
}
control E(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) { apply { } }
control C(inout headers_t hdr, inout metadata_t meta) { apply { } }
control D(packet_out packet, in headers_t hdr) {
    apply { packet.emit(hdr.ethernet); packet.emit(hdr.ipv4); packet.emit(hdr.udp); }
}
V1Switch(P(), V(), MyIngress(), E(), C(), D()) main;
