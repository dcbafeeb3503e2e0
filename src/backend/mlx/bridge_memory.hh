/*
 * bridge_memory.hh - part of bridge.cc: values to and from devices, host memory as arrays without a copy. Here is all that rests on
 * what MLX does not promise (how its CPU and CUDA buffers look), each with the self-test that notices when it changes.
 */
/* ---- CUDA's driver, opened beside MLX: copies that leave a buffer where it is. array::data() would move it to managed memory for good. ---- */
struct CudaBuffer { void *data; size_t size; int device; }; /* as in mlx/backend/cuda/allocator.h, whose other includes need the CUDA toolkit */
struct CudaDriver {
    int (*copy)(unsigned long long, unsigned long long, size_t) = nullptr; /* between any two addresses that CUDA knows, and pageable memory */
    int (*stream_synchronize)(void *) = nullptr;
    int (*device_get)(int *, int) = nullptr;
    int (*device_attribute)(int *, int, int) = nullptr;
    int (*context_get)(void **) = nullptr, (*context_set)(void *) = nullptr, (*primary_context)(void **, int) = nullptr;
    CudaDriver() {
        void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (!library) return;
        *(void **)&copy = dlsym(library, "cuMemcpy");
        *(void **)&stream_synchronize = dlsym(library, "cuStreamSynchronize");
        *(void **)&device_get = dlsym(library, "cuDeviceGet");
        *(void **)&device_attribute = dlsym(library, "cuDeviceGetAttribute");
        *(void **)&context_get = dlsym(library, "cuCtxGetCurrent");
        *(void **)&context_set = dlsym(library, "cuCtxSetCurrent");
        *(void **)&primary_context = dlsym(library, "cuDevicePrimaryCtxRetain");
    }
    bool copies() const { return copy && stream_synchronize && device_get && context_get && context_set && primary_context; }
    /* Copies and waits. A thread that never ran anything on the GPU has no context yet: it gets the one MLX uses. */
    bool move(const void *to, const void *from, size_t bytes, int index) const {
        void *context = nullptr;
        int device = 0;
        if (context_get(&context) || (!context && (device_get(&device, index) || primary_context(&context, device) || context_set(context)))) return false;
        return !copy((unsigned long long)to, (unsigned long long)from, bytes) && !stream_synchronize(nullptr);
    }
};
const CudaDriver &cuda_driver() {
    static const CudaDriver driver;
    return driver;
}
std::atomic<int> cuda_direct{0}; /* 0 not tried, 1 the self-test passed, -1 it failed: through managed memory then */

const CudaBuffer &cuda_buffer(const mx::array &a) { return *static_cast<const CudaBuffer *>(a.buffer().ptr()); }

struct Outside { /* the lock is open while it lives: other sessions schedule meanwhile */
    explicit Outside(Lock &l) : lock(l) { lock.unlock(); }
    ~Outside() { lock.lock(); }
    Lock &lock;
};

void wait_outside(Lock &lock, Arrays &arrays) { /* for an evaluation begun under the lock */
    Outside open(lock);
    count.synchronisations++;
    for (auto &a : arrays) a.wait();
}

mx::array finish(Lock &lock, const mx::array &a) { /* evaluates one, keeps the lock */
    Arrays one{a};
    mx::async_eval(one);
    wait_outside(lock, one);
    return one[0];
}

mx::array same_bits(const mx::array &a, const mx::Stream &s) { /* as unsigned numbers: every bit pattern survives */
    switch (mx::size_of(a.dtype())) {
    case 1: return mx::view(a, mx::uint8, s);
    case 2: return mx::view(a, mx::uint16, s);
    case 4: return mx::view(a, mx::uint32, s);
    default: return mx::view(a, mx::uint64, s);
    }
}

mx::array copy_bits(const mx::array &a, const mx::Stream &s) {
    auto bits = same_bits(a, s);
    return mx::view(mx::bitwise_or(bits, mx::array(0, bits.dtype()), s), a.dtype(), s);
}

