/*
 * bridge.cc - MLX behind the C table of bridge.h. The only C++ in Setun; a shared object of its own. Caller: mlx.c.
 * Knows MLX's habits (threads, layouts of buffers, what throws) so that nobody else has to; knows nothing of plans or models.
 */
#include "bridge.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/backend/cuda/cuda.h"
#include "mlx/backend/metal/metal.h"
#include "mlx/compile_impl.h"
#include "mlx/mlx.h"
#include "mlx/primitives.h"
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

namespace mx = mlx::core;
using Arrays = std::vector<mx::array>;

struct setun_mlx_stream { mx::Stream stream; };
struct setun_mlx_array {
    explicit setun_mlx_array(mx::array a);
    ~setun_mlx_array();
    mx::array value;
};

namespace {

/* ---- errors ---- */
thread_local char message[1024];

void say(const char *text) noexcept { std::snprintf(message, sizeof message, "%s", text); }

struct Refused : std::exception { /* what is ours to refuse, with its status */
    Refused(setun_status s, std::string t) : status(s), text(std::move(t)) {}
    const char *what() const noexcept override { return text.c_str(); }
    setun_status status;
    std::string text;
};
[[noreturn]] void refuse(const std::string &text, setun_status status = SETUN_ERROR_ARGUMENT) { throw Refused(status, text); }

bool out_of_memory(const char *text) {
    for (const char *sign : {"Unable to allocate", "out of memory", "Resource limit", "maximum allowed buffer", "Failed to allocate"})
        if (std::strstr(text, sign)) return true;
    return false;
}

/* ---- the one lock, and the stream an entry works on ---- */
std::recursive_mutex gate; /* recursive: a function's build calls op while function_call holds it */
using Lock = std::unique_lock<std::recursive_mutex>;

struct { std::atomic<uint64_t> operations, kernel_calls, evaluations, synchronisations, shared, copied, traces, function_calls, host_kernels; std::atomic<int64_t> arrays, regions, kernels, functions, streams; } count;

/* MLX's defaults are a thread's or the process's: whatever it picks by itself must be the stream of this call. */
void enter(const setun_mlx_stream *s) {
    if (!s) refuse("the stream is NULL");
    mx::set_default_device(s->stream.device);
    mx::set_default_stream(s->stream);
}

template <class F> setun_status guard(F &&body) noexcept {
    try {
        Lock lock(gate);
        body(lock);
        return SETUN_OK;
    } catch (const Refused &e) {
        say(e.what());
        return e.status;
    } catch (const std::bad_alloc &) {
        say("out of memory");
        return SETUN_ERROR_MEMORY;
    } catch (const std::logic_error &e) { /* invalid_argument, out_of_range, domain_error, length_error */
        say(e.what());
        return SETUN_ERROR_ARGUMENT;
    } catch (const std::exception &e) {
        say(e.what());
        return out_of_memory(e.what()) ? SETUN_ERROR_MEMORY : SETUN_ERROR_DEVICE;
    } catch (...) {
        say("MLX threw something that is no std::exception");
        return SETUN_ERROR_DEVICE;
    }
}

template <class F> void quietly(F &&body) noexcept { /* for entries that cannot fail by their nature */
    try {
        Lock lock(gate);
        body();
    } catch (...) {
        say("MLX threw while releasing");
    }
}

/* ---- dtypes, shapes, sizes ---- */
mx::Dtype to_mlx(setun_dtype d) {
    switch (d) {
    case SETUN_F32: return mx::float32;
    case SETUN_F16: return mx::float16;
    case SETUN_BF16: return mx::bfloat16;
    case SETUN_I32: return mx::int32;
    case SETUN_I8: return mx::int8;
    case SETUN_U8: return mx::uint8;
    case SETUN_I64: return mx::int64;
    case SETUN_U32: return mx::uint32;
    case SETUN_BOOL: return mx::bool_;
    case SETUN_I16: return mx::int16;
    case SETUN_U16: return mx::uint16;
    case SETUN_U64: return mx::uint64;
    case SETUN_F64: return mx::float64;
    }
    refuse("dtype " + std::to_string((int)d) + " is unknown");
}

setun_dtype from_mlx(mx::Dtype d) {
    switch (d.val()) {
    case mx::Dtype::Val::float32: return SETUN_F32;
    case mx::Dtype::Val::float16: return SETUN_F16;
    case mx::Dtype::Val::bfloat16: return SETUN_BF16;
    case mx::Dtype::Val::int32: return SETUN_I32;
    case mx::Dtype::Val::int8: return SETUN_I8;
    case mx::Dtype::Val::uint8: return SETUN_U8;
    case mx::Dtype::Val::int64: return SETUN_I64;
    case mx::Dtype::Val::uint32: return SETUN_U32;
    case mx::Dtype::Val::bool_: return SETUN_BOOL;
    case mx::Dtype::Val::int16: return SETUN_I16;
    case mx::Dtype::Val::uint16: return SETUN_U16;
    case mx::Dtype::Val::uint64: return SETUN_U64;
    case mx::Dtype::Val::float64: return SETUN_F64;
    case mx::Dtype::Val::complex64: break;
    }
    refuse("complex numbers are not among Setun's dtypes", SETUN_ERROR_UNSUPPORTED);
}

uint64_t physical_memory() {
    static const uint64_t bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    return bytes;
}

/* MLX's CPU allocator does not check malloc: what cannot be there must not be asked for. */
void must_fit(uint64_t bytes) {
    if (bytes > physical_memory()) refuse("an array of " + std::to_string(bytes) + " bytes; this machine has " + std::to_string(physical_memory()), SETUN_ERROR_MEMORY);
}

mx::Shape to_shape(const setun_mlx_spec &spec) {
    if (spec.rank < 0 || spec.rank > SETUN_MLX_MAX_RANK) refuse("rank " + std::to_string(spec.rank) + " is not between 0 and " + std::to_string(SETUN_MLX_MAX_RANK));
    mx::Shape shape;
    uint64_t bytes = mx::size_of(to_mlx(spec.dtype));
    for (int i = 0; i < spec.rank; i++) {
        if (spec.dim[i] < 0 || spec.dim[i] > INT32_MAX) refuse("dimension " + std::to_string(i) + " is " + std::to_string(spec.dim[i]) + "; MLX takes 0 to 2^31 - 1");
        if (__builtin_mul_overflow(bytes, (uint64_t)spec.dim[i], &bytes) || bytes > INT64_MAX) refuse("the shape's size overflows");
        shape.push_back((mx::ShapeElem)spec.dim[i]);
    }
    return shape;
}

uint64_t spec_bytes(const setun_mlx_spec &spec) { /* of a spec that to_shape accepted */
    uint64_t bytes = mx::size_of(to_mlx(spec.dtype));
    for (int i = 0; i < spec.rank; i++) bytes *= (uint64_t)spec.dim[i];
    return bytes;
}

setun_mlx_spec to_spec(const mx::array &a) {
    if (a.ndim() > SETUN_MLX_MAX_RANK) refuse("an array of rank " + std::to_string(a.ndim()) + "; at most " + std::to_string(SETUN_MLX_MAX_RANK), SETUN_ERROR_UNSUPPORTED);
    setun_mlx_spec spec = {};
    spec.dtype = from_mlx(a.dtype());
    spec.rank = (int)a.ndim();
    for (int i = 0; i < spec.rank; i++) spec.dim[i] = a.shape(i);
    return spec;
}

setun_mlx_array *box(mx::array a) { return new setun_mlx_array(std::move(a)); }

void box_all(Arrays &values, setun_mlx_array **outputs, int output_count) {
    std::vector<std::unique_ptr<setun_mlx_array>> made;
    for (int i = 0; i < output_count; i++) made.emplace_back(box(std::move(values[(size_t)i])));
    for (int i = 0; i < output_count; i++) outputs[i] = made[(size_t)i].release();
}

Arrays unbox(setun_mlx_array *const *arrays, int n, const char *what) {
    if (n < 0 || (n && !arrays)) refuse(std::string(what) + ": no arrays");
    Arrays out;
    out.reserve((size_t)n);
    for (int i = 0; i < n; i++) {
        if (!arrays[i]) refuse(std::string(what) + ": input " + std::to_string(i) + " is NULL");
        out.push_back(arrays[i]->value);
    }
    return out;
}

setun_mlx_device_kind backend_of(const mx::Device &d) { return d.type == mx::Device::cpu ? SETUN_MLX_CPU : mx::metal::is_available() ? SETUN_MLX_METAL : SETUN_MLX_CUDA; }

#include "bridge_memory.hh"

/* ---- streams: MLX cannot destroy one, so closed ones wait to be used again ---- */
std::vector<mx::Stream> idle_streams;

mx::Device device_of(bool gpu, int index) {
    if (!gpu) {
        if (index) refuse("there is one CPU device; index " + std::to_string(index));
        return mx::Device(mx::Device::cpu);
    }
    if (!mx::gpu::is_available()) refuse("this MLX was built without a GPU backend", SETUN_ERROR_UNSUPPORTED);
    mx::Device d(mx::Device::gpu, index);
    if (index < 0 || index >= mx::device_count(mx::Device::gpu)) refuse("GPU " + std::to_string(index) + ": MLX sees " + std::to_string(mx::device_count(mx::Device::gpu)), SETUN_ERROR_UNSUPPORTED);
    if (!mx::is_available(d)) refuse("GPU " + std::to_string(index) + " is not available to MLX", SETUN_ERROR_UNSUPPORTED);
    return d;
}

mx::Stream take_stream(const mx::Device &d) {
    for (size_t i = 0; i < idle_streams.size(); i++)
        if (idle_streams[i].device == d) {
            auto s = idle_streams[i];
            idle_streams.erase(idle_streams.begin() + (ptrdiff_t)i);
            return s;
        }
    auto s = mx::new_thread_unsafe_stream(d);
    count.streams++;
    return s;
}

/* MLX says that a GPU is there when only its library is: one small sum tells. On CUDA it also tries the driver's copies. */
void try_device(Lock &lock, const mx::Stream &s) {
    mx::set_default_device(s.device);
    mx::set_default_stream(s);
    const float values[3] = {1.5f, -2.0f, 4.0f};
    float back[3] = {};
    auto run = [&] {
        auto a = from_host(lock, s, values, {3}, mx::float32, sizeof values);
        auto sum = finish(lock, mx::add(a, a, s));
        to_host(sum, backend_of(s.device), s.device.index, back);
        return back[0] == 3.0f && back[1] == -4.0f && back[2] == 8.0f;
    };
    bool good = false;
    if (backend_of(s.device) == SETUN_MLX_CUDA && cuda_direct == 0) {
        try {
            good = run();
        } catch (const Refused &) {
        }
        cuda_direct = good ? 1 : -1;
    }
    if (!good && !run()) refuse("the device adds wrongly", SETUN_ERROR_DEVICE);
}

#include "bridge_host.hh"
#include "bridge_ops.hh"

/* ---- compiled graphs ---- */
enum { COMPILE_DEFAULT, COMPILE_ON, COMPILE_OFF };
std::atomic<int> compile_mode{COMPILE_DEFAULT};
bool compiles(const mx::Device &d) { return compile_mode == COMPILE_ON || (compile_mode == COMPILE_DEFAULT && d.type == mx::Device::gpu); }

} /* namespace */

