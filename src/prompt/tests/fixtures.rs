//! Tokenisers and templates for the tests.

use tokenizers::Tokenizer;

use crate::prompt::{Text, TextParts};

/// The shipped demo's tokeniser: byte fallback, all markers of the family.
pub(super) fn demo_tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(include_bytes!("../../../models/demo/tokenizer.json")).expect("the demo's tokenizer loads")
}

/// The demo's tokeniser with this template.
pub(super) fn text_with(template: &str) -> Text {
    text_of(demo_tokenizer(), template)
}

/// This tokeniser and template; the end token is the demo's `<eos>`, the others are known by their spelling.
pub(super) fn text_of(tokenizer: Tokenizer, template: &str) -> Text {
    let end_tokens = tokenizer.token_to_id("<eos>").into_iter().collect();
    let parts = TextParts {
        tokenizer,
        template: Some(template.to_owned()),
        end_tokens,
        bos_token: Some("<bos>".to_owned()),
        eos_token: Some("<eos>".to_owned()),
        add_bos: None,
    };
    Text::new(parts).expect("tokenizer and template are understood")
}

/// The template of the shipped demo's first version: turns, no thinking, no tools.
pub(super) const PLAIN: &str = "{{ bos_token }}{% for m in messages %}{{ '<|turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}";
