/* Norms, rotary embeddings and what is kept of a step: of few rows, where torch's time is that of being called. */

#include "rows.h"

#if HAS_KERNELS

#include <math.h>

enum { SIXTEEN = 16 };

INLINE void norm_row(const Norm *norm, int is_16_bits, ptrdiff_t row)
{
    ptrdiff_t n_bytes = norm->width * (is_16_bits ? 2 : 4), sixteen_bytes = SIXTEEN * (is_16_bits ? 2 : 4);
    const char *x = norm->x + row * n_bytes;
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, first, second, first_scale, second_scale;
    for (ptrdiff_t at = 0; at < n_bytes; at += sixteen_bytes) {
        load_sixteen(x + at, is_16_bits, &first, &second);
        sums[0] = _mm256_fmadd_ps(first, first, sums[0]);
        sums[1] = _mm256_fmadd_ps(second, second, sums[1]);
    }
    float mean = sum_of(_mm256_add_ps(sums[0], sums[1])) / (float)norm->width;
    __m256 factor = _mm256_set1_ps(1 / sqrtf(mean + norm->eps));
    for (ptrdiff_t at = 0; at < n_bytes; at += sixteen_bytes) {
        load_sixteen(x + at, is_16_bits, &first, &second);
        load_sixteen(norm->scale + at, is_16_bits, &first_scale, &second_scale);
        store_sixteen(norm->result + row * n_bytes + at, is_16_bits,
                      _mm256_mul_ps(_mm256_mul_ps(first, factor), first_scale),
                      _mm256_mul_ps(_mm256_mul_ps(second, factor), second_scale));
    }
}

static VECTORS void norm_some(const Norm *norm, ptrdiff_t start, ptrdiff_t end)
{
    for (ptrdiff_t row = start; row < end; row++) {
        if (norm->kind == BFLOAT16)
            norm_row(norm, 1, row);
        else
            norm_row(norm, 0, row);
    }
}

void norm_rows(const Norm *norm)
{
    ptrdiff_t n_shares = norm->n_rows * norm->width / (1 << 15); /* of what is worth another thread */
    int n_threads = n_shares < norm->n_threads ? (int)n_shares + 1 : norm->n_threads;
#pragma omp parallel for num_threads(n_threads) schedule(static) if (n_threads > 1)
    for (int thread = 0; thread < n_threads; thread++)
        norm_some(norm, norm->n_rows * thread / n_threads, norm->n_rows * (thread + 1) / n_threads);
}

/* Rounded to bfloat16, or as they are. */
INLINE __m256 as_kept(__m256 values, int is_16_bits)
{
    if (!is_16_bits)
        return values;
    return _mm256_castsi256_ps(_mm256_and_si256(rounded(values), _mm256_set1_epi32((int)0xffff0000)));
}

INLINE void rotate_row(const char *x, const char *cos, const char *sin, char *result, ptrdiff_t half, int is_16_bits)
{
    ptrdiff_t half_bytes = half * (is_16_bits ? 2 : 4), sixteen_bytes = SIXTEEN * (is_16_bits ? 2 : 4);
    for (ptrdiff_t at = 0; at < 2 * half_bytes; at += sixteen_bytes) {
        __m256 here[2], there[2], cosines[2], sines[2], sums[2];
        load_sixteen(x + at, is_16_bits, here, here + 1);
        load_sixteen(x + (at < half_bytes ? at + half_bytes : at - half_bytes), is_16_bits, there, there + 1);
        load_sixteen(cos + at, is_16_bits, cosines, cosines + 1);
        load_sixteen(sin + at, is_16_bits, sines, sines + 1);
        UNROLLED for (int i = 0; i < 2; i++)
            sums[i] = _mm256_add_ps(as_kept(_mm256_mul_ps(here[i], cosines[i]), is_16_bits),
                                    as_kept(_mm256_mul_ps(there[i], sines[i]), is_16_bits));
        store_sixteen(result + at, is_16_bits, sums[0], sums[1]);
    }
}

VECTORS void rotate(const Rotation *rotation)
{
    ptrdiff_t half = rotation->width / 2, row_bytes = rotation->width * (rotation->kind == BFLOAT16 ? 2 : 4);
    for (ptrdiff_t position = 0; position < rotation->n_positions; position++) {
        const char *cos = rotation->cos + position * row_bytes, *sin = rotation->sin + position * row_bytes;
        for (ptrdiff_t head = 0; head < rotation->n_heads; head++) {
            const char *x = rotation->x + head * rotation->x_by_head + position * rotation->x_by_position;
            char *result =
                rotation->result + head * rotation->result_by_head + position * rotation->result_by_position;
            if (rotation->kind == BFLOAT16)
                rotate_row(x, cos, sin, result, half, 1);
            else
                rotate_row(x, cos, sin, result, half, 0);
        }
    }
}

void keep(const Keeping *keeping)
{
    for (ptrdiff_t session = 0; session < keeping->n_sessions; session++) {
        const Room *room = keeping->rooms + session;
        const char *keys = keeping->keys + session * keeping->keys_by_session;
        const char *values = keeping->values + session * keeping->values_by_session;
        char *to = room->keys + room->position * room->by_position;
        for (ptrdiff_t head = 0; head < keeping->n_heads; head++, to += room->by_head) {
            memcpy(to, keys + head * keeping->keys_by_head, (size_t)keeping->width_bytes);
            memcpy(to + room->to_values, values + head * keeping->values_by_head, (size_t)keeping->width_bytes);
        }
    }
}

#endif
