/*
 * setun.h - the only public header of Setun: run language models whose weights are -1, 0, +1.
 *
 * Conventions
 *  - Every function that can fail returns setun_status; SETUN_OK is 0. setun_error() then gives a message that names
 *    the file, tensor or value and the way out. The message belongs to the calling thread.
 *  - The receiver is the first argument, then inputs, outputs last. On failure outputs are set to NULL/0.
 *  - Option structs start with their own size: `setun_session_options o = {.size = sizeof o};`. A NULL options pointer
 *    and every zero member mean the default. Members are only ever appended.
 *  - create/open make a handle, destroy/close end it; NULL is fine there. A `const T *` that is returned is borrowed
 *    from the receiver. A `char *` output is the caller's: give it to setun_free().
 *  - A context and a model may be shared between threads. A session, sampler, graph or plan belongs to one thread at a
 *    time; only setun_session_cancel() may be called from another thread (it is also async-signal-safe).
 *  - The library never exits, aborts on input, or prints. It reports through the log callback.
 *  - Numbers are little-endian on disk. Shapes are written outermost first, as in PyTorch: a linear weight is
 *    [out, in], activations are [tokens, width].
 */
#ifndef SETUN_H
#define SETUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(SETUN_STATIC)
#define SETUN_API
#elif defined(__GNUC__)
#define SETUN_API __attribute__((visibility("default")))
#else
#define SETUN_API
#endif

#define SETUN_VERSION_MAJOR 0
#define SETUN_VERSION_MINOR 1
#define SETUN_VERSION_PATCH 0

/* ---- status and errors ------------------------------------------------------------------------------------------ */

typedef enum setun_status {
    SETUN_OK = 0,
    SETUN_ERROR_ARGUMENT = 1,    /* the caller passed something impossible */
    SETUN_ERROR_MEMORY = 2,      /* an allocation failed */
    SETUN_ERROR_IO = 3,          /* a file could not be opened, read, written */
    SETUN_ERROR_FORMAT = 4,      /* a file's content is wrong: truncated, corrupt, inconsistent */
    SETUN_ERROR_UNSUPPORTED = 5, /* well-formed, but something Setun does not do; the message says what to use instead */
    SETUN_ERROR_CONTEXT = 6,     /* the tokens do not fit the session's context */
    SETUN_ERROR_CANCELLED = 7,   /* setun_session_cancel() was called, or a callback asked to stop */
    SETUN_ERROR_STATE = 8,       /* the calls came in an order that makes no sense */
    SETUN_ERROR_DEVICE = 9       /* a GPU, its driver or MLX failed; the message is theirs */
} setun_status;

SETUN_API const char *setun_version(void);                   /* "0.1.0" */
SETUN_API const char *setun_status_name(setun_status status); /* "SETUN_ERROR_IO"; never NULL */
SETUN_API const char *setun_error(void);                     /* this thread's last message; "" if none */
SETUN_API void setun_free(void *memory);                     /* frees what an output argument gave; NULL is fine */

typedef enum setun_log_level { SETUN_LOG_ERROR = 1, SETUN_LOG_WARNING = 2, SETUN_LOG_INFO = 3, SETUN_LOG_DEBUG = 4 } setun_log_level;
typedef void (*setun_log_fn)(void *user, setun_log_level level, const char *message);
/* Progress of long work, done and total in the unit of `what` ("bytes", "tensors", "tokens"). Return false to stop:
 * the call then returns SETUN_ERROR_CANCELLED. */
typedef bool (*setun_progress_fn)(void *user, const char *what, uint64_t done, uint64_t total);

/* ---- context: threads, instruction set, log ---------------------------------------------------------------------- */

typedef struct setun_context setun_context;

typedef struct setun_context_options {
    size_t size;          /* sizeof(setun_context_options) */
    int threads;          /* 0: SETUN_THREADS, else the number of CPUs this process may use */
    bool pin_threads;     /* pin worker i to the i-th allowed CPU (Linux) */
    const char *isa;      /* "ref", "avx2", "avx512", "neon", "neon_dotprod": a cap; NULL: SETUN_ISA, else the best */
    setun_log_fn log;     /* NULL: silent */
    void *log_user;
    setun_log_level log_level; /* 0: SETUN_LOG_WARNING */
} setun_context_options;

SETUN_API setun_status setun_context_create(const setun_context_options *options, setun_context **out);
SETUN_API void setun_context_destroy(setun_context *context); /* after everything made from it */
SETUN_API int setun_context_threads(const setun_context *context);
SETUN_API const char *setun_context_isa(const setun_context *context); /* "avx512", ... */
/* What `setun doctor` prints, as one JSON object: cpu, features, isa, kernels (name -> isa), threads, page_size, environment. */
SETUN_API setun_status setun_context_describe(setun_context *context, char **out_json);

