/* Attention of sessions that have one new token each, in float32: scores of all positions, softmax, sums of values.

   Keys are read once for up to three heads that share them, values likewise. A session gets the same bits alone as
   among others, and on any number of threads. exp is the polynomial of Moshier's Cephes library (expf). */

#include "attention.h"

#if HAS_KERNELS

#include <math.h>
#include <stdlib.h>

enum { SIXTEEN = 16, EIGHT = 8, MOST_HEADS = 3, POSITIONS = 4, LINE = 64 };
/* MOST_HEADS: that are worked on at a time, with so many POSITIONS: their sums fill the registers. */

/* Heads that share keys, from the first of up to three on, and the memory to work in. */
typedef struct {
    const Attention *attention;
    const Kept *kept;
    const char *keys, *values;
    float *queries; /* (heads, width), scaled, in the order of load_sixteen */
    float *scores;  /* (heads, room) */
    ptrdiff_t room; /* positions, rounded up to eight */
} Share;

INLINE ptrdiff_t rounded_up(ptrdiff_t number, ptrdiff_t unit) { return (number + unit - 1) / unit * unit; }

/* The sums of four vectors. */
INLINE __m128 sums_of(const __m256 *vectors)
{
    __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(vectors[0], vectors[1]), _mm256_hadd_ps(vectors[2], vectors[3]));
    return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

/* exp of what is 0 or less; what isn't a number stays none. */
INLINE __m256 exp_of(__m256 x)
{
    x = _mm256_max_ps(_mm256_set1_ps(-87.3f), x); /* below, float32 has no normal number */
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 rest = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x); /* log 2 in two parts */
    rest = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), rest);
    __m256 sum = _mm256_set1_ps(1.9875691500e-4f);
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(1.3981999507e-3f));
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(8.3334519073e-3f));
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(4.1665795894e-2f));
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(1.6666665459e-1f));
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(5.0000001201e-1f));
    sum = _mm256_fmadd_ps(sum, _mm256_mul_ps(rest, rest), _mm256_add_ps(rest, _mm256_set1_ps(1)));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(power));
}

INLINE void fetch(const char *at, ptrdiff_t n_numbers, int is_16_bits)
{
    for (const char *end = at + n_numbers * (is_16_bits ? 2 : 4); at < end; at += LINE)
        _mm_prefetch(at, _MM_HINT_T0);
}

INLINE void score(const Share *share, int is_16_bits, int n_heads)
{
    ptrdiff_t width = share->attention->width, n_positions = share->kept->n_positions;
    ptrdiff_t sixteen_bytes = is_16_bits ? 2 * SIXTEEN : 4 * SIXTEEN;
    for (ptrdiff_t position = 0; position < n_positions; position += POSITIONS) {
        const char *keys[POSITIONS];
        __m256 sums[MOST_HEADS][POSITIONS];
        UNROLLED for (int i = 0; i < POSITIONS; i++)
        {
            ptrdiff_t place = position + i < n_positions ? position + i : n_positions - 1;
            keys[i] = share->keys + place * share->kept->keys_by_position;
            fetch(share->values + place * share->kept->values_by_position, share->attention->value_width,
                  is_16_bits); /* meanwhile: they are needed next */
        }
        UNROLLED for (int head = 0; head < n_heads; head++)
        {
            UNROLLED for (int i = 0; i < POSITIONS; i++) sums[head][i] = _mm256_setzero_ps();
        }
        for (ptrdiff_t start = 0, at = 0; start < width; start += SIXTEEN, at += sixteen_bytes) {
            const float *query = share->queries + start;
            UNROLLED for (int i = 0; i < POSITIONS; i++)
            {
                __m256 first, second;
                load_sixteen(keys[i] + at, is_16_bits, &first, &second);
                UNROLLED for (int head = 0; head < n_heads; head++)
                {
                    const float *of_head = query + head * width;
                    sums[head][i] = _mm256_fmadd_ps(_mm256_loadu_ps(of_head), first, sums[head][i]);
                    sums[head][i] = _mm256_fmadd_ps(_mm256_loadu_ps(of_head + EIGHT), second, sums[head][i]);
                }
            }
        }
        UNROLLED for (int head = 0; head < n_heads; head++)
            _mm_storeu_ps(share->scores + head * share->room + position, sums_of(sums[head]));
    }
}

