/*
 * bridge_ops.hh - part of bridge.cc: the rows of bridge_ops.def as calls of MLX, with their checks. Knows mlx/ops.h and mlx/fast.h.
 */
/* ---- operations ---- */
struct OpRow { const char *name; int i0, i1, n0, n1, r0, r1, outputs; };
const OpRow op_rows[] = {
#define SETUN_MLX_OP(e, name, i0, i1, n0, n1, r0, r1, o) {name, i0, i1, n0, n1, r0, r1, o},
#include "bridge_ops.def"
#undef SETUN_MLX_OP
};

struct Request { /* what the builders below read: inputs checked to be there as the row says */
    const setun_mlx_op_request &r;
    mx::Stream s;
    const mx::array &in(int i) const { return r.inputs[i]->value; }
    std::optional<mx::array> maybe(int i) const { return i < r.input_count && r.inputs[i] ? std::optional(r.inputs[i]->value) : std::nullopt; }
    int number(int i) const { return (int)r.integers[i]; }
    float real(int i) const { return (float)r.reals[i]; }
    mx::Dtype dtype() const { return to_mlx(r.dtype); }
    std::vector<int> axes(int from) const { return std::vector<int>(r.integers + from, r.integers + r.integer_count); }
    mx::Shape shape(int from, int to) const {
        mx::Shape out;
        for (int i = from; i < to; i++) out.push_back((mx::ShapeElem)r.integers[i]);
        return out;
    }
};

mx::array along(const Request &q, mx::array (*all)(const mx::array &, bool, mx::StreamOrDevice), mx::array (*some)(const mx::array &, const std::vector<int> &, bool, mx::StreamOrDevice)) {
    bool keep = q.number(0) != 0;
    return q.r.integer_count == 1 ? all(q.in(0), keep, q.s) : some(q.in(0), q.axes(1), keep, q.s);
}

mx::array slice_of(const Request &q, bool update) {
    int rank = (int)q.in(0).ndim(), n = q.r.integer_count;
    if (n != 2 * rank && n != 3 * rank) refuse("slice: " + std::to_string(n) + " integers for rank " + std::to_string(rank) + "; start and stop, or start, stop and step");
    mx::Shape step = n == 3 * rank ? q.shape(2 * rank, 3 * rank) : mx::Shape((size_t)rank, 1);
    if (update) return mx::slice_update(q.in(0), q.in(1), q.shape(0, rank), q.shape(rank, 2 * rank), step, q.s);
    return mx::slice(q.in(0), q.shape(0, rank), q.shape(rank, 2 * rank), step, q.s);
}

mx::array rope_of(const Request &q) {
    auto periods = q.maybe(2);
    std::optional<float> base;
    if (!periods) base = q.real(0);
    if (auto offset = q.maybe(1)) return mx::fast::rope(q.in(0), q.number(0), q.number(1) != 0, base, q.real(1), *offset, periods, q.s);
    return mx::fast::rope(q.in(0), q.number(0), q.number(1) != 0, base, q.real(1), q.r.integer_count > 2 ? q.number(2) : 0, periods, q.s);
}

mx::array attention_of(const Request &q) {
    auto mask = q.maybe(3);
    if (mask && q.number(0)) refuse("scaled_dot_product_attention: causal and a mask; put the causal part into the mask");
    return mx::fast::scaled_dot_product_attention(q.in(0), q.in(1), q.in(2), q.real(0), mask ? "array" : q.number(0) ? "causal" : "", mask, std::nullopt, false, q.s);
}

