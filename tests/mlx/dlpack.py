"""DLPack between Setun and other programs' tensors, both ways: NumPy, and PyTorch where it is. usage: dlpack.py LIBSETUN [DEVICE]
Exit 77 where this Python has no NumPy."""
import ctypes as c, sys
try:
    import numpy as np
except ImportError:
    print("this Python has no NumPy"); sys.exit(77)

lib = c.CDLL(sys.argv[1])
device = (sys.argv[2] if len(sys.argv) > 2 else "cpu").encode()
P = c.c_void_p
lib.setun_error.restype = c.c_char_p
lib.setun_tensor_data.restype = P
lib.setun_tensor_data.argtypes = lib.setun_tensor_destroy.argtypes = lib.setun_stream_synchronize.argtypes = [P]
lib.setun_tensor_bytes.restype = c.c_size_t
lib.setun_tensor_bytes.argtypes = lib.setun_tensor_rank.argtypes = lib.setun_tensor_dtype.argtypes = [P]
lib.setun_tensor_dim.restype = c.c_int64
lib.setun_tensor_dim.argtypes = [P, c.c_int]
lib.setun_tensor_create_on.argtypes = [P, c.c_int, c.c_int, P, P, P]
lib.setun_tensor_to_dlpack.argtypes = [P, P]
lib.setun_tensor_from_dlpack.argtypes = [P, P, P]
lib.setun_tensor_read.argtypes = [P, P, c.c_size_t]
api = c.pythonapi
api.PyCapsule_New.restype = c.py_object
api.PyCapsule_New.argtypes = [P, c.c_char_p, P]
api.PyCapsule_GetPointer.restype = P
api.PyCapsule_GetPointer.argtypes = [c.py_object, c.c_char_p]
api.PyCapsule_SetName.argtypes = [c.py_object, c.c_char_p]
USED = c.create_string_buffer(b"used_dltensor")

def ok(status):
    assert status == 0, lib.setun_error().decode()

context, stream = P(), P()
ok(lib.setun_context_create(None, c.byref(context)))
status = lib.setun_stream_create(context, device, c.byref(stream))
if status:
    print(lib.setun_error().decode()); sys.exit(1)
DTYPES = {"float32": 1, "float16": 2, "int32": 4, "int8": 5, "uint8": 6, "int64": 7, "uint32": 8, "bool": 9, "int16": 10, "uint16": 11, "uint64": 12, "float64": 13}

class Export:
    """what numpy.from_dlpack and torch.from_dlpack ask for"""
    def __init__(self, tensor):
        self.tensor = tensor
    def __dlpack_device__(self):
        return (1, 0)
    def __dlpack__(self, **options):
        managed = P()
        ok(lib.setun_tensor_to_dlpack(self.tensor, c.byref(managed)))
        return api.PyCapsule_New(managed, b"dltensor", None)

def make(array):
    shape = (c.c_int64 * max(1, array.ndim))(*array.shape)
    out = P()
    ok(lib.setun_tensor_create_on(stream, DTYPES[str(array.dtype)], array.ndim, shape, array.ctypes.data, c.byref(out)))
    return out

def take(foreign):
    """a tensor of Setun's over an object with __dlpack__"""
    capsule = foreign.__dlpack__()
    managed = api.PyCapsule_GetPointer(capsule, b"dltensor")
    out = P()
    ok(lib.setun_tensor_from_dlpack(stream, managed, c.byref(out)))
    api.PyCapsule_SetName(capsule, c.cast(USED, c.c_char_p))
    return out

def values(tensor, dtype):
    shape = [lib.setun_tensor_dim(tensor, i) for i in range(lib.setun_tensor_rank(tensor))]
    out = np.empty(shape, dtype)
    ok(lib.setun_tensor_read(tensor, out.ctypes.data, lib.setun_tensor_bytes(tensor)))
    return out

random = np.random.default_rng(1)
checks = 0
libraries = [("numpy", np.from_dlpack, lambda a: a, lambda a: a.ctypes.data, np.asarray)]
try:
    import torch
    libraries.append(("torch", torch.from_dlpack, lambda a: torch.from_numpy(a), lambda a: a.data_ptr(), lambda a: a.numpy()))
except ImportError:
    print("no PyTorch here: NumPy only")
for name, from_dlpack, to_foreign, address, to_numpy in libraries:
    for dtype in DTYPES:
        if name == "torch" and dtype in ("uint16", "uint32", "uint64"):
            continue
        if name == "numpy" and dtype == "bool" and np.lib.NumpyVersion(np.__version__) < "1.25.0":
            continue
        for shape in [(3, 4), (5,), (2, 3, 2), (), (0, 4)]:
            source = (random.integers(0, 2, shape) if dtype == "bool" else random.integers(0, 100, shape)).astype(dtype)
            source = np.asarray(source)
            tensor = make(source)
            theirs = from_dlpack(Export(tensor))  # Setun -> them
            assert np.array_equal(to_numpy(theirs), source), (name, dtype, shape)
            pointer = lib.setun_tensor_data(tensor)
            if source.size:
                assert address(theirs) == pointer, "it was copied"
            lib.setun_tensor_destroy(tensor)
            again = to_numpy(theirs).copy()  # lives on after our handle
            assert np.array_equal(again, source)
            del theirs
            foreign = to_foreign(source.copy())  # them -> Setun
            ours = take(foreign)
            assert lib.setun_tensor_dtype(ours) == DTYPES[dtype]
            assert np.array_equal(values(ours, dtype), source), (name, dtype, shape)
            if source.size:
                assert lib.setun_tensor_data(ours) == address(foreign), "it was copied"
            del foreign
            assert np.array_equal(values(ours, dtype), source)
            lib.setun_tensor_destroy(ours)
            checks += 1
    # strides: rows with gaps, turned, backwards (NumPy only: PyTorch has none)
    base = to_foreign(np.arange(48, dtype="float32").reshape(6, 8))
    views = [base[1:4, 2:5], base.T, base[::2, ::3], base[:, 3]] + ([base[::-1], base[:, ::-2]] if name == "numpy" else [])
    for view in views:
        ours = take(view)
        assert np.array_equal(values(ours, "float32"), to_numpy(view)), (name, view)
        lib.setun_tensor_destroy(ours)
        checks += 1
    if name == "torch":  # bfloat16, which NumPy has not
        x = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
        ours = take(x)
        assert lib.setun_tensor_dtype(ours) == 3
        back = torch.from_dlpack(Export(ours))
        assert back.dtype == torch.bfloat16 and torch.equal(back, x) and back.data_ptr() == x.data_ptr()
        del back, x
        lib.setun_tensor_destroy(ours)
        checks += 1
ok(lib.setun_stream_synchronize(stream))
print(checks, "exchanges on", device.decode(), "with", " and ".join(l[0] for l in libraries))
