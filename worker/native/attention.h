/* Attention of one new token of each of several sessions. */

#ifndef BRIGADE_ATTENTION_H
#define BRIGADE_ATTENTION_H

#include "kernels.h"

#if HAS_KERNELS

/* Where a session's keys and values lie, those of each position side by side. Strides are bytes. */
typedef struct {
    const char *keys, *values;
    ptrdiff_t keys_by_head, keys_by_position, values_by_head, values_by_position, n_positions;
} Kept;

typedef struct {
    const char *queries; /* of `kind`, as is all else */
    ptrdiff_t by_session, by_head; /* bytes from one query to the next */
    void *result; /* (n_sessions, n_heads, value_width) */
    const Kept *kept; /* of each session */
    ptrdiff_t n_sessions, n_heads, n_key_heads, width, value_width; /* both widths are multiples of 16 */
    float scaling;
    enum kind kind;
    int n_threads;
} Attention;

/* 0, or -1 for want of memory. */
int attend(const Attention *attention);

#endif
#endif
