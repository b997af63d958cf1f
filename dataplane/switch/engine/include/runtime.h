/* What works on the generated `struct packet`: parsing, counting, and the ways out of the switch.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef P4FERRY_RUNTIME_H
#define P4FERRY_RUNTIME_H

/* ---- maps that every program has */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct packet);
	__uint(max_entries, 1);
} p4_scratch SEC(".maps");

/* Port number to interface index; 0: no such port. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, u32);
	__type(value, u32);
	__uint(max_entries, 512);
} p4_ports SEC(".maps");

/* Interface index to port number. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, u32);
	__type(value, u32);
	__uint(max_entries, 1024);
} p4_port_of SEC(".maps");

/* Packet-in and digests, in the order in which they happened. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, P4_EVENT_BYTES);
} p4_events SEC(".maps");

enum { LOST_DIGEST, LOST_PACKET_IN, LOST_RESHAPE, LOST_KINDS };

CELLS(p4_lost, u64, LOST_KINDS);

/* The packet that is just being sent from the CPU port. Its header comes here, not in the packet, which so stays
 * an Ethernet frame that the kernel can segment. `length` is the frame's true length: shorter ones are padded. */
struct packet_out {
	u32 length;
	u32 front_length;
	u8 front[P4_FRONT_BYTES];
};

CELLS(p4_packet_out, struct packet_out, 1);

#ifdef P4_HOLD_HEADER
/* Hold queues (hold_queues.py): packet-ins that wait in the kernel and come back as packet-outs. UDP's datagrams wait
 * in a lane of their own, since they leave no faster than they are read; a flow is in one lane as a whole. */
enum { STREAM_LANE, DATAGRAM_LANE, HOLD_LANES };
enum { INET_TCP = 6, INET_UDP = 17 };

struct hold_lane {
	u64 in_flight; /* segments between the way in and the way out */
	u64 waiting; /* their bytes */
	u64 left; /* segments that ever came out, and their bytes */
	u64 left_bytes;
	u32 ifindex; /* where packets wait */
	u32 cpu; /* that put in the last one */
};

struct hold_queue {
	u64 holding; /* else what comes goes on, behind what waits */
	u64 packets; /* ever held */
	u64 bytes;
	u64 dropped;
	u64 budget; /* of bytes */
	struct hold_lane lanes[HOLD_LANES];
	u32 front_length;
	u8 front[P4_FRONT_BYTES]; /* the packet-out header to come back with, but for the port */
};

/* Packet-in header, its port zero, to the queue's number. */
struct held_key {
	u64 words[2];
};

/* What a packet is marked with that waits: by its lane, with the queue's number and the port that it came in on. */
#define HOLD_MARK 0x71000000u
#define HOLD_DATAGRAM_MARK 0x72000000u

CELLS(p4_hold_queues, struct hold_queue, P4_HOLD_QUEUES);
EXACT(p4_held, struct held_key, u32, P4_HOLD_QUEUES);

/* The program itself, for a packet that is to be processed a second time. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, u32);
	__type(value, u32);
	__uint(max_entries, 1);
} p4_again SEC(".maps");
#endif

static __always_inline void lost(u32 kind)
{
	u64 *cell = bpf_map_lookup_elem(&p4_lost, &kind);

	if (cell)
		add_to(cell, 1);
}

/* ---- pipeline */

#define is_valid(p, bit) (((p)->valid & (bit)) != 0)

static __always_inline void count(struct packet *p, struct counter *counter)
{
	if (!counter)
		return;
	add_to(&counter->packets, 1);
	add_to(&counter->bytes, p->length + p->front_length);
}

/* Note when a row is hit, to the kernel's tick: its processors write the cell as seldom as that. */
static __always_inline void hit_now(u64 *time)
{
	u64 now = bpf_ktime_get_coarse_ns();

	if (time && *time != now)
		*time = now;
}

static __always_inline enum parser_state too_short(struct packet *p)
{
	p->error = ERROR_PACKET_TOO_SHORT;
	return STATE_DONE;
}

/* Copy the next header's bytes. */
static __always_inline bool extract(struct __sk_buff *skb, struct packet *p, u8 *to, u32 size)
{
	u32 at = p->offset;

	if (at + size > p->length || bpf_skb_load_bytes(skb, at, to, size))
		return false;
	p->offset = at + size;
	return true;
}

