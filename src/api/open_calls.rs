//! Which calls of a conversation wait for their results.
//!
//! A call without a result would leave the prompt open where the result belongs, and the model would make one up.

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
    /// Calls without a result, by their ids.
    open: HashMap<String, Call>,
    /// Ids of the calls that have one.
    answered: HashSet<String>,
    made: usize,
}

#[derive(Debug)]
struct Call {
    /// How many were made before it.
    number: usize,
    /// Where it stands in the request.
    path: String,
}

impl OpenCalls {
    pub(crate) fn new(form: CallForm) -> OpenCalls {
        OpenCalls { form, open: HashMap::new(), answered: HashSet::new(), made: 0 }
    }

    /// A call that stands at `path`. The id of a call that has its result may be used again.
    pub(crate) fn call(&mut self, id: &str, path: &str) -> Result<(), ApiError> {
        let call = Call { number: self.made, path: path.to_owned() };
        if self.open.insert(id.to_owned(), call).is_some() {
            let message = format!("Two calls have the id '{}'; give each call an id of its own.", shown(id));
            return Err(ApiError::invalid(format!("{path}.{}", self.form.id()), message));
        }
        self.answered.remove(id);
        self.made += 1;
        Ok(())
    }

    /// The result, which stands at `path`, of the call with that id.
    pub(crate) fn result(&mut self, id: &str, path: &str) -> Result<(), ApiError> {
        if self.open.remove(id).is_some() {
            self.answered.insert(id.to_owned());
            return Ok(());
        }
        let field = self.form.answers();
        let message = if self.answered.contains(id) {
            format!("The call '{}' has its result already; send one result for each call.", shown(id))
        } else {
            format!("'{field}' must name a call that stands before it; '{}' names none.", shown(id))
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
    fn refused(result: Result<(), ApiError>) -> (String, String) {
        let error = result.expect_err("a refusal").body().error;
        (error.param.unwrap_or_default(), error.message)
    }

    #[test]
    fn each_call_gets_one_result_before_the_next_turn() {
        let mut calls = OpenCalls::new(CallForm::Messages);
        assert!(calls.settled().is_ok() && !calls.waiting());
        calls.call("b", "messages[1].tool_calls[0]").unwrap();
        calls.call("a", "messages[1].tool_calls[1]").unwrap();
        let (param, message) = refused(calls.settled());
        assert_eq!(param, "messages[1].tool_calls[0]");
        assert!(message.contains("'b'") && message.contains("'tool' message"), "{message}");
        let twice = refused(calls.call("a", "messages[1].tool_calls[2]"));
        assert_eq!(twice.0, "messages[1].tool_calls[2].id");
        // In any order.
        calls.result("a", "messages[2]").unwrap();
        assert!(refused(calls.result("a", "messages[3]")).1.contains("already"));
        assert_eq!(refused(calls.result("c", "messages[3]")).0, "messages[3].tool_call_id");
        assert!(calls.waiting());
        calls.result("b", "messages[3]").unwrap();
        calls.settled().unwrap();
        // A later turn may use an id again.
        calls.call("a", "messages[5].tool_calls[0]").unwrap();
        calls.result("a", "messages[6]").unwrap();
        calls.settled().unwrap();
    }

    #[test]
    fn items_are_spoken_of_as_items() {
        let mut calls = OpenCalls::new(CallForm::Items);
        calls.call("c", "input[0]").unwrap();
        assert!(refused(calls.settled()).1.contains("'function_call_output' with the 'call_id' 'c'"));
        assert_eq!(refused(calls.call("c", "input[1]")).0, "input[1].call_id");
        assert_eq!(refused(calls.result("x", "input[2]")).0, "input[2].call_id");
    }
}