setun_mlx_array::setun_mlx_array(mx::array a) : value(std::move(a)) { count.arrays++; }
setun_mlx_array::~setun_mlx_array() { count.arrays--; }
struct setun_mlx_region { std::shared_ptr<Region> region; mx::Stream stream; };

struct setun_mlx_kernel {
    setun_mlx_kernel() { count.kernels++; }
    ~setun_mlx_kernel() { count.kernels--; }
    setun_mlx_kernel_kind kind;
    std::string name, binary;
    int inputs = 0, outputs = 0;
    bool any_layout = false, pure = false;
    setun_mlx_host_fn host = nullptr;
    void *user = nullptr;
    mx::fast::CustomKernelFunction text;
    /* A call of a binary copies it whole into its operation; an operation that differs only in its arrays is used again. */
    struct Used { std::string key; std::shared_ptr<mx::Primitive> primitive; };
    std::vector<Used> used;
};

struct setun_mlx_function {
    setun_mlx_function(mx::Stream s) : stream(s) { count.functions++; }
    ~setun_mlx_function() { /* MLX keeps the traced graph, weights included, in a cache of each thread that called */
        for (auto &cache : caches) mx::detail::compile_erase(cache.second, id);
        count.functions--;
    }
    mx::Stream stream;
    setun_mlx_build_fn build;
    void *user;
    int outputs = 0;            /* of the call being traced */
    std::uintptr_t id;          /* never used twice: MLX's own (an address) could meet an old graph in another thread's cache */
    std::function<Arrays(const Arrays &)> plain, compiled;
    std::vector<std::pair<std::thread::id, mx::detail::CompileCacheWeakPtr>> caches;
};