static __always_inline bool look_ahead(struct __sk_buff *skb, struct packet *p, u32 skip, u8 *to, u32 size)
{
	return p->offset + skip + size <= p->length && !bpf_skb_load_bytes(skb, p->offset + skip, to, size);
}

static __always_inline bool advance(struct packet *p, u64 bits)
{
	if (bits / 8 > p->length || p->offset + bits / 8 > p->length)
		return false;
	p->offset += bits / 8;
	p->gap |= bits != 0;
	return true;
}

/* Copy a part of the packet-out header. */
static __always_inline bool extract_front(struct packet *p, u32 at, u8 *to, u32 size)
{
	if (at + size > p->front_length)
		return false;
	__builtin_memcpy(to, p->front + at, size);
	return true;
}

/* ---- to the controller: a record of the smallest class that holds the packet */

#define PACKET_IN(SIZE) \
	struct packet_in_##SIZE { \
		u32 kind; \
		u32 length; \
		u32 gso_size; \
		u32 parsed; \
		struct whereabouts where; \
		struct wire out; \
		u8 data[SIZE]; \
	}; \
	static __always_inline bool packet_in_##SIZE(struct __sk_buff *skb, struct packet *p, u64 bytes) \
	{ \
		struct packet_in_##SIZE *event = bpf_ringbuf_reserve(&p4_events, sizeof(*event), 0); \
		if (!event) \
			return false; \
		event->kind = EVENT_PACKET_IN; \
		event->length = p->length; \
		event->gso_size = context(skb, gso_size); \
		event->parsed = p->offset; \
		__builtin_memcpy(&event->where, &p->where, sizeof(event->where)); \
		__builtin_memcpy(&event->out, &p->out, sizeof(event->out)); \
		if (!is_size(&bytes, SIZE) || bpf_skb_load_bytes(skb, 0, event->data, bytes)) { \
			bpf_ringbuf_discard(event, 0); \
			return false; \
		} \
		bpf_ringbuf_submit(event, 0); \
		return true; \
	}

PACKET_IN(256)
PACKET_IN(2048)
PACKET_IN(16384)
PACKET_IN(69632)
PACKET_IN(200704)

static __always_inline int packet_in(struct __sk_buff *skb, struct packet *p)
{
	u64 bytes = context(skb, len);
	bool sent;

	if (bytes <= 256)
		sent = packet_in_256(skb, p, bytes);
	else if (bytes <= 2048)
		sent = packet_in_2048(skb, p, bytes);
	else if (bytes <= 16384)
		sent = packet_in_16384(skb, p, bytes);
	else if (bytes <= 69632)
		sent = packet_in_69632(skb, p, bytes);
	else
		sent = packet_in_200704(skb, p, bytes);
	if (!sent)
		lost(LOST_PACKET_IN);
	return TC_ACT_STOLEN;
}

/* ---- to a hold queue, if one waits for just this header in front of an untouched packet */

#ifdef P4_HOLD_HEADER
/* A GSO packet may leave the queue in pieces. */
static __always_inline u64 segments(struct __sk_buff *skb)
{
	u32 segments = context(skb, gso_segs);

	return segments > 1 ? segments : 1;
}

static __always_inline bool is_datagram(struct __sk_buff *skb, const struct packet *p)
{
	u32 type = to_network16(context(skb, protocol)), at = 14 + p->tag_bytes;
	u8 protocol = 0;

	if (type == 0x0800)
		at += 9;
	else if (type == 0x86dd)
		at += 6;
	else
		return false;
	return bpf_skb_load_bytes(skb, at, &protocol, 1) == 0 && protocol == INET_UDP;
}

/* True if a packet is on the account of a socket that has no use for it. TCP's knows by it that a packet has not left
 * yet, and neither repeats it nor sends more than it may have queued. Any other would have no room to send, to
 * whomever, until the hold ends. */
static __always_inline bool is_charged_in_vain(struct __sk_buff *skb)
{
	struct bpf_sock *sk = context_pointer(skb, sk);

	if (!sk)
		return false;
	sk = bpf_sk_fullsock(sk);
	return sk && sk->protocol != INET_TCP;
}

