/* Products of rows with matrices that lie in panels of 16 rows, for processors with AVX2 and FMA.

   A panel is read from its first byte to its last while up to six rows of the input are multiplied with it: so up to
   six rows cost what reading the matrix costs. How a panel lies is said in worker/panels.py and
   worker/coded_panels.py, which make them. A sum's order doesn't hang on how many rows there are, nor on the number
   of threads: a row gets the same bits alone as among others.

   The blocking by registers is that of Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix
   Multiplication"; sums of products of whole numbers of 16 bits are as in Dukhan et al. 2018, "QNNPACK". */

#ifndef BRIGADE_PRODUCTS_H
#define BRIGADE_PRODUCTS_H

#include "kernels.h"

#if HAS_KERNELS

enum { PANEL = 16, MOST_ROWS = 6, FEW_ROWS = 3, GROUP = 32 };

typedef struct {
    const void *x, *bias; /* (n_inputs, n_columns) and (n_rows,) or NULL, both of `kind`, as is the result */
    void *result;         /* (n_inputs, n_rows) */
    ptrdiff_t n_inputs, n_rows, n_columns;
    enum kind kind;
    int n_threads;
} Rows;

typedef struct {
    const char *panels; /* the first of one or two */
    ptrdiff_t n_bytes; /* of a panel */
    ptrdiff_t ahead;   /* how far behind what is read the memory is asked for */
    ptrdiff_t number, first; /* of the panel, and of the input's rows */
} Tile;

struct matrix;
typedef void (*Multiply)(const Rows *, const struct matrix *, const Tile *);

typedef struct matrix {
    const char *panels;
    ptrdiff_t n_bytes; /* of a panel */
    const Multiply (*tiles)[MOST_ROWS];
    const float *values; /* the input in float32, for plain panels */

    const uint16_t *scales, *zeros; /* (n_panels, n_groups, PANEL); zeros may be NULL */
    enum kind kind;                 /* theirs */
    int zero_code;
    const int16_t *whole; /* the input as whole numbers, each group of which has ... */
    const float *x_scales, *x_sums; /* ... a scale, and its sum times that: (n_inputs, n_groups) */
} Matrix;

/* Tiles of each kind, by rows and panels: so many that sums fill the registers. Two panels at a time come faster out
   of the memory than one. */

#define TILE(name, of, flag, n, n_panels)                                             \
    static VECTORS void name##n##_##n_panels(const Rows *rows, const Matrix *matrix, const Tile *tile) \
    {                                                                                 \
        of(rows, matrix, tile, flag, n, n_panels);                                        \
    }
#define TILES(name, of, flag)                                                                                  \
    TILE(name, of, flag, 1, 1) TILE(name, of, flag, 2, 1) TILE(name, of, flag, 3, 1) TILE(name, of, flag, 4, 1) \
    TILE(name, of, flag, 5, 1) TILE(name, of, flag, 6, 1) TILE(name, of, flag, 1, 2) TILE(name, of, flag, 2, 2) \
    TILE(name, of, flag, 3, 2)                                                                                 \
    static const Multiply name##s[2][MOST_ROWS] = {                                                            \
        {name##1_1, name##2_1, name##3_1, name##4_1, name##5_1, name##6_1}, {name##1_2, name##2_2, name##3_2}};

/* Sums of `n` rows, from `first` on, with a panel, with the bias and in the kind of the result, to where they belong. */
void put_sums(const Rows *rows, float (*sums)[PANEL], ptrdiff_t first, ptrdiff_t n, ptrdiff_t panel);

/* All products: each thread has panels of its own. */
void multiply_all(const Rows *rows, const Matrix *matrix);

/* With panels of float32 or bfloat16, by `kind`. 0, or -1 for want of memory. */
int multiply_plain(const Rows *rows, const char *panels, enum kind kind);

/* With panels of codes of 4 or 8 bits; the matrix needn't have more than those, their scales and zeros. Likewise. */
int multiply_coded(const Rows *rows, Matrix matrix, int n_bits);

#endif
#endif
