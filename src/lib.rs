//! Tunesmith: a self-hosted service with the wire contract of Amazon Bedrock's model-customization
//! API. Two paths run through this crate.
//!
//! **A request.** [`http`] accepts a connection and authenticates the caller; [`routes`] finds the
//! operation; one file in [`bedrock`] checks the shapes and speaks to [`store`] in one transaction;
//! the reply goes back through [`http`]. Answers from models come from [`infer`].
//!
//! **A job.** [`worker`] claims a row by the rules of [`jobs`], brings the data from S3 through
//! [`objects`], and hands a folder to [`train`], which turns text into batches with [`data`], runs
//! the base from [`models`] with a method from [`tune`] on the operations in [`kernels`], and writes
//! what [`artifacts`] describes; what a policy says is judged by [`graders`]. [`worker`] uploads it and makes it visible in one transaction.
//!
//! Dependencies point one way; `tests/structure.rs` holds the arrows.

#![warn(missing_docs, unreachable_pub)]

pub mod app;
pub mod artifacts;
pub mod bedrock;
pub mod cli;
pub mod clock;
pub mod config;
pub mod data;
pub mod durable;
pub mod error;
mod fault_points;
pub mod graders;
pub mod http;
pub mod infer;
pub mod jobs;
pub mod kernels;
pub mod models;
pub mod net;
pub mod objects;
pub mod rng;
pub mod routes;
pub mod service;
mod sqlite;
pub mod store;
pub mod train;
pub mod tune;
pub mod worker;
