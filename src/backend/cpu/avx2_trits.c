/*
 * avx2_trits.c - trits_i8 by way of 2-bit rows and avx2's ternary_i8. Called through table_avx2.c; ref_ternary.c says what it computes.
 */
#if defined(__x86_64__)
#define TRITS_NAME setun_avx2_trits_i8
#define TERNARY_I8 setun_avx2_ternary_i8
#include "backend/cpu/trits_unpacked.h"
#endif
