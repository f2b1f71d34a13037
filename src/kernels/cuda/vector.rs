//! Launches of the small operations that lie between the products of others; `vector.cu` has the kernels.

use candle_core::Result;

use super::launch::{Element, Launch, Machine, Module, THREADS, View, module, narrow};

static MODULE: Module = module!("vector");
/// Rows whose sums are made first where a matrix is summed over its rows: so many that enough blocks run, and
/// never another number, so the bits depend on the shape alone.
pub(super) const STRIP: usize = 64;

/// Rows `ids` (u32, on the machine) of `table` `[_, width]`.
pub(super) fn gather<M: Machine>(machine: &M, table: View<'_>, ids: View<'_>, width: usize) -> Result<M::Memory> {
    let count = ids.len * width;
    let out = machine.allocate(table.element, count)?;
    let launch = Launch::each(&MODULE, "gather", table.element, count)?;
    let launch = launch.with(table).with(ids).with(machine.view(&out)).with_total(count).with_count(width)?;
    machine.launch(&launch)?;
    Ok(out)
}

/// Puts `rows` `[ids, width]` at the rows `ids` of `out`; every id once.
pub(super) fn scatter<M: Machine>(
    machine: &M,
    rows: View<'_>,
    ids: View<'_>,
    out: View<'_>,
    width: usize,
) -> Result<()> {
    let count = rows.expect("scatter", ids.len * width)?.len;
    let launch = Launch::each(&MODULE, "scatter", rows.element, count)?;
    machine.launch(&launch.with(rows).with(ids).with(out).with_total(count).with_count(width)?)
}

/// `row` so many times, one under the other.
pub(super) fn repeat<M: Machine>(machine: &M, row: View<'_>, rows: usize) -> Result<M::Memory> {
    let count = row.len * rows;
    let out = machine.allocate(row.element, count)?;
    let launch = Launch::each(&MODULE, "repeat", row.element, count)?;
    machine.launch(&launch.with(row).with(machine.view(&out)).with_total(count).with_count(row.len)?)?;
    Ok(out)
}

/// The sum of the rows of `x` `[_, width]`, in the type of `x`.
pub(super) fn sum_rows<M: Machine>(machine: &M, x: View<'_>, width: usize) -> Result<M::Memory> {
    let rows = x.len / width.max(1);
    let sums = machine.allocate(Element::F32, rows.div_ceil(STRIP) * width)?;
    let launch = strips("sum_strips", &MODULE, x.element, rows, width)?.with(x).with(machine.view(&sums));
    machine.launch(&launch.with_total(rows).with_count(width)?.with_count(STRIP)?)?;
    add_strips(machine, machine.view(&sums), x.element, width)
}

/// A launch with a thread for each column of each strip of rows.
pub(super) fn strips<'a>(
    kernel: &str,
    module: &'static Module,
    element: Element,
    rows: usize,
    width: usize,
) -> Result<Launch<'a>> {
    let grid = [narrow("columns", width.div_ceil(THREADS as usize))?, narrow("strips", rows.div_ceil(STRIP))?, 1];
    Launch::blocks(module, kernel, element, grid, THREADS)
}

/// The sum of the rows of `sums` (f32, `[_, width]`), as `element`.
pub(super) fn add_strips<M: Machine>(machine: &M, sums: View<'_>, element: Element, width: usize) -> Result<M::Memory> {
    let out = machine.allocate(element, width)?;
    let launch = Launch::each(&MODULE, "sum_rows", element, width)?.with(sums).with(machine.view(&out));
    machine.launch(&launch.with_total(sums.len / width.max(1)).with_count(width)?)?;
    Ok(out)
}

/// An operand in the type that a product needs: itself, or a converted copy.
pub(super) enum Converted<'a, M: Machine> {
    Same(View<'a>),
    Copy(M::Memory),
}

impl<'a, M: Machine> Converted<'a, M> {
    /// `x` as `element`, f32 or bf16.
    pub(super) fn new(machine: &M, x: View<'a>, element: Element) -> Result<Self> {
        if x.element == element {
            return Ok(Self::Same(x));
        }
        let out = machine.allocate(element, x.len)?;
        let launch = Launch::each(&MODULE, "convert", x.element, x.len)?;
        machine.launch(&launch.with(x).with(machine.view(&out)).with_total(x.len))?;
        Ok(Self::Copy(out))
    }

    /// The values.
    pub(super) fn view<'b>(&'b self, machine: &M) -> View<'b> {
        match self {
            Self::Same(view) => *view,
            Self::Copy(memory) => machine.view(memory),
        }
    }
}
