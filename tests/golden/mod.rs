//! Values that other libraries computed, committed as small fixtures beside the scripts that made them.

mod candle;
mod kernels;
mod models;
mod tuning;
