//! From checked wishes and encoded prompts to running jobs.

use std::sync::Arc;

use super::calls::Calls;
use super::drafts::Bounds;
use super::error::ApiError;
use super::order::Order;
use super::pump::{Manner, Pump, Voice};
use super::state::AppState;
use crate::prompt::{Blueprint, CallableTools, Dialect, Prompt, Rules};
use crate::scheduler::{Choice, Handle, Job};

/// All that a request wants done.
pub(crate) struct Plan {
    pub order: Order,
    /// The prompts, each continued by itself; none is empty, and beside each the context has room for a canvas.
    pub prompts: Vec<Prompt>,
    /// Choices per prompt.
    pub choices: usize,
    /// Most tokens per choice; `None` is what the context holds.
    pub max_tokens: Option<usize>,
    /// Candidates recorded per token.
    pub top_k: u8,
    pub dialect: Dialect,
    pub calls: Calls,
    /// What may be called, and how.
    pub callable: CallableTools,
    /// What content must be, where it may not be any text.
    pub structure: Option<Blueprint>,
    /// The request's field that holds the prompt, for errors.
    pub field: &'static str,
}

/// Submits one job per prompt, all or none, and gives the pump of their events. Choices are numbered prompt by prompt.
pub(crate) fn start(state: &AppState, plan: Plan) -> Result<Pump, ApiError> {
    let order = &plan.order;
    // One time for all prompts.
    let timeout = Some(order.time_left());
    let drafts = order.delivery.drafts();
    let (text, callable) = (state.text(), Arc::new(plan.callable));
    let rules = Rules { stop: Some(&order.stop), callable: Some(&callable) };
    let mut jobs = Vec::with_capacity(plan.prompts.len());
    let mut asked = Vec::with_capacity(plan.prompts.len());
    let mut prompt_sizes = Vec::with_capacity(plan.prompts.len());
    for prompt in plan.prompts {
        let max_tokens = room(prompt.ids.len(), plan.max_tokens, state.engine());
        prompt_sizes.push(prompt.ids.len());
        // Two prompts of a request draw the same numbers, so each gets the text it would get alone.
        let choice = |stream: usize| Choice {
            seed: order.seed,
            stream: stream as u32,
            gate: text.gate(prompt.opening, plan.dialect, rules),
            structure: plan.structure.as_ref().map(|blueprint| blueprint.structure(prompt.opening)),
        };
        asked.push((prompt.opening, max_tokens));
        jobs.push(Job {
            prompt: prompt.ids.into(),
            resume_points: prompt.resume_points,
            choices: (0..plan.choices).map(choice).collect(),
            choices_before: jobs.len() * plan.choices,
            max_tokens,
            sampler: order.sampler,
            draw: order.draw,
            bias: order.bias.clone(),
            penalties: order.penalties,
            top_k: plan.top_k,
            timeout,
            drafts,
        });
    }
    let tickets = state.engine().submit_all(jobs).map_err(|refusal| ApiError::refused(&refusal, plan.field))?;
    let mut voices = Vec::with_capacity(tickets.len() * plan.choices);
    for (ticket, (opening, max_tokens)) in tickets.into_iter().zip(asked) {
        let manner = Manner {
            dialect: plan.dialect,
            calls: plan.calls,
            delivery: order.delivery,
            bounds: Bounds { max_tokens, max_steps: order.sampler.max_steps },
        };
        for reader in ticket.choices {
            let text = text.reader(opening, plan.dialect, rules);
            voices.push(Voice::new(voices.len(), reader, text, manner));
        }
    }
    Ok(Pump::new(voices, prompt_sizes, plan.choices))
}

/// How many tokens the answer may have beside so many of its prompt: what was asked for, as far as the context holds it.
fn room(prompt: usize, asked: Option<usize>, engine: &Handle) -> usize {
    let room = engine.limits().context.saturating_sub(prompt);
    asked.unwrap_or(room).min(room)
}
