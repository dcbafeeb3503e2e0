/* main.c - the program: finds the command and runs it. */
#include "app.h"
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define O(field) (signed char)OPTION_##field
#define GENERAL O(threads), O(isa), O(pin), O(quiet), O(verbose)
#define MODEL O(model), O(i2s_layout), O(no_map), O(weights), O(device)
#define SESSION O(context), O(batch), O(kv_type), O(head), O(precision), O(no_fusion), O(no_activation)
#define SAMPLING O(tokens), O(temperature), O(top_k), O(top_p), O(min_p), O(repetition), O(presence), O(frequency), O(bias), O(seed), O(stop), O(lookup), O(ignore_end)

static const signed char run_options[] = {O(prompt), O(file), O(raw), O(system), SAMPLING, O(logprobs), O(json), MODEL, SESSION, GENERAL, -1};
static const signed char chat_options[] = {O(system), SAMPLING, MODEL, SESSION, GENERAL, -1};
static const signed char inspect_options[] = {O(model), O(deep), O(json), O(i2s_layout), O(threads), O(quiet), -1};
static const signed char explain_options[] = {O(measure), O(tokens), O(json), MODEL, SESSION, GENERAL, -1};
static const signed char tokenize_options[] = {O(prompt), O(file), O(ids), O(decode), O(special), O(add_special), O(json), O(model), O(quiet), -1};
static const signed char perplexity_options[] = {O(file), O(json), MODEL, SESSION, GENERAL, -1};
static const signed char bench_options[] = {O(bench_prompt), O(generate), O(depth), O(sequences), O(repeats), O(bench_threads), O(report), O(json), MODEL, SESSION, O(isa), O(pin), O(quiet), O(verbose), -1};
static const signed char convert_options[] = {O(model), O(output), O(to), O(container), O(embedding), O(dense), O(i2s_layout), O(force), O(json), O(threads), O(quiet), -1};
static const signed char tune_options[] = {O(device), O(output), O(no_store), O(repeats), O(json), O(threads), O(quiet), O(verbose), -1};
static const signed char doctor_options[] = {O(json), O(model), GENERAL, -1};

const command commands[] = {
    {"run", "answer a prompt", "setun run [options] [prompt]",
     "Reads the prompt from the words, from --prompt, from --file or from standard input, and streams the answer to standard output. "
     "With a chat model the prompt becomes the user's message of its chat template; --raw continues the text as it is.",
     "setun run \"What is the capital of France?\"", run_options, command_run},
    {"chat", "talk with a model", "setun chat [options]",
     "A conversation with history and line editing. /help lists the commands. Ctrl-C stops the answer, Ctrl-D ends the program. "
     "Reads plain lines when standard input is not a terminal.",
     "setun chat --system \"You are a poet.\" --temperature 0.7", chat_options, command_chat},
    {"inspect", "show what a model file holds", "setun inspect [options] [path]",
     "Header, metadata, tensors with format, shape and bits per weight, and what is unsupported and why. Loads no weights unless --deep is given.",
     "setun inspect --deep model.gguf", inspect_options, command_inspect},
    {"explain", "show how a model is computed", "setun explain [options] [path]",
     "Model, graph and plan: every step with its kernel, its fusion and its place in memory, and for each weight whether it is used where the file is mapped, packed, or copied.",
     "setun explain --measure", explain_options, command_explain},
    {"tokenize", "turn text into tokens, or back", "setun tokenize [options] [text]",
     "Prints one token a line: its id and its bytes. Special tokens in the text are plain text unless --special is given.",
     "setun tokenize \"Hello, world\"", tokenize_options, command_tokenize},
    {"perplexity", "measure how well a model predicts a text", "setun perplexity [options] -f FILE",
     "Cuts the text into pieces of --context tokens (default 512) and scores every token but the first of each piece.",
     "setun perplexity -f book.txt --context 512", perplexity_options, command_perplexity},
    {"bench", "measure prefill and decode speed", "setun bench [options] [path]",
     "Medians over repeats, with p95 and spread, at the chosen depths, numbers of texts at once (--sequences) and thread counts. Tokens are random but the same each time. "
     "--report FILE does all that there is to find out about a machine: what it is, whether each device computes what the CPU does (kernels bit for bit, then the model's tokens), and how fast.",
     "setun bench --prompt 512 --generate 64 --depth 0 --repeats 5 --threads 2 --json", bench_options, command_bench},
    {"convert", "rewrite a model in another format", "setun convert [options] INPUT OUTPUT",
     "Any input that Setun reads to GGUF or to a Hugging Face folder; ternary weights keep their values exactly where the format can hold them, and the report says where it cannot. "
     "Matrices that are not ternary stay dense.",
     "setun convert model-folder model.gguf --to tq1_0", convert_options, command_convert},
    {"quantize", "make the linear weights of a float model ternary", "setun quantize [options] INPUT OUTPUT",
     "As convert, and dense linear weights become ternary by absmean: s = mean|W|, w = s * clamp(rint(W / s), -1, 1). A model not trained for this loses its quality.",
     "setun quantize master-weights model.gguf --to i2_s", convert_options, command_quantize},
    {"doctor", "check this machine and installation", "setun doctor [options]",
     "CPU features, chosen kernels, threads, measured memory bandwidth and int8 rate, libraries, the default model, and what is missing.",
     "setun doctor --json", doctor_options, command_doctor},
    {"tune", "measure the GPU kernels' group sizes", "setun tune [options]",
     "Times the GPU kernels on a device (default mlx:gpu) with one group size and tile shape after another, and stores the fastest in a file of the user's: $SETUN_TUNING, else "
     "setun/tuning.json in $XDG_CONFIG_HOME or ~/.config, or --output. They change speed, never results; without the file a table by device family is used. "
     "`setun doctor` and `setun explain` say which. On NVIDIA GPUs every shape is compiled first: a few minutes.",
     "setun tune --device mlx:gpu", tune_options, command_tune},
};
const int command_count = (int)(sizeof commands / sizeof *commands);

int main(int argc, char **argv) {
    setlocale(LC_CTYPE, "");
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is an error of a write, not a death */
    if (argc < 2) {
        help_program(stderr);
        return EXIT_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || (!strcmp(name, "help") && argc == 2)) {
        help_program(stdout);
        return EXIT_OK;
    }
    if (!strcmp(name, "--version") || !strcmp(name, "version")) {
        printf("setun %s\n", setun_version());
        return EXIT_OK;
    }
    if (!strcmp(name, "man")) return print_man(stdout);
    if (!strcmp(name, "completion")) {
        if (argc != 3) return usage_error("usage: setun completion bash|zsh|fish");
        return print_completion(argv[2], stdout);
    }
    bool help = !strcmp(name, "help");
    if (help) name = argv[2];
    for (int i = 0; i < command_count; i++)
        if (!strcmp(commands[i].name, name)) {
            if (help) {
                help_command(&commands[i], stdout);
                return EXIT_OK;
            }
            settings s;
            int status = options_parse(&commands[i], argc - 2, argv + 2, &s);
            if (status < 0) status = commands[i].run(&s);
            options_free(&s);
            if (fflush(stdout) && status == EXIT_OK) status = fail("cannot write the output");
            return status;
        }
    return usage_error("unknown command '%s'; `setun --help` lists them", name);
}