/* Scores become shares but for a factor, which is returned; those behind the last position become 0. */
INLINE float weigh(float *scores, ptrdiff_t n_positions, ptrdiff_t room)
{
    for (ptrdiff_t i = n_positions; i < room; i++)
        scores[i] = -INFINITY;
    __m256 eight = _mm256_set1_ps(-INFINITY);
    for (ptrdiff_t i = 0; i < room; i += EIGHT)
        eight = _mm256_max_ps(eight, _mm256_loadu_ps(scores + i));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    __m256 most = _mm256_set1_ps(_mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four))));
    __m256 sum = _mm256_setzero_ps();
    for (ptrdiff_t i = 0; i < room; i += EIGHT) {
        __m256 share = exp_of(_mm256_sub_ps(_mm256_loadu_ps(scores + i), most));
        _mm256_storeu_ps(scores + i, share);
        sum = _mm256_add_ps(sum, share);
    }
    return 1 / sum_of(sum);
}

/* `n_sixteens` times 16 columns of what the heads attend to, from `start` on, to where they belong. */
INLINE void sum_values(const Share *share, int is_16_bits, int n_heads, int n_sixteens, ptrdiff_t start,
                       const float *factors, char *result)
{
    ptrdiff_t n_positions = share->kept->n_positions, by_position = share->kept->values_by_position;
    ptrdiff_t n_bytes = is_16_bits ? 2 : 4;
    const char *values = share->values + start * n_bytes;
    __m256 low[MOST_HEADS][2], high[MOST_HEADS][2];
    UNROLLED for (int head = 0; head < n_heads; head++)
    {
        UNROLLED for (int i = 0; i < n_sixteens; i++) low[head][i] = high[head][i] = _mm256_setzero_ps();
    }
    for (ptrdiff_t position = 0; position < n_positions; position++, values += by_position) {
        UNROLLED for (int i = 0; i < n_sixteens; i++)
        {
            __m256 first, second;
            load_sixteen(values + i * SIXTEEN * n_bytes, is_16_bits, &first, &second);
            UNROLLED for (int head = 0; head < n_heads; head++)
            {
                __m256 weight = _mm256_broadcast_ss(share->scores + head * share->room + position);
                low[head][i] = _mm256_fmadd_ps(weight, first, low[head][i]);
                high[head][i] = _mm256_fmadd_ps(weight, second, high[head][i]);
            }
        }
    }
    UNROLLED for (int head = 0; head < n_heads; head++)
    {
        __m256 factor = _mm256_set1_ps(factors[head]);
        UNROLLED for (int i = 0; i < n_sixteens; i++)
            store_sixteen(result + (head * share->attention->value_width + start + i * SIXTEEN) * n_bytes, is_16_bits,
                          _mm256_mul_ps(low[head][i], factor), _mm256_mul_ps(high[head][i], factor));
    }
}

