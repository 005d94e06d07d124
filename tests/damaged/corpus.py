#!/usr/bin/env python3
"""Writes the corpus of damaged and made-up checkpoint files beside this script: small files, one trap each.

    python3 corpus.py

A file's folder says which part of a checkpoint it stands for; corpus/expected.json holds a piece of the error that it
must give (or "" for a file that is sound, so that the harness itself is seen to work). Needs nothing but Python.
"""
import copy
import json
import pathlib
import shutil
import struct

HERE = pathlib.Path(__file__).parent / "corpus"
FIXTURE = pathlib.Path(__file__).parent.parent / "fixtures" / "moe" / "checkpoint"
EXPECTED = {}
U64 = 2 ** 64 - 1


def put(kind, name, data, expected):
    assert len(data) < 64_000, name
    path = HERE / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    EXPECTED[f"{kind}/{name}"] = expected


# ---- GGUF ----

def u32(x): return struct.pack("<I", x)
def u64(x): return struct.pack("<Q", x)
def text(x): return u64(len(x.encode())) + x.encode()
def U(x): return u32(4) + u32(x)
def F(x): return u32(6) + struct.pack("<f", x)
def B(x): return u32(7) + bytes([x])
def S(x): return u32(8) + text(x)
def A(tag, items): return u32(9) + u32(tag) + u64(len(items)) + b"".join(items)


WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn|>", "\u2581", "a", "b", "ab"]


def keys(layers=2):
    m = "diffusion-gemma."
    return {
        "general.architecture": S("diffusion-gemma"),
        m + "block_count": U(layers), m + "context_length": U(512), m + "embedding_length": U(32),
        m + "feed_forward_length": U(32), m + "attention.head_count": U(2),
        m + "attention.head_count_kv": A(5, [struct.pack("<i", 1)] * layers),
        m + "attention.key_length": U(16), m + "attention.value_length": U(16),
        m + "attention.key_length_swa": U(16), m + "attention.value_length_swa": U(16),
        m + "attention.sliding_window": U(8), m + "attention.sliding_window_pattern": A(7, [b"\1"] * (layers - 1) + [b"\0"]),
        m + "expert_count": U(2), m + "expert_used_count": U(1), m + "expert_feed_forward_length": U(32),
        m + "attention.layer_norm_rms_epsilon": F(1e-6), m + "rope.freq_base": F(1e6), m + "rope.freq_base_swa": F(1e4),
        "diffusion.canvas_length": U(8),
        "tokenizer.ggml.model": S("gemma4"), "tokenizer.ggml.tokens": A(8, [text(w) for w in WORDS]),
        "tokenizer.ggml.merges": A(8, [text("a b")]), "tokenizer.ggml.bos_token_id": U(2),
        "tokenizer.ggml.eos_token_id": U(1), "tokenizer.ggml.unknown_token_id": U(3),
    }


def tensor(dims, kind=0, data=None, offset=None, count=None):
    """Dimensions innermost first; F32 zeros unless told otherwise."""
    n = 1
    for d in dims:
        n *= d
    data = bytes(4 * n) if data is None else data
    return dict(dims=dims, kind=kind, data=data, offset=offset, count=len(dims) if count is None else count)


