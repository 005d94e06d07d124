"""The model of the demo checkpoint: its shape, its first weights, its export, and a lean forward pass for training over the weights of
transformers' DiffusionGemmaForBlockDiffusion.  check.py compares that forward pass with the library's own.

Differences from the library's forward: several short conversations and their canvases are packed into one row (one mask says who sees whom,
positions restart per conversation), weights are cast once per step, and all experts are evaluated (those not selected get the weight 0)."""
import copy
import json
import math
import os
import shutil

import torch
import torch.nn.functional as F
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DiffusionGemmaTextConfig
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

HERE = os.path.dirname(os.path.abspath(__file__))
TOKENIZER = os.path.join(HERE, "../models/demo/tokenizer.json")       # the one that ships: made by the first run, from the sentences of its day


def make_config(tok, d=192, layers=6, heads=6, kv=2, hd=32, ghd=64, gkv=1, inter=384, experts=4, top_k=2, moe=96, canvas=64, window=128, context=8192):
    """Every third layer and the last one are full attention (the library demands it for the last)."""
    types = ["full_attention" if i % 3 == 2 or i == layers - 1 else "sliding_attention" for i in range(layers)]
    text = DiffusionGemmaTextConfig(
        vocab_size=tok.get_vocab_size(), hidden_size=d, intermediate_size=inter, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=hd, global_head_dim=ghd, num_global_key_value_heads=gkv, max_position_embeddings=context,
        sliding_window=window, layer_types=types, num_experts=experts, top_k_experts=top_k, moe_intermediate_size=moe,
        pad_token_id=0, eos_token_id=1, bos_token_id=2)
    vision = Gemma4VisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
                                num_key_value_heads=1, head_dim=16, position_embedding_size=64)  # always built, so keep it tiny
    id_of = tok.token_to_id
    return DiffusionGemmaConfig(text_config=text, vision_config=vision, boi_token_id=id_of("<|image>"), image_token_id=id_of("<|image|>"),
                                eoi_token_id=id_of("<image|>"), canvas_length=canvas)


def make_model(cfg, seed=0):
    torch.manual_seed(seed)
    model = DiffusionGemmaForBlockDiffusion(cfg)
    n, d, dec = cfg.text_config.num_hidden_layers, cfg.text_config.hidden_size, model.model.decoder
    with torch.no_grad():
        dec.embed_tokens.weight.normal_(0, d ** -0.5)            # times sqrt(d) at the input: unit rms; unit-variance logits
        for layer in dec.layers:
            for name, p in layer.named_parameters():
                if p.dim() >= 2:
                    p.normal_(0, 0.02 if "router" in name else p.shape[-1] ** -0.5)
            hd = layer.self_attn.head_dim                        # the library's attention scale is 1.0: put 1/sqrt(hd) in here
            layer.self_attn.q_norm.weight.fill_(hd ** -0.25)
            layer.self_attn.k_norm.weight.fill_(hd ** -0.25)
            layer.post_attention_layernorm.weight.fill_((2 * n) ** -0.5)
            layer.post_feedforward_layernorm.weight.fill_((2 * n) ** -0.5)
        for p in dec.self_conditioning.parameters():
            if p.dim() == 2:
                p.normal_(0, p.shape[-1] ** -0.5)
        dec.self_conditioning.down_proj.weight.mul_(0.5)
    return model


def circle_numbers(embedding, tok, largest, seed=0):
    """Number n starts as a set of points (cos wn, sin wn): cos w(a+b) is a sum of products of these, so that one gated MLP can add and
    subtract, and the tied head reads the result off as the nearest number."""
    d = embedding.shape[1]
    turns = torch.tensor([1, 3, 7, 13, 20, 29, 40, 53, 67, 80, 93]) * 2 * math.pi / 200
    angle = torch.arange(largest + 1)[:, None] * turns
    points = torch.cat((angle.cos(), angle.sin()), 1)
    axes = torch.linalg.qr(torch.randn(d, points.shape[1], generator=torch.Generator().manual_seed(seed)))[0]
    rows = points / len(turns) ** 0.5 @ axes.T
    with torch.no_grad():
        for n in range(largest + 1):
            embedding[tok.token_to_id(str(n))] = rows[n]


def load(folder):
    """The model of an exported folder, with its weights in f32."""
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.float32)
    for config in (model.config, model.config.text_config, model.config.vision_config):      # how they were loaded is nothing that an export should tell
        config.dtype = None
    return model


