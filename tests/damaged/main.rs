//! Files that are damaged or made to do harm, and memory: whatever a file says, opening and loading it gives an error or a
//! model, never a panic, a hang or an allocation beyond what the file's size warrants; and what a model takes is what the plan
//! says.
//!
//! The corpus (written by corpus.py) is replayed on every run; `fuzz/` feeds the same harness to a fuzzer.

mod checkpoint;
mod corpus;
mod group;
mod heap;
mod mutations;
mod plan;
