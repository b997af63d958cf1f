/* Headers and the controller's two packet headers, shared by the programs in this folder.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef P4FERRY_HEADERS_P4
#define P4FERRY_HEADERS_P4

typedef bit<48> mac_t;
typedef bit<32> ipv4_t;
typedef bit<16> l4_port_t;

const bit<16> ETHERTYPE_IPV4 = 0x0800;
const bit<16> ETHERTYPE_ARP  = 0x0806;
const bit<8>  PROTO_ICMP = 1;
const bit<8>  PROTO_TCP  = 6;
const bit<8>  PROTO_UDP  = 17;
const bit<16> ARP_REQUEST = 1;
const bit<16> ARP_REPLY   = 2;
const bit<8>  ICMP_ECHO_REPLY   = 0;
const bit<8>  ICMP_ECHO_REQUEST = 8;

header ethernet_h {
    mac_t   dst;
    mac_t   src;
    bit<16> ethertype;
}

// RFC 826, for IPv4 over Ethernet only.
header arp_h {
    bit<16> htype;
    bit<16> ptype;
    bit<8>  hlen;
    bit<8>  plen;
    bit<16> oper;
    mac_t   sha;
    ipv4_t  spa;
    mac_t   tha;
    ipv4_t  tpa;
}

// RFC 791 without options: packets with options are not parsed further, and dropped.
header ipv4_h {
    bit<4>  version;
    bit<4>  ihl;
    bit<8>  tos;
    bit<16> total_length;
    bit<16> identification;
    bit<3>  flags;
    bit<13> fragment_offset;
    bit<8>  ttl;
    bit<8>  protocol;
    bit<16> checksum;
    ipv4_t  src;
    ipv4_t  dst;
}

header icmp_h {
    bit<8>  icmp_type;
    bit<8>  code;
    bit<16> checksum;
}

// RFC 9293; options stay in the payload.
header tcp_h {
    l4_port_t src_port;
    l4_port_t dst_port;
    bit<32>   sequence;
    bit<32>   acknowledgement;
    bit<4>    data_offset;
    bit<4>    reserved;
    bit<8>    flags;
    bit<16>   window;
    bit<16>   checksum;
    bit<16>   urgent;
}

header udp_h {
    l4_port_t src_port;
    l4_port_t dst_port;
    bit<16>   length;
    bit<16>   checksum;
}

#endif