mx::array build_one(const Request &q) {
    const auto &s = q.s;
    switch ((setun_mlx_op)q.r.op) {
    case SETUN_MLX_OP_EXP: return mx::exp(q.in(0), s);
    case SETUN_MLX_OP_LOG: return mx::log(q.in(0), s);
    case SETUN_MLX_OP_SQRT: return mx::sqrt(q.in(0), s);
    case SETUN_MLX_OP_RSQRT: return mx::rsqrt(q.in(0), s);
    case SETUN_MLX_OP_SQUARE: return mx::square(q.in(0), s);
    case SETUN_MLX_OP_ABS: return mx::abs(q.in(0), s);
    case SETUN_MLX_OP_NEGATIVE: return mx::negative(q.in(0), s);
    case SETUN_MLX_OP_SIGMOID: return mx::sigmoid(q.in(0), s);
    case SETUN_MLX_OP_TANH: return mx::tanh(q.in(0), s);
    case SETUN_MLX_OP_ERF: return mx::erf(q.in(0), s);
    case SETUN_MLX_OP_SIN: return mx::sin(q.in(0), s);
    case SETUN_MLX_OP_COS: return mx::cos(q.in(0), s);
    case SETUN_MLX_OP_ROUND: return mx::round(q.in(0), 0, s);
    case SETUN_MLX_OP_FLOOR: return mx::floor(q.in(0), s);
    case SETUN_MLX_OP_STOP_GRADIENT: return mx::stop_gradient(q.in(0), s);
    case SETUN_MLX_OP_CONTIGUOUS: return mx::contiguous(q.in(0), false, s);
    case SETUN_MLX_OP_COPY: return copy_bits(q.in(0), s);
    case SETUN_MLX_OP_ADD: return mx::add(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_SUBTRACT: return mx::subtract(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_MULTIPLY: return mx::multiply(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_DIVIDE: return mx::divide(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_MAXIMUM: return mx::maximum(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_MINIMUM: return mx::minimum(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_POWER: return mx::power(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_EQUAL: return mx::equal(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_LESS: return mx::less(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_GREATER: return mx::greater(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_BITWISE_AND: return mx::bitwise_and(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_BITWISE_OR: return mx::bitwise_or(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_LEFT_SHIFT: return mx::left_shift(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_RIGHT_SHIFT: return mx::right_shift(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_MATMUL: return mx::matmul(q.in(0), q.in(1), s);
    case SETUN_MLX_OP_ADDMM: return mx::addmm(q.in(0), q.in(1), q.in(2), q.r.real_count > 0 ? q.real(0) : 1.0f, q.r.real_count > 1 ? q.real(1) : 1.0f, s);
    case SETUN_MLX_OP_WHERE: return mx::where(q.in(0), q.in(1), q.in(2), s);
    case SETUN_MLX_OP_RESHAPE: return mx::reshape(q.in(0), q.shape(0, q.r.integer_count), s);
    case SETUN_MLX_OP_TRANSPOSE: return q.r.integer_count ? mx::transpose(q.in(0), q.axes(0), s) : mx::transpose(q.in(0), s);
    case SETUN_MLX_OP_EXPAND_DIMS: return mx::expand_dims(q.in(0), q.axes(0), s);
    case SETUN_MLX_OP_SQUEEZE: return q.r.integer_count ? mx::squeeze(q.in(0), q.axes(0), s) : mx::squeeze(q.in(0), s);
    case SETUN_MLX_OP_BROADCAST_TO: return mx::broadcast_to(q.in(0), q.shape(0, q.r.integer_count), s);
    case SETUN_MLX_OP_SLICE: return slice_of(q, false);
    case SETUN_MLX_OP_SLICE_UPDATE: return slice_of(q, true);
    case SETUN_MLX_OP_SLICE_AT: {
        int rank = (int)q.in(0).ndim();
        if (q.r.integer_count <= rank) refuse("slice_at: sizes for every axis, then the axes that start says");
        return mx::slice(q.in(0), q.in(1), q.axes(rank), q.shape(0, rank), s);
    }
    case SETUN_MLX_OP_SLICE_UPDATE_AT: return mx::slice_update(q.in(0), q.in(1), q.in(2), q.axes(0), s);
    case SETUN_MLX_OP_CONCATENATE: return mx::concatenate(unbox(q.r.inputs, q.r.input_count, "concatenate"), q.number(0), s);
    case SETUN_MLX_OP_REPEAT: return mx::repeat(q.in(0), q.number(0), q.number(1), s);
    case SETUN_MLX_OP_ASTYPE: return mx::astype(q.in(0), q.dtype(), s);
    case SETUN_MLX_OP_VIEW: return mx::view(q.in(0), q.dtype(), s);
    case SETUN_MLX_OP_TAKE: return mx::take(q.in(0), q.in(1), q.number(0), s);
    case SETUN_MLX_OP_TAKE_ALONG_AXIS: return mx::take_along_axis(q.in(0), q.in(1), q.number(0), s);
    case SETUN_MLX_OP_FULL: return mx::full(q.shape(0, q.r.integer_count), mx::array(q.r.reals[0], q.dtype()), q.dtype(), s);
    case SETUN_MLX_OP_ARANGE: return mx::arange(q.r.reals[0], q.r.reals[1], q.r.reals[2], q.dtype(), s);
    case SETUN_MLX_OP_DEPENDS: {
        auto all = unbox(q.r.inputs, q.r.input_count, "depends");
        return mx::depends({all[0]}, Arrays(all.begin() + 1, all.end()))[0];
    }
    case SETUN_MLX_OP_SUM: return along(q, mx::sum, mx::sum);
    case SETUN_MLX_OP_MEAN: return along(q, mx::mean, mx::mean);
    case SETUN_MLX_OP_MAX: return along(q, mx::max, mx::max);
    case SETUN_MLX_OP_MIN: return along(q, mx::min, mx::min);
    case SETUN_MLX_OP_LOGSUMEXP: return along(q, mx::logsumexp, mx::logsumexp);
    case SETUN_MLX_OP_SOFTMAX: return along(q, mx::softmax, mx::softmax);
    case SETUN_MLX_OP_ARGMAX: return mx::argmax(q.in(0), q.number(1), q.number(0) != 0, s);
    case SETUN_MLX_OP_ARGSORT: return mx::argsort(q.in(0), q.number(0), s);
    case SETUN_MLX_OP_ARGPARTITION: return mx::argpartition(q.in(0), q.number(0), q.number(1), s);
    case SETUN_MLX_OP_TOPK: return mx::topk(q.in(0), q.number(0), q.number(1), s);
    case SETUN_MLX_OP_DEQUANTIZE: return mx::dequantize(q.in(0), q.in(1), q.in(2), q.number(0), q.number(1), "affine", std::nullopt, std::nullopt, s);
    case SETUN_MLX_OP_QUANTIZED_MATMUL: return mx::quantized_matmul(q.in(0), q.in(1), q.in(2), q.in(3), q.number(0) != 0, q.number(1), q.number(2), "affine", s);
    case SETUN_MLX_OP_RMS_NORM: return mx::fast::rms_norm(q.in(0), q.maybe(1), q.real(0), s);
    case SETUN_MLX_OP_ROPE: return rope_of(q);
    case SETUN_MLX_OP_ATTENTION: return attention_of(q);
    case SETUN_MLX_OP_QUANTIZE: /* three outputs: build_all */
    case SETUN_MLX_OP_COUNT: break;
    }
    refuse("operation " + std::to_string(q.r.op) + " is unknown");
}

/* Inputs that may be left out, by index: all others must be there. */
bool optional_input(int op, int i) { return (op == SETUN_MLX_OP_RMS_NORM && i == 1) || (op == SETUN_MLX_OP_ROPE && i > 0) || (op == SETUN_MLX_OP_ATTENTION && i == 3); }

Arrays build_all(const setun_mlx_op_request &r, const mx::Stream &s, int output_count) {
    if (r.op < 0 || r.op >= SETUN_MLX_OP_COUNT) refuse("operation " + std::to_string(r.op) + " is unknown");
    const OpRow &row = op_rows[r.op];
    auto within = [&](const char *what, int n, int low, int high, const void *pointer) {
        if (n < low || n > high || (n && !pointer)) refuse(std::string(row.name) + ": " + std::to_string(n) + " " + what + "; it takes " + std::to_string(low) + (high == low ? "" : high == 99 ? " or more" : " to " + std::to_string(high)));
    };
    within("inputs", r.input_count, row.i0, row.i1, r.inputs);
    within("integers", r.integer_count, row.n0, row.n1, r.integers);
    within("reals", r.real_count, row.r0, row.r1, r.reals);
    if (output_count != row.outputs) refuse(std::string(row.name) + ": it has " + std::to_string(row.outputs) + " outputs, not " + std::to_string(output_count));
    for (int i = 0; i < r.input_count; i++)
        if (!r.inputs[i] && !optional_input(r.op, i)) refuse(std::string(row.name) + ": input " + std::to_string(i) + " is NULL");
    for (int i = 0; i < r.integer_count; i++)
        if (r.integers[i] < INT32_MIN || r.integers[i] > INT32_MAX) refuse(std::string(row.name) + ": integer " + std::to_string(r.integers[i]) + " does not fit in 32 bits");
    Request q{r, s};
    Arrays out;
    if (r.op == SETUN_MLX_OP_QUANTIZE) out = mx::quantize(q.in(0), q.number(0), q.number(1), "affine", std::nullopt, s);
    else out.push_back(build_one(q));
    if ((int)out.size() != output_count) refuse(std::string(row.name) + ": MLX gave " + std::to_string(out.size()) + " outputs", SETUN_ERROR_DEVICE);
    if (r.op != SETUN_MLX_OP_BROADCAST_TO) /* which takes no memory of its own */
        for (auto &a : out) must_fit(a.nbytes());
    return out;
}
