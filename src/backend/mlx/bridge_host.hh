/*
 * bridge_host.hh - part of bridge.cc: a C function as an MLX operation on the CPU.
 */
class HostKernel : public mx::Primitive {
  public:
    HostKernel(mx::Stream s, std::string name, setun_mlx_host_fn fn, void *user, bool pure, const setun_mlx_call &call) : mx::Primitive(s), name_(std::move(name)), fn_(fn), user_(user), pure_(pure), initialise_(call.initialise), initial_(call.initial) {
        std::memcpy(grid_, call.grid, sizeof grid_);
        std::memcpy(group_, call.group, sizeof group_);
        parameter_bytes_ = call.parameter_bytes;
        parameters_.resize((parameter_bytes_ + sizeof(Unit) - 1) / sizeof(Unit));
        if (parameter_bytes_) std::memcpy(parameters_.data(), call.parameters, parameter_bytes_);
    }
    void eval_cpu(const Arrays &inputs, Arrays &outputs) override {
        struct Task { std::vector<const void *> in; std::vector<void *> out; std::vector<setun_mlx_spec> in_specs, out_specs; std::vector<size_t> out_bytes; };
        auto task = std::make_shared<Task>();
        for (auto &o : outputs) {
            must_fit(o.nbytes());
            o.set_data(mx::allocator::malloc(o.nbytes()));
            if (o.nbytes() && !o.data<char>()) throw std::bad_alloc();
            task->out.push_back(o.data<char>());
            task->out_specs.push_back(to_spec(o));
            task->out_bytes.push_back(o.nbytes());
        }
        for (auto &i : inputs) {
            if (!i.flags().row_contiguous) throw std::invalid_argument(name_ + ": an input is not row-major");
            task->in.push_back(i.data<char>());
            task->in_specs.push_back(to_spec(i));
        }
        auto &encoder = mx::cpu::get_command_encoder(stream());
        /* the evaluation holds the arrays until the task ran; the task holds what else it reads by `self` */
        auto self = std::make_shared<HostKernelState>(HostKernelState{name_, fn_, user_, initialise_, initial_, {grid_[0], grid_[1], grid_[2]}, {group_[0], group_[1], group_[2]}, parameters_, parameter_bytes_});
        encoder.dispatch([task, self] {
            if (self->initialise)
                for (size_t i = 0; i < task->out.size(); i++) fill(task->out[i], task->out_bytes[i], task->out_specs[i].dtype, self->initial);
            setun_mlx_host_call call = {};
            call.inputs = task->in.data();
            call.outputs = task->out.data();
            call.input_specs = task->in_specs.data();
            call.output_specs = task->out_specs.data();
            call.input_count = (int)task->in.size();
            call.output_count = (int)task->out.size();
            call.parameters = self->parameter_bytes ? self->parameters.data() : nullptr;
            call.parameter_bytes = self->parameter_bytes;
            std::memcpy(call.grid, self->grid, sizeof call.grid);
            std::memcpy(call.group, self->group, sizeof call.group);
            call.user = self->user;
            count.host_kernels++;
            int code = self->fn(&call);
            if (code) throw std::runtime_error(self->name + ": returned " + std::to_string(code));
        });
    }
    void eval_gpu(const Arrays &, Arrays &) override { throw std::runtime_error(name_ + ": a host kernel on a GPU stream"); }
    const char *name() const override { return name_.c_str(); }
    bool is_equivalent(const mx::Primitive &other) const override {
        auto &o = static_cast<const HostKernel &>(other);
        return pure_ && o.pure_ && fn_ == o.fn_ && user_ == o.user_ && initialise_ == o.initialise_ && initial_ == o.initial_ && parameter_bytes_ == o.parameter_bytes_ && !std::memcmp(grid_, o.grid_, sizeof grid_) &&
            !std::memcmp(group_, o.group_, sizeof group_) && (!parameter_bytes_ || !std::memcmp(parameters_.data(), o.parameters_.data(), parameter_bytes_));
    }

  private:
    struct alignas(16) Unit { char bytes[16]; };
    struct HostKernelState { std::string name; setun_mlx_host_fn fn; void *user; bool initialise; float initial; int grid[3], group[3]; std::vector<Unit> parameters; size_t parameter_bytes; };
    template <class T> static void fill_with(void *out, size_t bytes, T value) {
        for (size_t i = 0; i < bytes / sizeof(T); i++) static_cast<T *>(out)[i] = value;
    }
    static void fill(void *out, size_t bytes, setun_dtype dtype, float value) {
        switch (dtype) {
        case SETUN_F32: fill_with<float>(out, bytes, value); break;
        case SETUN_F16: fill_with<mx::float16_t>(out, bytes, (mx::float16_t)value); break;
        case SETUN_BF16: fill_with<mx::bfloat16_t>(out, bytes, (mx::bfloat16_t)value); break;
        case SETUN_F64: fill_with<double>(out, bytes, value); break;
        case SETUN_I32: fill_with<int32_t>(out, bytes, (int32_t)value); break;
        case SETUN_U32: fill_with<uint32_t>(out, bytes, (uint32_t)value); break;
        case SETUN_I16: fill_with<int16_t>(out, bytes, (int16_t)value); break;
        case SETUN_U16: fill_with<uint16_t>(out, bytes, (uint16_t)value); break;
        case SETUN_I8: fill_with<int8_t>(out, bytes, (int8_t)value); break;
        case SETUN_U8: fill_with<uint8_t>(out, bytes, (uint8_t)value); break;
        case SETUN_BOOL: fill_with<uint8_t>(out, bytes, value != 0.0f); break;
        case SETUN_I64: fill_with<int64_t>(out, bytes, (int64_t)value); break;
        case SETUN_U64: fill_with<uint64_t>(out, bytes, (uint64_t)value); break;
        }
    }
    std::string name_;
    setun_mlx_host_fn fn_;
    void *user_;
    bool pure_, initialise_;
    float initial_;
    int grid_[3], group_[3];
    std::vector<Unit> parameters_;
    size_t parameter_bytes_;
};
