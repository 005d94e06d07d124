//! What a text must be, told to a canvas: the language it has to belong to, as far as it is written.

/// A language, followed token by token. It stands behind what was committed; the canvas asks about what may come next.
///
/// Implemented by `prompt`, called on the engine's thread.
pub trait Structure: Send {
    /// How many of these tokens, from the first, can stand in the text: all of them where what follows the text's end is
    /// reached.
    ///
    /// # Errors
    /// [`StructureError`] where the language cannot be followed.
    fn fits(&mut self, tokens: &[u32]) -> Result<usize, StructureError>;

    /// What can stand after `before`, which fits: the first of the candidates that can, or another token where none does,
    /// and whatever must follow it. At least one token.
    ///
    /// # Errors
    /// [`StructureError`] where the language cannot be followed.
    fn mend(
        &mut self,
        before: &[u32],
        candidates: &mut dyn Iterator<Item = u32>,
    ) -> Result<Vec<u32>, StructureError>;

    /// Moves behind these tokens, which fit.
    ///
    /// # Errors
    /// [`StructureError`] where the language cannot be followed.
    fn commit(&mut self, tokens: &[u32]) -> Result<(), StructureError>;
}

/// The language cannot be followed any further: it is too large, or the text has gone astray.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the structure cannot be followed: {0}")]
pub struct StructureError(pub String);
