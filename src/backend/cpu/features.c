/*
 * features.c - asks the CPU, and the operating system that must save its registers, what they can do.
 * Called by select.c and by doctor. Knows nothing of kernels.
 */
#include "backend/cpu/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t read_xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static void detect_x86(setun_cpu_features *out) {
    unsigned a, b, c, d, top;
    top = __get_cpuid_max(0, NULL);
    if (top < 1) return;
    __cpuid(1, a, b, c, d);
    bool osxsave = c >> 27 & 1;
    bool fma = c >> 12 & 1, f16c = c >> 29 & 1, avx = c >> 28 & 1;
    /* XCR0: 1 SSE, 2 AVX upper halves, 5..7 opmask and the two parts of ZMM. A CPU flag alone does not say that the
     * system saves these on a switch. (macOS turns the ZMM bits on at first use; no Mac reaches our avx512 set.) */
    uint64_t xcr0 = osxsave ? read_xcr0() : 0;
    bool ymm = avx && (xcr0 & 0x6) == 0x6;
    bool zmm = ymm && (xcr0 & 0xe0) == 0xe0;
    out->fma = ymm && fma;
    out->f16c = ymm && f16c;
    if (top >= 7) {
        unsigned subleafs;
        __cpuid_count(7, 0, subleafs, b, c, d);
        out->avx2 = ymm && (b >> 5 & 1);
        out->avx512f = zmm && (b >> 16 & 1);
        out->avx512dq = zmm && (b >> 17 & 1);
        out->avx512bw = zmm && (b >> 30 & 1);
        out->avx512vl = zmm && (b >> 31 & 1);
        out->avx512vbmi = zmm && (c >> 1 & 1);
        out->avx512vbmi2 = zmm && (c >> 6 & 1);
        out->gfni = c >> 8 & 1;
        out->avx512vnni = zmm && (c >> 11 & 1);
        if (subleafs >= 1) {
            __cpuid_count(7, 1, a, b, c, d);
            out->avxvnni = ymm && (a >> 4 & 1);
        }
    }
    unsigned brand[12];
    if (__get_cpuid_max(0x80000000u, NULL) >= 0x80000004u) {
        for (unsigned i = 0; i < 3; i++) __cpuid(0x80000002u + i, brand[4 * i], brand[4 * i + 1], brand[4 * i + 2], brand[4 * i + 3]);
        char text[49];
        memcpy(text, brand, 48);
        text[48] = 0;
        const char *start = text;
        while (*start == ' ') start++;
        snprintf(out->name, sizeof out->name, "%s", start);
        for (size_t n = strlen(out->name); n > 0 && out->name[n - 1] == ' '; n--) out->name[n - 1] = 0;
    }
}
#endif

#if defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>

/* Bits of AT_HWCAP and AT_HWCAP2; spelt here because old C libraries lack some of the names. */
enum { HWCAP_BIT_ASIMD = 1, HWCAP_BIT_ASIMDHP = 10, HWCAP_BIT_ASIMDDP = 20, HWCAP2_BIT_I8MM = 13 };

static void cpu_name(char *out, size_t size) {
    /* ARM has no brand string; the kernel gives the part numbers, a device tree the board. */
    snprintf(out, size, "aarch64");
    FILE *f = fopen("/proc/cpuinfo", "r");
    if (!f) return;
    char line[256];
    unsigned implementer = 0, part = 0;
    while (fgets(line, sizeof line, f) && !(implementer && part)) {
        const char *value = strchr(line, ':');
        if (!value) continue;
        if (!strncmp(line, "CPU implementer", 15)) sscanf(value + 1, "%x", &implementer);
        if (!strncmp(line, "CPU part", 8)) sscanf(value + 1, "%x", &part);
    }
    fclose(f);
    if (implementer && part) snprintf(out, size, "aarch64 implementer 0x%02x part 0x%03x", implementer, part);
}

static void detect_arm(setun_cpu_features *out) {
    unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
    out->neon = caps >> HWCAP_BIT_ASIMD & 1;
    out->fp16 = caps >> HWCAP_BIT_ASIMDHP & 1;
    out->dotprod = caps >> HWCAP_BIT_ASIMDDP & 1;
    out->i8mm = caps2 >> HWCAP2_BIT_I8MM & 1;
    cpu_name(out->name, sizeof out->name);
}
#elif defined(__APPLE__)
#include <sys/sysctl.h>

static bool sysctl_flag(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value != 0;
}

static void detect_arm(setun_cpu_features *out) {
    out->neon = true;
    out->fp16 = sysctl_flag("hw.optional.arm.FEAT_FP16");
    out->dotprod = sysctl_flag("hw.optional.arm.FEAT_DotProd");
    out->i8mm = sysctl_flag("hw.optional.arm.FEAT_I8MM");
    size_t size = sizeof out->name;
    if (sysctlbyname("machdep.cpu.brand_string", out->name, &size, NULL, 0) != 0) snprintf(out->name, sizeof out->name, "Apple silicon");
}
#else
static void detect_arm(setun_cpu_features *out) {
    out->neon = true; /* part of every aarch64 ABI */
    snprintf(out->name, sizeof out->name, "aarch64");
}
#endif
#endif

void setun_cpu_detect(setun_cpu_features *out) {
    memset(out, 0, sizeof *out);
#if defined(__x86_64__)
    detect_x86(out);
#elif defined(__aarch64__)
    detect_arm(out);
#endif
    if (!out->name[0]) snprintf(out->name, sizeof out->name, "unknown CPU");
}
