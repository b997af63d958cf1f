/* The types of all generated code.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef P4FERRY_TYPES_H
#define P4FERRY_TYPES_H

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_helpers.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;

#endif
