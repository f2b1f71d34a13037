//! Launches for DoRA's row lengths; `dora.cu` has the kernels.

use candle_core::Result;

use super::launch::{Element, Launch, Machine, Module, THREADS, View, module, narrow};

static MODULE: Module = module!("dora");

/// The squared length of every row of `x` `[_, width]`, in f64.
pub(in crate::kernels) fn row_squares<M: Machine>(machine: &M, x: View<'_>, width: usize) -> Result<Vec<f64>> {
    let rows = x.len / width.max(1);
    let out = machine.allocate(Element::F64, rows)?;
    let grid = [narrow("rows", rows)?, 1, 1];
    let launch = Launch::blocks(&MODULE, "dora_row_squares", x.element, grid, THREADS)?;
    machine.launch(&launch.with(x).with(machine.view(&out)).with_count(width)?)?;
    machine.download(&out)
}

/// The length of every row of W + s·B·A, from A·Wᵀ `[r, out]`, A·Aᵀ `[r, r]`, B `[out, r]` and the squares of
/// the rows of W; all f32 but the last.
pub(in crate::kernels) fn row_norms<M: Machine>(
    machine: &M,
    [products, gram, b]: [View<'_>; 3],
    squares: &[f64],
    scale: f64,
) -> Result<M::Memory> {
    let (outputs, squares) = (squares.len(), machine.upload(squares)?);
    let out = machine.allocate(Element::F32, outputs)?;
    let launch = Launch::each(&MODULE, "dora_row_norms", Element::F32, outputs)?.with(products).with(gram).with(b);
    let launch = launch.with(machine.view(&squares)).with(machine.view(&out)).with_count(outputs)?;
    machine.launch(&launch.with_count(b.len / outputs.max(1))?.with(scale))?;
    Ok(out)
}
