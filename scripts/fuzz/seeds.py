#!/usr/bin/env python3
"""Writes the seeds of every target, corpus/TARGET/NAME, from nothing but this repository: models, configurations and
templates of tests, and messages written below."""

import base64
import json
import pathlib
import struct
import subprocess
import tempfile

HERE = pathlib.Path(__file__).parent
FAMILIES = HERE / "../../worker/engine/tests/families"
ORACLE = HERE / "../../worker/chat-template/tests/oracle.json"


def write(target, name, data):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


# GGUF

U8, I8, U32, I32, F32, BOOL, TEXT, ARRAY, U64 = 0, 1, 4, 5, 6, 7, 8, 9, 10
FORMATS = {U8: "<B", I8: "<b", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B", U64: "<Q"}
# Type number, elements and bytes of a block.
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "BF16": (30, 1, 2)}


def value(kind, item):
    if kind == TEXT:
        item = item.encode()
        return struct.pack("<Q", len(item)) + item
    if kind == ARRAY:
        inner, items = item
        return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, i) for i in items)
    return struct.pack(FORMATS[kind], item)


def gguf(metadata, tensors, version=3):
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, (kind, item) in metadata.items():
        head += value(TEXT, key) + struct.pack("<I", kind) + value(kind, item)
    data = b""
    for name, (dims, dtype) in tensors.items():
        number, elements, size = TYPES[dtype]
        data += bytes(-len(data) % 32)
        head += value(TEXT, name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims)
        head += struct.pack("<IQ", number, len(data))
        count = 1
        for dim in dims:
            count *= dim
        # Positive in every type.
        data += b"\x3c" * (count // elements * size)
    return head + bytes(-len(head) % 32) + data


def byte_alphabet():
    """The characters that stand for bytes in byte-level vocabularies."""
    shown = [*range(ord("!"), 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(0x100 + i) for i in range(len(hidden))]


def tiny(arch="llama", vocabulary="spm", inner=32, dtype="F32", **more):
    """A model with one layer, two heads of width 4, one KV head and a hidden size of 8."""
    if vocabulary == "spm":
        tokens = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "ab", "<0x0A>"]
        kinds = [2, 3, 3, 1, 1, 1, 1, 6]
        words = {"model": (TEXT, "llama"), "scores": (ARRAY, (F32, [-float(i) for i in range(len(tokens))]))}
    else:
        tokens = [*byte_alphabet(), "ab", "\u0120a", "<|a|>"]
        kinds = [1] * 258 + [3]
        words = {"model": (TEXT, "gpt2"), "pre": (TEXT, vocabulary), "merges": (ARRAY, (TEXT, ["a b", "\u0120 a"]))}
    words |= {"tokens": (ARRAY, (TEXT, tokens)), "token_type": (ARRAY, (I32, kinds))}
    words |= {"bos_token_id": (U32, 1), "eos_token_id": (U32, 2)}
    keys = {
        "context_length": (U32, 16), "embedding_length": (U32, 8), "block_count": (U32, 1),
        "feed_forward_length": (U32, inner), "attention.head_count": (U32, 2), "attention.head_count_kv": (U32, 1),
        "rope.dimension_count": (U32, 4), "attention.layer_norm_rms_epsilon": (F32, 1e-5),
    }
    metadata = {"general.architecture": (TEXT, arch)}
    metadata |= {f"{arch}.{key}": entry for key, entry in keys.items()}
    metadata |= {f"tokenizer.ggml.{key}": entry for key, entry in words.items()} | more.get("metadata", {})
    shapes = {
        "token_embd": [8, len(tokens)], "blk.0.attn_norm": [8], "blk.0.attn_q": [8, 8], "blk.0.attn_k": [8, 4],
        "blk.0.attn_v": [8, 4], "blk.0.attn_output": [8, 8], "blk.0.ffn_norm": [8], "blk.0.ffn_gate": [8, inner],
        "blk.0.ffn_up": [8, inner], "blk.0.ffn_down": [inner, 8], "output_norm": [8],
    }
    tensors = {f"{name}.weight": (dims, "F32") for name, dims in shapes.items()}
    tensors["blk.0.ffn_down.weight"] = ([inner, 8], dtype)
    if vocabulary != "spm":
        tensors["token_embd.weight"] = (shapes["token_embd"], "F16")
    return gguf(metadata, tensors | more.get("tensors", {}), more.get("version", 3))


def seed_gguf():
    template = {"tokenizer.chat_template": (TEXT, "{% for m in messages %}{{ m.content }}{% endfor %}")}
    flags = {"tokenizer.ggml.add_bos_token": (BOOL, 1), "tokenizer.ggml.add_space_prefix": (BOOL, 0), "general.alignment": (U32, 32)}
    odd = {"a": (ARRAY, (ARRAY, [(U8, [1, 2]), (TEXT, ["x"])])), "b": (I8, -1), "c": (U64, 1 << 63)}
    scaled = {"llama.rope.freq_base": (F32, 5e5), "llama.rope.scaling.type": (TEXT, "linear"), "llama.rope.scaling.factor": (F32, 4.0)}
    window = {"mistral.attention.sliding_window": (U32, 8)}
    biases = {f"blk.0.attn_{part}.bias": ([width], "F32") for part, width in [("q", 8), ("k", 4), ("v", 4)]}
    norms = {f"blk.0.attn_{part}_norm.weight": ([4], "F32") for part in "qk"}
    for name, file in {
        "spm": tiny(metadata=template), "version-2": tiny(version=2), "flags": tiny(metadata=flags),
        "odd-values": tiny(metadata=odd), "rope-linear": tiny(metadata=scaled), "window": tiny(metadata=window),
        "rope-divisors": tiny(tensors={"rope_freqs.weight": ([2], "F32")}),
        "head": tiny(tensors={"output.weight": ([8, 8], "BF16")}), "q8-0": tiny(dtype="Q8_0"), "q4-0": tiny(dtype="Q4_0"),
        "q4-k": tiny(dtype="Q4_K", inner=256), "gpt-2": tiny(vocabulary="gpt-2"), "llama-bpe": tiny(vocabulary="llama-bpe"),
        "qwen2": tiny("qwen2", "qwen2", tensors=biases), "qwen3": tiny("qwen3", tensors=norms),
        "split": tiny(metadata={"split.count": (U32, 2), "split.no": (U32, 0), "split.tensors.count": (U32, 11)}),
    }.items():
        write("gguf", name, file)


# SafeTensors, config.json and tokenizer.json


def safetensors(rows=5, dtype="F32", **more):
    shapes = {
        "embed_tokens": [rows, 8], "layers.0.input_layernorm": [8], "layers.0.self_attn.q_proj": [8, 8],
        "layers.0.self_attn.k_proj": [4, 8], "layers.0.self_attn.v_proj": [4, 8], "layers.0.self_attn.o_proj": [8, 8],
        "layers.0.post_attention_layernorm": [8], "layers.0.mlp.gate_proj": [32, 8], "layers.0.mlp.up_proj": [32, 8],
        "layers.0.mlp.down_proj": [8, 32], "norm": [8],
    }
    shapes = {f"model.{name}.weight": shape for name, shape in shapes.items()} | more
    header, at = {}, 0
    for name, shape in shapes.items():
        size = (4 if dtype == "F32" else 2) * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at), list(shapes)


