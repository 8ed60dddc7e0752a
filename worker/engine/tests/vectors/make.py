"""Writes the vectors beside it: what the bundled models make of some prompts, by a forward pass of its own.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install numpy==2.4.6 tokenizers==0.23.3
    /tmp/venv/bin/python worker/engine/tests/vectors/make.py

The weights are the stored bf16; everything is computed from them in float64, anew for every token and without a cache,
so that what differs from the engine's float32 is the engine's rounding. Each record has a prompt and its ids, the 8 largest
logits after it (id, logit), the ids that are picked greedily from there whether or not the story ends, their text, and of
each id its log probability and the distance of its logit to the second largest.
"""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).parent
MODELS = HERE.parents[2] / "storyteller"
GREEDY = 48

# In order: the opening of a story, nothing but the token that every prompt begins with, text beyond ASCII, quotes and
# punctuation, talk in paragraphs, and some 200 tokens.
PROMPTS = [
    "Once upon a time, in a land not far away, there was a",
    "",
    "Zoë et son chat naïf mangèrent des crêpes 🥞 à Zürich. Привет, мир! 猫が窓の外を見た。🌙✨",
    "\"Wait!\" said Tom -- \"is it 3:45 p.m. already?!\" (It wasn't; not yet...) [#7 & $9.99] {50% * 2 = ?}\t'No,'",
    "Ben was sad because his red kite was gone.\n\n\"Do not cry,\" said Mom. \"We will look for it.\"\n\nSo they",
    "Once upon a time, in a small house near the sea, there lived a little girl named Mia. She had a kind grandma and a "
    "small brown dog. Every day they walked along the beach and looked for shells. One day after breakfast, the sky was "
    "dark and the wind was strong. \"Stay inside today,\" said Grandma. But the dog had run out of the door. Mia was "
    "scared of storms. Her heart beat like a drum. She wanted to hide under her blanket. But then she thought, \"Somebody "
    "needs me.\" She took a deep breath and counted to three. Out she went, into the rain. She looked behind the boat. She "
    "looked under the old bridge. There was the dog, wet and cold! Mia took it in her arms and ran home as fast as she "
    "could. Grandma stood at the door with a warm towel.\n\n\"You are so brave!\" said",
]


def weights(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a SafeTensors file of bf16 values, widened: a bf16 is the upper half of a float32."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, tensor in header.items():
        assert tensor["dtype"] == "BF16", f"{name} is {tensor['dtype']}"
        start, end = tensor["data_offsets"]
        halves = np.frombuffer(data[8 + length + start:8 + length + end], "<u2")
        values = (halves.astype("<u4") << 16).view("<f4")
        tensors[name] = values.reshape(tensor["shape"]).astype(np.float64)
    return tensors


class Llama:
    def __init__(self, folder: Path):
        self.config = json.loads((folder / "config.json").read_text())
        assert self.config["tie_word_embeddings"] and self.config["rope_scaling"] is None
        self.tensors = weights(folder / "model.safetensors")

    def norm(self, x: np.ndarray, gain: str) -> np.ndarray:
        scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.config["rms_norm_eps"])
        return x * scale * self.tensors[gain]

    def rotate(self, x: np.ndarray) -> np.ndarray:
        """[heads, tokens, head_dim] turned by position: element i of the first half with element i of the second."""
        half = x.shape[2] // 2
        frequencies = self.config["rope_theta"] ** (-np.arange(half) / half)
        angles = np.arange(x.shape[1])[:, None] * frequencies
        sin, cos = np.sin(angles), np.cos(angles)
        first, second = x[..., :half], x[..., half:]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def attention(self, x: np.ndarray, layer: str) -> np.ndarray:
        config, tokens = self.config, len(x)
        heads, kv_heads, size = (
            config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
        )

        def project(name: str, count: int) -> np.ndarray:
            y = x @ self.tensors[f"{layer}.self_attn.{name}.weight"].T
            return y.reshape(tokens, count, size).transpose(1, 0, 2)

        queries = self.rotate(project("q_proj", heads))
        keys = self.rotate(project("k_proj", kv_heads))
        values = project("v_proj", kv_heads)
        out = np.empty((tokens, heads, size))
        for head in range(heads):
            group = head * kv_heads // heads
            scores = queries[head] @ keys[group].T / np.sqrt(size)
            scores[np.triu_indices(tokens, 1)] = -np.inf
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = shares / shares.sum(axis=1, keepdims=True) @ values[group]
        return out.reshape(tokens, heads * size) @ self.tensors[f"{layer}.self_attn.o_proj.weight"].T

    def feed_forward(self, x: np.ndarray, layer: str) -> np.ndarray:
        gate, up, down = (
            self.tensors[f"{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up", "down")
        )
        gated = x @ gate
        return gated / (1 + np.exp(-gated)) * (x @ up) @ down

    def logits(self, ids: list[int]) -> np.ndarray:
        """Of the token after `ids`: [vocabulary]."""
        table = self.tensors["model.embed_tokens.weight"]
        x = table[ids]
        for number in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{number}"
            x = x + self.attention(self.norm(x, f"{layer}.input_layernorm.weight"), layer)
            x = x + self.feed_forward(self.norm(x, f"{layer}.post_attention_layernorm.weight"), layer)
        return self.norm(x[-1], "model.norm.weight") @ table.T


def record(model: Llama, tokenizer: Tokenizer, prompt: str) -> dict:
    prompt_ids = tokenizer.encode(prompt).ids
    ids, sure = list(prompt_ids), []
    for _ in range(GREEDY):
        logits = model.logits(ids)
        order = np.argsort(-logits, kind="stable")
        if len(ids) == len(prompt_ids):
            top8 = [(int(id), round(float(logits[id]), 6)) for id in order[:8]]
        first, second = logits[order[0]], logits[order[1]]
        logprob = -np.log(np.exp(logits - first).sum())
        # Adding nothing makes a zero of minus zero.
        sure.append((round(float(logprob), 6) + 0.0, round(float(first - second), 6)))
        ids.append(int(order[0]))
    greedy = ids[len(prompt_ids):]
    return {
        "prompt": prompt,
        "prompt_ids": prompt_ids,
        "top8": top8,
        "greedy_ids": greedy,
        "greedy_text": tokenizer.decode(greedy, skip_special_tokens=True),
        "greedy_logprob_and_margin": sure,
    }


def write(name: str, folder: Path):
    model, tokenizer = Llama(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    lines = [
        "    " + json.dumps(record(model, tokenizer, prompt), ensure_ascii=False, separators=(",", ":"))
        for prompt in PROMPTS
    ]
    head = f'  "model": "{name}",\n  "oracle": "make.py: numpy float64",\n'
    text = "{\n" + head + '  "records": [\n' + ",\n".join(lines) + "\n  ]\n}\n"
    json.loads(text)
    (HERE / f"{name}_greedy.json").write_text(text, encoding="utf-8")


write("storyteller", MODELS / "model")
write("storyteller_draft", MODELS / "draft")
