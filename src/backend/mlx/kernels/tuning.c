/*
 * tuning.c - see backend/mlx/tuning.h. The table is tuning.def; measured values come over it from a JSON file, through jansson.
 */
#include "backend/mlx/tuning.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>

enum { FILE_LIMIT = 1 << 20, DEVICES_LIMIT = 256 };

static const struct { const char *name; int lowest, highest; int value[SETUN_GPU_FAMILY_COUNT]; size_t offset; } fields[] = {
#define SETUN_TUNING_FIELD(name, lowest, highest, generic, m1, m2, m3, m4, hopper) {#name, lowest, highest, {generic, m1, m2, m3, m4, hopper}, offsetof(setun_tuning, name)},
#include "backend/mlx/kernels/tuning.def"
#undef SETUN_TUNING_FIELD
};
enum { FIELDS = sizeof fields / sizeof fields[0] };

static const char *const family_names[SETUN_GPU_FAMILY_COUNT] = {"generic", "m1", "m2", "m3", "m4", "hopper"};

typedef struct device_values { char *device, *measured; setun_gpu_family family; setun_tuning values; } device_values;
struct setun_tuning_store { device_values *devices; int count; };

const char *setun_gpu_family_name(setun_gpu_family family) { return (int)family >= 0 && family < SETUN_GPU_FAMILY_COUNT ? family_names[family] : NULL; }

/* "Apple M3 Max" says it best; "applegpu_g13s" .. "applegpu_g16s" are M1 .. M4 too. */
setun_gpu_family setun_gpu_family_of(const char *architecture, const char *name)
{
    const char *apple = name ? strstr(name, "Apple M") : NULL;
    if (apple && apple[7] >= '1' && apple[7] <= '4' && !isdigit((unsigned char)apple[8])) return (setun_gpu_family)(SETUN_GPU_M1 + (apple[7] - '1'));
    if (!architecture) return SETUN_GPU_GENERIC;
    if (!strncmp(architecture, "applegpu_g1", 11) && architecture[11] >= '3' && architecture[11] <= '6') return (setun_gpu_family)(SETUN_GPU_M1 + (architecture[11] - '3'));
    if (!strncmp(architecture, "sm_90", 5) && !isdigit((unsigned char)architecture[5])) return SETUN_GPU_HOPPER;
    return SETUN_GPU_GENERIC;
}

/* ---- fields ---- */

