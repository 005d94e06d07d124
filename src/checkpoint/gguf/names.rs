//! GGUF's tensor names and the hub's.

use crate::model::EMBEDDING;

/// `(hub, GGUF)` of tensors outside the layers.
const GLOBAL: &[(&str, &str)] = &[
    (EMBEDDING, "token_embd.weight"),
    ("model.decoder.norm.weight", "output_norm.weight"),
    ("model.decoder.self_conditioning.pre_norm.weight", "self_cond_pre_norm.weight"),
    ("model.decoder.self_conditioning.gate_proj.weight", "self_cond_gate.weight"),
    ("model.decoder.self_conditioning.up_proj.weight", "self_cond_up.weight"),
    ("model.decoder.self_conditioning.down_proj.weight", "self_cond_down.weight"),
    ("lm_head.weight", "output.weight"),
];

/// `(hub, GGUF)` behind `model.decoder.layers.N.` and `blk.N.`.
const LAYER: &[(&str, &str)] = &[
    ("input_layernorm.weight", "attn_norm.weight"),
    ("self_attn.q_proj.weight", "attn_q.weight"),
    ("self_attn.k_proj.weight", "attn_k.weight"),
    ("self_attn.v_proj.weight", "attn_v.weight"),
    ("self_attn.o_proj.weight", "attn_output.weight"),
    ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    ("self_attn.k_norm.weight", "attn_k_norm.weight"),
    ("post_attention_layernorm.weight", "post_attention_norm.weight"),
    ("pre_feedforward_layernorm.weight", "ffn_norm.weight"),
    ("mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp.down_proj.weight", "ffn_down.weight"),
    ("post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
    ("post_feedforward_layernorm_1.weight", "post_ffw_norm_1.weight"),
    ("pre_feedforward_layernorm_2.weight", "pre_ffw_norm_2.weight"),
    ("post_feedforward_layernorm_2.weight", "post_ffw_norm_2.weight"),
    ("router.proj.weight", "ffn_gate_inp.weight"),
    ("router.scale", "ffn_gate_inp.scale"),
    ("router.per_expert_scale", "ffn_down_exps.scale"),
    ("experts.gate_up_proj", "ffn_gate_up_exps.weight"),
    ("experts.down_proj", "ffn_down_exps.weight"),
    ("layer_scalar", "layer_output_scale.weight"),
];

/// The layers' scalar for prompt rows is the one tensor that the hub keeps apart from the others of its layer.
const ENCODER_SCALAR: (&str, &str) = ("layer_scalar", "enc_layer_output_scale.weight");

/// Divisors of the rotation's angles: part of the configuration on the hub, a tensor in GGUF.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

const HUB_LAYERS: &str = "model.decoder.layers.";
const HUB_ENCODER: &str = "model.encoder.language_model.layers.";

/// The hub's name of a GGUF tensor; `None` for a tensor that the model does not have.
pub(crate) fn to_hub(gguf: &str) -> Option<String> {
    if let Some((hub, _)) = GLOBAL.iter().find(|(_, name)| *name == gguf) {
        return Some((*hub).to_owned());
    }
    let (layer, suffix) = numbered(gguf.strip_prefix("blk.")?)?;
    if suffix == ENCODER_SCALAR.1 {
        return Some(format!("{HUB_ENCODER}{layer}.{}", ENCODER_SCALAR.0));
    }
    let (hub, _) = LAYER.iter().find(|(_, name)| *name == suffix)?;
    Some(format!("{HUB_LAYERS}{layer}.{hub}"))
}

/// The GGUF name of a hub tensor; `None` for a tensor that GGUF files of this model do not hold.
pub(crate) fn to_gguf(hub: &str) -> Option<String> {
    if let Some((_, gguf)) = GLOBAL.iter().find(|(name, _)| *name == hub) {
        return Some((*gguf).to_owned());
    }
    if let Some((layer, suffix)) = hub.strip_prefix(HUB_ENCODER).and_then(numbered) {
        return (suffix == ENCODER_SCALAR.0).then(|| format!("blk.{layer}.{}", ENCODER_SCALAR.1));
    }
    let (layer, suffix) = numbered(hub.strip_prefix(HUB_LAYERS)?)?;
    let (_, gguf) = LAYER.iter().find(|(name, _)| *name == suffix)?;
    Some(format!("blk.{layer}.{gguf}"))
}

/// `12.rest` as `(12, "rest")`; only the plain spelling of a number, so that names stay one-to-one.
fn numbered(text: &str) -> Option<(u32, &str)> {
    let (number, rest) = text.split_once('.')?;
    let layer: u32 = number.parse().ok()?;
    (layer.to_string() == number).then_some((layer, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        let layer = LAYER.iter().map(|(hub, gguf)| (format!("{HUB_LAYERS}7.{hub}"), format!("blk.7.{gguf}")));
        let global = GLOBAL.iter().map(|(hub, gguf)| ((*hub).to_owned(), (*gguf).to_owned()));
        let scalar = [(format!("{HUB_ENCODER}29.layer_scalar"), "blk.29.enc_layer_output_scale.weight".to_owned())];
        for (hub, gguf) in layer.chain(global).chain(scalar) {
            assert_eq!(to_hub(&gguf).as_deref(), Some(hub.as_str()));
            assert_eq!(to_gguf(&hub).as_deref(), Some(gguf.as_str()));
        }
        for name in ["blk.07.attn_q.weight", "blk.x.attn_q.weight", "blk.", "blk.7", "attn_q.weight", "v.patch", ""] {
            assert_eq!(to_hub(name), None, "{name}");
        }
        for name in ["model.decoder.layers.1.nothing", "model.encoder.language_model.layers.1.norm", "model.vision", ""]
        {
            assert_eq!(to_gguf(name), None, "{name}");
        }
    }
}