/* Up to three heads that share keys, of the session `session`, from `head` on. */
INLINE void attend_heads(const Share *share, int is_16_bits, int n_heads, ptrdiff_t session, ptrdiff_t head)
{
    const Attention *all = share->attention;
    ptrdiff_t n_bytes = is_16_bits ? 2 : 4, width = all->width;
    __m256 scaling = _mm256_set1_ps(all->scaling);
    float factors[MOST_HEADS];
    for (int i = 0; i < n_heads; i++) {
        const char *query = all->queries + session * all->by_session + (head + i) * all->by_head;
        for (ptrdiff_t start = 0; start < width; start += SIXTEEN) {
            __m256 first, second;
            load_sixteen(query + start * n_bytes, is_16_bits, &first, &second);
            _mm256_storeu_ps(share->queries + i * width + start, _mm256_mul_ps(first, scaling));
            _mm256_storeu_ps(share->queries + i * width + start + EIGHT, _mm256_mul_ps(second, scaling));
        }
    }
    score(share, is_16_bits, n_heads);
    for (int i = 0; i < n_heads; i++)
        factors[i] = weigh(share->scores + i * share->room, share->kept->n_positions, share->room);
    char *result = (char *)all->result + (session * all->n_heads + head) * all->value_width * n_bytes;
    ptrdiff_t start = 0;
    for (; start + SIXTEEN < all->value_width; start += 2 * SIXTEEN)
        sum_values(share, is_16_bits, n_heads, 2, start, factors, result);
    if (start < all->value_width)
        sum_values(share, is_16_bits, n_heads, 1, start, factors, result);
}

#define HEADS(name, is_16_bits, n_heads)                                                     \
    static VECTORS void name(const Share *share, ptrdiff_t session, ptrdiff_t head)          \
    {                                                                                        \
        attend_heads(share, is_16_bits, n_heads, session, head);                             \
    }
HEADS(float32_one, 0, 1)
HEADS(float32_two, 0, 2)
HEADS(float32_three, 0, 3)
HEADS(bfloat16_one, 1, 1)
HEADS(bfloat16_two, 1, 2)
HEADS(bfloat16_three, 1, 3)

static void (*const by_heads[2][MOST_HEADS])(const Share *, ptrdiff_t, ptrdiff_t) = {
    {float32_one, float32_two, float32_three}, {bfloat16_one, bfloat16_two, bfloat16_three}};

/* All heads that share the keys of one session's key head. */
static VECTORS void attend_key_head(const Attention *attention, float *memory, ptrdiff_t session, ptrdiff_t key_head)
{
    const Kept *kept = attention->kept + session;
    ptrdiff_t n_groups = attention->n_heads / attention->n_key_heads;
    Share share = {attention, kept, kept->keys + key_head * kept->keys_by_head,
                   kept->values + key_head * kept->values_by_head, memory, memory + MOST_HEADS * attention->width,
                   rounded_up(kept->n_positions, EIGHT)};
    for (ptrdiff_t done = 0; done < n_groups;) {
        ptrdiff_t n_left = n_groups - done;
        int n = n_left == 4 ? 2 : n_left < MOST_HEADS ? (int)n_left : MOST_HEADS;
        by_heads[attention->kind == BFLOAT16][n - 1](&share, session, key_head * n_groups + done);
        done += n;
    }
}

int attend(const Attention *attention)
{
    ptrdiff_t longest = 0, n_parts = attention->n_sessions * attention->n_key_heads;
    for (ptrdiff_t session = 0; session < attention->n_sessions; session++)
        if (attention->kept[session].n_positions > longest)
            longest = attention->kept[session].n_positions;
    int n_threads = attention->n_threads < n_parts ? attention->n_threads : (int)n_parts;
    ptrdiff_t n_numbers = MOST_HEADS * (attention->width + (longest + EIGHT - 1) / EIGHT * EIGHT);
    float *memory = malloc((size_t)n_threads * (size_t)n_numbers * sizeof *memory + 1);
    if (!memory)
        return -1;
#pragma omp parallel for num_threads(n_threads) schedule(static) if (n_threads > 1)
    for (int thread = 0; thread < n_threads; thread++) {
        for (ptrdiff_t part = n_parts * thread / n_threads; part < n_parts * (thread + 1) / n_threads; part++)
            attend_key_head(attention, memory + thread * n_numbers, part / attention->n_key_heads,
                            part % attention->n_key_heads);
    }
    free(memory);
    return 0;
}

#endif
