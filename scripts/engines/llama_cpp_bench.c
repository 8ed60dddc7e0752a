// Measures llama.cpp: tokens per second of a prompt of 512 tokens (test 0), or of N sequences that decode together (N).
//
//     llama_cpp_bench BACKENDS MODEL.gguf THREADS TEST...
//     llama_cpp_bench BACKENDS
//
// Prints a JSON object: the rate of each test. With only the folder of the backends, prints which of them llama.cpp
// takes for this processor.

#define _GNU_SOURCE
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ggml-backend.h"
#include "llama.h"

enum { CONTEXT = 512, STEPS = 32, RUNS = 3, VOCABULARY = 32000 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void check(int ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "llama_cpp_bench: %s\n", what);
        exit(1);
    }
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count) {
    qsort(values, count, sizeof *values, by_size);
    return values[count / 2];
}

static struct llama_context *context(struct llama_model *model, int threads, int sequences) {
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (CONTEXT + STEPS) * sequences;
    params.n_batch = params.n_ubatch = CONTEXT;
    params.n_seq_max = sequences;
    params.n_threads = params.n_threads_batch = threads;
    struct llama_context *made = llama_init_from_model(model, params);
    check(made != NULL, "no memory for the context");
    // Headers of another version would have other fields there.
    check(llama_n_threads(made) == threads && (int)llama_n_seq_max(made) == sequences, "wrong headers");
    return made;
}

static void add(struct llama_batch *batch, int token, int position, int sequence, int has_output) {
    int i = batch->n_tokens++;
    batch->token[i] = token;
    batch->pos[i] = position;
    batch->n_seq_id[i] = 1;
    batch->seq_id[i][0] = sequence;
    batch->logits[i] = has_output;
}

static int likeliest(const float *logits) {
    int best = 0;
    for (int token = 1; token < VOCABULARY; token++) {
        if (logits[token] > logits[best]) best = token;
    }
    return best;
}

// Computes a prompt of random tokens as sequence 0. Returns the seconds until its next token.
static double prompt(struct llama_context *context, struct llama_batch *batch, int tokens) {
    llama_memory_clear(llama_get_memory(context), true);
    batch->n_tokens = 0;
    for (int i = 0; i < tokens; i++) add(batch, 300 + rand() % 30000, i, 0, i == tokens - 1);
    double begun = now();
    check(llama_decode(context, *batch) == 0, "a prompt failed");
    likeliest(llama_get_logits_ith(context, -1));
    return now() - begun;
}

static double prompt_rate(struct llama_context *context, struct llama_batch *batch) {
    double seconds[RUNS];
    prompt(context, batch, CONTEXT); // The first one also allocates.
    for (int i = 0; i < RUNS; i++) seconds[i] = prompt(context, batch, CONTEXT);
    return CONTEXT / median(seconds, RUNS);
}

static double decode_rate(struct llama_context *context, struct llama_batch *batch, int sequences) {
    // Contexts are as long as `CONTEXT` on average.
    const int begin = CONTEXT - STEPS / 2;
    prompt(context, batch, begin);
    for (int to = 1; to < sequences; to++) llama_memory_seq_cp(llama_get_memory(context), 0, to, -1, -1);
    int tokens[sequences];
    double seconds[STEPS];
    for (int i = 0; i < sequences; i++) tokens[i] = 300 + rand() % 30000;
    for (int step = 0; step < STEPS; step++) {
        batch->n_tokens = 0;
        for (int i = 0; i < sequences; i++) add(batch, tokens[i], begin + step, i, 1);
        double begun = now();
        check(llama_decode(context, *batch) == 0, "a step failed");
        for (int i = 0; i < sequences; i++) tokens[i] = likeliest(llama_get_logits_ith(context, i));
        seconds[step] = now() - begun;
    }
    return sequences / median(seconds, STEPS);
}

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static int print_backend(struct dl_phdr_info *library, size_t size, void *data) {
    (void)size, (void)data;
    const char *name = strstr(library->dlpi_name, "libggml-cpu");
    return name && puts(name) >= 0;
}

int main(int count, char **arguments) {
    check(count == 2 || count > 4, "usage: llama_cpp_bench BACKENDS [MODEL.gguf THREADS TEST...]");
    llama_log_set(quiet, NULL);
    ggml_backend_load_all_from_path(arguments[1]);
    if (count == 2) return !dl_iterate_phdr(print_backend, NULL);
    struct llama_model *model = llama_model_load_from_file(arguments[2], llama_model_default_params());
    check(model != NULL, "the model cannot be loaded");
    for (int i = 4; i < count; i++) {
        int test = atoi(arguments[i]), sequences = test ? test : 1;
        struct llama_context *made = context(model, atoi(arguments[3]), sequences);
        struct llama_batch batch = llama_batch_init(CONTEXT, 0, 1);
        double rate = test ? decode_rate(made, &batch, test) : prompt_rate(made, &batch);
        printf("%s\"%d\": %.3f", i == 4 ? "{" : ", ", test, rate);
        llama_batch_free(batch);
        llama_free(made);
    }
    puts("}");
    llama_model_free(model);
}
