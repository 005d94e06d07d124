//! How many operations a denoise step asks for, from the model's shape alone; a multiply-add counts two.

use crate::model::{Config, LayerKind, Operation, Splits};

/// Operations of one denoise step of one canvas, by part of the pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work(Splits<f64>);

impl Work {
    /// For a canvas after `prefix` tokens. Every entry of the soft embedding is counted.
    pub fn of(config: &Config, prefix: usize) -> Work {
        let mut work = Splits::default();
        let (rows, hidden, inner) = (config.canvas as f64, config.hidden as f64, config.intermediate as f64);
        let mut product = |operation, weights: f64| *work.of_mut(operation) += 2.0 * rows * weights;
        for kind in &config.layers {
            let heads = config.attention(*kind);
            let query = (config.heads * heads.head_dim) as f64;
            let key = (heads.kv_heads * heads.head_dim) as f64;
            // Full layers make their values from the keys and have no projection for them.
            let (keys_and_values, seen) = match kind {
                LayerKind::Sliding => (2.0 * key, prefix.min(config.window.saturating_sub(1))),
                LayerKind::Full => (key, prefix),
            };
            product(Operation::Projections, hidden * (2.0 * query + keys_and_values));
            // Scores, and values weighted by them.
            product(Operation::Attention, 2.0 * query * (seen + config.canvas) as f64);
            product(Operation::Mlp, 3.0 * hidden * inner);
            if let Some(experts) = &config.experts {
                product(Operation::Router, hidden * experts.count as f64);
                product(Operation::Experts, 3.0 * hidden * (experts.top_k * experts.intermediate) as f64);
            }
        }
        product(Operation::SelfConditioning, 3.0 * hidden * inner);
        product(Operation::Head, config.vocabulary as f64 * hidden);
        product(Operation::SoftEmbedding, config.vocabulary as f64 * hidden);
        Work(work)
    }

    /// One part's.
    pub fn part(&self, operation: Operation) -> f64 {
        *self.0.of(operation)
    }

    /// Several parts'.
    pub fn parts(&self, operations: &[Operation]) -> f64 {
        operations.iter().map(|operation| self.part(*operation)).sum()
    }

    /// Everything.
    pub fn total(&self) -> f64 {
        self.parts(&Operation::ALL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_shape_costs_what_is_known_of_it() {
        let layers: Vec<&str> =
            (0..30).map(|layer| if layer % 6 == 5 { "full_attention" } else { "sliding_attention" }).collect();
        let config = Config::from_json(&serde_json::json!({
            "model_type": "diffusion_gemma", "canvas_length": 256, "tie_word_embeddings": true,
            "text_config": {
                "hidden_size": 2816, "intermediate_size": 2112, "moe_intermediate_size": 704, "num_experts": 128,
                "top_k_experts": 8, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
                "num_global_key_value_heads": 2, "global_head_dim": 512, "num_hidden_layers": 30,
                "layer_types": layers, "vocab_size": 262144, "sliding_window": 1024, "rms_norm_eps": 1e-6,
                "max_position_embeddings": 262144, "hidden_activation": "gelu_pytorch_tanh",
                "final_logit_softcapping": 30.0, "tie_word_embeddings": true, "attention_bias": false,
                "rope_parameters": {
                    "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}
                }
            }
        }))
        .unwrap();
        let work = Work::of(&config, 512);
        // 1,579 and 756 GFLOP for 256 rows.
        use Operation::*;
        assert_eq!((work.parts(&[Projections, Mlp, Router, Experts]) / 1e9).round(), 1579.0);
        assert_eq!((work.parts(&[Head, SoftEmbedding]) / 1e9).round(), 756.0);
        // 25 sliding layers of 16 heads × 256 and 5 full ones of 16 × 512, each row over 512 + 256 positions.
        assert_eq!(work.part(Attention), 4.0 * 256.0 * 768.0 * 16.0 * (25.0 * 256.0 + 5.0 * 512.0));
        let deep = Work::of(&config, 8192);
        let sliding = 25.0 * 256.0 * (1023.0 + 256.0);
        assert_eq!(deep.part(Attention), 4.0 * 256.0 * 16.0 * (sliding + 5.0 * 512.0 * (8192.0 + 256.0)));
    }
}