typedef struct setun_machine_limits { /* measured by setun_context_measure on this machine, now */
    size_t size;
    double read_bytes_per_second_1; /* one thread, streaming reads from memory */
    double read_bytes_per_second_n; /* all the context's threads */
    double int8_operations_per_second_1; /* the chosen ternary kernel on data in L1; 2 operations a multiply-add */
    double int8_operations_per_second_n;
} setun_machine_limits;
SETUN_API setun_status setun_context_measure(setun_context *context, setun_machine_limits *out); /* about 2 seconds */

/* ---- model -------------------------------------------------------------------------------------------------------- */

typedef struct setun_model setun_model;
typedef struct setun_tokenizer setun_tokenizer;

typedef struct setun_model_options {
    size_t size;
    const char *i2s_layout; /* "128x32" (default), "64x16", "row4": see docs/formats.md */
    const char *device;     /* "auto", "cpu", "mlx", "mlx:gpu", "mlx:cpu"; NULL: the context's (setun_context_set_device), at first "auto" */
    bool no_map;            /* read the file into memory instead of mapping it */
    setun_progress_fn progress;
    void *progress_user;
    const char *weights;    /* "auto" (default): what this machine reads fastest; "map": used in the file wherever that is possible (least
                               start-up work); "pack": always in memory of their own. The same results. setun_model_explain says what came of it */
} setun_model_options;

/* path: a .gguf file, a .safetensors file, or a Hugging Face folder (config.json, *.safetensors, tokenizer.json). */
SETUN_API setun_status setun_model_open(setun_context *context, const char *path, const setun_model_options *options, setun_model **out);
SETUN_API void setun_model_close(setun_model *model); /* after its sessions, graphs and plans */

typedef struct setun_model_info {
    size_t size;
    const char *architecture; /* the file's own word: "bitnet", "BitNetForCausalLM"; borrowed */
    const char *name;         /* borrowed; "" if the file has none */
    int layers, width, feed_forward, heads, kv_heads, head_size;
    int vocabulary, context;  /* context: the length the model was trained for */
    uint64_t parameters, file_bytes, weight_bytes;
    double bits_per_weight;   /* weight_bytes * 8 / parameters */
} setun_model_info;
SETUN_API setun_status setun_model_get_info(const setun_model *model, setun_model_info *out);
/* NULL where the file has no tokenizer. Lives as long as the model. */
SETUN_API const setun_tokenizer *setun_model_tokenizer(const setun_model *model);

/* Reads any file that setun_model_open takes, and also files that it refuses, without loading weights. JSON object:
 * path, container, architecture, metadata{}, tensors[{name, format, shape, offset, bytes, bits_per_weight, zero_share?,
 * supported, reason?}], totals{parameters, bytes, bits_per_weight, ternary_share}, model{..}|null, problems[].
 * zero_share and scale are only computed with `deep` (reads every weight). */
SETUN_API setun_status setun_file_inspect(setun_context *context, const char *path, const setun_model_options *options, bool deep, char **out_json);

/* ---- tokens ------------------------------------------------------------------------------------------------------- */

/* path: tokenizer.json, a Hugging Face folder, or a .gguf file. A model's own tokenizer needs no opening. */
SETUN_API setun_status setun_tokenizer_open(const char *path, setun_tokenizer **out);
SETUN_API void setun_tokenizer_close(setun_tokenizer *tokenizer); /* only what setun_tokenizer_open gave */

enum {
    SETUN_TOKENIZE_ADD_SPECIAL = 1,  /* add begin/end tokens where the tokenizer's own rule says so */
    SETUN_TOKENIZE_PARSE_SPECIAL = 2 /* "<|im_end|>" in the text becomes that token; otherwise it is plain text */
};
/* text need not be valid UTF-8 nor end with 0. *out_ids is the caller's (setun_free), never NULL on success. */
SETUN_API setun_status setun_tokenizer_encode(const setun_tokenizer *tokenizer, const char *text, size_t length, int flags, int32_t **out_ids, size_t *out_count);
/* Bytes of the text; special tokens are skipped unless keep_special. Ends with a 0 that out_length does not count. */
SETUN_API setun_status setun_tokenizer_decode(const setun_tokenizer *tokenizer, const int32_t *ids, size_t count, bool keep_special, char **out_text, size_t *out_length);
/* The bytes one token stands for (borrowed, may be partial UTF-8, not 0-terminated). Error on an id out of range. */
SETUN_API setun_status setun_tokenizer_piece(const setun_tokenizer *tokenizer, int32_t id, const char **out_bytes, size_t *out_length, bool *out_special);
SETUN_API int setun_tokenizer_vocabulary(const setun_tokenizer *tokenizer);
SETUN_API int32_t setun_tokenizer_bos(const setun_tokenizer *tokenizer); /* -1 if none */
SETUN_API int32_t setun_tokenizer_eos(const setun_tokenizer *tokenizer);
SETUN_API bool setun_tokenizer_is_end(const setun_tokenizer *tokenizer, int32_t id); /* any token that ends an answer */
/* Length of the longest prefix of text that does not cut a UTF-8 sequence in half: what is safe to print now. */
SETUN_API size_t setun_utf8_complete(const char *text, size_t length);