def seed_safetensors():
    file, names = safetensors()
    write("safetensors", "f32", file)
    write("safetensors", "f16", safetensors(dtype="F16")[0])
    write("safetensors", "bf16-head", safetensors(dtype="BF16", **{"lm_head.weight": [5, 8]})[0])
    write("safetensors", "derived", safetensors(dtype="F16", **{"model.layers.0.self_attn.rotary_emb.inv_freq": [2]})[0])
    write("safetensors", "index", json.dumps({"weight_map": {name: "model-1-of-1.safetensors" for name in names}}))


def seed_config_json():
    for folder in sorted(FAMILIES.iterdir()):
        if (folder / "config.json").exists():
            text = (folder / "config.json").read_text()
            write("config_json", folder.name, text)
    generation = {"eos_token_id": [1, 2], "bos_token_id": 1, "do_sample": True}
    write("config_json", "generation", text + "\0" + json.dumps(generation))
    config = json.loads(text) | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "use_sliding_window": True}
    config |= {"quantization_config": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}
    write("config_json", "layer-types", json.dumps(config))


def tokenizer(model, decoder, **more):
    parts = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
             "pre_tokenizer": None, "post_processor": None, "decoder": decoder, "model": model} | more
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def seed_tokenizer_json():
    steps = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
             {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    pieces = {"type": "Sequence", "decoders": steps}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    words = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "ab", "\u2581a"]
    vocab = {word: i for i, word in enumerate(words)}
    every = vocab | {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    bpe = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "merges": ["a b", "\u2581 a"]}
    spm = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}
    added = [{"id": i, "content": words[i], "single_word": False, "lstrip": i == 2, "rstrip": False, "normalized": False, "special": True} for i in (0, 1, 2)]
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    split = {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|\\s+"}, "behavior": "Isolated", "invert": False}
    alphabet = {c: i for i, c in enumerate([*byte_alphabet(), "ab", "\u0120a"])}
    others = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "Punctuation", "behavior": "Isolated"}, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}]}
    lower = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "StripAccents"}]}
    for name, text in {
        "spm": tokenizer(bpe | {"vocab": vocab}, pieces, normalizer=spm, added_tokens=added, post_processor=template),
        "every-byte": tokenizer(bpe | {"vocab": every}, pieces),
        "byte-level": tokenizer({"type": "BPE", "vocab": alphabet, "merges": [["a", "b"], ["\u0120", "a"]], "ignore_merges": True}, level, pre_tokenizer=level),
        "split": tokenizer({"type": "BPE", "vocab": vocab, "merges": []}, level, normalizer={"type": "NFC"}, pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]}),
        "unigram": tokenizer({"type": "Unigram", "unk_id": 0, "vocab": [[w, -float(i)] for i, w in enumerate(words)], "byte_fallback": False}, pieces, pre_tokenizer=others),
        "word-piece": tokenizer({"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab}, pieces, normalizer=lower),
        "word-level": tokenizer({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}, pieces, pre_tokenizer={"type": "Whitespace"}),
        "truncated": tokenizer(bpe | {"vocab": vocab, "dropout": None}, pieces, truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
                               padding={"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}),
    }.items():
        write("tokenizer_json", name, text)


def seed_chat_template():
    oracle = json.loads(ORACLE.read_text())
    sources = [case["template"] for case in oracle["cases"]]
    for number, at in enumerate(range(0, len(sources), 4)):
        write("chat_template", f"oracle-{number:02}", "\n".join(sources[at:at + 4]))
    chatml = "{% for m in messages %}{{ '<|im_start|>' ~ m.role + '\\n' + m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    tools = "{{ bos_token }}{%- if tools is not none %}{{ tools | tojson(indent=2) }}{%- endif %}{% for m in messages if m.tool_calls is defined %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{{ c.function.arguments.items() | list }}{% endfor %}{% endfor %}"
    macros = "{% macro say(x, y=1) %}{{ x ~ y }}{% endmacro %}{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + loop.index0 %}{{ say(m.role, y=ns.n) }}{% if loop.last %}{{ raise_exception('no') if ns.n > 99 else strftime_now('%d %b %Y') }}{% endif %}{% endfor %}"
    generation = "{% for m in messages %}{% generation %}{{ m.content.split('</think>')[-1].lstrip('\\n').replace('a', 'b', 1) }}{% endgeneration %}{% endfor %}{{ enable_thinking }}"
    write("chat_template", "chatml", chatml)
    write("chat_template", "tools", tools + "\0\0" + '{"a": [1, 2.5], "b": null}')
    write("chat_template", "macros", macros)
    write("chat_template", "generation", generation + "\0" + '{"enable_thinking": false, "date": "1 Jan"}')


# Requests


def number(field, value):
    return varint(field << 3) + varint(value)


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def single(field, value):
    return varint(field << 3 | 5) + struct.pack("<f", value)


def text(field, value):
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


def ids(field, *values):
    return text(field, b"".join(varint(value) for value in values))


def seed_requests():
    prompt, tokens = text(3, "Once upon a time"), text(4, ids(1, 1, 2, 300))
    message = text(1, "user") + text(2, "A fox") + text(3, "me") + text(4, "c1") + text(5, '{"function": {"arguments": "{}"}}')
    chat = text(5, text(1, message) + text(2, '{"name": "f"}') + number(3, 1) + text(4, '{"a": 1}'))
    bias = text(10, number(1, 5) + single(2, -1.5))
    sampling = text(6, single(1, 0.7) + single(2, 0.9) + number(3, 40) + single(4, 0.05) + single(5, 0.5) + single(6, -0.5) + single(7, 1.1) + number(8, 7) + number(9, 2) + bias)
    stopping = text(7, number(1, 20) + number(2, 3) + text(3, text(1, "\n\n")) + text(3, number(2, 5)) + number(4, 1) + number(5, 1))
    options = text(8, number(1, 1) + number(2, 3) + number(3, 1) + number(4, 1))
    guided = text(9, text(4, text(1, "yes") + text(1, "no")))
    names = text(1, "id-1") + text(2, "storyteller")
    rest = number(10, 7) + number(11, 1) + text(12, "salt") + number(13, 1) + number(14, 1)
    wrong = text(6, single(1, float("nan")) + single(2, 2.0) + number(9, 99)) + text(7, number(1, 0) + text(3, b"")) + text(1, "\u00e9") + number(10, 2000)
    ended = text(1, ids(1, 4, 5) + number(2, 3) + text(3, number(1, 1) + text(2, "x") + text(4, number(1, 2))))
    running = text(1, ids(1, 4, 5, 6) + number(2, 1 << 60))

    def routing(*choices, limit=20, digest="="):
        state = text(3, b"".join(choices) + text(2, digest) + number(3, limit))
        return text(15, number(1, 2) + text(2, "tenant") + state + number(4, 1) + text(5, number(1, 1_700_000_000)))

    two = text(6, number(9, 2))
    for target, seeds in {
        "request": {"prompt": names + prompt + sampling + stopping + options, "tokens": tokens + rest, "chat": chat + sampling,
                    "guided": prompt + guided, "wrong": wrong, "resumed": tokens + routing(running)},
        "resume_state": {"prompt": prompt + sampling + stopping + options, "tokens": names + tokens, "chat": chat, "one": tokens + routing(running),
                         "two": tokens + two + stopping + routing(running, ended), "ended": tokens + two + routing(ended, ended), "none": prompt + routing(),
                         "digest": tokens + routing(running, digest="other"), "long": tokens + routing(text(1, ids(1, *range(9))), limit=8)},
    }.items():
        for name, data in seeds.items():
            write(target, name, data)


def seed_http_body():
    common = {"model": "m", "temperature": 0.7, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "frequency_penalty": 0.1, "presence_penalty": -0.1,
              "repetition_penalty": 1.1, "seed": -1, "n": 2, "logit_bias": {"5": -1.5}, "stop": ["\n", "x"], "stop_token_ids": [7], "max_tokens": 20,
              "min_tokens": 1, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}, "priority": 3, "cache_salt": "s", "user": "u"}
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "name": "me", "content": parts},
                {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "1"}]
    refused = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"], "best_of": 1, "suffix": "", "metadata": {"a": 1}}
    for name, body in {
        "chat": {"messages": messages, "logprobs": True, "top_logprobs": 5, "max_completion_tokens": 9, "add_generation_prompt": False, "chat_template_kwargs": {"a": [1]}},
        "chat-common": common | {"messages": [{"role": "user", "content": "A fox"}]}, "chat-refused": refused | {"messages": []},
        "completion": common | {"prompt": "Once", "logprobs": 5, "echo": True, "return_token_ids": True}, "prompts": {"prompt": ["a", "b"], "max_tokens": 0, "echo": True},
        "ids": {"prompt": [1, 2], "add_special_tokens": False, "include_stop_str_in_output": True}, "id-lists": refused | {"prompt": [[1], [2, 3]]},
        "wrong": {"prompt": "", "temperature": 1e9, "n": 99, "stop": [""], "logit_bias": {"x": 1}}, "unknown": {"prompt": "a", "unknown": 1},
    }.items():
        write("http_body", name, json.dumps(body))


def seed_config_file():
    write("config_file", "router", "# A comment\nmax-concurrent-streams = 0x10\nqueue-timeout = '30s'\nmodel-alias = ['a=b', \"c=d\"]\n"
          "tenant-priority = ['ops=0']\nhttp-allowed-origins = ['https://a.example']\neject-latency-factor = 2\nretry-attempts = 2\nresume-memory = '64MiB'\n")
    write("config_file", "worker", "max-num-seqs = 4\nkv-cache-memory = '1GiB'\ndevice = 'cpu'\nquantize = 'int8'\nprefix-cache = 'on'\n"
          "max-decode-slowdown = 1e1\ndraft-model = 'x'\nnum-speculative-tokens = 3\ntrace-steps = 0b11\n")
    write("config_file", "wrong", "max-num-seq = 1\nqueue-size = -1\npolicy = 'x'\ndrain-timeout = []\nlimits = [[1]]\nconfig = 'x'\n[table]\na = 1979-05-27T07:32:00Z\n")
    write("config_file", "strings", "tenant-header = '''x'''\npolicy = \"\"\"\\\n  round-robin\"\"\"\n'hide-cached-tokens' = true\nlimits.a = 0b1\n")


def seed_api_keys():
    def key(number, tenant):
        return f"[[keys]]\nid = 'k{number}'\ntenant = '{tenant}'\nsha256 = '{number:064x}'\n"

    policy = ("models = ['llama-*', \"gpt\"]\nrequests-per-minute = 60\ntokens-per-minute = 1_000\nmax-concurrent-streams = 4\n"
              "max-tokens = 100\npriority = 0\n")
    write("api_keys", "two", f"# Keys\n[tenants.a]\n{policy}[tenants.'b']\n{key(1, 'a')}created = '2026-11-30'\nnote = \"x\"\n{key(2, 'b')}")
    write("api_keys", "inline", f"keys = []\ntenants = {{ a = {{ max-tokens = 1 }}, b = {{}} }}\n")
    write("api_keys", "twice", f"[tenants.a]\n{key(1, 'a')}{key(1, 'a')}")
    write("api_keys", "wrong", f"[tenants.a]\nmax-tokens = 0\npriority = 1001\nmodels = []\n{key(1, 'c')}")


def seed_certificates():
    """Made anew each time, since a private key needs chance: only where they are missing."""
    if (HERE / "corpus/certificates").exists():
        return
    cert_file, key_file, ca_file, peer = range(4)
    sections = {"CERTIFICATE": 0, "PRIVATE KEY": 1, "EC PRIVATE KEY": 2, "RSA PRIVATE KEY": 3}

    def entry(place, label, data):
        return struct.pack("<BH", place | label << 2, len(data)) + data

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    def der(path):
        label, body = path.read_text().split("-----BEGIN ")[-1].split("-----", 1)
        return sections[label], base64.b64decode(body.split("-----")[0])

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        names = "subjectAltName=DNS:w0.worker.example,DNS:localhost,IP:127.0.0.1,IP:::1,URI:spiffe://td/ns/a/sa/worker,email:a@b"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "36500", "-subj", "/CN=ca",
                "-keyout", f"{path}/ca.key", "-out", f"{path}/ca.pem", "-addext", "nameConstraints=permitted;DNS:example,permitted;DNS:localhost")
        for kind, curve in {"ec": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"], "ed": ["-newkey", "ed25519"], "rsa": ["-newkey", "rsa:2048"]}.items():
            openssl("req", "-x509", *curve, "-nodes", "-days", "36500", "-subj", "/CN=own", "-keyout", f"{path}/own.key", "-out", f"{path}/own.pem",
                    "-CA", f"{path}/ca.pem", "-CAkey", f"{path}/ca.key", "-addext", names, "-addext", "basicConstraints=critical,CA:FALSE",
                    "-addext", "extendedKeyUsage=serverAuth,clientAuth")
            if kind != "ed":
                openssl("ec" if kind == "ec" else "rsa", "-in", f"{path}/own.key", "-out", f"{path}/traditional", *(["-traditional"] if kind == "rsa" else []))
                (path / "own.key").write_text((path / "traditional").read_text())
            ca, own, key = der(path / "ca.pem"), der(path / "own.pem"), der(path / "own.key")
            write("certificates", kind, entry(cert_file, *own) + entry(cert_file, *ca) + entry(key_file, *key) + entry(ca_file, *ca)
                  + entry(peer, *own) + entry(peer, *ca))
        pem = (path / "ca.pem").read_bytes()
        write("certificates", "pem", entry(cert_file, 7, pem.replace(b"A", b"*", 1)) + entry(key_file, 7, b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
              + entry(ca_file, 7, b"# CA\r\n" + pem + b"-----BEGIN TRUSTED CERTIFICATE-----\n"))


for seed in (seed_gguf, seed_safetensors, seed_config_json, seed_tokenizer_json, seed_chat_template, seed_requests, seed_http_body, seed_config_file,
             seed_api_keys, seed_certificates):
    seed()
