/* Which rows meet which panel, and in which thread; and what becomes of a panel's sums. */

#include "products.h"

#if HAS_KERNELS

enum { AHEAD = 512, CACHED = 1 << 18 };
/* AHEAD: bytes that are asked for before they are needed. CACHED: bytes of the input that stay in a core's cache. */

VECTORS void put_sums(const Rows *rows, float (*sums)[PANEL], ptrdiff_t first, ptrdiff_t n, ptrdiff_t panel)
{
    ptrdiff_t start = panel * PANEL, n_valid = rows->n_rows - start < PANEL ? rows->n_rows - start : PANEL;
    for (ptrdiff_t row = 0; row < n; row++) {
        ptrdiff_t place = (first + row) * rows->n_rows + start;
        float *sum = sums[row];
        if (rows->kind == FLOAT32) {
            if (rows->bias)
                for (ptrdiff_t i = 0; i < n_valid; i++)
                    sum[i] += ((const float *)rows->bias)[start + i];
            memcpy((float *)rows->result + place, sum, (size_t)n_valid * sizeof *sum);
        } else {
            uint16_t *result = (uint16_t *)rows->result + place;
            if (rows->bias)
                for (ptrdiff_t i = 0; i < n_valid; i++)
                    sum[i] += from_bfloat16(((const uint16_t *)rows->bias)[start + i]);
            for (ptrdiff_t i = 0; i < n_valid; i++)
                result[i] = to_bfloat16(sum[i]);
        }
    }
}

/* How many of the rows that are left are multiplied at a time: none is left to go alone behind six. */
static ptrdiff_t n_at_once(ptrdiff_t n_left)
{
    ptrdiff_t n_times = (n_left + MOST_ROWS - 1) / MOST_ROWS;
    return (n_left + n_times - 1) / n_times;
}

/* Some rows of the input times some panels. */
static void multiply_some(const Rows *rows, const Matrix *matrix, ptrdiff_t first, ptrdiff_t n_rows, ptrdiff_t panel,
                          ptrdiff_t end)
{
    while (panel < end) {
        int n_panels = n_rows <= FEW_ROWS && panel + 1 < end ? 2 : 1;
        Tile tile = {matrix->panels + panel * matrix->n_bytes, matrix->n_bytes, AHEAD, panel, first};
        while (tile.first < first + n_rows) {
            ptrdiff_t n = n_at_once(first + n_rows - tile.first);
            matrix->tiles[n_panels - 1][n - 1](rows, matrix, &tile);
            tile.first += n;
            tile.ahead = matrix->n_bytes; /* the panel is in a cache now: the next one comes meanwhile */
        }
        panel += n_panels;
    }
}

/* Rows of the input that stay in a core's cache while all panels go by. */
static ptrdiff_t n_in_cache(const Rows *rows, ptrdiff_t n_bytes)
{
    ptrdiff_t n = CACHED / (rows->n_columns * n_bytes + 1) / MOST_ROWS * MOST_ROWS;
    return n < 4 * MOST_ROWS ? 4 * MOST_ROWS : n;
}

/* All products: each thread has panels of its own. */
void multiply_all(const Rows *rows, const Matrix *matrix)
{
    ptrdiff_t n_panels = (rows->n_rows + PANEL - 1) / PANEL, n_block = n_in_cache(rows, matrix->values ? 4 : 2);
    int n_threads = rows->n_threads < n_panels ? rows->n_threads : (int)n_panels;
#pragma omp parallel for num_threads(n_threads) schedule(static) if (n_threads > 1)
    for (int thread = 0; thread < n_threads; thread++) {
        ptrdiff_t start = n_panels * thread / n_threads, end = n_panels * (thread + 1) / n_threads;
        for (ptrdiff_t first = 0; first < rows->n_inputs; first += n_block) {
            ptrdiff_t n = rows->n_inputs - first < n_block ? rows->n_inputs - first : n_block;
            multiply_some(rows, matrix, first, n, start, end);
        }
    }
}

#endif
