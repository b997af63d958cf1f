/* Bounds that the verifiers of Linux 5.15 and later follow, and other places where clang's freedom and theirs collide.
 *
 * A verifier proves what it reads in the instructions, not what the C says. clang may drop a test or a mask that it
 * can prove unnecessary, test another value than the one that is used, or use a value before its test. So:
 *
 *  - What memory access or helper depends on is an u64: older verifiers lose a bound of 32 bits that is spilled (5.15).
 *  - It is bounded by one unsigned comparison with a constant, or by a mask, between two `hide`s: clang can neither
 *    know the outcome in advance, nor compute anything from the value before it.
 *  - The result of a branch goes to memory at once (`settle`): while clang keeps it in a register or on the stack,
 *    6.1's verifier goes through everything after it once for either way, and so for every combination of many.
 *  - No lower bound is learnt from a comparison with zero (before 6.8), and nothing at all about the result of an XOR,
 *    OR or multiplication with an unknown value (before 6.10).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef P4FERRY_BOUNDS_H
#define P4FERRY_BOUNDS_H

#include "types.h"

/* Makes clang forget what it knows of a variable; costs no instruction. */
#define hide(x) asm volatile("" : "+r"(x))

/* The low bits of a value, by an instruction that stays whatever clang knows; MASK is a constant 2^n - 1 of at most
 * 31 bits. For an index into an array of 2^n. */
#define masked(x, MASK) \
	({ \
		u64 masked_ = (x); \
		_Static_assert((MASK) > 0 && (MASK) <= 0x7fffffff && ((MASK) & ((MASK) + 1)) == 0, "no mask"); \
		asm volatile("%0 &= %1" : "+r"(masked_) : "i"(MASK)); \
		masked_; \
	})

/* Is *x less than the constant `limit`? Then *x, from here on, can be an index or an offset. */
static __always_inline bool below(u64 *x, u64 limit)
{
	hide(*x);
	if (*x >= limit)
		return false;
	hide(*x);
	return true;
}

/* Is *size 1 to the constant `most`? Then *size, from here on, is good for a helper that wants at least one byte. */
static __always_inline bool is_size(u64 *size, u64 most)
{
	*size -= 1;
	if (!below(size, most))
		return false;
	asm volatile("%0 += 1" : "+r"(*size));
	return true;
}

/* Everything is in memory from here on, and what comes reads it from there. */
#define settle() asm volatile("" ::: "memory")

/* A field of the context, by an instruction of its own: clang may otherwise compute the field's address first
 * ("dereference of modified ctx ptr"). All that we read have 32 bits. */
#define context(skb, FIELD) \
	({ \
		u64 context_; \
		_Static_assert(sizeof((skb)->FIELD) == 4, "no field of 32 bits"); \
		asm volatile("%0 = *(u32 *)(%1 + %2)" \
			     : "=r"(context_) \
			     : "r"(skb), "i"(offsetof(struct __sk_buff, FIELD))); \
		(u32)context_; \
	})

/* The same for one that is a pointer. */
#define context_pointer(skb, FIELD) \
	({ \
		void *context_; \
		_Static_assert(sizeof((skb)->FIELD) == 8, "no pointer"); \
		asm volatile("%0 = *(u64 *)(%1 + %2)" \
			     : "=r"(context_) \
			     : "r"(skb), "i"(offsetof(struct __sk_buff, FIELD))); \
		context_; \
	})

/* Add to a cell that other CPUs add to as well, in the order in which it is written. (clang 22 makes an instruction
 * that fetches of __sync_fetch_and_add, also where nobody asks for the old value; not every JIT of 5.15 can.) */
#define add_to(cell, n) \
	do { \
		u64 *cell_ = (cell), n_ = (n); \
		asm volatile("lock *(u64 *)(%0 + 0) += %1" : : "r"(cell_), "r"(n_) : "memory"); \
	} while (0)

#endif
