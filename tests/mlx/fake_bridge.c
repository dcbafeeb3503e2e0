/* A bridge that is none, for the loader's tests: FAKE_ABI, FAKE_VERSION (installed) and FAKE_BUILT_FOR as the build sets them. */
#include "backend/mlx/bridge.h"

static const char *version(void) { return FAKE_VERSION; }
static const setun_mlx_table table = {.size = sizeof(setun_mlx_table), .abi = FAKE_ABI, .built_for = FAKE_BUILT_FOR, .version = version};

__attribute__((visibility("default"))) const setun_mlx_table *setun_mlx_bridge(int abi);
const setun_mlx_table *setun_mlx_bridge(int abi) { return abi == FAKE_ABI ? &table : NULL; }
