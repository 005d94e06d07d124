"""GGUF files as others see them: what the program writes is read by the format's own Python package, and what that package
writes is read by the program."""

import json
import struct

import gguf
import numpy as np
import pytest
from gguf import quants

from conftest import ROOT, canvasd

DEMO = ROOT / "models" / "demo"
TYPES = gguf.GGMLQuantizationType

LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "layer_scalar": "layer_output_scale.weight",
}
GLOBAL = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "self_conditioning.pre_norm.weight": "self_cond_pre_norm.weight",
    "self_conditioning.gate_proj.weight": "self_cond_gate.weight",
    "self_conditioning.up_proj.weight": "self_cond_up.weight",
    "self_conditioning.down_proj.weight": "self_cond_down.weight",
}
# Squared error over squared size that a type may add to bell-shaped weights: each bit quarters it.
LOSS = {
    "F32": 0, "F16": 1e-6, "BF16": 0, "Q8_0": 5e-5, "Q6_K": 7e-4, "Q5_K": 2.5e-3, "Q5_1": 2.5e-3, "Q5_0": 2.5e-3, "Q4_K": 1e-2,
    "Q4_0": 1e-2,
}


def gguf_name(hub):
    if hub.startswith("model.encoder.language_model.layers."):
        return f"blk.{hub.split('.')[4]}.enc_layer_output_scale.weight"
    rest = hub.removeprefix("model.decoder.")
    if not rest.startswith("layers."):
        return GLOBAL.get(rest)
    _, layer, part = rest.split(".", 2)
    return f"blk.{layer}.{LAYER[part]}"