int setun_tuning_field_count(void) { return FIELDS; }
const char *setun_tuning_field_name(int field) { return field >= 0 && field < FIELDS ? fields[field].name : NULL; }
void setun_tuning_field_range(int field, int *out_lowest, int *out_highest)
{
    *out_lowest = field >= 0 && field < FIELDS ? fields[field].lowest : 0;
    *out_highest = field >= 0 && field < FIELDS ? fields[field].highest : 0;
}
int setun_tuning_get(const setun_tuning *tuning, int field)
{
    int value = 0;
    if (field >= 0 && field < FIELDS) memcpy(&value, (const char *)tuning + fields[field].offset, sizeof value);
    return value;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

/* What tuning.def's comments say of combinations. */
static const char *broken_rule(const setun_tuning *t)
{
    if (t->matvec_token_rows * t->matvec_tokens > 32) return "matvec_token_rows * matvec_tokens is over 32";
    if (t->matmul_rows % 16 || t->matmul_tokens % 16) return "matmul_rows and matmul_tokens are multiples of 16";
    if (t->matmul_rows / 4 * (t->matmul_tokens / 2) > 1024) return "matmul_rows / 4 * matmul_tokens / 2 is over 1024 threads";
    /* threadgroup memory: two weights' codes and the tokens' values */
    if (t->matmul_rows * 64 + t->matmul_tokens * 132 > 32768) return "ternary_matmul's tile needs over 32 KiB";
    return NULL;
}

setun_status setun_tuning_set(setun_tuning *tuning, int field, int value)
{
    if (field < 0 || field >= FIELDS) return setun_fail(SETUN_ERROR_ARGUMENT, "tuning: field %d; there are %d", field, (int)FIELDS);
    if (value < fields[field].lowest || value > fields[field].highest)
        return setun_fail(SETUN_ERROR_ARGUMENT, "tuning: %s is %d; %d to %d", fields[field].name, value, fields[field].lowest, fields[field].highest);
    if (ends_with(fields[field].name, "_threads") && value % 32) return setun_fail(SETUN_ERROR_ARGUMENT, "tuning: %s is %d; a multiple of 32", fields[field].name, value);
    setun_tuning changed = *tuning;
    memcpy((char *)&changed + fields[field].offset, &value, sizeof value);
    const char *rule = broken_rule(&changed);
    if (rule) return setun_fail(SETUN_ERROR_ARGUMENT, "tuning: with %s %d, %s", fields[field].name, value, rule);
    *tuning = changed;
    return SETUN_OK;
}

static void of_family(setun_gpu_family family, setun_tuning *out)
{
    if ((int)family < 0 || family >= SETUN_GPU_FAMILY_COUNT) family = SETUN_GPU_GENERIC;
    for (int i = 0; i < FIELDS; i++) memcpy((char *)out + fields[i].offset, &fields[i].value[family], sizeof(int));
}

/* ---- the store ---- */

setun_status setun_tuning_create(setun_tuning_store **out)
{
    *out = setun_calloc(1, sizeof **out);
    return *out ? SETUN_OK : setun_fail_memory(sizeof **out);
}

void setun_tuning_destroy(setun_tuning_store *store)
{
    if (!store) return;
    for (int i = 0; i < store->count; i++) {
        setun_free(store->devices[i].device);
        setun_free(store->devices[i].measured);
    }
    setun_free(store->devices);
    setun_free(store);
}

static int find(const setun_tuning_store *store, const char *device)
{
    for (int i = 0; store && i < store->count; i++)
        if (!strcmp(store->devices[i].device, device)) return i;
    return -1;
}

setun_status setun_tuning_put(setun_tuning_store *store, const char *device, setun_gpu_family family, const char *measured, const setun_tuning *values)
{
    if (!device || !*device || !setun_gpu_family_name(family)) return setun_fail(SETUN_ERROR_ARGUMENT, "tuning: a device needs a name and a family");
    const char *rule = broken_rule(values);
    if (rule) return setun_fail(SETUN_ERROR_ARGUMENT, "tuning: %s: %s", device, rule);
    char *name = setun_strdup(device), *note = setun_strdup(measured ? measured : "");
    int at = find(store, device);
    if (at < 0 && name && note && store->count < DEVICES_LIMIT) {
        device_values *larger = setun_realloc(store->devices, (size_t)(store->count + 1) * sizeof *larger);
        if (larger) {
            store->devices = larger;
            at = store->count++;
            memset(&larger[at], 0, sizeof larger[at]);
        }
    }
    if (!name || !note || at < 0) {
        setun_free(name);
        setun_free(note);
        if (name && note && store->count >= DEVICES_LIMIT) return setun_fail(SETUN_ERROR_ARGUMENT, "tuning: over %d devices", (int)DEVICES_LIMIT);
        return setun_fail_memory(sizeof(device_values));
    }
    setun_free(store->devices[at].device);
    setun_free(store->devices[at].measured);
    store->devices[at] = (device_values){name, note, family, *values};
    return SETUN_OK;
}

bool setun_tuning_lookup(const setun_tuning_store *store, const char *device, setun_gpu_family family, setun_tuning *out)
{
    int at = device ? find(store, device) : -1;
    if (at >= 0) *out = store->devices[at].values;
    else of_family(family, out);
    return at >= 0;
}

const char *setun_tuning_measured(const setun_tuning_store *store, const char *device)
{
    int at = device ? find(store, device) : -1;
    return at >= 0 ? store->devices[at].measured : "";
}

/* ---- the file ---- */

static setun_status read_device(setun_tuning_store *store, const char *path, const json_t *entry)
{
    const char *device = json_string_value(json_object_get(entry, "device")), *family_name = json_string_value(json_object_get(entry, "family"));
    const char *measured = json_string_value(json_object_get(entry, "measured"));
    const json_t *values = json_object_get(entry, "values");
    if (!device || !*device || !family_name || !json_is_object(values))
        return setun_fail(SETUN_ERROR_FORMAT, "%s: a device needs \"device\", \"family\" and \"values\"", path);
    int family = 0;
    while (family < SETUN_GPU_FAMILY_COUNT && strcmp(family_names[family], family_name)) family++;
    if (family == SETUN_GPU_FAMILY_COUNT) return setun_fail(SETUN_ERROR_FORMAT, "%s: device %s: no family \"%s\"", path, device, family_name);
    setun_tuning tuning;
    of_family((setun_gpu_family)family, &tuning);
    /* Values that obey a rule together may break it one after another: set them all, then look. */
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)values, key, value)
    {
        int field = 0;
        while (field < FIELDS && strcmp(fields[field].name, key)) field++;
        if (field == FIELDS) return setun_fail(SETUN_ERROR_FORMAT, "%s: device %s: no value \"%s\"", path, device, key);
        json_int_t number = json_integer_value(value);
        if (!json_is_integer(value) || number < fields[field].lowest || number > fields[field].highest || (ends_with(key, "_threads") && number % 32))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: device %s: \"%s\" is not an integer from %d to %d%s", path, device, key, fields[field].lowest, fields[field].highest,
                              ends_with(key, "_threads") ? " and a multiple of 32" : "");
        int wanted = (int)number;
        memcpy((char *)&tuning + fields[field].offset, &wanted, sizeof wanted);
    }
    const char *rule = broken_rule(&tuning);
    if (rule) return setun_fail(SETUN_ERROR_FORMAT, "%s: device %s: %s", path, device, rule);
    if (find(store, device) >= 0) return setun_fail(SETUN_ERROR_FORMAT, "%s: device %s comes twice", path, device);
    return setun_tuning_put(store, device, (setun_gpu_family)family, measured, &tuning);
}

