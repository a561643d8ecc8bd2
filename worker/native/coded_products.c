/* Products with panels of codes, of 4 or 8 bits, of which 32 columns' share a scale and a zero. */

#include "products.h"

#include <stdlib.h>

#if HAS_KERNELS

enum { LARGEST = 32767 };

/* Panels of codes: (n_groups, GROUP / 2, bytes) where 8 bits are the codes, less their zero's, of two columns of each
   row; of 4 bits those of the first 8 rows in the low halves, of the others in the high ones. */

INLINE __m256 widened(const uint16_t *numbers, enum kind kind)
{
    __m128i eight = _mm_loadu_si128((const __m128i *)numbers);
    return kind == FLOAT16 ? _mm256_cvtph_ps(eight)
                           : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
}

/* Adds what a group gives for 8 rows of the matrix, whose scales and zeros are at `place`. */
INLINE void add_group(const Matrix *matrix, const __m256i *totals, ptrdiff_t place, const float *scales_of_x,
                      const float *sums_of_x, ptrdiff_t n_groups, int n_bits, int n, float *sums)
{
    __m256 scale = widened(matrix->scales + place, matrix->kind);
    __m256 zero = matrix->zeros ? widened(matrix->zeros + place, matrix->kind) : _mm256_setzero_ps();
    if (n_bits == 4) /* its codes are as they were */
        zero = _mm256_fnmadd_ps(scale, _mm256_set1_ps((float)matrix->zero_code), zero);
    UNROLLED for (int row = 0; row < n; row++)
    {
        __m256 factor = _mm256_mul_ps(scale, _mm256_broadcast_ss(scales_of_x + row * n_groups));
        __m256 sum = _mm256_loadu_ps(sums + row * PANEL);
        sum = _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(totals[row]), sum);
        if (n_bits == 4 || matrix->zeros)
            sum = _mm256_fmadd_ps(zero, _mm256_broadcast_ss(sums_of_x + row * n_groups), sum);
        _mm256_storeu_ps(sums + row * PANEL, sum);
    }
}

INLINE void coded_tile(const Rows *rows, const Matrix *matrix, const Tile *tile, int n_bits, int n, int n_panels)
{
    ptrdiff_t n_columns = rows->n_columns, n_groups = n_columns / GROUP;
    const int16_t *x = matrix->whole + tile->first * n_columns;
    const char *panel = tile->panels;
    const __m256i halves = _mm256_set1_epi16(15);
    float sums[2][MOST_ROWS][PANEL];
    memset(sums, 0, sizeof sums);
    for (ptrdiff_t group = 0; group < n_groups; group++) {
        __m256i low[2][MOST_ROWS], high[2][MOST_ROWS];
        UNROLLED for (int p = 0; p < n_panels; p++)
        {
            UNROLLED for (int row = 0; row < n; row++) low[p][row] = high[p][row] = _mm256_setzero_si256();
        }
        for (int line = 0; line < n_bits; line++) { /* of 64 bytes */
            UNROLLED for (int p = 0; p < n_panels; p++)
                _mm_prefetch(panel + p * tile->n_bytes + tile->ahead, _MM_HINT_T0);
            UNROLLED for (int pair = 0; pair < 16 / n_bits; pair++)
            {
                UNROLLED for (int p = 0; p < n_panels; p++)
                {
                    const __m128i *codes = (const __m128i *)(panel + p * tile->n_bytes + pair * 4 * n_bits);
                    __m256i eight, others;
                    if (n_bits == 8) {
                        eight = _mm256_cvtepi8_epi16(_mm_loadu_si128(codes));
                        others = _mm256_cvtepi8_epi16(_mm_loadu_si128(codes + 1));
                    } else {
                        __m256i both = _mm256_cvtepu8_epi16(_mm_loadu_si128(codes));
                        eight = _mm256_and_si256(both, halves);
                        others = _mm256_srli_epi16(both, 4);
                    }
                    UNROLLED for (int row = 0; row < n; row++)
                    {
                        int32_t two;
                        memcpy(&two, x + row * n_columns + 2 * pair, sizeof two);
                        __m256i value = _mm256_set1_epi32(two);
                        low[p][row] = _mm256_add_epi32(low[p][row], _mm256_madd_epi16(value, eight));
                        high[p][row] = _mm256_add_epi32(high[p][row], _mm256_madd_epi16(value, others));
                    }
                }
            }
            panel += 64;
            x += 2 * (16 / n_bits);
        }
        const float *scales_of_x = matrix->x_scales + tile->first * n_groups + group;
        const float *sums_of_x = matrix->x_sums + tile->first * n_groups + group;
        UNROLLED for (int p = 0; p < n_panels; p++)
        {
            ptrdiff_t place = ((tile->number + p) * n_groups + group) * PANEL;
            add_group(matrix, low[p], place, scales_of_x, sums_of_x, n_groups, n_bits, n, sums[p][0]);
            add_group(matrix, high[p], place + 8, scales_of_x, sums_of_x, n_groups, n_bits, n, sums[p][0] + 8);
        }
    }
    UNROLLED for (int p = 0; p < n_panels; p++) put_sums(rows, sums[p], tile->first, n, tile->number + p);
}

