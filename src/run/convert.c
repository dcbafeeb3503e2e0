/*
 * convert.c - setun_convert: model/convert.c does it all; for a packed file the CPU backend adds the small copy of the vocabulary projection, so that
 * opening the file makes nothing. Caller: the API. Knows that there is such a copy, not what is in it.
 */
#include "run/run.h"

typedef struct planes { setun_head_planes made; } planes;

static setun_status add_planes(void *user, setun_model *model, setun_convert_extra extras[SETUN_CONVERT_EXTRAS], int *out_count)
{
    planes *p = user;
    SETUN_TRY(setun_head_planes_make(model, &p->made));
    for (*out_count = 0; *out_count < p->made.count; ++*out_count) {
        const int i = *out_count;
        extras[i] = (setun_convert_extra){p->made.name[i], p->made.rows[i], p->made.columns[i], p->made.data[i]};
    }
    return SETUN_OK;
}

static void free_planes(void *user)
{
    planes *p = user;
    setun_head_planes_free(&p->made);
}

setun_status setun_convert(setun_context *context, const char *in_path, const char *out_path, const setun_convert_options *options, char **out_json)
{
    planes p = {0};
    const setun_convert_hook hook = {add_planes, free_planes, &p};
    return setun_model_convert(context, in_path, out_path, options, &hook, out_json);
}