static setun_status read_file(const char *path, char **out, size_t *out_length)
{
    *out = NULL;
    *out_length = 0;
    FILE *file = fopen(path, "rb");
    if (!file) return errno == ENOENT ? SETUN_OK : setun_fail(SETUN_ERROR_IO, "%s: %s", path, strerror(errno));
    char *text = setun_alloc(FILE_LIMIT + 1);
    if (!text) {
        fclose(file);
        return setun_fail_memory(FILE_LIMIT + 1);
    }
    size_t length = fread(text, 1, FILE_LIMIT + 1, file);
    bool failed = ferror(file) != 0;
    fclose(file);
    if (failed || length > FILE_LIMIT) {
        setun_free(text);
        return failed ? setun_fail(SETUN_ERROR_IO, "%s: cannot be read", path) : setun_fail(SETUN_ERROR_FORMAT, "%s: over 1 MiB", path);
    }
    *out = text;
    *out_length = length;
    return SETUN_OK;
}

setun_status setun_tuning_load(const char *path, setun_tuning_store **out)
{
    *out = NULL;
    char *text;
    size_t length;
    SETUN_TRY(read_file(path, &text, &length));
    setun_tuning_store *store = NULL;
    setun_status status = setun_tuning_create(&store);
    json_t *root = NULL;
    if (status == SETUN_OK && text) {
        json_error_t error;
        root = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
        const json_t *devices = json_object_get(root, "devices");
        if (!root) status = setun_fail(SETUN_ERROR_FORMAT, "%s: line %d: %s", path, error.line, error.text);
        else if (!json_is_integer(json_object_get(root, "setun_tuning")) || !json_is_array(devices))
            status = setun_fail(SETUN_ERROR_FORMAT, "%s: not a tuning file: it begins {\"setun_tuning\": 1, \"devices\": [..]}", path);
        else if (json_integer_value(json_object_get(root, "setun_tuning")) != 1)
            status = setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: version %lld of the tuning file; this program reads 1: measure again", path, (long long)json_integer_value(json_object_get(root, "setun_tuning")));
        else
            for (size_t i = 0; i < json_array_size(devices) && status == SETUN_OK; i++) status = read_device(store, path, json_array_get(devices, i));
    }
    json_decref(root);
    setun_free(text);
    if (status != SETUN_OK) {
        setun_tuning_destroy(store);
        return status;
    }
    *out = store;
    return SETUN_OK;
}

setun_status setun_tuning_save(const setun_tuning_store *store, const char *path)
{
    setun_string s = {0};
    setun_string_puts(&s, "{\"setun_tuning\": 1, \"devices\": [");
    for (int i = 0; i < store->count; i++) {
        const device_values *d = &store->devices[i];
        setun_string_puts(&s, i ? ",\n  {\"device\": " : "\n  {\"device\": ");
        setun_string_json(&s, d->device, strlen(d->device));
        setun_string_printf(&s, ", \"family\": \"%s\", \"measured\": ", family_names[d->family]);
        setun_string_json(&s, d->measured, strlen(d->measured));
        setun_string_puts(&s, ", \"values\": {");
        for (int f = 0; f < FIELDS; f++) setun_string_printf(&s, "%s\"%s\": %d", f ? ", " : "", fields[f].name, setun_tuning_get(&d->values, f));
        setun_string_puts(&s, "}}");
    }
    setun_string_puts(&s, "\n]}\n");
    char *text = NULL;
    size_t length = 0;
    SETUN_TRY(setun_string_take(&s, &text, &length));
    setun_writer *writer = NULL;
    setun_status status = setun_writer_open(path, true, &writer);
    if (status == SETUN_OK) status = setun_writer_write(writer, text, length);
    if (status == SETUN_OK) status = setun_writer_commit(writer);
    else setun_writer_abort(writer);
    setun_free(text);
    return status;
}