static __always_inline bool hold(struct __sk_buff *skb, struct packet *p, int *verdict)
{
	u32 *number, mark, length = context(skb, len);
	struct held_key key = {};
	struct hold_queue *queue;
	struct hold_lane *lane;

	if (p->where.emitted != (p->where.extracted | P4_HOLD_HEADER) || p->changed || p->gap ||
	    length > P4_HOLD_BYTES)
		return false;
	__builtin_memcpy(&key, p->out.P4_HOLD_NAME, sizeof(p->out.P4_HOLD_NAME));
	((u8 *)&key)[P4_HOLD_IN_PORT] = 0;
	((u8 *)&key)[P4_HOLD_IN_PORT + 1] = 0;
	number = bpf_map_lookup_elem(&p4_held, &key);
	if (!number)
		return false;
	queue = bpf_map_lookup_elem(&p4_hold_queues, number);
	if (!queue)
		return false;
	*verdict = TC_ACT_SHOT;
	mark = (*number & 0xff) << 16 | load16(p->out.P4_HOLD_NAME + P4_HOLD_IN_PORT);
	if (is_datagram(skb, p)) {
		lane = &queue->lanes[DATAGRAM_LANE];
		mark |= HOLD_DATAGRAM_MARK;
	} else {
		lane = &queue->lanes[STREAM_LANE];
		mark |= HOLD_MARK;
	}
	if (!queue->holding && (s64)lane->in_flight <= 0) {
		/* Nothing is in front of it: it comes back at once. */
		p->resume = mark;
		bpf_tail_call(skb, &p4_again, 0);
		p->resume = 0;
		return true;
	}
	/* Nobody's send buffer bounds the datagrams: what each takes beside its bytes counts as well. */
	if (queue->lanes[STREAM_LANE].waiting + queue->lanes[DATAGRAM_LANE].waiting +
		    queue->lanes[DATAGRAM_LANE].in_flight * P4_DATAGRAM_OVERHEAD + length >
	    queue->budget) {
		add_to(&queue->dropped, 1);
		return true;
	}
	add_to(&lane->in_flight, segments(skb));
	add_to(&lane->waiting, length);
	lane->cpu = bpf_get_smp_processor_id();
	skb->mark = mark;
	if (is_charged_in_vain(skb)) {
		/* A clone shares the bytes and is nobody's; this one is given back to its sender. */
		*verdict = TC_ACT_STOLEN;
		if (bpf_clone_redirect(skb, lane->ifindex, 0)) {
			add_to(&lane->in_flight, -segments(skb));
			add_to(&lane->waiting, -(u64)length);
			add_to(&queue->dropped, 1);
			return true;
		}
	} else {
		*verdict = bpf_redirect(lane->ifindex, 0);
	}
	if (queue->holding) {
		add_to(&queue->packets, 1);
		add_to(&queue->bytes, length);
	}
	return true;
}

/* Give a packet that comes back the packet-out header of its queue. */
static __always_inline bool come_back(struct packet *p, const struct hold_queue *queue, u32 mark)
{
	p->standard_metadata.ingress_port = CPU_PORT;
	p->front_length = queue->front_length;
	__builtin_memcpy(p->front, queue->front, P4_FRONT_BYTES);
	store16(p->front + P4_HOLD_OUT_PORT, mark);
	return true;
}

static __always_inline struct hold_queue *queue_of(u32 mark)
{
	u32 number = mark >> 16 & 0xff;

	return bpf_map_lookup_elem(&p4_hold_queues, &number);
}

static __always_inline bool leave_queue(struct __sk_buff *skb, struct packet *p)
{
	u32 mark = context(skb, mark);
	struct hold_queue *queue = queue_of(mark);
	struct hold_lane *lane;

	if (!queue)
		return false;
	if ((mark & 0xff000000) == HOLD_DATAGRAM_MARK)
		lane = &queue->lanes[DATAGRAM_LANE];
	else
		lane = &queue->lanes[STREAM_LANE];
	add_to(&lane->waiting, -(u64)context(skb, len));
	add_to(&lane->in_flight, -segments(skb));
	add_to(&lane->left, segments(skb));
	add_to(&lane->left_bytes, context(skb, len));
	if ((s64)lane->in_flight <= 0 || (s64)lane->waiting < 0)
		lane->waiting = 0; /* the pieces of a GSO packet have more headers */
	skb->mark = 0;
	return come_back(p, queue, mark);
}
#endif

static __always_inline int to_controller(struct __sk_buff *skb, struct packet *p)
{
#ifdef P4_HOLD_HEADER
	int verdict;

	if (hold(skb, p, &verdict))
		return verdict;
#endif
	return packet_in(skb, p);
}

/* ---- to a port */

