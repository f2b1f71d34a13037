//! Differentiable operations of our own, one file each. A frozen operand gets no gradient.
