/* What the kernels share: instructions, types of numbers, and what each file gives to the module. */

#ifndef BRIGADE_KERNELS_H
#define BRIGADE_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_KERNELS 1
#include <immintrin.h>

#define VECTORS __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) VECTORS
#define UNROLLED _Pragma("GCC unroll 8")

enum kind { FLOAT32, BFLOAT16, FLOAT16 };

INLINE float from_bfloat16(uint16_t number)
{
    uint32_t bits = (uint32_t)number << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint16_t to_bfloat16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return 0x7fc0; /* not a number */
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16); /* to nearest, to even */
}

/* 16 numbers as two vectors of float32: the first and the last 8, or of bfloat16 those with even and odd places. */
INLINE void load_sixteen(const char *at, int is_16_bits, __m256 *first, __m256 *second)
{
    if (is_16_bits) {
        __m256i both = _mm256_loadu_si256((const __m256i *)at);
        *first = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
        *second = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
    } else {
        *first = _mm256_loadu_ps((const float *)at);
        *second = _mm256_loadu_ps((const float *)at + 8);
    }
}

/* Numbers of bfloat16, to nearest, to even, each in the upper half of its 32 bits. */
INLINE __m256i rounded(__m256 values)
{
    __m256i bits = _mm256_castps_si256(values);
    __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), is_odd);
    __m256i is_none = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), is_none);
}

/* The way back from load_sixteen. */
INLINE void store_sixteen(char *at, int is_16_bits, __m256 first, __m256 second)
{
    if (is_16_bits) {
        __m256i odd = _mm256_and_si256(rounded(second), _mm256_set1_epi32((int)0xffff0000));
        _mm256_storeu_si256((__m256i *)at, _mm256_or_si256(_mm256_srli_epi32(rounded(first), 16), odd));
    } else {
        _mm256_storeu_ps((float *)at, first);
        _mm256_storeu_ps((float *)at + 8, second);
    }
}

INLINE float sum_of(__m256 eight)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

#else
#define HAS_KERNELS 0
#endif
#endif
