/* report.h - the measurements of bench.c for report.c, as JSON values of jansson. */
#ifndef SETUN_APP_REPORT_H
#define SETUN_APP_REPORT_H

#include "app.h"
#include <jansson.h>

/* Everything that the settings ask for, on their device: into root (facts of the model, memory) and runs (an object each). */
int bench_runs(settings *s, json_t *root, json_t *runs);
/* doctor's facts as JSON, the machine's rates among them. */
int doctor_report(settings *s, json_t **out);
/* Validates and measures the CPU and the MLX devices there are (or the one that was asked for) and writes one document. */
int bench_report(settings *s);

#endif
