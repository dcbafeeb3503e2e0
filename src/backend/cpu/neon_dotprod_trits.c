/*
 * neon_dotprod_trits.c - trits_i8 by way of 2-bit rows and neon_dotprod's ternary_i8. Called through table_neon_dotprod.c; ref_ternary.c says what it computes.
 */
#if defined(__aarch64__)
#define TRITS_NAME setun_neon_dotprod_trits_i8
#define TERNARY_I8 setun_neon_dotprod_ternary_i8
#include "backend/cpu/trits_unpacked.h"
#endif