mx::array from_host(Lock &lock, const mx::Stream &s, const void *values, const mx::Shape &shape, mx::Dtype dtype, size_t bytes) {
    if (backend_of(s.device) == SETUN_MLX_CUDA && cuda_direct >= 0 && cuda_driver().copies() && bytes) {
        auto a = finish(lock, mx::zeros(shape, dtype, s)); /* the device's own memory */
        if (!a.flags().row_contiguous || a.data_size() != a.size()) refuse("MLX's zeros are no longer memory of their own", SETUN_ERROR_DEVICE);
        const CudaBuffer &buffer = cuda_buffer(a);
        if (!cuda_driver().move(static_cast<char *>(buffer.data) + a.offset(), values, bytes, s.device.index)) refuse("the CUDA driver could not copy " + std::to_string(bytes) + " bytes to the device", SETUN_ERROR_DEVICE);
        return a;
    }
    must_fit(bytes);
    mx::array a(mx::allocator::malloc(bytes), shape, dtype);
    if (bytes) {
        if (!a.data<char>()) throw std::bad_alloc();
        std::memcpy(a.data<char>(), values, bytes);
    }
    if (backend_of(s.device) != SETUN_MLX_CUDA || !bytes) return a;
    return finish(lock, copy_bits(a, s)); /* `a` is managed memory; its copy is the device's. Holding `a` keeps the result from reusing it */
}

void to_host(const mx::array &a, setun_mlx_device_kind backend, int index, void *out) { /* of an available, row-major array */
    if (!a.nbytes()) return;
    if (backend == SETUN_MLX_CUDA && cuda_direct >= 0 && cuda_driver().copies()) {
        if (!cuda_driver().move(out, static_cast<const char *>(cuda_buffer(a).data) + a.offset(), a.nbytes(), index)) refuse("the CUDA driver could not copy from the device", SETUN_ERROR_DEVICE);
        return;
    }
    std::memcpy(out, a.data<char>(), a.nbytes());
}

/* ---- memory of the host as arrays ---- */
/* `buffer` in MLX's terms, `offset` in bytes from what its raw_ptr() gives. */
mx::array adopt(mx::allocator::Buffer buffer, int64_t offset, const mx::Shape &shape, mx::Dtype dtype, const mx::Strides &strides, size_t extent, mx::array::Flags flags, std::shared_ptr<void> keep) {
    mx::array a(shape, dtype, nullptr, {});
    /* not owned: MLX never writes into it nor frees it; the deleter's capture keeps the region alive */
    a.set_data(mx::allocator::Data(buffer, [keep](mx::allocator::Buffer) {}), extent, strides, flags, offset);
    a.set_status(mx::array::Status::available);
    return a;
}

/* On the CPU a Buffer points 8 bytes (its size) before the data. Nothing reads that size of memory that MLX does not own. */
mx::array adopt_cpu(const void *data, const mx::Shape &shape, mx::Dtype dtype, const mx::Strides &strides, size_t extent, mx::array::Flags flags, std::shared_ptr<void> keep) {
    mx::allocator::Buffer probe(const_cast<void *>(data));
    ptrdiff_t header = static_cast<char *>(probe.raw_ptr()) - static_cast<const char *>(data);
    return adopt(mx::allocator::Buffer(static_cast<char *>(const_cast<void *>(data)) - header), 0, shape, dtype, strides, extent, flags, std::move(keep));
}

/* Is the CPU trick still true of this MLX? Pointer identity, right sums, views, and no result in our memory. */
bool sharing_works(Lock &lock, const mx::Stream &s) {
    static int known = 0;
    if (known) return known > 0;
    known = -1;
    enum { N = 256 };
    static float values[N + 16];
    for (int i = 0; i < N; i++) values[i] = (float)i;
    try {
        auto token = std::make_shared<int>(0);
        bool good = true;
        {
            auto a = adopt_cpu(values, {N}, mx::float32, {1}, N, {true, true, true}, token);
            good = a.data<float>() == values;
            auto view = finish(lock, mx::slice(mx::reshape(a, {N / 2, 2}, s), {N / 4, 0}, {N / 2, 2}, s));
            good = good && view.data<float>() == values + N / 2;
            auto total = finish(lock, mx::sum(a, s));
            good = good && *total.data<float>() == (float)(N * (N - 1) / 2);
            auto negative = mx::negative(std::move(a), s); /* the graph holds the only reference: the case in which MLX reuses an input */
            negative = finish(lock, negative);
            good = good && negative.data<float>() != values && negative.data<float>()[5] == -5.0f && values[5] == 5.0f;
        }
        mx::synchronize(s);
        good = good && token.use_count() == 1; /* nothing holds on */
        known = good ? 1 : -1;
    } catch (const std::exception &) {
    }
    return known > 0;
}

struct Region {
    ~Region() {
        if (metal.ptr()) mx::allocator::release(metal);
        if (done) done(user);
        count.regions--;
    }
    char *base = nullptr;
    size_t bytes = 0;
    mx::allocator::Buffer metal{nullptr};
    void (*done)(void *) = nullptr;
    void *user = nullptr;
};