typedef struct setun_message { const char *role; const char *content; } setun_message; /* role: "system", "user", "assistant" */
/* The chat template's name ("chatml", "llama3", ...), or NULL where the model has none or an unknown one. */
SETUN_API const char *setun_chat_template(const setun_tokenizer *tokenizer);
/* Messages as token ids, ready for a session. Special tokens come only from the template: what users write is plain
 * text. add_generation_prompt appends the opening of the assistant's turn. SETUN_ERROR_UNSUPPORTED without a known template. */
SETUN_API setun_status setun_chat_encode(const setun_tokenizer *tokenizer, const setun_message *messages, size_t count, bool add_generation_prompt, int32_t **out_ids, size_t *out_count);
/* The same as text, for a person to read. */
SETUN_API setun_status setun_chat_format(const setun_tokenizer *tokenizer, const setun_message *messages, size_t count, bool add_generation_prompt, char **out_text, size_t *out_length);

/* ---- session: a model, a context of tokens, logits ---------------------------------------------------------------- */

typedef struct setun_session setun_session;

typedef struct setun_session_options {
    size_t size;
    int context;             /* tokens; 0: the smaller of the model's and 4096 */
    int batch;               /* tokens evaluated at once in a prompt; 0: 512 */
    const char *kv_type;     /* "f16" (default), "f32", "i8": int8 and one f32 factor for each head's vector, half of f16's memory */
    bool no_fusion;          /* plan without fusion: the same tokens, more steps; for tests and explain */
    bool no_activation_quantisation; /* f32 activations where the model says int8; for comparing with references */
    /* How a token is picked from a large vocabulary. "proved" (default): a small copy of the projection bounds every logit, those that may be
     * picked are computed: the same tokens as with all logits, by proof. "full": all logits, no copy. "shortlist": a still smaller copy
     * and a margin: almost certainly the same tokens (docs/architecture.md has the measured miss rate), less memory, faster. Logits
     * that are looked at (setun_session_logits, setun_session_feed_all, logprobs) are always all computed. */
    const char *head;
    /* Number type of the activations between the steps: "f32" (default); on MLX devices also "bf16" and "f16". Products of ternary weights stay
     * exact int8 sums; in f16 what could pass 65504 gets a power of two for each row, undone by the norm that follows. */
    const char *precision;
} setun_session_options;

SETUN_API setun_status setun_session_create(setun_model *model, const setun_session_options *options, setun_session **out);
SETUN_API void setun_session_destroy(setun_session *session);
/* Appends tokens to the context; there are logits then after the last one. All or nothing: on error the position is
 * unchanged. SETUN_ERROR_CONTEXT says how many tokens still fit. */
SETUN_API setun_status setun_session_feed(setun_session *session, const int32_t *ids, size_t count);
/* Feeds counts[i] tokens to sessions[i], at most 32 different sessions of one model, in one run where they fit the first one's batch: the
 * weights are read once for all. Each session gets its own logits, the same bits as if it were fed alone; contexts and kv_types may differ.
 * All or nothing for all of them. No session may be in use by another thread; cancelling the first cancels a call that runs. */
SETUN_API setun_status setun_session_feed_batch(setun_session *const *sessions, const int32_t *const *ids, const size_t *counts, size_t n);
/* As setun_session_feed, and calls fn with the logits [vocabulary] after every token (index: 0 .. count-1). */
typedef bool (*setun_logits_fn)(void *user, size_t index, const float *logits, int vocabulary);
SETUN_API setun_status setun_session_feed_all(setun_session *session, const int32_t *ids, size_t count, setun_logits_fn fn, void *user);
/* All logits after the last token, NULL before the first feed. They may be computed only now, so this belongs to the session's thread as feeding does;
 * valid until the next feed or pick. */
SETUN_API const float *setun_session_logits(const setun_session *session, int *out_vocabulary);
SETUN_API int setun_session_position(const setun_session *session); /* tokens in the context */
SETUN_API int setun_session_context(const setun_session *session);  /* how many fit */
SETUN_API setun_status setun_session_truncate(setun_session *session, int position); /* forget what comes after */
SETUN_API void setun_session_cancel(setun_session *session); /* the running or the next feed/generate stops; any thread */
typedef struct setun_session_stats {
    size_t size;
    uint64_t kv_bytes, arena_bytes, packed_bytes;
    uint64_t allocations_in_run;
    uint64_t picks;                      /* setun_session_pick, also by setun_generate */
    uint64_t head_scored, head_rescored; /* rows of the vocabulary scored by the small copy of the projection, and then computed exactly */
    uint64_t head_bytes;                 /* of that copy, part of packed_bytes; 0: there is none */
    int head_bits;                       /* bits a weight it takes: 6 (proved) or 4 (shortlist) */
    uint64_t head_copied;                /* rows it has: the copy of a large projection is made with the first picks, which are slower */
    uint64_t device_runs;                /* on a device of MLX: runs of the plan, and in them kernels of Setun's, operations of MLX beside them, waits of the host */
    uint64_t device_kernels, device_operations, device_synchronisations;
    uint64_t weight_bytes, weight_bytes_mapped; /* that the kernels read; of them in the mapped file */
} setun_session_stats;
SETUN_API setun_status setun_session_get_stats(const setun_session *session, setun_session_stats *out);
/* Last-token pooled, L2-normalised hidden state [width], for embedding models. Resets the session. */
SETUN_API setun_status setun_session_embed(setun_session *session, const int32_t *ids, size_t count, float *out);

