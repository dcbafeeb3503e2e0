/*
 * neon_trits.c - trits_i8 by way of 2-bit rows and neon's ternary_i8. Called through table_neon.c; ref_ternary.c says what it computes.
 */
#if defined(__aarch64__)
#define TRITS_NAME setun_neon_trits_i8
#define TERNARY_I8 setun_neon_ternary_i8
#include "backend/cpu/trits_unpacked.h"
#endif
