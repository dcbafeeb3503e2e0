/*
 * driver.h - NVIDIA's driver, opened at run time, as far as the engine calls it: memory, modules, launches on one stream. No CUDA header, no
 * link to it. Caller: engine.c. Knows no kernel.
 */
#ifndef SETUN_CUDA_DRIVER_H
#define SETUN_CUDA_DRIVER_H

#include "base/base.h"

typedef uint64_t setun_cuda_pointer;    /* device memory */
typedef struct setun_cuda_driver setun_cuda_driver; /* one device's */
typedef void *setun_cuda_function;
typedef void *setun_cuda_graph;

/* path: of the driver's library; NULL: the system's. UNSUPPORTED, with the reason, where there is none or it has no such device. */
setun_status setun_cuda_driver_open(const char *path, int device, setun_cuda_driver **out);
void setun_cuda_driver_close(setun_cuda_driver *driver); /* NULL is fine; frees what modules and stream took */
typedef struct setun_cuda_properties { int multiprocessors, shared_bytes, major, minor; } setun_cuda_properties;
const setun_cuda_properties *setun_cuda_driver_properties(const setun_cuda_driver *driver);

/* All calls below are for the thread that has entered: the device's context is current between the two. */
setun_status setun_cuda_enter(setun_cuda_driver *driver);
void setun_cuda_leave(setun_cuda_driver *driver);

/* A binary (cubin or fatbin) stays loaded until the driver is closed. */
setun_status setun_cuda_load(setun_cuda_driver *driver, const void *binary, const char *name);
/* Of any loaded binary. shared_bytes: dynamic shared memory that its launches will have. *out NULL without an error message where none has it. */
setun_status setun_cuda_function_get(setun_cuda_driver *driver, const char *name, int shared_bytes, setun_cuda_function *out);
setun_status setun_cuda_launch(setun_cuda_driver *driver, setun_cuda_function function, int blocks, int threads, int shared_bytes, void **arguments);
/* The same for kernels that wait themselves for the launch before (griddepcontrol): they may begin while that one ends, where the device and the driver can. */
setun_status setun_cuda_launch_early(setun_cuda_driver *driver, setun_cuda_function function, int blocks, int threads, int shared_bytes, void **arguments);
/* Launches between begin and end are not made but kept, with their arguments; *out NULL without an error message where the driver cannot. Nothing but
 * launches in between, of functions that were launched before. */
bool setun_cuda_graph_begin(setun_cuda_driver *driver);
setun_cuda_graph setun_cuda_graph_end(setun_cuda_driver *driver);
setun_status setun_cuda_graph_launch(setun_cuda_driver *driver, setun_cuda_graph graph);
void setun_cuda_graph_release(setun_cuda_driver *driver, setun_cuda_graph graph); /* NULL is fine */

setun_status setun_cuda_allocate(setun_cuda_driver *driver, size_t bytes, setun_cuda_pointer *out); /* 0 bytes: 16 */
void setun_cuda_release(setun_cuda_driver *driver, setun_cuda_pointer memory);
setun_status setun_cuda_allocate_host(setun_cuda_driver *driver, size_t bytes, void **out); /* pinned: copies need no other */
void setun_cuda_release_host(setun_cuda_driver *driver, void *memory);
/* In the stream's order; host memory that is not pinned is read before to_device returns. */
setun_status setun_cuda_to_device(setun_cuda_driver *driver, setun_cuda_pointer to, const void *from, size_t bytes);
setun_status setun_cuda_to_host(setun_cuda_driver *driver, void *to, setun_cuda_pointer from, size_t bytes);
setun_status setun_cuda_zero(setun_cuda_driver *driver, setun_cuda_pointer memory, size_t bytes);
setun_status setun_cuda_wait(setun_cuda_driver *driver); /* for all that the stream was given */

#endif