/* ---- sampling and generation ---------------------------------------------------------------------------------------- */

typedef struct setun_sampler setun_sampler;
typedef struct setun_logit_bias { int32_t id; float bias; } setun_logit_bias; /* bias -INFINITY bans the token */
typedef struct setun_sampler_options {
    size_t size;
    float temperature;        /* 0: greedy, the default; ties go to the lower id */
    int top_k;                /* 0: off */
    float top_p;              /* 0 or 1: off */
    float min_p;              /* 0: off; keep p >= min_p * p_max */
    float repetition_penalty; /* 0 or 1: off; CTRL's rule: l>0 ? l/r : l*r for tokens seen */
    float presence_penalty, frequency_penalty; /* OpenAI's rule: l -= presence*(n>0) + frequency*n */
    int penalty_window;       /* tokens looked back; 0: 64; -1: all */
    uint64_t seed;            /* same seed, same text, on every CPU and thread count */
    const setun_logit_bias *bias; /* copied */
    size_t bias_count;
} setun_sampler_options;
SETUN_API setun_status setun_sampler_create(const setun_sampler_options *options, int vocabulary, setun_sampler **out);
SETUN_API void setun_sampler_destroy(setun_sampler *sampler);
SETUN_API setun_status setun_sampler_pick(setun_sampler *sampler, const float *logits, int32_t *out_id); /* does not accept */
/* The same token as setun_sampler_pick of setun_session_logits gives (see setun_session_options.head), computing only the logits that it depends on:
 * far fewer with temperature 0, with top_k, or with min_p and no top_p. Does not accept. */
SETUN_API setun_status setun_session_pick(setun_session *session, setun_sampler *sampler, int32_t *out_id);
/* The same for sessions[i] and samplers[i], at most 32: where sessions were fed by setun_session_feed_batch, the vocabulary is gone through once for all. */
SETUN_API setun_status setun_session_pick_batch(setun_session *const *sessions, setun_sampler *const *samplers, size_t n, int32_t *out_ids);
SETUN_API setun_status setun_sampler_accept(setun_sampler *sampler, int32_t id); /* counts for the penalties */
SETUN_API void setun_sampler_reset(setun_sampler *sampler); /* forgets accepted tokens; restarts the seed */
typedef struct setun_logprob { int32_t id; float logprob; } setun_logprob;
/* log softmax of the raw logits: the k most likely, best first. */
SETUN_API setun_status setun_logprobs(const float *logits, int vocabulary, int k, setun_logprob *out);
SETUN_API float setun_logprob_of(const float *logits, int vocabulary, int32_t id);

typedef enum setun_finish { SETUN_FINISH_END = 1, SETUN_FINISH_LENGTH = 2, SETUN_FINISH_STOP = 3, SETUN_FINISH_CONTEXT = 4, SETUN_FINISH_CANCELLED = 5 } setun_finish;
typedef struct setun_token_event {
    int32_t id;
    const char *text;        /* new bytes that are safe to show: whole UTF-8 sequences, no part of a stop string; may be empty */
    size_t length;
    float logprob;           /* of id, from the raw logits; 0 unless logprobs was asked for */
    const setun_logprob *top; /* [logprobs], or NULL */
} setun_token_event;
typedef bool (*setun_token_fn)(void *user, const setun_token_event *event); /* false stops */
typedef struct setun_generate_options {
    size_t size;
    int tokens;              /* at most; 0: until the end or the context is full */
    const char *const *stop; /* stop strings; the text ends before them */
    size_t stop_count;
    int logprobs;            /* how many top_logprobs to give with each token */
    bool ignore_end;         /* go on after an end token */
    bool keep_special;       /* special tokens appear in the text */
    setun_token_fn token;
    void *token_user;
    int lookup;              /* prompt lookup: at most this many tokens (up to 31) that followed the last ones earlier are tried along with
                                the next. The same text; faster where it repeats its prompt, slower where guesses fail. 0: off */
    bool leave_last;         /* the token that `tokens` ends with is not fed either, which takes as long as another token: for who does not go on from here */
} setun_generate_options;
typedef struct setun_generate_result {
    size_t size;
    setun_finish finish;
    int prompt_tokens, generated_tokens;
    double prompt_seconds, generate_seconds;
    int drafted_tokens, accepted_tokens; /* by prompt lookup */
} setun_generate_result;
/* Feeds prompt (may be 0 tokens when logits are there) and samples until something ends it. The end token itself is
 * fed to no one; the context then holds prompt and answer without it (see leave_last, too). out may be NULL. A context that fills up ends
 * with SETUN_FINISH_CONTEXT. */
