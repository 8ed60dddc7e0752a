"""Makes tiny random checkpoints of every supported family, with the outputs of transformers.

    pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 gguf==0.19.0 numpy==2.4.6
    python make.py            # writes a folder for each case beside this file

A folder holds a model as the Hub has it (config.json, tokenizer.json, SafeTensors), for most cases the same
weights as model.gguf, and expected.safetensors: for each prompt its ids, transformers' logits at every
position, and the ids that it picks greedily after it. Everything is computed on the CPU in f32 with eager
attention; weights are rounded to the type they are stored in first, so the readers' f32 are the same numbers.
"""

import json
import pathlib
import shutil

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM,
    Qwen3Config, Qwen3ForCausalLM,
)

HERE = pathlib.Path(__file__).parent
VOCAB = 64
# The longer prompt passes every window, every block of the cache and every original context below.
PROMPT_LENGTHS = (5, 53)
GREEDY = 12
COMMON = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
    pad_token_id=None,
)
# Wavelengths of 8 pairs from 6 to 350 positions: with 32 original positions some turn often within
# them, some between once and four times, some less than once.
LLAMA3 = dict(
    rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
DEFAULT = dict(rope_type="default", rope_theta=10000.0)

# Name, model, configuration, stored type, options: `old` writes the rotary keys as transformers 4 did,
# `shard` splits the weights, `gguf` names the architecture of the GGUF twin.
CASES = [
    ("llama2", LlamaForCausalLM, LlamaConfig(**COMMON | dict(num_key_value_heads=4), rope_parameters=DEFAULT),
     torch.float32, dict(old=True, gguf="llama")),
    ("llama3", LlamaForCausalLM, LlamaConfig(**COMMON, head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3),
     torch.bfloat16, dict(old=True, gguf="llama")),
    ("llama-linear", LlamaForCausalLM,
     LlamaConfig(**COMMON, rope_parameters=DEFAULT | dict(rope_type="linear", factor=4.0)),
     torch.bfloat16, dict(gguf="llama")),
    ("llama-bias", LlamaForCausalLM,
     LlamaConfig(**COMMON, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope_parameters=DEFAULT),
     torch.bfloat16, dict(gguf="llama")),
    ("mistral", MistralForCausalLM, MistralConfig(**COMMON, sliding_window=19, rope_parameters=DEFAULT),
     torch.float16, dict(old=True, gguf="llama")),
    ("qwen2", Qwen2ForCausalLM, Qwen2Config(**COMMON, tie_word_embeddings=True, rope_parameters=DEFAULT | dict(rope_theta=1e6)),
     torch.bfloat16, dict(old=True, gguf="qwen2")),
    ("qwen2-window", Qwen2ForCausalLM,
     Qwen2Config(**COMMON, use_sliding_window=True, sliding_window=7, max_window_layers=1, rope_parameters=DEFAULT),
     torch.bfloat16, dict(old=True)),
    ("qwen3", Qwen3ForCausalLM, Qwen3Config(**COMMON, head_dim=16, rope_parameters=DEFAULT),
     torch.bfloat16, dict(shard=True, gguf="qwen3")),
    ("qwen3-bias", Qwen3ForCausalLM,
     Qwen3Config(**COMMON, head_dim=8, attention_bias=True, tie_word_embeddings=True, rope_parameters=DEFAULT),
     torch.bfloat16, dict()),
]


def randomise(model, dtype, generator):
    """Weights large enough that a wrong angle, a lost bias or a cut window moves the logits.

    Only parameters are rounded to `dtype`: the model as a whole would round its rotary frequencies too.
    """
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.data = 0.5 * noise
        elif parameter.dim() == 1:
            parameter.data = 1 + 0.2 * noise
        elif "embed_tokens" in name:
            parameter.data = noise
        else:
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            parameter.data = gain * noise / parameter.shape[1] ** 0.5
        parameter.data = parameter.data.to(dtype).to(torch.float32)


def outputs(model, prompts):
    """For each prompt its ids, logits at every position, and greedy ids, by full forward passes alone."""
    tensors = {}
    for number, prompt in enumerate(prompts):
        logits = model(torch.tensor([prompt]), use_cache=False).logits[0]
        ids = list(prompt)
        for _ in range(GREEDY):
            last = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            best = last.topk(2).values
            if best[0] - best[1] < 0.01:
                return None
            ids.append(int(last.argmax()))
        tensors[f"{number}.ids"] = torch.tensor(prompt, dtype=torch.int32)
        tensors[f"{number}.logits"] = logits.float().contiguous()
        tensors[f"{number}.greedy"] = torch.tensor(ids[len(prompt):], dtype=torch.int32)
    return tensors


def write_config(folder, config, old):
    values = json.loads((folder / "config.json").read_text())
    if old:
        rope = values.pop("rope_parameters")
        values["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        values["rope_scaling"] = None if kind == "default" else {"rope_type": kind} | rope
        values["torch_dtype"] = values.pop("dtype")
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def write_tokenizer(folder):
    """One token a letter: enough to open the model, which is tested by ids."""
    letters = [chr(ord("a") + i) for i in range(26)] + [chr(ord("A") + i) for i in range(26)]
    tokens = ["<unk>", "<s>", "</s>", "\u2581"] + letters + [str(i) for i in range(8)]
    assert len(tokens) == VOCAB
    special = [
        dict(id=i, content=tokens[i], special=True, single_word=False, lstrip=False, rstrip=False, normalized=False)
        for i in range(3)
    ]
    value = dict(
        version="1.0", truncation=None, padding=None, added_tokens=special, normalizer=None, pre_tokenizer=None,
        post_processor=None, decoder=dict(type="Fuse"),
        model=dict(type="BPE", unk_token="<unk>", vocab={token: i for i, token in enumerate(tokens)}, merges=[]),
    )
    (folder / "tokenizer.json").write_text(json.dumps(value) + "\n")
    return tokens


def interleaved(tensor, heads):
    """Rows of rotary halves side by side, as the "llama" architecture of GGUF stores them."""
    shape = tensor.shape
    return tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def llama3_divisors(rope, head_dim):
    """By what each frequency is divided, as converters write it for Llama 3.1."""
    frequencies = rope["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)
    wavelengths = 2 * np.pi / frequencies
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    context = rope["original_max_position_embeddings"]
    smooth = (context / wavelengths - low) / (high - low)
    divisors = np.where(wavelengths > context / low, factor, 1 / ((1 - smooth) / factor + smooth))
    return np.where(wavelengths < context / high, 1.0, divisors).astype(np.float32)


def write_gguf(folder, config, architecture, tokens, tensors):
    writer = gguf.GGUFWriter(folder / "model.gguf", architecture)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if architecture == "llama":
        writer.add_rope_dimension_count(head_dim)
        writer.add_vocab_size(VOCAB)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(rope, head_dim))
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([2, 3, 3] + [1] * (VOCAB - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(
        next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        config.num_hidden_layers,
    )
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            values = interleaved(values, heads if "q_proj" in name else kv_heads)
        stored = {torch.float32: gguf.GGMLQuantizationType.F32, torch.float16: gguf.GGMLQuantizationType.F16,
                  torch.bfloat16: gguf.GGMLQuantizationType.BF16}[tensor.dtype]
        if values.ndim == 1:
            stored = gguf.GGMLQuantizationType.F32
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target, name
        writer.add_tensor(target, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(name, kind, config, dtype, options):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    config._attn_implementation = "eager"
    model = kind(config).eval()
    # The first seed whose greedy ids no rounding can turn.
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        randomise(model, dtype, generator)
        prompts = [[1] + torch.randint(3, VOCAB, (length - 1,), generator=generator).tolist() for length in PROMPT_LENGTHS]
        expected = outputs(model, prompts)
        if expected:
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear outputs")
    model.to(dtype).save_pretrained(folder, **dict(max_shard_size="24KB") if options.get("shard") else {})
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_config(folder, config, options.get("old"))
    tokens = write_tokenizer(folder)
    save_file(expected, folder / "expected.safetensors")
    if options.get("gguf"):
        tensors = {}
        for file in sorted(folder.glob("model*.safetensors")):
            tensors |= load_file(file)
        write_gguf(folder, config, options["gguf"], tokens, tensors)
    for file in folder.iterdir():
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in folder.iterdir())
    largest = max(float(expected[f"{i}.logits"].abs().max()) for i in range(len(prompts)))
    print(f"{name}: seed {seed}, {size} bytes, logits up to {largest:.1f}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    for case in CASES:
        make(*case)
