//! Which calls of a conversation wait for their results.
//!
//! A call without a result would leave the prompt open where the result belongs, and the model would make one up. A call
//! whose id an earlier one had gets another, since templates look for the call of a result in the whole conversation.

use std::collections::{HashMap, HashSet};

use super::error::ApiError;

/// How a request holds calls and their results.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CallForm {
    /// Inside of an assistant's message, answered by messages.
    Messages,
    /// As items, answered by items.
    Items,
}

impl CallForm {
    /// The field with a call's id.
    fn id(self) -> &'static str {
        match self {
            CallForm::Messages => "id",
            CallForm::Items => "call_id",
        }
    }

    /// The field with the id of the call that a result answers.
    fn answers(self) -> &'static str {
        match self {
            CallForm::Messages => "tool_call_id",
            CallForm::Items => "call_id",
        }
    }

    /// What a result is sent as.
    fn result(self) -> &'static str {
        match self {
            CallForm::Messages => "a 'tool' message",
            CallForm::Items => "a 'function_call_output'",
        }
    }
}

/// The calls of a conversation so far.
#[derive(Debug)]
pub(crate) struct OpenCalls {
    form: CallForm,
    /// Calls without a result, by the ids that the request gives them.
    open: HashMap<String, Call>,
    /// The ids that the request gives to calls that have one.
    answered: HashSet<String>,
    /// The ids that the conversation gives to all of them.
    ids: HashSet<String>,
    made: usize,
}

#[derive(Debug)]
struct Call {
    /// How many were made before it.
    number: usize,
    /// Where it stands in the request.
    path: String,
    /// Its id in the conversation.
    id: String,
}

impl OpenCalls {
    pub(crate) fn new(form: CallForm) -> OpenCalls {
        OpenCalls { form, open: HashMap::new(), answered: HashSet::new(), ids: HashSet::new(), made: 0 }
    }

    /// A call that stands at `path`, and its id in the conversation: `id`, unless an earlier call, which has its result, had
    /// it.
    pub(crate) fn call(&mut self, id: String, path: &str) -> Result<String, ApiError> {
        if self.open.contains_key(&id) {
            let message = format!("Two calls have the id '{}'; give each call an id of its own.", shown(&id));
            return Err(ApiError::invalid(format!("{path}.{}", self.form.id()), message));
        }
        let mut unique = id.clone();
        while self.ids.contains(&unique) {
            unique = format!("{unique}-{}", self.made);
        }
        self.ids.insert(unique.clone());
        self.answered.remove(&id);
        self.open.insert(id, Call { number: self.made, path: path.to_owned(), id: unique.clone() });
        self.made += 1;
        Ok(unique)
    }

    /// The result, which stands at `path`, of the call with that id in the request; gives its id in the conversation.
    pub(crate) fn result(&mut self, id: String, path: &str) -> Result<String, ApiError> {
        if let Some(call) = self.open.remove(&id) {
            self.answered.insert(id);
            return Ok(call.id);
        }
        let field = self.form.answers();
        let message = if self.answered.contains(&id) {
            format!("The call '{}' has its result already; send one result for each call.", shown(&id))
        } else {
            format!("'{field}' must name a call that stands before it; '{}' names none.", shown(&id))
        };
        Err(ApiError::invalid(format!("{path}.{field}"), message))
    }

    /// Whether a call waits for its result.
    pub(crate) fn waiting(&self) -> bool {
        !self.open.is_empty()
    }

    /// Refuses a conversation that goes on, or ends, while a call waits; names the first.
    pub(crate) fn settled(&self) -> Result<(), ApiError> {
        let Some((id, call)) = self.open.iter().min_by_key(|(_, call)| call.number) else { return Ok(()) };
        let (id, result, field) = (shown(id), self.form.result(), self.form.answers());
        let message = format!(
            "The call '{id}' has no result; send {result} with the '{field}' '{id}' after it, before all else."
        );
        Err(ApiError::invalid(&call.path, message))
    }
}

/// An id as errors quote it: a client can make up any length.
fn shown(id: &str) -> String {
    id.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused<T: std::fmt::Debug>(result: Result<T, ApiError>) -> (String, String) {
        let error = result.expect_err("a refusal").body().error;
        (error.param.unwrap_or_default(), error.message)
    }

    #[test]
    fn each_call_gets_one_result_before_the_next_turn() {
        let mut calls = OpenCalls::new(CallForm::Messages);
        assert!(calls.settled().is_ok() && !calls.waiting());
        calls.call("b".into(), "messages[1].tool_calls[0]").unwrap();
        calls.call("a".into(), "messages[1].tool_calls[1]").unwrap();
        let (param, message) = refused(calls.settled());
        assert_eq!(param, "messages[1].tool_calls[0]");
        assert!(message.contains("'b'") && message.contains("'tool' message"), "{message}");
        let twice = refused(calls.call("a".into(), "messages[1].tool_calls[2]"));
        assert_eq!(twice.0, "messages[1].tool_calls[2].id");
        // In any order.
        calls.result("a".into(), "messages[2]").unwrap();
        assert!(refused(calls.result("a".into(), "messages[3]")).1.contains("already"));
        assert_eq!(refused(calls.result("c".into(), "messages[3]")).0, "messages[3].tool_call_id");
        assert!(calls.waiting());
        calls.result("b".into(), "messages[3]").unwrap();
        calls.settled().unwrap();
    }

    #[test]
    fn an_id_that_comes_again_is_told_apart() {
        let mut calls = OpenCalls::new(CallForm::Messages);
        let mut seen = HashSet::new();
        for id in ["a", "a", "a-1", "b", "a", "a-1", "a-1-5", "", ""] {
            let unique = calls.call(id.into(), "messages[1].tool_calls[0]").unwrap();
            assert_eq!(calls.result(id.into(), "messages[2]").unwrap(), unique);
            assert!(seen.insert(unique.clone()), "{unique} stands for two calls");
        }
        // The first of its kind keeps it, as clients know it.
        assert!(["a", "b", ""].iter().all(|id| seen.contains(*id)));
        calls.settled().unwrap();
    }

    #[test]
    fn items_are_spoken_of_as_items() {
        let mut calls = OpenCalls::new(CallForm::Items);
        calls.call("c".into(), "input[0]").unwrap();
        assert!(refused(calls.settled()).1.contains("'function_call_output' with the 'call_id' 'c'"));
        assert_eq!(refused(calls.call("c".into(), "input[1]")).0, "input[1].call_id");
        assert_eq!(refused(calls.result("x".into(), "input[2]")).0, "input[2].call_id");
    }
}