SETUN_API setun_status setun_generate(setun_session *session, setun_sampler *sampler, const int32_t *prompt, size_t count, const setun_generate_options *options, setun_generate_result *out);

/* ---- explain, convert ------------------------------------------------------------------------------------------------ */

typedef struct setun_explain_options {
    size_t size;
    setun_session_options session;
    bool json;
    bool measure;           /* runs the plan and adds the time of every step */
    int tokens;             /* tokens in the measured run; 0: 1 */
} setun_explain_options;
/* model -> graph -> plan: every step, its kernel, its fusion, its arena slot; for each weight mapped, packed or copied. */
SETUN_API setun_status setun_model_explain(setun_model *model, const setun_explain_options *options, char **out);

typedef struct setun_convert_options {
    size_t size;
    const char *container;     /* "gguf" (default) or "safetensors" (a Hugging Face folder) */
    const char *ternary;       /* format of the ternary weights: "packed" (Setun's own, used in the file as it is), "smallest", "tq1_0", "tq2_0", "i2_s", "iq1_bn", "iq2_bn",
                                  "q2_0", "pq2_0", "ptq1_0", "hf"; NULL: "i2_s" for gguf, "hf" for safetensors */
    const char *embedding;     /* "keep" (default), "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k" */
    const char *dense;         /* the other matrices: "keep" (default) or as above */
    const char *i2s_layout;    /* of the input */
    bool quantise;             /* dense linear weights are made ternary by absmean; without it they stay as they are */
    bool force;                /* overwrite output */
    setun_progress_fn progress;
    void *progress_user;
} setun_convert_options;
/* Writes out_path by a temporary name, sync, rename. *out_json (may be NULL): {input_bytes, output_bytes, tensors[{name,
 * from, to, exact, max_error}], exact}. */
SETUN_API setun_status setun_convert(setun_context *context, const char *in_path, const char *out_path, const setun_convert_options *options, char **out_json);

/* ---- tensors ------------------------------------------------------------------------------------------------------- */

typedef enum setun_dtype {
    SETUN_F32 = 1, SETUN_F16 = 2, SETUN_BF16 = 3, SETUN_I32 = 4, SETUN_I8 = 5, SETUN_U8 = 6, SETUN_I64 = 7,
    SETUN_U32 = 8, SETUN_BOOL = 9 /* one byte, 0 or 1 */, SETUN_I16 = 10, SETUN_U16 = 11, SETUN_U64 = 12, SETUN_F64 = 13 /* tensors only: no graph computes with these */
} setun_dtype;
#define SETUN_MAX_RANK 4
typedef struct setun_tensor setun_tensor; /* dense, row-major, contiguous; on the host unless it was made on a stream */
SETUN_API setun_status setun_tensor_create(setun_dtype dtype, int rank, const int64_t *shape, setun_tensor **out); /* zeroed */
/* Borrows data (aligned for its dtype), which must outlive the tensor. */
SETUN_API setun_status setun_tensor_wrap(setun_dtype dtype, int rank, const int64_t *shape, void *data, setun_tensor **out);
SETUN_API void setun_tensor_destroy(setun_tensor *tensor);
/* NULL where the host cannot read it: a tensor of a device that is not computed yet, or of CUDA. setun_tensor_read always works. */
SETUN_API void *setun_tensor_data(const setun_tensor *tensor);
SETUN_API setun_dtype setun_tensor_dtype(const setun_tensor *tensor);
SETUN_API int setun_tensor_rank(const setun_tensor *tensor);
SETUN_API int64_t setun_tensor_dim(const setun_tensor *tensor, int axis);
SETUN_API size_t setun_tensor_bytes(const setun_tensor *tensor);

/* ---- devices: the CPU, and those of MLX -------------------------------------------------------------------------------- */
/*
 * A device has a name: "cpu" (Setun's own kernels), "mlx:gpu", "mlx:gpu:1" (Metal or CUDA, through MLX), "mlx:cpu". "mlx" is the first
 * GPU, or MLX's CPU where there is none; "auto" the first GPU, or "cpu". NULL is the context's default device, at first "auto".
 * Without MLX there is "cpu"; asking for another is SETUN_ERROR_UNSUPPORTED and says why there is none and how to get it.
 */
