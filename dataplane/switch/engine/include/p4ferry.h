/* What every generated program starts with: map kinds, and pure helpers.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef P4FERRY_H
#define P4FERRY_H

#include "bounds.h"
#include "types.h"

/* ---- maps */

/* One row per key; memory is taken as rows come. */
#define EXACT(name, K, V, N) \
	struct { \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__type(key, K); \
		__type(value, V); \
		__uint(max_entries, N); \
	} name SEC(".maps")

/* Longest prefix first; the kernel wants BPF_F_NO_PREALLOC for these. */
#define LPM(name, K, V, N) \
	struct { \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE); \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__type(key, K); \
		__type(value, V); \
		__uint(max_entries, N); \
	} name SEC(".maps")

/* A value that the control plane replaces as a whole: a hash of one, since updates of a hash are atomic. */
#define SINGLE(name, V) \
	struct { \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__type(key, u32); \
		__type(value, V); \
		__uint(max_entries, 1); \
	} name SEC(".maps")

/* Arrays that the control plane reads through shared memory. */
#define CELLS(name, V, N) \
	struct { \
		__uint(type, BPF_MAP_TYPE_ARRAY); \
		__uint(map_flags, BPF_F_MMAPABLE); \
		__type(key, u32); \
		__type(value, V); \
		__uint(max_entries, N); \
	} name SEC(".maps")

struct counter {
	u64 packets;
	u64 bytes;
};

#define COUNTERS(name, N) CELLS(name, struct counter, N)
#define REGISTERS(name, N) CELLS(name, u64, N)
#define TIMES(name, N) CELLS(name, u64, N)

/* ---- what a table's apply function returns: the action's id, and whether a row matched */

#define HIT 0x80000000u
#define NO_ACTION 0x7fffffffu

/* ---- network order; addresses are read as they are aligned in their header */

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define to_network16(x) ((u16)__builtin_bswap16((u16)(x)))
#define to_network32(x) ((u32)__builtin_bswap32((u32)(x)))
#define to_network64(x) ((u64)__builtin_bswap64((u64)(x)))
#else
#define to_network16(x) ((u16)(x))
#define to_network32(x) ((u32)(x))
#define to_network64(x) ((u64)(x))
#endif

#define load16(at) to_network16(*(const u16 *)(at))
#define load32(at) to_network32(*(const u32 *)(at))
#define load64(at) to_network64(*(const u64 *)(at))
#define store16(at, x) (*(u16 *)(at) = to_network16(x))
#define store32(at, x) (*(u32 *)(at) = to_network32(x))
#define store64(at, x) (*(u64 *)(at) = to_network64(x))

/* ---- arithmetic of P4 that C does not have */

static __always_inline u64 sign_extend(u64 value, u32 width)
{
	return (u64)((s64)(value << (64 - width)) >> (64 - width));
}

static __always_inline u64 saturate(u64 value, u32 width)
{
	u64 most = (1ULL << width) - 1;

	if ((s64)value < 0)
		return 0;
	return value > most ? most : value;
}

static __always_inline u64 saturate_signed(u64 value, u32 width)
{
	s64 most = (s64)(1ULL << (width - 1)) - 1;

	if ((s64)value > most)
		return (u64)most;
	return (s64)value < -most - 1 ? (u64)(-most - 1) : value;
}

static __always_inline u64 shift_left(u64 value, u64 by)
{
	return by < 64 ? value << by : 0;
}

static __always_inline u64 shift_right(u64 value, u64 by)
{
	return by < 64 ? value >> by : 0;
}

static __always_inline u64 shift_right_signed(u64 value, u64 by)
{
	return (u64)((s64)value >> (by < 63 ? by : 63));
}

/* Both ends included; of an empty interval the low end. */
static __always_inline u64 random_between(u64 low, u64 high)
{
	u64 number = (u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32();
	u64 span = high - low + 1;

	return high < low ? low : low + (span ? number % span : number);
}

/* Compare `size` bytes; inlined, so that the size is a constant and the loop disappears. */
static __always_inline bool same_bytes(const u8 *one, const u8 *other, u32 size)
{
	u32 i = 0;

#pragma clang loop unroll(full)
	for (; i + 8 <= size; i += 8)
		if (*(const u64 *)(one + i) != *(const u64 *)(other + i))
			return false;
	if (size & 4) {
		if (*(const u32 *)(one + i) != *(const u32 *)(other + i))
			return false;
		i += 4;
	}
	if (size & 2) {
		if (*(const u16 *)(one + i) != *(const u16 *)(other + i))
			return false;
		i += 2;
	}
	return !(size & 1) || one[i] == other[i];
}

/* ---- one's complement sums of 16 bit words in host order (RFC 1071) */

static __always_inline u16 fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* A value of more than 32 bits, `shift` bits in front of a word's end. */
static __always_inline u64 sum_words(u64 value, u32 shift)
{
	return ((value & 0xffffffff) << shift) + ((value >> 32) << shift);
}

/* An even number of bytes in network order. */
static __always_inline u64 sum_bytes(const u8 *bytes, u32 size)
{
	u64 sum = 0;

#pragma clang loop unroll(full)
	for (u32 i = 0; i < size; i += 2)
		sum += (u32)bytes[i] << 8 | bytes[i + 1];
	return sum;
}

/* What bpf_l3_csum_replace and bpf_l4_csum_replace take as `to` with `from` and size 0. */
static __always_inline u32 difference(u16 before, u16 after)
{
	return to_network16(fold((u32)after + (u16)~before));
}

/* ---- hashes, byte by byte, with BMv2's parameters */

struct hash {
	u64 value;
	u32 count;
};

#ifdef P4_CRC32
static __always_inline struct hash crc32_start(void)
{
	return (struct hash){ 0xffffffff, 0 };
}

static __always_inline void crc32_add(struct hash *hash, u8 byte)
{
	hash->value = (hash->value >> 8) ^ crc32_table[masked(hash->value ^ byte, 0xff)];
}

static __always_inline u64 crc32_result(const struct hash *hash)
{
	return hash->value ^ 0xffffffff;
}
#endif

#ifdef P4_CRC16
static __always_inline struct hash crc16_start(void)
{
	return (struct hash){ 0, 0 };
}

static __always_inline void crc16_add(struct hash *hash, u8 byte)
{
	hash->value = (hash->value >> 8) ^ crc16_table[masked(hash->value ^ byte, 0xff)];
}

static __always_inline u64 crc16_result(const struct hash *hash)
{
	return hash->value;
}
#endif

static __always_inline struct hash csum16_start(void)
{
	return (struct hash){ 0, 0 };
}

static __always_inline void csum16_add(struct hash *hash, u8 byte)
{
	hash->value += hash->count++ & 1 ? byte : (u64)byte << 8;
}

static __always_inline u64 csum16_result(const struct hash *hash)
{
	return (u16)~fold(hash->value);
}

static __always_inline struct hash xor16_start(void)
{
	return (struct hash){ 0, 0 };
}

static __always_inline void xor16_add(struct hash *hash, u8 byte)
{
	hash->value ^= hash->count++ & 1 ? byte : (u64)byte << 8;
}

static __always_inline u64 xor16_result(const struct hash *hash)
{
	return hash->value;
}

static __always_inline struct hash identity_start(void)
{
	return (struct hash){ 0, 0 };
}

/* The first eight bytes. */
static __always_inline void identity_add(struct hash *hash, u8 byte)
{
	if (hash->count++ < 8)
		hash->value = hash->value << 8 | byte;
}

static __always_inline u64 identity_result(const struct hash *hash)
{
	return hash->value;
}

#endif