def quantized(*dims):
    n = 1
    for d in dims:
        n *= d
    return tensor(list(dims), 8, (struct.pack("<e", 0.01) + bytes(range(1, 33))) * (n // 32))


def small():
    return {"output_norm.weight": tensor([32]), "token_embd.weight": quantized(32, len(WORDS))}


def whole():
    one = lambda n: tensor([n], 0, struct.pack("<f", 1.0) * n)
    t = {"output_norm.weight": one(32), "token_embd.weight": quantized(32, len(WORDS)),
         "self_cond_pre_norm.weight": one(32), "self_cond_gate.weight": quantized(32, 32),
         "self_cond_up.weight": quantized(32, 32), "self_cond_down.weight": quantized(32, 32)}
    for i in range(2):
        b = f"blk.{i}."
        for n in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "pre_ffw_norm_2", "post_ffw_norm_1",
                  "post_ffw_norm_2"):
            t[b + n + ".weight"] = one(32)
        t[b + "attn_q_norm.weight"] = one(16)
        t[b + "attn_k_norm.weight"] = one(16)
        t[b + "layer_output_scale.weight"] = one(1)
        t[b + "enc_layer_output_scale.weight"] = one(1)
        t[b + "attn_q.weight"] = quantized(32, 32)
        t[b + "attn_k.weight"] = quantized(32, 16)
        if i == 0:
            t[b + "attn_v.weight"] = quantized(32, 16)
        t[b + "attn_output.weight"] = quantized(32, 32)
        for n in ("ffn_gate", "ffn_up", "ffn_down"):
            t[b + n + ".weight"] = quantized(32, 32)
        t[b + "ffn_gate_inp.weight"] = tensor([32, 2])
        t[b + "ffn_gate_inp.scale"] = one(32)
        t[b + "ffn_gate_up_exps.weight"] = quantized(32, 64, 2)
        t[b + "ffn_down_exps.weight"] = quantized(32, 32, 2)
        t[b + "ffn_down_exps.scale"] = one(2)
    return t


def gguf(k=None, t=None, version=3, tensors=None, count=None, more=b""):
    k, t = keys() if k is None else k, small() if t is None else t
    k = k.items() if isinstance(k, dict) else k
    t = t.items() if isinstance(t, dict) else t
    out = b"GGUF" + u32(version) + u64(len(t) if tensors is None else tensors) + u64(len(k) if count is None else count)
    for name, value in k:
        out += text(name) + value
    out += more
    at, places = 0, []
    for name, x in t:
        places.append(at)
        out += text(name) + u32(x["count"]) + b"".join(u64(d) for d in x["dims"]) + u32(x["kind"])
        out += u64(at if x["offset"] is None else x["offset"])
        at += -(-len(x["data"]) // 32) * 32
    for (name, x), place in zip(t, places):
        out += bytes(-len(out) % 32)
        out += x["data"]
    return out


def without(d, key):
    return {k: v for k, v in d.items() if k != key}


def gguf_cases():
    def g(name, expected, data):
        put("gguf", name + ".gguf", data, expected)

    m = "diffusion-gemma."
    g("whole", "", gguf(t=whole()))
    g("empty", "not a GGUF file", b"")
    g("another-kind", "not a GGUF file", b"PK\3\4" + bytes(60))
    g("magic-alone", "header", b"GGUF")
    g("version-99", "version 99", gguf(version=99))
    g("big-endian", "big-endian", b"GGUF\0\0\0\3" + bytes(16))
    sound = gguf()
    g("cut-in-a-key", "the file ends", sound[:100])
    g("cut-in-an-array", "the file ends", sound[:sound.index(b"<turn|>")])
    g("cut-in-the-table", "the file ends", sound[:sound.index(b"token_embd") + 12])
    g("cut-in-the-data", "ends behind the end of the file", sound[:-1])
    g("no-data", "ends behind the end of the file", sound[:sound.index(b"token_embd") + 17 + 4 + 16 + 4 + 8])
    for n in (2 ** 32, 2 ** 63, U64):
        g(f"tensors-{n:x}", "are announced", gguf(tensors=n))
        g(f"keys-{n:x}", "are announced", gguf(count=n))
    g("more-keys-than-there-are", "damaged", gguf(count=60_000))
    g("more-tensors-than-there-are", "damaged", gguf(tensors=1_000_000))
    for n in (2 ** 31, 2 ** 63, U64):
        g(f"name-{n:x}-long", "a text of", gguf(k=[], count=1, more=u64(n) + b"name"))
        g(f"text-{n:x}-long", "a text of", gguf(k=[("k", u32(8) + u64(n) + b"text")]))
        g(f"array-{n:x}-long", "an array of", gguf(k=[("k", u32(9) + u32(4) + u64(n) + u32(1))]))
        g(f"texts-{n:x}-long", "an array of", gguf(k=[("k", u32(9) + u32(8) + u64(n) + text("x"))]))
    g("array-of-16-million", "the file ends", gguf(k=[("k", u32(9) + u32(12) + u64(2 ** 24))]))
    g("array-of-arrays", "arrays of arrays", gguf(k=[("k", u32(9) + u32(9) + u64(1) + u32(9) + u32(9) + u64(1))]))
    g("value-type-77", "value type 77", gguf(k=[("k", u32(77))]))
    g("a-key-twice", "occurs twice", gguf(k=[("k", U(1)), ("k", U(2))]))
    g("not-utf-8", "not UTF-8", gguf(k=[("k", u32(8) + u64(2) + b"\xff\xfe")]))
    for n in (0, 3, 2 ** 30):
        g(f"alignment-{n}", "general.alignment", gguf(k=keys() | {"general.alignment": U(n)}))
    g("a-tensor-twice", "occurs twice", gguf(t=list(small().items()) + [("output_norm.weight", tensor([32]))]))
    g("overlap", "overlaps tensor", gguf(t=small() | {"extra": tensor([8], offset=32)}))
    g("dimensions-0", "0 dimensions", gguf(t=small() | {"bad": tensor([], count=0)}))
    g("dimensions-2^31", "dimensions", gguf(t=small() | {"bad": tensor([1], count=2 ** 31)}))
    g("dimension-2^63", "no possible size", gguf(t=small() | {"bad": tensor([2 ** 63], data=b"")}))
    g("dimensions-2^62-each", "no possible size", gguf(t=small() | {"bad": tensor([2 ** 62, 2 ** 62, 4, 4], data=b"")}))
    g("dimension-0", "lacks", gguf(t=small() | {"blk.0.attn_q.weight": tensor([0, 2 ** 63], data=b"")}))
    g("larger-than-the-file", "ends behind the end of the file", gguf(t=small() | {"bad": tensor([2 ** 40], data=b"")}))
    for n in (2 ** 63, 2 ** 64 - 32):
        g(f"offset-{n:x}", "ends behind the end of the file", gguf(t=small() | {"bad": tensor([8], offset=n)}))
    g("offset-unaligned", "not aligned", gguf(t=small() | {"bad": tensor([8], offset=7)}))
    g("type-2^31", "unknown", gguf(t=small() | {"bad": tensor([32], kind=2 ** 31)}))
    g("type-that-was-dropped", "unknown", gguf(t=small() | {"bad": tensor([32], kind=4)}))
    g("rows-no-multiple-of-the-block", "no possible size", gguf(t=small() | {"bad": tensor([33], kind=8, data=bytes(34))}))
    g("iq4-xs", "IQ4_XS", gguf(t=small() | {"blk.0.attn_q.weight": tensor([256, 1], kind=23, data=bytes(136))}))
    g("another-architecture", "architecture is llama", gguf(k=keys() | {"general.architecture": S("llama")}))
    g("architecture-is-a-number", "a text was expected", gguf(k=keys() | {"general.architecture": U(7)}))
    g("one-of-two-parts", "one of 2 parts", gguf(k=keys() | {"split.count": U(2)}))
    g("incomplete", "lacks", gguf())
    g("an-unknown-tensor", "does not have", gguf(t=whole() | {"blk.0.surprise.weight": tensor([2])}))
    g("a-wrong-shape", "has shape", gguf(t=whole() | {"blk.1.attn_k.weight": quantized(32, 32)}))
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
                "attention.head_count_kv", "attention.key_length", "attention.sliding_window", "expert_used_count"):
        g("without-" + key.replace(".", "-"), key, gguf(k=without(keys(), m + key)))
        for n in (0, 2 ** 32 - 1):
            value = A(5, [struct.pack("<I", n)] * 2) if key.endswith("_kv") else U(n)
            g(f"{key.replace('.', '-')}-{n}", "?", gguf(k=keys() | {m + key: value}))
    g("expert-count-2^31", "?", gguf(k=keys() | {m + "expert_count": U(2 ** 31)}))
    g("canvas-0", "canvas_length", gguf(k=keys() | {"diffusion.canvas_length": U(0)}))
    g("canvas-2^32", "?", gguf(k=keys() | {"diffusion.canvas_length": U(2 ** 32 - 1)}))
    g("epsilon-nan", "?", gguf(k=keys() | {m + "attention.layer_norm_rms_epsilon": F(float("nan"))}))
    g("base-infinite", "?", gguf(k=keys() | {m + "rope.freq_base": F(float("inf"))}))
    g("pattern-of-three", "sliding_window_pattern", gguf(k=keys() | {m + "attention.sliding_window_pattern": A(7, [b"\1"] * 3)}))
    g("pattern-period-0", "?", gguf(k=keys() | {m + "attention.sliding_window_pattern": U(0)}))
    t = "tokenizer.ggml."
    g("tokens-of-another-vocabulary", "tokens", gguf(k=keys() | {t + "tokens": A(8, [text("x")] * 4)}))
    g("tokens-that-are-alike", "listed twice", gguf(k=keys() | {t + "tokens": A(8, [text("x")] * 9)}))
    g("tokens-that-are-numbers", "texts", gguf(k=keys() | {t + "tokens": A(4, [u32(1)] * 9)}))
    g("merges-of-nothing", "is no token", gguf(k=keys() | {t + "merges": A(8, [text("x y")])}))
    g("merges-without-a-space", "no space", gguf(k=keys() | {t + "merges": A(8, [text("xy")])}))
    g("types-too-few", "entries for 9 tokens", gguf(k=keys() | {t + "token_type": A(5, [u32(1)])}))
    g("eos-2^32", "token_id", gguf(k=keys() | {t + "eos_token_id": U(2 ** 32 - 1)}))
    g("divisors-of-two", "rope_freqs", gguf(t=small() | {"rope_freqs.weight": tensor([8], data=struct.pack("<8f", *[2.0] * 8))}))
    g("sampling-backwards", "t_min", gguf(k=keys() | {"diffusion.eb_t_min": F(0.9)}))


# ---- safetensors ----

def tensors(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return u64(len(raw) if length is None else length) + raw + data


def one(dtype="F32", shape=(1,), offsets=(0, 4), data=4):
    return tensors({"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}, bytes(data))


def safetensors_cases():
    def s(name, expected, data):
        put("safetensors", name + ".safetensors", data, expected)

    s("nothing-in-it", "lacks", tensors({}))
    s("a-tensor-of-no-model", "does not have", one())
    s("empty", "fewer than the header", b"")
    s("seven-bytes", "fewer than the header", bytes(7))
    for n in (9, 2 ** 24, 2 ** 31, 2 ** 63, U64):
        s(f"header-{n:x}-long", "is announced", tensors({}, length=n))
    s("header-cut", "header", tensors(b'{"w":{"dtype":"F32","sha'))
    s("header-not-json", "header", tensors(b"\x80\3}q\0."))
    s("header-a-list", "header", tensors([1]))
    s("header-of-brackets", "header", tensors(b'{"w":' + b"[" * 2_000))
    s("header-of-metadata-brackets", "header", tensors(b'{"__metadata__":' + b'{"a":' * 1_000))
    s("header-not-utf-8", "header", tensors(b'{"\xff":1}'))
    s("data-cut", "cut short", one(data=3))
    s("data-too-long", "follow the last tensor", one(data=5))
    for n in (2 ** 31, 2 ** 63, U64 - 3):
        s(f"offset-{n:x}", "cut short", one(offsets=(n, n + 4 if n + 4 <= U64 else U64)))
    s("offset-2^64", "header", one(offsets=(0, 2 ** 64)))
    s("offsets-reversed", "is said to lie", one(offsets=(4, 0)))
    s("offset-negative", "tensor w", one(offsets=(-4, 4)))
    s("offset-a-fraction", "tensor w", one(offsets=(0.5, 4)))
    s("shape-2^63", "does not fit", one(shape=(2 ** 63, 2), offsets=(0, 0), data=0))
    s("shape-2^32-twice", "does not fit", one(shape=(2 ** 32, 2 ** 32), offsets=(0, 0), data=0))
    s("shape-negative", "tensor w", one(shape=(-1,)))
    s("shape-too-small", "does not fit", one(shape=(2,)))
    s("nine-dimensions", "9 dimensions", one(shape=(1,) * 9))
    s("dtype-unknown", "F99", one(dtype="F99"))
    s("dtype-a-number", "tensor w", tensors({"w": {"dtype": 1, "shape": [1], "data_offsets": [0, 4]}}, bytes(4)))
    s("dtype-missing", "tensor w", tensors({"w": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)))
    pair = lambda a, b, n: tensors({k: {"dtype": "F32", "shape": [1], "data_offsets": o} for k, o in (("u", a), ("v", b))}, bytes(n))
    s("overlap", "overlaps", pair([0, 4], [2, 6], 6))
    s("the-same-place-twice", "overlaps", pair([0, 4], [0, 4], 4))
    s("gap", "gap", pair([0, 4], [8, 12], 12))
    w = b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    s("a-name-twice", "listed twice", tensors(b"{" + w + b"," + w + b"}", bytes(4)))
    name = "model.decoder.norm.weight"
    s("a-shape-of-another-model", "lacks", tensors({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)))
    s("a-long-name", "does not have", tensors({"x" * 5_000: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)))


# ---- the JSON files ----

def json_cases():
    def j(kind, name, expected, data):
        put(kind, name + ".json", data if isinstance(data, bytes) else json.dumps(data).encode(), expected)

    for kind in ("index", "config", "generation", "tokenizer", "tokenizer_config"):
        j(kind, "cut", "damaged", b'{"a": {"b": [1, 2')
        j(kind, "not-utf-8", "damaged", b'{"a": "\xff\xfe"}')
        j(kind, "brackets", "damaged", b"[" * 2_000)
    for kind in ("index", "config", "generation"):
        j(kind, "empty", "damaged", b"")
        j(kind, "null", "?", None)
        j(kind, "a-list", "?", [1])
        j(kind, "a-number", "?", 7)
    shard = "model-1-of-1.safetensors"
    j("index", "no-map", "weight_map", {})
    j("index", "a-list-of-files", "weight_map", {"weight_map": [shard]})
    j("index", "a-number-for-a-file", "weight_map.a", {"weight_map": {"a": 7}})
    j("index", "a-file-that-is-not-there", "has no " + shard, {"weight_map": {"a": shard}})
    for i, name in enumerate(["../config.json", "/etc/passwd", "a/b", "", ".", "..", "c:\\x", "a\0b"]):
        j("index", f"a-file-elsewhere-{i}", "no plain file name", {"weight_map": {"a": name}})
    j("index", "a-tensor-that-is-not-there", "and it is not", {"weight_map": {"a": "model.safetensors"}})

    sound = json.loads((FIXTURE / "config.json").read_text())
    j("config", "sound", "", sound)

    def c(name, expected, change):
        new = copy.deepcopy(sound)
        change(new, new["text_config"])
        j("config", name, expected, new)

    def of(where, key, value):
        def change(top, inner):
            (inner if where == "text" else top)[key] = value
        return change

    for key in ("num_attention_heads", "num_key_value_heads", "num_global_key_value_heads", "num_hidden_layers", "hidden_size",
                "intermediate_size", "head_dim", "global_head_dim", "vocab_size", "sliding_window", "num_experts",
                "top_k_experts", "moe_intermediate_size", "max_position_embeddings"):
        # Other values are tried by the property tests.
        for label, value in (("zero", 0), ("2^31", 2 ** 31), ("2^63", 2 ** 63)):
            expected = "?" if label == "2^31" else key
            c(f"{key}-{label}", expected, of("text", key, value))
    for label, value in (("zero", 0), ("2^40", 2 ** 40), ("negative", -8)):
        c(f"canvas-{label}", "canvas_length", of("top", "canvas_length", value))
    c("heads-no-multiple", "num_attention_heads", of("text", "num_attention_heads", 3))
    c("head-dim-odd", "head", of("text", "head_dim", 15))
    c("more-experts-used-than-there-are", "top_k_experts", of("text", "top_k_experts", 5))
    c("another-width", "has shape", of("text", "hidden_size", 64))
    c("layers-of-another-kind", "layer_types", of("text", "layer_types", ["linear_attention"] * 6))
    c("layers-too-few", "layer_types", of("text", "layer_types", ["full_attention"]))
    c("layers-a-text", "layer_types", of("text", "layer_types", "full_attention"))
    c("epsilon-negative", "rms_norm_eps", of("text", "rms_norm_eps", -1))
    c("softcap-zero", "final_logit_softcapping", of("text", "final_logit_softcapping", 0))
    c("rotation-unknown", "rope_type", of("text", "rope_parameters", {"sliding_attention": {"rope_type": "spiral", "rope_theta": 1e4}, "full_attention": {"rope_type": "default", "rope_theta": 1e4}}))
    c("rotation-a-number", "rope_parameters", of("text", "rope_parameters", 3))
    c("theta-infinite", "rope_theta", of("text", "rope_parameters", {"sliding_attention": {"rope_theta": 1e300}, "full_attention": {"rope_theta": 1e4}}))
    c("no-text-part", "text_config", lambda top, inner: top.pop("text_config"))
    c("text-part-a-list", "text_config", of("top", "text_config", []))
    c("another-model", "model_type", of("top", "model_type", "llama"))
    layer = {"head_dim": 32, "num_key_value_heads": 1}
    c("a-layer-that-is-not-there", "per_layer_config", of("text", "per_layer_config", {"999999999999": layer}))
    c("a-layer-without-heads", "num_key_value_heads", of("text", "per_layer_config", {"5": {"head_dim": 32, "num_key_value_heads": 0}}))
    c("a-layer-with-a-secret", "surprise", of("text", "per_layer_config", {"5": dict(layer, surprise=1)}))
    c("fp8", "compressed-tensors", of("top", "quantization_config", {"quant_method": "compressed-tensors", "format": "float-quantized"}))
    c("nvfp4", "NVFP4", of("top", "quantization_config", {"quant_method": "modelopt", "quant_algo": "NVFP4"}))

    for name, expected, value in (
            ("steps-zero", "max_denoising_steps", {"max_denoising_steps": 0}),
            ("steps-2^63", "max_denoising_steps", {"max_denoising_steps": 2 ** 63}),
            ("temperatures-reversed", "t_min", {"t_min": 1, "t_max": 0.5}),
            ("temperature-1e300", "t_max", {"t_max": 1e300}),
            ("bound-negative", "entropy_bound", {"sampler_config": {"entropy_bound": -1}}),
            ("another-sampler", "_cls_name", {"sampler_config": {"_cls_name": "Other"}}),
            ("end-token-2^63", "eos_token_id", {"eos_token_id": [2 ** 63]}),
            ("end-token-outside", "eos_token_id", {"eos_token_id": 420})):
        j("generation", name, expected, value)

    sound = json.loads((FIXTURE / "tokenizer.json").read_text())

    def t(name, expected, change):
        new = copy.deepcopy(sound)
        change(new)
        j("tokenizer", name, expected, new)

    j("tokenizer", "sound", "", sound)
    j("tokenizer", "no-object", "tokenizer", b"7")
    j("tokenizer", "no-model", "tokenizer", {k: v for k, v in sound.items() if k != "model"})
    t("another-model", "tokenizer", lambda new: new["model"].update(type="Spell"))
    t("merges-of-nothing", "tokenizer", lambda new: new["model"].update(merges=[["no-such", "tokens"]]))
    t("merges-of-three", "tokenizer", lambda new: new["model"].update(merges=[["a", "b", "c"]]))
    t("ids-2^32", "tokenizer", lambda new: new["model"]["vocab"].update(x=2 ** 32))
    t("ids-negative", "tokenizer", lambda new: new["model"]["vocab"].update(x=-1))
    t("id-2^32-1", "?", lambda new: new["model"]["vocab"].update(x=2 ** 32 - 1))
    t("added-id-2^32-1", "?", lambda new: new["added_tokens"][0].update(id=2 ** 32 - 1))
    t("an-expression-that-is-none", "tokenizer", lambda new: new.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}))
    t("no-vocabulary", "?", lambda new: new["model"].update(vocab={}, merges=[]))

    j("tokenizer_config", "template-a-number", "chat_template", {"chat_template": 1})
    j("tokenizer_config", "template-unnamed", "chat_template", {"chat_template": [{"name": "tool", "template": "x"}]})
    j("tokenizer_config", "bos-a-number", "bos_token", {"bos_token": 7})


shutil.rmtree(HERE, ignore_errors=True)
gguf_cases()
safetensors_cases()
json_cases()
(HERE / "expected.json").write_text(json.dumps(EXPECTED, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
print(len(EXPECTED), "files,", sum(p.stat().st_size for p in HERE.rglob("*") if p.is_file()), "bytes")