typedef struct setun_device_info {
    size_t size;
    const char *id, *backend;      /* "mlx:gpu"; "cpu", "metal", "cuda". All texts are borrowed from the context */
    const char *name, *architecture; /* "NVIDIA H200", "sm_90" */
    uint64_t memory_bytes;         /* of the device, or of the machine where they share it */
    uint64_t free_bytes, working_set_bytes, largest_buffer_bytes; /* 0: unknown. working_set: what the maker recommends to keep resident */
    uint64_t optimal_limit_bytes;  /* the memory limit that SETUN_LIMIT_OPTIMAL means */
    int cores;                     /* CPU threads, CUDA multiprocessors; 0: unknown */
    bool shares_memory;            /* host memory becomes a tensor without a copy */
    bool compiles;                 /* graphs are compiled by MLX */
} setun_device_info;
SETUN_API setun_status setun_context_device_count(setun_context *context, int *out_count); /* "cpu" is the first; MLX's follow */
SETUN_API setun_status setun_context_device_name(setun_context *context, int index, const char **out_name);
SETUN_API setun_status setun_context_set_device(setun_context *context, const char *device); /* the default; opened here, so that errors come now */
SETUN_API setun_status setun_context_get_device(setun_context *context, const char **out_name); /* what NULL means now: "cpu", "mlx:gpu" .. */
SETUN_API setun_status setun_device_get_info(setun_context *context, const char *device, setun_device_info *out);

typedef enum setun_limit {
    SETUN_LIMIT_MEMORY = 1, /* MLX devices: a guideline, beyond it memory is given back earlier */
    SETUN_LIMIT_CACHE = 2,  /* bytes that are kept for reuse; "cpu": of the context's pool */
    SETUN_LIMIT_WIRED = 3   /* Metal: bytes that stay resident; elsewhere nothing happens and the previous value is 0 */
} setun_limit;
#define SETUN_LIMIT_OPTIMAL UINT64_MAX /* memory and wired: the device's optimal_limit_bytes */
/* MLX's limits are the process's. out_previous may be NULL. */
SETUN_API setun_status setun_device_set_limit(setun_context *context, const char *device, setun_limit limit, uint64_t bytes, uint64_t *out_previous);
typedef struct setun_device_memory {
    size_t size;
    uint64_t active_bytes, peak_bytes; /* in use; MLX's are the process's */
    uint64_t cache_bytes;          /* free, kept for reuse */
    uint64_t limit_bytes;          /* memory limit; "cpu": of the cache */
    uint64_t buffers_made, buffers_reused; /* "cpu": of the context's pool */
    uint64_t shared_bytes, copied_bytes;   /* MLX: of host memory that became tensors, in place or by a copy */
    uint64_t synchronisations;     /* MLX: times that a thread waited for a device */
} setun_device_memory;
SETUN_API setun_status setun_device_get_memory(setun_context *context, const char *device, setun_device_memory *out);
SETUN_API setun_status setun_device_clear_cache(setun_context *context, const char *device);
/* Whether MLX compiles graphs; default: on GPUs yes, on its CPU no (there it starts g++). For the process. "cpu": UNSUPPORTED. */
SETUN_API setun_status setun_device_set_compile(setun_context *context, const char *device, bool on);

typedef struct setun_tune_options {
    size_t size;
    const char *device;        /* NULL: "mlx:gpu" */
    const char *path;          /* of the file; NULL: SETUN_TUNING, else setun/tuning.json in XDG_CONFIG_HOME or ~/.config */
    int repeats;               /* of each measurement, the fastest counts; 0: 5 */
    bool measure_only;         /* nothing is stored */
    setun_progress_fn progress;
    void *progress_user;
} setun_tune_options;
/* Measures group sizes and tile shapes of the GPU kernels on a device and stores them for contexts made from now on. They change
 * speed, never results. JSON: device, values before and after, seconds. "cpu" has none: UNSUPPORTED. */
SETUN_API setun_status setun_device_tune(setun_context *context, const setun_tune_options *options, char **out_json);

/* Runs every GPU kernel that plans use on a device of MLX and compares it bit for bit with the same text run on the host; and measures what the device
 * reads a second and what a call costs. JSON. A kernel that fails or differs is an entry that says so, not an error. progress: or NULL. */
SETUN_API setun_status setun_device_check(setun_context *context, const char *device, setun_progress_fn progress, void *user, char **out_json);

/* ---- streams: work in order, beside the host ----------------------------------------------------------------------------- */
/* Any thread may use any stream, one at a time. On "cpu" work is done at once and events are always reached. */
typedef struct setun_stream setun_stream;
typedef struct setun_event setun_event;
SETUN_API setun_status setun_stream_create(setun_context *context, const char *device, setun_stream **out);
SETUN_API void setun_stream_destroy(setun_stream *stream); /* waits for its work; after its tensors and events */
SETUN_API const char *setun_stream_device(const setun_stream *stream);
SETUN_API setun_status setun_stream_synchronize(setun_stream *stream); /* waits; errors of its work surface here */
SETUN_API setun_status setun_stream_record(setun_stream *stream, setun_event **out); /* reached when all work given to the stream before is done */
SETUN_API setun_status setun_stream_wait(setun_stream *stream, setun_event *event);  /* work given to the stream from now on starts after it; does not block */
SETUN_API setun_status setun_event_wait(setun_event *event); /* blocks */
SETUN_API setun_status setun_event_reached(setun_event *event, bool *out);
SETUN_API void setun_event_destroy(setun_event *event);

