/* What is done with rows of a few sessions besides products and attention. Strides are bytes. */

#ifndef BRIGADE_ROWS_H
#define BRIGADE_ROWS_H

#include "kernels.h"

#if HAS_KERNELS

/* Rows (n_rows, width) normed by their root mean square, times `scale` (width,); width is a multiple of 16. */
typedef struct {
    const char *x, *scale;
    char *result;
    ptrdiff_t n_rows, width;
    float eps;
    enum kind kind;
    int n_threads;
} Norm;

void norm_rows(const Norm *norm);

/* x * cos + (x's halves exchanged) * sin, each product rounded: rotary embeddings. x and the result are
   (n_heads, n_positions, width), cos and sin (n_positions, width) without gaps; half a width is a multiple of 16. */
typedef struct {
    const char *x, *cos, *sin;
    char *result;
    ptrdiff_t n_heads, n_positions, width, x_by_head, x_by_position, result_by_head, result_by_position;
    enum kind kind;
} Rotation;

void rotate(const Rotation *rotation);

/* Where a session keeps its keys, and after `to_values` bytes its values: (n_heads, capacity, width) each. */
typedef struct {
    char *keys;
    ptrdiff_t to_values, by_head, by_position, position;
} Room;

/* A new position of each session, of (n_heads, n_sessions, width). */
typedef struct {
    const char *keys, *values;
    ptrdiff_t keys_by_head, keys_by_session, values_by_head, values_by_session, n_heads, width_bytes;
    const Room *rooms; /* of each session */
    ptrdiff_t n_sessions;
} Keeping;

void keep(const Keeping *keeping);

#endif
#endif