/* Make room for headers that came, close the gap of those that went: `old` bytes of headers become `new`. */
static __always_inline bool resize(struct __sk_buff *skb, struct packet *p, u32 old, u32 new)
{
	s32 more = (s32)new - (s32)old;

	if (more == 0)
		return true;
	if (more > 0)
		return bpf_skb_change_head(skb, more, 0) == 0;
	/* Takes bytes out behind what the kernel holds for the link header, which is rewritten anyway; for IP only. */
	if (new >= 14 + p->tag_bytes && bpf_skb_adjust_room(skb, more, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) == 0)
		return true;
#ifdef P4_MOVES_PAYLOAD
	u32 length = context(skb, len);
	u64 rest = length - old;
	struct moved *moved = bpf_map_lookup_elem(&p4_moved, &(u32){ 0 });

	if (!moved || context(skb, gso_size) || old > length)
		return false;
	if (old == length)
		return bpf_skb_change_tail(skb, new, 0) == 0;
	if (!is_size(&rest, sizeof(moved->bytes)) || bpf_skb_load_bytes(skb, old, moved->bytes, rest))
		return false;
	if (bpf_skb_change_tail(skb, new + rest, 0) || !is_size(&rest, sizeof(moved->bytes)))
		return false;
	return bpf_skb_store_bytes(skb, new, moved->bytes, rest, 0) == 0;
#else
	return false;
#endif
}

static __always_inline int send_to(struct __sk_buff *skb, u32 port)
{
	u32 *ifindex = bpf_map_lookup_elem(&p4_ports, &port);

	if (!ifindex || *ifindex == 0)
		return TC_ACT_SHOT;
	return bpf_redirect(*ifindex, 0);
}

/* The kernel takes up to two VLAN tags out of a packet before tc sees it, and a P4 program wants them where they
 * were on the wire. */
static __always_inline bool restore_tags(struct __sk_buff *skb, struct packet *p)
{
	u32 tags[2] = {};
	u32 count;
	u8 addresses[12];

#pragma clang loop unroll(full)
	for (u32 i = 0; i < 2; i++) {
		if (i && !context(skb, vlan_present))
			break;
		tags[i] = to_network32((u32)to_network16(context(skb, vlan_proto)) << 16 |
				       (context(skb, vlan_tci) & 0xffff));
		if (bpf_skb_vlan_pop(skb))
			return false;
		count = i + 1;
	}
	p->tag_bytes = 4 * count;
	if (bpf_skb_load_bytes(skb, 0, addresses, sizeof(addresses)) || bpf_skb_change_head(skb, 4 * count, 0))
		return false;
	return bpf_skb_store_bytes(skb, 0, addresses, sizeof(addresses), 0) == 0 &&
	       bpf_skb_store_bytes(skb, 12, tags, 4, 0) == 0 &&
	       (count == 1 || bpf_skb_store_bytes(skb, 16, tags + 1, 4, 0) == 0);
}

/* Fill in where a packet comes from; false if it is none of ours. */
static __always_inline bool arrive(struct __sk_buff *skb, struct packet *p)
{
	u32 ifindex = context(skb, ifindex);
	u32 *port;

#ifdef P4_HOLD_HEADER
	if (p->resume) {
		u32 mark = p->resume;
		struct hold_queue *queue = queue_of(mark);

		p->resume = 0;
		p->length = context(skb, len);
		return queue && come_back(p, queue, mark);
	}
#endif
	port = bpf_map_lookup_elem(&p4_port_of, &ifindex);
	if (!port)
		return false;
	if (context(skb, vlan_present) && !restore_tags(skb, p))
		return false;
	p->standard_metadata.ingress_port = *port & 511;
	p->length = context(skb, len);
	if (*port == CPU_PORT) {
		struct packet_out *out = bpf_map_lookup_elem(&p4_packet_out, &(u32){ 0 });

#ifdef P4_HOLD_HEADER
		u32 kind = context(skb, mark) & 0xff000000;

		if (kind == HOLD_MARK || kind == HOLD_DATAGRAM_MARK)
			return leave_queue(skb, p);
#endif
		/* What the host's own stack sends there is not for us. */
		if (!out || context(skb, mark) != PACKET_OUT_MARK)
			return false;
		skb->mark = 0;
		p->front_length = out->front_length;
		__builtin_memcpy(p->front, out->front, P4_FRONT_BYTES);
		if (out->length < p->length)
			p->length = out->length;
	}
	return true;
}

#endif
