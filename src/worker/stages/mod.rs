//! The stages of an attempt, in the order they run: everything the trainer needs is brought
//! ([`prepare`], and the teacher's answers by [`distill`]), the model learns ([`train`]), the result is made
//! visible ([`publish`]).

pub(crate) mod distill;
pub(crate) mod grader;
pub(crate) mod prepare;
pub(crate) mod publish;
pub(crate) mod train;
