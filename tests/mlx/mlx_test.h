/*
 * mlx_test.h - what the tests of MLX share: the bridge's table, a stream on MLX's CPU, short ways to make and read arrays.
 * Without a bridge (MLX was not asked for when this was configured) the programs return 77, which CTest shows as skipped;
 * where one was built, SETUN_MLX_BRIDGE names it and a bridge that does not open is a failure.
 */
#ifndef SETUN_MLX_TEST_H
#define SETUN_MLX_TEST_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "backend/mlx/mlx.h"

static setun_context *context;
static const setun_mlx_table *t;
static setun_mlx_stream *stream;

static const char *table_error(void) { return t->error(); }

#define ok(call) do { setun_status status_ = (call); if (status_ != SETUN_OK) fail_msg("%s: %s: %s", #call, setun_status_name(status_), table_error()); } while (0)
/* The call fails with this status, and the message contains `text`. */
#define fails(call, wanted, text) do { setun_status status_ = (call); \
    if (status_ != (wanted)) fail_msg("%s: %s instead of %s (%s)", #call, setun_status_name(status_), #wanted, table_error()); \
    if (!strstr(table_error(), text)) fail_msg("%s: the message is '%s', without '%s'", #call, table_error(), text); } while (0)

static inline int open_mlx(void) {
    if (!getenv("SETUN_MLX_BRIDGE")) return 77;
    if (setun_context_create(NULL, &context) != SETUN_OK || setun_mlx_library(context, &t) != SETUN_OK) {
        fprintf(stderr, "%s\n", setun_error());
        return 1;
    }
    if (t->stream_open(false, 0, &stream) != SETUN_OK) {
        fprintf(stderr, "%s\n", t->error());
        return 1;
    }
    return 0;
}

static inline void close_mlx(void) {
    t->stream_close(stream);
    setun_context_destroy(context);
}

static inline setun_mlx_spec spec_of(setun_dtype dtype, int rank, ...) {
    setun_mlx_spec s = {.dtype = dtype, .rank = rank};
    va_list list;
    va_start(list, rank);
    for (int i = 0; i < rank; i++) s.dim[i] = va_arg(list, int);
    va_end(list);
    return s;
}

static inline setun_mlx_array *make(setun_mlx_spec spec, const void *values) {
    setun_mlx_array *a;
    ok(t->array_from_host(stream, &spec, values, &a));
    return a;
}

#define FLOATS(...) ((float[]){__VA_ARGS__})
#define vector(n, ...) make(spec_of(SETUN_F32, 1, n), FLOATS(__VA_ARGS__))

/* One operation with one output, made short. */
typedef struct asked { const int64_t *integers; int integer_count; const double *reals; int real_count; setun_dtype dtype; } asked;
static inline setun_status op_on(setun_mlx_stream *s, int op, setun_mlx_array *const *inputs, int n, asked o, setun_mlx_array **out) {
    setun_mlx_op_request r = {.op = op, .inputs = inputs, .input_count = n, .integers = o.integers, .integer_count = o.integer_count, .reals = o.reals, .real_count = o.real_count, .dtype = o.dtype};
    return t->op(s, &r, out, 1);
}
#define COMMA , /* within a macro argument */
#define ARRAYS(...) (setun_mlx_array *const[]){__VA_ARGS__}, (int)(sizeof((setun_mlx_array *[]){__VA_ARGS__}) / sizeof(setun_mlx_array *))
#define INTEGERS(...) .integers = (const int64_t[]){__VA_ARGS__}, .integer_count = (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))
#define REALS(...) .reals = (const double[]){__VA_ARGS__}, .real_count = (int)(sizeof((double[]){__VA_ARGS__}) / sizeof(double))

#endif
