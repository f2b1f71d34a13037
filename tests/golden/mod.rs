//! Values that other libraries computed, committed as small fixtures beside the scripts that made them.

mod kernels;
