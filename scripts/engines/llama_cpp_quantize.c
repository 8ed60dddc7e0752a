// Writes a GGUF file with the weights of another one in a format of llama.cpp.
//
//     llama_cpp_quantize FROM.gguf TO.gguf F16|Q4_0|Q4_K_M THREADS

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama.h"

static const struct {
    const char *name;
    enum llama_ftype type;
} formats[] = {
    {"F16", LLAMA_FTYPE_MOSTLY_F16}, {"Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0}, {"Q4_K_M", LLAMA_FTYPE_MOSTLY_Q4_K_M}};

int main(int count, char **arguments) {
    for (size_t i = 0; count == 5 && i < sizeof formats / sizeof *formats; i++) {
        if (strcmp(arguments[3], formats[i].name) == 0) {
            struct llama_model_quantize_params params = llama_model_quantize_default_params();
            params.nthread = atoi(arguments[4]);
            params.ftype = formats[i].type;
            params.allow_requantize = true; // The weights of FROM have 8 bits.
            return llama_model_quantize(arguments[1], arguments[2], &params) != 0;
        }
    }
    fputs("usage: llama_cpp_quantize FROM.gguf TO.gguf F16|Q4_0|Q4_K_M THREADS\n", stderr);
    return 2;
}
