/* Products with panels of float32 or bfloat16: (n_columns, PANEL) numbers. */

#include "products.h"

#include <stdlib.h>

#if HAS_KERNELS

/* Plain panels: (n_columns, PANEL) numbers. Those of bfloat16 lie 0, 8, 1, 9, ...: a half of each 32 bits. */

INLINE void plain_tile(const Rows *rows, const Matrix *matrix, const Tile *tile, int is_16_bits, int n, int n_panels)
{
    ptrdiff_t n_columns = rows->n_columns;
    const float *x = matrix->values + tile->first * n_columns;
    const char *panel = tile->panels;
    __m256 low[2][MOST_ROWS], high[2][MOST_ROWS];
    UNROLLED for (int p = 0; p < n_panels; p++)
    {
        UNROLLED for (int row = 0; row < n; row++) low[p][row] = high[p][row] = _mm256_setzero_ps();
    }
    for (ptrdiff_t column = 0; column < n_columns; column++) {
        UNROLLED for (int p = 0; p < n_panels; p++)
        {
            const char *at = panel + p * tile->n_bytes;
            __m256 first, second;
            _mm_prefetch(at + tile->ahead, _MM_HINT_T0);
            load_sixteen(at, is_16_bits, &first, &second);
            UNROLLED for (int row = 0; row < n; row++)
            {
                __m256 value = _mm256_broadcast_ss(x + row * n_columns + column);
                low[p][row] = _mm256_fmadd_ps(value, first, low[p][row]);
                high[p][row] = _mm256_fmadd_ps(value, second, high[p][row]);
            }
        }
        panel += is_16_bits ? 2 * PANEL : 4 * PANEL;
    }
    UNROLLED for (int p = 0; p < n_panels; p++)
    {
        float sums[MOST_ROWS][PANEL];
        UNROLLED for (int row = 0; row < n; row++)
        {
            _mm256_storeu_ps(sums[row], low[p][row]);
            _mm256_storeu_ps(sums[row] + 8, high[p][row]);
        }
        put_sums(rows, sums, tile->first, n, tile->number + p);
    }
}

TILES(float32_tile, plain_tile, 0)
TILES(bfloat16_tile, plain_tile, 1)

static VECTORS void widen(const uint16_t *numbers, ptrdiff_t n, float *values)
{
    for (ptrdiff_t i = 0; i < n; i++)
        values[i] = from_bfloat16(numbers[i]);
}

int multiply_plain(const Rows *rows, const char *panels, enum kind kind)
{
    Matrix matrix = {.panels = panels, .n_bytes = rows->n_columns * PANEL * (kind == BFLOAT16 ? 2 : 4)};
    matrix.tiles = kind == BFLOAT16 ? bfloat16_tiles : float32_tiles;
    float *values = NULL;
    if (rows->kind == BFLOAT16) {
        ptrdiff_t n = rows->n_inputs * rows->n_columns;
        values = malloc((size_t)n * sizeof *values + 1);
        if (!values)
            return -1;
        widen(rows->x, n, values);
    }
    matrix.values = values ? values : rows->x;
    multiply_all(rows, &matrix);
    free(values);
    return 0;
}

#endif