def export(model, tok, out):
    """Hugging Face folder: bf16 weights, tokenizer, chat template, generation_config.json with the released sampler defaults."""
    os.makedirs(out, exist_ok=True)
    copy.deepcopy(model).to("cpu", torch.bfloat16).save_pretrained(out)
    tok.save(os.path.join(out, "tokenizer.json"))
    shutil.copy(os.path.join(HERE, "chat_template.jinja"), out)
    id_of = tok.token_to_id

    def put(name, obj):
        with open(os.path.join(out, name), "w") as f:
            f.write(json.dumps(obj, indent=1) + "\n")
    put("generation_config.json", dict(
        _from_model_config=False, max_new_tokens=512, max_denoising_steps=48,
        sampler_config=dict(_cls_name="EntropyBoundSamplerConfig", entropy_bound=0.1), t_min=0.4, t_max=0.8,
        stability_threshold=1, confidence_threshold=0.005, bos_token_id=2, eos_token_id=[1, id_of("<turn|>"), id_of("<|tool_response>")], pad_token_id=0))
    put("tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=model.config.text_config.max_position_embeddings, clean_up_tokenization_spaces=False))


def rms(x, w=None, eps=1e-6):
    return F.rms_norm(x, (x.shape[-1],), w, eps)


def block(x, p, cos, sin, mask, heads, top_k, first):
    """One layer over [B, T, d]; p: its weights by name.  Tokens before `first` are only looked at, not carried on (the last layer needs no more of the
    prompt).  Also returns the router's probabilities."""
    W = lambda n: p[n + ".weight"]
    B, T, d = x.shape
    hd = W("self_attn.q_norm").shape[0]
    h = rms(x, W("input_layernorm"))
    x, mask = x[:, first:], mask[:, :, first:]
    S = T - first
    q, k = F.linear(h[:, first:], W("self_attn.q_proj")).view(B, S, heads, hd), F.linear(h, W("self_attn.k_proj")).view(B, T, -1, hd)
    v = F.linear(h, W("self_attn.v_proj")).view(B, T, -1, hd) if "self_attn.v_proj.weight" in p else k       # full layers: v = raw k
    q, k = rms(q, W("self_attn.q_norm")).transpose(1, 2), rms(k, W("self_attn.k_norm")).transpose(1, 2)
    v = rms(v).transpose(1, 2)
    rot = lambda z, c, s: z * c + torch.cat((-z[..., hd // 2:], z[..., :hd // 2]), -1) * s
    q, k = rot(q, cos[:, :, first:], sin[:, :, first:]), rot(k, cos, sin)
    g = heads // k.shape[1]
    # written out: the library's fused attention is slow on a CPU when it has a mask
    kv = k.shape[1]
    a = torch.matmul(q.reshape(B, kv, g * S, hd), k.transpose(2, 3)).view(B, heads, S, T).float() + mask
    a = torch.matmul(a.softmax(-1).to(v.dtype).view(B, kv, g * S, T), v).view(B, heads, S, hd)
    x = x + rms(F.linear(a.transpose(1, 2).reshape(B, S, heads * hd), W("self_attn.o_proj")), W("post_attention_layernorm"))
    h = rms(x, W("pre_feedforward_layernorm"))
    dense = F.linear(F.gelu(F.linear(h, W("mlp.gate_proj")), approximate="tanh") * F.linear(h, W("mlp.up_proj")), W("mlp.down_proj"))
    E, _, I = p["experts.down_proj"].shape
    s = F.linear(rms(x) * p["router.scale"] * d ** -0.5, W("router.proj")).float().softmax(-1)
    tv, ti = s.topk(top_k, -1)
    gate = torch.zeros_like(s).scatter(-1, ti, tv / tv.sum(-1, keepdim=True)) * p["router.per_expert_scale"]
    gu = F.linear(rms(x, W("pre_feedforward_layernorm_2")), p["experts.gate_up_proj"].reshape(E * 2 * I, d)).view(B, S, E, 2, I)
    z = F.gelu(gu[..., 0, :], approximate="tanh") * gu[..., 1, :] * gate.to(x.dtype).unsqueeze(-1)
    moe = F.linear(z.reshape(B, S, E * I), p["experts.down_proj"].transpose(0, 1).reshape(d, E * I))
    ff = rms(dense, W("post_feedforward_layernorm_1")) + rms(moe, W("post_feedforward_layernorm_2"))
    return x + rms(ff, W("post_feedforward_layernorm")), s


def soft_embedding(sc, emb, p):
    """What self-conditioning adds to the canvas' embedding: the gated MLP over the expected embedding of an earlier guess."""
    n = rms((sc.float().softmax(-1).to(emb.dtype) @ emb) * emb.shape[1] ** 0.5, p["pre_norm.weight"])
    return F.linear(F.gelu(F.linear(n, p["gate_proj.weight"]), approximate="tanh") * F.linear(n, p["up_proj.weight"]), p["down_proj.weight"])


def logits(x, norm, emb):
    return 30.0 * torch.tanh(F.linear(rms(x, norm), emb).float() / 30.0)


class Lean:
    """A packed batch: prompts ids/pos/seg are [R, T] (seg -1 = padding); canvases [R, K, C] with cseg/start [R, K]: canvas k of a row sees the
    prompt tokens of its own segment before `start` (the last window - 1 of them in sliding layers), and itself."""

    def __init__(self, model, dtype=torch.bfloat16, compiled=False):
        self.model, self.dt, self.c = model, dtype, model.config.text_config
        self.named = dict(model.model.decoder.named_parameters())    # shared with the encoder and the head (tied)
        self.types, self._rope = self.c.layer_types, None
        self.block = torch.compile(block, dynamic=False) if compiled else block      # the rest is a few large products: not worth its compile time

    def weights(self):
        return {k: v.to(self.dt) for k, v in self.named.items()}

    def rope(self, pos):
        if self._rope is None:
            rot, p = self.model.model.decoder.rotary_emb, torch.arange(self.c.max_position_embeddings, device=pos.device)[None]
            self._rope = {t: tuple(a[0].to(self.dt) for a in rot(torch.zeros(1, device=pos.device), p, t)) for t in set(self.types)}
        return {t: (c[pos].unsqueeze(1), s[pos].unsqueeze(1)) for t, (c, s) in self._rope.items()}

    def masks(self, pos, seg, cseg, start, C):
        """Additive masks [R, 1, L, L] over prompt tokens and then canvases, per kind of layer."""
        R, T = pos.shape
        K, out = cseg.shape[1], {}
        which = torch.arange(K, device=pos.device).repeat_interleave(C)
        own = (which[:, None] == which[None, :]).expand(R, -1, -1)
        same = seg[:, :, None] == seg[:, None, :]
        gap = pos[:, :, None] - pos[:, None, :]
        cgap = start[:, :, None] - pos[:, None, :]                   # from the canvas' first position back to a prompt token
        csame = cseg[:, :, None] == seg[:, None, :]
        for t in set(self.types):
            w = self.c.sliding_window if t == "sliding_attention" else 1 << 30
            top = torch.cat((same & (gap >= 0) & (gap < w), own.new_zeros(R, T, K * C)), 2)
            low = torch.cat(((csame & (cgap > 0) & (cgap < w)).repeat_interleave(C, 1), own), 2)
            see = torch.cat((top, low), 1)[:, None]
            out[t] = torch.zeros(see.shape, device=pos.device).masked_fill_(~see, -1e9)
        return out

    def forward(self, w, ids, pos, seg, canvas, cseg, start, sc=None):
        """Logits [R*K, C, V] and the router's probabilities per layer."""
        R, K, C = canvas.shape
        T, emb, sd = ids.shape[1], w["embed_tokens.weight"], self.c.hidden_size ** 0.5
        x = F.embedding(canvas.reshape(R, K * C), emb) * sd
        if sc is not None:                                           # self-conditioning on an earlier guess, for the rows that have one
            P = "self_conditioning."
            add = soft_embedding(sc.reshape(-1, K * C, sc.shape[-1]), emb, {k[len(P):]: v for k, v in w.items() if k.startswith(P)})
            x = x + torch.cat((add, add.new_zeros(R - add.shape[0], *add.shape[1:])))
        x = torch.cat((F.embedding(ids, emb) * sd, rms(x)), 1)
        at = (start[:, :, None] + torch.arange(C, device=ids.device)).reshape(R, K * C)
        rope, masks, route = self.rope(torch.cat((pos, at), 1)), self.masks(pos, seg, cseg, start, C), []
        run = self.block if torch.is_grad_enabled() else block
        for i, t in enumerate(self.types):
            pre = f"layers.{i}."
            x, s = run(x, {k[len(pre):]: v for k, v in w.items() if k.startswith(pre)}, *rope[t], masks[t], self.c.num_attention_heads, self.c.top_k_experts,
                       T if i == len(self.types) - 1 else 0)
            route.append(s)
        return logits(x, w["norm.weight"], emb).reshape(R * K, C, -1), route


def check():
    """Two prompts packed into one row, one of them longer than the window, against the library one by one."""
    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(TOKENIZER)
    m = make_model(make_config(tok, d=96, layers=3, window=16)).float().eval()
    lean, V = Lean(m, torch.float32), tok.get_vocab_size()
    a, b = torch.randint(20, V, (1, 37)), torch.randint(20, V, (1, 9))
    canvas, sc = torch.randint(0, V, (2, 1, 64)), torch.randn(2, 64, V) * 3
    with torch.no_grad():
        ref = torch.cat([m(input_ids=x, decoder_input_ids=canvas[i], self_conditioning_logits=sc[i:i + 1]).logits for i, x in enumerate((a, b))])
        ids = torch.cat((a, b, torch.zeros(1, 4, dtype=torch.long)), 1)
        pos = torch.cat((torch.arange(37), torch.arange(9), torch.zeros(4, dtype=torch.long)))[None]
        seg = torch.tensor([0] * 37 + [1] * 9 + [-1] * 4)[None]
        z, _ = lean.forward(lean.weights(), ids, pos, seg, canvas.view(1, 2, 64), torch.tensor([[0, 1]]), torch.tensor([[37, 9]]), sc)
    print("largest difference from transformers:", (ref - z).abs().max().item(), "logits' deviation", ref.std().item())
    assert (ref - z).abs().max() < 1e-3