TILES(coded_8_tile, coded_tile, 8)
TILES(coded_4_tile, coded_tile, 4)

/* A group's largest, by its bits, so that what isn't a number comes out on top and goes on into the scale. */
INLINE float largest_of(const __m256 *values)
{
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++)
        most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(values[i]), _mm256_set1_epi32(0x7fffffff)));
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(four));
}

/* The input (n_inputs, n_columns) as whole numbers of 16 bits: each group of 32 with a scale of its own. */
static VECTORS void as_whole_numbers(const Rows *rows, int16_t *whole, float *scales, float *sums)
{
    ptrdiff_t n_groups = rows->n_inputs * rows->n_columns / GROUP;
    for (ptrdiff_t group = 0; group < n_groups; group++) {
        __m256 values[4];
        for (int i = 0; i < 4; i++) {
            ptrdiff_t place = group * GROUP + 8 * i;
            values[i] = rows->kind == FLOAT32 ? _mm256_loadu_ps((const float *)rows->x + place)
                                              : widened((const uint16_t *)rows->x + place, BFLOAT16);
        }
        float largest = largest_of(values), scale = largest / LARGEST, inverse = LARGEST / largest;
        if (largest < 1e-30f) /* its inverse may be too large for float32; so small a number adds nothing */
            scale = inverse = 0;
        __m256i total = _mm256_setzero_si256();
        for (int i = 0; i < 4; i += 2) {
            __m256i first = _mm256_cvtps_epi32(_mm256_mul_ps(values[i], _mm256_set1_ps(inverse)));
            __m256i second = _mm256_cvtps_epi32(_mm256_mul_ps(values[i + 1], _mm256_set1_ps(inverse)));
            __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
            _mm256_storeu_si256((__m256i *)(whole + group * GROUP + 8 * i), both);
            total = _mm256_add_epi32(total, _mm256_add_epi32(first, second));
        }
        __m128i four = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
        scales[group] = scale;
        sums[group] = scale * (float)_mm_cvtsi128_si32(four);
    }
}

int multiply_coded(const Rows *rows, Matrix matrix, int n_bits)
{
    size_t n = (size_t)(rows->n_inputs * rows->n_columns), n_groups = n / GROUP;
    float *scales = malloc(2 * n_groups * sizeof *scales + n * sizeof(int16_t) + 1);
    if (!scales)
        return -1;
    int16_t *whole = (int16_t *)(scales + 2 * n_groups);
    as_whole_numbers(rows, whole, scales, scales + n_groups);
    matrix.tiles = n_bits == 8 ? coded_8_tiles : coded_4_tiles;
    matrix.n_bytes = rows->n_columns * PANEL * n_bits / 8;
    matrix.whole = whole, matrix.x_scales = scales, matrix.x_sums = scales + n_groups;
    multiply_all(rows, &matrix);
    free(scales);
    return 0;
}

#endif