/* ---- tensors on streams ---------------------------------------------------------------------------------------------------- */
/* values are copied; NULL: zeros. On "cpu" the memory comes from the context's pool. */
SETUN_API setun_status setun_tensor_create_on(setun_stream *stream, setun_dtype dtype, int rank, const int64_t *shape, const void *values, setun_tensor **out);
/* Uses data in place where the device shares memory (CPU; Metal for whole pages of 16 KiB), else copies it. done(user), if given, is
 * called once nothing reads data any more: at once after a copy. out_shared (may be NULL) says which. Never written to by MLX. */
SETUN_API setun_status setun_tensor_share_on(setun_stream *stream, setun_dtype dtype, int rank, const int64_t *shape, void *data, void (*done)(void *user), void *user, setun_tensor **out, bool *out_shared);
/* A copy on another stream, device or dtype (0: the same; f32, f16 and bf16 on "cpu", any on MLX). On one MLX device it is lazy. */
SETUN_API setun_status setun_tensor_copy_to(setun_tensor *tensor, setun_stream *stream, setun_dtype dtype, setun_tensor **out);
SETUN_API setun_status setun_tensor_evaluate(setun_tensor *const *tensors, int count, bool wait); /* starts what is lazy; wait: until it is computed */
SETUN_API setun_status setun_tensor_read(setun_tensor *tensor, void *out, size_t bytes); /* waits and copies to the host; bytes: setun_tensor_bytes */
SETUN_API const char *setun_tensor_device(const setun_tensor *tensor); /* "cpu", "mlx:gpu" .. */
SETUN_API setun_stream *setun_tensor_stream(const setun_tensor *tensor); /* NULL: made without one */

/* DLPack 0.8, for NumPy, PyTorch, JAX ..: no copy where both sides reach the memory. Export: the caller (or whoever he gives it to) calls
 * its deleter, which may come after setun_tensor_destroy, but before the stream's and context's end. */
struct DLManagedTensor;
SETUN_API setun_status setun_tensor_to_dlpack(setun_tensor *tensor, struct DLManagedTensor **out);
/* Takes managed over: on success its deleter is called when the tensor ends (at once when the values had to be copied), on failure it stays
 * the caller's. stream NULL: a host tensor. Memory of a GPU cannot be imported: bring it to the host first. */
SETUN_API setun_status setun_tensor_from_dlpack(setun_stream *stream, struct DLManagedTensor *managed, setun_tensor **out);
/* For programs that use MLX themselves, with the same libmlx: another reference to a `mlx::core::array *` (mlx-c: mlx_array.ctx), and a
 * borrowed one to a tensor's. MLX makes it row-major where it is not. */
SETUN_API setun_status setun_tensor_from_mlx(setun_stream *stream, const void *mlx_array, setun_tensor **out);
SETUN_API setun_status setun_tensor_to_mlx(setun_tensor *tensor, void **out_mlx_array);

/* ---- graphs of one's own -------------------------------------------------------------------------------------------- */
/*
 * A graph is a lazy description: building computes nothing. Nodes are small integers; a failed call returns
 * SETUN_NODE_NONE, which every later call passes on, and setun_graph_compile then reports the first error.
 * A dimension may be SETUN_DIM_TOKENS (the number of tokens of a run, at most tokens_max) or SETUN_DIM_OUTPUTS.
 */
typedef struct setun_graph setun_graph;
typedef struct setun_plan setun_plan;
typedef int32_t setun_node;
#define SETUN_NODE_NONE ((setun_node)-1)
#define SETUN_DIM_TOKENS ((int64_t)-1)
#define SETUN_DIM_OUTPUTS ((int64_t)-2)

