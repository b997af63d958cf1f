// A moved program's view of its own address; see ownaddress.py. Attached to its control group (BPF_PROG_TYPE_CGROUP_SOCK_ADDR).
#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

#define LEVELS 16

struct place {
	__u64 netns; // cookie
	__u32 address; // in network order, as in the sockets' addresses
	__u16 port; // in network order; 0: any
	__u16 protocol; // 0: any
};

struct name {
	__u32 address;
	__u16 port;
	__u16 unused;
};

struct group {
	__u64 id;
	__u32 level;
	__u32 unused;
};

// The one element says whose calls are meant: those of processes below this group.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct group);
	__uint(max_entries, 1);
} own_group SEC(".maps");

// What the program calls itself, by where its sockets really are.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct place);
	__type(value, struct name);
	__uint(max_entries, 65536);
} own_names SEC(".maps");

// Addresses that are its own although the host does not have them, and the one that the host has.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct place);
	__type(value, struct name);
	__uint(max_entries, 64);
} own_first SEC(".maps");

// What it has bound at such an address since, of which the switch knows nothing.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct place);
	__type(value, struct name);
	__uint(max_entries, 1024);
} own_fresh SEC(".maps");

static __always_inline bool is_meant(void)
{
	__u32 zero = 0;
	struct group *group = bpf_map_lookup_elem(&own_group, &zero);

	// What p4ferry itself does with a program's sockets is to see them as they are.
	return group != NULL && bpf_get_current_ancestor_cgroup_id((int)group->level) == group->id;
}

static __always_inline struct place place_of(struct bpf_sock_addr *ctx, __u32 address, bool with_port)
{
	struct place place = { .netns = bpf_get_netns_cookie(ctx), .address = address };

	if (with_port) {
		place.port = (__u16)ctx->user_port;
		place.protocol = (__u16)ctx->protocol;
	}
	return place;
}

// Where a socket is to be bound.
static __always_inline __u32 bound_at(struct bpf_sock_addr *ctx, __u32 address)
{
	struct place any = place_of(ctx, address, false), exact;
	struct name *here, bound;

	if (!is_meant() || (here = bpf_map_lookup_elem(&own_first, &any)) == NULL)
		return address;
	exact = place_of(ctx, address, true);
	if (exact.port != 0) {
		bound = *here;
		bpf_map_update_elem(&own_fresh, &exact, &bound, BPF_ANY);
	}
	return here->address;
}

// Where a connection or a datagram goes: to itself, if that is what it has bound.
static __always_inline __u32 called_at(struct bpf_sock_addr *ctx, __u32 address)
{
	struct place exact = place_of(ctx, address, true);
	struct name *here = is_meant() ? bpf_map_lookup_elem(&own_fresh, &exact) : NULL;

	return here != NULL ? here->address : address;
}

// What the program is told of one of its ends.
static __always_inline __u32 known_as(struct bpf_sock_addr *ctx, __u32 address)
{
	struct place exact = place_of(ctx, address, true);
	struct name *name = is_meant() ? bpf_map_lookup_elem(&own_names, &exact) : NULL;

	if (name == NULL)
		return address;
	ctx->user_port = name->port;
	return name->address;
}

#define HOOK(NAME, CHANGE)                                                                                      \
	SEC("cgroup/" #NAME "4")                                                                                \
	int own_##NAME##4(struct bpf_sock_addr * ctx)                                                           \
	{                                                                                                       \
		ctx->user_ip4 = CHANGE(ctx, ctx->user_ip4);                                                     \
		return 1;                                                                                       \
	}                                                                                                       \
	SEC("cgroup/" #NAME "6") /* of which those that stand for IPv4 addresses (RFC 4291, 2.5.5.2) */           \
	int own_##NAME##6(struct bpf_sock_addr * ctx)                                                           \
	{                                                                                                       \
		if (ctx->user_ip6[0] == 0 && ctx->user_ip6[1] == 0 && ctx->user_ip6[2] == __builtin_bswap32(0xffff)) \
			ctx->user_ip6[3] = CHANGE(ctx, ctx->user_ip6[3]);                                       \
		return 1;                                                                                       \
	}

HOOK(bind, bound_at)
HOOK(connect, called_at)
HOOK(sendmsg, called_at)
HOOK(recvmsg, known_as)
HOOK(getsockname, known_as)
HOOK(getpeername, known_as)

char LICENSE[] SEC("license") = "Apache-2.0";
