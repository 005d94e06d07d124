//! Whether an answer may hold tool calls, and how many of them are passed on.

use crate::prompt::{Dialect, Instead};

/// How many of an answer's tool calls are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// Every one.
    All,
    /// The first.
    First,
    /// None: no tools are offered, so there are no calls.
    None,
}

impl Calls {
    /// What a request with those tools wants.
    pub(crate) fn of<T>(tools: &[T], parallel: Option<bool>) -> Calls {
        match parallel {
            _ if tools.is_empty() => Calls::None,
            Some(false) => Calls::First,
            _ => Calls::All,
        }
    }

    /// Whether a call may stand where content of a given form is wanted.
    pub(crate) fn instead(self) -> Instead {
        if self == Calls::None { Instead::Nothing } else { Instead::Calls }
    }

    /// How a chat answer is read accordingly.
    pub(crate) fn dialect(self) -> Dialect {
        if self == Calls::None { Dialect::ChatWithoutTools } else { Dialect::Chat }
    }
}