def read_safetensors(path):
    """Tensors by name, bf16 widened."""
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    header, found = json.loads(data[8:8 + length]), {}
    for name, record in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + at for at in record["data_offsets"])
        assert record["dtype"] == "BF16"
        raw = np.frombuffer(data[start:end], np.uint16).astype(np.uint32) << 16
        found[name] = raw.view(np.float32).reshape(record["shape"])
    return found


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, values in tensors.items():
        raw = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def cut_tokenizer(size):
    """The demo's tokenizer with the first `size` tokens alone, and the merges that make one of them."""
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    model = tokenizer["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < size}
    model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= model["vocab"].keys()]
    return tokenizer


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint whose rows are multiples of 256 long, so that every block type fits; bell-shaped weights."""
    folder = tmp_path_factory.mktemp("wide")
    info = json.loads((ROOT / "tests/fixtures/blocks/reference.json").read_text())
    (folder / "config.json").write_text(json.dumps(info["config"]))
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())
    (folder / "tokenizer.json").write_text(json.dumps(cut_tokenizer(info["config"]["text_config"]["vocab_size"])))
    rng = np.random.default_rng(7)
    tensors = {name: rng.standard_normal(shape, np.float32) * 0.05 for name, shape in info["shapes"].items()}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize("scheme", ["q8_0", "q6_k", "q5_k_m", "q5_k", "q4_k_m", "q4_k", "q5_0", "q4_0"])
def test_what_is_written_is_read_by_the_package(wide, tmp_path, scheme):
    out = tmp_path / "out.gguf"
    run = canvasd("quantize", str(wide), str(out), "--type", scheme)
    assert run.returncode == 0, run.stderr
    source = {gguf_name(name): values for name, values in read_safetensors(wide / "model.safetensors").items()}
    reader, seen = gguf.GGUFReader(out), set()
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        wanted = source.pop(tensor.name)
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        assert values.shape == wanted.shape, tensor.name
        loss = float(np.square(values - wanted).sum() / np.square(wanted).sum())
        kind = TYPES(tensor.tensor_type).name
        seen.add(kind)
        assert loss <= LOSS[kind], f"{tensor.name} as {kind}: {loss}"
    assert not source, "every tensor is in the file"
    assert {"F32", scheme.upper().removesuffix("_M")} <= seen, seen
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType[
        {"q5_k": "MOSTLY_Q5_K_S", "q4_k": "MOSTLY_Q4_K_S"}.get(scheme, f"MOSTLY_{scheme.upper()}")]


def test_keys_tokens_and_template(tmp_path):
    out = tmp_path / "demo.gguf"
    assert canvasd("quantize", str(DEMO), str(out), "--type", "q8_0").returncode == 0
    fields = gguf.GGUFReader(out).fields
    value = lambda key: fields[key].contents()
    config = json.loads((DEMO / "config.json").read_text())
    text = config["text_config"]
    assert value("general.architecture") == "diffusion-gemma"
    assert value("diffusion-gemma.block_count") == text["num_hidden_layers"]
    assert value("diffusion-gemma.embedding_length") == text["hidden_size"]
    pattern = [kind == "sliding_attention" for kind in text["layer_types"]]
    assert value("diffusion-gemma.attention.sliding_window_pattern") == pattern
    assert value("diffusion.canvas_length") == config["canvas_length"]
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    tokens = value("tokenizer.ggml.tokens")
    assert len(tokens) == text["vocab_size"]
    assert all(tokens[id] == token for token, id in tokenizer["model"]["vocab"].items())
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    assert value("tokenizer.ggml.merges") == merges
    assert tokens[value("tokenizer.ggml.bos_token_id")] == "<bos>"
    assert value("tokenizer.chat_template") == (DEMO / "chat_template.jinja").read_text()


def written(path, kind):
    """The demo as GGUF, written by the package alone."""
    config = json.loads((DEMO / "config.json").read_text())
    text, arch = config["text_config"], "diffusion-gemma"
    layers = text["layer_types"]
    own = [text["per_layer_config"].get(str(i), {}) for i in range(len(layers))]
    swa = [layer == "sliding_attention" for layer in layers]
    full = layers.index("full_attention")
    writer = gguf.GGUFWriter(path, arch)
    key = lambda name: f"{arch}.{name}"
    for name, number in {
        "block_count": len(layers), "context_length": text["max_position_embeddings"],
        "embedding_length": text["hidden_size"], "feed_forward_length": text["intermediate_size"],
        "attention.head_count": text["num_attention_heads"], "expert_count": text["num_experts"],
        "expert_used_count": text["top_k_experts"], "expert_feed_forward_length": text["moe_intermediate_size"],
        "attention.key_length": own[full]["head_dim"], "attention.value_length": own[full]["head_dim"],
        "attention.key_length_swa": text["head_dim"], "attention.value_length_swa": text["head_dim"],
        "attention.sliding_window": text["sliding_window"],
    }.items():
        writer.add_uint32(key(name), number)
    kv = [layer.get("num_key_value_heads", text["num_key_value_heads"]) for layer in own]
    writer.add_array(key("attention.head_count_kv"), kv)
    writer.add_array(key("attention.sliding_window_pattern"), swa)
    writer.add_float32(key("attention.layer_norm_rms_epsilon"), text["rms_norm_eps"])
    writer.add_float32(key("rope.freq_base"), text["rope_parameters"]["full_attention"]["rope_theta"])
    writer.add_float32(key("rope.freq_base_swa"), text["rope_parameters"]["sliding_attention"]["rope_theta"])
    writer.add_float32(key("final_logit_softcapping"), 30.0)
    writer.add_bool(key("attention.causal"), False)
    writer.add_uint32("diffusion.canvas_length", config["canvas_length"])
    generation = json.loads((DEMO / "generation_config.json").read_text())
    writer.add_uint32("diffusion.eb_max_steps", generation["max_denoising_steps"])
    writer.add_uint32("diffusion.eb_stability_threshold", generation["stability_threshold"])
    for name in ("t_min", "t_max", "confidence_threshold"):
        writer.add_float32(f"diffusion.eb_{name}", generation[name])
    writer.add_float32("diffusion.eb_entropy_bound", generation["sampler_config"]["entropy_bound"])
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    tokens = [f"<unused_{i}>" for i in range(text["vocab_size"])]
    for token, id in tokenizer["model"]["vocab"].items():
        tokens[id] = token
    for token in tokenizer["added_tokens"]:
        tokens[token["id"]] = token["content"]
    kinds = [3 if i in special else 6 if len(t) == 6 and t.startswith("<0x") else 1 for i, t in enumerate(tokens)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(tokens)
    writer.add_token_scores([-1000.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for name in ("bos", "eos", "unk", "pad"):
        getattr(writer, f"add_{name}_token_id")(tokens.index(f"<{name}>"))
    writer.add_chat_template((DEMO / "chat_template.jinja").read_text())
    half = own[full]["head_dim"] // 2
    rotating = int(half * text["rope_parameters"]["full_attention"]["partial_rotary_factor"])
    writer.add_tensor("rope_freqs.weight", np.array([1.0] * rotating + [1e30] * (half - rotating), np.float32))
    for hub, values in read_safetensors(DEMO / "model.safetensors").items():
        name = gguf_name(hub)
        if name is None:
            continue
        matrix = values.ndim > 1 and "gate_inp" not in name
        if matrix and kind != TYPES.F32:
            writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_what_the_package_writes_is_read(tmp_path, kind):
    path = tmp_path / "demo.gguf"
    written(path, TYPES[kind])
    described = canvasd("inspect", str(path))
    assert described.returncode == 0, described.stderr
    assert f"\n  {kind} " in described.stdout and "it can be served here" in described.stdout, described.stdout
    question = ["generate", "What is the capital of France?", "--seed", "1", "--max-tokens", "40"]
    answer = canvasd(*question, "--model", str(path))
    assert answer.returncode == 0, answer.stderr
    own = canvasd(*question).stdout
    if kind in ("F32", "BF16"):
        assert answer.stdout == own, "the same numbers give the same text"
    elif kind in ("F16", "Q8_0"):
        assert "Paris" in answer.stdout
    else:
        assert answer.stdout.strip(), "few bits may cost this small model its knowledge, not its speech"