namespace {

/* ---- the entries ---- */
const char *entry_error() { return message; }
const char *entry_op_name(int op) { return op >= 0 && op < SETUN_MLX_OP_COUNT ? op_rows[op].name : nullptr; }

int entry_device_count(bool gpu) {
    int n = 0;
    quietly([&] { n = !gpu ? 1 : mx::gpu::is_available() ? mx::device_count(mx::Device::gpu) : 0; });
    return n;
}

void put(char *out, size_t size, const std::string &text) { std::snprintf(out, size, "%s", text.c_str()); }

setun_status entry_device_get(bool gpu, int index, setun_mlx_device *out) {
    std::memset(out, 0, sizeof *out);
    return guard([&](Lock &lock) {
        auto device = device_of(gpu, index);
        auto stream = take_stream(device);
        setun_mlx_device d = {};
        d.backend = backend_of(device);
        d.index = index;
        try {
            try_device(lock, stream);
            d.shares_memory = d.backend == SETUN_MLX_METAL || (d.backend == SETUN_MLX_CPU && sharing_works(lock, stream));
        } catch (...) {
            idle_streams.push_back(stream);
            throw;
        }
        idle_streams.push_back(stream);
        auto &info = mx::device_info(device);
        auto text = [&](const char *key) { auto i = info.find(key); return i != info.end() && std::holds_alternative<std::string>(i->second) ? std::get<std::string>(i->second) : std::string(); };
        auto number = [&](const char *key) { auto i = info.find(key); return i != info.end() && std::holds_alternative<size_t>(i->second) ? (uint64_t)std::get<size_t>(i->second) : 0; };
        put(d.name, sizeof d.name, text("device_name"));
        put(d.architecture, sizeof d.architecture, text("architecture"));
        d.memory_bytes = number("total_memory") ? number("total_memory") : number("memory_size");
        d.free_bytes = number("free_memory");
        d.working_set_bytes = number("max_recommended_working_set_size");
        d.buffer_bytes = number("max_buffer_length");
        d.compute_major = (int)number("compute_capability_major");
        d.compute_minor = (int)number("compute_capability_minor");
        d.compiles = gpu;
        if (d.backend == SETUN_MLX_CPU) {
            d.cores = (int)std::thread::hardware_concurrency();
            if (!d.memory_bytes) d.memory_bytes = physical_memory();
        }
        int handle = 0, cores = 0;
        const CudaDriver &driver = cuda_driver();
        if (d.backend == SETUN_MLX_CUDA && driver.device_get && driver.device_attribute && !driver.device_get(&handle, index) && !driver.device_attribute(&cores, 16 /* multiprocessors */, handle)) d.cores = cores;
        *out = d;
    });
}

void entry_counters(setun_mlx_counters *out) {
    *out = {count.operations, count.kernel_calls, count.evaluations, count.synchronisations, count.shared, count.copied, count.traces, count.function_calls, count.host_kernels, count.arrays, count.regions, count.kernels, count.functions, count.streams};
}

setun_status entry_limit_set(setun_mlx_limit limit, uint64_t bytes, uint64_t *out_previous) {
    if (out_previous) *out_previous = 0;
    return guard([&](Lock &) {
        uint64_t previous = 0;
        switch (limit) {
        case SETUN_MLX_LIMIT_MEMORY: previous = mx::set_memory_limit((size_t)bytes); break;
        case SETUN_MLX_LIMIT_CACHE: previous = mx::set_cache_limit((size_t)bytes); break;
        case SETUN_MLX_LIMIT_WIRED: previous = mx::metal::is_available() ? mx::set_wired_limit((size_t)bytes) : 0; break;
        default: refuse("limit " + std::to_string((int)limit) + " is unknown");
        }
        if (out_previous) *out_previous = previous;
    });
}

void entry_memory_get(setun_mlx_memory *out) {
    *out = {};
    quietly([&] { *out = {mx::get_active_memory(), mx::get_peak_memory(), mx::get_cache_memory(), mx::get_memory_limit()}; });
}

setun_status entry_cache_clear() { return guard([&](Lock &) { mx::clear_cache(); }); }
void entry_peak_reset() { quietly([] { mx::reset_peak_memory(); }); }

setun_status entry_stream_open(bool gpu, int index, setun_mlx_stream **out) {
    *out = nullptr;
    return guard([&](Lock &lock) {
        auto device = device_of(gpu, index);
        auto stream = take_stream(device);
        try {
            static bool tried_cpu = false;
            static std::vector<int> tried; /* GPUs known to work */
            bool known = gpu ? std::find(tried.begin(), tried.end(), index) != tried.end() : tried_cpu;
            if (!known) {
                try_device(lock, stream);
                if (gpu) tried.push_back(index);
                else tried_cpu = true;
            }
            *out = new setun_mlx_stream{stream};
        } catch (...) {
            idle_streams.push_back(stream);
            throw;
        }
    });
}

void entry_stream_close(setun_mlx_stream *stream) {
    if (!stream) return;
    try {
        mx::synchronize(stream->stream); /* an error of work that nobody waits for any more */
    } catch (...) {
    }
    quietly([&] { idle_streams.push_back(stream->stream); });
    delete stream;
}

setun_status entry_stream_synchronize(setun_mlx_stream *stream) {
    return guard([&](Lock &lock) {
        enter(stream);
        Outside open(lock);
        count.synchronisations++;
        mx::synchronize(stream->stream);
    });
}

/* A stream runs what it was given in order, so an operation given to it last is an event, and an operation that reads one of another
 * stream makes what comes after it wait. */
setun_status entry_event_record(setun_mlx_stream *stream, setun_mlx_array **out_event) {
    *out_event = nullptr;
    return guard([&](Lock &) {
        enter(stream);
        auto mark = mx::add(mx::array(1.0f), mx::array(1.0f), stream->stream);
        mx::async_eval(mark);
        *out_event = box(std::move(mark));
    });
}

setun_status entry_event_wait(setun_mlx_stream *stream, setun_mlx_array *event) {
    return guard([&](Lock &) {
        enter(stream);
        if (!event) refuse("event_wait: the event is NULL");
        auto after = mx::negative(event->value, stream->stream);
        mx::async_eval(after);
    });
}

setun_status entry_array_from_host(setun_mlx_stream *stream, const setun_mlx_spec *spec, const void *values, setun_mlx_array **out) {
    *out = nullptr;
    return guard([&](Lock &lock) {
        enter(stream);
        if (!spec) refuse("array_from_host: the spec is NULL");
        auto shape = to_shape(*spec);
        uint64_t bytes = spec_bytes(*spec);
        if (bytes && !values) refuse("array_from_host: the values are NULL");
        *out = box(from_host(lock, stream->stream, values, shape, to_mlx(spec->dtype), (size_t)bytes));
    });
}

void entry_array_retain(setun_mlx_array *array, setun_mlx_array **out) {
    *out = nullptr;
    if (array) quietly([&] { *out = box(array->value); });
}

void entry_array_release(setun_mlx_array *array) {
    if (array) quietly([&] { delete array; });
}

setun_status entry_array_get(const setun_mlx_array *array, setun_mlx_array_info *out) {
    std::memset(out, 0, sizeof *out);
    return guard([&](Lock &) {
        if (!array) refuse("array_get: the array is NULL");
        const auto &a = array->value;
        setun_mlx_array_info info = {};
        info.spec = to_spec(a);
        info.bytes = a.nbytes();
        info.evaluated = a.status() != mx::array::Status::unscheduled;
        info.available = info.evaluated && a.is_available();
        info.contiguous = info.evaluated && a.flags().row_contiguous;
        *out = info;
    });
}

setun_status entry_eval(setun_mlx_stream *stream, setun_mlx_array *const *arrays, int n, bool wait) {
    return guard([&](Lock &lock) {
        enter(stream);
        auto all = unbox(arrays, n, "eval");
        if (all.empty()) return;
        count.evaluations++;
        mx::async_eval(all);
        if (wait) wait_outside(lock, all);
    });
}

setun_status entry_wait(setun_mlx_array *array) {
    return guard([&](Lock &lock) {
        if (!array) refuse("wait: the array is NULL");
        if (array->value.status() == mx::array::Status::unscheduled) refuse("wait: the array was never given to eval", SETUN_ERROR_STATE);
        Arrays one{array->value};
        wait_outside(lock, one);
    });
}

setun_status entry_read(setun_mlx_stream *stream, setun_mlx_array *array, void *out, size_t bytes) {
    return guard([&](Lock &lock) {
        enter(stream);
        if (!array || (bytes && !out)) refuse("read: the array or the memory is NULL");
        if (bytes != array->value.nbytes()) refuse("read: the array has " + std::to_string(array->value.nbytes()) + " bytes, the memory " + std::to_string(bytes));
        Arrays one{mx::contiguous(array->value, false, stream->stream)};
        mx::async_eval(one);
        wait_outside(lock, one);
        Outside open(lock); /* `one` dies under the lock again */
        to_host(one[0], backend_of(stream->stream.device), stream->stream.device.index, out);
    });
}

void must_be_available(setun_mlx_array *array, const char *what) {
    if (!array) refuse(std::string(what) + ": the array is NULL");
    if (array->value.status() == mx::array::Status::unscheduled || !array->value.is_available()) refuse(std::string(what) + ": the array is not computed; eval and wait first", SETUN_ERROR_STATE);
}

setun_status entry_array_data(setun_mlx_array *array, const void **out) {
    *out = nullptr;
    return guard([&](Lock &) {
        must_be_available(array, "array_data");
        if (mx::cu::is_available()) refuse("array_data: on CUDA values are read by copying them", SETUN_ERROR_UNSUPPORTED);
        if (!array->value.flags().row_contiguous) refuse("array_data: the array is a view with gaps; make it contiguous first", SETUN_ERROR_STATE);
        *out = array->value.data<char>();
    });
}

setun_status entry_array_from_mlx(const void *mlx_array, setun_mlx_array **out) {
    *out = nullptr;
    return guard([&](Lock &) {
        if (!mlx_array) refuse("array_from_mlx: the array is NULL");
        const auto &a = *static_cast<const mx::array *>(mlx_array);
        (void)to_spec(a);
        *out = box(a);
    });
}

setun_status entry_array_to_mlx(setun_mlx_array *array, void **out) {
    *out = nullptr;
    return guard([&](Lock &) {
        if (!array) refuse("array_to_mlx: the array is NULL");
        *out = &array->value;
    });
}

setun_status entry_region_create(setun_mlx_stream *stream, void *base, size_t bytes, void (*done)(void *), void *user, setun_mlx_region **out) {
    *out = nullptr;
    return guard([&](Lock &) {
        enter(stream);
        if (!base || !bytes) refuse("region_create: no memory");
        auto handle = std::make_unique<setun_mlx_region>(setun_mlx_region{nullptr, stream->stream});
        auto region = std::make_shared<Region>();
        count.regions++;
        region->base = static_cast<char *>(base);
        region->bytes = bytes;
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        if (backend_of(stream->stream.device) == SETUN_MLX_METAL && (uintptr_t)base % page == 0 && bytes % page == 0) region->metal = mx::allocator::make_buffer(base, bytes);
        region->done = done; /* from here on it is called, once */
        region->user = user;
        handle->region = std::move(region);
        *out = handle.release();
    });
}

void entry_region_release(setun_mlx_region *region) {
    if (region) quietly([&] { delete region; });
}

setun_status entry_array_wrap(setun_mlx_region *handle, uint64_t offset, const setun_mlx_spec *spec, const int64_t *strides, setun_mlx_array **out, bool *out_shared) {
    *out = nullptr;
    if (out_shared) *out_shared = false;
    return guard([&](Lock &lock) {
        if (!handle || !spec) refuse("array_wrap: the region or the spec is NULL");
        setun_mlx_stream stream{handle->stream};
        enter(&stream);
        Region &region = *handle->region;
        auto shape = to_shape(*spec);
        auto dtype = to_mlx(spec->dtype);
        size_t element = mx::size_of(dtype), elements = (size_t)(spec_bytes(*spec) / element);
        mx::Strides steps((size_t)spec->rank, 0);
        mx::array::Flags flags = {true, true, true};
        size_t extent = elements; /* from the first to the last element */
        int64_t dense = 1, column = 1;
        bool row = true, col = true;
        uint64_t last = 0;
        for (int i = spec->rank - 1; i >= 0; i--) {
            steps[(size_t)i] = strides ? strides[i] : dense;
            if (steps[(size_t)i] < 0) refuse("array_wrap: axis " + std::to_string(i) + " runs backwards", SETUN_ERROR_UNSUPPORTED);
            if (spec->dim[i] > 1 && steps[(size_t)i] != dense) row = false;
            dense *= spec->dim[i];
            uint64_t reach;
            if (__builtin_mul_overflow((uint64_t)(spec->dim[i] > 0 ? spec->dim[i] - 1 : 0), (uint64_t)steps[(size_t)i], &reach) || __builtin_add_overflow(last, reach, &last)) refuse("array_wrap: the strides overflow");
        }
        for (int i = 0; i < spec->rank; i++) {
            if (spec->dim[i] > 1 && steps[(size_t)i] != column) col = false;
            column *= spec->dim[i];
        }
        if (elements) extent = (size_t)last + 1;
        uint64_t bytes;
        if (__builtin_mul_overflow((uint64_t)extent, (uint64_t)element, &bytes) || offset > region.bytes || bytes > region.bytes - offset)
            refuse("array_wrap: bytes " + std::to_string(offset) + " to " + std::to_string(offset + bytes) + " of a region of " + std::to_string(region.bytes));
        char *data = region.base + offset;
        if ((uintptr_t)data % element) refuse("array_wrap: the address is not a multiple of the element's " + std::to_string(element) + " bytes");
        if (strides) flags = {extent == elements, row, col};
        std::shared_ptr<void> keep = handle->region;
        bool shared = true;
        setun_mlx_array *made = nullptr;
        if (region.metal.ptr()) made = box(adopt(region.metal, (int64_t)offset, shape, dtype, steps, extent, flags, keep));
        else if (backend_of(handle->stream.device) == SETUN_MLX_CPU && sharing_works(lock, handle->stream)) made = box(adopt_cpu(data, shape, dtype, steps, extent, flags, keep));
        else {
            shared = false;
            if (row) made = box(from_host(lock, handle->stream, data, shape, dtype, elements * element));
            else { /* the whole extent goes over, then the device gathers */
                auto flat = from_host(lock, handle->stream, data, {(mx::ShapeElem)extent}, dtype, extent * element);
                made = box(mx::contiguous(mx::as_strided(flat, shape, steps, 0, handle->stream), false, handle->stream));
            }
        }
        (shared ? count.shared : count.copied) += elements * element;
        if (out_shared) *out_shared = shared;
        *out = made;
    });
}

setun_status entry_array_device_pointer(setun_mlx_array *array, int *out_dlpack_device, int *out_device_index, void **out_pointer, uint64_t *out_byte_offset) {
    *out_dlpack_device = *out_device_index = 0;
    *out_pointer = nullptr;
    *out_byte_offset = 0;
    return guard([&](Lock &) {
        must_be_available(array, "array_device_pointer");
        auto &a = array->value;
        if (mx::cu::is_available()) {
            const CudaBuffer &buffer = cuda_buffer(a);
            *out_dlpack_device = buffer.device < 0 ? 13 : 2;
            *out_device_index = buffer.device < 0 ? 0 : buffer.device;
            *out_pointer = buffer.data;
            *out_byte_offset = (uint64_t)a.offset();
        } else if (mx::metal::is_available()) {
            *out_dlpack_device = 8;
            *out_pointer = const_cast<void *>(a.buffer().ptr());
            *out_byte_offset = (uint64_t)a.offset();
        } else {
            *out_dlpack_device = 1;
            *out_pointer = a.data<char>();
        }
    });
}

setun_status entry_op(setun_mlx_stream *stream, const setun_mlx_op_request *request, setun_mlx_array **outputs, int output_count) {
    for (int i = 0; i < output_count; i++) outputs[i] = nullptr;
    return guard([&](Lock &) {
        enter(stream);
        if (!request) refuse("op: the request is NULL");
        auto made = build_all(*request, stream->stream, output_count);
        box_all(made, outputs, output_count);
        count.operations++;
    });
}

std::vector<std::string> names_of(const char *const *names, int n, const char *what) {
    if (n < 0 || (n && !names)) refuse(std::string("kernel_create: no names of ") + what);
    std::vector<std::string> out;
    for (int i = 0; i < n; i++) {
        if (!names[i] || !*names[i]) refuse(std::string("kernel_create: a name of ") + what + " is empty");
        out.emplace_back(names[i]);
    }
    return out;
}

setun_status entry_kernel_create(const setun_mlx_kernel_options *o, setun_mlx_kernel **out) {
    *out = nullptr;
    return guard([&](Lock &) {
        if (!o || !o->name || !*o->name) refuse("kernel_create: no name");
        auto kernel = std::make_unique<setun_mlx_kernel>();
        kernel->kind = o->kind;
        kernel->name = o->name;
        kernel->inputs = o->input_count;
        kernel->outputs = o->output_count;
        kernel->any_layout = o->any_layout;
        if (o->input_count < 0 || o->output_count < 1) refuse("kernel_create: " + kernel->name + " needs at least one output");
        std::string header = o->header ? o->header : "";
        switch (o->kind) {
        case SETUN_MLX_KERNEL_HOST:
            if (!o->host) refuse("kernel_create: " + kernel->name + " has no function");
            kernel->host = o->host;
            kernel->user = o->user;
            kernel->pure = o->pure;
            break;
        case SETUN_MLX_KERNEL_METAL:
            if (!o->source) refuse("kernel_create: " + kernel->name + " has no text");
            if (!mx::metal::is_available()) refuse("kernel_create: " + kernel->name + " is for Metal, which this MLX does not have", SETUN_ERROR_UNSUPPORTED);
            kernel->text = mx::fast::metal_kernel(kernel->name, names_of(o->input_names, o->input_count, "inputs"), names_of(o->output_names, o->output_count, "outputs"), o->source, header, !o->any_layout, o->atomic_outputs, mx::CompileOptions(o->math_mode));
            break;
        case SETUN_MLX_KERNEL_CUDA:
            if (!o->source) refuse("kernel_create: " + kernel->name + " has no text");
            if (!mx::cu::is_available()) refuse("kernel_create: " + kernel->name + " is for CUDA, which this MLX does not have", SETUN_ERROR_UNSUPPORTED);
            kernel->text = mx::fast::cuda_kernel(kernel->name, names_of(o->input_names, o->input_count, "inputs"), names_of(o->output_names, o->output_count, "outputs"), o->source, header, !o->any_layout, o->shared_bytes);
            break;
        case SETUN_MLX_KERNEL_CUDA_BINARY:
            if (!o->source || !o->source_bytes) refuse("kernel_create: " + kernel->name + " has no binary");
            if (!mx::cu::is_available()) refuse("kernel_create: " + kernel->name + " is for CUDA, which this MLX does not have", SETUN_ERROR_UNSUPPORTED);
            kernel->binary.assign(o->source, o->source_bytes);
            break;
        default: refuse("kernel_create: kind " + std::to_string((int)o->kind) + " is unknown");
        }
        *out = kernel.release();
    });
}

void entry_kernel_release(setun_mlx_kernel *kernel) {
    if (kernel) quietly([&] { delete kernel; });
}

int argument_integer(const setun_mlx_argument &a) {
    if (a.integer < INT32_MIN || a.integer > INT32_MAX) refuse("an argument of " + std::to_string(a.integer) + " does not fit in 32 bits");
    return (int)a.integer;
}

Arrays call_binary(setun_mlx_kernel &kernel, const setun_mlx_call &c, const mx::Stream &s, const Arrays &in, const std::vector<mx::Shape> &shapes, const std::vector<mx::Dtype> &dtypes) {
    std::vector<mx::fast::ScalarArg> scalars;
    std::string key;
    auto add = [&](const void *bytes, size_t n) { key.append(static_cast<const char *>(bytes), n); };
    for (int i = 0; i < c.scalar_count; i++) {
        const auto &a = c.scalars[i];
        int integer = 0;
        switch (a.kind) {
        case SETUN_MLX_ARGUMENT_INTEGER: integer = argument_integer(a); scalars.emplace_back(integer); break;
        case SETUN_MLX_ARGUMENT_BOOL: integer = a.integer != 0; scalars.emplace_back(a.integer != 0); break;
        case SETUN_MLX_ARGUMENT_REAL: scalars.emplace_back(a.real); break;
        default: refuse(kernel.name + ": scalar " + std::to_string(i) + " is no bool, integer or real");
        }
        add(&a.kind, sizeof a.kind);
        add(&integer, sizeof integer);
        add(&a.real, sizeof a.real);
    }
    int initialise = c.initialise;
    add(c.grid, sizeof c.grid);
    add(c.group, sizeof c.group);
    add(&c.shared_bytes, sizeof c.shared_bytes);
    add(&initialise, sizeof initialise);
    add(&c.initial, sizeof c.initial);
    add(&s.index, sizeof s.index);
    for (auto &used : kernel.used)
        if (used.key == key) return mx::array::make_arrays(shapes, dtypes, used.primitive, in);
    auto out = mx::fast::precompiled_cuda_kernel(kernel.name, kernel.binary, in, shapes, dtypes, scalars, {c.grid[0], c.grid[1], c.grid[2]}, {c.group[0], c.group[1], c.group[2]}, c.shared_bytes,
        c.initialise ? std::optional<float>(c.initial) : std::nullopt, !kernel.any_layout, s);
    if (kernel.used.size() >= 8) kernel.used.erase(kernel.used.begin());
    kernel.used.push_back({std::move(key), out[0].primitive_ptr()});
    return out;
}

setun_status entry_kernel_call(setun_mlx_stream *stream, setun_mlx_kernel *kernel, const setun_mlx_call *c, setun_mlx_array **outputs) {
    if (c)
        for (int i = 0; i < c->output_count; i++) outputs[i] = nullptr;
    return guard([&](Lock &) {
        enter(stream);
        const auto &s = stream->stream;
        if (!kernel || !c) refuse("kernel_call: the kernel or the call is NULL");
        if (c->input_count != kernel->inputs || c->output_count != kernel->outputs)
            refuse(kernel->name + ": " + std::to_string(c->input_count) + " inputs and " + std::to_string(c->output_count) + " outputs; it has " + std::to_string(kernel->inputs) + " and " + std::to_string(kernel->outputs));
        auto in = unbox(c->inputs, c->input_count, kernel->name.c_str());
        std::vector<mx::Shape> shapes;
        std::vector<mx::Dtype> dtypes;
        for (int i = 0; i < c->output_count; i++) {
            shapes.push_back(to_shape(c->outputs[i]));
            dtypes.push_back(to_mlx(c->outputs[i].dtype));
        }
        if (kernel->kind != SETUN_MLX_KERNEL_HOST)
            for (int i = 0; i < 3; i++)
                if (c->grid[i] < 1 || c->group[i] < 1) refuse(kernel->name + ": grid and group must be at least 1");
        Arrays made;
        if (kernel->kind == SETUN_MLX_KERNEL_HOST) {
            if (s.device.type != mx::Device::cpu) refuse(kernel->name + " is a host kernel: its stream must be the CPU's", SETUN_ERROR_UNSUPPORTED);
            if (c->parameter_bytes && !c->parameters) refuse(kernel->name + ": the parameters are NULL");
            if (!kernel->any_layout)
                for (auto &a : in) a = mx::contiguous(a, false, s);
            made = mx::array::make_arrays(shapes, dtypes, std::make_shared<HostKernel>(s, kernel->name, kernel->host, kernel->user, kernel->pure, *c), in);
        } else if (kernel->kind == SETUN_MLX_KERNEL_CUDA_BINARY) made = call_binary(*kernel, *c, s, in, shapes, dtypes);
        else {
            std::vector<std::pair<std::string, mx::fast::TemplateArg>> templates;
            for (int i = 0; i < c->template_count; i++) {
                const auto &a = c->templates[i];
                if (!a.name) refuse(kernel->name + ": a template argument has no name");
                switch (a.kind) {
                case SETUN_MLX_ARGUMENT_INTEGER: templates.emplace_back(a.name, argument_integer(a)); break;
                case SETUN_MLX_ARGUMENT_BOOL: templates.emplace_back(a.name, a.integer != 0); break;
                case SETUN_MLX_ARGUMENT_DTYPE: templates.emplace_back(a.name, to_mlx((setun_dtype)a.integer)); break;
                default: refuse(kernel->name + ": template argument " + a.name + " is no integer, bool or dtype");
                }
            }
            made = kernel->text(in, shapes, dtypes, {c->grid[0], c->grid[1], c->grid[2]}, {c->group[0], c->group[1], c->group[2]}, templates, c->initialise ? std::optional<float>(c->initial) : std::nullopt, false, s);
        }
        box_all(made, outputs, c->output_count);
        count.kernel_calls++;
    });
}

setun_status entry_compile_set(bool on) {
    compile_mode = on ? COMPILE_ON : COMPILE_OFF;
    return SETUN_OK;
}
bool entry_compile_get(setun_mlx_stream *stream) { return stream && compiles(stream->stream.device); }

/* Runs the caller's build on handles of the inputs. Lives under the lock that function_call holds. */
Arrays run_build(setun_mlx_function *f, const Arrays &inputs) {
    std::vector<std::unique_ptr<setun_mlx_array>> handles;
    std::vector<setun_mlx_array *> borrowed;
    for (auto &a : inputs) {
        handles.emplace_back(box(a));
        borrowed.push_back(handles.back().get());
    }
    std::vector<setun_mlx_array *> given((size_t)f->outputs, nullptr);
    count.traces++;
    message[0] = 0;
    setun_status status = f->build(f->user, borrowed.data(), (int)borrowed.size(), given.data(), f->outputs);
    std::vector<std::unique_ptr<setun_mlx_array>> owned;
    for (auto *g : given) owned.emplace_back(g);
    if (status != SETUN_OK) throw Refused(status, message[0] ? std::string("building the function's graph: ") + message : "the function's build gave up");
    Arrays out;
    for (int i = 0; i < f->outputs; i++) {
        if (!owned[(size_t)i]) refuse("the function's build left output " + std::to_string(i) + " empty", SETUN_ERROR_STATE);
        out.push_back(owned[(size_t)i]->value);
    }
    return out;
}

setun_status entry_function_create(setun_mlx_stream *stream, setun_mlx_build_fn build, void *user, bool any_shape, setun_mlx_function **out) {
    *out = nullptr;
    return guard([&](Lock &) {
        enter(stream);
        if (!build) refuse("function_create: no function");
        static std::uintptr_t next = 1; /* below any address, so that it meets no id of MLX's own making */
        auto f = std::make_unique<setun_mlx_function>(stream->stream);
        f->build = build;
        f->user = user;
        f->id = next++;
        auto *self = f.get();
        f->plain = [self](const Arrays &inputs) { return run_build(self, inputs); };
        f->compiled = mx::detail::compile(f->plain, f->id, any_shape);
        *out = f.release();
    });
}

void entry_function_release(setun_mlx_function *function) {
    if (function) quietly([&] { delete function; });
}

setun_status entry_function_call(setun_mlx_function *f, setun_mlx_array *const *inputs, int input_count, setun_mlx_array **outputs, int output_count) {
    for (int i = 0; i < output_count; i++) outputs[i] = nullptr;
    return guard([&](Lock &) {
        if (!f) refuse("function_call: the function is NULL");
        setun_mlx_stream stream{f->stream};
        enter(&stream);
        if (output_count < 1 || !outputs) refuse("function_call: no outputs");
        auto in = unbox(inputs, input_count, "function_call");
        f->outputs = output_count;
        Arrays made;
        if (compiles(f->stream.device)) {
            auto here = std::this_thread::get_id();
            bool known = false;
            for (auto &c : f->caches) known = known || c.first == here;
            if (!known) f->caches.emplace_back(here, mx::detail::compile_cache());
            made = f->compiled(in);
        } else made = f->plain(in);
        if ((int)made.size() != output_count) refuse("function_call: the graph has " + std::to_string(made.size()) + " outputs, not " + std::to_string(output_count));
        box_all(made, outputs, output_count);
        count.function_calls++;
    });
}

#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
const setun_mlx_table table = {
    sizeof(setun_mlx_table), SETUN_MLX_ABI, TEXT(MLX_VERSION_MAJOR) "." TEXT(MLX_VERSION_MINOR) "." TEXT(MLX_VERSION_PATCH),
    mx::version, entry_error, entry_op_name, entry_device_count, entry_device_get, entry_counters,
    entry_limit_set, entry_memory_get, entry_cache_clear, entry_peak_reset,
    entry_stream_open, entry_stream_close, entry_stream_synchronize, entry_event_record, entry_event_wait,
    entry_array_from_host, entry_array_retain, entry_array_release, entry_array_get, entry_eval, entry_wait, entry_read, entry_array_data, entry_array_from_mlx, entry_array_to_mlx,
    entry_region_create, entry_region_release, entry_array_wrap, entry_array_device_pointer,
    entry_op, entry_kernel_create, entry_kernel_release, entry_kernel_call,
    entry_compile_set, entry_compile_get, entry_function_create, entry_function_release, entry_function_call,
};

} /* namespace */

extern "C" __attribute__((visibility("default"))) const setun_mlx_table *setun_mlx_bridge(int abi) { return abi == SETUN_MLX_ABI ? &table : nullptr; }
