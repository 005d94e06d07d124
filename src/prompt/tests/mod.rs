//! The room as a whole: rendering, tokenising and reading with the shipped tokeniser and a full-size template.

mod calling;
mod channels;
mod extent;
mod fixtures;
mod reach;
mod reading;
mod rendering;
mod shielding;
mod streaming;
mod structure;
