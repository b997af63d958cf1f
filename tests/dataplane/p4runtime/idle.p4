/* Tables of every kind with idle time-outs (v1model's support_timeout), and one without.
 * The destination address of a frame is the key of all; the frame goes back where it came from. */
#include <core.p4>
#include <v1model.p4>

header ethernet_h { bit<48> dst; bit<48> src; bit<16> ethertype; }
struct headers_t { ethernet_h ethernet; }
struct metadata_t { }

parser P(packet_in packet, out headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    state start { packet.extract(hdr.ethernet); transition accept; }
}
control V(inout headers_t hdr, inout metadata_t meta) { apply { } }
control MyIngress(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    direct_counter(CounterType.packets) hits;
    action reflect() { sm.egress_spec = sm.ingress_port; }
    action counted() { sm.egress_spec = sm.ingress_port; hits.count(); }

    table one {
        key = { hdr.ethernet.dst: exact @name("dst"); }
        actions = { counted; NoAction; }
        default_action = NoAction();
        counters = hits;
        support_timeout = true;
        size = 16384;
    }
    table prefix {
        key = { hdr.ethernet.dst: lpm @name("dst"); }
        actions = { reflect; NoAction; }
        default_action = NoAction();
        support_timeout = true;
    }
    table masked {
        key = { hdr.ethernet.dst: ternary @name("dst"); }
        actions = { reflect; NoAction; }
        default_action = NoAction();
        support_timeout = true;
    }
    table forever {
        key = { hdr.ethernet.dst: exact @name("dst"); }
        actions = { reflect; NoAction; }
        default_action = NoAction();
    }
    apply {
        mark_to_drop(sm);
        one.apply();
        prefix.apply();
        masked.apply();
        forever.apply();
    }
}
control E(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) { apply { } }
control C(inout headers_t hdr, inout metadata_t meta) { apply { } }
control D(packet_out packet, in headers_t hdr) { apply { packet.emit(hdr.ethernet); } }
V1Switch(P(), V(), MyIngress(), E(), C(), D()) main;