SETUN_API setun_status setun_graph_create(setun_context *context, setun_graph **out);
SETUN_API void setun_graph_destroy(setun_graph *graph); /* plans compiled from it live on */
/* leaves */
SETUN_API setun_node setun_graph_input(setun_graph *graph, const char *name, setun_dtype dtype, int rank, const int64_t *shape);
SETUN_API setun_node setun_graph_model_weight(setun_graph *graph, setun_model *model, const char *tensor_name);
/* Own codes -1, 0, +1 [rows, columns], copied. scales: [1] (group_size -1), [rows] (0), or [rows, columns/group_size]. */
SETUN_API setun_node setun_graph_ternary_weight(setun_graph *graph, const char *name, int64_t rows, int64_t columns, const int8_t *codes, const float *scales, int group_size);
SETUN_API setun_node setun_graph_weight(setun_graph *graph, const char *name, int rank, const int64_t *shape, const float *values); /* copied */
/* operations: x is f32 [.., width] unless said otherwise */
SETUN_API setun_node setun_graph_embedding(setun_graph *graph, setun_node weight, setun_node ids);  /* i32 [T] -> [T, width] */
SETUN_API setun_node setun_graph_rms_norm(setun_graph *graph, setun_node x, setun_node weight, float epsilon, bool one_plus); /* over the last axis; weight may be NONE */
SETUN_API setun_node setun_graph_quantize(setun_graph *graph, setun_node x); /* int8 per token, absmax: s=127/max(max|x|,1e-5) */
SETUN_API setun_node setun_graph_linear(setun_graph *graph, setun_node weight, setun_node x, setun_node bias); /* x f32 or quantised; y = x W^T + b; bias may be NONE */
SETUN_API setun_node setun_graph_add(setun_graph *graph, setun_node a, setun_node b);
SETUN_API setun_node setun_graph_multiply(setun_graph *graph, setun_node a, setun_node b);
SETUN_API setun_node setun_graph_scale(setun_graph *graph, setun_node x, float factor);
SETUN_API setun_node setun_graph_silu(setun_graph *graph, setun_node x);
SETUN_API setun_node setun_graph_relu2(setun_graph *graph, setun_node x); /* max(x,0)^2 */
SETUN_API setun_node setun_graph_gelu(setun_graph *graph, setun_node x);  /* tanh form */
SETUN_API setun_node setun_graph_softmax(setun_graph *graph, setun_node x); /* over the last axis */
SETUN_API setun_node setun_graph_l2_normalize(setun_graph *graph, setun_node x); /* over the last axis */
SETUN_API setun_node setun_graph_reshape(setun_graph *graph, setun_node x, int rank, const int64_t *shape);
SETUN_API setun_node setun_graph_select_rows(setun_graph *graph, setun_node x, setun_node rows); /* x [T, ..], rows i32 [O] -> [O, ..] */
SETUN_API setun_node setun_graph_hadamard(setun_graph *graph, setun_node x, int block, const float *signs, int64_t sign_count, bool inverse);
typedef struct setun_rope_options {
    size_t size;
    float theta;
    int rotary;          /* dimensions rotated; 0: all */
    bool interleaved;    /* pairs (2i, 2i+1); default pairs (i, i+d/2) */
    const float *frequency_factors; /* [rotary/2], divides the frequency; NULL: none; copied */
    float scale;         /* position multiplier (linear scaling); 0: 1 */
    float magnitude;     /* multiplies cos and sin; 0: 1 */
} setun_rope_options;
SETUN_API setun_node setun_graph_rope(setun_graph *graph, setun_node x, setun_node positions, const setun_rope_options *options); /* x [T, heads, d]; positions i32 [T] */
typedef struct setun_attention_options {
    size_t size;
    float scale;         /* 0: 1/sqrt(d) */
    int window;          /* sliding window in tokens; 0: none */
    int cache_layer;     /* 1-based layer of the KV cache that keys and values are appended to; 0: no cache, only these tokens */
} setun_attention_options;
/* causal; q [T, heads, d], k and v [T, kv_heads, d] -> [T, heads*d] */
SETUN_API setun_node setun_graph_attention(setun_graph *graph, setun_node q, setun_node k, setun_node v, const setun_attention_options *options);
SETUN_API setun_status setun_graph_output(setun_graph *graph, setun_node node, const char *name);

typedef struct setun_compile_options {
    size_t size;
    const char *device;  /* "auto", "cpu", "mlx", "mlx:gpu", "mlx:cpu"; NULL: the context's, at first "auto" */
    int tokens_max;      /* 0: 1 */
    int outputs_max;     /* 0: 1 */
    bool no_fusion;
    int cache_tokens;    /* capacity of a KV cache owned by the plan, where the graph has cached attention; 0: tokens_max */
    const char *kv_type; /* "f16" (default), "f32", "i8" */
    const char *precision; /* as in setun_session_options */
} setun_compile_options;
SETUN_API setun_status setun_graph_compile(setun_graph *graph, const setun_compile_options *options, setun_plan **out);
SETUN_API void setun_plan_destroy(setun_plan *plan);
/* Inputs are copied when bound (their first dimension may be smaller than the maximum). */
SETUN_API setun_status setun_plan_set_input(setun_plan *plan, const char *name, const setun_tensor *tensor);
SETUN_API setun_status setun_plan_run(setun_plan *plan, int tokens, int outputs); /* allocates nothing */
SETUN_API setun_status setun_plan_get_output(setun_plan *plan, const char *name, setun_tensor **out); /* a copy, the caller's */
SETUN_API setun_status setun_plan_rewind(setun_plan *plan, int position); /* the KV cache's length */
SETUN_API setun_status setun_plan_explain(setun_plan *plan, bool json, char **out);

#ifdef __cplusplus
}
#endif
#endif
